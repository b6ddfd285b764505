"""Files that lie, are cut short or are no pictures: one sentence each, nothing else."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from inlay import InputError
from inlay.pictures.read import MAX_FILE_BYTES, decode, read_picture
from inlay.pictures.write import write_picture
from png import png

PHOTO = data.astronaut()[60:180, 150:290]
LIMIT = 100_000_000


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind.startswith("deep"):
        if kind == "deep png":
            return png(PHOTO * np.uint16(257), 2, None)
        import tifffile

        tifffile.imwrite(buffer, PHOTO * np.uint16(257), photometric="rgb")
        return buffer.getvalue()
    image = Image.fromarray(PHOTO)
    options = {"progressive": True} if kind == "progressive" else {}
    if kind == "tiff_lzw":
        options = {"compression": "tiff_lzw"}
    name = {"progressive": "JPEG", "tiff_lzw": "TIFF", "palette": "PNG", "cmyk": "JPEG"}
    if kind in ("palette", "cmyk"):
        image = image.quantize(32) if kind == "palette" else image.convert("CMYK")
    image.save(buffer, name.get(kind, kind), **options)
    return buffer.getvalue()


KINDS = [
    "PNG", "JPEG", "progressive", "WEBP", "TIFF", "tiff_lzw", "BMP", "GIF", "AVIF", "palette",
    "cmyk", "deep png", "deep tif",
]  # fmt: skip


WHOLE = {kind: encoded(kind) for kind in KINDS}


def refused(call: object, *arguments: object, **options: object) -> str:
    """The one sentence that a call ends in; neither a warning nor another error comes with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError) as caught:
            call(*arguments, **options)  # type: ignore[operator]
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_are_read_and_cut_ones_refused(tmp_path: Path, kind: str) -> None:
    whole = encoded(kind)
    path = tmp_path / "a.png"
    path.write_bytes(whole)
    assert read_picture(path).size == (140, 120)
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        assert "a.png" in refused(read_picture, path)


def header(kind: str, width: int, height: int) -> bytes:
    """The beginning of a small file that claims to be large, and a little more."""
    small = bytearray(encoded(kind))
    if kind in ("PNG", "palette", "deep png"):
        small[16:24] = struct.pack(">II", width, height)
        small[29:33] = struct.pack(">I", zlib.crc32(bytes(small[12:29])))
    elif kind == "BMP":
        small[18:26] = struct.pack("<ii", width, height)
    elif kind == "GIF":
        small[6:10] = struct.pack("<HH", width, height)
    elif kind == "AVIF":
        at = small.index(b"ispe") + 8
        small[at : at + 8] = struct.pack(">II", width, height)
    elif kind == "WEBP":
        small[26:30] = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)
    elif kind in ("JPEG", "progressive", "cmyk"):
        marker = b"\xff\xc2" if kind == "progressive" else b"\xff\xc0"
        at = small.index(marker) + 5
        small[at : at + 4] = struct.pack(">HH", height, width)
    else:
        (at,) = struct.unpack_from("<I", small, 4)
        for entry in range(struct.unpack_from("<H", small, at)[0]):
            place = at + 2 + 12 * entry
            tag = struct.unpack_from("<H", small, place)[0]
            if tag in (256, 257):
                small[place + 2 : place + 12] = struct.pack(
                    "<HII", 4, 1, width if tag == 256 else height
                )
    return bytes(small)


@pytest.mark.parametrize("kind", KINDS)
def test_bombs_are_refused_by_their_header(tmp_path: Path, kind: str) -> None:
    side = {"WEBP": 16000, "AVIF": 20000}.get(kind, 60000)
    path = tmp_path / "bomb.png"
    path.write_bytes(header(kind, side, side))
    if kind == "GIF":
        # A canvas that no frame fills is not believed.
        assert read_picture(path).size == (140, 120)
        return
    assert f"{side} x {side} pixels" in refused(read_picture, path)
    assert f"{side} x {side} pixels" in refused(read_picture, path, max_pixels=LIMIT * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_claim_more_than_they_hold_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "liar.png"
    path.write_bytes(header(kind, 900, 900))
    if kind == "GIF":
        # A GIF's frame may be smaller than its canvas.
        assert read_picture(path).size == (900, 900)
    else:
        refused(read_picture, path)
        path.write_bytes(header(kind, 0, 900))
        refused(read_picture, path)


@pytest.mark.parametrize(("suffix", "side"), [("tif", 13500), ("png", 9600)])
def test_a_raised_bound_is_honoured(tmp_path: Path, side: int, suffix: str) -> None:
    """Beyond Pillow's own limits (90 and 179 MP) there is neither a warning nor an error."""
    flat = np.zeros((side, side), np.uint8)
    before = Image.MAX_IMAGE_PIXELS
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        write_picture(read_picture(flat, max_pixels=side * side), path)
    else:
        Image.fromarray(flat).save(path, compress_level=1)
    del flat
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(path, max_pixels=side * side).size == (side, side)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "cmyk"])
def test_a_cut_jpeg_with_a_new_end_is_refused(tmp_path: Path, kind: str) -> None:
    whole = WHOLE[kind]
    path = tmp_path / "a.jpg"
    # Data behind the end, and a second picture there, are none of our business.
    for more in (b"", b"trailing \xff\xd9 rubbish", whole):
        path.write_bytes(whole + more)
        assert read_picture(path).size == (140, 120)
    for share in (0.5, 0.8):
        path.write_bytes(whole[: int(len(whole) * share)] + b"\xff\xd9")
        refused(read_picture, path)


