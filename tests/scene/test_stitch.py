"""The crop, its sizes, and that stitching writes nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from inlay.errors import InputError
from inlay.methods.base import Painted
from inlay.methods.workspace import model_size
from inlay.pictures.arrays import Box
from inlay.pictures.read import read_picture
from inlay.scene.stitch import (
    Region,
    Scene,
    Window,
    crop_box,
    stitch,
)


@given(
    st.integers(1, 900), st.integers(1, 900), st.data(), st.floats(0, 4), st.integers(1, 512)
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_the_crop_holds_the_region_and_stays_inside(
    width: int, height: int, draw: st.DataObject, context: float, least: int
) -> None:
    w, h = draw.draw(st.integers(1, width)), draw.draw(st.integers(1, height))
    x, y = draw.draw(st.integers(0, width - w)), draw.draw(st.integers(0, height - h))
    region = Box(x, y, w, h)
    box = crop_box(region, (width, height), context, least)
    assert box.intersect(Box(0, 0, width, height)) == box
    assert region.intersect(box) == region
    side = max(np.ceil(max(w, h) * (1 + 2 * context)), least)
    assert box.width == min(side, width)
    assert box.height == min(side, height)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (Box(0, 0, 300, 300), (128, 128)),
        (Box(0, 0, 1000, 300), (32, 128)),
        (Box(0, 0, 1000, 5), (16, 128)),
        (Box(0, 0, 40, 64), (128, 80)),
    ],
)
def test_model_size(box: Box, expected: tuple[int, int]) -> None:
    assert model_size(box, 128, 16) == expected


def _window(depth: int = 8) -> tuple[object, Window, np.ndarray]:
    photo = data.coffee()
    mask = np.zeros(photo.shape[:2], np.float32)
    mask[100:180, 200:330] = 1
    picture = read_picture(photo)
    window = Window.of(picture, Scene(Region.of(mask)), 0.5, 128)
    return picture, window, mask


def test_only_the_effect_is_written() -> None:
    picture, window, _ = _window()
    rng = np.random.default_rng(0)
    effect = rng.random(window.shape) > 0.7
    painted = Painted(rng.random((*window.shape, 3)).astype(np.float32), effect)
    result, box, mask = stitch(picture, window, painted)
    differs = (result.samples != picture.samples).any(-1)
    inside = np.zeros_like(differs)
    inside[window.box.slices] = effect
    assert not (differs & ~inside).any()
    assert differs.sum() > 0.95 * effect.sum()
    named = np.zeros_like(differs)
    named[box.slices] = mask > 0
    assert np.array_equal(named, inside)
    written = result.samples[window.box.slices][effect]
    assert np.array_equal(written, np.round(painted.rgb[effect] * 255).astype(np.uint8))


def test_what_did_not_change_is_not_written_again() -> None:
    picture, window, _ = _window()
    painted = Painted(window.was.copy(), np.ones(window.shape, np.bool_))
    result, _, _ = stitch(picture, window, painted)
    assert np.array_equal(result.samples, picture.samples)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_colours_that_are_no_numbers_are_refused(value: float) -> None:
    picture, window, _ = _window()
    rgb, effect = window.was.copy(), np.ones(window.shape, np.bool_)
    rgb[3, 5, 1] = value
    with pytest.raises(InputError, match="no numbers"):
        stitch(picture, window, Painted(rgb, effect))
    effect[3, 5] = False
    assert np.array_equal(stitch(picture, window, Painted(rgb, effect))[0].samples, picture.samples)


def test_no_effect_is_no_change() -> None:
    picture, window, _ = _window()
    painted = Painted(1 - window.was, np.zeros(window.shape, np.bool_))
    result, box, mask = stitch(picture, window, painted)
    assert np.array_equal(result.samples, picture.samples)
    assert box.area == 1
    assert not mask.any()


def test_rim_and_growth_are_distances() -> None:
    _, window, mask = _window()
    inner = mask[window.box.slices] > 0.5
    rim = window.rim(0.1)
    assert (rim[inner] == 1).all()
    radius = 0.1 * max(window.shape)
    ys, xs = np.nonzero(inner)
    away = np.zeros(window.shape)
    grid_y, grid_x = np.mgrid[: window.shape[0], : window.shape[1]]
    dy = np.maximum(np.maximum(ys.min() - grid_y, grid_y - ys.max()), 0)
    dx = np.maximum(np.maximum(xs.min() - grid_x, grid_x - xs.max()), 0)
    away = np.hypot(dx, dy)
    assert (rim[away > radius + 1] == 0).all()
    assert (rim[(away > 0) & (away < radius - 1)] > 0).all()
    assert (np.diff(rim[inner.any(1).argmax() + 5]) <= 1e-6)[xs.max() + 1 :].all()
    grown = window.region(0.1)
    assert (grown[away < 0.98 * radius - 1] == 1).all()
    assert (grown[away > 1.02 * radius + 1] == 0).all()


def test_a_thin_region_still_has_a_mask() -> None:
    photo = data.coffee()
    mask = np.zeros(photo.shape[:2], np.float32)
    mask[50:350, 300] = 1
    window = Window.of(read_picture(photo), Scene(Region.of(mask)), 0.5, 1)
    assert window.mask((128, 128)).sum() > 0


def test_see_through_background_keeps_the_law_of_over() -> None:
    from inlay.scene.stitch import place
    from inlay.scene.subject import Cutout, Subject

    background = np.zeros((64, 64, 4), np.uint8)
    background[..., 0], background[..., 3] = 200, 128
    subject = Cutout(
        rgb=np.full((16, 16, 3), (0.0, 1.0, 0.0), np.float32),
        alpha=np.full((16, 16), 0.5, np.float32),
        name="subject",
        sha256="",
    )
    picture = read_picture(background)
    layer = place(subject, picture.size, Subject("subject.png", box=Box(24, 24, 16, 16)))
    window = Window.of(picture, Scene(layer.region, layer), 0.5)
    painted = Painted(window.pasted, window.alpha > 0)
    result, _, _ = stitch(picture, window, painted)
    b = 128 / 255
    alpha = 0.5 + b * 0.5
    pixel = result.samples[32, 32]
    assert pixel[3] == pytest.approx(alpha * 255, abs=1)
    assert pixel[0] == pytest.approx(200 * b * 0.5 / alpha, abs=1)
    assert pixel[1] == pytest.approx(255 * 0.5 / alpha, abs=1)
    assert np.array_equal(result.samples[0, 0], background[0, 0])
