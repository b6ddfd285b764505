"""The options that several commands share, each written once, in groups.

Nothing here may import numpy, torch or pydantic: `inlay --help` reads this file.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from inlay.errors import InputError, nearest, show
from inlay.pictures.box import Box

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
CUTS = ("alpha", "mask", "box", "grabcut")
DEFAULT_MAX_PIXELS = 100_000_000
# What stands for "none for this subject" where several have one each, and of what.
_NONE = "-"
_SKIPS = ("--mask", "--cut", "--cut-box")

Words = Sequence[str] | Callable[[], Iterable[str]]


def flag(
    help: str,
    metavar: str | None = None,
    default: Any = None,
    *,
    name: str | None = None,
    words: Words = (),
) -> Any:
    """A field of a group that is an option: --the-fields-name, unless `name` says otherwise.

    words are what the shell completes it to. A default of MISSING makes it necessary.
    """
    made = {"help": help, "metavar": metavar, "name": name, "words": words}
    return field(default=default, metadata=made)


def grouped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command's parameters that are groups (dataclasses of flags) be options."""
    signature = inspect.signature(function, eval_str=True)
    groups: dict[str, Any] = {}
    parameters = []
    for name, parameter in signature.parameters.items():
        kind = parameter.annotation
        if isinstance(kind, type) and is_dataclass(kind):
            groups[name] = kind
            hints = get_type_hints(kind)
            parameters += [_parameter(own, hints[own.name]) for own in fields(kind)]
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(function)
    def command(**values: Any) -> Any:
        made = {
            name: group(**{own.name: values.pop(own.name) for own in fields(group)})
            for name, group in groups.items()
        }
        return function(**values, **made)

    command.__annotations__ = {item.name: item.annotation for item in parameters}
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


def _parameter(own: Field[Any], kind: Any) -> inspect.Parameter:
    made = own.metadata
    names = (made["name"] or "--" + own.name.replace("_", "-")).split()
    words = made["words"]

    def complete(incomplete: str) -> list[str]:
        known = words() if callable(words) else words
        return [word for word in known if word.startswith(incomplete)]

    option = typer.Option(
        *names,
        metavar=made["metavar"],
        help=made["help"],
        autocompletion=complete if words else None,
    )
    return inspect.Parameter(
        own.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if own.default is MISSING else own.default,
        annotation=Annotated[kind, option],
    )


def method_names() -> Iterable[str]:
    from inlay.methods.registry import all_methods

    return all_methods()


def model_names() -> Iterable[str]:
    from inlay.checkpoints.hub import KNOWN

    return [known.name for known in KNOWN]


Out = Annotated[
    str,
    typer.Option(
        "--output", "-o", metavar="OUT", help="Picture to write: png, jpg, webp, avif, tif or bmp."
    ),
]
OutFolder = Annotated[
    str, typer.Option("--output", "-o", metavar="DIR", help="Folder to write to.")
]
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
class Saying:
    """What a command says of its work."""

    json: bool = flag("Print JSON on standard output.", default=False)
    quiet: bool = flag("Say nothing but errors.", default=False, name="--quiet -q")


@dataclass(frozen=True)
class Reading(Saying):
    """What is read, and how far it is trusted."""

    max_pixels: int = flag(
        "Refuse larger pictures before decoding them.", "N", default=DEFAULT_MAX_PIXELS
    )
    trust_remote_code: bool = flag(
        "Let a segmentation model run code of its own; only if you trust its author.",
        default=False,
    )

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise InputError(
                f"--max-pixels is {self.max_pixels}; expected a whole number of at least 1."
            )


@dataclass(frozen=True)
class Checkpoint:
    """Which checkpoint is run, and where."""

    model: str = flag(
        "embedded, a diffusers folder, a .safetensors file or a hub id.", "MODEL",
        default="embedded", words=model_names,
    )  # fmt: skip
    device: str = flag(", ".join(DEVICES), "D", default="auto", words=DEVICES)
    dtype: str = flag(", ".join(DTYPES), "D", default="auto", words=DTYPES)

    def __post_init__(self) -> None:
        one_of(self.device, DEVICES, "--device")
        one_of(self.dtype, DTYPES, "--dtype")


