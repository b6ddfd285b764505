"""JPEG to JPEG: what did not change is the same to the coefficient, and what is lost is said."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn
from skimage import data

import profiles
from inlay.composer import Composer
from inlay.pictures.arrays import Box
from inlay.pictures.picture import Picture
from inlay.pictures.read import read_picture, read_record
from inlay.pictures.write import write_picture
from photos import cup

jpeglib = pytest.importorskip("jpeglib")

Log = pytest.LogCaptureFixture
CAT = data.chelsea()
BOX = Box(101, 67, 60, 50)
RECORD = '{"inlay":"0.1"}'
ADOBE = profiles.matrix_profile(profiles.ADOBE, profiles.gamma(2.2))


def encoded(photo: NDArray[Any], mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


CAT_IN_JPEG = np.asarray(Image.open(io.BytesIO(encoded(CAT))))


def changed(path: Path, box: Box = BOX) -> Picture:
    """The picture of a file, its negative inside a box."""
    picture = read_picture(path)
    return picture.patched(box, 255 - picture.crop(box))


def write(source: bytes, folder: Path, box: Box = BOX) -> tuple[Picture, Path]:
    """Change the picture of a file's bytes and write it: what was to be written, and where."""
    (folder / "a.jpg").write_bytes(source)
    picture = changed(folder / "a.jpg", box)
    write_picture(picture, folder / "o.jpg", record=RECORD)
    return picture, folder / "o.jpg"


def off(first: NDArray[Any], second: NDArray[Any], box: Box = BOX) -> tuple[int, int]:
    """How many pixels outside a box differ, and by how much at most."""
    steps = np.abs(first.astype(int) - second.astype(int)).reshape(*first.shape[:2], -1).max(-1)
    steps[box.slices] = 0
    return np.count_nonzero(steps), steps.max()


