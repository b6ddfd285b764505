"""compose, harmonize, remove: the commands that make a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay.cli import options
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
    subject: Annotated[str, typer.Argument(metavar="SUBJECT", help="Picture of the subject.")],
    output: Out,
    common: Common,
    box: Annotated[
        str | None,
        typer.Option(
            "--box", metavar="X,Y,W,H", help="Where: the subject is fitted into this box."
        ),
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="X,Y", help="Where: the subject's centre.")
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option("--scale", metavar="S", help="With --at: factor on the subject's pixels."),
    ] = None,
    random: Annotated[
        bool, typer.Option("--random", help="Where: a place and size drawn from the seed.")
    ] = False,
    rotate: Annotated[
        str,
        typer.Option("--rotate", metavar="DEGREES", help="Turn the subject counter-clockwise."),
    ] = "0",
    flip: Annotated[bool, typer.Option("--flip", help="Mirror the subject left to right.")] = False,
    mask: MaskFile = None,
    cut: Annotated[
        str | None,
        typer.Option(
            "--cut",
            metavar="HOW",
            help="How the subject is cut out: alpha, mask, box, grabcut or a segmentation model.",
            autocompletion=options._completes(*options.CUTS),
        ),
    ] = None,
    cut_box: Annotated[
        str | None,
        typer.Option(
            "--cut-box", metavar="X,Y,W,H", help="Where the subject is in its own picture."
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Put a subject into a background."""
    places = [name for name, value in (("--box", box), ("--at", at)) if value is not None]
    places += ["--random"] if random else []
    if len(places) > 1:
        raise InputError(f"{' and '.join(places)} exclude each other; give one of them.")
    if scale is not None and (box is not None or random):
        raise InputError(f"--scale does not go with {places[0]}; give it with --at.")
    factor = None if scale is None else options.number(scale, "--scale")
    if factor is not None and factor <= 0:
        raise InputError(f"--scale is {scale}; expected a number above 0.")
    if cut == "mask" and mask is None:
        raise InputError("--cut mask needs --mask FILE.")
    if cut == "box" and cut_box is None:
        raise InputError("--cut box needs --cut-box X,Y,W,H.")
    place: dict[str, Any] = {
        "box": options.box(box, "--box"),
        "at": options.point(at, "--at"),
        "scale": factor,
        "random": random,
        "rotate": options.number(rotate, "--rotate"),
        "flip": flip,
        "mask": mask,
        "cut": cut,
        "cut_box": options.box(cut_box, "--cut-box"),
        "trust_remote_code": trust_remote_code,
    }
    files = {"background": background, "subject": subject, "mask": mask}
    produce(
        "compose",
        output,
        files,
        common,
        lambda composer, more: composer.compose(background, subject, **place, **more),
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
    verb: str, output: str, files: Mapping[str, str | None], common: Common, call: Call
) -> None:
    """Check everything, make every picture that was asked for, write them, say so."""
    from inlay.cli.outputs import Outputs, check_out, check_preview, sibling_names, tell
    from inlay.cli.progress import listening

    out = check_out(output, files)
    variants, notes = plan(verb, common)
    labels = [
        ",".join(filter(None, (label, f"seed={seed}" if common.num_images > 1 else "")))
        for label, _ in variants
        for seed in range(common.seed, common.seed + common.num_images)
    ]
    siblings = sibling_names(out, labels) if len(labels) > 1 else []
    for sibling in siblings:
        check_out(str(sibling), files)
    composer = open_composer(common)
    preview = check_preview(out, files) if common.previews else None
    with (
        listening(quiet=common.quiet, bar=not common.json, preview_file=preview) as listener,
        Outputs(out, siblings) as outputs,
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
                },
            )
            for picture, record in zip(result.pictures, result.records, strict=True):
                record["notes"] = [*record["notes"], *notes]
                outputs.add(picture, record, labels[len(outputs.records)])
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
    from inlay.sweep import MAX_PICTURES, nearest, parse_sets

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
    count = len(variants) * common.num_images
    if count > MAX_PICTURES:
        raise InputError(
            f"the lists and --num-images ask for {count} pictures; at most {MAX_PICTURES} are made."
        )
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
