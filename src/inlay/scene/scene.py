"""What the user has: a background, a subject cut out of its picture, and a place for it.

Colours are float32 sRGB in [0, 1], never multiplied with alpha; alpha and masks are float32 in
[0, 1]. A scene is plain data: nothing here writes into a picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inlay.errors import InputError
from inlay.pictures.arrays import bounds, resize
from inlay.pictures.box import Box
from inlay.scene.placement import Placement, outline, turned_size

if TYPE_CHECKING:
    from inlay.pictures.picture import Picture

__all__ = [
    "Cutout",
    "Layer",
    "Placement",
    "Region",
    "Scene",
    "layer_scene",
    "merged",
    "place",
    "region_scene",
]

Image = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Cutout:
    """A subject without its background, cropped to where it is not transparent.

    rgb (h, w, 3) is the subject's own colour even where the old background shone through. concept
    is the file of a concept, whose picture is yet to be made: then all of it is grey.
    """

    rgb: Image
    alpha: Image
    name: str
    sha256: str
    concept: Path | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.alpha.shape[1], self.alpha.shape[0]


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


def place(
    cutout: Cutout, size: tuple[int, int], placement: Placement, seed: int | Sequence[int] = 0
) -> Layer:
    """Lay a cutout into a background of (width, height).

    Resampling is done on colours multiplied with alpha (Porter and Duff 1984), over the area
    when shrinking and bicubic when growing, so no colour of transparent pixels bleeds in.
    Parts outside the background are cut off. Raises InputError where nothing of the subject
    lies inside, or where its size would be below one pixel or beyond reason.
    """
    new, box = outline(cutout.size, size, placement, seed)
    paint = np.dstack([cutout.rgb * cutout.alpha[..., None], cutout.alpha]).astype(np.float32)
    if placement.flip:
        paint = paint[:, ::-1]
    paint = _rotated(resize(paint, new[::-1]), placement.rotate)
    layer = _clipped(paint, (box.x, box.y), size)
    if layer is None:
        if placement.box is not None:
            what = "box " + ",".join(str(v) for v in placement.box.as_dict().values())
        else:
            what = f"at {placement.at[0]:g},{placement.at[1]:g}" if placement.at else "the place"
        raise InputError(
            f"{what} puts the subject wholly outside the background, "
            f"which is {size[0]} x {size[1]} pixels."
        )
    return replace(layer, concept=cutout.concept)


def layer_scene(background: Picture, layer: Layer) -> Scene:
    """The scene for putting a placed subject into a background; the region is its alpha."""
    return Scene(background, layer, Region(layer.box, layer.alpha))


def merged(layers: Sequence[Layer]) -> Layer:
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


def _rotated(paint: Image, degrees: float) -> Image:
    """Turned counter-clockwise round its centre, on a canvas that holds all of it."""
    import cv2

    if degrees % 90 == 0:
        return np.rot90(paint, int(degrees // 90) % 4)
    height, width = paint.shape[:2]
    wide, high = (math.ceil(v - 1e-6) for v in turned_size(width, height, degrees))
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    matrix[:, 2] += (wide - width) / 2, (high - height) / 2
    # Beyond its edge the subject is transparent, which also softens a straight cut.
    turned = cv2.warpAffine(
        np.ascontiguousarray(paint), matrix, (wide, high), flags=cv2.INTER_CUBIC
    )
    return np.asarray(turned, np.float32)


def _clipped(paint: Image, corner: tuple[int, int], size: tuple[int, int]) -> Layer | None:
    """The part inside the background, cropped to what can be seen; None where nothing can."""
    inside = Box(*corner, paint.shape[1], paint.shape[0]).intersect(Box.of_size(size))
    if inside is None:
        return None
    paint = paint[inside.shifted(-corner[0], -corner[1]).slices]
    seen = bounds(paint[..., 3])
    if seen is None:
        return None
    paint = paint[seen.slices]
    alpha = paint[..., 3]
    # Cubic resampling overshoots colour and alpha alike, so their ratio is taken first.
    rgb = np.clip(paint[..., :3] / np.maximum(alpha, 1e-4)[..., None], 0, 1)
    return Layer(
        seen.shifted(inside.x, inside.y),
        np.ascontiguousarray(rgb, np.float32),
        np.ascontiguousarray(np.clip(alpha, 0, 1), np.float32),
    )
