"""Writing: what each format keeps, the record inside, and nothing half-written."""

from __future__ import annotations

import io
import json
import logging
import os
import resource
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from skimage import data

import profiles
from inlay import Box, InputError
from inlay.pictures import read
from inlay.pictures.picture import Picture, Stored
from inlay.pictures.read import read_picture, read_record
from inlay.pictures.write import check_output, write_picture
from photos import cup

PHOTO = data.chelsea()[60:140, 100:220]
RECORD = json.dumps({"inlay": "0.1", "prompt": "a cat"})
ADOBE = profiles.matrix_profile(profiles.ADOBE, profiles.gamma(2.2))
GREY = profiles.grey_profile(profiles.gamma(2.2))
COMMENT = 0x9286


def comment(text: bytes) -> Image.Exif:
    """EXIF whose UserComment holds this."""
    exif = Image.Exif()
    exif[0x8769] = {COMMENT: text}
    return exif


SUFFIXES = ["png", "jpg", "jpeg", "webp", "avif", "tif", "tiff", "bmp"]
FREE = ("webp", "avif")
CHANNELS = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}


def picture(mode: str, depth: int = 8, icc: bytes | None = None) -> Picture:
    photo = np.dstack([PHOTO, PHOTO[..., ::-1]])
    samples = photo[..., : CHANNELS[mode][0]] if CHANNELS[mode] else photo[..., 0]
    if depth == 16:
        samples = samples.astype(np.uint16) * 256 + 77
    return Picture(np.ascontiguousarray(samples), mode, icc, "test", "0", None)


@settings(deadline=None, max_examples=60)
@given(
    suffix=st.sampled_from(["png", "tif"]),
    mode=st.sampled_from(["L", "LA", "RGB", "RGBA", "CMYK"]),
    deep=st.booleans(),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    draw=st.data(),
)
def test_png_and_tiff_keep_every_sample(
    suffix: str, mode: str, deep: bool, size: tuple[int, int], draw: st.DataObject
) -> None:
    if mode == "CMYK" and (suffix == "png" or deep):
        mode = "RGB"
    dtype = np.uint16 if deep else np.uint8
    shape = (*size, *CHANNELS[mode])
    samples = draw.draw(arrays.arrays(dtype, shape, elements=st.integers(0, np.iinfo(dtype).max)))
    record = draw.draw(st.sampled_from([None, RECORD, '{"inlay": "\\u00e9\\u6f22"}']))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{suffix}"
        write_picture(Picture(samples, mode, None, "test", "0", None), path, record=record)
        back = read_picture(path)
        assert back.mode == mode
        assert back.samples.dtype == dtype
        assert np.array_equal(back.samples, samples)
        assert read_record(path) == record
        assert os.listdir(folder) == [f"a.{suffix}"]


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
def test_tiff_is_read_by_others(tmp_path: Path, mode: str, deep: bool) -> None:
    source = picture(mode, 16 if deep else 8, None)
    write_picture(source, tmp_path / "a.tif", record=RECORD)
    with Image.open(tmp_path / "a.tif") as image:
        image.load()
        assert image.size == source.size
        if not deep:
            assert np.array_equal(np.asarray(image), source.samples)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        page = file.pages[0]
        assert page.shape == source.samples.shape  # type: ignore[union-attr]
        assert page.bitspersample == source.depth  # type: ignore[union-attr]


