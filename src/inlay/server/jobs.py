"""The store of a server: jobs, their events, and files by hash, in one folder that outlives it.

SQLite in WAL mode. Each change of a job is one transaction that asks for the state it starts from,
so that after a kill every job is found in one of its states: queued, running, and for good done,
failed or cancelled. Files are written beside their place and moved there whole.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from inlay.batch.engine import kind_of
from inlay.errors import InputError
from inlay.server.limits import Limits, Refusal, busy, gone

_TABLES = Path(__file__).with_name("jobs.sql")
_UNENDED = "state IN ('queued', 'running')"
# How many workers a job may end.
_DEATHS = 3
# What was used within so many seconds stays, however full the store is; how exactly that is known.
_FRESH, _TICK = 3600, 60

Event = tuple[int, str, str]


class File(BaseModel):
    """A stored file. `file` is its SHA-256 in hex, with .safetensors behind it for a concept."""

    file: str
    kind: Literal["picture", "concept"]
    width: int | None = None
    height: int | None = None
    has_alpha: bool = False
    class_name: str | None = None


class Job(BaseModel):
    """A job. position is its place in the queue, from 1, else 0; times are in seconds since 1970;
    images counts the pictures that it made, file and files are those, record is the first one's.
    """

    id: str
    verb: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    position: int
    step: int
    total: int
    error: str | None
    created: float
    started: float | None
    finished: float | None
    images: int
    request: dict[str, Any]
    record: dict[str, Any] | None
    file: str | None
    files: list[str]
    deaths: int = Field(exclude=True)

    @property
    def ended(self) -> bool:
        return self.state not in ("queued", "running")


class Store:
    """Jobs and files in a folder that no other server has open; safe in several threads.

    `listener` is called with a job's id after each change of it. Raises InputError where the folder
    cannot be used.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.limits, self.files, self.new = limits, folder / "files", folder / "new"
        self.listener: Callable[[str], None] = lambda job: None
        self._lock, self._work = threading.RLock(), threading.Condition()
        try:
            for path in (self.files, self.new):
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._base = sqlite3.connect(
                folder / "jobs.db", isolation_level=None, timeout=1, check_same_thread=False
            )
            self._base.executescript(_TABLES.read_text())
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"the folder {folder} cannot be used ({error}); is it another server's? Give one "
                "with --folder."
            ) from None
        self._base.row_factory = sqlite3.Row
        for path in self.new.iterdir():
            remove(path)
        # What was running when the last server was killed runs again.
        self._do("UPDATE jobs SET state = 'queued', step = 0 WHERE state = 'running'")

    def close(self) -> None:
        """Give the folder free."""
        with self._lock:
            self._base.close()

    def _do(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._base.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self, job: str = "") -> Iterator[None]:
        """All of what is done within, or nothing; whoever waits for the job then hears of it."""
        with self._lock:
            if self._base.in_transaction:
                yield
                return
            self._do("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._do("ROLLBACK")
                raise
            self._do("COMMIT")
        if job:
            self.listener(job)
            with self._work:
                self._work.notify_all()

    # Jobs

    def add(
        self, client: str, request: Mapping[str, Any], files: Sequence[str], key: str | None = None
    ) -> Job:
        """Put a request into the queue, with the files that it needs.

        A client's second one with the same key is the first one. Raises Refusal where the queue is
        full, a file is gone, or the key was that of another request.
        """
        text, job = json.dumps(request), secrets.token_urlsafe(16)
        with self._transaction(job):
            before = "SELECT id, request FROM jobs WHERE client = ? AND key = ?"
            for row in self._do(before, client, key):
                if row["request"] != text:
                    raise Refusal(
                        HTTPStatus.CONFLICT,
                        "the Idempotency-Key was that of another request; give a new one.",
                    )
                return self.job(row["id"])
            count = f"SELECT count(*) FROM jobs WHERE {_UNENDED} AND client = coalesce(?, client)"
            if self._do(count, None)[0][0] >= self.limits.queue:
                raise busy("the queue is full")
            if self._do(count, client)[0][0] >= self.limits.client_queue:
                raise busy("too many of your jobs are in the queue")
            self._do(
                "INSERT INTO jobs (id, client, key, request, created) VALUES (?, ?, ?, ?, ?)",
                *(job, client, key, text, time.time()),
            )
            for file in files:
                self.file(file)
            self._use(job, files)
            self._event(job, "state")
        return self.job(job)

    def job(self, job: str) -> Job:
        """A job by its id; raises Refusal where there is none."""
        for row in self._do("SELECT * FROM jobs WHERE id = ?", job):
            return self._read(row)
        raise gone("job of this id")

    def jobs(self, client: str, limit: int) -> list[Job]:
        """A client's jobs, the newest first."""
        mine = "SELECT * FROM jobs WHERE client = ? ORDER BY number DESC LIMIT ?"
        return [self._read(row) for row in self._do(mine, client, limit)]

    def _read(self, row: sqlite3.Row) -> Job:
        values = dict(row)
        request, files, records = (json.loads(values[n]) for n in ("request", "files", "records"))
        ahead = "SELECT count(*) FROM jobs WHERE state = 'queued' AND number <= ?"
        position = self._do(ahead, row["number"])[0][0] if row["state"] == "queued" else 0
        told = {"request": request, "verb": request["verb"], "position": position, "files": files}
        told |= {"file": files[0] if files else None, "images": len(records)}
        return Job(**{**values, **told, "record": records[0] if records else None})

    def counts(self) -> dict[str, int]:
        """How many jobs there are of each state."""
        rows = self._do("SELECT state, count(*) FROM jobs GROUP BY state")
        return {row[0]: row[1] for row in rows}

    def claim(self, seconds: float) -> Job | None:
        """The oldest job that waits, which is running now; None where there is none for so long."""
        with self._work:
            return self._claim() or (self._work.wait(seconds) and self._claim()) or None

    def _claim(self) -> Job | None:
        queue = self._do("SELECT id FROM jobs WHERE state = 'queued' ORDER BY number")
        return next((self.job(job) for (job,) in queue if self._starts(job)), None)

    def claim_alike(self, job: Job, most: int) -> list[Job]:
        """So many further jobs at most that may run together with a claimed one, running now: none
        that a worker has died of.
        """
        calm = "SELECT * FROM jobs WHERE state = 'queued' AND deaths = 0 ORDER BY number"
        if most < 1 or job.deaths or job.verb == "learn":
            return []
        waiting = (each for each in map(self._read, self._do(calm)) if each.verb == job.verb)
        alike = [each.id for each in waiting if kind_of(each.request) == kind_of(job.request)]
        return [self.job(each) for each in alike[:most] if self._starts(each)]

    def _starts(self, job: str) -> bool:
        """Whether a job runs from now on: another thread may have claimed or cancelled it."""
        change, queued = "state = 'running', started = ?, step = 0", "state = 'queued'"
        return self._change(job, change, "state", time.time(), where=queued)

    def advance(self, job: str, step: int, total: int, preview: str = "") -> None:
        """A running job's progress, with a picture of it, a JPEG in base64, where there is one."""
        told = {"step": step, "total": total}
        self._change(job, "step = ?, total = ?", "progress", step, total, data=told)
        if preview:
            url = {"image": f"data:image/jpeg;base64,{preview}"}
            self._change(job, "step = step", "preview", data=url)

    def finish(self, job: str, files: Sequence[str], records: Sequence[Mapping[str, Any]]) -> None:
        """A running job is done: its results, which are stored, and their records."""
        made = json.dumps(files), json.dumps(records)
        change = "state = 'done', finished = ?, files = ?, records = ?"
        with self._transaction(job):
            if self._change(job, change, "done", time.time(), *made):
                self._use(job, files)

    def fail(self, job: str, sentence: str) -> None:
        """A running job has failed for good."""
        change = "state = 'failed', finished = ?, error = ?"
        self._change(job, change, "done", time.time(), sentence)

    def cancel(self, job: str) -> None:
        """A job that has not ended is cancelled; whoever runs it sees that it does not run."""
        change = "state = 'cancelled', finished = ?"
        self._change(job, change, "done", time.time(), where=_UNENDED)

    def died(self, job: str, reason: str) -> None:
        """A running job has ended its worker: it waits again, but not for ever."""
        with self._transaction(job):
            self._change(job, "deaths = deaths + 1", "state")
            if self._do("SELECT 1 FROM jobs WHERE id = ? AND deaths >= ?", job, _DEATHS):
                self.fail(job, f"the job ended its worker {_DEATHS} times; the last time {reason}")
            self._change(job, "state = 'queued'", "state")

    def delete(self, job: str) -> None:
        """Forget a job; its files go once they are old."""
        with self._transaction(job):
            self._do("DELETE FROM jobs WHERE id = ?", job)

    def _change(
        self,
        job: str,
        change: str,
        event: str,
        *values: Any,
        data: Mapping[str, Any] | None = None,
        where: str = "state = 'running'",
    ) -> bool:
        """Change a job that is in such a state, and tell it as an event; whether it was.

        Of each name the last event is kept, which says all that those before it said.
        """
        with self._transaction(job):
            update = f"UPDATE jobs SET {change} WHERE id = ? AND {where} RETURNING id"
            if found := self._do(update, *values, job):
                self._event(job, event, data)
            return bool(found)

    def _event(self, job: str, name: str, data: Mapping[str, Any] | None = None) -> None:
        self._do("DELETE FROM events WHERE job = ? AND name = ?", job, name)
        insert = "INSERT INTO events (job, name, data) VALUES (?, ?, ?)"
        self._do(insert, job, name, json.dumps(data or {}))

    def events(self, job: str, after: int) -> list[Event]:
        """(id, name, data as JSON) of a job's events after one of them, in their order."""
        later = "SELECT id, name, data FROM events WHERE job = ? AND id > ? ORDER BY id"
        return [(row[0], row[1], row[2]) for row in self._do(later, job, after)]

    # Files

    def file(self, file: str) -> File:
        """A stored file, which counts as used now; raises Refusal where there is none."""
        now = time.time()
        # Not each time: a write waits for the disk.
        self._do("UPDATE files SET used = ? WHERE file = ? AND used < ?", now, file, now - _TICK)
        for (facts,) in self._do("SELECT facts FROM files WHERE file = ?", file):
            if (self.files / file).exists():
                return File(file=file, **json.loads(facts))
        raise gone(f"file {file[:80]!r}")

    def holds(self, file: str) -> bool:
        """Whether a file is stored."""
        return bool(self._do("SELECT 1 FROM files WHERE file = ?", file))

    def draft(self, suffix: str = "") -> Path:
        """A name for a file that is yet to be written, on the disk of the stored ones."""
        return self.new / f"{secrets.token_hex(32)}{suffix}"

    def keep(self, draft: Path, file: str, facts: Mapping[str, Any]) -> File:
        """Move a file to its place, named by its hash; raises Refusal where the store is full."""
        size = draft.stat().st_size
        if self.sweep(size) > 0:
            raise busy("the server's store is full")
        with self._transaction():
            os.replace(draft, self.files / file)
            insert = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)"
            self._do(insert, file, size, json.dumps(facts), time.time())
        return self.file(file)

    def _use(self, job: str, files: Sequence[str]) -> None:
        for file in files:
            self._do("INSERT OR IGNORE INTO uses VALUES (?, ?)", job, file)

    def sweep(self, more: int = 0) -> int:
        """Let go of what is old, and of the least used where there are too many bytes, with `more`
        that are yet to come; returns how many there are too many still.

        A finished job goes with its result. What a job in the queue needs stays.
        """
        now, total = time.time(), "SELECT coalesce(sum(size), 0) FROM files"
        excess = int(self._do(total)[0][0]) + more - self.limits.store_bytes
        old = now - self.limits.age
        self._do("DELETE FROM jobs WHERE finished < ?", old)
        spare = (
            "SELECT file, size, used FROM files WHERE used < ? AND file NOT IN "
            f"(SELECT file FROM uses JOIN jobs ON job = id WHERE {_UNENDED}) ORDER BY used"
        )
        for file, size, used in self._do(spare, max(old, now - _FRESH)):
            if used >= old and excess <= 0:
                break
            with self._transaction():
                self._do("DELETE FROM jobs WHERE instr(files, ?)", file)
                self._do("DELETE FROM files WHERE file = ?", file)
                (self.files / file).unlink(missing_ok=True)
            excess -= size
        return excess


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
