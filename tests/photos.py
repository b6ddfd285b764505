"""Real photographs for the tests: scikit-image's own, and cut-outs made of them."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data

from inlay import Box

Photo = NDArray[np.uint8]


def ellipse_alpha(height: int, width: int) -> Photo:
    """A filled ellipse with an antialiased edge, a little smaller than the picture."""
    alpha = np.zeros((height, width), np.uint8)
    center, axes = (width // 2, height // 2), (int(width * 0.45), int(height * 0.45))
    cv2.ellipse(alpha, center, axes, 0, 0, 360, 255, -1, cv2.LINE_AA)
    return alpha


def cutout(photo: Photo, box: Box) -> Photo:
    """RGBA: an ellipse of a photograph."""
    crop = photo[box.slices]
    return np.dstack([crop, ellipse_alpha(*crop.shape[:2])])


def cup() -> Photo:
    return cutout(data.coffee(), Box(150, 10, 270, 240))


def five_scenes() -> list[tuple[Photo, Photo, Box]]:
    """(background, RGBA subject, box) of five real photographs."""
    coffee, astronaut, chelsea = data.coffee(), data.astronaut(), data.chelsea()
    rocket, garage = data.rocket(), data.stereo_motorcycle()[0]
    cat = cutout(chelsea, Box(60, 20, 300, 260))
    return [
        (garage, cutout(coffee, Box(70, 8, 420, 385)), Box(20, 335, 170, 156)),
        (rocket, cutout(astronaut, Box(100, 0, 250, 250)), Box(60, 240, 160, 160)),
        (coffee, cat, Box(390, 200, 200, 170)),
        (astronaut, cat, Box(20, 20, 180, 162)),
        (chelsea, cup(), Box(20, 170, 120, 110)),
    ]
