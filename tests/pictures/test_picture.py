"""Pictures in memory: every source and mode, sRGB views of a box, masks."""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from skimage import data

import profiles
from inlay import Box, InputError
from inlay.pictures.mask import read_mask
from inlay.pictures.read import read_picture
from inlay.pictures.write import write_picture
from png import png

RNG = np.random.default_rng(7)
PHOTO = data.astronaut()[100:148, 180:244]
ADOBE = profiles.matrix_profile(profiles.ADOBE, profiles.gamma(2.2))


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def deep(shape: tuple[int, ...]) -> np.ndarray:
    return RNG.integers(0, 65536, shape, dtype=np.uint16)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif"])
def test_lossless_files_give_their_samples(tmp_path: Path, suffix: str) -> None:
    grey = PHOTO[..., 0]
    path = saved(Image.fromarray(grey), tmp_path / f"a.{suffix}")
    picture = read_picture(path, role="background")
    # A GIF always has a palette.
    assert (picture.mode, picture.depth) == ("RGB" if suffix == "gif" else "L", 8)
    assert picture.size == (64, 48)
    assert np.array_equal(picture.rgb()[..., 0], grey.astype(np.float32) / np.float32(255))
    assert picture.name == f"background a.{suffix}"
    assert picture.path == str(path)
    assert picture.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    if suffix != "gif":
        path = saved(Image.fromarray(PHOTO), tmp_path / f"b.{suffix}")
        assert np.array_equal(read_picture(path).samples, PHOTO)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "avif"])
def test_lossy_files_come_close(tmp_path: Path, suffix: str) -> None:
    path = saved(Image.fromarray(PHOTO), tmp_path / f"a.{suffix}", quality=95)
    picture = read_picture(path)
    assert picture.mode == "RGB"
    assert np.abs(picture.samples.astype(int) - PHOTO).mean() < 4


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.fromarray(PHOTO).save(path, format="PNG")
    assert np.array_equal(read_picture(path).samples, PHOTO)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [0, 3, 4])
def test_16_bit_files_keep_16_bits(tmp_path: Path, suffix: str, channels: int) -> None:
    samples = deep((21, 34, channels) if channels else (21, 34))
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        extra = ["unassalpha"] if channels == 4 else None
        kind = "rgb" if channels else "minisblack"
        tifffile.imwrite(path, samples, photometric=kind, extrasamples=extra, metadata=None)
    else:
        order = cv2.COLOR_RGB2BGR if channels == 3 else cv2.COLOR_RGBA2BGRA
        cv2.imwrite(str(path), cv2.cvtColor(samples, order) if channels else samples)
    picture = read_picture(path)
    assert (picture.mode, picture.depth) == ({0: "L", 3: "RGB", 4: "RGBA"}[channels], 16)
    assert np.array_equal(picture.samples, samples)


def test_16_bit_tiff_layouts(tmp_path: Path) -> None:
    samples = deep((12, 17, 3))
    for order in ("<", ">"):
        tifffile.imwrite(tmp_path / "a.tif", samples, photometric="rgb", byteorder=order)
        assert np.array_equal(read_picture(tmp_path / "a.tif").samples, samples)
        tifffile.imwrite(tmp_path / "g.tif", samples[..., 0], byteorder=order)
        assert np.array_equal(read_picture(tmp_path / "g.tif").samples, samples[..., 0])
    planes = np.ascontiguousarray(samples.transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "p.tif", planes, photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_picture(tmp_path / "p.tif").samples, samples)
    tifffile.imwrite(tmp_path / "w.tif", samples[..., 0], photometric="miniswhite")
    assert np.array_equal(read_picture(tmp_path / "w.tif").samples, 65535 - samples[..., 0])


def test_16_bit_png_with_a_clear_colour_or_grey_alpha(tmp_path: Path) -> None:

    colours, grey = deep((5, 7, 3)), deep((5, 7))
    clear = colours[2, 3].astype(">u2").tobytes()
    (tmp_path / "c.png").write_bytes(png(colours, 2, clear))
    picture = read_picture(tmp_path / "c.png")
    assert picture.mode == "RGBA"
    assert np.array_equal(picture.samples[..., :3], colours)
    assert np.array_equal(picture.samples[..., 3] == 0, (colours == colours[2, 3]).all(-1))
    (tmp_path / "g.png").write_bytes(png(grey, 0, grey[1, 1:2].astype(">u2").tobytes()))
    picture = read_picture(tmp_path / "g.png")
    assert picture.mode == "LA"
    assert np.array_equal(picture.samples[..., 1] == 0, grey == grey[1, 1])
    both = deep((5, 7, 2))
    (tmp_path / "b.png").write_bytes(png(both, 4, None))
    picture = read_picture(tmp_path / "b.png")
    assert picture.mode == "LA"
    assert np.array_equal(picture.samples, both)