def test_16_bit_png_is_read_by_others(tmp_path: Path) -> None:
    import cv2

    source = picture("RGB", 16, ADOBE)
    write_picture(source, tmp_path / "a.png", record=RECORD)
    found = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    assert found is not None
    assert np.array_equal(found[..., ::-1], source.samples)
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert image.info["inlay"] == RECORD
        assert image.info["icc_profile"] == ADOBE


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK"])
def test_every_mode_into_every_format(tmp_path: Path, mode: str, depth: int, suffix: str) -> None:
    source = picture(mode, depth)
    path = tmp_path / f"a.{suffix}"
    write_picture(source, path, record=RECORD)
    back = read_picture(path)
    assert back.size == source.size
    assert read_record(path) == (None if suffix == "bmp" else RECORD)
    kept = {"png": 16, "tif": 16, "tiff": 16}.get(suffix, 8)
    if mode != "CMYK":
        assert back.depth == min(kept, depth)
    holds_alpha = suffix in ("png", "webp", "avif", "tif", "tiff")
    assert (back.alpha() is not None) == (holds_alpha and mode in ("LA", "RGBA"))
    if suffix in ("jpg", "jpeg", "tif", "tiff"):
        assert (back.mode == "CMYK") == (mode == "CMYK")
    # Transparent colours are free in these.
    weight = (
        1.0 if source.alpha() is None or suffix not in FREE else source.alpha()[..., None] > 0.1
    )
    expected, alpha = source.rgb(), source.alpha()
    if alpha is not None and not holds_alpha:
        expected = expected * alpha[..., None] + 1 - alpha[..., None]
    error = np.abs(back.rgb() - expected) * weight
    assert error.mean() < (0.03 if suffix in ("jpg", "jpeg", *FREE) else 0.003)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_profiles_are_kept_or_lived_through(tmp_path: Path, suffix: str) -> None:
    cases = [("RGB", ADOBE), ("L", GREY), ("CMYK", profiles.cmyk_profile())]
    for mode, icc in cases:
        source = picture(mode, 8, icc)
        path = tmp_path / f"{mode}.{suffix}"
        write_picture(source, path)
        back = read_picture(path)
        keeps = {
            "png": mode != "CMYK", "bmp": False, "webp": mode == "RGB", "avif": mode == "RGB",
        }.get(suffix, True)  # fmt: skip
        assert (back.icc == icc) == keeps
        if not keeps:
            assert back.icc is None
        lossy = suffix in ("jpg", "jpeg", *FREE)
        assert np.abs(back.rgb() - source.rgb()).mean() < (0.04 if lossy else 0.003)
        if keeps and not lossy:
            assert np.array_equal(back.samples, source.samples)


def test_jpeg_quality_is_high_and_chroma_whole(tmp_path: Path) -> None:
    photo = data.astronaut()
    write_picture(read_picture(photo), tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
    error = read_picture(tmp_path / "a.jpg").samples.astype(float) - photo
    assert 10 * np.log10(255**2 / (error**2).mean()) > 38


def test_what_is_dropped_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "inlay")
    write_picture(picture("RGBA"), tmp_path / "a.jpg")
    assert "no alpha; it lies on white" in caplog.text
    write_picture(picture("RGB", 16), tmp_path / "b.webp")
    assert "8 bits" in caplog.text
    write_picture(picture("RGB"), tmp_path / "c.bmp", record=RECORD)
    assert "no record" in caplog.text
    write_picture(picture("RGB"), tmp_path / "d.jpg", record='{"a": "' + "x" * 70000 + '"}')
    assert "too long" in caplog.text
    assert read_record(tmp_path / "d.jpg") is None


def test_16_bits_are_rounded_not_cut(tmp_path: Path) -> None:
    levels = np.arange(0, 65536, 7, dtype=np.uint16)[None]
    write_picture(Picture(levels, "L", None, "test", "0", None), tmp_path / "a.bmp")
    assert np.array_equal(read_picture(tmp_path / "a.bmp").samples, np.round(levels / 257))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "avif", "tif"])
def test_records_of_others_are_not_ours(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(PHOTO).save(path, exif=comment(b"ASCII\0\0\0a holiday").tobytes())
    assert read_record(path) is None
    write_picture(read_picture(path), path)
    assert read_record(path) is None
    if suffix == "tif":
        return
    for bad in (b"", b"{", b"ASCII\0\0\0{\xff", b"UNICODE\0{", b"\0" * 8):
        Image.fromarray(PHOTO).save(path, exif=comment(bad))
        assert read_record(path) is None
    cut = comment(b"ASCII\0\0\0{}").tobytes()[:-9] + b"\xff" * 5
    Image.fromarray(PHOTO).save(path, exif=cut)
    assert read_record(path) is None


def test_records_of_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    for path in (tmp_path / "a.png", tmp_path, tmp_path / "none.png"):
        with pytest.raises(InputError):
            read_record(path)


def test_an_existing_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_picture(picture("RGB"), path)
    before = path.stat().st_ino
    write_picture(picture("L"), path)
    assert path.stat().st_ino != before
    assert read_picture(path).mode == "L"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    link = tmp_path / "link.png"
    link.symlink_to(path)
    write_picture(picture("RGB"), link)
    assert link.is_symlink()
    assert read_picture(path).mode == "RGB"
    assert sorted(os.listdir(tmp_path)) == ["a.png", "link.png"]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "avif", "tif"])
