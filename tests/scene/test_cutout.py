"""Cutting out: known subjects over known backgrounds, and no halo afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from skimage import data

import inlay
from inlay.errors import InputError
from inlay.pictures.arrays import Box, bounds
from inlay.scene.matte import colours, matte
from inlay.scene.subject import cut

Array = NDArray[np.float32]

SIZE = (320, 240)


def photo(image: NDArray[np.uint8]) -> Array:
    return (cv2.resize(image, SIZE, interpolation=cv2.INTER_AREA) / 255).astype(np.float32)


def blob(soft: float, size: tuple[int, int] = SIZE) -> Array:
    """A wavy disc in the middle with an edge blurred by `soft` pixels."""
    turn = np.linspace(0, 2 * np.pi, 400)
    radius = 0.3 * min(size) * (1 + 0.12 * np.sin(7 * turn))
    points = np.stack([size[0] / 2 + radius * np.cos(turn), size[1] / 2 + radius * np.sin(turn)], 1)
    alpha = np.zeros(size[::-1], np.float32)
    cv2.fillPoly(alpha, [np.round(points * 16).astype(np.int32)], 1.0, cv2.LINE_8, 4)
    return cv2.GaussianBlur(alpha, (0, 0), soft)


def over(front: Array, back: Array, alpha: Array) -> Array:
    return front * alpha[..., None] + back * (1 - alpha[..., None])


# Photographs as subject, old and new background; orange against blue, so that they differ.
FRONT = np.clip(0.5 * photo(data.astronaut()) + np.float32([0.45, 0.2, 0]), 0, 1)
BACK = np.clip(0.4 * photo(data.chelsea()) + np.float32([0, 0.1, 0.4]), 0, 1)
NEW = photo(data.coffee())


def eight(image: Array) -> NDArray[np.uint8]:
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def rgba(rgb: Array, alpha: Array) -> NDArray[np.uint8]:
    return np.dstack([eight(rgb), eight(alpha)])


def recomposed(result: Image.Image) -> Array:
    whole = np.asarray(result, np.float32) / 255
    return over(whole[..., :3], NEW, whole[..., 3])


def rim_error(result: Array, alpha: Array) -> float:
    """Mean distance from the true composite over the new background, where alpha is partial."""
    rim = (alpha > 0.01) & (alpha < 0.99)
    return float(abs(result - over(FRONT, NEW, alpha))[rim].mean())


# --- the matte


@pytest.mark.parametrize("soft", [1.0, 2.0])
def test_hard_mask_gets_a_matte_and_no_halo(soft: float) -> None:
    alpha = blob(soft)
    picture = eight(over(FRONT, BACK, alpha))
    result = inlay.cut(picture, mask=eight((alpha > 0.5).astype(np.float32)))
    got = np.asarray(result, np.float32)[..., 3] / 255
    rim = (alpha > 0.01) & (alpha < 0.99)
    hard = abs((alpha > 0.5) - alpha)[rim].mean()
    assert abs(got - alpha)[rim].mean() < (0.05 if soft == 1 else 0.08)
    assert abs(got - alpha)[rim].mean() < 0.5 * hard
    assert abs(got - alpha)[~rim].max() < 0.15
    raw = over(picture.astype(np.float32) / 255, NEW, got)
    assert rim_error(recomposed(result), alpha) < (0.02 if soft == 1 else 0.03)
    assert rim_error(recomposed(result), alpha) < 0.6 * rim_error(raw, alpha)


def test_soft_mask_is_the_alpha_and_colours_are_cleaned() -> None:
    alpha = blob(2.0)
    picture = eight(over(FRONT, BACK, alpha))
    result = inlay.cut(picture, mask=eight(alpha))
    got = np.asarray(result)[..., 3]
    np.testing.assert_array_equal(got, eight(alpha) * (eight(alpha) > 12))
    raw = over(picture.astype(np.float32) / 255, NEW, alpha)
    # Levels below a twentieth are taken to be nothing.
    assert rim_error(recomposed(result), alpha) < 0.012
    assert rim_error(recomposed(result), alpha) < 0.3 * rim_error(raw, alpha)
    # The colour itself, where there is enough of it to be measured.
    seen = (alpha > 0.3) & (alpha < 0.99)
    found = np.asarray(result, np.float32)[..., :3] / 255
    assert abs(found - FRONT)[seen].mean() < 0.025
    assert (
        abs(found - FRONT)[seen].mean() < 0.3 * abs(over(FRONT, BACK, alpha) - FRONT)[seen].mean()
    )


def test_box_finds_the_subject_and_leaves_no_halo() -> None:
    alpha = blob(1.0)
    picture = eight(over(FRONT, BACK, alpha))
    place = bounds(alpha)
    assert place is not None
    result = inlay.cut(picture, box=place.grown(6))
    got = np.asarray(result, np.float32)[..., 3] / 255
    assert abs(got - alpha).mean() < 0.01
    assert rim_error(recomposed(result), alpha) < 0.025
    # As sharp-edged scissors along the same outline would do it:
    scissors = over(picture.astype(np.float32) / 255, NEW, (got > 0.5).astype(np.float32))
    assert rim_error(recomposed(result), alpha) < 0.7 * rim_error(scissors, alpha)


def test_grabcut_without_a_box() -> None:
    alpha = blob(1.0)
    picture = eight(over(FRONT, BACK, alpha))
    got = np.asarray(inlay.cut(picture, by="grabcut"), np.float32)[..., 3] / 255
    assert abs(got - alpha).mean() < 0.01
    again = np.asarray(inlay.cut(picture, by="grabcut"), np.float32)[..., 3] / 255
    np.testing.assert_array_equal(got, again)


def test_a_real_cup() -> None:
    """The cup's rim and coffee are in, the table is out, and the cut is the seed's alone."""
    photo = data.coffee()
    first = np.asarray(inlay.cut(photo, box=Box(75, 12, 390, 380)))
    assert first.shape == (400, 600, 4)
    assert first[120, 260, 3] == 255 and first[330, 200, 3] == 255
    assert first[:, 480:, 3].max() == 0 and first[:, :60, 3].max() == 0
    assert first[20, 480, 3] == 0
    solid = first[..., 3] == 255
    np.testing.assert_array_equal(first[..., :3][solid], photo[solid])
    np.testing.assert_array_equal(first, inlay.cut(photo, box=Box(75, 12, 390, 380)))


def test_matte_changes_only_the_band() -> None:
    alpha = blob(1.0)
    outline = alpha > 0.5
    found = matte(over(FRONT, BACK, alpha), outline)
    away = cv2.distanceTransform(outline.astype(np.uint8), cv2.DIST_L2, 5) + cv2.distanceTransform(
        (~outline).astype(np.uint8), cv2.DIST_L2, 5
    )
    np.testing.assert_array_equal(found[away > 9], outline[away > 9])


def test_matte_above_a_megapixel_works_smaller() -> None:
    size = (2400, 1800)
    alpha = blob(2.0, size)
    front, back = (
        cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) for image in (FRONT, BACK)
    )
    found = matte(over(front, back, alpha), alpha > 0.5)
    rim = (alpha > 0.01) & (alpha < 0.99)
    assert abs(found - alpha)[rim].mean() < 0.06
    assert abs(found - alpha)[~rim].max() < 0.2


def test_subject_at_the_pictures_border_is_not_softened_there() -> None:
    alpha = np.zeros(SIZE[::-1], np.float32)
    alpha[:, :150] = 1
    alpha = cv2.GaussianBlur(alpha, (0, 0), 1, borderType=cv2.BORDER_REPLICATE)
    found = matte(over(FRONT, BACK, alpha), alpha > 0.5)
    assert found[:, :140].min() == 1 and found[:, 165:].max() == 0


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
)
def test_any_outline_gives_an_alpha(shape: tuple[int, int], share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    outline = rng.random(shape) < share
    outline.flat[rng.integers(outline.size)] = True
    rgb = rng.random((*shape, 3), np.float32)
    alpha = matte(rgb, outline, "wide")
    assert alpha.shape == shape and alpha.dtype == np.float32
    assert np.isfinite(alpha).all() and alpha.min() >= 0 and alpha.max() <= 1
    place = bounds(alpha)
    assert place is not None
    found = colours(rgb, alpha, place)
    assert found.shape == (place.height, place.width, 3) and found.dtype == np.float32
    assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1


# --- alpha, masks, defaults


def test_alpha_is_taken_as_it_is() -> None:
    alpha = blob(1.5)
    source = rgba(FRONT, alpha)
    got = cut(source)
    # What is below a twentieth is nothing.
    source[source[..., 3] < 0.05 * 255, 3] = 0
    alpha *= source[..., 3] > 0
    place = bounds(alpha)
    assert place is not None
    assert got.alpha.shape == (place.height, place.width)
    np.testing.assert_allclose(got.alpha, alpha[place.slices], atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(got.rgb, FRONT[place.slices], atol=0.5 / 255 + 1e-6)
    whole = np.asarray(inlay.cut(source))
    seen = source[..., 3] > 0
    np.testing.assert_array_equal(whole[seen], source[seen])
    assert not whole[~seen].any()


def test_a_box_narrows_alpha_and_mask() -> None:
    alpha = np.zeros(SIZE[::-1], np.float32)
    alpha[50:80, 40:90] = 1
    alpha[150:170, 200:260] = 1
    half = Box(180, 100, 140, 140)
    assert cut(rgba(FRONT, alpha), box=half).alpha.shape == (20, 60)
    both = cut(eight(FRONT), mask=eight(alpha))
    one = cut(eight(FRONT), mask=eight(alpha), box=half)
    assert both.alpha.shape[0] > 100 and one.alpha.shape[0] < 40


def test_defaults_follow_what_is_given(tmp_path: Path) -> None:
    alpha = blob(1.0)
    plain, clear = eight(over(FRONT, BACK, alpha)), rgba(FRONT, alpha)
    mask = tmp_path / "mask.png"
    Image.fromarray(eight(alpha)).save(mask)
    by_mask = cut(plain, mask=mask)
    np.testing.assert_allclose(by_mask.alpha, cut(plain, mask=mask, by="mask").alpha)
    np.testing.assert_array_equal(cut(clear).alpha, cut(clear, by="alpha").alpha)
    opaque = np.dstack([plain, np.full(plain.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(cut(opaque).alpha, cut(plain, by="auto").alpha)
    # A mask goes before the picture's own alpha, which still hides what it hides.
    left = alpha.copy()
    left[:, 160:] = 0
    both = cut(rgba(FRONT, left), mask=eight(alpha))
    assert both.alpha.shape[1] < by_mask.alpha.shape[1]


def test_a_mask_with_jpeg_noise_is_still_hard(tmp_path: Path) -> None:
    alpha = blob(1.0)
    picture = eight(over(FRONT, BACK, alpha))
    outline = tmp_path / "mask.jpg"
    Image.fromarray(eight((alpha > 0.5).astype(np.float32))).save(outline, quality=92)
    got = np.asarray(inlay.cut(picture, mask=outline), np.float32)[..., 3] / 255
    rim = (alpha > 0.01) & (alpha < 0.99)
    assert abs(got - alpha)[rim].mean() < 0.08


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"by": "mask"}, "no mask"),
        ({"by": "box"}, "no box"),
        ({"by": "alpha"}, "no transparency"),
        ({"by": "alpha", "mask": np.full((240, 320), 255, np.uint8)}, "a mask is given"),
        ({"by": "box", "box": Box(320, 0, 10, 10)}, "outside"),
        ({"box": Box(-50, -50, 50, 50)}, "320 x 240"),
        ({"mask": np.zeros((240, 320), np.uint8)}, "empty"),
        ({"mask": np.full((320, 240), 255, np.uint8)}, "mask"),
        ({"by": "nothing of the kind"}, "cannot cut by"),
        ({"by": "no/../model"}, "cannot cut by"),
        ({"box": Box(5, 5, 2, 2)}, "give a mask"),
    ],
)
def test_refuses(arguments: dict, word: str) -> None:
    with pytest.raises(InputError, match=word):
        cut(eight(FRONT), **arguments)


def test_refuses_an_empty_mask_inside_the_box() -> None:
    mask = np.zeros((240, 320), np.uint8)
    mask[:20, :20] = 255
    with pytest.raises(InputError, match="no subject"):
        cut(eight(FRONT), mask=mask, box=Box(100, 100, 50, 50))


def test_refuses_a_fully_transparent_picture() -> None:
    with pytest.raises(InputError, match="transparent"):
        cut(rgba(FRONT, np.zeros(SIZE[::-1], np.float32)))


def test_grabcut_that_finds_nothing_asks_for_a_mask() -> None:
    with pytest.raises(InputError, match="give a mask"):
        cut(np.full((60, 80, 3), 120, np.uint8), box=Box(20, 20, 30, 30))


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    box=st.none()
    | st.builds(
        Box, st.integers(-5, 20), st.integers(-5, 20), st.integers(1, 25), st.integers(1, 25)
    ),
    seed=st.integers(0, 99),
)
def test_tiny_pictures_are_cut_or_refused(
    shape: tuple[int, int], box: Box | None, seed: int
) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)
    try:
        result = cut(picture, box=box)
    except InputError:
        return
    assert result.alpha.shape == result.rgb.shape[:2]
    assert result.alpha.max() > 0


@pytest.mark.parametrize("order", ["import torch; torch.set_num_threads(1)", ""])
def test_cutting_leaves_torchs_number_of_threads_alone(order: str) -> None:
    """The matting library's own threads, of which there are as many as cores, would set it; and of
    that library no more is imported, and compiled, than is run.
    """
    program = (
        f"{order}\nimport sys, numpy as np\n"
        "from inlay.pictures.arrays import Box\n"
        "from inlay.scene.matte import colours\n"
        "alpha = np.zeros((32, 32), np.float32)\n"
        "alpha[8:24, 8:24] = 0.5\n"
        "colours(np.full((32, 32, 3), 0.5, np.float32), alpha, Box(4, 4, 24, 24))\n"
        "import torch\n"
        "print(torch.get_num_threads(), sorted(n for n in sys.modules if 'pymatting' in n))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.startswith("1 ['pymatting.alpha.estimate_alpha_cf', "), done.stderr
    assert "pymatting.alpha.estimate_alpha_knn" not in done.stdout
