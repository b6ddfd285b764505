from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

import inlay
from inlay import Box, Composer, InputError
from inlay.cli.rerun import again
from inlay.pictures.read import read_picture
from inlay.pictures.write import write_picture
from inlay.record import (
    build_record,
    file_sha256,
    identify,
    read_back,
    record_text,
    resolve_inputs,
)


def _record(**changes: Any) -> dict[str, Any]:
    record = build_record(
        verb="remove",
        method="telea",
        preset=None,
        settings={"radius": 3},
        seed=5,
        backbone=None,
        window=Box(1, 2, 30, 40),
        region=Box(3, 4, 5, 6),
        inputs={"picture": np.zeros((4, 4, 3), np.uint8), "mask": None},
        request={},
        notes=["a note"],
        timings={"run_s": 0.5},
    )
    return {**record, **changes}


def _picture(path: Path, record: Any) -> Path:
    text = record if isinstance(record, str) else record_text(record)
    write_picture(read_picture(data.chelsea()[:64, :80]), path, record=text)
    return path


def _pasted(folder: Path, suffix: str = ".png", **more: Any) -> Path:
    """A composite made from files in `folder`, saved there with its record."""
    background, subject = folder / "bg.png", folder / "cup.png"
    if not background.exists():
        Image.fromarray(data.astronaut()).save(background)
        cup = data.coffee()[60:260, 180:420]
        alpha = np.full((*cup.shape[:2], 1), 255, np.uint8)
        alpha[:20] = 0
        Image.fromarray(np.concatenate([cup, alpha], 2)).save(subject)
    result = Composer().compose(
        str(background), str(subject), at=(200, 240), scale=0.4, method="paste", seed=9, **more
    )
    out = folder / f"out{suffix}"
    result.save(out)
    return out


def test_a_record_says_all_that_it_should() -> None:
    record = _record()
    assert record["inlay"] == inlay.__version__
    assert record["window"] == {"x": 1, "y": 2, "width": 30, "height": 40}
    assert set(record["inputs"]) == {"picture"}
    assert record["model"] is None and record["device"] is None
    inside = json.loads(record_text(record))
    assert inside == {key: value for key, value in record.items() if key != "timings"}
    assert "\n" not in record_text(record)


def test_identify_hashes_the_bytes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    Image.fromarray(data.chelsea()).save(path)
    assert identify(path) == {"path": str(path), "sha256": file_sha256(path)}
    assert identify(str(path))["sha256"] == read_picture(path).sha256
    array = data.chelsea()
    assert identify(array) == identify(array.copy())
    assert identify(array) != identify(array[::-1])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_the_record_travels_inside_the_picture(tmp_path: Path, suffix: str) -> None:
    out = _pasted(tmp_path, suffix)
    record = read_back(out)
    assert (record.verb, record.method, record.seed) == ("compose", "paste", 9)
    assert record.request.at == [200, 240]
    assert record.inputs["background"].sha256 == file_sha256(tmp_path / "bg.png")
    assert record.inputs["subject"].sha256 == file_sha256(tmp_path / "cup.png")


def test_a_record_makes_its_picture_again(tmp_path: Path) -> None:
    out = _pasted(tmp_path, rotate=30.0, flip=True)
    record = read_back(out)
    result = again(record, resolve_inputs(record, tmp_path), None)
    assert np.array_equal(np.asarray(result.image), np.asarray(Image.open(out)))


def test_inputs_are_found_beside_the_picture(tmp_path: Path) -> None:
    out = _pasted(tmp_path)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("bg.png", "cup.png", out.name):
        (tmp_path / name).rename(moved / name)
    found = resolve_inputs(read_back(moved / out.name), moved)
    assert found == {"background": str(moved / "bg.png"), "subject": str(moved / "cup.png")}


def test_a_changed_or_missing_input_is_named(tmp_path: Path) -> None:
    record = read_back(_pasted(tmp_path))
    Image.fromarray(data.rocket()).save(tmp_path / "bg.png")
    with pytest.raises(InputError, match=r"the background .*bg\.png has changed"):
        resolve_inputs(record, tmp_path)
    (tmp_path / "bg.png").unlink()
    with pytest.raises(InputError, match=r"the background .*bg\.png is not there"):
        resolve_inputs(record, tmp_path)


def test_inputs_from_memory_cannot_be_found_again(tmp_path: Path) -> None:
    record = read_back(_picture(tmp_path / "a.png", _record()))
    with pytest.raises(InputError, match="the picture was handed over in memory"):
        resolve_inputs(record, tmp_path)


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ("{", "damaged"),
        ("[]", "damaged|no record"),
        ('"text"', "damaged|no record"),
        ("[" * 100_000, "damaged|no record"),
        (json.dumps({"inlay": "0.1.0"}), "damaged"),
        (_record(seed=-1), "damaged"),
        (_record(seed="x"), "damaged"),
        (_record(settings=3), "damaged"),
        (_record(inputs={"picture": 3}), "damaged"),
        (_record(verb="explode"), "is of 'explode'"),
        (_record(sheet="a.png", outputs=["/tmp/a-seed=1.png"]), "contact sheet.*a-seed=1.png"),
        (_record(sheet="a.png", outputs=[]), "contact sheet"),
    ],
)
def test_damaged_records_are_refused(tmp_path: Path, record: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_back(_picture(tmp_path / "a.png", record))


def test_a_picture_without_a_record_is_refused(tmp_path: Path) -> None:
    Image.fromarray(data.chelsea()).save(tmp_path / "cat.png")
    with pytest.raises(InputError, match=r"cat\.png holds no record"):
        read_back(tmp_path / "cat.png")
