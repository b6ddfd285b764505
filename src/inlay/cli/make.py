"""compose, harmonize, remove, scene, run, rerun: the commands that make a picture."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay.cli.options import (
    DEFAULT_MAX_PIXELS,
    Common,
    Json,
    MaskFile,
    MaxPixels,
    Out,
    Quiet,
    TrustRemoteCode,
    grouped,
)
from inlay.cli.subjects import KeepPhases, Phases, Places, Subjects
from inlay.errors import InputError, nearest, show

if TYPE_CHECKING:
    from inlay.request import Request
    from inlay.result import Record


@grouped
def compose(
    background: Annotated[
        str, typer.Argument(metavar="BACKGROUND", help="Picture that the subject goes into.")
    ],
    subject: Subjects,
    output: Out,
    places: Places,
    phases: Phases,
    common: Common,
    together: Annotated[
        bool,
        typer.Option(
            "--together",
            help="Paste all subjects first and run the method once on all, not on one after the "
            "other.",
        ),
    ] = False,
    control: Annotated[
        str | None,
        typer.Option(
            "--control",
            metavar="FILE",
            help="Drawing of the background's size, white lines on black, to re-draw the subject "
            "by: --method freecompose --preset semantic.",
        ),
    ] = None,
) -> None:
    """Put subjects into a background."""
    request = {
        "verb": "compose",
        "background": background,
        "subjects": places.subjects(subject),
        "together": together,
        "control": control,
        "remove_mask": phases.remove_mask,
        "keep_phases": phases.keep_phases,
    }
    variants = _in_phases(phases, common) if phases.phases is not None else None
    _make(request, output, common, variants, places.trust_remote_code)


@grouped
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
    request = {"picture": picture, "mask": mask, "background": background}
    _make({"verb": "harmonize", **request}, output, common)


@grouped
def remove(
    picture: Annotated[
        str, typer.Argument(metavar="PICTURE", help="Picture to take an object out of.")
    ],
    output: Out,
    mask: Annotated[str, typer.Option("--mask", metavar="FILE", help="Mask: white is what goes.")],
    common: Common,
) -> None:
    """Take an object out."""
    _make({"verb": "remove", "picture": picture, "mask": mask}, output, common)


@grouped
def scene(
    subject: Subjects,
    output: Out,
    places: Places,
    common: Common,
    size: Annotated[
        str, typer.Option("--size", metavar="WxH", help="Of the scene in pixels, like 768x512.")
    ],
    keep_phases: KeepPhases = False,
) -> None:
    """Build a scene around subjects from a prompt."""
    found = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", size, re.ASCII)
    if found is None:
        raise InputError(f"--size is {show(size)}; expected WxH in whole pixels, like 768x512.")
    request = {
        "verb": "scene",
        "subjects": places.subjects(subject),
        "size": [int(found[1]), int(found[2])],
        "keep_phases": keep_phases,
    }
    _make(request, output, common, trust_remote_code=places.trust_remote_code)


def run(
    request: Annotated[
        str,
        typer.Argument(
            metavar="REQUEST", help="JSON file, see inlay schema, or a picture that inlay wrote."
        ),
    ],
    output: Out,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make what a request asks for: any request as data."""
    from inlay.request import Request

    if Path(request).suffix.lower() != ".json":
        return rerun(request, output, max_pixels, trust_remote_code, json, quiet)
    how = _How(output, max_pixels, trust_remote_code, json=json, quiet=quiet)
    _write([("", Request.read(request))], how)


