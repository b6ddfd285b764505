"""Figures of a result against slow references and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage import data

from inlay.errors import InputError
from inlay.evaluation.figures import MAX_PSNR, fmse, measure, psnr


@given(seed=st.integers(0, 2**32 - 1))
def test_only_pixels_above_a_half_count(seed: int) -> None:
    rng = np.random.default_rng(seed)
    result, truth = rng.integers(0, 256, (2, 5, 6, 3), dtype=np.uint8)
    mask = rng.choice(np.float32([0, 0.25, 0.5, 0.75, 1]), (5, 6))
    mask[2, 3] = 1
    total, count = 0, 0
    for y in range(5):
        for x in range(6):
            if mask[y, x] > 0.5:
                for c in range(3):
                    total += (int(result[y, x, c]) - int(truth[y, x, c])) ** 2
                    count += 1
    assert fmse(result, truth, mask) == pytest.approx(total / count)
    found = measure(result, truth, mask)
    assert found["fmse"] == pytest.approx(total / count)
    assert found["fpsnr"] == pytest.approx(10 * math.log10(255**2 * count / total))


def test_psnr_is_capped() -> None:
    assert psnr(0) == MAX_PSNR
    assert psnr(1e-9) == MAX_PSNR
    assert psnr(255.0**2) == 0
    assert psnr(255.0**2 / 1000) == pytest.approx(30)


def test_greys_differ_by_their_lightness_alone() -> None:
    def lightness(level: int) -> float:
        luminance = ((level / 255 + 0.055) / 1.055) ** 2.4
        return 116 * luminance ** (1 / 3) - 16

    for one, two in ((100, 110), (40, 200), (128, 128)):
        first, second = (np.full((4, 4, 3), level, np.uint8) for level in (one, two))
        light, dark = lightness(one), lightness(two)
        # Sharma et al. 2005, eq. 15: S_L, with no chroma and no hue.
        middle = (light + dark) / 2
        weight = 1 + 0.015 * (middle - 50) ** 2 / math.sqrt(20 + (middle - 50) ** 2)
        expected = abs(light - dark) / weight
        found = measure(first, second, np.ones((4, 4), np.float32))
        assert found["delta_e"] == pytest.approx(expected, abs=2e-3)


def test_a_photo_is_itself_and_not_another() -> None:
    photo = data.astronaut()[:64, :64]
    mask = np.zeros((64, 64), np.float32)
    mask[20:40, 20:40] = 1
    same = measure(photo, photo, mask)
    assert (same["fmse"], same["fpsnr"], same["delta_e"]) == (0, MAX_PSNR, 0)
    outside = photo.copy()
    outside[mask == 0] = 0
    assert measure(outside, photo, mask) == same
    assert measure(photo[::-1], photo, mask)["delta_e"] > 1


def test_what_does_not_fit_is_refused() -> None:
    photo, mask = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), np.float32)
    with pytest.raises(InputError, match="nowhere above"):
        measure(photo, photo, mask / 2)
    with pytest.raises(InputError, match="expected arrays"):
        measure(photo, photo[:3], mask)
    with pytest.raises(InputError, match="expected arrays"):
        measure(photo, photo, mask[:3])
