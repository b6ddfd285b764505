"""train and learn: weights of one's own from a folder of pictures, a concept from a few photos."""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from inlay.cli.make import numbers
from inlay.cli.options import Device, OutFolder, Quiet, Reading, flag, model_names
from inlay.cli.outputs import listening, say, tell
from inlay.errors import InputError, show


@dataclass(frozen=True)
class Training(Quiet):
    """The options of train."""

    model: str | None = flag(
        "Checkpoint that an adapter or harmonizer is for; embedded by default.", "MODEL",
        complete=model_names,
    )  # fmt: skip
    resume: bool = flag("Go on from the state in DIR.", default=False)
    set: list[str] | None = flag("Any setting of the training.", "KEY=VALUE")


def train(
    kind: Annotated[
        Literal["embedded", "adapter", "harmonizer", "cutter", "shadow"],
        typer.Argument(help="embedded, adapter, harmonizer, cutter or shadow."),
    ],
    folder: Annotated[str, typer.Argument(help="Folder of pictures and captions.")],
    output: OutFolder,
    given: Training,
) -> None:
    """Train weights of your own on a folder of pictures.

    KIND is embedded, the small checkpoint that ships with inlay; adapter, a T2I-Adapter, which
    makes a checkpoint follow lines; harmonizer, a branch beside a frozen checkpoint that gives a
    pasted object the light of its place; cutter, which finds a picture's subject, from pictures
    whose alpha is its mask, or with one in masks/ under their name; or shadow, which says what
    shadow an object casts, from rendered triples.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{show(folder)} is not a folder; give a folder of pictures.")
    sets = [*(given.set or []), *([f"model={given.model}"] if given.model is not None else [])]
    from inlay.settings import parse_values
    from inlay.training.trainer import train_folder

    module = importlib.import_module(f"inlay.training.{kind}")
    settings = getattr(module, f"{kind.title()}Config")
    config = settings(**parse_values(sets, settings))
    trainer = getattr(module, f"{kind.title()}Trainer")
    with made_folder(output) as target:
        log = partial(say, quiet=given.quiet)
        train_folder(trainer, Path(folder), target, config, given.resume, log)


@dataclass(frozen=True)
class Learning(Reading):
    """The options of learn."""

    box: list[str] | None = flag("Where it is; once for each photo.", "X,Y,W,H")
    mask: list[str] | None = flag("White where it is; once for each photo.", "FILE")
    cut: str | None = flag(
        "How it is found else: auto, alpha, grabcut or a segmentation model.", "HOW"
    )
    model: str = flag(
        "Checkpoint that it is learnt for.", "MODEL", default="embedded", complete=model_names
    )
    device: Device = flag("Where it runs.", default="auto")
    preset: Literal["paper", "released"] | None = flag("The published recipe.")
    full: bool = flag("Fine-tune the whole U-Net, as the paper does: a large FILE.", default=False)
    seed: int = flag("Of all randomness.", "N", default=0)
    class_pictures: str | None = flag("Of its class, so that it is not forgotten.", "DIR")
    resume: bool = flag("Go on from the state beside FILE.", default=False)
    set: list[str] | None = flag("Any setting of the training.", "KEY=VALUE")


def learn(
    photo: Annotated[list[str], typer.Argument(help="1 to 10 photos of one object.")],
    class_name: Annotated[
        str, typer.Option(metavar="C", help="What it is, in a word or two: backpack.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="File to write: .safetensors.")
    ],
    given: Learning,
) -> None:
    """Learn one object from a few photos, to be put into any picture later.

    State, log and previews go to a folder beside FILE.
    """
    if not class_name.strip():
        raise InputError("--class-name is empty; give a word for what the object is.")
    if given.cut is not None and (given.box or given.mask):
        raise InputError("--cut goes without --box and --mask; leave out one of them.")
    from inlay.learning.settings import LearnConfig
    from inlay.scene.subject import as_box
    from inlay.settings import parse_values

    boxes = [box for text in given.box or () if (box := as_box(numbers(text), "--box"))]

    sets = [f"model={given.model}", f"seed={given.seed}"]
    sets += ["train=full"] if given.full else []
    sets += [f"preset={given.preset}"] if given.preset else []
    config = LearnConfig(**parse_values([*sets, *(given.set or [])], LearnConfig))
    from inlay.learning.learn import learn as run
    from inlay.learning.loop import Processes
    from inlay.learning.photos import with_places

    with listening(quiet=given.quiet, bar=False):
        concept = run(
            with_places(photo, boxes, given.mask or ()),
            class_name,
            output,
            config,
            cut=given.cut,
            class_pictures=given.class_pictures,
            device=given.device,
            resume=given.resume,
            trust_remote_code=given.trust_remote_code,
            max_pixels=given.max_pixels,
            log=partial(say, quiet=given.quiet or given.json),
        )
    if Processes().first:
        record = concept.model_dump(mode="json", exclude={"sights": {"__all__": {"picture"}}})
        tell({**record, "outputs": [output]}, as_json=given.json, quiet=given.quiet)


@contextmanager
def made_folder(text: str) -> Iterator[Path]:
    """A folder to write to, made where it is not there yet; raises InputError where it cannot be.

    What was made goes again if the block fails before it has put anything inside.
    """
    path, new = Path(text), list[Path]()
    try:
        try:
            new += [each for each in (path, *path.parents) if not each.exists()]
            path.mkdir(parents=True, exist_ok=True)
            if not text or not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "Permission denied")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", "no usable path")
            raise InputError(f"the folder {show(text)} cannot be written to ({reason}).") from None
        yield path
    except BaseException:
        for each in new:
            with suppress(OSError):
                each.rmdir()
        raise
