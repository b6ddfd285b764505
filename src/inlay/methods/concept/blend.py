"""How a sample of a concept is blended into the background: its box, or the object alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inlay.methods.base import Painted
from inlay.methods.concept.details import Reference, add_details
from inlay.pictures.arrays import blur, bounds, resize, soft_rim, to_uint8
from inlay.pictures.box import Box
from inlay.scene.cutout import grabcut, without_specks
from inlay.scene.matte import matte
from inlay.scene.window import Window

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.methods.concept.fill import Filler

__all__ = ["blend", "box_of", "find_object"]

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

# GrabCut works on at most so many pixels, with so many rounds.
_PIXELS = 100_000
_ROUNDS = 5
# The blur of the distance from the old picture, in units of the box's longer side.
_BLUR = 0.02
# A difference in CIELAB that is too small to be seen as an object's.
_UNSEEN = 4.0
# The object must cover more of the box than the one and less than the other.
_LEAST, _MOST = 0.05, 0.95
# Pieces below this share of the largest, and gaps below this share of the object, are specks.
_SPECK = 0.1


def box_of(window: Window) -> Box:
    """The window's box that is to be filled, in its pixels."""
    box = bounds(window.region())
    assert box is not None
    return box


def find_object(new: Image, old: Image, box: Box) -> Mask | None:
    """The object in the box of a picture, bool (h, w); None where nothing sensible is there.

    new and old, float32 (h, w, 3) sRGB in [0, 1], are the picture with the box filled and the
    background as it was. GrabCut looks for it inside the box: what is probably the object is far
    from the old background in CIELAB, and all outside the box is surely background. What covers
    less than 5% or more than 95% of the box is not sensible.
    """
    import cv2

    height, width = new.shape[:2]
    scale = min(1.0, (_PIXELS / (height * width)) ** 0.5)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    inside = np.zeros((height, width), np.float32)
    inside[box.slices] = 1
    hole = resize(inside, size) > 0.5
    if not hole.any() or hole.all():
        return None
    small, was = (np.clip(resize(image, size), 0, 1) for image in (new, old))
    small = np.where(hole[..., None], small, was)
    labels = np.full(size, cv2.GC_BGD, np.uint8)
    labels[hole] = cv2.GC_PR_BGD
    labels[_likely(small, was, hole, _BLUR * max(box.width, box.height) * scale)] = cv2.GC_PR_FGD
    cut = grabcut(to_uint8(small), labels, _ROUNDS)
    if cut is None:
        return None
    cut = without_specks(cut, _SPECK, _SPECK)
    if not _LEAST <= cut.sum() / hole.sum() <= _MOST:
        return None
    large = cv2.resize(cut.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray((large > 0.5) & (inside > 0))


def _likely(new: Image, old: Image, hole: Mask, sigma: float) -> Mask:
    """Where in the hole the pictures differ most, by Otsu's threshold on their distance."""
    import cv2

    one, other = (
        cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2Lab) for image in (new, old)
    )
    away = blur(np.sqrt(((one - other) ** 2).sum(-1)), max(sigma, 0.5))
    levels = np.clip(away[hole] * 2, 0, 255).astype(np.uint8)[None]
    level, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return np.asarray(hole & (away > max(level / 2, _UNSEEN)))


def blend(fill: Filler, latent: Tensor, photos: Sequence[Reference] = ()) -> Painted:
    """The window with its box, or the object in it, as a latent (1, C, h, w) says.

    It fades into the background over `feather`. Detail comes from the photos, where the settings
    want it. Where the object does not stand out in its box, the box is laid in.
    """
    work, settings = fill.work, fill.settings
    window = work.window
    longer = max(window.shape)
    new = resize(work.image(latent), window.shape)
    weight = window.rim(settings.feather)
    inside = window.region()
    if settings.region == "object" or settings.details > 0:
        outline = find_object(new, window.clean, box_of(window))
        if outline is not None:
            # The sample's outline is no sharper than the model's pixels.
            reach = longer / max(work.size)
            inside = np.minimum(matte(np.clip(new, 0, 1), outline, "wide", reach), weight)
            if settings.region == "object":
                rim = soft_rim(outline, settings.feather * longer)
                weight = np.minimum(np.maximum(inside, rim), weight)
        elif settings.region == "object":
            fill.note(
                "the object does not stand out from the background, so its whole box is laid in"
            )
    if settings.details > 0:
        part = box_of(window).slices
        pixel = window.shape[0] / work.size[0], window.shape[1] / work.size[1]
        new[part], told = add_details(
            new[part],
            inside[part],
            pixel,
            photos,
            amount=settings.details,
            least=settings.details_agreement,
            feather=settings.feather * longer,
        )
        fill.note(told)
    cover = weight[..., None]
    # What the decoder gives beyond white and black is no colour to blend with.
    rgb = window.clean * (1 - cover) + np.clip(new, 0, 1) * cover
    return Painted(rgb.astype(np.float32), weight > 0)
