"""A concept as a subject: the photo of it that fits a place, or what stands for it."""

from __future__ import annotations

from dataclasses import replace
from math import log
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from inlay.checkpoints.concept import read_concept
from inlay.errors import InputError
from inlay.pictures.arrays import Box, luma, to_uint8
from inlay.pictures.read import file_sha256, read_picture
from inlay.scene.subject import LARGEST_AREA, Cutout, Subject, cut

if TYPE_CHECKING:
    from inlay.pictures.picture import Picture

# The longer side of what stands for a concept, where no box says it; a scale is a factor on it.
_STAND_IN = 512
# What a view costs, beside the logarithm of how much another aspect a box has: another light, black
# against white; an e-th of the pixels that the box has; an object that its photo cuts off; all of
# it in other pieces than the largest; colours that no other view has, as what is not the object.
_LIGHT, _SMALL, _CUT_OFF, _PIECES, _STRANGE = 0.7, 0.25, 0.8, 1.5, 1.0


def stand_in(subject: Subject) -> Cutout:
    """Where a concept is to be painted: grey of the box's size, or of the aspect that it was learnt
    with. Raises InputError for a file that is no concept, and for what needs a picture.
    """
    path = subject.concept
    assert path is not None
    aspect = read_concept(path).aspect
    if subject.view or subject.rotate or subject.flip:
        raise InputError(
            f"view, rotate and flip do not go with {path.name} where its object is painted anew; "
            "leave them out, or use method exemplar."
        )
    width = max(1, round(_STAND_IN * min(1.0, aspect)))
    height = max(1, round(_STAND_IN * min(1.0, 1 / aspect)))
    if subject.box is not None:
        width, height = subject.box.width, subject.box.height
    if width * height > LARGEST_AREA:
        raise InputError(f"the box is {width} x {height} pixels, too large; give a smaller one.")
    grey = np.full((height, width, 3), 0.5, np.float32)
    alpha = np.ones((height, width), np.float32)
    return Cutout(grey, alpha, path.name, file_sha256(path), path)


def view_of(subject: Subject, background: Picture, notes: list[str]) -> Cutout:
    """The object of a concept in the photo that the subject names or that fits its place best,
    which the notes say.

    Fitting is the aspect and the size of the subject's box, if it has one, the light of what lies
    round that, and that all of the object is to be seen and, by the other views, nothing else.
    Raises InputError for a file that is no concept, holds no photos, or not so many.
    """
    path, box = subject.concept, subject.box
    assert path is not None
    sights = read_concept(path).sights
    if subject.view is not None and subject.view > len(sights):
        raise InputError(
            f"view is {subject.view}; expected 1 to {len(sights)}, the photos of {path.name}."
        )
    cutouts = {}
    for number, sight in enumerate(sights, 1):
        image = sight.image() if subject.view in (None, number) else None
        if image is not None:
            picture = read_picture(image, role=f"view {number} of {path.name}")
            cutouts[number] = cut(picture, box=Box.of_size(picture.size))
    if not cutouts:
        raise InputError(
            f"{path.name} holds none of its photos; learn it with keep_photos=true, or use method "
            "dreamcom."
        )
    whole = Box.of_size(background.size)
    at = box or whole
    near = at.grown(max(at.width, at.height) // 2).intersect(whole) or whole
    light = float(luma(background.rgb(near)).mean())

    colours = {number: _colours(cutout) for number, cutout in cutouts.items()}

    def cost(number: int) -> float:
        cutout, sight = cutouts[number], sights[number - 1]
        own = float(luma(cutout.rgb)[_solid(cutout) > 0].mean())
        total = _LIGHT * abs(own - light) + _CUT_OFF * (not sight.whole)
        areas = cv2.connectedComponentsWithStats(_solid(cutout))[2][1:, -1]
        total += _PIECES * (1 - float(areas.max() / areas.sum()))
        others = [other for n, other in colours.items() if n != number]
        away = [cv2.compareHist(colours[number], o, cv2.HISTCMP_HELLINGER) for o in others]
        total += _STRANGE * float(np.mean(away or [0]))
        if box is not None:
            total += abs(log(sight.aspect * box.height / box.width))
            total += _SMALL * max(0.0, log(max(box.width, box.height) / max(cutout.size)))
        return total

    best = min(cutouts, key=cost)
    if subject.view is None:
        notes.append(f"{path.name}: view {best} of {len(sights)}, {sights[best - 1].photo}")
    return replace(cutouts[best], name=path.name, sha256=file_sha256(path))


def _solid(cutout: Cutout) -> NDArray[np.uint8]:
    """Where most of a cut-out is, 1 there."""
    return np.asarray(cutout.alpha > 0.5 * cutout.alpha.max(), np.uint8)


def _colours(cutout: Cutout) -> Any:
    """A histogram of 8 x 8 x 8 bins of what is solid."""
    levels = [to_uint8(cutout.rgb)]
    return cv2.calcHist(levels, [0, 1, 2], _solid(cutout), [8] * 3, [0, 256] * 3)
