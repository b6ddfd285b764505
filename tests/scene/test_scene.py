"""Placing a subject, and what makes a scene."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from inlay import Composer, InputError
from inlay.pictures.arrays import Box
from inlay.pictures.read import read_picture
from inlay.scene.stitch import Layer, Region, Scene, Window, merge, place
from inlay.scene.subject import Cutout, Subject

CUP = (data.coffee()[:200:2, :300:2] / 255).astype(np.float32)


def cutout(rgb: np.ndarray = CUP, alpha: np.ndarray | None = None) -> Cutout:
    if alpha is None:
        alpha = np.ones(rgb.shape[:2], np.float32)
    return Cutout(rgb, alpha.astype(np.float32), "cup", "0" * 64)


def put(**where: object) -> Subject:
    return Subject("cup.png", **where)


def disc(size: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.clip(radius + 0.5 - np.hypot(x, y), 0, 1).astype(np.float32)


def test_at_its_own_size_nothing_is_resampled() -> None:
    layer = place(cutout(), (400, 300), put(at=(200, 150), scale=1))
    assert layer.box == Box(125, 100, 150, 100)
    np.testing.assert_array_equal(layer.rgb, CUP)
    assert layer.alpha.min() == 1


def test_box_keeps_the_aspect_and_centres() -> None:
    layer = place(cutout(), (400, 300), put(box=Box(10, 20, 75, 200)))
    assert layer.box == Box(10, 20 + 75, 75, 50)
    layer = place(cutout(), (400, 300), put(box=Box(10, 20, 300, 50)))
    assert layer.box == Box(10 + 112, 20, 75, 50)


def test_shrinking_takes_the_mean_of_the_area() -> None:
    layer = place(cutout(), (400, 300), put(at=(200, 150), scale=0.5))
    mean = CUP.reshape(50, 2, 75, 2, 3).mean((1, 3))
    np.testing.assert_allclose(layer.rgb, mean, atol=1e-5)


def test_growing_keeps_a_ramp() -> None:
    ramp = np.repeat(np.linspace(0.1, 0.9, 40, dtype=np.float32)[None, :, None], 30, 0)
    layer = place(cutout(np.repeat(ramp, 3, 2)), (400, 300), put(at=(200, 150), scale=3))
    assert layer.box.width == 120 and layer.box.height == 90
    inner = layer.rgb[45, 6:-6, 0]
    wanted = 0.1 + ((np.arange(120) + 0.5) / 3 - 0.5) * 0.8 / 39
    # OpenCV's cubic kernel is off a straight line by up to a twentieth of a pixel.
    np.testing.assert_allclose(inner, wanted[6:-6], atol=0.8 / 39 / 20)


def test_default_is_the_middle_at_two_fifths() -> None:
    layer = place(cutout(), (500, 300), put())
    assert layer.box == Box(190, 110, 120, 80)


@pytest.mark.parametrize("scale", [0.37, 1.0, 2.6])
@pytest.mark.parametrize("rotate", [0.0, 33.0])
def test_no_colour_of_transparent_pixels_bleeds_in(scale: float, rotate: float) -> None:
    alpha = disc(60, 22)
    rgb = np.zeros((60, 60, 3), np.float32)
    rgb[..., 0] = 0.8
    rgb[alpha == 0] = (0, 1, 1)
    layer = place(cutout(rgb, alpha), (400, 400), put(at=(200, 200), scale=scale, rotate=rotate))
    seen = layer.alpha > 0.02
    assert abs(layer.rgb[seen] - np.float32([0.8, 0, 0])).max() < 2e-3
    # The area grows by the square of the scale.
    assert layer.alpha.sum() == pytest.approx(alpha.sum() * scale**2, rel=0.03)


def test_right_angles_and_flips_are_exact() -> None:
    at = put(at=(200, 150), scale=1)
    for turns in (-1, 1, 2, 5):
        layer = place(cutout(), (400, 300), put(at=at.at, scale=1, rotate=90 * turns))
        np.testing.assert_array_equal(layer.rgb, np.rot90(CUP, turns))
    layer = place(cutout(), (400, 300), put(at=at.at, scale=1, flip=True))
    np.testing.assert_array_equal(layer.rgb, CUP[:, ::-1])
    layer = place(cutout(), (400, 300), put(at=at.at, scale=1, flip=True, rotate=90))
    np.testing.assert_array_equal(layer.rgb, np.rot90(CUP[:, ::-1]))


def test_rotation_is_counter_clockwise() -> None:
    rgb = np.zeros((41, 81, 3), np.float32)
    rgb[:, 61:] = 1  # white on the right
    layer = place(cutout(rgb), (400, 400), put(at=(200, 200), scale=1, rotate=60))
    y, x = np.nonzero((layer.rgb[..., 0] > 0.5) & (layer.alpha > 0.5))
    assert y.mean() < layer.box.height / 2 - 15  # … ends up above
    assert x.mean() > layer.box.width / 2 + 8


def test_rotation_there_and_back() -> None:
    smooth = cv2.GaussianBlur(CUP, (0, 0), 2)
    there = place(cutout(smooth), (600, 600), put(at=(300, 300), scale=1, rotate=25))
    back = place(
        Cutout(there.rgb, there.alpha, "", ""), (600, 600),
        put(at=(300, 300), scale=1, rotate=-25),
    )  # fmt: skip
    middle = Box(235, 260, 130, 80)
    inner = middle.shifted(-back.box.x, -back.box.y).slices
    wanted = smooth[middle.shifted(-225, -250).slices]
    assert abs(back.rgb[inner] - wanted).mean() < 0.01
    assert back.alpha[inner].min() > 0.99


def test_partly_outside_is_clipped() -> None:
    whole = place(cutout(), (400, 300), put(at=(200, 150), scale=1))
    part = place(cutout(), (400, 300), put(at=(30, 290), scale=1))
    assert part.box == Box(0, 240, 105, 60)
    np.testing.assert_array_equal(part.rgb, whole.rgb[:60, 45:])


@pytest.mark.parametrize(
    ("where", "word"),
    [
        (put(at=(-80, 50), scale=1), "at -80,50"),
        (put(box=Box(400, 0, 20, 20)), "box 400,0,20,20"),
        (put(box=Box(-90, -90, 80, 80)), "box"),
    ],
)
def test_wholly_outside_names_the_option(where: Subject, word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        place(cutout(), (400, 300), where)
    assert "400 x 300" in str(caught.value)


def test_only_transparent_corner_inside_is_outside() -> None:
    subject = cutout(np.ones((60, 60, 3), np.float32), disc(60, 20))
    with pytest.raises(InputError, match="wholly outside"):
        place(subject, (100, 100), put(at=(-27, -27), scale=1))


@pytest.mark.parametrize(
    "arguments",
    [
        {"at": (float("nan"), 3)},
        {"at": (3, float("inf"))},
        {"at": (1, 2), "scale": 0},
        {"at": (1, 2), "scale": -1},
        {"scale": float("nan")},
        {"rotate": float("inf")},
        {"box": Box(0, 0, 9, 9), "random": True},
        {"box": Box(0, 0, 9, 9), "at": (1, 1)},
        {"box": Box(0, 0, 9, 9), "scale": 2.0},
        {"at": (1, 1), "random": True},
    ],
)
def test_a_place_that_makes_no_sense(arguments: dict) -> None:
    with pytest.raises(InputError):
        put(**arguments)


@pytest.mark.parametrize(
    ("where", "word"),
    [
        (put(at=(5, 5), scale=1e-4), "smaller than one pixel"),
        (put(at=(5, 5), scale=1e5), "smaller one"),
        (put(box=Box(0, 0, 900_000, 900_000)), "smaller one"),
        (put(random=True, scale=4.0), "at most"),
    ],
)
def test_a_size_beyond_reason(where: Subject, word: str) -> None:
    with pytest.raises(InputError, match=word):
        place(cutout(), (400, 300), where)


def test_random_is_the_seeds() -> None:
    boxes = [place(cutout(), (400, 300), put(random=True), seed).box for seed in range(12)]
    again = [place(cutout(), (400, 300), put(random=True), seed).box for seed in range(12)]
    assert boxes == again
    assert len(set(boxes)) == 12
    assert len({box.width for box in boxes}) > 6
    fixed = [
        place(cutout(), (400, 300), put(random=True, scale=0.5), seed).box for seed in range(12)
    ]
    assert {(box.width, box.height) for box in fixed} == {(75, 50)}


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    rotate=st.floats(-400, 400),
    flip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_random_lies_wholly_inside(
    size: tuple[int, int], shape: tuple[int, int], rotate: float, flip: bool, seed: int
) -> None:
    rgb = np.random.default_rng(seed).random((*shape, 3), np.float32)
    where = put(random=True, rotate=rotate, flip=flip)
    try:
        layer = place(cutout(rgb), size, where, seed)
    except InputError as error:
        assert "smaller than one pixel" in str(error)
        return
    assert layer.box.intersect(Box.of_size(size)) == layer.box
    assert layer.rgb.shape == (layer.box.height, layer.box.width, 3)
    assert layer.alpha.shape == layer.rgb.shape[:2]
    for values in (layer.rgb, layer.alpha):
        assert values.dtype == np.float32 and values.min() >= 0 and values.max() <= 1


@settings(max_examples=60, deadline=None)
@given(
    at=st.tuples(*(st.integers(-320, n).map(lambda v: v / 4) for n in (1920, 1520))),
    scale=st.floats(0.05, 4),
    rotate=st.sampled_from([0.0, 90.0, -90.0, 180.0]),
)
def test_clipping_cuts_and_does_not_move(
    at: tuple[float, float], scale: float, rotate: float
) -> None:
    where = put(at=at, scale=scale, rotate=rotate)
    moved = put(at=(at[0] + 1000, at[1] + 1000), scale=scale, rotate=rotate)
    whole = place(cutout(), (3000, 3000), moved)
    free = whole.box.shifted(-1000, -1000)
    wanted = free.intersect(Box.of_size((400, 300)))
    if wanted is None:
        with pytest.raises(InputError, match="wholly outside"):
            place(cutout(), (400, 300), where)
        return
    layer = place(cutout(), (400, 300), where)
    assert layer.box == wanted
    np.testing.assert_array_equal(layer.rgb, whole.rgb[wanted.shifted(-free.x, -free.y).slices])


def test_the_region_of_a_layer_is_its_alpha() -> None:
    background = read_picture(data.chelsea())
    layer = place(cutout(alpha=disc(150, 40)[25:125]), background.size, put())
    window = Window.of(background, Scene(layer.region, layer), 0.5)
    inner = layer.box.shifted(-window.box.x, -window.box.y).slices
    np.testing.assert_array_equal(window.alpha[inner], layer.alpha)
    assert window.alpha.sum() == pytest.approx(layer.alpha.sum())
    np.testing.assert_array_equal(window.clean, background.rgb(window.box))


def test_the_region_of_a_mask() -> None:
    mask = np.zeros((300, 451), np.float32)
    mask[40:60, 100:150] = 0.5
    mask[45, 120] = 1
    mask[0, 0] = 1 / 1000  # fainter than any 8-bit mask
    region = Region.of(mask)
    assert region.box == Box(100, 40, 50, 20)
    np.testing.assert_array_equal(region.mask, mask[40:60, 100:150])


def test_masks_and_backgrounds_that_do_not_fit_are_refused() -> None:
    picture, composer = data.chelsea(), Composer()
    with pytest.raises(InputError, match="451 x 300"):
        composer.remove(picture, mask=np.full((451, 300), 255, np.uint8), method="telea")
    with pytest.raises(InputError, match="empty"):
        composer.remove(picture, mask=np.zeros((300, 451), np.uint8), method="telea")
    with pytest.raises(InputError, match="mask"):
        composer.remove(picture, mask=np.full((300, 451), np.nan, np.float32), method="telea")
    with pytest.raises(InputError, match="of one size"):
        composer.harmonize(picture, background=data.coffee(), method="reinhard")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 9)] * 2, *[st.integers(1, 9)] * 2), min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_merged_layers_are_over_each_other(
    boxes: list[tuple[int, int, int, int]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    layers = [
        Layer(
            Box(*box),
            rng.random((box[3], box[2], 3), np.float32),
            rng.choice(np.float32([0, 0.3, 0.8, 1]), (box[3], box[2])),
        )
        for box in boxes
    ]
    result = merge(layers)
    whole = Box(0, 0, 20, 20)
    background = rng.random((20, 20, 3), np.float32)
    wanted = background.copy()
    for layer in layers:
        assert result.box.intersect(layer.box) == layer.box
        cover = layer.alpha[..., None]
        wanted[layer.box.slices] = layer.rgb * cover + wanted[layer.box.slices] * (1 - cover)
    assert result.box.intersect(whole) == result.box
    cover = result.alpha[..., None]
    got = background.copy()
    got[result.box.slices] = result.rgb * cover + got[result.box.slices] * (1 - cover)
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_one_layer_stays_what_it_is() -> None:
    layer = place(cutout(alpha=disc(150, 40)[25:125]), (400, 300), put())
    result = merge([layer])
    assert result.box == layer.box
    np.testing.assert_array_equal(result.rgb[result.alpha > 0], layer.rgb[layer.alpha > 0])
    np.testing.assert_array_equal(result.alpha, layer.alpha)
