"""The classical methods against closed forms, slow references and real photographs."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage import color, data

from inlay.errors import InputError
from inlay.methods import feather, paste, patches, poisson, reinhard, telea
from inlay.methods.base import Context, Method, Painted
from inlay.pictures.arrays import Box
from inlay.scene.fill import (
    backdrop,
    fill_hole,
    foreground,
    membrane,
)
from inlay.scene.stitch import Window

Array = NDArray[np.float32]

METHODS = [module.METHOD for module in (paste, feather, poisson, reinhard, telea, patches)]
REMOVING = ("telea", "patches")


def photo(image: NDArray[np.uint8], size: tuple[int, int] = (120, 90)) -> Array:
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return (small / 255).astype(np.float32)


COFFEE, ASTRONAUT, CHELSEA = (photo(x) for x in (data.coffee(), data.astronaut(), data.chelsea()))


def ellipse(soft: float = 0.0, shape: tuple[int, int] = (90, 120)) -> Array:
    y, x = np.mgrid[: shape[0], : shape[1]]
    middle = ((x - shape[1] / 2) / 33) ** 2 + ((y - shape[0] / 2) / 24) ** 2 < 1
    mask = middle.astype(np.float32)
    return cv2.GaussianBlur(mask, (0, 0), soft) if soft else mask


def composed(subject: Array, background: Array, alpha: Array) -> Window:
    pasted = subject * alpha[..., None] + background * (1 - alpha[..., None])
    box = Box(0, 0, alpha.shape[1], alpha.shape[0])
    return Window(box, background, pasted, alpha, background)


def given_picture(picture: Array, mask: Array) -> Window:
    return Window(Box(0, 0, mask.shape[1], mask.shape[0]), picture, picture, mask, picture)


def run(method: Method, window: Window, **knobs: object) -> Painted:
    full = {"amount": 1.0} if "amount" in method.settings.model_fields else {}
    return method.run(window, None, method.settings(**(full | knobs)), Context())


def laplacian(image: Array) -> Array:
    kernel = np.float32([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REPLICATE)


def slow_poisson(start: Array, right: Array, inside: NDArray[np.bool_]) -> Array:
    """Lap u = right inside, u = start outside, zero slope at the border: pixel by pixel."""
    number = -np.ones(inside.shape, int)
    number[inside] = range(inside.sum())
    matrix = np.zeros((inside.sum(),) * 2)
    known = np.zeros((inside.sum(), start.shape[2]))
    for (y, x), row in zip(np.argwhere(inside), range(inside.sum()), strict=True):
        known[row] -= right[y, x]
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if not (0 <= v < inside.shape[0] and 0 <= u < inside.shape[1]):
                continue
            matrix[row, row] += 1
            if inside[v, u]:
                matrix[row, number[v, u]] -= 1
            else:
                known[row] += start[v, u]
    result = start.copy()
    result[inside] = np.linalg.solve(matrix, known)
    return result


# --- what holds for all of them


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_facts_and_settings(method: Method) -> None:
    assert method.verbs == (("remove",) if method.name in REMOVING else ("compose", "harmonize"))
    assert not method.needs_model
    for name, knob in method.settings.model_fields.items():
        assert knob.description, name
        assert knob.default is not None
        if isinstance(knob.default, float | int):
            assert {type(bound).__name__ for bound in knob.metadata} == {"Ge", "Le"}, name


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    share=st.floats(0.01, 0.9),
    soft=st.booleans(),
    known=st.booleans(),
    seed=st.integers(0, 999),
)
def test_any_mask_gives_a_picture_that_differs_only_in_the_effect(
    method: Method, shape: tuple[int, int], share: float, soft: bool, known: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    subject, background = rng.random((2, *shape, 3), np.float32)
    alpha = (rng.random(shape) < share).astype(np.float32)
    alpha.flat[rng.integers(alpha.size)] = 1
    if soft:
        alpha *= rng.random(shape, np.float32)
        alpha.flat[rng.integers(alpha.size)] = 0.3
    window = composed(subject, background, alpha)
    if not known or method.name in REMOVING:
        window = given_picture(window.pasted, alpha)
    try:
        painted = run(method, window)
    except InputError:
        assert method.name in REMOVING and (alpha > 0).all()
        return
    assert painted.rgb.dtype == np.float32 and painted.rgb.shape == (*shape, 3)
    assert painted.mask.dtype == np.bool_ and painted.mask.shape == shape
    assert np.isfinite(painted.rgb).all()
    assert painted.rgb.min() >= -1e-6 and painted.rgb.max() <= 1 + 1e-6
    assert painted.mask[alpha > (0.5 / 255 if method.name in REMOVING else 0)].all()
    if method.name not in REMOVING:
        assert not painted.mask[alpha == 0].any()


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_twice_the_same(method: Method) -> None:
    window = composed(ASTRONAUT, COFFEE, ellipse(1.2))
    if method.name in REMOVING:
        window = given_picture(window.pasted, window.alpha)
    first, second = run(method, window), run(method, window)
    np.testing.assert_array_equal(first.rgb, second.rgb)
    np.testing.assert_array_equal(first.mask, second.mask)


# --- paste


def test_paste_is_the_composite() -> None:
    window = composed(ASTRONAUT, COFFEE, ellipse(1.5))
    painted = run(paste.METHOD, window)
    np.testing.assert_array_equal(painted.rgb, window.pasted)
    np.testing.assert_array_equal(painted.mask, window.alpha > 0)


# --- feather


def test_feather_follows_the_error_function_along_a_straight_edge() -> None:
    alpha = np.zeros((60, 100), np.float32)
    alpha[:, 50:] = 1
    weight = feather.inward(alpha, 8.0)
    distance = np.arange(100) + 0.5 - 50
    wanted = [max(math.erf(d / (math.sqrt(2) * 4)), 0) for d in distance]
    # The blur sums over pixels, the formula integrates: 1/200 apart at this width.
    np.testing.assert_allclose(weight[30], wanted, atol=5e-3)


def test_feather_stays_inside_and_keeps_the_middle() -> None:
    window = composed(ASTRONAUT, COFFEE, ellipse())
    painted = run(feather.METHOD, window, radius=6)
    outside = window.alpha == 0
    np.testing.assert_array_equal(painted.rgb[outside], COFFEE[outside])
    deep = cv2.erode(window.alpha, np.ones((25, 25))) > 0
    np.testing.assert_allclose(painted.rgb[deep], ASTRONAUT[deep], atol=2e-3)
    rim = (window.alpha > 0) & (cv2.erode(window.alpha, np.ones((3, 3))) == 0)
    assert abs(painted.rgb - COFFEE)[rim].mean() < 0.3 * abs(window.pasted - COFFEE)[rim].mean()


def test_feather_radius_zero_is_paste_and_the_picture_border_is_no_edge() -> None:
    alpha = np.zeros((90, 120), np.float32)
    alpha[:, :60] = 1
    window = composed(ASTRONAUT, COFFEE, alpha)
    np.testing.assert_allclose(run(feather.METHOD, window, radius=0).rgb, window.pasted, atol=1e-6)
    painted = run(feather.METHOD, window, radius=5)
    np.testing.assert_allclose(painted.rgb[:, :40], ASTRONAUT[:, :40], atol=1e-4)


def test_feather_leaves_something_of_a_thin_subject() -> None:
    alpha = np.zeros((90, 120), np.float32)
    alpha[40:48, 10:110] = 1
    window = composed(np.ones_like(COFFEE), np.zeros_like(COFFEE), alpha)
    context = Context()
    settings = feather.FeatherSettings(radius=200)
    painted = feather.METHOD.run(window, None, settings, context)
    assert painted.rgb[43, 60, 0] > 0.8
    assert "lowered" in context.notes[0]


# --- poisson


@pytest.mark.parametrize("border", [False, True])
def test_membrane_solves_laplace(border: bool) -> None:
    rng = np.random.default_rng(1)
    values = rng.random((37, 41, 2), np.float32)
    inside = ellipse(shape=(37, 41)) > 2
    y, x = np.mgrid[:37, :41]
    inside = (np.hypot(x - (4 if border else 20), y - 18) < 13) & (rng.random((37, 41)) < 0.97)
    wanted = slow_poisson(values, np.zeros_like(values), inside)
    np.testing.assert_allclose(membrane(values, inside), wanted, atol=2e-3)


def test_membrane_of_a_plane_is_the_plane() -> None:
    y, x = np.mgrid[:150, :200].astype(np.float32)
    plane = np.dstack([x / 200, y / 150, (x - y) / 300]).astype(np.float32)
    inside = np.hypot(x - 100, y - 75) < 60
    holed = np.where(inside[..., None], 9, plane)
    np.testing.assert_allclose(membrane(holed, inside), plane, atol=1e-2)


def test_clone_is_perez_equation_3() -> None:
    source, target = (cv2.resize(image, (48, 36)) for image in (ASTRONAUT, COFFEE))
    # OpenCV clips to [0, 1] on the way: keep the colours clear of both ends.
    source, target = 0.3 + 0.3 * source, 0.4 + 0.3 * target
    y, x = np.mgrid[:36, :48]
    inside = ((x - 22) / 14) ** 2 + ((y - 19) / 11) ** 2 < 1
    wanted = slow_poisson(target, laplacian(source), inside)
    solved = poisson.clone(source, target, inside, "normal")
    np.testing.assert_array_equal(solved[~inside], target[~inside])
    assert abs(solved - wanted)[inside].max() < 3 / 255
    assert abs(solved - wanted)[inside].mean() < 1 / 255


def test_clone_of_a_shifted_background_gives_the_background() -> None:
    target = 0.2 + 0.5 * COFFEE
    inside = ellipse() > 0
    for gradients in ("normal", "mixed"):
        solved = poisson.clone(target + np.float32(0.2), target, inside, gradients)
        assert abs(solved - target).max() < 3 / 255


def test_poisson_leaves_no_seam() -> None:
    window = composed(0.2 + 0.4 * ASTRONAUT, 0.3 + 0.4 * CHELSEA, ellipse())
    painted = run(poisson.METHOD, window)

    inside = window.alpha > 0
    across = np.argwhere(inside[:, 1:] != inside[:, :-1])

    def jump(image: Array) -> float:
        """Mean step over the mask's edge."""
        return float(np.mean([abs(image[y, x + 1] - image[y, x]).mean() for y, x in across]))

    assert jump(painted.rgb) < 0.25 * jump(window.pasted)
    assert jump(painted.rgb) < 2 * jump(window.clean)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("soft", [0.0, 1.5])
