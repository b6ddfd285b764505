"""What a mask says: each kind of file beside the mask that its author meant."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from inlay.errors import InputError
from inlay.pictures.arrays import softness
from inlay.pictures.mask import mask_levels, read_mask

SHAPE = np.zeros((60, 80), np.uint8)
SHAPE[20:40, 10:50] = 1
RAMP = np.tile(np.linspace(0, 255, 80).round().astype(np.uint8), (60, 1))
PHOTO = data.astronaut()[:60, :80]


def colour(*levels: int) -> NDArray[np.uint8]:
    return SHAPE[..., None] * np.array(levels, np.uint8)


def labels(*colours: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Several things of several colours, side by side."""
    picture = np.zeros((60, 80, 3), np.uint8)
    for number, each in enumerate(colours):
        picture[20:40, 10 + 20 * number : 30 + 20 * number] = each
    return picture


def with_alpha(colours: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.dstack([colours, alpha])


TWO_LEVELS = {
    "0 and 1": (SHAPE, "1 of 255 counts as white"),
    "0 and 255": (SHAPE * 255, ""),
    "16 bits with 255": (SHAPE.astype(np.uint16) * 255, "255 of 65535 counts as white"),
    "16 bits": (SHAPE.astype(np.uint16) * 65535, ""),
    "red brush": (colour(255, 0, 0), ""),
    "blue brush": (colour(0, 0, 255), ""),
    "dark brush": (colour(0, 128, 0), "128 of 255 counts as white"),
    "grey labels": (labels((1,) * 3, (2,) * 3)[..., 0], "every level but 0"),
    "labels above 50": (labels((101,) * 3, (140,) * 3)[..., 0], "every level but 0"),
    "a label and white for void": (labels((1,) * 3, (255,) * 3)[..., 0], "every level but 0"),
    "labels of 16 bits": (
        labels((1,) * 3, (2,) * 3)[..., 0].astype(np.uint16) ** 9,
        "every level but 0",
    ),
    "coloured labels": (labels((128, 0, 0), (0, 128, 0)), "labels"),
    "white strokes on a clear layer": (with_alpha(colour(255, 255, 255), SHAPE * 255), ""),
    "black strokes on a clear layer": (with_alpha(colour(0, 0, 0), SHAPE * 255), ""),
    "white on black, alpha all over": (
        with_alpha(colour(255, 255, 255), np.full_like(SHAPE, 255)),
        "",
    ),
    "white on black in a frame of alpha": (
        with_alpha(colour(255, 255, 255), np.pad(np.full((40, 60), 255, np.uint8), 10)),
        "",
    ),
    "a cut-out": (with_alpha(PHOTO, SHAPE * 255), "read by its alpha"),
}


@pytest.mark.parametrize("kind", TWO_LEVELS)
def test_two_levels_and_labels_are_0_and_1(kind: str) -> None:
    samples, note = TWO_LEVELS[kind]
    for hole in (False, True):
        mask, said = mask_levels(samples, hole)
        assert mask.dtype == np.float32
        assert np.array_equal(mask, SHAPE)
        assert note in said and bool(note) == bool(said)


def test_soft_levels_stay_and_faint_ones_are_nothing() -> None:
    wanted = RAMP / np.float32(255) * (RAMP >= 0.05 * 255)
    for samples in (RAMP, np.dstack([RAMP, RAMP * 0, RAMP * 0]), RAMP.astype(np.uint16) * 257):
        mask, note = mask_levels(samples)
        assert np.allclose(mask, wanted, atol=1e-6) and not note
    stray = SHAPE * 255
    stray[0, 0], stray[-1, -1] = 1, 2
    assert np.array_equal(mask_levels(stray)[0], SHAPE)
    # A dark brush with a soft edge: what is solid is 1.
    brush = np.zeros((60, 80), np.float32)
    brush[18:42, 8:52], brush[19:41, 9:51], brush[20:40, 10:50] = 0.3, 0.6, 1
    red = (brush * 200).round().astype(np.uint8)
    mask, _ = mask_levels(np.dstack([red, red * 0, red * 0]))
    assert np.allclose(mask, red / 200)


def test_steps_of_a_soft_mask_are_no_labels_and_noise_no_softness() -> None:
    steps = np.zeros((60, 80), np.uint8)
    steps[10:50, 5:60], steps[20:40, 10:50] = 128, 255
    assert np.allclose(mask_levels(steps)[0], steps / np.float32(255))
    # A dark brush out of a JPEG: its level spreads, and is 1 all the same.
    noise = np.random.default_rng(0).normal(0, 2.5, SHAPE.shape)
    brush = np.where(SHAPE, 128 + noise, np.abs(noise)).round().astype(np.uint8)
    mask, note = mask_levels(brush)
    assert np.abs(mask - SHAPE).max() < 0.1 and "counts as white" in note
    # Stray pixels beside one level stay nothing.
    large = np.kron(SHAPE, np.ones((3, 3), np.uint8))
    stray = large * 40
    stray[0, 0] = stray[-1, -1] = 1
    assert np.array_equal(mask_levels(stray)[0], large)


def test_an_erased_hole_is_what_a_removal_takes() -> None:
    erased = with_alpha(PHOTO, 255 - SHAPE * 255)
    mask, note = mask_levels(erased, hole=True)
    assert np.array_equal(mask, SHAPE) and "hole" in note
    mask, note = mask_levels(erased)
    assert np.array_equal(mask, 1 - SHAPE) and "alpha" in note


def test_a_mask_of_the_same_aspect_is_resampled(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "inlay")
    large = read_mask(SHAPE * 255, size=(240, 180))
    assert np.array_equal(np.unique(large), (0, 1))
    assert abs(large.mean() - SHAPE.mean()) < 0.01 and "80 x 60" in caplog.text
    notes: list[str] = []
    small = read_mask(np.kron(SHAPE, np.full((3, 3), 255, np.uint8)), size=(80, 60), notes=notes)
    assert np.array_equal(small, SHAPE) and "240 x 180" in notes[0]
    assert read_mask(np.full((667, 1000), 255, np.uint8), size=(6000, 4000)).all()
    for size in ((60, 80), (80, 64), (160, 100)):
        with pytest.raises(InputError, match="80 x 60 pixels; expected"):
            read_mask(SHAPE * 255, size=size)


def test_softness_is_the_width_of_the_edge() -> None:
    assert softness(SHAPE.astype(np.float32)) == 0
    for width in (2, 6, 20):
        edge = np.clip((np.arange(80) - 40) / width + 0.5, 0, 1).astype(np.float32)
        assert softness(np.tile(edge, (60, 1))) == pytest.approx(0.8 * width, abs=1)
