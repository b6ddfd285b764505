"""compose, harmonize, remove, scene, run, rerun: what is typed becomes requests.

A command makes no picture itself: it hands back an Order, which app.main has written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay.cli.options import Again, Common, Harmony, Out, Phases, Places, Removal, Scene, Subjects
from inlay.cli.outputs import Order
from inlay.errors import InputError, nearest, show

if TYPE_CHECKING:
    from inlay.methods.base import Method

Choices = list[tuple[str, dict[str, Any]]]

# What stands for "none for this subject" where several have one each, and of what.
_NONE = "-"
_SKIPS = ("--mask", "--cut", "--cut-box", "--cut-point")
# The settings that have an option of their own.
_DIRECT = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale")


def compose(
    background: Annotated[str, typer.Argument(help="Picture that the subject goes into.")],
    subject: Subjects,
    output: Out,
    given: Phases,
) -> Order:
    """Put subjects into a background."""
    for name in ("remove_method", "remove_mask"):
        if getattr(given, name) is not None and given.phases is None:
            raise InputError(f"{_option(name)} goes with --phases; say which.")
    request: dict[str, Any] = {"verb": "compose", "background": background}
    request |= {"subjects": _subjects(subject, given), "remove": given.remove_method}
    for name in ("shadow", "phases", "together", "control", "remove_mask", "keep_phases"):
        request[name] = getattr(given, name)
    return _order(request, output, given)


def harmonize(
    picture: Annotated[str, typer.Argument(help="Picture with the object already in it.")],
    output: Out,
    given: Harmony,
) -> Order:
    """Make an object that is already pasted belong."""
    request: dict[str, Any] = {"picture": picture, "mask": given.mask}
    request |= {"background": given.background}
    request["box"] = given.box and numbers(given.box)
    return _order({"verb": "harmonize", **request}, output, given)


def remove(
    picture: Annotated[str, typer.Argument(help="Picture to take an object out of.")],
    output: Out,
    given: Removal,
) -> Order:
    """Take an object out."""
    request: dict[str, Any] = {"verb": "remove", "picture": picture}
    request |= {} if given.mask is None else {"mask": given.mask}
    for name in ("box", "point"):
        if (text := getattr(given, name)) is not None:
            request[name] = numbers(text)
    return _order(request, output, given)


def scene(
    subject: Subjects,
    output: Out,
    size: Annotated[str, typer.Option(metavar="WxH", help="Of it in pixels, like 768x512.")],
    given: Scene,
) -> Order:
    """Build a scene around subjects from a prompt."""
    sides = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", size, re.ASCII)
    if sides is None:
        raise InputError(f"--size is {show(size)}; expected WxH in whole pixels, like 768x512.")
    request: dict[str, Any] = {"verb": "scene", "subjects": _subjects(subject, given)}
    request |= {"size": [int(side) for side in sides.groups()], "keep_phases": given.keep_phases}
    return _order(request, output, given)


def run(
    request: Annotated[
        str, typer.Argument(help="JSON file, see inlay schema, or a picture that inlay wrote.")
    ],
    output: Out,
    given: Again,
) -> Order:
    """Make what a request asks for: any request as data."""
    from inlay.request import Request
    from inlay.result.record import with_inputs

    if Path(request).suffix.lower() != ".json":
        return rerun(request, output, given)
    wanted = with_inputs(Request.read(request), _inputs(given))
    return Order([("", wanted)], output, given)


def rerun(
    picture: Annotated[str, typer.Argument(help="Picture that inlay has written.")],
    output: Out,
    given: Again,
) -> Order:
    """Make a picture again from the record inside it."""
    from inlay.result.record import read_back

    record = read_back(picture)
    wanted = record.resolve(Path(picture).parent, _inputs(given))
    return Order([("", wanted)], output, given, record=record)


def _inputs(given: Again) -> dict[str, str]:
    """The file or name for each role of --input; raises InputError."""
    inputs = [item.partition("=")[::2] for item in given.input or []]
    for role, name in inputs:
        if not role or not name:
            raise InputError("--input names a role or a file only; expected ROLE=FILE.")
    return dict(inputs)


def _order(base: dict[str, Any], output: str, given: Common) -> Order:
    """The requests of all variants, checked; raises InputError."""
    from inlay.request import Request
    from inlay.settings import check_count

    base |= {"seed": given.seed, "num_images": given.num_images, "model": _checkpoint(given)}
    notes: list[str] = []
    variants: list[tuple[str, dict[str, Any]]] = [("", {})]
    for word, choices in _methods(base, given, notes):
        variants = [
            (",".join(filter(None, (label, more))), {**values, word: choice})
            for label, values in variants
            for more, choice in choices
        ]
    check_count(len(variants) * given.num_images)
    requests = [(label, Request.of({**base, **values})) for label, values in variants]
    return Order(requests, output, given, given.previews, notes)


def _methods(
    base: Mapping[str, Any], given: Common, notes: list[str]
) -> Iterator[tuple[str, Choices]]:
    """For each method of a request its word there, and (label, method) of each of its variants.

    A --set whose key begins with a phase and a dot is that phase's. All others, --method, --preset
    and the options that are settings are the main phase's; prompts are the phase repose's too.
    """
    from inlay.methods import registry
    from inlay.scene.subject import as_subjects

    # Without phases there is one, without a name.
    phases = registry.as_phases(base.get("phases"), "phases") or [""]
    main = registry.main_phase(phases)
    concept = not main and any(each.concept for each in as_subjects(base.get("subjects", "-")))
    direct = {name: getattr(given, name) for name in _DIRECT if getattr(given, name) is not None}
    shared = {name: value for name, value in direct.items() if name in registry.SHARED}
    sets = _sets_by_phase(given.set or [], phases, main)
    for phase in sorted(phases, key=lambda name: name != main):
        verb, fixed = registry.RUN_AS.get(phase, (base["verb"], {}))
        name, preset = (given.method, given.preset) if phase == main else (None, None)
        if phase == "remove" and base["remove"] is not None:
            name = base["remove"]
        if name is None:
            name = fixed.get("name", registry.default_for(verb, concept))
            preset = fixed.get("preset") if preset is None else preset
        method = registry.get(name, verb)
        own = direct if phase == main else shared if phase == "repose" else {}
        if "repose" in phases:
            # What the main method has no use for is still said to the re-posing.
            known = method.settings.model_fields
            own = {key: own[key] for key in own if key in known or key not in shared}
        choices = _variants(method, preset, own, sets[phase], notes)
        if phase == main:
            yield "method", choices
        elif phase != "paste":
            yield phase, [(_prefixed(label, phase), choice) for label, choice in choices]


def _prefixed(label: str, phase: str) -> str:
    return ",".join(f"{phase}.{part}" for part in label.split(",") if part)


def _variants(
    method: Method, preset: str | None, own: Mapping[str, Any], sets: list[str], notes: list[str]
) -> Choices:
    """The (label, method with settings) of each variant; raises InputError.

    The options that all methods share may be given to one that has no such setting: a note says
    that they are passed over.
    """
    from inlay.settings import parse_sets

    for item in sets:
        key = item.partition("=")[0].strip()
        if key in own:
            raise InputError(f"{key} is given by {_option(key)} and by --set; give it once.")
    known = {key: value for key, value in own.items() if key in method.settings.model_fields}
    lacks = [key for key in own if key not in known]
    notes += [f"{method.name} has no {key}: {_option(key)} is passed over" for key in lacks]
    if preset is not None and preset not in method.presets:
        if not method.presets:
            raise InputError(f"method {method.name} has no presets; leave --preset out.")
        near = nearest(preset, method.presets)
        raise InputError(f"{method.name} has no preset {show(preset)}; {near}")
    base = {**(method.presets[preset] if preset is not None else {}), **known}
    chosen = {"name": method.name, "preset": preset, **known}
    variants = parse_sets(sets, method.settings, base)
    return [(label, {**chosen, **values}) for label, values in variants]


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _sets_by_phase(items: Sequence[str], names: Sequence[str], main: str) -> dict[str, list[str]]:
    """Each phase's --set items, without its name; plain ones are the main phase's."""
    from inlay.methods.registry import PHASES

    sets: dict[str, list[str]] = {name: [] for name in names}
    for item in items:
        name, _, setting = item.strip().partition(".")
        if name not in PHASES:
            sets[main].append(item)
        elif name in names:
            sets[name].append(setting)
        else:
            raise InputError(f"--set {show(item)} is for the phase {name}; add that phase.")
    return sets


def _checkpoint(given: Common) -> dict[str, Any]:
    """The request's model; raises InputError for a file that is not there."""
    loras = [_lora(text) for text in given.lora or []]
    inversions = list(given.textual_inversion or [])
    files = [("--lora", path) for path, _ in loras]
    files += [("--textual-inversion", path) for path in inversions]
    for option, path in files:
        if not os.path.isfile(path):
            raise InputError(f"{option} {show(path)} is not a file; give its path.")
    from inlay.checkpoints.folder import family_of

    own: dict[str, Any] = {"name": given.model, "device": given.device, "dtype": given.dtype}
    own["family"] = family_of(given.model)
    return {**own, "loras": loras, "textual_inversions": inversions}


