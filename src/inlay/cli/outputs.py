"""Making and writing what was ordered, and what a user sees of it: a bar, notes, previews.

All are put in place when the last one is there: an error or an interruption leaves nothing behind.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from inlay.errors import InputError, __version__, plain

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.progress import Progress

    from inlay.cli.options import Batches
    from inlay.methods.base import Importing
    from inlay.pictures.picture import Picture
    from inlay.pictures.write import Files
    from inlay.request import Request
    from inlay.result import Result
    from inlay.result.record import Record

_CELL = 320


@dataclass(frozen=True)
class Target:
    """Where a picture goes, what the sheet calls it, and which of its phases are kept."""

    path: Path
    label: str = ""
    phases: Sequence[str] = ()

    @property
    def kept(self) -> list[Path]:
        """The files beside the picture that its phases' pictures go to."""
        numbered = (f"{self.path.stem}-{n}-{name}" for n, name in enumerate(self.phases, 1))
        return [self.path.with_name(name + self.path.suffix) for name in numbered]


@dataclass(frozen=True)
class Order:
    """Labelled requests, where their pictures go, and how they are made and told of.

    notes go into the records, too. A record is that of the picture which is to be made again.
    """

    requests: Sequence[tuple[str, Request]]
    output: str
    given: Batches
    previews: bool = False
    notes: Sequence[str] = ()
    record: Record | None = None

    def write(self, check: Callable[[], None], importing: Importing) -> None:
        """Make every picture, put them where they belong, and say so; raises InputError.

        check is called before anything is put in place, and raises where the user interrupted;
        importing is Checkpoint's.
        """
        from inlay.methods.base import Checkpoint
        from inlay.pictures.write import Files
        from inlay.run import Options, run_all
        from inlay.settings import as_batch_size

        given, first = self.given, self.requests[0][1]
        # JSON knows no pictures in memory: every input is a file.
        inputs = {first.role(place): str(path) for place, path in first.inputs().items()}
        out = check_out(self.output, inputs)
        targets = self._targets(out)
        preview = out.with_name(f"{out.stem}-preview.png") if self.previews else None
        paths = [path for each in targets for path in (each.path, *each.kept)]
        for path in [*paths, *([preview] if preview else [])]:
            check_out(str(path), inputs)
        opened = {} if first.model is None else dict(first.model)
        checkpoint = Checkpoint(opened.pop("name", "embedded"), **opened)
        checkpoint.importing = importing
        with (
            listening(quiet=given.quiet, bar=not given.json, preview_file=preview) as listener,
            Files() as files,
        ):
            outputs = Outputs(out, targets, files)
            trust, size = given.trust_remote_code, as_batch_size(given.batch_size)
            how = Options(listener.step, listener.phase, self.previews, given.max_pixels, trust)
            if self.record is not None and self.record.inlay != __version__:
                listener.note(
                    f"the picture was made by inlay {self.record.inlay}, this is {__version__}: "
                    "the result may differ"
                )
            count = len(self.requests)
            for number, (label, request) in enumerate(self.requests, 1):
                listener.label = f"{number} of {count}: {label}" if count > 1 else label
                (result,) = run_all([request], checkpoint, [how], size)
                if isinstance(result, BaseException):
                    raise result
                if self.record is not None:
                    self.record.check(result)
                check()
                for line in outputs.take(result, self.notes):
                    listener.note(line)
            summary = outputs.summary()
            check()
        tell(summary, as_json=given.json, quiet=given.quiet)

    def _targets(self, out: Path) -> list[Target]:
        """A target for each picture; several go beside OUT, which is their contact sheet."""
        labels, phases = [], []
        for label, request in self.requests:
            for seed in range(request.seed, request.seed + request.num_images):
                seeded = f"seed={seed}" if request.num_images > 1 else ""
                labels.append(",".join(filter(None, (label, seeded))))
                phases.append(request.kept_names())
        paths = sibling_names(out, labels) if len(labels) > 1 else [out]
        return [Target(*each) for each in zip(paths, labels, phases, strict=True)]


def check_out(out: str, inputs: Mapping[str, str]) -> Path:
    """OUT as a path that can be written and is none of the inputs; raises InputError."""
    from inlay.pictures.write import check_output

    check_output(out)
    path = Path(out)
    for role, source in inputs.items():
        if all(map(os.path.exists, (out, source))) and path.samefile(source):
            raise InputError(f"{path.name} is the {role} itself; write to another file.")
    return path


def sibling_names(out: Path, labels: Sequence[str]) -> list[Path]:
    """The files beside OUT that several pictures go to, one for each label, all different."""
    names: list[str] = []
    for label in labels:
        # Letters, digits and a few signs can be part of a file's name on every system.
        stem = name = f"{out.stem}-{re.sub(r'[^A-Za-z0-9=.,+_-]+', '_', label)[:150]}"
        number = 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return [out.with_name(name + out.suffix) for name in names]