def test_poisson_takes_a_colour_cast_off(known: bool, soft: bool) -> None:
    alpha = ellipse(soft)
    background = 0.2 + 0.5 * CHELSEA
    cast = np.clip(background + np.float32([0.2, 0, -0.15]), 0, 1)
    window = composed(cast, background, alpha)
    if not known:
        window = given_picture(window.pasted, alpha)
    painted = run(poisson.METHOD, window)
    before, after = abs(window.pasted - background).mean(), abs(painted.rgb - background).mean()
    # Without the clean picture a soft rim's share of the background can only be guessed.
    assert after < (0.35 if soft and not known else 0.2) * before
    half = run(poisson.METHOD, window, amount=0.5)
    np.testing.assert_allclose(half.rgb, (window.pasted + painted.rgb) / 2, atol=1e-5)
    np.testing.assert_allclose(run(poisson.METHOD, window, amount=0).rgb, window.pasted, atol=1e-6)


def test_poisson_at_the_border_and_over_all() -> None:
    alpha = np.zeros((90, 120), np.float32)
    alpha[40:, :70] = 1
    background = 0.2 + 0.5 * CHELSEA
    window = composed(background + np.float32(0.1), background, alpha)
    assert abs(run(poisson.METHOD, window).rgb - background).mean() < 0.01
    everywhere = composed(ASTRONAUT, COFFEE, np.ones((90, 120), np.float32))
    assert np.isfinite(run(poisson.METHOD, everywhere).rgb).all()


