"""How a sample of a concept is blended in: the object in its box, and a photo's detail."""

from __future__ import annotations

import math
from functools import cache

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from concepts import learnt
from inlay import Box, Composer
from inlay.methods.base import Context
from inlay.methods.concept.blend import blend, find_object
from inlay.methods.concept.details import (
    Reference,
    add_details,
    align,
    fine_band,
    scale_map,
)
from inlay.methods.concept.fill import filler
from inlay.methods.dreamcom import DreamComSettings
from inlay.pictures.arrays import resize
from inlay.pictures.read import read_picture
from inlay.scene.cutout import Cutout
from inlay.scene.placement import Placement, layer_scene, place
from inlay.scene.window import (
    Painted,
    Window,
    crop_box,
    stitch,
)
from photos import Photo, cup, cutout, five_scenes

BOX = Box(40, 150, 130, 120)


def reference(photo: Photo, name: str = "photo") -> Reference:
    values = photo.astype(np.float32) / 255
    alpha = values[..., 3] if photo.shape[2] == 4 else np.ones(photo.shape[:2], np.float32)
    return Reference(name, np.ascontiguousarray(values[..., :3]), np.ascontiguousarray(alpha))


@pytest.mark.parametrize("number", range(5))
def test_an_object_is_found_in_its_box(number: int) -> None:
    """As a model makes it: soft, and on ground that is made up."""
    background, subject, where = five_scenes()[number]
    view = crop_box(where, background.shape[1::-1], 0.5)
    box = where.shifted(-view.x, -view.y)
    old = background[view.slices]
    hole = np.zeros(old.shape[:2], np.uint8)
    hole[box.slices] = 255
    new = cv2.inpaint(old, hole, 5, cv2.INPAINT_TELEA).astype(np.float32) / 255
    laid = resize(subject.astype(np.float32) / 255, (box.height, box.width))
    cover = laid[..., 3:]
    new[box.slices] = laid[..., :3] * cover + new[box.slices] * (1 - cover)
    truth = np.zeros(old.shape[:2], bool)
    truth[box.slices] = cover[..., 0] > 0.5
    found = find_object(cv2.GaussianBlur(new, (0, 0), 1.5), old.astype(np.float32) / 255, box)
    assert found is not None and not found[hole == 0].any()
    assert (found & truth).sum() / (found | truth).sum() > 0.9


def test_nothing_is_found_where_nothing_or_everything_stands_out() -> None:
    old = data.chelsea().astype(np.float32) / 255
    assert find_object(old, old, BOX) is None
    flat = np.full_like(old, 0.5)
    assert find_object(flat, flat, BOX) is None
    new = old.copy()
    new[BOX.slices] = data.coffee()[:120, :130].astype(np.float32) / 255 * [0.1, 1, 0.1]
    assert find_object(new, old, BOX) is None
    assert find_object(new, old, Box(0, 0, 451, 300)) is None


@cache
def composer() -> Composer:
    return Composer.from_pretrained("embedded", device="cpu", dtype="float32")


@cache
def window() -> Window:
    """That of a concept's grey box, as Composer cuts it."""
    picture = read_picture(data.chelsea())
    grey, solid = np.full((120, 130, 3), 0.5, np.float32), np.ones((120, 130), np.float32)
    layer = place(Cutout(grey, solid, "", "", learnt("embedded")), picture.size, Placement(BOX))
    return Window.of(layer_scene(picture, layer), 0.5, composer().backbone.native_size)