def test_a_jpeg_with_stray_bytes_or_without_its_end_is_read(tmp_path: Path) -> None:
    whole = WHOLE["JPEG"]
    path = tmp_path / "a.jpg"
    path.write_bytes(whole)
    expected = read_picture(path).samples
    scan = whole.index(b"\xff\xda")
    for data_ in (whole[:scan] + b"abc" + whole[scan:], whole[:-2]):
        path.write_bytes(data_)
        assert np.array_equal(read_picture(path).samples, expected)
    path.write_bytes(whole[:-20] + b"\xff\xd9")
    refused(read_picture, path)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("I am a text.\n")
    assert "not a PNG, JPEG, WebP" in refused(read_picture, tmp_path / "text.png")
    (tmp_path / "empty.png").write_bytes(b"")
    assert "empty.png is empty" in refused(read_picture, tmp_path / "empty.png")
    (tmp_path / "zeros.png").write_bytes(bytes(4096))
    refused(read_picture, tmp_path / "zeros.png")
    assert "is a folder" in refused(read_picture, tmp_path)
    assert "does not exist" in refused(read_picture, tmp_path / "none.png")
    refused(read_picture, "")
    refused(read_picture, "a\0b.png")
    refused(read_picture, str(tmp_path / ("n" * 5000)))
    refused(read_picture, tmp_path / "text.png" / "inside.png")
    odd = tmp_path / "two\nlines\x1b[31m.png"
    odd.write_text("x")
    assert "two?lines" in refused(read_picture, odd)
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    refused(read_picture, loop)


def test_pipes_and_devices_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "pipe or device" in refused(read_picture, tmp_path / "pipe.png")
    assert "pipe or device" in refused(read_picture, "/dev/zero")


def test_huge_files_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.truncate(MAX_FILE_BYTES + 1)
    assert f"at most {MAX_FILE_BYTES}" in refused(read_picture, path)


def test_samples_of_other_kinds_are_refused(tmp_path: Path) -> None:
    image = Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4))
    image.save(tmp_path / "float.tif")
    assert "8 or 16 bits" in refused(read_picture, tmp_path / "float.tif")
    Image.fromarray(np.full((3, 4), 1 << 20, np.int32)).save(tmp_path / "int.tif")
    assert "8 or 16 bits" in refused(read_picture, tmp_path / "int.tif")


MAGIC = [
    b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x40\0\0\0WEBPVP8 ", b"II*\0", b"MM\0*",
    b"RIFF\x40\0\0\0WEBPVP8X", b"RIFF\x40\0\0\0WEBPVP8L", b"BM", b"GIF89a", b"II+\0",
    b"\0\0\0\x18ftypavif",
]  # fmt: skip


@given(magic=st.sampled_from(MAGIC), body=st.binary(max_size=300))
def test_random_bytes_are_refused(magic: bytes, body: bytes) -> None:
    try:
        found = decode(magic + body, "noise", 1_000_000)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        # By chance it is a picture after all: then it is a small, whole one.
        assert found.samples.size < 4_000_000


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_flipped_bytes_give_a_picture_or_a_sentence(
    kind: str, flips: list[tuple[float, int]]
) -> None:
    data_ = bytearray(WHOLE[kind])
    for place, value in flips:
        # Mostly in the header, where the lies are.
        data_[int(place**3 * len(data_))] = value
    try:
        found = decode(bytes(data_), "noise", 1_000_000)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert found.samples.dtype in (np.uint8, np.uint16)
        assert found.samples.shape[0] * found.samples.shape[1] <= 1_000_000
        assert found.mode in ("L", "LA", "RGB", "RGBA", "CMYK")
