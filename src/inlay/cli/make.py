"""compose, harmonize, remove, scene, run, rerun: what is typed becomes requests.

A command makes no picture itself: it hands back an Order, which app.main has written.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from inlay.cli import options
from inlay.cli.options import Common, Out, Places, Reading, Subjects, flag, grouped
from inlay.cli.outputs import Order
from inlay.errors import InputError, nearest, show


@dataclass(frozen=True)
class Phases(Common, Places):
    """The options of compose."""

    together: bool = flag(
        "Paste all subjects first and run the method once on all, not on one after the other.",
        default=False,
    )
    phases: str | None = flag(
        "Some of remove,paste,harmonize,repose: take out what is in the box, paste, run the "
        "method, re-draw by freecompose's preset semantic. --set PHASE.KEY=VALUE sets another's.",
        "NAMES",
    )
    remove_method: str | None = flag("Method of the phase remove.", "NAME")
    remove_mask: str | None = flag("What the phase remove takes out, in white.", "FILE")
    keep_phases: bool = flag(
        "Write each phase's picture too, as OUT-1-remove; without --phases each stage's of the "
        "method phd.",
        default=False,
    )
    control: str | None = flag(
        "Drawing of the background's size, white lines on black, to re-draw the subject by: "
        "--method freecompose --preset semantic.",
        "FILE",
    )


@dataclass(frozen=True)
class Scene(Common, Places):
    """The options of scene."""

    keep_phases: bool = flag("Write each stage's picture too, as OUT-1-coarse.", default=False)


@grouped
def compose(
    background: Annotated[
        str, typer.Argument(metavar="BACKGROUND", help="Picture that the subject goes into.")
    ],
    subject: Subjects,
    output: Out,
    given: Phases,
) -> Order:
    """Put subjects into a background."""
    for option, value in (
        ("--remove-method", given.remove_method),
        ("--remove-mask", given.remove_mask),
    ):
        if value is not None and given.phases is None:
            raise InputError(f"{option} goes with --phases; say which.")
    request = {
        "verb": "compose",
        "background": background,
        "subjects": given.subjects(subject),
        "together": given.together,
        "control": given.control,
        "remove_mask": given.remove_mask,
        "keep_phases": given.keep_phases,
    }
    return _order(request, output, given, None if given.phases is None else _in_phases(given))


@grouped
def harmonize(
    picture: Annotated[
        str, typer.Argument(metavar="PICTURE", help="Picture with the object already in it.")
    ],
    output: Out,
    given: Common,
    mask: Annotated[
        str | None, typer.Option("--mask", metavar="FILE", help="Mask: white is the object.")
    ] = None,
    background: Annotated[
        str | None,
        typer.Option("--background", metavar="CLEAN", help="The picture before pasting."),
    ] = None,
) -> Order:
    """Make an object that is already pasted belong."""
    request = {"picture": picture, "mask": mask, "background": background}
    return _order({"verb": "harmonize", **request}, output, given)


@grouped
def remove(
    picture: Annotated[
        str, typer.Argument(metavar="PICTURE", help="Picture to take an object out of.")
    ],
    output: Out,
    mask: Annotated[str, typer.Option("--mask", metavar="FILE", help="Mask: white is what goes.")],
    given: Common,
) -> Order:
    """Take an object out."""
    return _order({"verb": "remove", "picture": picture, "mask": mask}, output, given)


@grouped
def scene(
    subject: Subjects,
    output: Out,
    size: Annotated[
        str, typer.Option("--size", metavar="WxH", help="Of the scene in pixels, like 768x512.")
    ],
    given: Scene,
) -> Order:
    """Build a scene around subjects from a prompt."""
    request = {
        "verb": "scene",
        "subjects": given.subjects(subject),
        "size": options.size(size, "--size"),
        "keep_phases": given.keep_phases,
    }
    return _order(request, output, given)


@grouped
def run(
    request: Annotated[
        str,
        typer.Argument(
            metavar="REQUEST", help="JSON file, see inlay schema, or a picture that inlay wrote."
        ),
    ],
    output: Out,
    given: Reading,
) -> Order:
    """Make what a request asks for: any request as data."""
    from inlay.request import Request

    if Path(request).suffix.lower() != ".json":
        return _again(request, output, given)
    return Order([("", Request.read(request))], output, given)


@grouped
def rerun(
    picture: Annotated[
        str, typer.Argument(metavar="PICTURE", help="Picture that inlay has written.")
    ],
    output: Out,
    given: Reading,
) -> Order:
    """Make a picture again from the record inside it."""
    return _again(picture, output, given)


def _again(picture: str, output: str, given: Reading) -> Order:
    from inlay.errors import __version__
    from inlay.result import read_back

    record = read_back(picture)
    said = []
    if record.inlay != __version__:
        said.append(
            f"the picture was made by inlay {record.inlay}, this is {__version__}: the result may "
            "differ"
        )
    request = record.resolve(Path(picture).parent)
    return Order([("", request)], output, given, said=said, record=record)


Variants = list[tuple[str, dict[str, Any]]]


def _order(
    base: dict[str, Any],
    output: str,
    given: Common,
    variants: tuple[Variants, list[str]] | None = None,
) -> Order:
    """The requests of all variants, checked."""
    from inlay.request import Request
    from inlay.scene.subject import as_subjects

    base |= {"seed": given.seed, "num_images": given.num_images, "model": given.checkpoint()}
    if variants is None:
        concept = any(each.concept for each in as_subjects(base.get("subjects", ["-"])))
        variants = _variants(base["verb"], given.method, given, concept)
    requests = [(label, Request.of({**base, **own})) for label, own in variants[0]]
    return Order(requests, output, given, given.previews, notes=variants[1])


def _variants(
    verb: str, name: str | None, common: Common, concept: bool = False
) -> tuple[Variants, list[str]]:
    """The (label, {"method": ...}) of each request, and notes; raises InputError.

    The options that all methods share may be given to one that has no such setting: a note says
    that they are passed over.
    """
    from inlay.methods import registry as methods
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


def _in_phases(given: Phases) -> tuple[Variants, list[str]]:
    """The same for a composition in phases; lists multiply over all of them.

    A --set whose key begins with a phase and a dot is that phase's, all others the main one's.
    """
    from inlay.methods import registry as methods
    from inlay.methods.registry import RUN_AS, as_phases, main_phase
    from inlay.settings import check_count

    names = as_phases(given.phases, "phases")
    main = main_phase(names)
    if main != "harmonize":
        for word, value in (("method", given.method), ("preset", given.preset)):
            if value is not None:
                raise InputError(f"{word} goes with the phase harmonize; add that phase.")
    if given.remove_method is not None and "remove" not in names:
        raise InputError("remove_method goes with the phase remove; add that phase.")
    sets = _sets_by_phase(given.set or [], names, main)
    notes: list[str] = []
    series: list[list[tuple[str, str, dict[str, Any]]]] = []
    for phase in sorted(names, key=lambda name: name != main):
        verb, fixed = RUN_AS[phase]
        name = {"remove": given.remove_method, "harmonize": given.method}.get(phase)
        if name is None:
            name = fixed.get("name")
        own = replace(given, set=sets[phase], preset=fixed.get("preset"))
        if phase == "harmonize":
            own = replace(own, preset=given.preset)
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
    check_count(len(variants) * given.num_images)
    return variants, notes


def _sets_by_phase(items: Sequence[str], names: Sequence[str], main: str) -> dict[str, list[str]]:
    """Each phase's --set items, without its name; plain ones are the main phase's."""
    from inlay.methods.registry import PHASES

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
