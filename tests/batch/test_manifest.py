"""Manifests: three formats say the same, and what is wrong is said of its row."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from inlay import InputError, Request
from inlay.batch.manifest import read_rows, schema
from inlay.cli import main

SUBJECTS = [
    {"picture": "cup.png", "box": [1, 2, 30, 40], "flip": True},
    {"picture": "d.png", "at": [3, 4]},
]
ROWS: list[dict[str, Any]] = [
    {"name": "001", "verb": "compose", "background": "a/b.png", "subjects": SUBJECTS,
     "method": {"name": "cdc", "prompt": "7", "num_inference_steps": 20}, "seed": 3},
    {"verb": "remove", "picture": "s3://bucket/x.png", "box": [1, 2, 3, 4], "name": "sub/two.jpg"},
    {"verb": "harmonize", "picture": "/abs/x.png", "mask": "m.png"},
]  # fmt: skip


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """A row by the dotted places of its values; lists of numbers are values."""
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list) and not isinstance(value[0], int):
        pairs = [(str(number), each) for number, each in enumerate(value)]
    else:
        return {place: value}
    found: dict[str, Any] = {}
    for key, each in pairs:
        found |= flat(each, f"{place}.{key}" if place else key)
    return found


def written(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    rows = [flat(row) for row in ROWS]
    columns = {key: None for row in rows for key in row}
    if kind == "jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in ROWS))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            texts = [
                {key: str(v).lower() if isinstance(v, bool) else v for key, v in row.items()}
                for row in rows
            ]
            for text in texts:
                # With brackets or without them.
                text |= {k: ",".join(map(str, v)) for k, v in text.items() if k.endswith("0.box")}
            writer.writerows(texts)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist([columns | row for row in rows]), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_every_format_says_the_same(tmp_path: Path, kind: str) -> None:
    rows = list(read_rows(str(written(tmp_path, kind))))
    assert [row.name for row in rows[:2]] == ["001.png", "sub/two.jpg"]
    # By its line, which only a table's rows do not have.
    assert (
        rows[2].name == {"jsonl": "000005.png", "csv": "000004.png", "parquet": "000003.png"}[kind]
    )
    here = [{**each, "picture": f"{tmp_path}/{each['picture']}"} for each in SUBJECTS]
    told = [
        {**ROWS[0], "background": f"{tmp_path}/a/b.png", "subjects": here},
        ROWS[1],
        {**ROWS[2], "mask": f"{tmp_path}/m.png"},
    ]
    for row, one in zip(rows, told, strict=True):
        assert row.request is not None, row.problem
        wanted = Request.of({key: value for key, value in one.items() if key != "name"})
        assert row.request.model_dump() == wanted.model_dump()


def test_what_is_wrong_is_said_of_its_row(tmp_path: Path) -> None:
    good = '{"verb": "remove", "picture": "x.png", "box": [1, 2, 3, 4]'
    lines = [good + "}", "[1]", "{", good + ', "name": "../up"}', good + ', "name": "/etc/x"}']
    lines += [
        good + ', "name": {"a": 1}}',
        good + ', "box.0": 3}',
        good + ', "colour": 3}',
        "[" * 9999,
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    rows = list(read_rows(str(path)))
    assert [row.line for row in rows] == list(range(1, 10))
    assert rows[0].request is not None and all(row.request is None for row in rows[1:])
    for row, words in zip(
        rows[1:],
        ("JSON", "JSON", "'../up'", "/etc/x", "name", "box", "colour", "JSON"),
        strict=True,
    ):
        assert words in row.problem


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.txt", b"", "expected one of .jsonl"),
        ("rows.jsonl", b"x" * (1 << 20) + b"y", "longer than"),
        ("rows.parquet", b"PAR1 no table", "cannot be read"),
        ("rows.csv", b"a,b\n\xff\xff", "cannot be read"),
    ],
)
def test_what_is_no_manifest_is_refused(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        list(read_rows(str(tmp_path / name)))
    with pytest.raises(InputError, match="cannot be read"):
        list(read_rows(str(tmp_path / "none.jsonl")))


def test_the_schema_describes_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "manifest"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == schema()
    assert [row["properties"]["verb"]["const"] for row in told["oneOf"]] == [
        "compose",
        "harmonize",
        "remove",
        "scene",
    ]
    assert all("name" in row["properties"] for row in told["oneOf"])
