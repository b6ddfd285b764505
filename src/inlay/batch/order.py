"""An order of many pictures: made, told of while it runs, and reported at its end."""

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
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from inlay.errors import InputError

if TYPE_CHECKING:
    from inlay.batch.command import Running
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
        try:
            if "://" not in self.output:
                os.makedirs(self.output, exist_ok=True)
        except OSError as error:
            reason = f"{self.output} cannot be a folder ({error.strerror})"
            raise InputError(f"{reason}; give another one.") from None
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
                else:
                    ledger.keep()
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
            cell(html.escape(row["name"]), html.escape(row["sentence"]))
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
