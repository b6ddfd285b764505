"""A manifest: requests as lines of JSON, of CSV or as rows of Parquet, each with its result's name.

It is streamed: nothing here holds more than a few rows, whatever their number.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Any

from inlay.errors import InputError, plain, show
from inlay.request import KINDS, Request
from inlay.result.record import with_inputs

# Of a line, in bytes: as much as a request in a file may have.
_LONGEST = 1 << 20
_BATCH, _DEEPEST = 256, 8
_FORMATS = (".jsonl", ".csv", ".parquet")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp")
# Cells of a CSV that stay text, even where they read as a number, by the last part of their path.
_TEXT = ("name", "verb", "picture", "mask", "background", "prompt", "negative_prompt", "preset")


@dataclass(frozen=True)
class Row:
    """A row: its line or number, from 1, its result's file, what it says beside its request, and
    that, whose pictures' paths begin with the manifest's folder; or None, and what is wrong.
    """

    line: int
    name: str
    request: Request | None
    problem: str = ""
    beside: Mapping[str, Any] = field(default_factory=dict)


def read_rows(manifest: str, beside: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a manifest: a path or an fsspec URL that ends in .jsonl, .csv or .parquet.

    A column whose name has dots is a place in the request, like subjects.0.box. Cells of a CSV are
    read as JSON where they are JSON, as a list where they are numbers with commas, else as text;
    an empty one says nothing. Columns named in `beside` are no part of the request. Raises
    InputError where the manifest itself cannot be read.
    """
    base = manifest.replace(os.sep, "/").rpartition("/")[0]
    for line, data in raw_rows(manifest):
        name = f"{line:06d}.png"
        try:
            told = _nested(data)
            name = _file_name(told.pop("name", line if line > 999_999 else name))
            more = {key: told.pop(key) for key in beside if key in told}
            yield Row(line, name, _joined(Request.of(told), base), beside=more)
        except InputError as error:
            yield Row(line, name, None, str(error))


def raw_rows(manifest: str) -> Iterator[tuple[int, Any]]:
    """The rows as they stand there, numbered: a mapping, or what else a line of JSON holds."""
    import fsspec

    suffix = PurePosixPath(manifest).suffix.lower()
    if suffix not in _FORMATS:
        raise InputError(f"{show(manifest)} is no manifest; expected one of {', '.join(_FORMATS)}.")
    try:
        with fsspec.open(manifest, "rb") as file:
            yield from {".jsonl": _lines, ".csv": _cells, ".parquet": _table}[suffix](file)
    except InputError:
        raise
    except Exception as error:
        reason = plain(str(error) or type(error).__name__, 200)
        raise InputError(f"the manifest {show(manifest)} cannot be read ({reason}).") from None


def schema() -> dict[str, Any]:
    """The JSON schema of a row."""
    rows = [Request.schema_of(verb) for verb in KINDS]
    says = "of the result's file, a png where it has no suffix; without one, the row's number"
    for row in rows:
        row["properties"]["name"] = {"type": "string", "description": says}
    return {"title": "Row of a manifest", "oneOf": rows}


def _lines(file: Any) -> Iterator[tuple[int, Any]]:
    # Those of a store know no longest line by themselves.
    lines, number = io.BufferedReader(file), 0
    while line := lines.readline(_LONGEST + 1):
        number += 1
        if len(line) > _LONGEST:
            raise InputError(f"line {number} is longer than {_LONGEST} bytes; expected a request.")
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError):
                # Said of the row, as of any other that is wrong.
                yield number, None


def _cells(file: IO[bytes]) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""))
    for row in reader:
        told = {key: text for key, text in row.items() if text}
        if None in told or len(row) > len(told) + list(row.values()).count(""):
            # Too many cells, or too few.
            yield reader.line_num, None
        else:
            yield reader.line_num, {key: _cell(key, text) for key, text in told.items()}


def _cell(key: str, text: str) -> Any:
    if key.rpartition(".")[2] in _TEXT:
        return text
    for form in (text, f"[{text}]"):
        try:
            return json.loads(form)
        except (ValueError, RecursionError):
            continue
    return text


def _table(file: IO[bytes]) -> Iterator[tuple[int, Any]]:
    from pyarrow import parquet

    number = 0
    for batch in parquet.ParquetFile(file).iter_batches(batch_size=_BATCH):
        for row in batch.to_pylist():
            number += 1
            yield number, _without_none(row)


def _without_none(value: Any) -> Any:
    """A table has a cell for everything; what is empty says nothing."""
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, list) else value


def _nested(data: Any) -> dict[str, Any]:
    """A row with its dotted keys as the places that they name; raises InputError."""
    if not isinstance(data, dict):
        raise InputError("it is no JSON object or has not a cell for each column.")
    told: dict[str, Any] = {}
    for key, value in data.items():
        inner: Any = told
        *above, last = key.split(".")[:_DEEPEST]
        for part in above:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise InputError(f"{show(key)} goes into {show(part)}, which is given whole.")
        inner[last] = value
    return {key: _listed(value) for key, value in told.items()}


def _listed(value: Any) -> Any:
    """Mappings whose keys are 0, 1, 2, … as lists."""
    if not isinstance(value, dict):
        return value
    inner = {key: _listed(each) for key, each in value.items()}
    numbered = [str(number) for number in range(len(inner))]
    return [inner[key] for key in numbered] if inner and set(inner) == set(numbered) else inner


def _file_name(name: Any) -> str:
    """The file that a result is called, below the output's folder; raises InputError."""
    path = PurePosixPath(str(name).replace("\\", "/"))
    parts = path.parts
    odd = any(part in ("..", "/") or part.startswith(".") or len(part) > 200 for part in parts)
    if not isinstance(name, (str, int)) or not parts or odd or not str(name).isprintable():
        raise InputError(f"name is {show(name)}; expected a file's name, as of this row's result.")
    return str(path) if path.suffix.lower() in _SUFFIXES else f"{path}.png"


def _joined(request: Request, base: str) -> Request:
    """The request with relative paths of pictures as those from the manifest's folder."""
    if not base:
        return request
    paths = {place: str(source) for place, source in request.inputs().items()}
    paths = {
        place: f"{base}/{path}"
        for place, path in paths.items()
        if "://" not in path and not os.path.isabs(path)
    }
    return with_inputs(request, paths) if paths else request