@dataclass(frozen=True)
class Common(Checkpoint, Reading):
    """What every command that makes a picture takes."""

    method: str | None = flag("See inlay methods.", "NAME", words=method_names)
    preset: str | None = flag("Settings for one task, see inlay methods NAME.", "NAME")
    prompt: str | None = flag("What the picture should show.", "TEXT")
    negative_prompt: str | None = flag("What it should not show.", "TEXT")
    seed: int = flag("Of all randomness.", "N", default=0)
    num_images: int = flag("Pictures to make, each with the next seed.", "K", default=1)
    num_inference_steps: int | None = flag("Denoising steps.", "N")
    guidance_scale: float | None = flag("Weight of the prompt; 1 is off.", "G")
    set: list[str] | None = flag(
        "Any setting, see inlay methods NAME; KEY=a,b,c makes one picture for each value.",
        "KEY=VALUE",
    )
    lora: list[str] | None = flag("LoRA weights; may be repeated.", "FILE[:SCALE]")
    textual_inversion: list[str] | None = flag("Learnt word; may be repeated.", "FILE")
    previews: bool = flag("Keep a preview beside OUT while it is made.", default=False)

    def __post_init__(self) -> None:
        Checkpoint.__post_init__(self)
        Reading.__post_init__(self)

    def checkpoint(self) -> dict[str, Any]:
        """The request's model; raises InputError for a file that is not there."""
        loras = [lora(text) for text in self.lora or []]
        inversions = list(self.textual_inversion or [])
        for option, path in [("--lora", path) for path, _ in loras] + [
            ("--textual-inversion", path) for path in inversions
        ]:
            if "\0" in path or not os.path.isfile(path):
                raise InputError(f"{option} {show(path)} is not a file; give its path.")
        return {
            "name": self.model,
            "device": self.device,
            "dtype": self.dtype,
            "loras": loras,
            "textual_inversions": inversions,
        }

    def direct_settings(self) -> dict[str, Any]:
        """The settings that have an option of their own and were given."""
        names = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class Places:
    """What the subjects are in their pictures, and where they go."""

    box: list[str] | None = flag("Where: the subject is fitted into this box.", "X,Y,W,H")
    at: list[str] | None = flag("Where: the subject's centre.", "X,Y")
    scale: list[str] | None = flag(
        "With --at: factor on the subject's pixels; once is for all.", "S"
    )
    random: bool = flag(
        "Where: a place and size drawn from the seed, clear of others.", default=False
    )
    rotate: list[str] | None = flag(
        "Turn the subject counter-clockwise; once is for all.", "DEGREES"
    )
    flip: bool = flag("Mirror the subjects left to right.", default=False)
    mask: list[str] | None = flag("Mask: white is the object.", "FILE")
    cut: list[str] | None = flag(
        "How the subject is cut out: alpha, mask, box, grabcut or a segmentation model; once is "
        "for all.", "HOW", words=CUTS,
    )  # fmt: skip
    cut_box: list[str] | None = flag("Where the subject is in its own picture.", "X,Y,W,H")

    def subjects(self, pictures: Sequence[str]) -> list[dict[str, Any]]:
        """The request's subjects, one for each picture; raises InputError."""
        where = [name for name, on in (("--box", self.box), ("--at", self.at)) if on is not None]
        where += ["--random"] if self.random else []
        if len(where) > 1:
            raise InputError(f"{' and '.join(where)} exclude each other; give one of them.")
        if self.scale is not None and (self.box is not None or self.random):
            raise InputError(f"--scale does not go with {where[0]}; give it with --at.")
        count = len(pictures)
        turns = self.rotate or ["0"]
        columns = {
            "box": _each(self.box, "--box", count, Box.parse),
            "at": _each(self.at, "--at", count, point),
            "scale": _each(self.scale, "--scale", count, number, all_at_once=True),
            "rotate": _each(turns, "--rotate", count, number, all_at_once=True),
            "mask": _each(self.mask, "--mask", count),
            "cut": _each(self.cut, "--cut", count, all_at_once=True),
            "cut_box": _each(self.cut_box, "--cut-box", count, Box.parse),
        }
        made = []
        for index, picture in enumerate(pictures):
            own = {name: values[index] for name, values in columns.items()}
            check_cut(own["cut"], own["mask"], own["cut_box"], "--cut-box")
            made.append({**own, "picture": picture, "random": self.random, "flip": self.flip})
        return made


def check_cut(cut: str | None, mask: Any, cut_box: Any, option: str) -> None:
    """Raises InputError where a way to cut lacks what it goes by."""
    if cut == "mask" and mask is None:
        raise InputError("--cut mask needs --mask FILE.")
    if cut == "box" and cut_box is None:
        raise InputError(f"--cut box needs {option} X,Y,W,H.")


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


def one_of(value: str, known: Iterable[str], name: str) -> str:
    """The value, if it is a known one; InputError with the nearest one else."""
    if value in known:
        return value
    raise InputError(f"{name} is {show(value)}; {nearest(value, known)}")


def number(text: str, name: str) -> float:
    """A finite number from an option's text."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{name} is {show(text)}; expected a finite number.")
    return value


def point(text: str, name: str) -> tuple[float, float]:
    """Read "X,Y"."""
    parts = text.split(",")
    if len(parts) != 2:
        raise InputError(f"{name} is {show(text)}; expected two numbers X,Y.")
    return number(parts[0], name), number(parts[1], name)


def size(text: str, name: str) -> tuple[int, int]:
    """Read "WxH"."""
    found = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", text, re.ASCII)
    if found is None:
        raise InputError(f"{name} is {show(text)}; expected WxH in whole pixels, like 768x512.")
    return int(found[1]), int(found[2])


def lora(text: str) -> tuple[str, float]:
    """Read "FILE[:SCALE]"; a colon that no number follows belongs to the file's name."""
    path, colon, scale = text.rpartition(":")
    try:
        weight = float(scale)
    except ValueError:
        return text, 1.0
    if not colon or not path:
        return text, 1.0
    if not math.isfinite(weight) or abs(weight) > 10:
        raise InputError(f"the scale of --lora {show(text)} is {scale}; expected -10 to 10.")
    return path, weight