def _lora(text: str) -> tuple[str, float]:
    """Read "FILE[:SCALE]"; a colon that no number follows belongs to the file's name."""
    path, _, end = text.rpartition(":")
    scale = _number(end)
    if not path or isinstance(scale, str):
        return text, 1.0
    if not abs(scale) <= 10:
        raise InputError(f"the scale of --lora {show(text)} is {end}; expected -10 to 10.")
    return path, scale


def _subjects(pictures: Sequence[str], given: Places) -> list[dict[str, Any]]:
    """The request's subjects, one for each picture; raises InputError."""
    where = [f"--{name}" for name in ("box", "at", "random") if getattr(given, name)]
    if len(where) > 1:
        raise InputError(f"{' and '.join(where)} exclude each other; give one of them.")
    if given.scale and where and where != ["--at"]:
        raise InputError(f"--scale does not go with {where[0]}; give it with --at.")
    count = len(pictures)
    points = given.cut_point
    if points and count == 1:
        points = [" ".join(points)]
    columns = {
        "box": _each(given.box, "--box", count, numbers),
        "at": _each(given.at, "--at", count, numbers),
        "scale": _each(given.scale, "--scale", count, _number, all_at_once=True),
        "rotate": _each(given.rotate or ["0"], "--rotate", count, _number, all_at_once=True),
        "mask": _each(given.mask, "--mask", count),
        "cut": _each(given.cut, "--cut", count, all_at_once=True),
        "cut_box": _each(given.cut_box, "--cut-box", count, numbers),
        "cut_points": _each(points, "--cut-point", count, _points),
    }
    subjects = []
    for picture, *values in zip(pictures, *columns.values(), strict=True):
        own = dict(zip(columns, values, strict=True))
        for cut, needed, form in (("mask", "mask", "FILE"), ("box", "cut_box", "X,Y,W,H")):
            if own["cut"] == cut and own[needed] is None:
                raise InputError(f"--cut {cut} needs {_option(needed)} {form}.")
        subjects.append({**own, "picture": picture, "random": given.random, "flip": given.flip})
    return subjects


def _each(
    texts: Sequence[str] | None,
    name: str,
    count: int,
    read: Callable[[str], Any] = str,
    all_at_once: bool = False,
) -> Sequence[Any]:
    """An option's value for each subject, None where it has none."""
    if texts is None:
        return [None] * count
    if all_at_once and len(texts) == 1:
        texts = [*texts] * count
    if len(texts) != count:
        times = "once" if len(texts) == 1 else f"{len(texts)} times"
        wanted = "once for each" if count > 1 else "once"
        raise InputError(
            f"{name} is given {times} for {count} subject{'s' if count > 1 else ''}; give it "
            f"{wanted}{', or once for all' if all_at_once and count > 1 else ''}."
        )
    skips = count > 1 and name in _SKIPS
    return [None if skips and text == _NONE else read(text) for text in texts]


def _number(text: str) -> float | str:
    """The number that a text is; what does not read as one is left for the request to refuse."""
    try:
        return float(text)
    except ValueError:
        return text


def _points(text: str) -> list[list[float | str]]:
    return [numbers(part) for part in text.split()]


def numbers(text: str) -> list[float | str]:
    return [_number(part) for part in text.split(",")]
