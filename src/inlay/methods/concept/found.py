"""Where the object is in a box that a method has filled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inlay.pictures.arrays import blur, resize, to_uint8
from inlay.pictures.box import Box
from inlay.scene.grabcut import grabcut, without_specks

__all__ = ["found_object"]

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

# GrabCut works on at most so many pixels, with so many rounds.
_PIXELS = 100_000
_ROUNDS = 5
# The blur of the distance from the old picture, in box sizes.
_BLUR = 0.02
# A difference in CIELAB that is too small to be seen as an object's.
_UNSEEN = 4.0
# What is found must cover more of the box than the one and less than the other.
LEAST, MOST = 0.05, 0.95
# Pieces below this share of the largest, and gaps below this share of the object, are specks.
_SPECK = 0.1


def found_object(new: Image, old: Image, box: Box) -> Mask | None:
    """The object in the box of a picture, bool (h, w); None where nothing sensible is found.

    new and old, float32 (h, w, 3) sRGB in [0, 1], are the picture with the box filled and the
    background as it was. GrabCut (Rother, Kolmogorov and Blake 2004) looks for it inside the box:
    what is probably the object is far from the old background in CIELAB, and all outside the box is
    surely background. What covers less than 5% or more than 95% of the box is not sensible.
    """
    import cv2

    height, width = new.shape[:2]
    scale = min(1.0, (_PIXELS / (height * width)) ** 0.5)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    inside = np.zeros((height, width), np.float32)
    inside[box.slices] = 1
    hole = resize(inside, size) > 0.5
    small, was = (np.clip(resize(image, size), 0, 1) for image in (new, old))
    small = np.where(hole[..., None], small, was)
    if not hole.any() or hole.all():
        return None
    likely = _likely(small, was, hole, _BLUR * max(box.width, box.height) * scale)
    labels = np.full(size, cv2.GC_BGD, np.uint8)
    labels[hole] = cv2.GC_PR_BGD
    labels[likely] = cv2.GC_PR_FGD
    found = grabcut(to_uint8(small), labels, _ROUNDS)
    if found is None:
        return None
    found = without_specks(found, _SPECK, _SPECK)
    if not LEAST <= found.sum() / hole.sum() <= MOST:
        return None
    large = cv2.resize(found.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray((large > 0.5) & (inside > 0))


def _likely(new: Image, old: Image, hole: Mask, sigma: float) -> Mask:
    """Where in the hole the pictures differ most, by Otsu's threshold on their distance."""
    import cv2

    one, other = (
        cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2Lab) for image in (new, old)
    )
    away = blur(np.sqrt(((one - other) ** 2).sum(-1)), max(sigma, 0.5), mirror=True)
    levels = np.clip(away[hole] * 2, 0, 255).astype(np.uint8)[None]
    level, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return np.asarray(hole & (away > max(level / 2, _UNSEEN)))
