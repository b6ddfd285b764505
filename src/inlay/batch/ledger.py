"""What became of each row of a batch, kept beside the results, so that nothing is done twice.

In a folder it is a SQLite file, which one command at a time may hold. On an object store, where no
file can be changed, it is read from parts and its news are added as another part, in Parquet; there
an object beside it says who holds it.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from inlay.batch.runner import Event
from inlay.errors import InputError, __version__, plain
from inlay.pictures.read import file_sha256
from inlay.request import Request
from inlay.result.record import names

_COLUMNS = ("name", "key", "state", "run", "line", "sentence", "paths", "seconds")
# Between two parts on an object store, and between two commits where rows come fast, in seconds.
_EVERY, _KEPT = 10.0, 0.05
# So often a claim on an object store is told anew, and so old it is nobody's, in seconds.
_BEAT, _GONE = 30.0, 300.0


def key_of(request: Request, layers: str = "") -> str:
    """A hash of all that a result depends on: the request, its inputs' bytes, and the weights.

    Of a URL it is what its store says of the object, of weights other than the package's own their
    files' sizes and times. Raises InputError for an input that is not there.
    """
    inputs = {}
    for place, source in request.inputs().items():
        try:
            inputs[place] = _state(str(source))
        except Exception:
            role, name = request.role(place), str(source)
            raise InputError(f"{role} {name} is not there or no file; expected one.") from None
    weights = {place: _stamp(name) for place, (_, name) in names(request).items()}
    told = [__version__, request.model_dump(mode="json"), inputs, weights, layers]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


class Ledger:
    """The rows of one folder of results.

    Raises InputError where another command holds it or it cannot be written.
    """

    def __init__(self, folder: str) -> None:
        self.run, self._remote = uuid.uuid4().hex, folder if "://" in folder else None
        self._claim = _Claim(folder, self.run) if self._remote else None
        self._spare = tempfile.TemporaryDirectory() if self._remote else None
        path = Path(self._spare.name if self._spare else folder, "ledger.sqlite")
        self._base = sqlite3.connect(path, timeout=1, isolation_level=None, check_same_thread=False)
        columns = ", ".join(_COLUMNS[1:])
        try:
            # Held until the process ends, however it does.
            self._base.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._base.execute("PRAGMA journal_mode = WAL")
            self._base.execute("PRAGMA synchronous = NORMAL")
            self._base.execute(f"CREATE TABLE IF NOT EXISTS rows (name PRIMARY KEY, {columns})")
            self._base.execute("BEGIN IMMEDIATE")
            self._base.execute("DELETE FROM rows WHERE state IS NULL")
        except sqlite3.OperationalError as error:
            raise InputError(
                f"{folder} is in use by another inlay batch, or cannot be written ({error}); wait "
                "for it or give another folder."
            ) from None
        self._kept = time.monotonic()
        self._written, self._news = time.monotonic(), list[tuple[Any, ...]]()
        if self._remote:
            self._read_parts(self._remote)
        # What is asked once a run.
        _tag.cache_clear()
        _stamp.cache_clear()

    def wants(self, name: str, key: str, line: int) -> bool:
        """Whether a row is to be made: it is new or changed, has failed, or its result is gone.

        Raises InputError for a name that this run has had.
        """
        known = self._base.execute(
            "SELECT key, state, run, line, paths FROM rows WHERE name = ?", (name,)
        ).fetchone()
        if known is not None and known[2] == self.run:
            raise InputError(f"the name {name} is line {known[3]}'s too; give each its own.")
        made = known is not None and known[:2] == (key, "done") and self._there(known[4])
        if made:
            told = "UPDATE rows SET run = ?, line = ? WHERE name = ?"
            self._base.execute(told, (self.run, line, name))
        else:
            self._put((name, key, None, self.run, line, "", "[]", 0.0))
        return not made

    def end(self, name: str, key: str, line: int, event: Event) -> None:
        """Keep how a row ended."""
        paths = json.dumps(list(event.paths))
        row = (name, key, event.kind, self.run, line, event.sentence, paths, event.seconds)
        self._put(row)
        if time.monotonic() - self._kept > _KEPT:
            self.keep()
        if self._remote:
            self._news.append(row)
            if time.monotonic() - self._written > _EVERY:
                self._write_part(self._remote)

    def keep(self) -> None:
        """Make sure of what was told, whatever happens to this process.

        Raises InputError where another command has taken the folder meanwhile.
        """
        if self._claim:
            self._claim.beat()
        self._base.execute("COMMIT")
        self._base.execute("BEGIN IMMEDIATE")
        self._kept = time.monotonic()

    def rows(self, *states: str) -> Iterator[dict[str, Any]]:
        """The rows of this run that ended in one of some states, in the manifest's order."""
        marks = ", ".join("?" * len(states))
        found = self._base.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM rows WHERE run = ? AND state IN ({marks}) "
            "ORDER BY line",
            (self.run, *states),
        )
        for row in found:
            told = dict(zip(_COLUMNS, row, strict=True))
            yield {**told, "paths": json.loads(told["paths"])}

    def close(self) -> None:
        """Let another command have it."""
        # On a full disk the last rows are made again.
        with suppress(sqlite3.OperationalError):
            self._base.execute("COMMIT")
        if self._remote:
            self._write_part(self._remote)
        self._base.close()
        if self._claim:
            self._claim.end()
        if self._spare:
            self._spare.cleanup()

    def _put(self, row: tuple[Any, ...]) -> None:
        self._base.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def _there(self, paths: str) -> bool:
        """Whether results are where they were put; an object store is not asked for each."""
        return bool(self._remote) or all(map(os.path.exists, json.loads(paths)))

    def _read_parts(self, folder: str) -> None:
        import fsspec
        from pyarrow import parquet

        system, place = fsspec.url_to_fs(f"{folder}/ledger")
        parts = system.ls(place, detail=True) if system.exists(place) else []
        for part in sorted(parts, key=lambda each: str(each["name"])):
            with system.open(part["name"], "rb") as file:
                for batch in parquet.ParquetFile(file).iter_batches():
                    for row in batch.to_pylist():
                        self._put(tuple(row[column] for column in _COLUMNS))

    def _write_part(self, folder: str) -> None:
        import fsspec
        import pyarrow
        from pyarrow import parquet

        if self._news:
            table = pyarrow.table(dict(zip(_COLUMNS, zip(*self._news, strict=True), strict=True)))
            # Sorted by name, later parts come later.
            name = f"{folder}/ledger/{time.time_ns():020d}-{self.run}.parquet"
            with fsspec.open(name, "wb") as file:
                parquet.write_table(table, file)
        self._written, self._news = time.monotonic(), []


