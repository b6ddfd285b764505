"""The options of compose about its subjects: what they are and where they go.

Nothing here may import numpy, torch or pydantic before it is called: `inlay --help` reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

from inlay.cli import options
from inlay.cli.options import Common
from inlay.errors import InputError

__all__ = ["by_subject", "places", "roles"]

# What stands for "none for this subject" where several have one each, and of what.
_NONE = "-"
_SKIPS = ("--mask", "--cut", "--cut-box")

Subjects = Annotated[
    list[str],
    typer.Argument(
        metavar="SUBJECT",
        help="Pictures of the subjects, or files that inlay learn wrote; each goes over those "
        "before it. With several, options about a subject are given once for each, a mask or a "
        "cut as - for none.",
    ),
]
Boxes = Annotated[
    list[str] | None,
    typer.Option("--box", metavar="X,Y,W,H", help="Where: the subject is fitted into this box."),
]
Points = Annotated[
    list[str] | None, typer.Option("--at", metavar="X,Y", help="Where: the subject's centre.")
]
Scales = Annotated[
    list[str] | None,
    typer.Option(
        "--scale", metavar="S", help="With --at: factor on the subject's pixels; once is for all."
    ),
]
Random = Annotated[
    bool,
    typer.Option("--random", help="Where: a place and size drawn from the seed, clear of others."),
]
Turns = Annotated[
    list[str] | None,
    typer.Option(
        "--rotate", metavar="DEGREES", help="Turn the subject counter-clockwise; once is for all."
    ),
]
Flip = Annotated[bool, typer.Option("--flip", help="Mirror the subjects left to right.")]
Masks = Annotated[
    list[str] | None, typer.Option("--mask", metavar="FILE", help="Mask: white is the object.")
]
Cuts = Annotated[
    list[str] | None,
    typer.Option(
        "--cut",
        metavar="HOW",
        help="How the subject is cut out: alpha, mask, box, grabcut or a segmentation model; "
        "once is for all.",
        autocompletion=options._completes(*options.CUTS),
    ),
]
CutBoxes = Annotated[
    list[str] | None,
    typer.Option("--cut-box", metavar="X,Y,W,H", help="Where the subject is in its own picture."),
]
Together = Annotated[
    bool,
    typer.Option(
        "--together",
        help="Paste all subjects first and run the method once on all, not on one after the other.",
    ),
]

Control = Annotated[
    str | None,
    typer.Option(
        "--control",
        metavar="FILE",
        help="Drawing of the background's size, white lines on black, to re-draw the subject by: "
        "--method freecompose --preset semantic.",
    ),
]


def by_subject(common: Common, subjects: Sequence[str]) -> Common:
    """The common options, with the method that concepts need where none is named."""
    from inlay import methods
    from inlay.subjects import is_concept

    if common.method is not None or not any(map(is_concept, subjects)):
        return common
    return replace(common, method=methods.default_for("compose", concept=True))


def places(
    count: int,
    *,
    box: list[str] | None,
    at: list[str] | None,
    scale: list[str] | None,
    random: bool,
    rotate: list[str] | None,
    flip: bool,
    mask: list[str] | None,
    cut: list[str] | None,
    cut_box: list[str] | None,
) -> dict[str, Any]:
    """The keywords of Composer.compose for so many subjects; raises InputError."""
    where = [name for name, value in (("--box", box), ("--at", at)) if value is not None]
    where += ["--random"] if random else []
    if len(where) > 1:
        raise InputError(f"{' and '.join(where)} exclude each other; give one of them.")
    if scale is not None and (box is not None or random):
        raise InputError(f"--scale does not go with {where[0]}; give it with --at.")
    cuts, masks = _each(cut, "--cut", count, all_at_once=True), _each(mask, "--mask", count)
    cut_boxes = _each(cut_box, "--cut-box", count, options.box)
    for own_cut, own_mask, own_box in zip(cuts, masks, cut_boxes, strict=True):
        if own_cut == "mask" and own_mask is None:
            raise InputError("--cut mask needs --mask FILE.")
        if own_cut == "box" and own_box is None:
            raise InputError("--cut box needs --cut-box X,Y,W,H.")
    given = {
        "box": _each(box, "--box", count, options.box),
        "at": _each(at, "--at", count, options.point),
        "scale": _each(scale, "--scale", count, _factor, all_at_once=True),
        "rotate": _each(rotate or ["0"], "--rotate", count, options.number, all_at_once=True),
        "mask": masks,
        "cut": cuts,
        "cut_box": cut_boxes,
    }
    if count == 1:
        given = {name: values[0] for name, values in given.items()}
    return {**given, "random": random, "flip": flip}


def _each(
    texts: list[str] | None,
    name: str,
    count: int,
    read: Callable[[str, str], Any] = lambda text, name: text,
    all_at_once: bool = False,
) -> list[Any]:
    """An option's value for each subject, None where it has none."""
    if texts is None:
        return [None] * count
    if all_at_once and len(texts) == 1:
        texts = texts * count
    if len(texts) != count:
        times = "once" if len(texts) == 1 else f"{len(texts)} times"
        wanted = "once for each" if count > 1 else "once"
        raise InputError(
            f"{name} is given {times} for {count} subject{'s' if count > 1 else ''}; give it "
            f"{wanted}{', or once for all' if all_at_once and count > 1 else ''}."
        )
    skips = count > 1 and name in _SKIPS
    return [None if skips and text == _NONE else read(text, name) for text in texts]


def _factor(text: str, name: str) -> float:
    factor = options.number(text, name)
    if factor <= 0:
        raise InputError(f"{name} is {text}; expected a number above 0.")
    return factor


def roles(
    background: str | None, subjects: Sequence[str], masks: Any, remove_mask: str | None
) -> dict[str, str | None]:
    """The files that are read, by what messages call them."""
    files: dict[str, str | None] = {"background": background, "remove mask": remove_mask}
    if len(subjects) == 1:
        return {**files, "subject": subjects[0], "mask": masks}
    for number, (subject, mask) in enumerate(zip(subjects, masks, strict=True), 1):
        files |= {f"subject {number}": subject, f"mask {number}": mask}
    return files