def test_mixed_keeps_the_backgrounds_stronger_gradients() -> None:
    flat = np.full_like(COFFEE, 0.5)
    window = composed(flat, 0.2 + 0.6 * COFFEE, ellipse())
    inner = cv2.erode(ellipse(), np.ones((9, 9))) > 0

    def detail(image: Array) -> float:
        return float(abs(laplacian(image))[inner].mean())

    normal, mixed = (run(poisson.METHOD, window, gradients=g).rgb for g in ("normal", "mixed"))
    assert detail(normal) < 0.15 * detail(window.clean)
    assert detail(mixed) > 0.8 * detail(window.clean)


# --- reinhard


@pytest.mark.parametrize("space", ["lalphabeta", "cielab"])
def test_colour_spaces_there_and_back(space: str) -> None:
    there = reinhard.to_space(COFFEE, space)
    np.testing.assert_allclose(reinhard.from_space(there, space), COFFEE, atol=1e-4)


def test_colour_spaces_against_references() -> None:
    np.testing.assert_allclose(
        reinhard.to_space(COFFEE, "cielab"), color.rgb2lab(COFFEE), atol=0.02
    )
    # Equal cone responses 10^-1 have l = -sqrt(3), alpha = beta = 0 (the offset aside).
    lms = np.linalg.inv(reinhard._LMS) @ np.float32([0.1, 0.1, 0.1])
    rgb = np.where(lms <= 0.0031308, 12.92 * lms, 1.055 * lms ** (1 / 2.4) - 0.055)
    values = reinhard.to_space(rgb[None, None].astype(np.float32), "lalphabeta")[0, 0]
    assert values == pytest.approx([-math.sqrt(3), 0, 0], abs=0.02)