def test_palettes_and_bits_are_expanded(tmp_path: Path) -> None:
    few = Image.fromarray(PHOTO).quantize(16)
    expected = np.asarray(few.convert("RGB"))
    picture = read_picture(saved(few, tmp_path / "p.png"))
    assert picture.mode == "RGB"
    assert np.array_equal(picture.samples, expected)
    picture = read_picture(saved(few, tmp_path / "t.png", transparency=3))
    assert picture.mode == "RGBA"
    assert np.array_equal(picture.samples[..., 3] == 0, np.asarray(few) == 3)
    bits = Image.fromarray(PHOTO[..., 0]).convert("1")
    for suffix in ("png", "tif", "bmp"):
        picture = read_picture(saved(bits, tmp_path / f"b.{suffix}"))
        assert picture.mode == "L"
        assert np.array_equal(picture.samples, np.asarray(bits) * np.uint8(255))
    plain = Image.fromarray(PHOTO)
    clear = tuple(int(v) for v in PHOTO[0, 0])
    picture = read_picture(saved(plain, tmp_path / "k.png", transparency=clear))
    assert np.array_equal(picture.samples[..., 3] == 0, (PHOTO[0, 0] == PHOTO).all(-1))


def test_alpha_and_cmyk(tmp_path: Path) -> None:
    rgba, la = RNG.integers(0, 256, (9, 8, 4), np.uint8), RNG.integers(0, 256, (9, 8, 2), np.uint8)
    for mode, samples in (("RGBA", rgba), ("LA", la)):
        picture = read_picture(saved(Image.fromarray(samples), tmp_path / f"{mode}.png"))
        assert picture.mode == mode
        assert np.array_equal(picture.samples, samples)
        alpha = picture.alpha(Box(1, 2, 5, 6))
        assert alpha is not None
        assert np.array_equal(alpha, samples[2:8, 1:6, -1].astype(np.float32) / np.float32(255))
        assert picture.rgb().shape == (9, 8, 3)
        assert picture.native(picture.rgb()).shape == (9, 8, 1 if mode == "LA" else 3)
        assert np.array_equal(picture.native(picture.colours()), samples[..., :-1])
    inks = Image.frombytes("CMYK", (8, 9), rgba.tobytes())
    picture = read_picture(saved(inks, tmp_path / "c.tif"))
    assert picture.mode == "CMYK"
    assert np.array_equal(picture.samples, rgba)
    assert picture.alpha() is None
    shares = 1 - rgba / 255
    assert np.abs(picture.rgb() - shares[..., :3] * shares[..., 3:]).max() < 1e-6
    assert picture.native(picture.rgb()).shape == (9, 8, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "kind", ["jpg", "png", "webp", "avif", "tif", "deep png", "deep tif", "pil"]
)
def test_orientation_is_applied_once(tmp_path: Path, kind: str, orientation: int) -> None:
    # What each tag says of row 0 and column 0 (Exif 2.32, 4.6.4.A), undone step by step.
    stored = np.zeros((24, 16, 3), np.uint8)
    stored[:8, :8], stored[:8, 8:], stored[16:, :8] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    undo = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, 1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind[-4:].strip()}"
    expected = undo(stored)
    if kind == "pil":
        Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
        picture = read_picture(Image.open(tmp_path / "a.png"))
    else:
        if kind == "deep tif":
            tag = [(274, 3, 1, orientation, True)]
            deep_samples = stored * np.uint16(257)
            tifffile.imwrite(path, deep_samples, photometric="rgb", extratags=tag, metadata=None)
            expected = undo(deep_samples)
        elif kind == "deep png":
            block = exif.tobytes()[6:]
            path.write_bytes(png(stored * np.uint16(257), 2, None, block))
            expected = undo(stored * np.uint16(257))
        else:
            options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}
            options["avif"] = {"quality": 100}
            Image.fromarray(stored).save(path, exif=exif, **options.get(kind, {}))
        picture = read_picture(path)
    assert picture.samples.shape == expected.shape
    assert picture.samples.dtype == expected.dtype
    limit = {"jpg": 3, "avif": 20}.get(kind, 0)
    assert np.abs(picture.samples.astype(int) - expected.astype(int)).max() <= limit
    # Written and read again it stays as it is.
    write_picture(picture, tmp_path / "again.png")
    assert np.array_equal(read_picture(tmp_path / "again.png").samples, picture.samples)


