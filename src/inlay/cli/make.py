"""compose, harmonize, remove: the commands that make a picture."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay.cli import composing, options, phasing
from inlay.cli.options import Common, MaskFile, Out, TrustRemoteCode, takes_common
from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.composer import Composer, Composite

Call = Callable[["Composer", dict[str, Any]], "Composite"]


@takes_common
def compose(
    background: Annotated[
        str, typer.Argument(metavar="BACKGROUND", help="Picture that the subject goes into.")
    ],
    subject: composing.Subjects,
    output: Out,
    common: Common,
    box: composing.Boxes = None,
    at: composing.Points = None,
    scale: composing.Scales = None,
    random: composing.Random = False,
    rotate: composing.Turns = None,
    flip: composing.Flip = False,
    mask: composing.Masks = None,
    cut: composing.Cuts = None,
    cut_box: composing.CutBoxes = None,
    together: composing.Together = False,
    phases: phasing.Phases = None,
    remove_method: phasing.RemoveMethod = None,
    remove_mask: phasing.RemoveMask = None,
    keep_phases: phasing.KeepPhases = False,
    control: composing.Control = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Put subjects into a background."""
    phased = phasing.Phased.of(phases, remove_method, remove_mask, keep_phases)
    if phased is None:
        common = composing.by_subject(common, subject)
    place = composing.places(
        len(subject),
        box=box,
        at=at,
        scale=scale,
        random=random,
        rotate=rotate,
        flip=flip,
        mask=mask,
        cut=cut,
        cut_box=cut_box,
    )
    place |= {"trust_remote_code": trust_remote_code, "together": together, "control": control}
    place |= {"keep_phases": keep_phases} if phased is None else phased.keywords()
    pictures = subject[0] if len(subject) == 1 else subject
    produce(
        "compose",
        output,
        {**composing.roles(background, subject, place["mask"], remove_mask), "control": control},
        common,
        lambda composer, more: composer.compose(background, pictures, **place, **more),
        phased,
        keep_phases,
    )


@takes_common
def harmonize(
    picture: Annotated[
        str, typer.Argument(metavar="PICTURE", help="Picture with the object already in it.")
    ],
    output: Out,
    common: Common,
    mask: MaskFile = None,
    background: Annotated[
        str | None,
        typer.Option("--background", metavar="CLEAN", help="The picture before pasting."),
    ] = None,
) -> None:
    """Make an object that is already pasted belong."""
    produce(
        "harmonize",
        output,
        {"picture": picture, "mask": mask, "background": background},
        common,
        lambda composer, more: composer.harmonize(
            picture, mask=mask, background=background, **more
        ),
    )


@takes_common
def remove(
    picture: Annotated[
        str, typer.Argument(metavar="PICTURE", help="Picture to take an object out of.")
    ],
    output: Out,
    mask: Annotated[str, typer.Option("--mask", metavar="FILE", help="Mask: white is what goes.")],
    common: Common,
) -> None:
    """Take an object out."""
    produce(
        "remove",
        output,
        {"picture": picture, "mask": mask},
        common,
        lambda composer, more: composer.remove(picture, mask=mask, **more),
    )


