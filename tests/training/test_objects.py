"""Object masks on drawn pictures whose objects are known, and on real photographs."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from inlay.training.objects import find_objects

Flags = NDArray[np.bool_]

SHIRT = np.array(
    [[110, 60], [150, 75], [190, 60], [250, 100], [230, 140], [205, 125], [205, 240], [95, 240],
     [95, 125], [70, 140], [50, 100]], np.int32,
)  # fmt: skip


def shirt_on_floor(printed: bool) -> tuple[NDArray[np.uint8], Flags]:
    """A shirt of one colour, perhaps with a print, on planks; the picture and the shirt."""
    rng = np.random.default_rng(5)
    floor = np.zeros((300, 300, 3))
    floor[:] = (150, 110, 70)
    for left in range(0, 300, 50):
        floor[:, left : left + 50] += rng.normal(0, 8)
        floor[:, left : left + 2] -= 40
    shirt = np.zeros((300, 300), np.uint8)
    cv2.fillPoly(shirt, [SHIRT], 1)
    cloth = np.zeros_like(floor)
    cloth[:] = (70, 90, 160)
    # Folds: soft light and shade.
    cloth *= 1 + 0.12 * np.sin(np.arange(300) / 17)[None, :, None]
    if printed:
        cv2.circle(cloth, (150, 150), 28, (230, 220, 60), -1)
        cv2.rectangle(cloth, (120, 185), (180, 205), (200, 30, 40), -1)
    picture = np.where(shirt[..., None] > 0, cloth, floor) + rng.normal(0, 4, floor.shape)
    return np.clip(picture, 0, 255).astype(np.uint8), shirt.astype(bool)


@pytest.mark.parametrize("printed", [False, True])
def test_a_garment_on_a_floor_comes_out_whole(printed: bool) -> None:
    picture, shirt = shirt_on_floor(printed)
    found = find_objects(picture)[0] > 0.5
    assert (found & shirt).sum() / (found | shirt).sum() > 0.93


def test_the_cup_is_found_and_the_table_is_not() -> None:
    masks = find_objects(data.coffee())
    coffee, table = (170, 300), (380, 580)
    assert any(mask[coffee] == 1 for mask in masks)
    assert all(mask[table] == 0 for mask in masks)


@pytest.mark.parametrize("name", ["astronaut", "coffee", "rocket"])
def test_masks_of_photos_are_single_solid_things(name: str) -> None:
    photo = getattr(data, name)()[::2, ::2]
    masks = find_objects(np.ascontiguousarray(photo))
    assert 1 <= len(masks) <= 3
    for number, mask in enumerate(masks):
        assert mask.dtype == np.float32 and mask.shape == photo.shape[:2]
        assert np.allclose(mask * 255, np.round(mask * 255), atol=1e-4)
        inside = mask > 0.5
        assert 0.02 < inside.mean() < 0.7
        # One piece without holes: there are two regions, it and what lies round it.
        count, *_ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=8)
        padded = np.pad(~inside, 1, constant_values=True).astype(np.uint8)
        around, *_ = cv2.connectedComponentsWithStats(padded, connectivity=4)
        assert (count, around) == (2, 2)
        # The edge is soft, but no wider than an antialiased one.
        partly = (mask > 0) & (mask < 1)
        outline = cv2.morphologyEx(
            inside.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)
        )
        assert 0 < partly.sum() <= 1.5 * outline.sum()
        for other in masks[:number]:
            both = (inside & (other > 0.5)).sum()
            assert both < 0.6 * min(inside.sum(), (other > 0.5).sum())
    again = find_objects(np.ascontiguousarray(photo))
    assert all(np.array_equal(a, b) for a, b in zip(masks, again, strict=True))


def test_what_fills_the_picture_is_no_object() -> None:
    assert find_objects(np.ascontiguousarray(data.chelsea()[::2, ::2])) == []


def test_where_nothing_stands_off_nothing_is_found() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(100, 140, (200, 240, 3), dtype=np.uint8)
    ramp = np.repeat(np.linspace(60, 120, 240).astype(np.uint8)[None, :, None], 200, 0)
    assert find_objects(noise) == []
    assert find_objects(np.ascontiguousarray(np.repeat(ramp, 3, 2))) == []
    assert find_objects(np.full((200, 200, 3), 90, np.uint8)) == []
    assert find_objects(np.zeros((20, 400, 3), np.uint8)) == []


def test_limit_is_kept_and_keeps_the_largest() -> None:
    two = np.full((200, 300, 3), 190, np.uint8)
    cv2.circle(two, (80, 110), 42, (150, 40, 30), -1)
    cv2.circle(two, (215, 100), 55, (150, 40, 30), -1)
    every = find_objects(two, 3)
    first = find_objects(two, 1)
    assert len(every) == 2 and len(first) == 1
    assert np.array_equal(first[0], every[0])
    assert first[0][100, 215] == 1 and every[1][110, 80] == 1
