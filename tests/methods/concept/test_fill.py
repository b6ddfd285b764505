"""How a sample of a concept is blended in: the object in its box, and a photo's detail."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from concepts import learnt
from inlay import Box, Composer
from inlay.methods.base import Context
from inlay.methods.concept.fill import blend, filler, find_object
from inlay.methods.dreamcom import DreamComSettings
from inlay.pictures.arrays import resize
from inlay.pictures.read import read_picture
from inlay.scene.stitch import (
    Painted,
    Scene,
    Window,
    crop_box,
    place,
    stitch,
)
from inlay.scene.subject import Cutout, Subject
from photos import cup, five_scenes

BOX = Box(40, 150, 130, 120)


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
    layer = place(
        Cutout(grey, solid, "", "", learnt("embedded")), picture.size, Subject("", box=BOX)
    )
    return Window.of(picture, Scene(layer.region, layer), 0.5, composer().backbone.native_size)


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
        size = fill.size
        small = torch.from_numpy(resize(image.astype(np.float32), size)).permute(2, 0, 1)[None]
        return blend(fill, backbone.encode(small * 2 - 1)), context.notes


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
    assert np.array_equal(result.rgb, whole.rgb) and np.array_equal(result.mask, whole.mask)


def test_a_photo_lends_the_detail_that_the_sample_lacks() -> None:
    """The sample is the photo, but soft; where an object is found in it, it becomes sharper."""
    with filler(window(), composer().backbone, DreamComSettings(details=1.0), Context()) as fill:
        photo = fill.photos[0]
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
