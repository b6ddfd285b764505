"""The helpers that everything computes with, each against a plain way to say the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from skimage import data

from inlay.pictures.arrays import (
    Box,
    blur,
    bounds,
    distance,
    grow,
    luma,
    masked_blur,
    resize,
    shrink,
    soft_rim,
    to_uint8,
)


def spots(seed: int = 0, shape: tuple[int, int] = (61, 83)) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(shape) > 0.995


def test_resize_keeps_the_mean() -> None:
    image = (data.astronaut() / 255).astype(np.float32)
    for size in ((64, 64), (700, 900), (100, 512)):
        small = resize(image, size)
        assert small.shape == (*size, 3)
        assert np.abs(small.mean((0, 1)) - image.mean((0, 1))).max() < 0.004


def test_resize_and_shrink_keep_the_type() -> None:
    photo = data.coffee()
    assert resize(photo, (200, 300)).dtype == np.uint8
    assert resize(photo.astype(np.float32), (900, 1200)).dtype == np.float32
    assert shrink(photo, 100).shape == (100, 150, 3)
    assert np.array_equal(shrink(photo, 1000), photo)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 20), st.integers(1, 20))
def test_bounds_is_the_smallest_box(x: int, y: int, width: int, height: int) -> None:
    box = Box(x, y, width, height)
    mask = np.zeros((40, 40), np.float32)
    mask[y, x] = mask[box.bottom - 1, box.right - 1] = 0.01
    assert bounds(mask) == bounds(mask > 0) == box
    assert bounds(mask, 0.02) is None


def test_distance_and_grow_are_euclidean() -> None:
    mask = spots()
    exact = ndimage.distance_transform_edt(~mask)
    assert np.abs(distance(mask, exact=True) - exact).max() < 1e-4
    assert np.abs(distance(mask) - exact).max() < 0.03 * exact.max()
    for pixels in (0, 1, 7):
        assert np.array_equal(grow(mask, pixels), exact <= pixels)
    nothing = np.zeros_like(mask)
    assert not grow(nothing, 3).any()


def test_a_soft_rim_falls_from_one_to_nothing() -> None:
    mask = np.zeros((60, 60), np.bool_)
    mask[:, :20] = True
    rim = soft_rim(mask, 10)
    assert (rim[mask] == 1).all()
    assert (rim[:, 29:] == 0).all()
    assert (np.diff(rim[0, 19:30]) < 0).all()
    assert rim[0, 24] == pytest.approx(0.5)


@pytest.mark.parametrize("mirror", [False, True])
def test_a_masked_blur_sees_nothing_outside(mirror: bool) -> None:
    image = (data.coffee()[:80, :96] / 255).astype(np.float32)
    mask = np.zeros(image.shape[:2], np.float32)
    mask[20:60, 10:50] = 1
    painted = np.where(mask[..., None] > 0, image, 7).astype(np.float32)
    inside = masked_blur(image, mask, 3, mirror=mirror)
    assert np.array_equal(inside, masked_blur(painted, mask, 3, mirror=mirror))
    mode = "mirror" if mirror else "nearest"
    one = ndimage.gaussian_filter(image[..., 0] * mask, 3, mode=mode, truncate=4)
    expected = one / ndimage.gaussian_filter(mask, 3, mode=mode, truncate=4)
    assert np.abs(inside[..., 0] - expected)[mask > 0].max() < 0.01


def test_a_blur_of_a_constant_is_that_constant() -> None:
    flat = np.full((20, 30), 0.25, np.float32)
    assert np.abs(blur(flat, 4) - 0.25).max() < 1e-6


def test_levels_and_luma() -> None:
    values = np.array([-1, 0, 0.5, 1, 2], np.float32)
    assert to_uint8(values).tolist() == [0, 0, 128, 255, 255]
    assert luma(np.eye(3, dtype=np.float32)) == pytest.approx([0.299, 0.587, 0.114])