@pytest.mark.parametrize("space", ["lalphabeta", "cielab"])
def test_reinhard_matches_mean_and_spread(space: str) -> None:
    subject, background = 0.35 + 0.2 * ASTRONAUT, 0.4 + 0.15 * CHELSEA
    window = composed(subject, background, ellipse())
    painted = run(reinhard.METHOD, window, space=space, limit=10, reach=4)
    inside = window.alpha > 0
    got = reinhard.to_space(painted.rgb[inside], space)
    wanted = reinhard.to_space(background[~inside], space)
    scale = 100 if space == "cielab" else 1
    np.testing.assert_allclose(got.mean(0), wanted.mean(0), atol=2e-3 * scale)
    np.testing.assert_allclose(got.std(0), wanted.std(0), atol=2e-3 * scale)


def test_reinhard_amount_and_limit() -> None:
    window = composed(ASTRONAUT, 0.4 + 0.02 * CHELSEA, ellipse(1.0))
    np.testing.assert_allclose(run(reinhard.METHOD, window, amount=0).rgb, window.pasted, atol=1e-6)
    full = run(reinhard.METHOD, window).rgb
    near = run(reinhard.METHOD, window, amount=0.3).rgb
    assert 0 < abs(near - window.pasted).mean() < abs(full - window.pasted).mean()
    inside = window.alpha > 0.99
    before = reinhard.to_space(ASTRONAUT[inside], "lalphabeta")[:, 0].std()
    after = reinhard.to_space(full[inside], "lalphabeta")[:, 0].std()
    # A flat background may not flatten the subject beyond the limit of 2.
    assert after / before == pytest.approx(0.5, abs=0.02)


def test_reinhard_brings_a_cast_subject_home() -> None:
    """With the photo's pixels shuffled, so that inside and outside are alike but for the cast."""
    alpha = ellipse(1.0)
    truth = np.random.default_rng(0).permutation(CHELSEA.reshape(-1, 3)).reshape(CHELSEA.shape)
    cast = truth * np.float32([1.0, 0.75, 0.5])
    window = given_picture(composed(cast, truth, alpha).pasted, alpha)
    painted = run(reinhard.METHOD, window)
    inside = alpha > 0.99

    def off(image: Array) -> float:
        return float(abs(image - truth)[inside].mean())

    assert off(painted.rgb) < 0.25 * off(window.pasted)


