"""batch and augment: what is typed becomes an order, which the command line has written."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from inlay.batch.order import Batch
from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.batch.engine import Crew


def flag(default: Any, help: str, metavar: str | None = None, *names: str, **more: Any) -> Any:
    """A field of a group that is an option, as inlay.cli.options has them."""
    option = typer.Option(*names, metavar=metavar, help=help, **more)
    return field(default=default, metadata={"option": option})


@dataclass(frozen=True)
class Running:
    """How many pictures are made: by whom, within which limits, and what is said of it."""

    engine: Literal["local", "ray"] = flag("local", "Processes here, or actors of Ray.")
    address: str | None = flag(None, "Of a Ray cluster; without it one is started here.", "A")
    workers: int | None = flag(None, "How many; by default as the machines allow.", "N", min=1)
    timeout: float | None = flag(None, "For one picture at most.", "SECONDS", min=0.001)
    memory: int | None = flag(None, "A local worker's at most.", "MB", min=1)
    batch_size: str = flag(
        "1", "How many alike go through a network together: a number, or auto.", "N"
    )
    json: bool = flag(False, "Print progress as lines of JSON.")
    quiet: bool = flag(False, "Say nothing but errors.", None, "--quiet", "-q")

    def crew(self) -> Crew:
        """The workers that the options ask for; raises InputError."""
        from inlay.batch.engine import Actors, Processes, find_gpus
        from inlay.settings import as_batch_size

        size = as_batch_size(self.batch_size)
        if self.engine == "ray":
            if self.memory is not None:
                raise InputError("--memory bounds local workers; Ray has a monitor of its own.")
            return Actors(self.address, self.workers, self.timeout, batch_size=size)
        if self.address is not None:
            raise InputError("--address is a Ray cluster's; give --engine ray, too.")
        cores, gpus = os.cpu_count() or 1, find_gpus()
        count = self.workers or len(gpus) or cores
        memory = None if self.memory is None else self.memory * 1_000_000
        threads = max(1, cores // count)
        limits = {"seconds": self.timeout, "memory": memory, "threads": threads}
        return Processes(count, size, gpus, **limits)


def batch(
    manifest: Annotated[str, typer.Argument(help="Requests: a .jsonl, .csv or .parquet file.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="Folder or URL to write to.")
    ],
    given: Running,
    validate: Annotated[bool, typer.Option(help="Say which rows are wrong; make nothing.")] = False,
) -> Batch | int:
    """Make a manifest's pictures, many at once; those that are missing or changed since."""
    return _validate(manifest) if validate else Batch(manifest, output, given)


@dataclass(frozen=True)
class Augmenting(Running):
    """The options of augment."""

    labels: str = flag("coco", "Some of coco,yolo,voc,masks,imagefolder,webdataset.", "A,B")
    copies: int = flag(1, "Pictures for each background.", "N", min=1)
    count: str = flag("1,3", "Objects in a picture, at least and at most.", "A,B")
    size: str = flag("0.25,0.5", "Of one in the foreground, in parts of the height.", "A,B")
    places: str | None = flag(
        None, "Where they may stand: a folder of masks, or a box in parts of a picture.", "WHERE"
    )
    method: str = flag("poisson", "The method, and its preset after a colon.", "NAME[:PRESET]")
    prompt: str = flag("", "For methods that take one.", "TEXT")
    preset: Literal["scene", "single-view"] = flag(
        "scene", "single-view: one render, large and amid each photo, as to learn 3D from."
    )
    overlap: float = flag(0.3, "How much of a thing others may hide.", "SHARE", min=0, max=1)
    visible: float = flag(0.2, "A thing of which less is seen has no label.", "SHARE", max=1)
    seed: int = flag(0, "Of all randomness.", "N", min=0)
    preview: bool = flag(False, "Write preview.png, and make nothing else.")


def augment(
    backgrounds: Annotated[str, typer.Argument(help="A folder of pictures, or COCO's JSON.")],
    objects: Annotated[
        str, typer.Argument(help="A folder with a folder for each class, or COCO's JSON.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="Folder to write to.")
    ],
    given: Augmenting,
) -> Batch:
    """Make training data: objects set into backgrounds, on the ground, with labels of each."""
    from inlay.batch.augment import Augmentation

    return Augmentation(backgrounds, objects, output, given)


def _validate(manifest: str) -> int:
    """Say which rows are wrong; the exit status."""
    from inlay.batch.ledger import key_of
    from inlay.batch.manifest import read_rows

    wrong, total, lines = 0, 0, dict[str, int]()
    for row in read_rows(manifest):
        try:
            total += 1
            if row.request is None:
                raise InputError(row.problem)
            if (first := lines.setdefault(row.name, row.line)) != row.line:
                raise InputError(f"the name {row.name} is line {first}'s too; give each its own.")
            key_of(row.request)
        except InputError as error:
            wrong += 1
            print(f"line {row.line}: {error}")
    print(f"{total} rows, {wrong} of them wrong")
    return 2 if wrong else 0
