"""compose, harmonize, remove, scene, run, rerun: what is typed becomes requests.

A command makes no picture itself: it hands back an Order, which app.main has written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay.cli import options
from inlay.cli.outputs import Order
from inlay.errors import InputError, show

if TYPE_CHECKING:
    from inlay.methods.registry import MethodChoice

# The settings that have an option of their own.
_DIRECT = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale")


def compose(
    background: Annotated[str, typer.Argument(help="Picture that the subject goes into.")],
    subject: options.Subjects,
    output: options.Out,
    given: options.Phases,
) -> Order:
    """Put subjects into a background."""
    for name in ("remove_method", "remove_mask"):
        if getattr(given, name) is not None and given.phases is None:
            raise InputError(f"{_option(name)} goes with --phases; say which.")
    request = {"background": background, "subjects": _subjects(subject, given)}
    return _order({"verb": "compose", "remove": given.remove_method, **request}, output, given)


def harmonize(
    picture: Annotated[str, typer.Argument(help="Picture with the object already in it.")],
    output: options.Out,
    given: options.Harmony,
) -> Order:
    """Make an object that is already pasted belong."""
    return _order({"verb": "harmonize", "picture": picture}, output, given)


def remove(
    picture: Annotated[str, typer.Argument(help="Picture to take an object out of.")],
    output: options.Out,
    given: options.Removal,
) -> Order:
    """Take an object out."""
    return _order({"verb": "remove", "picture": picture}, output, given)


def scene(
    subject: options.Subjects,
    output: options.Out,
    size: Annotated[str, typer.Option(metavar="WxH", help="Of it in pixels, like 768x512.")],
    given: options.Scene,
) -> Order:
    """Build a scene around subjects from a prompt."""
    sides = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", size, re.ASCII)
    if sides is None:
        raise InputError(f"--size is {show(size)}; expected WxH in whole pixels, like 768x512.")
    request = {
        "subjects": _subjects(subject, given),
        "size": [int(side) for side in sides.groups()],
    }
    return _order({"verb": "scene", **request}, output, given)


def run(
    request: Annotated[
        str, typer.Argument(help="JSON file, see inlay schema, or a picture that inlay wrote.")
    ],
    output: options.Out,
    given: options.Again,
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
    output: options.Out,
    given: options.Again,
) -> Order:
    """Make a picture again from the record inside it."""
    from inlay.result.record import read_back

    record = read_back(picture)
    wanted = record.resolve(Path(picture).parent, _inputs(given))
    return Order([("", wanted)], output, given, record=record)


def _inputs(given: options.Again) -> dict[str, str]:
    """The file or name for each role of --input; raises InputError."""
    inputs = [item.partition("=")[::2] for item in given.input or []]
    for role, name in inputs:
        if not role or not name:
            raise InputError("--input names a role or a file only; expected ROLE=FILE.")
    return dict(inputs)


def _order(base: dict[str, Any], output: str, given: options.Common) -> Order:
    """The requests of all variants, checked; raises InputError.

    What `given` says of a request's own fields is added to `base`. A --set whose key begins with a
    phase and a dot is that phase's. All others, --method, --preset and the options that are
    settings are the main phase's; prompts are the phase repose's too. An option may be given to a
    method that has no such setting: a note says that it is passed over.
    """
    from inlay.methods.registry import SHARED
    from inlay.request import KINDS, Request
    from inlay.settings import check_count

    for name in KINDS[base["verb"]].model_fields.keys() - base.keys():
        if (value := getattr(given, name, None)) is not None:
            base[name] = numbers(value) if name in ("box", "point") else value
    base["model"] = _checkpoint(given)
    choices = Request.choices({**base, "method": {"name": given.method, "preset": given.preset}})
    sets = _sets_by_word(given.set or [], base.get("phases"), choices)
    direct = {name: getattr(given, name) for name in _DIRECT if getattr(given, name) is not None}
    shared = {name: value for name, value in direct.items() if name in SHARED}
    notes: list[str] = []
    variants: list[tuple[str, dict[str, Any]]] = [("", {})]
    for word, choice in choices.items():
        own = direct if word == "method" else shared if word == "repose" else {}
        variants = [
            (",".join(filter(None, (label, more))), {**others, word: values})
            for label, others in variants
            for more, values in _variants(word, choice, own, sets[word])
        ]
        # What the main method has no use for is still said to the re-posing.
        heard = {*choice.method.settings.model_fields, *(shared if "repose" in choices else ())}
        lacks = [key for key in own if key not in heard]
        notes += [f"{choice.name} has no {key}: {_option(key)} is passed over" for key in lacks]
    check_count(len(variants) * given.num_images)
    requests = [(label, Request.of({**base, **values})) for label, values in variants]
    return Order(requests, output, given, given.previews, notes)


def _variants(
    word: str, choice: MethodChoice, own: Mapping[str, Any], sets: Sequence[str]
) -> list[tuple[str, dict[str, Any]]]:
    """The (label, method with settings) of each variant of one method; raises InputError."""
    from inlay.settings import parse_sets

    for key in (item.partition("=")[0].strip() for item in sets):
        if key in own:
            raise InputError(f"{key} is given by {_option(key)} and by --set; give it once.")
    settings = choice.method.settings
    told = {key: value for key, value in own.items() if key in settings.model_fields}
    base = {**choice.settings.model_dump(), **told}
    swept = parse_sets(sets, settings, base, "" if word == "method" else f"{word}.")
    told |= {"name": choice.name, "preset": choice.preset}
    return [(label, {**told, **values}) for label, values in swept]


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _sets_by_word(
    items: Sequence[str], phases: str | None, words: Iterable[str]
) -> dict[str, list[str]]:
    """The --set items for each method of a request; those without a phase are the main one's."""
    from inlay.methods.registry import PHASES, as_phases, main_phase

    names = as_phases(phases, "phases")
    sets: dict[str, list[str]] = {word: [] for word in words}
    for item in items:
        phase, _, setting = item.strip().partition(".")
        if phase not in PHASES:
            sets["method"].append(item)
        elif phase in names and phase == main_phase(names):
            sets["method"].append(setting)
        elif phase in sets:
            sets[phase].append(setting)
        else:
            end = "which has no settings" if phase in names else "add that phase"
            raise InputError(f"--set {show(item)} is for the phase {phase}; {end}.")
    return sets


