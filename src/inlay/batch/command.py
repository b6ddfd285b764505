"""batch: a manifest's pictures by many workers; what a user sees of it, and a report."""

from __future__ import annotations

import html
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from sqlite3 import Error
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

import typer

from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.batch.engine import Crew
    from inlay.batch.ledger import Ledger
    from inlay.batch.runner import Job

_FAILED = ("refused", "failed", "died", "late", "cancelled")
# Pictures and failures of the report.
_SHOWN, _LISTED = 24, 200
# Between two lines of progress, in seconds.
_EVERY = 1.0
_PAGE = """<!doctype html><meta charset="utf-8"><title>inlay batch</title>
<style>body{{font:16px sans-serif;margin:2em}}td{{padding:.2em}}img{{width:15em}}</style>
<h1>inlay batch</h1><table>{counts}</table>{pictures}<h2>Failures</h2><table>{failures}</table>
"""


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
    json: bool = flag(False, "Print progress as lines of JSON.")
    quiet: bool = flag(False, "Say nothing but errors.", None, "--quiet", "-q")

    def crew(self) -> Crew:
        """The workers that the options ask for; raises InputError."""
        from inlay.batch.engine import Actors, Processes

        if self.engine == "ray":
            return Actors(self.address, self.workers, self.timeout)
        if self.address is not None:
            raise InputError("--address is a Ray cluster's; give --engine ray, too.")
        cores = os.cpu_count() or 1
        count = self.workers or cores
        memory = None if self.memory is None else self.memory * 1_000_000
        threads = max(1, cores // count)
        return Processes(count, seconds=self.timeout, memory=memory, threads=threads)


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


@dataclass(eq=False)
class Batch:
    """What was ordered: a manifest's pictures in a folder, made when it is written.

    layers: the folder below it for what Job.layers says. counts are the rows by how they ended,
    "kept" where that was in an earlier run; seats those that each worker made.
    """

    manifest: str
    output: str
    given: Running
    layers: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    seats: Counter[int] = field(default_factory=Counter)
    total: int = 0

    def write(self, check: Callable[[], None]) -> int:
        """Make what is missing; the exit status is 1 where a row failed. Raises InputError, and
        KeyboardInterrupt that says what is done so far.
        """
        from inlay.batch.ledger import Ledger
        from inlay.batch.manifest import raw_rows

        self.output = self.output.removeprefix("file://").rstrip("/")
        self.total = sum(1 for _ in raw_rows(self.manifest))
        if "://" not in self.output:
            os.makedirs(self.output, exist_ok=True)
        with closing(Ledger(self.output)) as ledger:
            try:
                with closing(self.given.crew()) as crew:
                    self._run(ledger, crew, check)
            except (OSError, Error) as error:
                raise InputError(
                    f"{self.output} cannot be written ({error}); make room, and give the same "
                    "command again."
                ) from None
            except KeyboardInterrupt:
                said = f"interrupted; {self.said()}; the same command goes on from there."
                raise KeyboardInterrupt(said) from None
            finally:
                _sweep(self.output)
                with suppress(OSError, Error):
                    self._report(ledger)
        if not (self.given.quiet or self.given.json):
            print(f"{self.said()}; see {self.output}/report.html")
        return int(self.failed > 0)

    @property
    def failed(self) -> int:
        return sum(self.counts.values()) - self.counts["done"] - self.counts["kept"]

    def said(self) -> str:
        """How far it is, in words."""
        kept = f" ({self.counts['kept']} before)" if self.counts["kept"] else ""
        made = self.counts["done"] + self.counts["kept"]
        return f"{made} of {self.total} are done{kept}, {self.failed} failed"

    def _run(self, ledger: Ledger, crew: Crew, check: Callable[[], None]) -> None:
        from rich.console import Console
        from rich.live import Live

        from inlay.batch.engine import work

        console = Console(stderr=True)
        shown = console.is_terminal and not (self.given.quiet or self.given.json)
        started = told = time.monotonic()
        keys: dict[str, tuple[str, int]] = {}
        with (
            Live(console=console, auto_refresh=False, transient=True)
            if shown
            else nullcontext() as live
        ):
            for ended in work(self._jobs(ledger, keys), crew):
                check()
                if ended is not None:
                    seat, job, event = ended
                    ledger.end(job.name, *keys.pop(job.name), event)
                    self.counts[event.kind] += 1
                    self.seats[seat] += 1
                if time.monotonic() - told > _EVERY:
                    told = time.monotonic()
                    self._tell(told - started, live)
            self._tell(time.monotonic() - started, live)

    def _jobs(self, ledger: Ledger, keys: dict[str, tuple[str, int]]) -> Iterator[Job]:
        """The jobs that are to be done; what is wrong with a row is kept where it is read."""
        from inlay.batch.ledger import key_of
        from inlay.batch.manifest import read_rows
        from inlay.batch.runner import Event, Job

        for row in read_rows(self.manifest):
            try:
                if row.request is None:
                    raise InputError(row.problem)
                key = key_of(row.request, self.layers)
                if not ledger.wants(row.name, key, row.line):
                    self.counts["kept"] += 1
                    continue
            except InputError as error:
                told = Event("refused", str(error))
                ledger.end(f"line {row.line}: {row.name}", "", row.line, told)
                self.counts["refused"] += 1
                continue
            keys[row.name] = key, row.line
            layers = f"{self.output}/{self.layers}/{row.name}.npz" if self.layers else ""
            for path in (f"{self.output}/{row.name}", layers):
                if "://" not in path and path:
                    os.makedirs(os.path.dirname(path), exist_ok=True)
            request, output = row.request.model_dump(mode="json"), f"{self.output}/{row.name}"
            yield Job(row.name, request, output, remote=True, layers=layers)

    def _tell(self, seconds: float, live: Any) -> None:
        """Show how far it is: a view that changes, or a line of JSON."""
        made = sum(self.counts.values()) - self.counts["kept"]
        rate = made / max(seconds, 1e-6)
        left = round((self.total - made - self.counts["kept"]) / rate) if rate else None
        if self.given.json:
            told = {"total": self.total, **self.counts, "rate": round(rate, 2), "left_s": left}
            print(json.dumps({**told, "workers": dict(self.seats)}), flush=True)
        elif live is not None:
            seats = ", ".join(f"{seat + 1}: {count}" for seat, count in sorted(self.seats.items()))
            hours = "?" if left is None else f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
            lines = [self.said(), f"{rate:.2f} a second, {hours} left", f"by worker {seats}"]
            live.update("\n".join(lines), refresh=True)

    def _report(self, ledger: Ledger) -> None:
        """failed.jsonl, and report.html with the first pictures."""
        import fsspec

        with fsspec.open(f"{self.output}/failed.jsonl", "wt") as file:
            for row in ledger.rows(*_FAILED):
                told = {key: row[key] for key in ("line", "name", "state", "sentence")}
                file.write(json.dumps(told) + "\n")
        cell = "<tr><td>{}<td>{}".format
        failures = [
            cell(row["name"], html.escape(row["sentence"]))
            for row in islice(ledger.rows(*_FAILED), _LISTED)
        ]
        pictures = [row["name"] for row in islice(ledger.rows("done"), _SHOWN)]
        page = _PAGE.format(
            counts="".join(cell(kind, count) for kind, count in sorted(self.counts.items())),
            pictures="".join(
                f'<img src="{quote(name)}" title="{html.escape(name)}">' for name in pictures
            ),
            failures="".join(failures),
        )
        with fsspec.open(f"{self.output}/report.html", "wt") as file:
            file.write(page)


def _sweep(folder: str) -> None:
    """Take away what killed workers were writing."""
    if "://" not in folder:
        for path in Path(folder).rglob(".inlay-*.tmp"):
            path.unlink(missing_ok=True)
