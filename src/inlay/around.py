"""A scene without a background: its size, an empty canvas, and where a subject goes in it.

Sizes are (width, height) in pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np

from inlay.chain import Link
from inlay.errors import InputError
from inlay.pictures.picture import Picture
from inlay.request import Request
from inlay.scene.cutout import Cutout
from inlay.scene.placement import Placement, bounding_size, layer_scene
from inlay.scene.scene import Layer, Scene, invert, merge
from inlay.subjects import Subject, laid
from inlay.sweep import show

__all__ = ["LARGEST_SIDE", "LEAST_SIDE", "as_size", "canvas", "scene_links"]

LEAST_SIDE, LARGEST_SIDE = 64, 8192

# Without a place the subject's longer side is this share of the scene's shorter one, and its
# lower edge lies at this share of the height.
_SHARE = 0.5
_GROUND = 0.9
_GREY = 128


def as_size(value: Any, max_pixels: int, name: str = "size") -> tuple[int, int]:
    """A scene's (width, height), checked; raises InputError naming `name`."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    sides = list(value) if isinstance(value, (list, tuple)) else []
    whole = [isinstance(side, Integral) and not isinstance(side, bool) for side in sides]
    if len(sides) != 2 or not all(whole):
        raise InputError(f"{name} is {show(value)}; expected two whole numbers, width and height.")
    width, height = int(sides[0]), int(sides[1])
    if not all(LEAST_SIDE <= side <= LARGEST_SIDE for side in (width, height)):
        raise InputError(
            f"{name} is {show(f'{width}x{height}')}; expected sides of {LEAST_SIDE} to "
            f"{LARGEST_SIDE} pixels."
        )
    if width * height > max_pixels:
        raise InputError(
            f"{name} is {width}x{height}, {width * height} pixels in all; expected at most "
            f"{max_pixels}."
        )
    return width, height


def canvas(size: tuple[int, int]) -> Picture:
    """A grey picture: 8-bit RGB, sRGB."""
    samples = np.full((size[1], size[0], 3), _GREY, np.uint8)
    samples.setflags(write=False)
    digest = hashlib.sha256(samples.data).hexdigest()
    return Picture(samples, "RGB", None, "the scene", digest, None)


def scene_links(
    request: Request,
    subjects: Sequence[Subject],
    cutouts: Sequence[Cutout],
    size: tuple[int, int],
    seed: int,
) -> list[Link]:
    """The one run that makes a scene round all subjects, later ones over earlier ones."""
    placed = [
        replace(
            each,
            place=replace(each.place, placement=_settled(each.place.placement, cutout.size, size)),
        )
        for each, cutout in zip(subjects, cutouts, strict=True)
    ]
    layer = merge(laid(placed, cutouts, size, seed))
    return [Link("", request, [partial(_around, layer)])]


def _around(layer: Layer, picture: Picture, pictures: Any) -> Scene:
    return invert(layer_scene(picture, layer))


def _settled(placement: Placement, subject: tuple[int, int], size: tuple[int, int]) -> Placement:
    """The placement, in the lower middle where it names no place."""
    if placement.box is not None or placement.at is not None or placement.random:
        return placement
    width, height = bounding_size(*subject, placement.rotate)
    scale = placement.scale or min(
        _SHARE * min(size) / max(width, height), size[0] / width, size[1] / height
    )
    tall = height * scale
    # One that is higher than that keeps its head in the picture as long as it can.
    y = max(_GROUND * size[1] - tall / 2, min(tall / 2, size[1] / 2))
    return replace(placement, at=(size[0] / 2, y), scale=scale)
