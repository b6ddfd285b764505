"""Removals: where they work, how far they reach, soft masks, see-through pictures."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from inlay import Composer
from inlay.pictures.arrays import Box, extend, grow
from inlay.pictures.read import read_picture
from inlay.scene.fill import clean_rim
from inlay.scene.pieces import piecewise, thin_pieces
from inlay.scene.stitch import Painted, Region, Scene, Window

SIZE = (1500, 900)
SIDE = 128


def line(
    start: tuple[int, int] = (5, 60), end: tuple[int, int] = (1480, 860), width: int = 6
) -> NDArray[np.uint8]:
    """A wire across a picture of SIZE."""
    mask = np.zeros(SIZE[::-1], np.uint8)
    cv2.line(mask, start, end, 255, width)
    return mask


WIRES = {
    "across": line(),
    "crossing": np.maximum(line(), line((5, 800), (1490, 100))),
    "along the border": line((0, 1), (1499, 1)),
    "upright": line((700, 0), (705, 899)),
    "specks": np.pad(np.kron(np.eye(2, dtype=np.uint8) * 255, np.ones((9, 9), np.uint8)), 400),
}


@pytest.mark.parametrize("kind", WIRES)
def test_what_is_thin_goes_in_pieces_of_the_pictures_own_scale(kind: str) -> None:
    mask = WIRES[kind] > 0
    thin, pieces = thin_pieces(mask, SIDE)
    if kind == "specks":
        # Near each other they are seen at once.
        assert not pieces
        return
    assert 8 < len(pieces) <= 16 and np.array_equal(thin, mask)
    taken = np.zeros(mask.shape, int)
    for piece in pieces:
        assert max(piece.width, piece.height) <= 2 * SIDE
        taken[piece.slices] += 1
    assert (taken[mask] == 1).all()


def test_what_is_thick_is_painted_as_a_whole_after_the_wires() -> None:
    disc = np.zeros(SIZE[::-1], np.uint8)
    cv2.circle(disc, (600, 500), 200, 255, -1)
    assert not thin_pieces(disc > 0, SIDE)[1]
    wire = line((5, 890), (1480, 800))
    picture = read_picture(np.zeros((*SIZE[::-1], 3), np.uint8))
    scene = Scene(Region.of(np.maximum(disc, wire).astype(np.float32) / 255))
    window = Window.of(picture, scene, 0.5)
    seen: list[tuple[int, int, int]] = []

    def painted(part: Window, number: int, count: int) -> Painted:
        seen.append((part.box.width, number, count))
        return Painted(np.full_like(part.pasted, 0.5), part.alpha > 0)

    result = piecewise(window, SIDE, painted)
    assert [number for _, number, _ in seen] == list(range(seen[0][2]))
    assert seen[-1][0] == window.box.width and max(width for width, *_ in seen[:-1]) < 3 * SIDE
    assert np.array_equal(result.mask, window.alpha > 0)
    assert (result.rgb[result.mask] == 0.5).all() and not result.rgb[~result.mask].any()


@pytest.mark.parametrize("method", ["telea", "inpaint"])
def test_a_removal_changes_the_mask_and_a_few_pixels(method: str) -> None:
    x, y = np.meshgrid(np.arange(700), np.arange(420))
    truth = np.dstack([60 + x / 7, 90 + y / 6, 200 - x / 9]).round().astype(np.uint8)
    mask = np.zeros((420, 700), np.uint8)
    cv2.line(mask, (5, 60), (680, 380), 255, 6)
    picture = np.where(mask[..., None] > 0, np.uint8(20), truth)
    given = {"working_side": 256} if method == "telea" else {"num_inference_steps": 2}
    heard: list[tuple[int, int]] = []
    result = Composer().remove(
        picture,
        mask=mask,
        method=method,
        callback=lambda step, total, preview: heard.append((step, total)),
        **given,
    )
    after = np.asarray(result.picture.to_pil())
    changed = (after != picture).any(-1)
    assert not changed[~grow(mask > 0, 9)].any() and changed[mask > 0].mean() > 0.99
    assert heard == sorted(heard) and heard[-1][0] == heard[-1][1]
    if method == "telea":
        assert np.abs(after.astype(int) - truth).max() <= 4


@pytest.mark.parametrize("sigma", [1.5, 3, 6])
@pytest.mark.parametrize("method", ["telea", "inpaint", "freecompose"])
def test_a_soft_mask_lets_through_its_part_of_a_removal(method: str, sigma: float) -> None:
    photo = data.astronaut()[:200, 100:300]
    disc = np.zeros((200, 200), np.float32)
    cv2.circle(disc, (100, 110), 14, 1, -1)
    soft = cv2.GaussianBlur(disc, (0, 0), sigma)
    soft = (soft / soft.max() * (soft > 0.06 * soft.max()) * 65535).round().astype(np.uint16)
    given = {"telea": {}, "inpaint": {"num_inference_steps": 2}}.get(method, {"num_iterations": 2})
    composer = Composer()

    def removed(mask: NDArray[np.uint8] | Image.Image) -> NDArray[np.float64]:
        result = composer.remove(photo, mask=mask, method=method, **given)
        return np.asarray(result.picture.to_pil()).astype(float) - photo

    level = (soft / 257).round().astype(np.uint8)
    part, deep = removed(level), removed(Image.fromarray(soft))
    assert not part[soft == 0].any() and np.abs(part - deep).max() <= 1
    if method == "telea":
        # It widens a hard mask: the same hole in another way.
        whole = composer.remove(photo, mask=(soft > 0) * np.uint8(255), method="telea", dilate=4)
        whole = np.asarray(whole.picture.to_pil()).astype(float) - photo
        assert np.abs(part - level[..., None] / 255 * whole)[soft > 0].max() <= 1.01
    shares = [
        np.abs(part[(level > low) & (level <= low + 50)]).mean() for low in (13, 63, 113, 163, 205)
    ]
    assert shares[0] < 0.2 * shares[-1] and shares[1] < shares[2] < shares[3]


@pytest.mark.parametrize("method", ["cdc", "freecompose", "poisson", "reinhard"])
def test_a_soft_mask_lets_through_its_part_of_a_harmonization(method: str) -> None:
    photo = data.astronaut()[:200, 100:300].copy()
    disc = np.zeros((200, 200), np.float32)
    cv2.circle(disc, (100, 110), 30, 1, -1)
    soft = cv2.GaussianBlur(disc, (0, 0), 6)
    soft[soft < 0.06] = 0
    level = (soft * 255).round().astype(np.uint8)
    given = {"cdc": {"num_inference_steps": 2}, "freecompose": {"num_iterations": 2}}
    given = {name: {**known, "decoding": "plain"} for name, known in given.items()}
    result = Composer().harmonize(photo, mask=level, method=method, **given.get(method, {}))
    change = np.abs(np.asarray(result.picture.to_pil()).astype(float) - photo)
    assert not change[level == 0].any()
    thin = change[(level > 0) & (level < 64)]
    assert thin.mean() < 0.5 * change[level > 200].mean()


def sticker() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """A see-through picture of a green square, one with a red sticker over its edge, its mask."""
    plain = np.zeros((160, 160, 4), np.uint8)
    plain[30:130, 30:100] = (40, 160, 60, 255)
    mask = np.zeros((160, 160), np.uint8)
    mask[60:90, 80:120] = 255
    over = plain.copy()
    over[mask > 0] = (200, 30, 30, 255)
    return plain, over, mask


def test_a_removal_mends_the_alpha_of_a_see_through_picture() -> None:
    plain, over, mask = sticker()
    result = np.asarray(Composer().remove(over, mask=mask, method="telea").picture.to_pil())
    near_edge = grow(np.abs(np.diff(plain[..., 3].astype(int), axis=1, prepend=0)) > 0, 4)
    assert np.array_equal(result[~near_edge, 3], plain[~near_edge, 3])
    seen = (result[..., 3] > 0) & (plain[..., 3] > 0)
    assert np.abs(result[seen, :3].astype(int) - plain[seen, :3]).max() <= 5
    # What nobody sees is written nowhere.
    assert np.array_equal(result[result[..., 3] == 0][:, :3], over[result[..., 3] == 0][:, :3])


def test_a_removal_continues_a_gradient_of_alpha() -> None:
    _, over, mask = sticker()
    alpha = np.broadcast_to(np.linspace(20, 240, 160).round().astype(np.uint8), (160, 160))
    over[..., :3], over[..., 3] = (90, 120, 150), np.where(mask > 0, 255, alpha)
    result = np.asarray(Composer().remove(over, mask=mask, method="telea").picture.to_pil())
    assert np.abs(result[..., 3].astype(int) - alpha).max() <= 3


@pytest.mark.parametrize("method", ["paste", "poisson", "reinhard", "feather"])
def test_colours_that_nobody_sees_do_not_matter(method: str) -> None:
    plain, _, _ = sticker()
    subject = np.dstack([data.coffee()[:80, :80], np.full((80, 80), 255, np.uint8)])
    results = []
    for hidden in (0, 255):
        background = plain.copy()
        background[background[..., 3] == 0, :3] = hidden
        cut = subject.copy()
        cut[:20, :, 3], cut[:20, :, :3] = 0, hidden
        made = Composer().compose(background, cut, box=Box(70, 40, 60, 60), method=method)
        results.append(np.asarray(made.picture.to_pil()))
    one, other = results
    assert np.array_equal(one[..., 3], other[..., 3])
    assert np.array_equal(one[one[..., 3] > 0], other[other[..., 3] > 0])


def test_colours_are_continued_from_the_nearest_pixel() -> None:
    plain, _, _ = sticker()
    rgb, known = plain[..., :3].astype(np.float32) / 255, plain[..., 3] > 0
    assert np.allclose(extend(rgb, known), np.float32([40, 160, 60]) / 255)
    assert (extend(rgb, known & False) == 0.5).all()


def disc_cutout(width: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A many-coloured disc's own colours (h, w, 3) and its alpha (h, w), soft by a sigma."""
    disc = np.zeros((120, 120), np.float32)
    cv2.circle(disc, (60, 60), 40, 1, -1)
    alpha = cv2.GaussianBlur(disc, (0, 0), width)
    alpha[alpha < 0.05] = 0
    x = np.linspace(0.3, 0.7, 120, dtype=np.float32)
    return np.dstack(
        [np.tile(x, (120, 1)), np.full_like(disc, 0.55), np.tile(x[:, None], 120)]
    ), alpha


