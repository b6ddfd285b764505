"""Making and writing what was ordered: one picture, or several and a labelled contact sheet.

Several pictures are first written into a temporary folder beside OUT and moved in place when the
last one is there: an error or an interruption leaves nothing behind.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from inlay.cli.progress import raise_interrupt
from inlay.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from inlay.cli.options import Reading
    from inlay.pictures.picture import Picture
    from inlay.request import Request
    from inlay.result import Record, Result

_CELL = 320


def check_out(out: str, inputs: Mapping[str, str | None]) -> Path:
    """OUT as a path that can be written and is none of the inputs; raises InputError."""
    from inlay.pictures.write import check_output

    check_output(out)
    path = Path(out)
    for role, source in inputs.items():
        if source is not None and _same(path, Path(source)):
            named = role.replace("_", " ")
            raise InputError(f"{path.name} is the {named} itself; write to another file.")
    return path


def sibling_names(out: Path, labels: Sequence[str]) -> list[Path]:
    """The files beside OUT that several pictures go to, one for each label, all different."""
    names: list[str] = []
    for label in labels:
        stem = name = f"{out.stem}-{_file_label(label)}"
        number = 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        names.append(name)
    return [out.with_name(name + out.suffix) for name in names]


def kept_names(target: Path, phases: Sequence[str]) -> list[Path]:
    """The files beside a picture that its phases' pictures go to."""
    return [
        target.with_name(f"{target.stem}-{number}-{name}{target.suffix}")
        for number, name in enumerate(phases, 1)
    ]


def check_preview(out: Path, inputs: Mapping[str, str | None]) -> Path:
    """The preview's file beside OUT; raises InputError where something has that name already."""
    path = check_out(str(out.with_name(f"{out.stem}-preview.png")), inputs)
    if os.path.lexists(path):
        raise InputError(
            f"{path.name} exists already; move it away, choose another output or leave out "
            "--previews."
        )
    return path


def _same(one: Path, other: Path) -> bool:
    try:
        return one.exists() and one.samefile(other)
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class Targets:
    """The files that labelled requests write, all of them free to be written.

    With several pictures each has a sibling of OUT, and OUT is their contact sheet; kept are the
    files of each picture's phases or stages.
    """

    out: Path
    labels: Sequence[str]
    siblings: Sequence[Path] = ()
    kept: Sequence[Sequence[Path]] = ()
    preview: Path | None = None

    @classmethod
    def of(cls, output: str, requests: Sequence[tuple[str, Request]], previews: bool) -> Targets:
        """Raises InputError for a file that cannot be written or is an input."""
        first = requests[0][1]
        # JSON knows no pictures in memory: every input is a file.
        inputs = {first.role(place): str(path) for place, path in first.inputs().items()}
        out = check_out(output, inputs)
        labels, stages = [], []
        for label, request in requests:
            for seed in range(request.seed, request.seed + request.num_images):
                seeded = f"seed={seed}" if request.num_images > 1 else ""
                labels.append(",".join(filter(None, (label, seeded))))
                stages.append(request.kept_names())
        siblings = sibling_names(out, labels) if len(labels) > 1 else []
        kept = [kept_names(*each) for each in zip(siblings or [out], stages, strict=True)]
        if not any(stages):
            kept = []
        for path in itertools.chain(siblings, *kept):
            check_out(str(path), inputs)
        preview = check_preview(out, inputs) if previews else None
        return cls(out, labels, siblings, kept, preview)


