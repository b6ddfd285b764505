"""The options of compose and scene about subjects, their places, and phases.

Nothing here may import numpy, torch or pydantic before it is called: `inlay --help` reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from inlay.cli import options
from inlay.cli.options import TrustRemoteCode
from inlay.errors import InputError

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


@dataclass(frozen=True)
class Places:
    """What the subjects are in their pictures, and where they go."""

    box: Annotated[
        list[str] | None,
        typer.Option(
            "--box", metavar="X,Y,W,H", help="Where: the subject is fitted into this box."
        ),
    ] = None
    at: Annotated[
        list[str] | None, typer.Option("--at", metavar="X,Y", help="Where: the subject's centre.")
    ] = None
    scale: Annotated[
        list[str] | None,
        typer.Option(
            "--scale",
            metavar="S",
            help="With --at: factor on the subject's pixels; once is for all.",
        ),
    ] = None
    random: Annotated[
        bool,
        typer.Option(
            "--random", help="Where: a place and size drawn from the seed, clear of others."
        ),
    ] = False
    rotate: Annotated[
        list[str] | None,
        typer.Option(
            "--rotate",
            metavar="DEGREES",
            help="Turn the subject counter-clockwise; once is for all.",
        ),
    ] = None
    flip: Annotated[bool, typer.Option("--flip", help="Mirror the subjects left to right.")] = False
    mask: Annotated[
        list[str] | None,
        typer.Option("--mask", metavar="FILE", help="Mask: white is the object."),
    ] = None
    cut: Annotated[
        list[str] | None,
        typer.Option(
            "--cut",
            metavar="HOW",
            help="How the subject is cut out: alpha, mask, box, grabcut or a segmentation model; "
            "once is for all.",
            autocompletion=options._completes(*options.CUTS),
        ),
    ] = None
    cut_box: Annotated[
        list[str] | None,
        typer.Option(
            "--cut-box", metavar="X,Y,W,H", help="Where the subject is in its own picture."
        ),
    ] = None
    trust_remote_code: TrustRemoteCode = False

    def subjects(self, pictures: Sequence[str]) -> list[dict[str, Any]]:
        """The request's subjects, one for each picture; raises InputError."""
        where = [name for name, on in (("--box", self.box), ("--at", self.at)) if on is not None]
        where += ["--random"] if self.random else []
        if len(where) > 1:
            raise InputError(f"{' and '.join(where)} exclude each other; give one of them.")
        if self.scale is not None and (self.box is not None or self.random):
            raise InputError(f"--scale does not go with {where[0]}; give it with --at.")
        count = len(pictures)
        columns = {
            "box": _each(self.box, "--box", count, options.box),
            "at": _each(self.at, "--at", count, options.point),
            "scale": _each(self.scale, "--scale", count, options.factor, all_at_once=True),
            "rotate": _each(
                self.rotate or ["0"], "--rotate", count, options.number, all_at_once=True
            ),
            "mask": _each(self.mask, "--mask", count),
            "cut": _each(self.cut, "--cut", count, all_at_once=True),
            "cut_box": _each(self.cut_box, "--cut-box", count, options.box),
        }
        made = []
        for number, picture in enumerate(pictures):
            own = {name: values[number] for name, values in columns.items()}
            for how, other in (("mask", "mask"), ("box", "cut_box")):
                if own["cut"] == how and own[other] is None:
                    needed = "--mask FILE" if how == "mask" else "--cut-box X,Y,W,H"
                    raise InputError(f"--cut {how} needs {needed}.")
            made.append({**own, "picture": picture, "random": self.random, "flip": self.flip})
        return made


KeepPhases = Annotated[
    bool,
    typer.Option(
        "--keep-phases",
        help="Write each phase's picture too, as OUT-1-remove; without --phases each stage's of "
        "the method phd.",
    ),
]


@dataclass(frozen=True)
class Phases:
    """A composition in phases."""

    phases: Annotated[
        str | None,
        typer.Option(
            "--phases",
            metavar="NAMES",
            help="Some of remove,paste,harmonize,repose: take out what is in the box, paste, run "
            "the method, re-draw by freecompose's preset semantic. --set PHASE.KEY=VALUE sets "
            "another's.",
        ),
    ] = None
    remove_method: Annotated[
        str | None,
        typer.Option("--remove-method", metavar="NAME", help="Method of the phase remove."),
    ] = None
    remove_mask: Annotated[
        str | None,
        typer.Option(
            "--remove-mask", metavar="FILE", help="What the phase remove takes out, in white."
        ),
    ] = None
    keep_phases: KeepPhases = False

    def __post_init__(self) -> None:
        for option, value in (
            ("--remove-method", self.remove_method),
            ("--remove-mask", self.remove_mask),
        ):
            if value is not None and self.phases is None:
                raise InputError(f"{option} goes with --phases; say which.")


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