def laid_in(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The window with colours (120, 130, 3) in the box, under alpha (120, 130)."""
    image = window().clean.copy()
    inner = BOX.shifted(-window().box.x, -window().box.y).slices
    image[inner] = image[inner] * (1 - alpha[..., None]) + colours * alpha[..., None]
    return image


def shown(image: np.ndarray, **settings: float | str) -> tuple[Painted, list[str]]:
    """What is painted when the model's sample is a picture of the window."""
    backbone, context = composer().backbone, Context()
    chosen = DreamComSettings(**settings)
    with filler(window(), backbone, chosen, context) as fill:
        size = fill.work.size
        small = torch.from_numpy(resize(image.astype(np.float32), size)).permute(2, 0, 1)[None]
        photos = fill.references("", "") if chosen.details else []
        return blend(fill, backbone.encode(small * 2 - 1), photos), context.notes


def test_the_object_alone_is_laid_in() -> None:
    subject = resize(cup().astype(np.float32) / 255, (120, 130))
    sample = laid_in(subject[..., :3], subject[..., 3])
    for feather in (0.0, 0.04):
        result, notes = shown(sample, region="object", feather=feather)
        assert notes == []
        after, _, _ = stitch(read_picture(data.chelsea()), window(), result)
        changed = (after.samples != data.chelsea()).any(-1)
        inside = np.zeros(changed.shape, np.uint8)
        inside[BOX.slices] = subject[..., 3] > 0.5
        away = cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
        # The model's pixels are 2 wide; the outline is known no better than by a few of them.
        assert not changed[away > feather * 260 + 10].any()
        assert changed[inside > 0].mean() > 0.9
        beyond = changed.copy()
        beyond[BOX.grown(round(feather * 260) + 1).slices] = False
        assert not beyond.any()
        # The corners of the box are the background's own.
        box = changed[BOX.slices]
        assert not (box[0, 0] or box[0, -1] or box[-1, 0] or box[-1, -1])


def test_where_no_object_stands_out_the_box_is_laid_in() -> None:
    result, notes = shown(window().clean, region="object")
    whole, silent = shown(window().clean)
    assert silent == [] and "whole box" in notes[0]
    assert np.array_equal(result.rgb, whole.rgb) and np.array_equal(result.effect, whole.effect)


def test_a_photo_lends_the_detail_that_the_sample_lacks() -> None:
    """The sample is the photo, but soft; where an object is found in it, it becomes sharper."""
    with filler(window(), composer().backbone, DreamComSettings(), Context()) as fill:
        photo = fill.references("", "")[0]
    sharp = laid_in(resize(photo.rgb, (120, 130)), np.ones((120, 130), np.float32))
    inner = BOX.grown(-12).shifted(-window().box.x, -window().box.y).slices
    errors = {}
    for details in (0.0, 0.5, 1.0):
        result, notes = shown(cv2.GaussianBlur(sharp, (0, 0), 1.5), details=details)
        # What the autoencoder itself gets wrong is coarse.
        wrong = result.rgb - sharp
        errors[details] = float(((wrong - cv2.GaussianBlur(wrong, (0, 0), 2))[inner] ** 2).mean())
        told = [] if details == 0 else [f"details of {photo.name} (agreement "]
        assert len(notes) == len(told)
        assert all(note.startswith(start) for note, start in zip(notes, told, strict=True))
    assert errors[1.0] < 0.85 * errors[0.0] and errors[1.0] < errors[0.5] < errors[0.0]
    result, notes = shown(sharp, details=1.0, details_agreement=1.0)
    assert "enough to lend its details; best: " in notes[0]
    assert np.array_equal(result.rgb, shown(sharp)[0].rgb)


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
        assert match is not None and match.agreement > 0.9
        near, true = match.matrix[:, :2], matrix[:, :2]
        angles = [
            math.degrees(math.atan2(m[1, 0] - m[0, 1], m[0, 0] + m[1, 1])) for m in (near, true)
        ]
        assert abs(angles[0] - angles[1]) < 1
        assert np.linalg.det(near) == pytest.approx(np.linalg.det(true), rel=0.03)
        middle = np.array([size[1] / 2, size[0] / 2, 1])
        assert np.abs((match.matrix - matrix) @ middle).max() < 0.5


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
    band, _ = fine_band(photo, scale_map(match.matrix, (64, 70), size), size, 2.0)
    expected = cv2.GaussianBlur(sample, (0, 0), 2, borderType=cv2.BORDER_REPLICATE) + band
    deep = cv2.erode((inside > 0.9).astype(np.uint8), np.ones((19, 19))) > 0
    assert deep.sum() > 3000 and np.allclose((sample + whole)[deep], expected[deep], atol=1e-5)
