"""Which part of a picture may change, where the user did not draw it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inlay.errors import InputError
from inlay.pictures.arrays import to_uint8
from inlay.pictures.box import Box
from inlay.pictures.picture import Picture
from inlay.scene.scene import Region, Scene

__all__ = ["found_region", "inverted"]


def inverted(scene: Scene) -> Scene:
    """The scene whose region is the whole picture less the subject."""
    picture = scene.background
    mask = np.ones((picture.height, picture.width), np.float32)
    mask[scene.region.box.slices] -= scene.region.mask
    if not (mask > 0.5).any():
        raise InputError("the subject covers the whole picture; no background is left to change.")
    region = Region(Box.of_size(picture.size), np.clip(mask, 0, 1))
    return Scene(background=picture, layer=scene.layer, region=region, clean=scene.clean)


def found_region(picture: Picture, notes: list[str]) -> NDArray[np.float32]:
    """The object's mask where none is given: the alpha channel, else Otsu's threshold."""
    alpha = picture.alpha()
    if alpha is not None and alpha.min() < 1 and alpha.max() > 0:
        notes.append("no mask was given: the picture's alpha channel is used")
        return alpha
    import logging

    import cv2

    # In bands of rows, so that the colours of a large picture are never all there as floats.
    grey = np.empty((picture.height, picture.width), np.uint8)
    for rows in picture.bands():
        levels = to_uint8(picture.rgb(rows))
        grey[rows.slices] = cv2.cvtColor(levels, cv2.COLOR_RGB2GRAY)
    _, mask = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    notes.append("no mask was given: Otsu's threshold of the picture is used")
    logging.getLogger("inlay").warning(notes[-1])
    # The object is taken to be the smaller of the two sides.
    mask = mask if mask.mean() <= 0.5 else 1 - mask
    return np.asarray(mask, np.float32)
