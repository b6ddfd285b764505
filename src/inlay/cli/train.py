"""train and learn: weights of one's own from a folder of pictures, a concept from a few photos."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from inlay.cli import options
from inlay.cli.options import OutFolder, Reading, flag, grouped
from inlay.errors import InputError, show
from inlay.pictures.box import Box

if TYPE_CHECKING:
    from pydantic import BaseModel

Config = TypeVar("Config", bound="BaseModel")

KINDS = ("embedded", "adapter", "harmonizer")


@dataclass(frozen=True)
class Training:
    """The options of train."""

    model: str | None = flag(
        "Checkpoint that an adapter or harmonizer is for; embedded by default.", "MODEL",
        words=options.model_names,
    )  # fmt: skip
    resume: bool = flag("Go on from the state in DIR.", default=False)
    set: list[str] | None = flag("Any setting of the training.", "KEY=VALUE")
    quiet: bool = flag("Say nothing but errors.", default=False, name="--quiet -q")


@grouped
def train(
    kind: Annotated[str, typer.Argument(metavar="KIND", help=", ".join(KINDS))],
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Folder of pictures and captions.")
    ],
    output: OutFolder,
    given: Training,
) -> None:
    """Train weights of your own on a folder of pictures.

    KIND is embedded, the small checkpoint that ships with inlay; adapter, a T2I-Adapter, which
    makes a checkpoint follow lines; or harmonizer, a branch beside a frozen checkpoint that gives
    a pasted object the light of its place.
    """
    options.one_of(kind, KINDS, "KIND")
    source = Path(folder)
    if not _is_folder(source):
        raise InputError(f"{show(folder)} is not a folder; give a folder of pictures.")
    if given.model is not None and kind == "embedded":
        raise InputError("--model does not go with embedded, which is a checkpoint of its own.")
    sets = [*(given.set or []), *([f"model={given.model}"] if given.model is not None else [])]
    config, run = _trainer(kind, sets)
    with made_folder(output) as target:
        run(source, target, config, given.resume, silent if given.quiet else typer.echo)


def _trainer(kind: str, sets: list[str]) -> tuple[Any, Callable[..., Any]]:
    """The checked settings of a training, and what runs it."""
    from inlay.training.trainer import train_folder

    if kind == "embedded":
        from inlay.training.embedded import EmbeddedConfig, EmbeddedTrainer

        return recipe(EmbeddedConfig, sets), partial(train_folder, EmbeddedTrainer)
    if kind == "adapter":
        from inlay.training.adapter import AdapterConfig, AdapterTrainer

        return recipe(AdapterConfig, sets), partial(train_folder, AdapterTrainer)
    from inlay.training.harmonizer import HarmonizerConfig, HarmonizerTrainer

    return recipe(HarmonizerConfig, sets), partial(train_folder, HarmonizerTrainer)


def recipe(kind: type[Config], sets: list[str]) -> Config:
    """The settings of a training run; raises InputError."""
    from inlay.settings import parse_sets, validate_settings

    variants = parse_sets(sets, kind)
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


@dataclass(frozen=True)
class Learning(Reading):
    """The options of learn."""

    box: list[str] | None = flag("Where it is; once for each photo.", "X,Y,W,H")
    mask: list[str] | None = flag("White where it is; once for each photo.", "FILE")
    cut: str | None = flag(
        "How it is found without these: alpha, grabcut or a segmentation model.", "HOW",
        words=("alpha", "grabcut"),
    )  # fmt: skip
    model: str = flag(
        "Checkpoint that it is learnt for.", "MODEL", default="embedded", words=options.model_names
    )
    device: str = flag(", ".join(options.DEVICES), "D", default="auto", words=options.DEVICES)
    full: bool = flag("Fine-tune the whole U-Net, as the paper does: a large FILE.", default=False)
    seed: int = flag("Of all randomness.", "N", default=0)
    class_pictures: str | None = flag(
        "Pictures of the class at large, so that it is not forgotten.", "DIR"
    )
    resume: bool = flag("Go on from the state beside FILE.", default=False)
    set: list[str] | None = flag("Any setting of the training.", "KEY=VALUE")


@grouped
def learn(
    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTO...", help="1 to 10 photos of one object.")
    ],
    class_name: Annotated[
        str,
        typer.Option("--class-name", metavar="C", help="What it is, in a word or two: backpack."),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="File to write: .safetensors.")
    ],
    given: Learning,
) -> None:
    """Learn one object from a few photos, to be put into any picture later.

    State, log and previews go to a folder beside FILE.
    """
    options.one_of(given.device, options.DEVICES, "--device")
    if not class_name.strip():
        raise InputError("--class-name is empty; give a word for what the object is.")
    if Path(output).suffix.lower() != ".safetensors":
        raise InputError(f"--output is {show(output)}; expected NAME.safetensors.")
    if len(photos) > 10:
        raise InputError(f"there are {len(photos)} photos; expected 1 to 10.")
    if given.box and given.mask:
        raise InputError("--box and --mask exclude each other; give one of them.")
    if given.cut is not None and (given.box or given.mask):
        raise InputError("--cut goes without --box and --mask; leave out one of them.")
    boxes = [Box.parse(text, "--box") for text in given.box or ()]

    from inlay.cli.outputs import tell
    from inlay.cli.progress import listening
    from inlay.learning.settings import LearnConfig

    asked = [f"model={given.model}", f"seed={given.seed}"]
    asked += ["train=full"] if given.full else []
    config = recipe(LearnConfig, [*asked, *(given.set or [])])
    from inlay.learning.learn import learn as run
    from inlay.learning.loop import Processes
    from inlay.learning.photos import with_places

    with listening(quiet=given.quiet, bar=False):
        concept = run(
            with_places(photos, boxes, given.mask or ()),
            class_name,
            output,
            config,
            cut=given.cut,
            class_pictures=given.class_pictures,
            device=given.device,
            resume=given.resume,
            trust_remote_code=given.trust_remote_code,
            max_pixels=given.max_pixels,
            log=silent if given.quiet or given.json else typer.echo,
        )
    if Processes().first:
        record = concept.model_dump(mode="json", exclude={"sights": {"__all__": {"picture"}}})
        tell({**record, "outputs": [output]}, as_json=given.json, quiet=given.quiet)


@contextmanager
def made_folder(text: str) -> Iterator[Path]:
    """A folder to write to, made where it is not there yet; raises InputError where it cannot be.

    What was made goes again if the block fails before it has put anything inside.
    """
    shown = show(text)
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
