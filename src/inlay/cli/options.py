"""The options that several commands share, each written once.

Nothing here may import numpy, torch or pydantic: `inlay --help` reads this file.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from inlay.errors import InputError, nearest, show
from inlay.pictures.box import Box

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
CUTS = ("alpha", "mask", "box", "grabcut")
DEFAULT_MAX_PIXELS = 100_000_000


def _completes(*words: str) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def _at_least_one(value: int) -> int:
    if value < 1:
        raise InputError(f"--max-pixels is {value}; expected a whole number of at least 1.")
    return value


def _method_names(incomplete: str) -> list[str]:
    from inlay.methods import all_methods

    return [name for name in all_methods() if name.startswith(incomplete)]


def _model_names(incomplete: str) -> list[str]:
    from inlay.checkpoints.hub import KNOWN

    return [known.name for known in KNOWN if known.name.startswith(incomplete)]


Out = Annotated[
    str,
    typer.Option(
        "--output", "-o", metavar="OUT", help="Picture to write: png, jpg, webp, tif or bmp."
    ),
]
MaskFile = Annotated[
    str | None, typer.Option("--mask", metavar="FILE", help="Mask: white is the object.")
]
MaxPixels = Annotated[
    int,
    typer.Option(
        "--max-pixels",
        metavar="N",
        callback=_at_least_one,
        help="Refuse larger pictures before decoding them.",
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Let the segmentation model run code of its own; only if you trust its author.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting, see inlay methods NAME; KEY=a,b,c makes one picture for each value.",
    ),
]


@dataclass(frozen=True)
class Common:
    """What every command that makes a picture takes."""

    method: Annotated[
        str | None,
        typer.Option(
            "--method", metavar="NAME", help="See inlay methods.", autocompletion=_method_names
        ),
    ] = None
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", metavar="NAME", help="Settings for one task, see inlay methods NAME."
        ),
    ] = None
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="TEXT", help="What the picture should show."),
    ] = None
    negative_prompt: Annotated[
        str | None,
        typer.Option("--negative-prompt", metavar="TEXT", help="What it should not show."),
    ] = None
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", help="Of all randomness."),
    ] = 0
    num_images: Annotated[
        int,
        typer.Option(
            "--num-images", metavar="K", help="Pictures to make, each with the next seed."
        ),
    ] = 1
    num_inference_steps: Annotated[
        int | None, typer.Option("--num-inference-steps", metavar="N", help="Denoising steps.")
    ] = None
    guidance_scale: Annotated[
        float | None,
        typer.Option("--guidance-scale", metavar="G", help="Weight of the prompt; 1 is off."),
    ] = None
    set: Sets = None
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="embedded, a diffusers folder, a .safetensors file or a hub id.",
            autocompletion=_model_names,
        ),
    ] = "embedded"
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="D", help=", ".join(DEVICES), autocompletion=_completes(*DEVICES)
        ),
    ] = "auto"
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype", metavar="D", help=", ".join(DTYPES), autocompletion=_completes(*DTYPES)
        ),
    ] = "auto"
    lora: Annotated[
        list[str] | None,
        typer.Option("--lora", metavar="FILE[:SCALE]", help="LoRA weights; may be repeated."),
    ] = None
    textual_inversion: Annotated[
        list[str] | None,
        typer.Option("--textual-inversion", metavar="FILE", help="Learnt word; may be repeated."),
    ] = None
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS
    previews: Annotated[
        bool, typer.Option("--previews", help="Keep a preview beside OUT while it is made.")
    ] = False
    json: Json = False
    quiet: Quiet = False

    def __post_init__(self) -> None:
        one_of(self.device, DEVICES, "--device")
        one_of(self.dtype, DTYPES, "--dtype")

    def checkpoint(self) -> dict[str, Any]:
        """The request's model; raises InputError for a file that is not there."""
        loras = [lora(text) for text in self.lora or []]
        inversions = list(self.textual_inversion or [])
        for option, path in [("--lora", path) for path, _ in loras] + [
            ("--textual-inversion", path) for path in inversions
        ]:
            if not _is_file(path):
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


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """Let a command's parameters that are groups of options (dataclasses) be those options."""
    signature = inspect.signature(function, eval_str=True)
    groups: dict[str, Callable[..., Any]] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation)
    }
    parameters = []
    for name, parameter in signature.parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        hints = get_type_hints(groups[name], include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in _fields(groups[name])
        ]

    @functools.wraps(function)
    def command(**values: Any) -> None:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in _fields(group)})
            for name, group in groups.items()
        }
        function(**values, **made)

    command.__annotations__ = {item.name: item.annotation for item in parameters}
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


def _fields(group: Any) -> tuple[Field[Any], ...]:
    return fields(group)


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


def factor(text: str, name: str) -> float:
    """A number above 0."""
    value = number(text, name)
    if value <= 0:
        raise InputError(f"{name} is {show(text)}; expected a number above 0.")
    return value


def point(text: str | None, name: str) -> tuple[float, float] | None:
    """Read "X,Y"."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2:
        raise InputError(f"{name} is {show(text)}; expected two numbers X,Y.")
    return number(parts[0], name), number(parts[1], name)


def box(text: str | None, name: str) -> Box | None:
    """Read "X,Y,W,H"."""
    return None if text is None else Box.parse(text, name)


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


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:
        return False