@pytest.mark.parametrize("width", [0.8, 2, 5])
@pytest.mark.parametrize("paper", [(1, 1, 1), (0, 0, 0), (0.75, 0.75, 0.75), (0.1, 0.3, 0.8)])
def test_a_rim_loses_the_colour_of_its_old_paper(paper: tuple[float, ...], width: float) -> None:
    own, alpha = disc_cutout(width)
    mixed = alpha[..., None] * own + (1 - alpha[..., None]) * np.float32(paper)
    mixed = (mixed * 255).round().astype(np.float32) / 255
    clean = clean_rim(mixed, alpha, "subject")
    rim = (alpha > 0.05) & (alpha < 0.95)
    seen = alpha[rim][:, None]
    assert (seen * np.abs(clean - own)[rim]).mean() < 0.2 * (seen * np.abs(mixed - own)[rim]).mean()
    assert np.array_equal(clean[alpha >= 0.95], mixed[alpha >= 0.95])


@pytest.mark.parametrize("width", [0.8, 2, 5])
def test_a_rim_that_is_clean_stays(width: float) -> None:
    own, alpha = disc_cutout(width)
    x, y = np.meshgrid(np.arange(120) - 60, np.arange(120) - 60)
    away = np.hypot(x, y)[..., None].astype(np.float32)
    mug = np.full_like(own, 0.95)
    # Shaded towards its edge, and lit from behind.
    shaded = np.repeat(0.97 - 0.15 * (away / 44).clip(0, 1) ** 4, 3, axis=-1)
    lit = np.repeat(0.5 + 0.45 * ((away - 12) / 20).clip(0, 1), 3, axis=-1)
    for colours in (own, mug, shaded, lit):
        assert clean_rim(colours, alpha, "subject") is colours