def rerun(
    picture: Annotated[
        str, typer.Argument(metavar="PICTURE", help="Picture that inlay has written.")
    ],
    output: Out,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a picture again from the record inside it."""
    from inlay import __version__
    from inlay.result import read_back

    record = read_back(picture)
    request = record.resolve(Path(picture).parent)
    said = []
    if record.inlay != __version__:
        said.append(
            f"the picture was made by inlay {record.inlay}, this is {__version__}: the result may "
            "differ"
        )
    how = _How(output, max_pixels, trust_remote_code, json=json, quiet=quiet)
    _write([("", request)], how, said=said, record=record)


Variants = list[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class _How:
    """Where pictures go, and how they are made and told of."""

    output: str
    max_pixels: int = DEFAULT_MAX_PIXELS
    trust_remote_code: bool = False
    previews: bool = False
    json: bool = False
    quiet: bool = False


def _make(
    base: dict[str, Any],
    output: str,
    common: Common,
    variants: tuple[Variants, list[str]] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Build the request of each variant, check everything, and write the pictures."""
    from inlay.request import Request
    from inlay.scene.subject import as_subjects

    base |= {"seed": common.seed, "num_images": common.num_images, "model": common.checkpoint()}
    if variants is None:
        verb = base["verb"]
        concept = any(subject.concept for subject in as_subjects(base.get("subjects", ["-"])))
        variants = _variants(verb, common.method, common, concept)
    requests = [(label, Request.of({**base, **own})) for label, own in variants[0]]
    how = _How(
        output, common.max_pixels, trust_remote_code, common.previews, common.json, common.quiet
    )
    _write(requests, how, notes=variants[1])


def _variants(
    verb: str, name: str | None, common: Common, concept: bool = False
) -> tuple[Variants, list[str]]:
    """The (label, {"method": ...}) of each request, and notes; raises InputError.

    The options that all methods share may be given to one that has no such setting: a note says
    that they are passed over.
    """
    from inlay import methods
    from inlay.settings import check_count, parse_sets

    method = methods.get(methods.default_for(verb, concept) if name is None else name, verb)
    direct = common.direct_settings()
    for item in common.set or []:
        key = item.partition("=")[0].strip()
        if key in direct:
            option = "--" + key.replace("_", "-")
            raise InputError(f"{key} is given by {option} and by --set; give it once.")
    notes = []
    for key in [key for key in direct if key not in method.settings.model_fields]:
        del direct[key]
        notes.append(f"{method.name} has no {key}: --{key.replace('_', '-')} is passed over")
    if common.preset is not None and common.preset not in method.presets:
        if not method.presets:
            raise InputError(f"method {method.name} has no presets; leave --preset out.")
        raise InputError(
            f"{method.name} has no preset {show(common.preset)}; "
            f"{nearest(common.preset, method.presets)}"
        )
    preset = method.presets[common.preset] if common.preset is not None else {}
    variants = parse_sets(common.set or [], method.settings, {**preset, **direct})
    check_count(len(variants) * common.num_images)
    chosen = {"name": method.name, "preset": common.preset, **direct}
    return [(label, {"method": {**chosen, **values}}) for label, values in variants], notes


def _in_phases(phases: Phases, common: Common) -> tuple[Variants, list[str]]:
    """The same for a composition in phases; lists multiply over all of them.

    A --set whose key begins with a phase and a dot is that phase's, all others the main one's.
    """
    from inlay import methods
    from inlay.methods.choice import RUN_AS, as_phases, main_phase
    from inlay.settings import check_count

    names = as_phases(phases.phases, "phases")
    main = main_phase(names)
    if main != "harmonize":
        for word, value in (("method", common.method), ("preset", common.preset)):
            if value is not None:
                raise InputError(f"{word} goes with the phase harmonize; add that phase.")
    if phases.remove_method is not None and "remove" not in names:
        raise InputError("remove_method goes with the phase remove; add that phase.")
    sets = _sets_by_phase(common.set or [], names, main)
    notes: list[str] = []
    series: list[list[tuple[str, str, dict[str, Any]]]] = []
    for phase in sorted(names, key=lambda name: name != main):
        verb, fixed = RUN_AS[phase]
        name = {"remove": phases.remove_method, "harmonize": common.method}.get(phase)
        if name is None:
            name = fixed.get("name")
        own = replace(common, set=sets[phase], preset=fixed.get("preset"))
        if phase == "harmonize":
            own = replace(own, preset=common.preset)
        if phase != main:
            own = replace(own, num_inference_steps=None, guidance_scale=None)
            if phase != "repose":
                own = replace(own, prompt=None, negative_prompt=None)
        elif "repose" in names and phase != "repose":
            # What this method has no use for is still said to the re-posing.
            method = methods.get(name or methods.default_for(verb), verb)
            if "prompt" not in method.settings.model_fields:
                own = replace(own, prompt=None, negative_prompt=None)
        found, said = _variants(verb, name, own)
        notes += said
        series.append([(phase, label, values["method"]) for label, values in found])
    variants: Variants = []
    for chosen in itertools.product(*series):
        labels, values = [], dict[str, Any]()
        for phase, label, method_values in chosen:
            values["method" if phase == main else phase] = method_values
            prefix = "" if phase == main else f"{phase}."
            labels += [f"{prefix}{part}" for part in label.split(",") if part]
        values.pop("paste", None)
        variants.append((",".join(labels), {**values, "phases": names}))
    check_count(len(variants) * common.num_images)
    return variants, notes


def _sets_by_phase(items: Sequence[str], names: Sequence[str], main: str) -> dict[str, list[str]]:
    """Each phase's --set items, without its name; plain ones are the main phase's."""
    from inlay.methods.choice import PHASES

    sets: dict[str, list[str]] = {name: [] for name in names}
    for item in items:
        key = item.partition("=")[0]
        name, dot, _ = key.strip().partition(".")
        if not dot or name not in PHASES:
            sets[main].append(item)
        elif name in names:
            sets[name].append(item.strip().removeprefix(name + "."))
        else:
            raise InputError(f"--set {show(key)} is for the phase {name}; add that phase.")
    return sets


def _write(
    requests: Sequence[tuple[str, Request]],
    how: _How,
    *,
    notes: Sequence[str] = (),
    said: Sequence[str] = (),
    record: Record | None = None,
) -> None:
    """Make every picture of the labelled requests, and put them where they belong.

    notes go into the records too, what is said does not; record is what the result must be like.
    """
    from inlay.cli.outputs import Outputs, Targets, tell
    from inlay.cli.progress import listening
    from inlay.composer import Composer
    from inlay.run import Options

    targets = Targets.of(how.output, requests, previews=how.previews)
    model = requests[0][1].model
    fields = {} if model is None else dict(model)
    composer = Composer(fields.pop("name", "embedded"), **fields)
    with (
        listening(quiet=how.quiet, bar=not how.json, preview_file=targets.preview) as listener,
        Outputs(targets) as outputs,
    ):
        for line in said:
            listener.note(line)
        for number, (label, request) in enumerate(requests, 1):
            counted = f"{number} of {len(requests)}: " if len(requests) > 1 else ""
            listener.label = counted + label
            callbacks = Options(
                listener.step, listener.phase, how.previews, how.max_pixels, how.trust_remote_code
            )
            result = composer.run(request, callbacks)
            if record is not None:
                record.check(result)
            for line in outputs.take(result, notes):
                listener.note(line)
        summary = outputs.finish()
    tell(summary, as_json=how.json, quiet=how.quiet)
