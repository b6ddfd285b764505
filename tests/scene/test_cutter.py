"""The network that finds a subject: on photos and drawn scenes whose subject is known."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage import data

import inlay
from inlay.errors import InputError
from inlay.pictures.arrays import Box, bounds
from inlay.scene.cutter import SIDE, find_subject
from inlay.scene.network import cutter
from inlay.scene.subject import cut
from inlay.training.network import Learner

Floats = NDArray[np.float32]


def iou(found: Floats, truth: NDArray[np.bool_]) -> float:
    return float(((found > 0.5) & truth).sum() / ((found > 0.5) | truth).sum())


def two_mugs() -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_]]:
    """A red and a blue mug on a wooden table before a wall, and where either is."""
    rng = np.random.default_rng(2)
    picture = np.full((300, 420, 3), (0.80, 0.79, 0.76), np.float32)
    picture[170:] = (0.55, 0.40, 0.26)
    picture[170:] *= 1 + 0.06 * np.sin(np.arange(130) / 3)[:, None, None]
    masks = []
    for x, colour in ((90, (0.75, 0.12, 0.1)), (290, (0.12, 0.2, 0.6))):
        mask = np.zeros((300, 420), np.uint8)
        cv2.rectangle(mask, (x - 42, 110), (x + 42, 225), 1, -1)
        cv2.ellipse(mask, (x, 225), (42, 12), 0, 0, 360, 1, -1)
        cv2.ellipse(mask, (x + 44, 165), (24, 32), 0, 0, 360, 1, 10)
        shade = 1 - 0.5 * np.abs((np.arange(420) - x + 15) / 60).clip(0, 1)
        picture = np.where(mask[..., None] > 0, np.float32(colour) * shade[:, None], picture)
        masks.append(mask > 0)
    noisy = picture + rng.normal(0, 0.01, picture.shape)
    return np.clip(noisy, 0, 1).astype(np.float32), masks[0], masks[1]


@pytest.mark.parametrize("which", [0, 1])
def test_a_box_says_which_of_two_things_is_meant(which: int) -> None:
    picture, *mugs = two_mugs()
    box = bounds(mugs[which])
    found, expected = find_subject(picture, box)
    assert iou(found, mugs[which]) > 0.9 and expected > 0.8
    assert not (found[mugs[1 - which]] > 0.5).any()


def test_a_point_takes_one_thing_and_a_point_off_it_leaves_the_other() -> None:
    picture, red, blue = two_mugs()
    found, _ = find_subject(picture, points=[(90, 170, True), (290, 170, False)])
    assert iou(found, red) > 0.8
    assert (found[blue] > 0.5).mean() < 0.1


def test_points_name_one_of_two_things_for_the_whole_cut() -> None:
    picture, red, blue = two_mugs()
    eight = (picture * 255).astype(np.uint8)
    alpha = np.asarray(inlay.cut(eight, points=[(90, 150), (90, 200)]), np.float32)[..., 3] / 255
    assert iou(alpha, red) > 0.9 and not (alpha[blue] > 0.5).any()
    both = np.asarray(inlay.cut(eight, points=[(90, 170), (290, 170)]), np.float32)[..., 3] / 255
    assert iou(both, red | blue) > 0.8
    # What is transparent stays so; a point says which of the rest is meant.
    clear = np.dstack([eight, np.uint8(255) * (red | blue)])
    alpha = np.asarray(inlay.cut(clear, points=[(290, 170)]), np.float32)[..., 3] / 255
    assert iou(alpha, blue) > 0.9 and not (alpha[red] > 0.5).any()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"points": [(420, 10)]}, "the point 420,10 lies outside"),
        ({"points": [(9, 9)], "by": "grabcut"}, "points are given but the cut is by grabcut"),
        ({"points": [(9, 9)], "mask": np.ones((300, 420), bool)}, "the cut is by mask"),
    ],
)
def test_points_that_do_not_go(options: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        inlay.cut((two_mugs()[0] * 255).astype(np.uint8), **options)


def test_the_coffee_cup_is_found_with_its_saucer_and_spoon() -> None:
    alpha = np.asarray(inlay.cut(data.coffee()))[..., 3]
    # Coffee, rim, saucer, spoon; then the table on all sides.
    assert all(alpha[y, x] == 255 for y, x in ((150, 290), (100, 250), (300, 150), (290, 362)))
    assert all(alpha[y, x] == 0 for y, x in ((20, 560), (380, 580), (200, 30), (385, 40)))


def test_a_mirrored_picture_has_the_mirrored_subject() -> None:
    photo = data.chelsea().astype(np.float32) / 255
    found, expected = find_subject(photo)
    mirrored, again = find_subject(np.ascontiguousarray(photo[:, ::-1]))
    assert np.abs(mirrored[:, ::-1] - found).mean() < 0.02 and abs(expected - again) < 0.05


def test_what_it_expects_is_no_part_of_what_it_found() -> None:
    """The judge learns from what was found; what was found does not learn from the judge."""
    torch.manual_seed(0)
    net = Learner(cutter, (5, SIDE, SIDE))
    logits, sides, expected = net(torch.randn(2, 5, SIDE, SIDE))
    assert logits.shape == (2, 1, SIDE, SIDE) and expected.shape == (2,)
    assert [side.shape[-1] for side in sides] == [SIDE // 16, SIDE // 8, SIDE // 4]
    expected.sum().backward()
    learning = {name for name, p in net.named_parameters() if p.grad is not None}
    assert learning and all(name.startswith("judge.") for name in learning)


def test_without_alpha_or_mask_the_network_cuts_and_says_when_it_is_unsure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    picture, red, _ = two_mugs()
    eight = (picture * 255).astype(np.uint8)
    alpha = np.asarray(inlay.cut(eight, box=bounds(red)), np.float32)[..., 3] / 255
    assert iou(alpha, red) > 0.95
    caplog.set_level("INFO", "inlay")
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    try:
        cut(noise)
    except InputError as error:
        assert "mask" in str(error)
    else:
        assert "may be wrong" in caplog.text


@pytest.mark.parametrize(
    ("radius", "boxed", "kept"), [(30, False, 0.0), (30, True, 1.0), (60, False, 1.0)]
)
def test_a_smaller_thing_apart_is_another_one_unless_a_box_holds_it(
    radius: int, boxed: bool, kept: float
) -> None:
    """A ball, and a second one beside it: one of its kind is kept, a small one is not."""
    rows, columns = np.mgrid[:300, :400]
    picture = 150 + np.random.default_rng(0).normal(0, 3, (300, 400, 1)) + (0, 20, 10)
    balls = []
    for x, y, own, colour in ((140, 160, 80, (190, 60, 40)), (310, 100, radius, (60, 50, 150))):
        balls.append(np.hypot(columns - x, rows - y) < own)
        shade = 1 - 0.4 * (columns - x + rows - y) / (2 * own)
        picture[balls[-1]] = (shade[..., None] * colour)[balls[-1]]
    eight = np.clip(picture, 0, 255).astype(np.uint8)
    alpha = np.asarray(inlay.cut(eight, box=Box(30, 30, 370, 230) if boxed else None))[..., 3]
    shares = [(alpha[ball] > 127).mean() for ball in balls]
    assert shares[0] > 0.95 and abs(shares[1] - kept) < 0.05


def test_a_point_finds_a_small_thing_that_the_whole_picture_hides() -> None:
    """The tank of the shuttle behind the astronaut: not the subject, but what the point is on."""
    photo = data.astronaut().astype(np.float32) / 255
    tank = Box(395, 0, 43, 187)
    found, _ = find_subject(photo, points=[(410, 60, True)])
    place = bounds(found > 0.5)
    assert place is not None
    common = place.intersect(tank)
    assert common is not None and common.area / place.hull(tank).area > 0.7
