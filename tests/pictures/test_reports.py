"""Pictures as they come from cameras, phones and other programs, each with the right value."""

from __future__ import annotations

import io
import logging
import stat
import struct
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image
from skimage import data

import profiles
from inlay import Box, Composer, InputError
from inlay.cli import main
from inlay.pictures.picture import Picture
from inlay.pictures.read import read_picture, read_record
from inlay.pictures.write import write_picture

PHOTO = np.ascontiguousarray(data.astronaut()[60:180, 150:290])
P3_MATRIX = [[0.51512, 0.29198, 0.1571], [0.2412, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
P3 = profiles.matrix_profile(P3_MATRIX, profiles.parametric(3, *profiles.SRGB_CURVE))
PROPHOTO = profiles.matrix_profile(profiles.PROPHOTO, profiles.gamma(1.8))
ADOBE = profiles.matrix_profile(profiles.ADOBE, profiles.gamma(563 / 256))
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf/></x:xmpmeta>'
# One IPTC data set, the city of Bremen, as Photoshop stores it.
IPTC = b"\x1c\x02\x5a\x00\x06Bremen"
COMPOSER = Composer()
PASTE = {"method": "paste", "shadow": "none"}


def exif(**more: object) -> Image.Exif:
    """A camera's EXIF: maker, copyright, time; and what is given, by tag."""
    block = Image.Exif()
    block[0x010F], block[0x8298] = "Maker", "(c) someone"
    block[0x8769] = {0x9003: "2024:05:01 10:00:00", **more.get("own", {})}  # type: ignore[dict-item]
    if "orientation" in more:
        block[0x0112] = more["orientation"]
    return block


def camera_jpeg(path: Path, **more: object) -> Path:
    """A JPEG with EXIF, XMP, IPTC and 300 dpi."""
    buffer = io.BytesIO()
    options = {"quality": 97, "subsampling": 0, "dpi": (300, 300)}
    Image.fromarray(PHOTO).save(buffer, "JPEG", exif=exif(**more), xmp=XMP, **options)
    whole = buffer.getvalue()
    block = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC + bytes(len(IPTC) % 2)
    segment = b"Photoshop 3.0\0" + block
    marker = b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment
    path.write_bytes(whole[:2] + marker + whole[2:])
    return path


def disc(size: int, colour: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    """An RGBA square of one colour whose alpha is a disc."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    top = np.iinfo(dtype).max
    samples = np.zeros((size, size, 4), dtype)
    samples[..., :3] = colour
    samples[..., 3] = np.where(np.hypot(x, y) < size / 2 - 2, top, 0)
    return samples


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "inlay")
    return caplog


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif", "tif"])
def test_what_a_camera_says_goes_with_the_background(
    tmp_path: Path, suffix: str, notes: pytest.LogCaptureFixture
) -> None:
    source = camera_jpeg(tmp_path / "a.jpg", orientation=6)
    result = COMPOSER.compose(source, disc(20, (9, 9, 9)), box=Box(10, 10, 20, 20), **PASTE)
    out = tmp_path / f"out.{suffix}"
    result.save(out)
    back = read_picture(out)
    assert back.size == PHOTO.shape[:2]
    assert back.facts["xmp-data"] == XMP
    if suffix in ("jpg", "png", "tif"):
        assert back.facts["xres"] == pytest.approx(300 / 25.4, abs=0.01)
    if suffix in ("jpg", "tif"):
        assert IPTC in back.facts["iptc-data"]
    else:
        assert "keeps no IPTC" in notes.text
    if suffix == "tif":
        assert "keeps no EXIF" in notes.text
        return
    with Image.open(out) as image:
        found = image.getexif()
        assert (found[0x010F], found[0x8298]) == ("Maker", "(c) someone")
        assert found.get_ifd(0x8769)[0x9003] == "2024:05:01 10:00:00"
        # The pixels are upright, so nobody must turn them again.
        assert found.get(0x0112, 1) == 1


@pytest.mark.parametrize("suffix", ["webp", "avif", "heic"])
def test_a_resolution_that_exif_alone_says_goes_into_a_tiff(tmp_path: Path, suffix: str) -> None:
    pillow_heif.register_heif_opener()
    for unit, density in ((2, 300.0), (3, 118.11)):
        block = exif()
        block[0x011A], block[0x011B], block[0x0128] = density, density, unit
        Image.fromarray(PHOTO).save(tmp_path / f"a.{suffix}", exif=block.tobytes())
        write_picture(read_picture(tmp_path / f"a.{suffix}"), tmp_path / "a.tif")
        with Image.open(tmp_path / "a.tif") as made:
            assert made.info["dpi"] == pytest.approx((300, 300), abs=0.01)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_no_thumbnail_shows_what_was_taken_out(tmp_path: Path, suffix: str, order: str) -> None:
    small = io.BytesIO()
    Image.fromarray(PHOTO).resize((70, 60)).save(small, "JPEG")
    thumbnail = small.getvalue()
    # Two tables of one and of three entries, and the thumbnail that the second one tells of.
    tables = struct.pack(order + "HHHI4sI", 1, 0x010F, 2, 4, b"Abc\0", 26)
    entries = (0x0103, 3, 1, 6 << (16 if order == ">" else 0), 0x0201, 4, 1, 68)
    tables += struct.pack(f"{order}H{'HHII' * 3}I", 3, *entries, 0x0202, 4, 1, len(thumbnail), 0)
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    block = b"Exif\0\0" + header + tables + thumbnail
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg", exif=block)
    assert thumbnail in (tmp_path / "a.jpg").read_bytes()
    made = COMPOSER.compose(
        tmp_path / "a.jpg", disc(40, (200, 30, 40)), box=Box(9, 9, 60, 60), **PASTE
    )
    made.save(tmp_path / f"o.{suffix}")
    assert thumbnail[-200:] not in (tmp_path / f"o.{suffix}").read_bytes()
    with Image.open(tmp_path / f"o.{suffix}") as picture:
        assert picture.getexif()[0x010F] == "Abc"


def test_a_bitmap_says_what_it_leaves_out(tmp_path: Path, notes: pytest.LogCaptureFixture) -> None:
    write_picture(read_picture(camera_jpeg(tmp_path / "a.jpg")), tmp_path / "a.bmp")
    for what in ("EXIF", "XMP", "IPTC"):
        assert f"keeps no {what}" in notes.text


@pytest.mark.parametrize("space", [2, 65535])
def test_adobe_rgb_is_honoured_where_exif_alone_declares_it(
    tmp_path: Path, space: int, notes: pytest.LogCaptureFixture
) -> None:
    own = {0xA001: space, 0xA005: {1: "R03"}}
    found = read_picture(camera_jpeg(tmp_path / "a.jpg", own=own))
    plain = read_picture(camera_jpeg(tmp_path / "b.jpg"))
    assert "Adobe RGB" in notes.text
    assert plain.icc is None
    tagged = Picture(found.samples, "RGB", ADOBE, "tagged")
    assert np.abs(found.rgb() - tagged.rgb()).max() < 1 / 255
    assert np.abs(found.rgb() - plain.rgb()).max() > 10 / 255


@pytest.mark.parametrize("icc", [P3, PROPHOTO], ids=["p3", "prophoto"])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("colour", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)])
def test_a_pure_colour_of_a_wide_space_stays_pure(
    tmp_path: Path, colour: tuple[int, ...], deep: bool, icc: bytes
) -> None:
    dtype, top = (np.uint16, 65535) if deep else (np.uint8, 255)
    pure = tuple(top * part for part in colour)
    field = np.full((60, 80, 3), pure, dtype)
    write_picture(Picture(field, "RGB", icc, "field"), tmp_path / "field.png")
    chip = disc(30, pure, dtype)
    write_picture(Picture(chip, "RGBA", icc, "chip"), tmp_path / "chip.png")
    pasted = COMPOSER.compose(
        tmp_path / "field.png", tmp_path / "chip.png", box=Box(20, 10, 30, 30), **PASTE
    )
    assert pasted.picture.icc == icc
    assert np.abs(pasted.picture.samples.astype(int) - pure).max() == 0
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 30:50] = 255
    mended = COMPOSER.remove(tmp_path / "field.png", mask=mask, method="telea")
    assert np.abs(mended.picture.samples.astype(int) - pure).max() <= (64 if deep else 1)


def test_a_subject_of_srgb_looks_the_same_on_a_wide_background(tmp_path: Path) -> None:
    field = np.full((60, 80, 3), 90, np.uint8)
    write_picture(Picture(field, "RGB", P3, "field"), tmp_path / "field.png")
    chip = disc(30, (200, 60, 40))
    result = COMPOSER.compose(tmp_path / "field.png", chip, box=Box(20, 10, 30, 30), **PASTE)
    shown = result.picture.rgb()[25, 35] * 255
    assert np.abs(shown - (200, 60, 40)).max() <= 1.5


def test_a_cut_out_keeps_depth_profile_and_resolution(tmp_path: Path) -> None:
    samples = PHOTO.astype(np.uint16) * 257 + 31
    facts = {"xres": 300 / 25.4, "yres": 300 / 25.4}
    source = Picture(samples, "RGB", P3, "ball", facts=facts)
    write_picture(source, tmp_path / "ball.tif")
    mask = np.zeros(PHOTO.shape[:2], np.uint8)
    mask[30:90, 40:100] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "out.tif"
    words = [
        "cut",
        str(tmp_path / "ball.tif"),
        "--mask",
        str(tmp_path / "mask.png"),
        "-o",
        str(out),
    ]
    assert main([*words, "--quiet"]) == 0
    back = read_picture(out)
    assert (back.mode, back.depth, back.icc) == ("RGBA", 16, P3)
    assert back.facts["xres"] == pytest.approx(300 / 25.4, abs=0.01)
    solid = back.samples[..., 3] == 65535
    assert solid.sum() > 2000
    assert np.array_equal(back.samples[solid][:, :3], samples[solid])
    assert (back.samples[back.samples[..., 3] == 0] == 0).all()


def test_a_gain_map_that_is_left_out_is_said(
    tmp_path: Path, notes: pytest.LogCaptureFixture
) -> None:
    path = camera_jpeg(tmp_path / "a.jpg")
    read_picture(path)
    assert "second picture" not in notes.text
    whole = path.read_bytes()
    index = b"MPF\0II*\0\x08\0\0\0\0\0" + bytes(20)
    marker = b"\xff\xe2" + struct.pack(">H", len(index) + 2) + index
    path.write_bytes(whole[:2] + marker + whole[2:] + whole)
    assert np.array_equal(read_picture(path).samples, read_picture(camera_jpeg(path)).samples)
    assert "second picture" in notes.text


@pytest.mark.parametrize("kind", ["version", "thumbnail", "sensor", "canon"])
def test_raw_files_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.tif"
    small = np.zeros((30, 40, 3), np.uint8)
    tags = [(50706, 1, 4, b"\1\4\0\0", True)] if kind == "version" else []
    subfile = 1 if kind == "thumbnail" else 0
    if kind == "sensor":
        tifffile.imwrite(path, small[..., 0], photometric="cfa", metadata=None)
    else:
        tifffile.imwrite(
            path, small, photometric="rgb", extratags=tags, subfiletype=subfile, metadata=None
        )
    if kind == "canon":
        whole = bytearray(path.read_bytes())
        (at,) = struct.unpack_from("<I", whole, 4)
        # The mark stands where the first directory does in most files; that moves to the end.
        (count,) = struct.unpack_from("<H", whole, at)
        directory = bytes(whole[at : at + 6 + 12 * count])
        struct.pack_into("<I", whole, 4, len(whole))
        whole[8:12] = b"CR\2\0"
        path.write_bytes(bytes(whole) + directory)
    with pytest.raises(InputError, match=r"a\.tif is a camera's raw file"):
        read_picture(path)


def test_a_grey_background_says_that_colours_go(tmp_path: Path) -> None:
    grey = PHOTO[..., 0]
    result = COMPOSER.compose(grey, disc(30, (200, 60, 40)), box=Box(20, 10, 30, 30), **PASTE)
    assert any("grey" in note for note in result.record["notes"])
    silent = COMPOSER.compose(grey, disc(30, (90, 90, 90)), box=Box(20, 10, 30, 30), **PASTE)
    assert not silent.record["notes"]


def test_a_jpeg_without_its_end_is_read_and_one_without_its_last_data_is_not(
    tmp_path: Path, notes: pytest.LogCaptureFixture
) -> None:
    path = camera_jpeg(tmp_path / "a.jpg")
    whole, expected = path.read_bytes(), read_picture(path).samples
    path.write_bytes(whole[:-2])
    assert np.array_equal(read_picture(path).samples, expected)
    assert "a.jpg lacks its end marker; every pixel is there" in notes.text
    for short in (8, 30, 200):
        for end in (b"", b"\xff\xd9"):
            path.write_bytes(whole[: -2 - short] + end)
            with pytest.raises(InputError, match="cut short"):
                read_picture(path)


@pytest.mark.parametrize("method", ["poisson", "reinhard", "feather", "paste"])
def test_colours_under_no_alpha_do_not_matter(method: str) -> None:
    clear = np.dstack([PHOTO, np.full(PHOTO.shape[:2], 255, np.uint8)])
    clear[:, 60:, 3] = 0
    made = []
    for hidden in (0, 255):
        background = clear.copy()
        background[:, 60:, :3] = hidden
        result = COMPOSER.compose(
            background, disc(50, (200, 60, 40)), box=Box(35, 20, 50, 50), method=method
        )
        made.append(result.picture.samples)
    seen = made[0][..., 3] > 0
    assert np.array_equal(made[0][..., 3], made[1][..., 3])
    assert np.array_equal(made[0][seen], made[1][seen])


@pytest.mark.parametrize("deep", [False, True])
def test_a_see_through_picture_lies_on_white_in_a_jpeg(tmp_path: Path, deep: bool) -> None:
    samples = np.dstack([PHOTO * 0, np.zeros(PHOTO.shape[:2], np.uint8)])
    samples[:60, :, 3] = 255
    samples[60:80, :, 3] = 128
    if deep:
        samples = samples.astype(np.uint16) * 257
    write_picture(Picture(samples, "RGBA", None, "veil"), tmp_path / "a.jpg")
    back = read_picture(tmp_path / "a.jpg").samples.astype(int)
    for row, level in ((30, 0), (70, 127), (100, 255)):
        assert np.abs(back[row] - level).max() <= 3


def test_the_permissions_of_a_replaced_file_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    path.chmod(0o640)
    write_picture(read_picture(PHOTO), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_decoded_bytes_have_a_bound_of_their_own(tmp_path: Path) -> None:
    samples = np.zeros((100, 100, 4), np.uint16)
    write_picture(Picture(samples, "RGBA", None, "deep"), tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png", max_pixels=14000).depth == 16
    with pytest.raises(InputError, match="of 8 bytes"):
        read_picture(tmp_path / "a.png", max_pixels=10000)
    write_picture(read_picture(PHOTO[:100, :100]), tmp_path / "b.png")
    assert read_picture(tmp_path / "b.png", max_pixels=10000).size == (100, 100)


def test_only_the_named_loaders_are_used(tmp_path: Path) -> None:
    for text in ("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "P2 1 1 9 5"):
        (tmp_path / "a.png").write_text(text)
        with pytest.raises(InputError, match="not a PNG"):
            read_picture(tmp_path / "a.png")


def test_heic_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    with pytest.raises(InputError, match=r"HEIC|damaged"):
        read_picture(path)
    pillow_heif.from_pillow(Image.fromarray(PHOTO)).save(path, quality=95)
    assert np.abs(read_picture(path).samples.astype(int) - PHOTO).mean() < 4


def test_nothing_of_the_libraries_reaches_standard_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = {}
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "AVIF", "GIF", "BMP"):
        buffer = io.BytesIO()
        Image.fromarray(PHOTO).save(buffer, kind)
        whole[kind] = buffer.getvalue()
    rng = np.random.default_rng(5)
    for content in whole.values():
        for _ in range(20):
            bent = bytearray(content)
            for place in rng.integers(0, min(len(bent), 900), 6):
                bent[place] = rng.integers(256)
            (tmp_path / "a").write_bytes(bent)
            try:
                read_picture(tmp_path / "a", max_pixels=1_000_000)
            except InputError:
                continue
    assert capfd.readouterr() == ("", "")


def test_records_in_the_exif_of_a_tiff_are_still_read(tmp_path: Path) -> None:
    """Earlier builds wrote them there."""
    comment = b'ASCII\0\0\0{"inlay": "0.1"}'
    Image.fromarray(PHOTO).save(tmp_path / "a.tif", exif=exif(own={0x9286: comment}).tobytes())
    assert read_record(tmp_path / "a.tif") == '{"inlay": "0.1"}'
