"""Disturbances against closed forms and slow references, and the ranges that they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage import data

from inlay.errors import InputError
from inlay.training.disturb import (
    KINDS,
    Change,
    disturb,
    disturb_object,
    draw,
)

GREYS = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
COLOURS = data.coffee()[100:300:7, 100:400:9]

seeds = st.integers(0, 2**32 - 1)


def to_linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def to_value(linear: float) -> float:
    return linear * 12.92 if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055


def clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def test_exposure_and_gain_multiply_linear_light() -> None:
    brighter = disturb(GREYS, [Change("exposure", {"stops": 0.7})])
    expected = [to_value(clip(to_linear(v / 255) * 2**0.7)) for v in range(256)]
    assert np.allclose(brighter[:, 0], np.array(expected)[:, None], atol=1e-9)
    gains = {"red": -1.0, "green": 0.25, "blue": 0.6}
    tinted = disturb(GREYS, [Change("gain", gains)])
    for channel, stops in enumerate(gains.values()):
        expected = [to_value(clip(to_linear(v / 255) * 2**stops)) for v in range(256)]
        assert np.allclose(tinted[:, 0, channel], expected, atol=1e-9)


def test_gamma_is_a_power_of_the_values() -> None:
    found = disturb(GREYS, [Change("gamma", {"exponent": 1.4})])
    assert np.allclose(found[:, 0, 1], (np.arange(256) / 255) ** 1.4, atol=1e-9)


def test_contrast_bends_each_channel_about_the_middle() -> None:
    powers = {"red": 0.7, "green": 0.0, "blue": -0.5}
    found = disturb(GREYS, [Change("contrast", powers)])
    v = np.arange(256) / 255
    for channel, power in enumerate(powers.values()):
        steep = 2**power
        expected = v**steep / (v**steep + (1 - v) ** steep)
        assert np.allclose(found[:, 0, channel], expected, atol=1e-9)
    assert np.allclose(found[[0, -1], 0], [[0] * 3, [1] * 3], atol=1e-12)
    (change,) = draw("contrast", np.random.default_rng(3), 0.5)
    assert all(abs(stops) <= 0.45 + 1e-9 for stops in change.parameters.values())


@pytest.mark.parametrize("factor", [0.4, 1.8])
def test_saturation_stretches_the_distance_from_luminance(factor: float) -> None:
    change = Change("saturation", {"factor": factor})
    assert np.allclose(disturb(GREYS, [change]), GREYS / 255, atol=1e-4)
    found = disturb(COLOURS, [change])
    for y, x in ((0, 0), (5, 9), (20, 30), (11, 2)):
        linear = [to_linear(v / 255) for v in COLOURS[y, x].tolist()]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        expected = [to_value(clip(luminance + factor * (v - luminance))) for v in linear]
        assert np.allclose(found[y, x], expected, atol=1e-6)


# Chromaticities of the Planckian locus and of illuminant A (CIE 15:2004), to three digits.
@pytest.mark.parametrize(
    ("kelvin", "x", "y"), [(2856, 0.448, 0.407), (4000, 0.380, 0.377), (10000, 0.281, 0.288)]
)
def test_temperature_moves_a_grey_along_the_planckian_locus(
    kelvin: float, x: float, y: float
) -> None:
    grey = np.full((1, 3), 100, np.uint8)
    red, green, blue = (
        to_linear(v)
        for v in disturb(grey, [Change("temperature", {"kelvin": kelvin, "tint": 0})])[0]
    )
    big_x = 0.4124 * red + 0.3576 * green + 0.1805 * blue
    big_y = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    big_z = 0.0193 * red + 0.1192 * green + 0.9505 * blue
    total = big_x + big_y + big_z
    # D65, which sRGB's grey has, lies 0.005 beside the locus.
    assert math.hypot(big_x / total - x, big_y / total - y) < 0.012
    assert big_y == pytest.approx(to_linear(100 / 255), rel=1e-6)


def test_daylight_without_tint_changes_nothing_and_tint_is_of_green() -> None:
    still = disturb(COLOURS, [Change("temperature", {"kelvin": 6504.0, "tint": 0.0})])
    assert np.abs(still - COLOURS / 255).max() < 1e-9
    grey = np.full((1, 3), 120, np.uint8)
    red, green, blue = disturb(grey, [Change("temperature", {"kelvin": 6504.0, "tint": 0.1})])[0]
    assert to_linear(green) / to_linear(red) == pytest.approx(2**0.1, rel=1e-3)
    assert red == pytest.approx(blue, rel=1e-3)


def test_changes_apply_in_their_order() -> None:
    one, two = Change("exposure", {"stops": -0.9}), Change("gamma", {"exponent": 1.3})
    found = disturb(GREYS, [one, two])
    expected = [to_value(to_linear(v / 255) * 2**-0.9) ** 1.3 for v in range(256)]
    assert np.allclose(found[:, 0, 0], expected, atol=1e-9)
    assert not np.allclose(found, disturb(GREYS, [two, one]), atol=1e-3)


def _check_ranges(change: Change, strength: float) -> None:
    values = change.parameters
    if change.kind == "gain":
        stops = [abs(values[c]) / strength for c in ("red", "green", "blue")]
        assert 0.4 - 1e-9 <= max(stops) <= 1.0
    elif change.kind == "exposure":
        assert 0.35 <= abs(values["stops"]) / strength + 1e-12 <= 1.1 + 1e-9
    elif change.kind == "temperature":
        mired = (1e6 / values["kelvin"] - 1e6 / 6504) / strength
        assert 40 - 1e-6 <= mired <= 120 + 1e-6 or -85 - 1e-6 <= mired <= -35 + 1e-6
        assert abs(values["tint"]) / strength <= 0.12 + 1e-9
    elif change.kind == "saturation":
        power = math.log2(values["factor"]) / strength
        assert 0.5 - 1e-9 <= power <= 1.1 + 1e-9 or -1.5 - 1e-9 <= power <= -0.7 + 1e-9
    else:
        assert change.kind == "gamma"
        power = abs(math.log2(values["exponent"])) / strength
        assert 0.15 - 1e-9 <= power <= 0.5 + 1e-9


@given(seed=seeds, kind=st.sampled_from(KINDS), strength=st.floats(0.1, 1))
def test_draws_stay_in_the_promised_ranges(seed: int, kind: str, strength: float) -> None:
    changes = draw(kind, np.random.default_rng(seed), strength)
    again = draw(kind, np.random.default_rng(seed), strength)
    assert changes == again
    if kind == "mixed":
        names = [change.kind for change in changes]
        assert 2 <= len(names) <= 3 and len(set(names)) == len(names)
        assert "mixed" not in names
    else:
        assert [change.kind for change in changes] == [kind]
    for change in changes:
        _check_ranges(change, strength * (0.7 if kind == "mixed" else 1.0))


@given(seed=seeds, kind=st.sampled_from(KINDS))
def test_a_paste_blends_by_the_mask_and_touches_nothing_else(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    mask = np.round(np.clip(rng.uniform(-0.5, 1.5, (9, 7)), 0, 1) * 255) / 255
    mask = mask.astype(np.float32)
    changes = draw(kind, rng)
    found = disturb_object(truth, mask, changes)
    changed: NDArray[np.float64] = disturb(truth, changes)
    assert changed.min() >= 0 and changed.max() <= 1
    for y in range(9):
        for x in range(7):
            share = float(mask[y, x])
            exact = (1 - share) * truth[y, x] + share * 255 * changed[y, x]
            assert np.abs(found[y, x] - exact).max() <= 0.5 + 1e-6
            if share == 0:
                assert (found[y, x] == truth[y, x]).all()


def test_what_is_unknown_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="fog"):
        draw("fog", rng)
    with pytest.raises(InputError, match="strength"):
        draw("gain", rng, 0.0)
    with pytest.raises(InputError, match="fog"):
        disturb(GREYS, [Change("fog", {})])