class Outputs:
    """Takes pictures one by one, and writes them into `files`."""

    def __init__(self, out: Path, targets: Sequence[Target], files: Files) -> None:
        self.out, self.targets, self.files = out, targets, files
        self.records: list[dict[str, Any]] = []
        self._cells: list[Image] = []

    def take(self, result: Result, notes: Sequence[str] = ()) -> list[str]:
        """Take the pictures of one request; returns what their records note, with `notes`."""
        said: list[str] = []
        made = zip(result.pictures, result.records, strict=True)
        for index, (picture, record) in enumerate(made):
            stages = list(result.kept[index].values()) if result.kept else []
            for own in [record, *(own for _, own in stages if own is not record)]:
                own["notes"] = [*own["notes"], *notes]
            said += record["notes"]
            target = self.targets[len(self.records)]
            for path, (stage, own) in zip(target.kept, stages, strict=True):
                self._write(stage, path, own)
            self._write(picture, target.path, record)
            if target.kept:
                record = {**record, "kept": [str(path) for path in target.kept]}
            if len(self.targets) > 1:
                cell = picture.to_pil()
                cell.thumbnail((2 * _CELL, 2 * _CELL))
                self._cells.append(cell)
            self.records.append(record)
        return said

    def _write(self, picture: Picture, path: Path, record: Mapping[str, Any]) -> None:
        from inlay.pictures.write import write_picture
        from inlay.result import record_text

        write_picture(picture, path, record=record_text(record), files=self.files)

    def summary(self) -> dict[str, Any]:
        """The record for --json; of several pictures that of their contact sheet, now written."""
        outputs = [str(target.path) for target in self.targets]
        if len(outputs) == 1:
            return {**self.records[0], "outputs": outputs}
        from inlay.pictures.read import read_picture
        from inlay.pictures.sheet import contact_sheet

        labels = [target.label for target in self.targets]
        summary = {key: self.records[0][key] for key in ("inlay", "verb", "method")}
        summary |= {"sheet": str(self.out), "labels": labels, "outputs": outputs}
        sheet = contact_sheet(self._cells, labels, cell=_CELL)
        self._write(read_picture(sheet), self.out, summary)
        kept = [str(path) for target in self.targets for path in target.kept]
        return {**summary, **({"kept": kept} if kept else {}), "records": self.records}


# The signals to end that a command has had.
HEARD: list[int] = []


class Listener(logging.Handler):
    """Hears steps, and notes in inlay's log; draws a bar on a terminal, keeps quiet elsewhere.

    On a terminal notes appear at once. Where standard error is a file or a pipe they are held
    back until the work is done, so that a failure leaves one sentence and nothing else.
    """

    def __init__(self, *, quiet: bool, bar: bool, preview_file: Path | None) -> None:
        super().__init__(logging.INFO)
        self.preview_file = preview_file
        self.label = self._phase = ""
        self.notes: list[str] = []
        self.progress: Progress | None = None
        if bar and not quiet and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self.progress = progress.Progress(
                progress.SpinnerColumn(),
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self.progress.add_task("getting ready", total=None)

    def emit(self, record: logging.LogRecord) -> None:
        self.note(record.getMessage())

    def note(self, line: str) -> None:
        """Say something once."""
        if (line := plain(line)) not in self.notes:
            self.notes.append(line)
            if self.progress is not None:
                self.progress.console.print(line, markup=False, highlight=False)

    def phase(self, name: str) -> None:
        """What the next steps are part of, where a picture is made in phases."""
        self._phase = name

    def step(self, number: int, total: int, preview: Any | None = None) -> None:
        """The callback that a run calls; raises KeyboardInterrupt where one was dropped."""
        if HEARD:
            raise KeyboardInterrupt
        words = ", ".join(filter(None, (self.label, self._phase))) or "denoising"
        if self.progress is not None:
            task = self.progress.task_ids[0]
            self.progress.update(task, completed=number, total=total, description=words)
        if preview is not None and self.preview_file is not None:
            from inlay.pictures.read import read_picture
            from inlay.pictures.write import write_picture

            write_picture(read_picture(preview), self.preview_file)


@contextmanager
def listening(
    *, quiet: bool = False, bar: bool = True, preview_file: Path | None = None
) -> Iterator[Listener]:
    """Listen to inlay's log and to steps for the length of the block; previews are gone after it.

    Raises InputError where the preview's name is taken.
    """
    if preview_file is not None and os.path.lexists(preview_file):
        raise InputError(
            f"{preview_file.name} exists already; move it away, choose another output or leave out "
            "--previews."
        )
    listener = Listener(quiet=quiet, bar=bar, preview_file=preview_file)
    logger = logging.getLogger("inlay")
    before = (logger.level, logger.propagate)
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        with listener.progress or nullcontext():
            yield listener
        if listener.progress is None and not quiet:
            for line in listener.notes:
                say(line, sys.stderr)
    finally:
        if preview_file is not None:
            preview_file.unlink(missing_ok=True)
        logger.removeHandler(listener)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def say(line: object, to: TextIO | None = None, *, quiet: bool = False) -> None:
    """Print a line; that nobody can read it must not undo what was made."""
    if not quiet:
        with suppress(OSError, UnicodeError), printing(to or sys.stdout) as stream:
            print(line, file=stream)


@contextmanager
def printing(stream: TextIO) -> Iterator[TextIO]:
    """Write out what is printed; where that fails, it must not fail once more at exit."""
    try:
        yield stream
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise


def tell(record: Mapping[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Say what was made: JSON, or one line for each file."""
    if as_json:
        say(json.dumps(record, allow_nan=False, indent=2))
    elif not quiet:
        for path in (*record.get("kept", ()), *record["outputs"], record.get("sheet")):
            say(path, quiet=path is None)