KINDS = {
    "4:4:4": (encoded(CAT, subsampling=0, quality=85), BOX),
    "4:2:2": (encoded(CAT, subsampling=1, quality=85), BOX),
    "4:2:0": (encoded(CAT, subsampling=2, quality=85), BOX),
    "progressive": (encoded(CAT, quality=75, progressive=True), BOX),
    "restarts": (encoded(CAT, quality=75, restart_marker_blocks=4), BOX),
    "grey": (encoded(CAT, "L", quality=90), BOX),
    "best": (encoded(CAT, quality=100, subsampling=0), BOX),
    "odd": (encoded(CAT[:297, :443], quality=60), Box(383, 267, 60, 30)),
    "tiny": (encoded(CAT[:5, :7], quality=80), Box(0, 0, 2, 2)),
    "comments": (encoded(CAT).replace(b"\xff\xdb", b"\xff\xfe\0\3a" * 40 + b"\xff\xdb", 1), BOX),
    "filled": (encoded(CAT).replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1), BOX),
    "no end": (encoded(CAT)[:-2], BOX),
    "stray": (encoded(CAT)[:-2] + b"\0\0\1\2\xff\xd9", BOX),
}


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_without_a_change_keep_their_coefficients(
    kind: str, tmp_path: Path, caplog: Log, capfd: pytest.CaptureFixture[str]
) -> None:
    source, box = KINDS[kind]
    with caplog.at_level(logging.INFO, "inlay"):
        made, path = write(source, tmp_path, box)
    assert capfd.readouterr().err == ""
    before, after = (jpeglib.read_dct(tmp_path / name) for name in ("a.jpg", "o.jpg"))
    assert np.array_equal(before.samp_factor, after.samp_factor)
    factors = before.samp_factor
    for number, name in enumerate(("Y", "Cb", "Cr")[: len(factors)]):
        assert np.array_equal(before.get_component_qt(number), after.get_component_qt(number))
        high, wide = 8 * factors[0] // factors[number]
        same = (getattr(before, name) == getattr(after, name)).all(axis=(2, 3))
        same[box.y // high : -(-box.bottom // high), box.x // wide : -(-box.right // wide)] = True
        assert same.all()
    back = read_picture(path)
    assert back.mode == made.mode
    assert read_record(path) == RECORD
    # The box is written as well as its tables allow, all else to the very value but for a rim.
    inside = made.samples[box.slices].astype(int) - back.samples[box.slices]
    assert kind == "tiny" or np.abs(inside).mean() < 6
    high, wide = 8 * factors[0] + 1
    rim = Box(box.x - wide, box.y - high, box.width + 2 * wide, box.height + 2 * high)
    whole = Box(0, 0, *made.size)
    assert off(made.samples, back.samples, rim.intersect(whole) or rim) == (0, 0)
    assert "anew" not in caplog.text


def test_new_blocks_are_those_of_the_definition(tmp_path: Path) -> None:
    made, path = write(encoded(CAT, "L", quality=90), tmp_path, Box(64, 40, 16, 24))
    jpeg = jpeglib.read_dct(path)
    for y, x in np.ndindex(3, 2):
        block = made.samples[40 + 8 * y : 48 + 8 * y, 64 + 8 * x : 72 + 8 * x]
        exact = dctn(block - 128.0, norm="ortho") / jpeg.qt[0]
        assert np.array_equal(jpeg.Y[5 + y, 8 + x], np.rint(exact))


def test_new_chroma_is_that_of_other_encoders(tmp_path: Path) -> None:
    made, _ = write(encoded(CAT, subsampling=2, quality=90), tmp_path)
    with Image.open(tmp_path / "a.jpg") as image:
        tables = image.quantization  # type: ignore[attr-defined]
    (tmp_path / "b.jpg").write_bytes(encoded(made.samples, qtables=tables, subsampling=2))
    ours, theirs = (jpeglib.read_dct(tmp_path / name) for name in ("o.jpg", "b.jpg"))
    for name, blocks in (
        ("Y", np.s_[9:14, 13:20]),
        ("Cb", np.s_[5:7, 7:10]),
        ("Cr", np.s_[5:7, 7:10]),
    ):
        apart = getattr(ours, name)[blocks] - getattr(theirs, name)[blocks]
        assert np.abs(apart).max() <= 1
        assert np.abs(apart).mean() < 0.05


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(CAT, exif=exif)


UNKEPT = {
    "turned": turned(6),
    "inks": encoded(CAT, "CMYK"),
    "rgb": encoded(CAT, keep_rgb=True),
    "upside down": turned(3),
    "png": cv2.imencode(".png", CAT)[1].tobytes(),
}


def check_note(made: Picture, path: Path, box: Box, caplog: Log) -> None:
    """The note names how far pixels outside the box are off, at most and on average."""
    steps = np.abs(made.samples.astype(int) - read_picture(path).samples)
    steps[box.slices] = 0
    words = f"which changes pixels outside the region by up to {steps.max()}, {steps.mean():.2f} on"
    assert words in caplog.messages[-1]
    assert steps.max() > 0


@pytest.mark.parametrize("kind", UNKEPT)
def test_what_cannot_be_kept_is_encoded_whole_and_said(
    kind: str, tmp_path: Path, caplog: Log, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "inlay"):
        made, path = write(UNKEPT[kind], tmp_path)
    assert capfd.readouterr().err == ""
    assert read_picture(path).size == made.size
    check_note(made, path, BOX, caplog)


@pytest.mark.parametrize("lost", [True, False], ids=["lost", "changed"])
def test_a_background_that_is_not_there_any_more(lost: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(CAT))
    picture = changed(path)
    path.write_bytes(encoded(CAT[::-1]))
    if lost:
        path.unlink()
    write_picture(picture, tmp_path / "o.jpg", record=RECORD)
    back = read_picture(tmp_path / "o.jpg")
    assert np.array_equal(back.samples[:32], CAT_IN_JPEG[:32])


def test_without_jpeglib_the_extra_is_named(
    tmp_path: Path, caplog: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jpeglib", None)
    with caplog.at_level(logging.INFO, "inlay"):
        made, path = write(encoded(CAT), tmp_path)
    assert "inlay[jpeg]" in caplog.text
    check_note(made, path, BOX, caplog)


def test_what_is_said_of_a_picture_is_what_is_new(tmp_path: Path) -> None:
    source = encoded(CAT, comment=b"old", icc_profile=ADOBE, dpi=(300, 300))
    _, kept = write(source, tmp_path)
    picture = changed(tmp_path / "a.jpg")
    write_picture(picture, tmp_path / "whole.jpg", record=RECORD)
    with Image.open(kept) as ours, Image.open(tmp_path / "whole.jpg") as whole:
        assert ours.info == whole.info
        assert ours.info["icc_profile"] == ADOBE
        assert dict(ours.getexif()) == dict(whole.getexif())
        assert ours.getexif().get_ifd(0x8769) == whole.getexif().get_ifd(0x8769)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_other_formats_lose_nothing(suffix: str, tmp_path: Path, caplog: Log) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(CAT))
    picture, path = changed(tmp_path / "a.jpg"), tmp_path / f"o.{suffix}"
    with caplog.at_level(logging.INFO, "inlay"):
        write_picture(picture, path, record=RECORD)
    assert np.array_equal(picture.samples, read_picture(path).samples)
    assert caplog.messages == []


def test_a_result_saved_as_jpeg_is_its_background_outside(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(CAT, quality=90))
    result = Composer().compose(tmp_path / "a.jpg", cup(), box=BOX, method="paste")
    result.save(tmp_path / "o.jpg")
    before, after = (read_picture(tmp_path / name).samples for name in ("a.jpg", "o.jpg"))
    assert off(before, after, result.region.grown(17)) == (0, 0)
    assert (before != after).any()
