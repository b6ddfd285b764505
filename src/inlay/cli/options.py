"""The options that several commands share, each written once, in groups.

Nothing here may import numpy, torch or pydantic: `inlay --help` reads this file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import typer

Device = Literal["auto", "cpu", "cuda", "mps"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
Memory = Literal["auto", "low", "balanced", "fast"]
CUTS = ("auto", "alpha", "mask", "box", "grabcut", "rembg")


def flag(
    help: str,
    metavar: str | None = None,
    default: Any = None,
    *,
    names: Sequence[str] = (),
    least: int | None = None,
    complete: Callable[[str], list[str]] | None = None,
) -> Any:
    """A field of a group that is an option: --the-fields-name, unless `names` say otherwise.

    A group is a frozen dataclass; a command has it as a parameter (inlay.cli.app.grouped).
    `complete` tells the shell what an incomplete word may become.
    """
    option = typer.Option(*names, metavar=metavar, help=help, min=least, autocompletion=complete)
    return field(default=default, metadata={"option": option})


def cut_names(incomplete: str) -> list[str]:
    return [name for name in CUTS if name.startswith(incomplete)]


def method_names(incomplete: str) -> list[str]:
    from inlay.methods.registry import all_methods

    return [name for name in all_methods() if name.startswith(incomplete)]


def model_names(incomplete: str) -> list[str]:
    from inlay.checkpoints.hub import KNOWN

    return [known["name"] for known in KNOWN if known["name"].startswith(incomplete)]


Out = Annotated[
    str, typer.Option("--output", "-o", metavar="OUT", help="A png, jpg, webp, avif, tif or bmp.")
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
class Quiet:
    """Whether a command says something of its work."""

    quiet: bool = flag("Say nothing but errors.", default=False, names=("--quiet", "-q"))


@dataclass(frozen=True)
class Saying(Quiet):
    """What a command says of its work."""

    json: bool = flag("Print JSON on standard output.", default=False)


@dataclass(frozen=True)
class Reading(Saying):
    """What is read, and how far it is trusted."""

    max_pixels: int = flag("Refuse larger pictures undecoded.", "N", 100_000_000, least=1)
    trust_remote_code: bool = flag(
        "Let a segmentation model run code of its own; only if you trust its author.",
        default=False,
    )


@dataclass(frozen=True)
class Batches(Reading):
    """How pictures are made."""

    batch_size: str = flag(
        "Of several pictures how many go through the network together: a number, or auto for "
        "what fits into memory.",
        "N", default="1",
    )  # fmt: skip


@dataclass(frozen=True)
class Again(Batches):
    """What run and rerun take."""

    input: list[str] | None = flag(
        "What to open as background, mask, subject_2, model, lora, ...; may be repeated. Of what a "
        "picture's record names only pictures in its folder are opened unless you name them.",
        "ROLE=FILE",
    )


@dataclass(frozen=True)
class Checkpoint:
    """Which checkpoint is run, and where."""

    model: str = flag(
        "embedded, a diffusers folder, a .safetensors file or a hub id.", "MODEL",
        default="embedded", complete=model_names,
    )  # fmt: skip
    device: Device = flag("Where it runs.", default="auto")
    dtype: DType = flag("What it calculates in.", default="auto")
    memory: Memory = flag(
        "How much of a GPU's memory it may take: low holds one layer at a time, balanced one "
        "network, fast all of them, compiled; auto goes by what is free.", default="auto",
    )  # fmt: skip


@dataclass(frozen=True)
class Common(Checkpoint, Batches):
    """What every command that makes a picture takes."""

    method: str | None = flag("See inlay methods.", "NAME", complete=method_names)
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


@dataclass(frozen=True)
class Places:
    """What the subjects are in their pictures, and where they go."""

    box: list[str] | None = flag("Where: the subject is fitted into this box.", "X,Y,W,H")
    at: list[str] | None = flag("Where: the subject's centre.", "X,Y")
    scale: list[str] | None = flag("With --at: factor on its pixels; once is for all.", "S")
    random: bool = flag("Where: drawn from the seed, clear of others.", default=False)
    rotate: list[str] | None = flag("Turn it counter-clockwise; once is for all.", "DEGREES")
    flip: bool = flag("Mirror the subjects left to right.", default=False)
    mask: list[str] | None = flag("Mask: white is the object.", "FILE")
    cut: list[str] | None = flag(
        "How the subject is cut out: auto, alpha, mask, box, grabcut, rembg or a segmentation "
        "model; once is for all.", "HOW", complete=cut_names,
    )  # fmt: skip
    cut_box: list[str] | None = flag("Where the subject is in its own picture.", "X,Y,W,H")
    cut_point: list[str] | None = flag(
        "Or a point on it there; for one subject may be repeated.", "X,Y"
    )
    view: list[str] | None = flag("Which photo of a concept, from 1; else the best.", "N")


@dataclass(frozen=True)
class Phases(Common, Places):
    """The options of compose."""

    shadow: str = flag(
        "The subjects' shadow: auto, none, contact (soft, where they touch the ground) or cast, "
        "like cast,direction=20,length=0.5; also softness, opacity and ground (y of the line they "
        "stand on).",
        "KIND[,KEY=VALUE]", default="auto",
    )  # fmt: skip
    together: bool = flag("Paste all subjects first; the method runs once on all.", default=False)
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
class Harmony(Common):
    """The options of harmonize."""

    mask: str | None = flag("Mask: white is the object.", "FILE")
    box: str | None = flag("Where the object is looked for without a mask.", "X,Y,W,H")
    background: str | None = flag("The picture before pasting.", "CLEAN")


@dataclass(frozen=True)
class Removal(Common):
    """The options of remove."""

    mask: str | None = flag("Mask: white is what goes.", "FILE")
    box: str | None = flag("Or what stands out inside it goes.", "X,Y,W,H")
    point: str | None = flag("Or the thing there goes.", "X,Y")


@dataclass(frozen=True)
class Scene(Common, Places):
    """The options of scene."""

    keep_phases: bool = flag("Write each stage's picture too, as OUT-1-coarse.", default=False)