# --- telea


@pytest.mark.parametrize("algorithm", ["telea", "navier-stokes"])
@pytest.mark.parametrize("working_side", [1024, 64])
def test_telea_continues_a_smooth_picture(algorithm: str, working_side: int) -> None:
    y, x = np.mgrid[:90, :120].astype(np.float32)
    truth = np.dstack([0.2 + x / 240, 0.3 + y / 180, 0.8 - x / 240]).astype(np.float32)
    alpha = np.zeros((90, 120), np.float32)
    alpha[35:55, 50:75] = 1
    picture = composed(ASTRONAUT, truth, alpha).pasted
    painted = run(
        telea.METHOD, given_picture(picture, alpha), algorithm=algorithm,
        working_side=working_side,
    )  # fmt: skip
    hole = painted.mask
    np.testing.assert_array_equal(painted.rgb[~hole], picture[~hole])
    assert abs(painted.rgb - truth)[hole].mean() < 0.02
    assert abs(painted.rgb - truth)[hole].max() < 0.1


def test_telea_dilates_by_the_pixels_asked_for() -> None:
    alpha = np.zeros((90, 120), np.float32)
    alpha[45, 60] = 1
    window = given_picture(COFFEE, alpha)
    assert run(telea.METHOD, window, dilate=0).mask.sum() == 1
    y, x = np.mgrid[:90, :120]
    np.testing.assert_array_equal(
        run(telea.METHOD, window, dilate=5).mask, np.hypot(x - 60, y - 45) <= 5
    )


def test_telea_takes_the_rim_of_the_object() -> None:
    """With an outline two pixels too tight, the object's colour stays out of the fill."""
    background = np.full((90, 120, 3), 0.5, np.float32)
    alpha = ellipse()
    picture = composed(np.zeros_like(background) + np.float32([1, 0, 0]), background, alpha).pasted
    tight = cv2.erode(alpha, np.ones((3, 3)), iterations=2)
    tidy = run(telea.METHOD, given_picture(picture, tight), dilate=4).rgb
    left = run(telea.METHOD, given_picture(picture, tight), dilate=0).rgb
    assert abs(tidy - 0.5).max() < 2 / 255
    assert abs(left - 0.5).max() > 0.4


def test_telea_needs_something_round_the_hole() -> None:
    with pytest.raises(InputError, match="whole picture"):
        run(telea.METHOD, given_picture(COFFEE, np.ones((90, 120), np.float32)))
    alpha = np.ones((90, 120), np.float32)
    alpha[:, 118:] = 0
    painted = run(telea.METHOD, given_picture(COFFEE, alpha), dilate=50)
    assert not painted.mask.all() and painted.mask[alpha > 0].all()


# --- what they share


def test_foreground_undoes_the_paste() -> None:
    window = composed(ASTRONAUT, COFFEE, ellipse(2.0))
    found = foreground(window.pasted, window.clean, window.alpha)
    sure = window.alpha >= 0.25
    np.testing.assert_allclose(found[sure], ASTRONAUT[sure], atol=1e-5)
    # Beyond, every pixel has the colour of the nearest sure one.
    far = found[0, 60]
    assert (abs(ASTRONAUT[sure] - far).max(1) < 1e-5).any()


def test_backdrop() -> None:
    window = composed(ASTRONAUT, COFFEE, ellipse())
    assert backdrop(window.clean, window.pasted, window.alpha) is window.clean
    filled = backdrop(window.pasted, window.pasted, window.alpha)
    inside = window.alpha > 0
    np.testing.assert_array_equal(filled[~inside], window.pasted[~inside])
    assert abs(filled - COFFEE)[inside].mean() < abs(window.pasted - COFFEE)[inside].mean()


def test_a_hole_without_a_rim_is_grey() -> None:
    assert (fill_hole(COFFEE, np.ones((90, 120), bool)) == 0.5).all()
    assert fill_hole(COFFEE, np.zeros((90, 120), bool)) is COFFEE
