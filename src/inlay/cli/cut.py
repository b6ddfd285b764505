"""cut, demo and train: the commands beside those that make and list."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from inlay.cli import options
from inlay.cli.options import (
    DEFAULT_MAX_PIXELS,
    Json,
    MaskFile,
    MaxPixels,
    Out,
    Quiet,
    Sets,
    TrustRemoteCode,
)
from inlay.errors import InputError

if TYPE_CHECKING:
    from pydantic import BaseModel

Config = TypeVar("Config", bound="BaseModel")

_WITH_ALPHA = (".png", ".webp", ".tif", ".tiff")


def cut(
    picture: Annotated[str, typer.Argument(metavar="PICTURE", help="Picture of the subject.")],
    output: Out,
    box: Annotated[
        str | None, typer.Option("--box", metavar="X,Y,W,H", help="Where the subject is.")
    ] = None,
    mask: MaskFile = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Segmentation model: a hub id or a folder, by transformers.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--cut",
            metavar="HOW",
            help="alpha, mask, box or grabcut.",
            autocompletion=options._completes(*options.CUTS),
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Cut the subject out of its picture.

    Edges are soft, and no colour of the old background comes along.
    """
    if by is not None and model is not None:
        raise InputError("--cut and --model exclude each other; give one of them.")
    if by is not None:
        options.one_of(by, options.CUTS, "--cut")
    if by == "mask" and mask is None:
        raise InputError("--cut mask needs --mask FILE.")
    if by == "box" and box is None:
        raise InputError("--cut box needs --box X,Y,W,H.")
    where = options.box(box, "--box")

    from inlay._version import __version__
    from inlay.cli.outputs import check_out, tell
    from inlay.cli.progress import listening
    from inlay.record import identify

    out = check_out(output, {"picture": picture, "mask": mask})
    if out.suffix.lower() not in _WITH_ALPHA:
        raise InputError(
            f"{out.name} cannot hold transparency; write to {', '.join(_WITH_ALPHA[:3])}."
        )
    from inlay.pictures.read import read_picture
    from inlay.pictures.write import write_picture
    from inlay.scene.cutout import cut_rgba

    with listening(quiet=quiet, bar=not json):
        image = cut_rgba(
            picture,
            by=by or model,
            mask=mask,
            box=where,
            max_pixels=max_pixels,
            trust_remote_code=trust_remote_code,
        )
        write_picture(read_picture(image, max_pixels=max_pixels), out)
    inputs = {"picture": picture} | ({} if mask is None else {"mask": mask})
    record = {
        "inlay": __version__,
        "verb": "cut",
        "inputs": {role: identify(path) for role, path in inputs.items()},
        "request": {
            "cut": by or model,
            "box": None if where is None else where.as_dict(),
            "trust_remote_code": trust_remote_code,
        },
        "outputs": [str(out)],
    }
    tell(record, as_json=json, quiet=quiet)


def demo(
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="Folder to write to.")
    ] = "demo",
    quiet: Quiet = False,
) -> None:
    """Offline tour on real photos; ends with a contact sheet."""
    from inlay.cli.demo import run
    from inlay.cli.progress import listening

    with made_folder(output) as folder, listening(quiet=quiet, bar=False):
        run(folder, _silent if quiet else typer.echo)


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

    config = _recipe(EmbeddedConfig, sets)
    with made_folder(output) as target:
        run(source, target, config, resume, _silent if quiet else typer.echo)


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

    config = _recipe(AdapterConfig, sets)
    with made_folder(output) as target:
        run(source, target, config, resume, _silent if quiet else typer.echo)


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

    config = _recipe(HarmonizerConfig, [*(sets or []), *([f"model={model}"] if model else [])])
    with made_folder(output) as target:
        run(source, target, config, resume, _silent if quiet else typer.echo)


def _training_folder(text: str) -> Path:
    source = Path(text)
    if not _is_folder(source):
        raise InputError(f"{options.short(text)} is not a folder; give a folder of pictures.")
    return source


def _recipe(kind: type[Config], sets: list[str] | None) -> Config:
    """The settings of a training run; raises InputError."""
    from inlay.sweep import parse_sets, validate_settings

    variants = parse_sets(sets or [], kind)
    if len(variants) > 1:
        raise InputError("training takes one value for each setting; give no lists.")
    return validate_settings(kind, variants[0][1])


def _silent(message: Any) -> None:
    del message


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


@contextmanager
def made_folder(text: str) -> Iterator[Path]:
    """A folder to write to, made where it is not there yet; raises InputError where it cannot be.

    What was made goes again if the block fails before it has put anything inside.
    """
    shown = options.short(text)
    if not text or "\0" in text:
        raise InputError(f"--output is {shown}; expected a folder.")
    path = Path(text)
    new: list[Path] = []
    try:
        new = [p for p in (path, *path.parents) if not p.exists()]
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "Permission denied")
    except OSError as error:
        _remove_empty(new)
        raise InputError(f"the folder {shown} cannot be written to ({error.strerror}).") from None
    try:
        yield path
    except BaseException:
        _remove_empty(new)
        raise


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
