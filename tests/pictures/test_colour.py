"""Colour profiles: LittleCMS as the reference, closed forms, and the way back."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from skimage import data

import profiles
from inlay.pictures.arrays import from_levels, srgb_encode
from inlay.pictures.colour import check_profile, convert, from_srgb, to_srgb

ADOBE = profiles.matrix_profile(profiles.ADOBE, profiles.gamma(2.2))
PROPHOTO = profiles.matrix_profile(profiles.PROPHOTO, profiles.gamma(1.8))
SAMPLED = profiles.matrix_profile(profiles.ADOBE, profiles.sampled(np.linspace(0, 1, 1024) ** 2.2))


def by_littlecms(samples: np.ndarray, mode: str, icc: bytes) -> np.ndarray:
    """The reference: relative colorimetric with black point compensation, 8 bits."""
    image = Image.frombytes(mode, samples.shape[1::-1], samples.tobytes())
    out = ImageCms.profileToProfile(
        image,
        ImageCms.getOpenProfile(io.BytesIO(icc)),
        ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert out is not None
    return np.asarray(out).astype(int)


def test_without_a_profile_rgb_is_the_samples_themselves() -> None:
    photo = data.astronaut()
    rgb = to_srgb(photo, None)
    assert rgb.dtype == np.float32
    assert np.array_equal(rgb, photo.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("kind", ["L", "RGB", "CMYK"])
def test_without_a_profile_every_level_comes_back(kind: str, depth: int) -> None:
    levels = np.arange(1 << depth, dtype=np.uint8 if depth == 8 else np.uint16)[None]
    if kind == "L":
        levels = levels[..., None]
        assert np.array_equal(from_srgb(to_srgb(levels, None), "L", None, depth), levels)
        return
    rolled = np.stack([levels, levels[:, ::-1], np.roll(levels, 99)], axis=-1)
    rgb = to_srgb(rolled, None)
    if kind == "RGB":
        assert np.array_equal(from_srgb(rgb, "RGB", None, depth), rolled)
    else:
        # Four inks show three colours, so it is the colours that come back.
        shown = to_srgb(from_srgb(rgb, "CMYK", None, depth), None)
        assert np.abs(shown - rgb).max() <= 1.0 / (2**depth - 1)


@pytest.mark.parametrize("icc", [ADOBE, PROPHOTO, SAMPLED], ids=["adobe", "prophoto", "sampled"])
def test_matrix_profiles_agree_with_littlecms(icc: bytes) -> None:
    photo = data.astronaut()
    ours = np.round(to_srgb(photo, icc) * 255).astype(int)
    reference = by_littlecms(photo, "RGB", icc)
    assert np.abs(ours - photo).max() > 20
    assert np.abs(ours - reference).max() <= 1


@pytest.mark.parametrize("icc", [ADOBE, PROPHOTO, SAMPLED], ids=["adobe", "prophoto", "sampled"])
@pytest.mark.parametrize("depth", [8, 16])
def test_matrix_profiles_return(icc: bytes, depth: int) -> None:
    top = 2**depth - 1
    rng = np.random.default_rng(3)
    samples = rng.integers(top // 12, top - top // 12, (90, 700, 3))
    samples = samples.astype(np.uint8 if depth == 8 else np.uint16)
    rgb = to_srgb(samples, icc)
    held = ((rgb > 0) & (rgb < 1)).all(-1)
    assert held.mean() > 0.3
    back = from_srgb(rgb, "RGB", icc, depth).astype(int)
    # By way of another space 16-bit samples lose some levels; in their own they never do.
    assert np.abs(back - samples)[held].max() <= {8: 1, 16: 400}[depth]


@pytest.mark.parametrize("value", [1.0, 1.8, 2.2])
def test_a_grey_curve_is_its_closed_form_and_returns(value: float) -> None:
    icc = profiles.grey_profile(profiles.gamma(value))
    levels = np.arange(256, dtype=np.uint8)[None, :, None]
    rgb = to_srgb(levels, icc)
    expected = srgb_encode((levels / 255) ** (round(value * 256) / 256))
    # LittleCMS has a table of 33 steps for grey, which it does not fit to a curve.
    off = np.abs(rgb - expected)[0, :, 0]
    assert off.max() < 10 / 255
    assert off[20:].max() < 1 / 255
    assert np.abs(from_srgb(rgb, "L", icc, 8).astype(int) - levels)[0, 20:].max() <= 1


def test_colour_becomes_grey_by_its_luminance() -> None:
    rgb = np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]], np.float32)
    linear = np.array([0.2225, 0.7169, 0.0606, 1.0])
    expected = np.round((1.055 * linear ** (1 / 2.4) - 0.055) * 255)
    assert np.abs(from_srgb(rgb, "L", None, 8)[0, :, 0] - expected).max() <= 1


@pytest.mark.parametrize("function", range(5))
def test_parametric_curves_agree_with_littlecms(function: int) -> None:
    g, a, b, c, d, e, f = 2.0, 0.75, 0.25, 0.5, 0.25, 0.125, 0.0625
    values = [(g,), (g, a, -b), (g, a, -b, c), (g, a, b, c, d), (g, a, b, c, d, e, f)][function]
    icc = profiles.matrix_profile(profiles.SRGB, profiles.parametric(function, *values))
    photo = data.astronaut()
    ours = np.round(to_srgb(photo, icc) * 255).astype(int)
    assert np.abs(ours - by_littlecms(photo, "RGB", icc)).max() <= 1


def test_srgb_profiles_are_known_and_cost_nothing() -> None:
    own = profiles.matrix_profile(profiles.SRGB, profiles.parametric(3, *profiles.SRGB_CURVE))
    littlecms = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for icc in (own, littlecms):
        assert check_profile(icc, "RGB") == "srgb"
    gamma = profiles.matrix_profile(profiles.SRGB, profiles.gamma(2.2))
    assert check_profile(gamma, "RGB") == "two-way"


def test_tables_are_those_of_littlecms() -> None:
    inks = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    cmyk = profiles.cmyk_profile()
    ours = np.round(to_srgb(inks, cmyk) * 255).astype(int)
    assert np.abs(ours - by_littlecms(inks, "CMYK", cmyk)).max() <= 1
    photo, icc = data.astronaut(), profiles.table_profile()
    shown = to_srgb(photo, icc)
    # The profile swaps red and blue; its own tables are good to some levels.
    assert np.abs(shown[..., ::-1] - photo / 255).mean() < 1 / 255
    assert np.abs(from_srgb(shown, "RGB", icc, 8).astype(int) - photo).mean() < 1


def test_16_bit_tables_agree_with_the_8_bit_ones() -> None:
    icc = profiles.table_profile()
    samples = np.random.default_rng(0).integers(0, 256, (100, 300, 3), dtype=np.uint8)
    deep = samples.astype(np.uint16) * 257
    assert np.abs(to_srgb(samples, icc) - to_srgb(deep, icc)).max() <= 1.01 / 255
    rgb = (samples / 255).astype(np.float32)
    back = from_srgb(rgb, "RGB", icc, 16) / 257 - from_srgb(rgb, "RGB", icc, 8)
    assert np.abs(back).max() <= 1
    ramp = np.repeat(np.linspace(0, 65535, 5000).astype(np.uint16)[None, :, None], 3, -1)
    shown = to_srgb(ramp, icc)[0, :, 0]
    assert (np.diff(shown) >= 0).all()
    assert len(np.unique(shown)) == 5000


def test_between_two_profiles_pure_colours_stay_pure() -> None:
    pure = (np.stack(np.meshgrid(*[[0.0, 1.0]] * 3), axis=-1).reshape(1, 8, 3)).astype(np.float32)
    other = profiles.matrix_profile(
        profiles.PROPHOTO, profiles.sampled(np.linspace(0, 1, 9) ** 1.8)
    )
    for icc in (ADOBE, PROPHOTO, SAMPLED):
        assert np.array_equal(convert(pure, icc, icc), pure)
    assert np.abs(convert(pure, PROPHOTO, other) - pure).max() <= 1 / 255
    assert np.abs(convert(convert(pure, None, ADOBE), ADOBE, None) - pure).max() <= 1.5 / 255


def test_a_profile_without_a_way_back_says_so() -> None:
    assert check_profile(profiles.table_profile(), "RGB") == "two-way"
    assert check_profile(profiles.table_profile(two_way=False), "RGB") == "one-way"
    assert check_profile(profiles.cmyk_profile(two_way=False), "CMYK") == "one-way"


def test_the_way_back_of_a_one_way_profile_is_found_by_numbers() -> None:
    one, two = (profiles.table_profile(two_way=both) for both in (False, True))
    photo = from_levels(data.astronaut()[:200, :200])
    own = convert(photo, None, one)
    assert np.abs(own - convert(photo, None, two)).mean() < 0.5 / 255
    for icc, most in ((one, 0.3), (two, 0.6)):
        back = convert(convert(photo, None, icc), icc, None)
        assert np.abs(back - photo).mean() < most / 255
    for kind, icc in (("RGB", one), ("CMYK", profiles.cmyk_profile(two_way=False))):
        levels = from_srgb(photo, kind, icc, 16)
        assert np.abs(to_srgb(levels, icc) - photo).mean() < 0.5 / 255


def test_out_of_range_and_nan_are_clipped() -> None:
    rgb = np.array([[[-1, 2, np.nan], [np.inf, -np.inf, 0.5]]], np.float32)
    assert from_srgb(rgb, "RGB", None, 8).tolist() == [[[0, 255, 0], [255, 0, 128]]]


@given(st.data())
def test_damaged_profiles_are_refused_or_used_but_never_break(draw: st.DataObject) -> None:
    icc = bytearray(draw.draw(st.sampled_from([ADOBE, SAMPLED, profiles.grey_profile(b"curv")])))
    for _ in range(draw.draw(st.integers(1, 6))):
        icc[draw.draw(st.integers(0, len(icc) - 1))] = draw.draw(st.integers(0, 255))
    cut = bytes(icc[: draw.draw(st.integers(0, len(icc)))])
    for kind, shape in (("RGB", (2, 2, 3)), ("L", (2, 2, 1))):
        try:
            found = check_profile(cut, kind)
        except ValueError:
            continue
        samples = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape) * 5000
        rgb = to_srgb(samples, cut)
        assert np.isfinite(rgb).all()
        assert rgb.min() >= 0
        assert rgb.max() <= 1
        if found == "two-way":
            assert from_srgb(rgb, kind, cut, 16).shape == shape


def test_wrong_kinds_are_refused() -> None:
    for icc, kind in ((ADOBE, "L"), (ADOBE, "CMYK"), (profiles.grey_profile(b""), "RGB")):
        with pytest.raises(ValueError, match="another kind"):
            check_profile(icc, kind)
    with pytest.raises(ValueError, match="not an ICC"):
        check_profile(b"", "RGB")
