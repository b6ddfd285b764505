"""Random square crops and random holes, which training draws from any picture."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from inlay.pictures.arrays import blur, resize

__all__ = ["random_crop", "random_mask"]

Image = NDArray[np.uint8]
Mask = NDArray[np.float32]


def random_crop(image: Image, size: int, rng: np.random.Generator) -> Image:
    """A square crop of a picture (H, W, C), resized to (size, size, C), half of them mirrored.

    Its side is 55% to 100% of the short side, and no less than half of `size`, unless the picture's
    is.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    side = round(short * rng.uniform(0.55, 1.0))
    side = min(short, max(side, min(short, size // 2)))
    top = int(rng.integers(0, height - side + 1))
    left = int(rng.integers(0, width - side + 1))
    mirrored = bool(rng.random() < 0.5)
    crop = resize(image[top : top + side, left : left + side], (size, size))
    return np.ascontiguousarray(crop[:, ::-1] if mirrored else crop)


def random_mask(size: int, rng: np.random.Generator) -> Mask:
    """A hole (size, size), 1 = to be painted: a box, ellipses, strokes, a blob, or everything."""
    mask = np.zeros((size, size), np.float32)
    kind = rng.choice(5, p=[0.3, 0.2, 0.15, 0.2, 0.15])
    if kind == 0:
        w, h = rng.uniform(0.2, 0.85, 2) * size
        x, y = rng.uniform(0, size - w), rng.uniform(0, size - h)
        mask[int(y) : int(y + h), int(x) : int(x + w)] = 1
    elif kind == 1:
        for _ in range(int(rng.integers(1, 4))):
            center = tuple(int(v) for v in rng.uniform(0.2, 0.8, 2) * size)
            axes = tuple(int(v) for v in rng.uniform(0.08, 0.4, 2) * size)
            cv2.ellipse(mask, center, axes, float(rng.uniform(0, 180)), 0, 360, 1.0, -1)
    elif kind == 2:
        for _ in range(int(rng.integers(1, 4))):
            steps = rng.normal(0, 0.18, (int(rng.integers(3, 7)), 2)) * size
            points = (np.cumsum(steps, 0) + rng.uniform(0.2, 0.8, 2) * size).astype(np.int32)
            thickness = int(rng.uniform(0.06, 0.2) * size)
            cv2.polylines(mask, [points], False, 1.0, thickness)
    elif kind == 3:
        # Thresholded smooth noise: ragged outlines, like those of segmented objects.
        noise = rng.normal(size=(size, size)).astype(np.float32)
        smooth = blur(noise, float(rng.uniform(0.08, 0.2) * size), mirror=True)
        mask[smooth > np.quantile(smooth, rng.uniform(0.4, 0.85))] = 1
    else:
        mask[:] = 1
    return mask