class _Claim:
    """One command's hold on a folder of an object store: an object there, told anew now and then.

    One that is five minutes old, or of a process that has ended on this machine, is taken over.
    Raises InputError where another command holds it.
    """

    def __init__(self, folder: str, run: str) -> None:
        import fsspec

        self._system, root = fsspec.url_to_fs(folder)
        self._folder, self._place, self._run = folder, f"{root}/ledger.lock", run
        try:
            self._tell("create")
        except Exception:
            # Stores say in different words that it is there.
            if not self._system.exists(self._place):
                raise
            holder = self._holder()
            if time.time() - holder["time"] < _GONE and not self._ended(holder):
                raise self._refusal(holder) from None
            self._tell("overwrite")

    def beat(self) -> None:
        """Say that this command still runs."""
        if time.monotonic() - self._told > _BEAT:
            holder = self._holder()
            if holder["run"] != self._run:
                raise self._refusal(holder)
            self._tell("overwrite")

    def end(self) -> None:
        """Let another command have the folder."""
        if self._holder()["run"] == self._run:
            self._system.rm_file(self._place)

    def _tell(self, mode: str) -> None:
        told = {"run": self._run, "host": socket.gethostname(), "pid": os.getpid()}
        data = json.dumps({**told, "time": time.time()}).encode()
        self._system.pipe_file(self._place, data, mode=mode)
        self._told = time.monotonic()

    def _holder(self) -> dict[str, Any]:
        """Who the object says holds the folder; nobody where it is gone or says nothing."""
        told = {"run": "", "host": "", "pid": 0, "time": 0.0}
        with suppress(FileNotFoundError, ValueError, TypeError):
            self._system.invalidate_cache()
            told |= json.loads(self._system.cat_file(self._place))
        return told

    @staticmethod
    def _ended(holder: dict[str, Any]) -> bool:
        import psutil

        return holder["host"] == socket.gethostname() and not psutil.pid_exists(holder["pid"])

    def _refusal(self, holder: dict[str, Any]) -> InputError:
        host = plain(str(holder["host"]), 100)
        return InputError(
            f"{self._folder} is in use by another inlay batch on {host}; wait for it, or for five "
            "minutes if it was killed, or give another folder."
        )


def _state(source: str) -> str:
    """A hash of a file's bytes, or what a store says of an object; raises what it raises."""
    if "://" in source:
        return _tag(source)
    stat = os.stat(source)
    return _digest(source, stat.st_size, stat.st_mtime_ns)


@lru_cache(4096)
def _digest(path: str, size: int, changed: int) -> str:
    return file_sha256(Path(path))


@lru_cache(4096)
def _tag(url: str) -> str:
    import fsspec

    system, path = fsspec.url_to_fs(url)
    return str(system.ukey(path))


@lru_cache(4096)
def _stamp(name: str) -> list[Any]:
    """What tells whether the files of a name are those that they were."""
    path = Path(name)
    files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
    stats = [(str(file), file.stat()) for file in files]
    return [name, [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]]