def test_a_profile_is_seen_through_and_written_back(tmp_path: Path) -> None:
    path = saved(Image.fromarray(PHOTO), tmp_path / "a.png", icc_profile=ADOBE)
    picture = read_picture(path)
    assert picture.icc == ADOBE
    rgb = picture.rgb()
    assert np.abs(rgb - PHOTO / 255).max() > 10 / 255
    assert np.array_equal(picture.native(picture.colours()), PHOTO)
    assert np.array_equal(picture.rgb(Box(5, 6, 30, 20)), rgb[6:26, 5:35])
    assert picture.to_pil().info["icc_profile"] == ADOBE


def test_profiles_that_do_not_fit_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "inlay")
    for icc in (b"rubbish", ADOBE[:300], profiles.grey_profile(profiles.gamma(2.2))):
        path = saved(Image.fromarray(PHOTO), tmp_path / "a.png", icc_profile=icc)
        caplog.clear()
        picture = read_picture(path)
        assert picture.icc is None
        assert "profile is passed over" in caplog.text
        assert np.array_equal(picture.rgb(), PHOTO.astype(np.float32) / np.float32(255))


def test_a_one_way_profile_stays_with_its_samples(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "inlay")
    icc = profiles.table_profile(two_way=False)
    opaque = np.dstack([PHOTO, PHOTO[..., :1]])
    for samples in (opaque, PHOTO):
        path = saved(Image.fromarray(samples), tmp_path / "a.png", icc_profile=icc)
        picture = read_picture(path)
        assert picture.icc == icc
        assert np.array_equal(picture.samples, samples)
    assert "profile goes one way" in caplog.text
    # The profile swaps red and blue.
    assert np.abs(picture.rgb()[..., ::-1] * 255 - PHOTO).mean() < 2
    assert np.array_equal(picture.native(picture.colours()), PHOTO)
    write_picture(picture, tmp_path / "b.png")
    back = read_picture(tmp_path / "b.png")
    assert back.icc == icc
    assert np.array_equal(back.samples, PHOTO)


def test_the_first_of_several_is_taken_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "inlay")
    frames = [Image.fromarray(np.full((8, 8), v, np.uint8)) for v in (10, 200, 90)]
    for suffix in ("gif", "tif", "webp", "png"):
        path = tmp_path / f"a.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        caplog.clear()
        assert abs(int(read_picture(path).samples.flat[0]) - 10) <= 2
        assert f"a.{suffix} holds several pictures; the first one is used" in caplog.text


def test_arrays_and_pil_images() -> None:
    for shape, mode in (((4, 5), "L"), ((4, 5, 3), "RGB"), ((4, 5, 4), "RGBA")):
        array = RNG.integers(0, 256, shape, np.uint8)
        picture = read_picture(array)
        assert (picture.mode, picture.path) == (mode, None)
        assert np.array_equal(picture.samples, array)
        assert picture.sha256 == hashlib.sha256(array.tobytes()).hexdigest()
        kept = picture.samples.copy()
        array[:] = 0
        assert np.array_equal(picture.samples, kept)
        assert np.array_equal(np.asarray(picture.to_pil()), kept)
        assert np.array_equal(read_picture(picture.to_pil()).samples, kept)
    turned = RNG.integers(0, 256, (6, 4, 3), np.uint8).swapaxes(0, 1)[::-1, :, ::-1]
    assert np.array_equal(read_picture(turned).samples, turned)
    for mode, expected in (("P", "RGB"), ("1", "L"), ("YCbCr", "RGB"), ("LA", "LA"), ("I", "L")):
        assert read_picture(Image.new(mode, (3, 2))).mode == expected


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((4, 4), np.float32), np.zeros((4, 4), bool), np.zeros((4, 4, 3), np.uint16),
        np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8),
        np.zeros((4, 4, 5), np.uint8), np.zeros((2, 4, 4, 3), np.uint8), np.zeros((), np.uint8),
        np.zeros((0, 4, 3), np.uint8), np.zeros((4, 0), np.uint8), np.zeros((4, 4), object),
        Image.new("F", (3, 3)), Image.new("LAB", (3, 3)), Image.new("RGB", (0, 3)),
        Image.fromarray(np.full((3, 3), -1, np.int32)), None, 3, b"a.png", [[1, 2]], 1.5, object(),
    ],
    ids=lambda source: type(source).__name__,
)  # fmt: skip
def test_other_sources_are_refused(source: object) -> None:
    with pytest.raises(InputError) as caught:
        read_picture(source, role="subject")  # type: ignore[arg-type]
    assert "subject" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bound", [0, -1, 1.5, True, None, "9", float("nan")])