def test_a_failure_leaves_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    write_picture(picture("RGB"), path)
    old = path.read_bytes()
    # A text that cannot be encoded: the failure comes when the file is begun.
    with pytest.raises(UnicodeEncodeError):
        write_picture(picture("RGB"), path, record='{"a": "\ud800"}')
    assert path.read_bytes() == old
    # A full disk, as far as this process can see.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(InputError, match="cannot be written"):
            write_picture(picture("RGB"), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == [f"a.{suffix}"]


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "file").write_text("x")
    places: list[object] = [
        tmp_path / "a.gif", tmp_path / "a", tmp_path / "a.png.exe", "", ".png", "a\0.png",
        tmp_path / "none" / "a.png", tmp_path / "folder.png", tmp_path / "pipe.png",
        tmp_path / "file" / "a.png", tmp_path / ("n" * 300 + ".png"), "/proc/a.png",
        "/dev/null", tmp_path / ("d" * 5000) / "a.png", None, 3,
    ]  # fmt: skip
    listed = sorted(os.listdir(tmp_path))
    for place in places:
        for call in (check_output, lambda p: write_picture(picture("RGB"), p)):
            with pytest.raises(InputError) as caught:
                call(place)  # type: ignore[arg-type]
            assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == listed
    check_output(tmp_path / "A.PNG")
    check_output(str(tmp_path / "a.jpeg"))
    assert sorted(os.listdir(tmp_path)) == listed


def test_sides_beyond_a_format_are_refused(tmp_path: Path) -> None:
    long = read_picture(np.zeros((1, 70000), np.uint8))
    for suffix in ("jpg", "webp"):
        with pytest.raises(InputError, match="70000 x 1 pixels"):
            write_picture(long, tmp_path / f"a.{suffix}")
    assert os.listdir(tmp_path) == []
    write_picture(long, tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").size == (70000, 1)


def test_pil_keeps_what_to_pil_gives() -> None:
    for mode in CHANNELS:
        image = picture(mode, 16).to_pil()
        assert image.mode == mode
        buffer = io.BytesIO()
        image.save(buffer, "TIFF")
        assert np.array_equal(np.asarray(image), np.round(picture(mode, 16).samples / 257))


def test_large_pictures_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "_MANY", 0)
    for suffix, mode in (
        ("jpg", "RGB"),
        ("jpg", "CMYK"),
        ("jpg", "L"),
        ("png", "RGBA"),
        ("tif", "RGB"),
    ):
        source = picture(mode, 16 if suffix == "png" else 8)
        write_picture(source, tmp_path / f"a.{suffix}")
        large = read_picture(tmp_path / f"a.{suffix}")
        assert isinstance(large.base, Stored)
        whole, box = large.samples.copy(), Box(3, 5, 9, 7)
        assert np.array_equal(large.crop(box), whole[box.slices])
        whole[box.slices] = 255 - whole[box.slices]
        patched = large.patched(box, whole[box.slices])
        assert np.array_equal(patched.samples, whole)
        for other in ("tif", "jpg", "png"):
            write_picture(patched, tmp_path / f"b.{other}")
            back = read_picture(tmp_path / f"b.{other}")
            assert back.size == large.size
            if other == "tif":
                assert np.array_equal(back.samples, whole)


def test_a_large_picture_takes_less_memory_than_its_samples(tmp_path: Path) -> None:
    field = pyvips.Image.xyz(12000, 8300)
    colours = (field[0] / 50).bandjoin([field[1] / 40, (field[0] + field[1]) / 90])
    colours.cast("uchar").copy(interpretation="srgb").write_to_file(str(tmp_path / "a.jpg"))
    code = """
import sys
from pathlib import Path
from inlay.cli import main
words = "compose a.jpg cup.png --box 4000,3000,1000,1000 --method paste -o o.png"
sys.argv = ["inlay", *words.split()]
try:
    main()
except SystemExit as end:
    assert not end.code
lines = Path("/proc/self/status").read_text().splitlines()
print([line.split()[1] for line in lines if line.startswith("VmHWM")][0])
"""
    Image.fromarray(cup()).save(tmp_path / "cup.png")
    run = [sys.executable, "-c", code]
    said = subprocess.run(run, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert int(said.split()[-1]) * 1024 < 1.3 * 12000 * 8300 * 3
    before, after = (read_picture(tmp_path / name) for name in ("a.jpg", "o.png"))
    for box in (Box(0, 0, 12000, 2400), Box(5600, 2400, 6400, 5900)):
        assert np.array_equal(before.crop(box), after.crop(box))
