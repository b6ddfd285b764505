"""What a picture is made from: a background, a subject that lies in it, a region that may change.

Colours are float32 sRGB in [0, 1], never multiplied with alpha; alpha and masks are float32 in
[0, 1]. A scene is plain data: nothing here writes into a picture.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inlay.errors import InputError
from inlay.pictures.arrays import bounds, to_uint8
from inlay.pictures.box import Box

if TYPE_CHECKING:
    from inlay.pictures.picture import Picture

__all__ = ["Layer", "Region", "Scene", "guess_mask", "invert", "merge", "region_scene"]

Image = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Layer:
    """A cutout as it lies in a background: resampled, turned, clipped to the picture."""

    box: Box
    rgb: Image
    alpha: Image
    concept: Path | None = None


@dataclass(frozen=True, eq=False)
class Region:
    """What is to change: a box inside the background and a mask (h, w) over it."""

    box: Box
    mask: Image


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything a picture is made from, besides a method and its settings.

    clean is the picture before something was pasted into it, where the user has it.
    """

    background: Picture
    layer: Layer | None
    region: Region
    clean: Picture | None = None


def merge(layers: Sequence[Layer]) -> Layer:
    """Several layers as one, later ones over earlier ones (Porter and Duff 1984, "over")."""
    whole = layers[0].box
    for layer in layers[1:]:
        whole = whole.hull(layer.box)
    rgb = np.zeros((whole.height, whole.width, 3), np.float32)
    alpha = np.zeros((whole.height, whole.width), np.float32)
    for layer in layers:
        here = layer.box.shifted(-whole.x, -whole.y).slices
        over, below = layer.alpha, alpha[here]
        rest = below * (1 - over)
        total = over + rest
        mixed = layer.rgb * over[..., None] + rgb[here] * rest[..., None]
        mixed /= np.maximum(total, 1e-6)[..., None]
        # Where only one of the two is, its colour stays as it is to the last bit.
        mixed = np.where((rest == 0)[..., None], layer.rgb, mixed)
        rgb[here] = np.where((over == 0)[..., None], rgb[here], mixed)
        alpha[here] = total
    return Layer(whole, rgb, alpha)


def region_scene(picture: Picture, mask: Image, clean: Picture | None = None) -> Scene:
    """The scene for changing what is already there: harmonize, remove.

    mask is (height, width) in [0, 1]. Raises InputError where it is empty or a size differs.
    """
    width, height = picture.size
    mask = np.asarray(mask, np.float32)
    if mask.shape != (height, width):
        raise InputError(
            f"the mask has shape {mask.shape}; expected {width} x {height} pixels as the picture."
        )
    if not np.isfinite(mask).all():
        raise InputError("the mask holds values that are not numbers; expected 0 to 1.")
    box = bounds(mask)
    if box is None:
        raise InputError("the mask is empty; paint what is to change in white.")
    if clean is not None and clean.size != picture.size:
        raise InputError(
            f"{clean.name} is {clean.width} x {clean.height} pixels; expected {width} x {height} "
            f"as {picture.name}."
        )
    return Scene(picture, None, Region(box, np.clip(mask[box.slices], 0, 1)), clean)


def invert(scene: Scene) -> Scene:
    """The scene whose region is the whole picture less the subject."""
    picture = scene.background
    mask = np.ones((picture.height, picture.width), np.float32)
    mask[scene.region.box.slices] -= scene.region.mask
    if not (mask > 0.5).any():
        raise InputError("the subject covers the whole picture; no background is left to change.")
    region = Region(Box.of_size(picture.size), np.clip(mask, 0, 1))
    return replace(scene, region=region)


def guess_mask(picture: Picture, notes: list[str]) -> NDArray[np.float32]:
    """The object's mask where none is given: the alpha channel, else Otsu's threshold."""
    alpha = picture.alpha()
    if alpha is not None and alpha.min() < 1 and alpha.max() > 0:
        notes.append("no mask was given: the picture's alpha channel is used")
        return alpha
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
