"""train: how weights are made, on a folder of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from inlay.cli import options
from inlay.cli.options import Quiet, Sets
from inlay.cli.outputs import made_folder
from inlay.errors import InputError, show

if TYPE_CHECKING:
    from pydantic import BaseModel

Config = TypeVar("Config", bound="BaseModel")

TrainFolder = Annotated[
    str, typer.Argument(metavar="FOLDER", help="Folder of pictures and captions.")
]
TrainOut = Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Folder to write to.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the state in DIR.")]


def train_embedded(
    folder: TrainFolder,
    output: TrainOut,
    resume: Resume = False,
    sets: Sets = None,
    quiet: Quiet = False,
) -> None:
    """Train the small checkpoint that ships with inlay on a folder of photos."""
    source = _training_folder(folder)
    from inlay.training.embedded import EmbeddedConfig
    from inlay.training.embedded import train_embedded as run

    config = recipe(EmbeddedConfig, sets)
    with made_folder(output) as target:
        run(source, target, config, resume, silent if quiet else typer.echo)


def train_adapter(
    folder: TrainFolder,
    output: TrainOut,
    resume: Resume = False,
    sets: Sets = None,
    quiet: Quiet = False,
) -> None:
    """Train a T2I-Adapter, which makes a checkpoint follow lines, on a folder of photos."""
    source = _training_folder(folder)
    from inlay.training.adapter import AdapterConfig
    from inlay.training.adapter import train_adapter as run

    config = recipe(AdapterConfig, sets)
    with made_folder(output) as target:
        run(source, target, config, resume, silent if quiet else typer.echo)


def train_harmonizer(
    folder: TrainFolder,
    output: TrainOut,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Checkpoint that the harmonizer is for; embedded by default.",
            autocompletion=options._model_names,
        ),
    ] = None,
    resume: Resume = False,
    sets: Sets = None,
    quiet: Quiet = False,
) -> None:
    """Train a harmonizer, a branch beside a frozen checkpoint, on a folder of photos."""
    source = _training_folder(folder)
    from inlay.training.harmonizer import HarmonizerConfig
    from inlay.training.harmonizer import train_harmonizer as run

    config = recipe(HarmonizerConfig, [*(sets or []), *([f"model={model}"] if model else [])])
    with made_folder(output) as target:
        run(source, target, config, resume, silent if quiet else typer.echo)


def _training_folder(text: str) -> Path:
    source = Path(text)
    if not _is_folder(source):
        raise InputError(f"{show(text)} is not a folder; give a folder of pictures.")
    return source


def recipe(kind: type[Config], sets: list[str] | None) -> Config:
    """The settings of a training run; raises InputError."""
    from inlay.settings import parse_sets, validate_settings

    variants = parse_sets(sets or [], kind)
    if len(variants) > 1:
        raise InputError("training takes one value for each setting; give no lists.")
    return validate_settings(kind, variants[0][1])


def silent(message: Any) -> None:
    del message


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