def _checkpoint(given: options.Common) -> dict[str, Any]:
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
    own |= {"family": family_of(given.model), "memory": given.memory}
    return {**own, "loras": loras, "textual_inversions": inversions}


def _lora(text: str) -> tuple[str, float]:
    """Read "FILE[:SCALE]"; a colon that no number follows belongs to the file's name."""
    path, _, end = text.rpartition(":")
    scale = number(end)
    if not path or isinstance(scale, str):
        return text, 1.0
    if not abs(scale) <= 10:
        raise InputError(f"the scale of --lora {show(text)} is {end}; expected -10 to 10.")
    return path, scale


def _subjects(pictures: Sequence[str], given: options.Places) -> list[dict[str, Any]]:
    """The request's subjects, one for each picture; raises InputError."""
    where = [f"--{name}" for name in ("box", "at", "random") if getattr(given, name)]
    if len(where) > 1:
        raise InputError(f"{' and '.join(where)} exclude each other; give one of them.")
    if given.scale and where and where != ["--at"]:
        raise InputError(f"--scale does not go with {where[0]}; give it with --at.")
    told, count = {**vars(given), "cut_points": given.cut_point}, len(pictures)
    if given.cut_point and count == 1:
        told["cut_points"] = [" ".join(given.cut_point)]
    columns = {name: _each(name, told[name], count) for name in _READERS}
    subjects = []
    for picture, *values in zip(pictures, *columns.values(), strict=True):
        own = {
            name: value for name, value in zip(columns, values, strict=True) if value is not None
        }
        for cut, needed, form in (("mask", "mask", "FILE"), ("box", "cut_box", "X,Y,W,H")):
            if own.get("cut") == cut and needed not in own:
                raise InputError(f"--cut {cut} needs {_option(needed)} {form}.")
        subjects.append({**own, "picture": picture, "random": given.random, "flip": given.flip})
    return subjects


def _each(name: str, texts: Sequence[str] | None, count: int) -> Sequence[Any]:
    """An option's value for each subject, None where it has none."""
    if texts is None:
        return [None] * count
    for_all = name in _FOR_ALL
    if for_all and len(texts) == 1:
        texts = [*texts] * count
    if len(texts) != count:
        times = "once" if len(texts) == 1 else f"{len(texts)} times"
        wanted = "once for each" if count > 1 else "once"
        raise InputError(
            f"{_option(name).removesuffix('s')} is given {times} for {count} "
            f"subject{'s' if count > 1 else ''}; give it {wanted}"
            f"{', or once for all' if for_all and count > 1 else ''}."
        )
    skips = count > 1 and name in _SKIPS
    return [None if skips and text == _NONE else _READERS[name](text) for text in texts]


def number(text: str) -> float | str:
    """The number that a text is; what does not read as one is left for a check to refuse."""
    try:
        return float(text)
    except ValueError:
        return text


def numbers(text: str) -> list[float | str]:
    return [number(part) for part in text.split(",")]


def _points(text: str) -> list[list[float | str]]:
    return [numbers(part) for part in text.split()]


# How the options about subjects are read, which of them hold for all when given once, and of which
# several subjects may have "-" for none.
_READERS: dict[str, Callable[[str], Any]] = {
    "box": numbers,
    "at": numbers,
    "scale": number,
    "rotate": number,
    "mask": str,
    "cut": str,
    "cut_box": numbers,
    "cut_points": _points,
    "view": lambda text: int(text) if text.isdecimal() and len(text) < 5 else text,
}
_FOR_ALL, _NONE = ("scale", "rotate", "cut"), "-"
_SKIPS = ("mask", "cut", "cut_box", "cut_points", "view")
