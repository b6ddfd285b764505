"""Colour profiles: closed forms, LittleCMS as the reference, and the way back."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from skimage import data

import profiles
from inlay.pictures.colour import conversion, curve, tags

ADOBE = profiles.matrix_profile(profiles.ADOBE, profiles.gamma(2.2))
PROPHOTO = profiles.matrix_profile(profiles.PROPHOTO, profiles.gamma(1.8))
SAMPLED = profiles.matrix_profile(profiles.ADOBE, profiles.sampled(np.linspace(0, 1, 1024) ** 2.2))
EVERY_16_BIT_LEVEL = np.arange(65536, dtype=np.uint16)[None]


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
    rgb = conversion(None, "RGB").to_srgb(photo)
    assert rgb.dtype == np.float32
    assert np.array_equal(rgb, photo.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("kind", ["L", "RGB", "CMYK"])
def test_without_a_profile_every_level_comes_back(kind: str, depth: int) -> None:
    levels = np.arange(1 << depth, dtype=np.uint8 if depth == 8 else np.uint16)[None]
    plain = conversion(None, kind)
    if kind == "L":
        assert np.array_equal(plain.from_srgb(plain.to_srgb(levels), depth), levels)
        return
    rolled = np.stack([levels, levels[:, ::-1], np.roll(levels, 99)], axis=-1)
    if kind == "RGB":
        assert np.array_equal(plain.from_srgb(plain.to_srgb(rolled), depth), rolled)
    else:
        # Four inks show three colours, so it is the colours that come back.
        rgb = conversion(None, "RGB").to_srgb(rolled)
        shown = plain.to_srgb(plain.from_srgb(rgb, depth))
        assert np.abs(shown - rgb).max() <= 1.0 / (2**depth - 1)


@pytest.mark.parametrize("icc", [ADOBE, PROPHOTO, SAMPLED], ids=["adobe", "prophoto", "sampled"])
def test_matrix_profiles_agree_with_littlecms(icc: bytes) -> None:
    photo = data.astronaut()
    ours = np.round(conversion(icc, "RGB").to_srgb(photo) * 255).astype(int)
    reference = by_littlecms(photo, "RGB", icc)
    assert np.abs(ours - photo).max() > 20
    assert np.abs(ours - reference).max() <= 1


@pytest.mark.parametrize("icc", [ADOBE, PROPHOTO, SAMPLED], ids=["adobe", "prophoto", "sampled"])
@pytest.mark.parametrize("depth", [8, 16])
def test_matrix_profiles_return_exactly(icc: bytes, depth: int) -> None:
    top = 2**depth - 1
    rng = np.random.default_rng(3)
    samples = rng.integers(top // 12, top - top // 12, (90, 700, 3))
    samples = samples.astype(np.uint8 if depth == 8 else np.uint16)
    found = conversion(icc, "RGB")
    rgb = found.to_srgb(samples)
    held = ((rgb > 0) & (rgb < 1)).all(-1)
    assert held.mean() > 0.3
    assert np.array_equal(found.from_srgb(rgb, depth)[held], samples[held])


@pytest.mark.parametrize("value", [1.0, 1.8, 2.2])
def test_grey_curve_is_its_closed_form_and_returns_exactly(value: float) -> None:
    grey = conversion(profiles.grey_profile(profiles.gamma(value)), "L")
    rgb = grey.to_srgb(EVERY_16_BIT_LEVEL)
    exponent = round(value * 256) / 256
    linear = (EVERY_16_BIT_LEVEL / 65535) ** exponent
    expected = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(rgb - expected[..., None]).max() < 1e-6
    back = grey.from_srgb(rgb, 16).astype(int)
    # Below this linear light a float32 holds less than a level of a steep curve.
    assert np.array_equal(back[linear > 1e-7], EVERY_16_BIT_LEVEL[linear > 1e-7])


def test_colour_becomes_grey_by_its_luminance() -> None:
    plain = conversion(None, "L")
    rgb = np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]], np.float32)
    linear = np.array([0.2225, 0.7169, 0.0606, 1.0])
    expected = np.round((1.055 * linear ** (1 / 2.4) - 0.055) * 255)
    assert np.abs(plain.from_srgb(rgb, 8)[0] - expected).max() <= 1


@pytest.mark.parametrize("function", range(5))
def test_parametric_curves_are_their_closed_forms(function: int) -> None:
    g, a, b, c, d, e, f = 2.0, 0.75, 0.25, 0.5, 0.25, 0.125, 0.0625
    x = np.linspace(0, 1, 65536)
    forms = [
        ((g,), x**g),
        ((g, a, -b), np.where(x >= b / a, np.maximum(a * x - b, 0) ** g, 0)),
        ((g, a, -b, c), np.where(x >= b / a, np.maximum(a * x - b, 0) ** g + c, c)),
        ((g, a, b, c, d), np.where(x >= d, (a * x + b) ** g, c * x)),
        ((g, a, b, c, d, e, f), np.where(x >= d, (a * x + b) ** g + e, c * x + f)),
    ]
    values, expected = forms[function]
    found = curve(profiles.parametric(function, *values))
    assert np.abs(found - np.clip(expected, 0, 1)).max() < 2e-5


def test_srgb_profiles_are_known_and_cost_nothing() -> None:
    photo = data.astronaut()
    own = profiles.matrix_profile(profiles.SRGB, profiles.parametric(3, *profiles.SRGB_CURVE))
    littlecms = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for icc in (own, littlecms):
        found = conversion(icc, "RGB")
        assert np.array_equal(found.to_srgb(photo), photo.astype(np.float32) / np.float32(255))
    gamma = conversion(profiles.matrix_profile(profiles.SRGB, profiles.gamma(2.2)), "RGB")
    assert np.abs(gamma.to_srgb(photo) - photo / 255).max() > 2 / 255


def test_tables_are_those_of_littlecms() -> None:
    inks = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    cmyk = profiles.cmyk_profile()
    ours = np.round(conversion(cmyk, "CMYK").to_srgb(inks) * 255).astype(int)
    assert np.abs(ours - by_littlecms(inks, "CMYK", cmyk)).max() <= 1
    photo = data.astronaut()
    found = conversion(profiles.table_profile(), "RGB")
    shown = found.to_srgb(photo)
    # The profile swaps red and blue; its own tables are good to some levels.
    assert np.abs(shown[..., ::-1] - photo / 255).mean() < 1 / 255
    assert np.abs(found.from_srgb(shown, 8).astype(int) - photo).mean() < 1


def test_16_bit_tables_agree_with_the_8_bit_ones() -> None:
    found = conversion(profiles.table_profile(), "RGB")
    samples = np.random.default_rng(0).integers(0, 256, (100, 300, 3), dtype=np.uint8)
    deep = samples.astype(np.uint16) * 257
    assert np.abs(found.to_srgb(samples) - found.to_srgb(deep)).max() <= 1.01 / 255
    rgb = (samples / 255).astype(np.float32)
    back = np.abs(found.from_srgb(rgb, 16) / 257 - found.from_srgb(rgb, 8))
    assert back.max() <= 1
    ramp = np.repeat(np.linspace(0, 65535, 5000).astype(np.uint16)[None, :, None], 3, -1)
    shown = found.to_srgb(ramp)[0, :, 0]
    assert (np.diff(shown) >= 0).all()
    assert len(np.unique(shown)) == 5000


def test_a_profile_without_a_way_back_says_so() -> None:
    assert conversion(profiles.table_profile(), "RGB").two_way
    assert not conversion(profiles.table_profile(two_way=False), "RGB").two_way


def test_out_of_range_and_nan_are_clipped() -> None:
    rgb = np.array([[[-1, 2, np.nan], [np.inf, -np.inf, 0.5]]], np.float32)
    assert conversion(None, "RGB").from_srgb(rgb, 8).tolist() == [[[0, 255, 0], [255, 0, 128]]]


@given(st.data())
def test_damaged_profiles_are_refused_or_used_but_never_break(draw: st.DataObject) -> None:
    icc = bytearray(draw.draw(st.sampled_from([ADOBE, SAMPLED, profiles.grey_profile(b"curv")])))
    for _ in range(draw.draw(st.integers(1, 6))):
        icc[draw.draw(st.integers(0, len(icc) - 1))] = draw.draw(st.integers(0, 255))
    cut = bytes(icc[: draw.draw(st.integers(0, len(icc)))])
    for kind, shape in (("RGB", (2, 2, 3)), ("L", (2, 2))):
        try:
            found = conversion(cut, kind)
        except ValueError:
            continue
        samples = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape) * 5000
        rgb = found.to_srgb(samples)
        assert np.isfinite(rgb).all()
        assert rgb.min() >= 0
        assert rgb.max() <= 1
        if found.two_way:
            assert found.from_srgb(rgb, 16).shape == shape


def test_wrong_kinds_are_refused() -> None:
    for icc, kind in ((ADOBE, "L"), (ADOBE, "CMYK"), (profiles.grey_profile(b""), "RGB")):
        with pytest.raises(ValueError, match="another kind"):
            conversion(icc, kind)
    with pytest.raises(ValueError, match="not an ICC"):
        tags(b"")