class Outputs:
    """Takes pictures one by one; `finish` puts them where they belong."""

    def __init__(self, targets: Targets) -> None:
        self.targets = targets
        self.out, self.siblings, self.kept = targets.out, targets.siblings, targets.kept
        self.records: list[dict[str, Any]] = []
        self._staged: list[tuple[Path, Path]] = []
        self._cells: list[Image] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Outputs:
        if self.siblings or self.kept:
            try:
                self._folder = tempfile.TemporaryDirectory(
                    prefix=".inlay-", dir=self.out.parent, ignore_cleanup_errors=True
                )
            except OSError as error:
                raise InputError(
                    f"{self.out.parent} cannot be written to ({error.strerror})."
                ) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def take(self, result: Result, notes: Sequence[str] = ()) -> list[str]:
        """Take the pictures of one request; returns what their records note, with `notes`."""
        said: list[str] = []
        for index, (picture, record) in enumerate(
            zip(result.pictures, result.records, strict=True)
        ):
            record["notes"] = [*record["notes"], *notes]
            stages = [
                (stage, {**own, "notes": [*own["notes"], *notes]} if own is not record else own)
                for stage, own in (result.kept[index] if self.kept else {}).values()
            ]
            self.add(picture, record, stages)
            said += record["notes"]
        return said

    def add(
        self,
        picture: Picture,
        record: dict[str, Any],
        stages: Sequence[tuple[Picture, dict[str, Any]]] = (),
    ) -> None:
        """Take the next picture, and pictures and records for the names in `kept`."""
        from inlay.pictures.write import write_picture
        from inlay.result import record_text

        raise_interrupt()
        if self._folder is None:
            write_picture(picture, self.out, record=record_text(record))
            self.records.append({**record, "outputs": [str(self.out)]})
            return
        number = len(self.records)
        kept = self.kept[number] if self.kept else []
        for path, (stage, own) in zip(kept, stages, strict=True):
            self._stage(stage, path, own)
        target = self.siblings[number] if self.siblings else self.out
        self._stage(picture, target, record)
        if kept:
            record = {**record, "kept": [str(path) for path in kept]}
        if not self.siblings:
            self.records.append({**record, "outputs": [str(target)]})
            return
        self.records.append(record)
        cell = picture.to_pil()
        cell.thumbnail((2 * _CELL, 2 * _CELL))
        self._cells.append(cell)

    def _stage(self, picture: Picture, target: Path, record: Mapping[str, Any]) -> None:
        """Write a picture into the temporary folder, to be moved to its target at the end."""
        from inlay.pictures.write import write_picture
        from inlay.result import record_text

        assert self._folder is not None
        staged = Path(self._folder.name) / target.name
        write_picture(picture, staged, record=record_text(record))
        self._staged.append((staged, target))

    def finish(self) -> dict[str, Any]:
        """Put everything in place; returns the record for --json."""
        raise_interrupt()
        if self._folder is None:
            return self.records[0]
        folder = Path(self._folder.name)
        if not self.siblings:
            _move_all(self._staged, folder)
            return self.records[0]
        from inlay.pictures.read import read_picture
        from inlay.pictures.sheet import contact_sheet
        from inlay.pictures.write import write_picture
        from inlay.result import record_text

        outputs = [str(target) for target in self.siblings[: len(self.records)]]
        first = self.records[0]
        summary = {key: first[key] for key in ("inlay", "verb", "method")}
        labels = list(self.targets.labels[: len(outputs)])
        summary |= {"sheet": str(self.out), "labels": labels, "outputs": outputs}
        sheet = contact_sheet(self._cells, labels, cell=_CELL)
        staged = folder / ("sheet" + self.out.suffix)
        write_picture(read_picture(sheet), staged, record=record_text(summary))
        _move_all([*self._staged, (staged, self.out)], folder)
        kept = [path for record in self.records for path in record.get("kept", [])]
        return {**summary, **({"kept": kept} if kept else {}), "records": self.records}


@dataclass(frozen=True)
class Order:
    """Labelled requests, where their pictures go, and how they are made and told of.

    notes go into the records too, what is said does not; record is what the result must be like.
    """

    requests: Sequence[tuple[str, Request]]
    output: str
    given: Reading
    previews: bool = False
    notes: Sequence[str] = ()
    said: Sequence[str] = ()
    record: Record | None = None

    def write(self) -> None:
        """Make every picture, put them where they belong, and say so; raises InputError."""
        from inlay.cli.progress import listening
        from inlay.composer import Composer
        from inlay.run import Options, run

        given = self.given
        targets = Targets.of(self.output, self.requests, self.previews)
        model = self.requests[0][1].model
        opened = {} if model is None else dict(model)
        composer = Composer(opened.pop("name", "embedded"), **opened)
        with (
            listening(
                quiet=given.quiet, bar=not given.json, preview_file=targets.preview
            ) as listener,
            Outputs(targets) as outputs,
        ):
            for line in self.said:
                listener.note(line)
            for number, (label, request) in enumerate(self.requests, 1):
                counted = f"{number} of {len(self.requests)}: " if len(self.requests) > 1 else ""
                listener.label = counted + label
                how = Options(
                    listener.step,
                    listener.phase,
                    self.previews,
                    given.max_pixels,
                    given.trust_remote_code,
                )
                result = run(request, composer, how)
                if self.record is not None:
                    self.record.check(result)
                for line in outputs.take(result, self.notes):
                    listener.note(line)
            summary = outputs.finish()
        tell(summary, as_json=given.json, quiet=given.quiet)


def _move_all(moves: Sequence[tuple[Path, Path]], folder: Path) -> None:
    """Move every file in place, or none: what was there comes back where one cannot be moved."""
    done: list[tuple[Path, Path, Path | None]] = []
    try:
        for number, (source, target) in enumerate(moves):
            kept = folder / f"old-{number}" if os.path.lexists(target) else None
            done.append((source, target, kept))
            if kept is not None:
                if target.is_dir() and not target.is_symlink():
                    raise IsADirectoryError(errno.EISDIR, "Is a directory")
                try:
                    os.link(target, kept, follow_symlinks=False)
                except (OSError, NotImplementedError):
                    # Not every file system has links; then the old file steps aside.
                    os.replace(target, kept)
            os.replace(source, target)
    except BaseException as error:
        for source, target, kept in reversed(done):
            with suppress(OSError):
                if kept is not None and os.path.lexists(kept):
                    os.replace(kept, target)
                elif kept is None and not source.exists():
                    target.unlink()
        if isinstance(error, OSError):
            raise InputError(
                f"{done[-1][1].name} cannot be written ({error.strerror}); give another output."
            ) from None
        raise


def _file_label(label: str) -> str:
    """A label as part of a file name: letters, digits and a few signs, on every system."""
    return re.sub(r"[^A-Za-z0-9=.,+_-]+", "_", label)[:150]


def tell(record: Mapping[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Say what was made: JSON, or one line for each file."""
    if as_json:
        print(json.dumps(record, allow_nan=False, indent=2))
    elif not quiet:
        for path in [*record.get("kept", []), *record["outputs"]]:
            print(path)
        if "sheet" in record:
            print(record["sheet"])