def produce(
    verb: str,
    output: str,
    files: Mapping[str, str | None],
    common: Common,
    call: Call,
    phased: phasing.Phased | None = None,
    keep: bool = False,
) -> None:
    """Check everything, make every picture that was asked for, write them, say so."""
    from inlay.cli.outputs import (
        Outputs,
        check_out,
        check_preview,
        kept_names,
        sibling_names,
        tell,
    )
    from inlay.cli.progress import listening

    out = check_out(output, files)
    variants, notes = plan(verb, common) if phased is None else phased.plan(common, plan)
    labels = [
        ",".join(filter(None, (label, f"seed={seed}" if common.num_images > 1 else "")))
        for label, _ in variants
        for seed in range(common.seed, common.seed + common.num_images)
    ]
    siblings = sibling_names(out, labels) if len(labels) > 1 else []
    kept = []
    if keep:
        wanted = [
            phasing.kept_stages(verb, common, values) if phased is None else phased.names
            for _, values in variants
            for _ in range(common.num_images)
        ]
        kept = [kept_names(*each) for each in zip(siblings or [out], wanted, strict=True)]
    for path in itertools.chain(siblings, *kept):
        check_out(str(path), files)
    composer = open_composer(common)
    preview = check_preview(out, files) if common.previews else None
    with (
        listening(quiet=common.quiet, bar=not common.json, preview_file=preview) as listener,
        Outputs(out, siblings, kept) as outputs,
    ):
        for number, (label, settings) in enumerate(variants, 1):
            counted = f"{number} of {len(variants)}: " if len(variants) > 1 else ""
            listener.label = counted + label
            result = call(
                composer,
                {
                    "method": common.method,
                    "preset": common.preset,
                    "seed": common.seed,
                    "num_images": common.num_images,
                    "callback": listener.step,
                    "previews": common.previews,
                    "max_pixels": common.max_pixels,
                    **settings,
                    **({} if phased is None else {"on_phase": listener.phase}),
                },
            )
            for index, (picture, record) in enumerate(
                zip(result.pictures, result.records, strict=True)
            ):
                stages = [
                    (stage, {**own, "notes": [*own["notes"], *notes]})
                    for stage, own in (result.kept[index] if kept else {}).values()
                ]
                record["notes"] = [*record["notes"], *notes]
                outputs.add(picture, record, labels[len(outputs.records)], stages)
                for note in record["notes"]:
                    listener.note(note)
        summary = outputs.finish()
    tell(summary, as_json=common.json, quiet=common.quiet)


def plan(verb: str, common: Common) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """The (label, settings) of each call that was asked for, checked, and notes.

    The options that all methods share may be given to one that has no such setting: a note says
    that they are passed over. Raises InputError.
    """
    from inlay import methods
    from inlay.sweep import check_count, nearest, parse_sets

    name = methods.default_for(verb) if common.method is None else common.method
    method = methods.get(name, verb)
    direct = common.direct_settings()
    base: dict[str, Any] = {}
    if common.preset is not None:
        if not method.presets:
            raise InputError(f"method {method.name} has no presets; leave --preset out.")
        if common.preset not in method.presets:
            raise InputError(
                f"{method.name} has no preset {options.short(common.preset)}; "
                f"{nearest(common.preset, method.presets)}"
            )
        base.update(method.presets[common.preset])
    sets = common.set or []
    for item in sets:
        key = item.partition("=")[0].strip()
        if key in direct:
            option = "--" + key.replace("_", "-")
            raise InputError(f"{key} is given by {option} and by --set; give it once.")
    notes = []
    for key in [key for key in direct if key not in method.settings.model_fields]:
        del direct[key]
        notes.append(f"{method.name} has no {key}: --{key.replace('_', '-')} is passed over")
    variants = parse_sets(sets, method.settings, {**base, **direct})
    check_count(len(variants) * common.num_images)
    return [(label, {**direct, **values}) for label, values in variants], notes


def open_composer(common: Common) -> Composer:
    """The Composer that the options ask for; nothing is loaded yet."""
    loras = [options.lora(text) for text in common.lora or []]
    inversions = list(common.textual_inversion or [])
    for option, path in [("--lora", p) for p, _ in loras] + [
        ("--textual-inversion", p) for p in inversions
    ]:
        try:
            found = Path(path).is_file()
        except (OSError, ValueError):
            found = False
        if not found:
            raise InputError(f"{option} {options.short(path)} is not a file; give its path.")
    from inlay.composer import Composer

    return Composer.from_pretrained(
        common.model,
        device=common.device,
        dtype=common.dtype,
        loras=loras,
        textual_inversions=inversions,
    )