def test_a_bound_must_be_a_positive_number(bound: object) -> None:
    with pytest.raises(InputError, match="max_pixels"):
        read_picture(PHOTO, max_pixels=bound)  # type: ignore[arg-type]


def test_the_bound_holds_for_every_source(tmp_path: Path) -> None:
    pixels = PHOTO.shape[0] * PHOTO.shape[1]
    path = saved(Image.fromarray(PHOTO), tmp_path / "a.png")
    for source in (PHOTO, Image.fromarray(PHOTO), path, str(path)):
        assert read_picture(source, max_pixels=pixels).size == (64, 48)
        with pytest.raises(InputError, match="max_pixels"):
            read_picture(source, max_pixels=pixels - 1)


def test_boxes_must_be_inside() -> None:
    picture = read_picture(PHOTO)
    for box in (Box(-1, 0, 2, 2), Box(0, 0, 65, 2), Box(63, 0, 2, 2), Box(0, 47, 1, 2)):
        with pytest.raises(InputError, match="not inside"):
            picture.rgb(box)
    whole = Box.of_size(picture.size)
    assert picture.patched(whole, picture.samples + 1).samples[0, 0, 0] == PHOTO[0, 0, 0] + 1
    with pytest.raises(ValueError, match="do not suit"):
        picture.patched(whole, picture.samples.astype(np.uint16))


@given(
    samples=arrays.arrays(
        st.sampled_from([np.uint8]),
        st.sampled_from([(3, 5), (3, 5, 3), (4, 2, 4)]),
    )
)
def test_native_is_the_inverse_of_rgb(samples: np.ndarray) -> None:
    picture = read_picture(samples)
    colours = samples[..., :3] if samples.ndim == 3 else samples
    assert np.array_equal(picture.native(picture.rgb()).reshape(colours.shape), colours)


def test_masks(tmp_path: Path) -> None:
    grey = np.zeros((6, 7), np.uint8)
    grey[2, 3], grey[4, 4] = 255, 51
    expected = grey.astype(np.float32) / np.float32(255)
    opaque = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    alpha = np.dstack([np.full((6, 7, 3), 255, np.uint8), grey])
    deep_grey = grey * np.uint16(257)
    tifffile.imwrite(tmp_path / "m.tif", deep_grey, metadata=None)
    saved(Image.fromarray(grey), tmp_path / "i.png", icc_profile=profiles.grey_profile(
        profiles.gamma(1.0)))  # fmt: skip
    sources = [grey, np.dstack([grey] * 3), opaque, alpha, tmp_path / "m.tif", tmp_path / "i.png"]
    for source in sources:
        mask = read_mask(source, size=(7, 6))
        assert mask.dtype == np.float32
        assert np.abs(mask - expected).max() < 1e-6
    bits = Image.fromarray(grey).point(lambda v: 255 if v > 40 else 0).convert("1")
    assert read_mask(bits, size=None).sum() == 2
    red = np.zeros((6, 7, 3), np.uint8)
    red[..., 0] = 255
    assert np.array_equal(read_mask(red, size=(7, 6)), np.ones((6, 7)))


def test_masks_that_do_not_serve_are_refused(tmp_path: Path) -> None:
    grey = np.full((6, 7), 9, np.uint8)
    with pytest.raises(InputError, match="7 x 6 pixels; expected 6 x 7"):
        read_mask(grey, size=(6, 7))
    for empty in (grey * 0, np.zeros((6, 7, 4), np.uint8)):
        with pytest.raises(InputError, match="is empty"):
            read_mask(empty, size=(7, 6))
    with pytest.raises(InputError, match=r"mask none\.png does not exist"):
        read_mask(tmp_path / "none.png", size=None)


def test_text_chunks_and_noise_do_not_disturb(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("Comment", "x" * 5000)
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, "PNG", pnginfo=info)
    path = tmp_path / "a.png"
    path.write_bytes(buffer.getvalue() + b"trailing rubbish")
    assert np.array_equal(read_picture(path).samples, PHOTO)
