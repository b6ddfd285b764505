"""A photo's detail carried over to a sample of its object: alignment, the fine band, its weight."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from skimage import data

from inlay import Box
from inlay.methods.concept.details import Reference, add_details, align, fine_band, scale_map
from inlay.pictures.arrays import resize
from photos import Photo, cup, cutout


def reference(photo: Photo, name: str = "photo") -> Reference:
    values = photo.astype(np.float32) / 255
    alpha = values[..., 3] if photo.shape[2] == 4 else np.ones(photo.shape[:2], np.float32)
    return Reference(name, np.ascontiguousarray(values[..., :3]), np.ascontiguousarray(alpha))


def moved(
    photo: Reference, size: tuple[int, int], turn: float, factor: float, shift: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sample that shows a photo turned, scaled and moved, its light changed; where; the map."""
    middle = (size[1] - 1) / 2, (size[0] - 1) / 2
    matrix = cv2.getRotationMatrix2D(middle, turn, factor)
    matrix[:, 2] += shift * np.array([size[1], -size[0]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    paint = resize(np.dstack([photo.rgb, photo.alpha]), size)
    sample = cv2.warpAffine(paint, matrix, size[::-1], flags=flags)
    rgb, inside = sample[..., :3], np.clip(sample[..., 3], 0, 1)
    rgb = rgb * inside[..., None] + 0.6 * (1 - inside[..., None])
    noise = np.random.default_rng(0).normal(0, 0.02, rgb.shape)
    dim = 0.8 * cv2.GaussianBlur(rgb, (0, 0), 1) + 0.05 + noise
    return np.clip(dim, 0, 1).astype(np.float32), inside, matrix


CAT = cutout(data.chelsea(), Box(60, 20, 300, 260))


@pytest.mark.parametrize(
    ("turn", "factor", "shift"), [(0, 1, 0), (12, 1.1, 0.06), (-15, 0.9, -0.05)]
)
def test_a_turned_and_scaled_photo_is_laid_over_the_sample(
    turn: float, factor: float, shift: float
) -> None:
    for photo, size in ((reference(CAT), (64, 70)), (reference(CAT[..., :3]), (160, 150))):
        sample, inside, matrix = moved(photo, size, turn, factor, shift)
        match = align(sample, inside, photo)
        assert match is not None and match[0] > 0.9
        near, true = match[1][:, :2], matrix[:, :2]
        angles = [
            math.degrees(math.atan2(m[1, 0] - m[0, 1], m[0, 0] + m[1, 1])) for m in (near, true)
        ]
        assert abs(angles[0] - angles[1]) < 1
        assert np.linalg.det(near) == pytest.approx(np.linalg.det(true), rel=0.03)
        middle = np.array([size[1] / 2, size[0] / 2, 1])
        assert np.abs((match[1] - matrix) @ middle).max() < 0.5


@pytest.mark.parametrize(("turn", "factor", "shift"), [(32, 1, 0), (0, 1.5, 0), (0, 1, 0.35)])
def test_a_photo_that_must_be_bent_too_far_does_not_fit(
    turn: float, factor: float, shift: float
) -> None:
    photo = reference(CAT)
    sample, inside, _ = moved(photo, (64, 70), turn, factor, shift)
    assert align(sample, inside, photo) is None


def test_another_things_photo_lends_nothing() -> None:
    sample, inside, _ = moved(reference(CAT), (128, 140), 0, 1, 0)
    others = [reference(photo, f"{number}") for number, photo in enumerate((cup(), _face()))]
    options = {"amount": 1.0, "least": 0.6, "feather": 3.0}
    made, told = add_details(sample, inside, (2.0, 2.0), others, **options)
    assert np.array_equal(made, sample) and told.startswith("no photo")
    made, told = add_details(
        sample, inside, (2.0, 2.0), [*others, reference(CAT, "cat")], **options
    )
    assert told.startswith("details of cat (agreement 0.9") and (made != sample).any()
    # What is thinner than a few of the model's pixels cannot be aligned.
    thin = sample[:4], inside[:4]
    assert add_details(*thin, (1.0, 1.0), [reference(CAT)], **options)[1].startswith("no photo")


def _face() -> Photo:
    return cutout(data.astronaut(), Box(100, 0, 250, 250))


def test_the_band_is_what_a_gaussian_takes_away() -> None:
    """A wave of length L loses exp(-2 pi^2 sigma^2 / L^2) of itself to a blur, by hand."""
    across = np.arange(96, dtype=np.float32)
    wave = np.sin(2 * np.pi * across / 12)
    rgb = np.repeat((0.5 + 0.2 * np.tile(wave, (80, 1)))[..., None], 3, 2)
    still = np.array([[1.0, 0, 0], [0, 1, 0]])
    photo = Reference("wave", rgb, np.ones((80, 96), np.float32))
    band, alpha = fine_band(photo, still, (80, 96), 2.0)
    kept = 1 - math.exp(-2 * math.pi**2 * 2.0**2 / 12**2)
    assert np.abs(band[10:-10, 12:-12, 0] - kept * 0.2 * wave[12:-12]).max() < 0.004
    assert (alpha[2:-2, 2:-2] == 1).all()
    # Moved by three pixels of the window, or by one and a half where that is half as large.
    for size, shift in (((80, 96), 3.0), ((40, 48), 1.5)):
        matrix = scale_map(np.array([[1, 0, shift], [0, 1, 0]]), size, (80, 96))
        band, _ = fine_band(photo, matrix, (80, 96), 2.0)
        expected = kept * 0.2 * np.sin(2 * np.pi * (across + 3) / 12)
        assert np.abs(band[10:-10, 12:-15, 0] - expected[12:-15]).max() < 0.004


def test_the_edge_of_a_photo_is_no_detail() -> None:
    rgb = np.where(np.arange(64)[None, :, None] < 32, 0.9, 0.1).astype(np.float32)
    photo = Reference("half", np.tile(rgb, (48, 1, 3)), np.zeros((48, 64), np.float32))
    photo.alpha[:, :32] = 1
    band, alpha = fine_band(photo, np.array([[1.0, 0, 0], [0, 1, 0]]), (48, 64), 3.0)
    assert np.abs(band).max() < 0.01 and alpha[24, 8] == 1 and alpha[24, 56] == 0


def test_the_amount_and_the_edge_weigh_the_detail() -> None:
    photo, size = reference(CAT), (128, 140)
    sample, inside, _ = moved(photo, size, 0, 1, 0)
    options = {"least": 0.5, "feather": 6.0}
    half, whole = (
        add_details(sample, inside, (2.0, 2.0), [photo], amount=amount, **options)[0] - sample
        for amount in (0.5, 1.0)
    )
    assert np.allclose(2 * half, whole, atol=1e-5)
    assert not whole[inside < 0.5].any()
    # Well inside, the photo's band stands in place of the sample's.
    match = align(resize(sample, (64, 70)), resize(inside, (64, 70)), photo)
    assert match is not None
    band, _ = fine_band(photo, scale_map(match[1], (64, 70), size), size, 2.0)
    expected = cv2.GaussianBlur(sample, (0, 0), 2, borderType=cv2.BORDER_REPLICATE) + band
    deep = cv2.erode((inside > 0.9).astype(np.uint8), np.ones((19, 19))) > 0
    assert deep.sum() > 3000 and np.allclose((sample + whole)[deep], expected[deep], atol=1e-5)
