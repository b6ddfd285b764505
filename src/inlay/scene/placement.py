"""Where a subject goes in a background, how large it becomes, and what of it is seen there.

Sizes are (width, height) in pixels. No pixel of the background is touched here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inlay.errors import InputError
from inlay.pictures.arrays import bounds, resize
from inlay.pictures.box import Box
from inlay.scene.scene import Layer, Region, Scene

if TYPE_CHECKING:
    from inlay.pictures.picture import Picture
    from inlay.scene.cutout import Cutout

__all__ = ["Placement", "bounding_size", "choose_seeds", "layer_scene", "outline", "place"]

Size = tuple[int, int]
Image = NDArray[np.float32]

# Where no scale is asked for, the subject's longer side over the background's shorter side.
DEFAULT_SHARE = 0.4
# The span of that share for a random scale.
RANDOM_SHARE = (0.25, 0.6)
# The most pixels of a placed subject before it is clipped, and OpenCV's longest side to turn.
LARGEST_AREA = 100_000_000
LONGEST_TURNED = 32_000
# How often a random place is drawn anew because others lie there.
_TRIES = 64


@dataclass(frozen=True)
class Placement:
    """Where a subject goes; one of box, at or random, else the middle of the background.

    box: the subject keeps its aspect and is centred in it. at: the subject's centre, in pixels
    of the background; scale: the subject's pixels are multiplied by it (None: the longer side
    becomes 40% of the background's shorter side). random: a place, and where scale is None a
    scale, drawn from the seed, wholly inside. rotate: degrees, counter-clockwise. flip: mirrored
    left to right, before it is turned.
    """

    box: Box | None = None
    at: tuple[float, float] | None = None
    scale: float | None = None
    random: bool = False
    rotate: float = 0.0
    flip: bool = False

    def __post_init__(self) -> None:
        chosen = (self.box is not None) + (self.at is not None) + self.random
        if chosen > 1:
            raise InputError("the place is given twice; use only one of box, at and random.")
        if self.box is not None and self.scale is not None:
            raise InputError("scale goes with at or random; a box already says how large.")
        if self.at is not None and (
            len(self.at) != 2 or not all(math.isfinite(v) and abs(v) <= 1e6 for v in self.at)
        ):
            raise InputError(f"at is {self.at}; expected X,Y in pixels of the background.")
        if self.scale is not None and not 0 < self.scale <= 1e6:
            raise InputError(f"scale is {self.scale}; expected a number above 0, at most 1e6.")
        if not math.isfinite(self.rotate):
            raise InputError(f"rotate is {self.rotate}; expected a finite number of degrees.")


def outline(
    subject: Size, background: Size, placement: Placement, seed: int | Sequence[int] = 0
) -> tuple[Size, Box]:
    """The size a subject is resampled to, and the box it covers once it is turned.

    The box may lie partly outside the background. Raises InputError where the subject would be
    smaller than one pixel or larger than reason.
    """
    rng = np.random.default_rng(seed)
    width, height = subject
    turned = bounding_size(width, height, placement.rotate)
    scale, option = _scale(turned, background, placement, rng)
    new = max(1, math.floor(width * scale + 0.5)), max(1, math.floor(height * scale + 0.5))
    if max(width, height) * scale < 0.5:
        raise InputError(f"{option} makes the subject smaller than one pixel; give a larger one.")
    straight = placement.rotate % 90 == 0
    if new[0] * new[1] > LARGEST_AREA or (not straight and max(new) > LONGEST_TURNED):
        raise InputError(
            f"{option} makes the subject {new[0]} x {new[1]} pixels; give a smaller one."
        )
    wide, high = (math.ceil(v - 1e-6) for v in bounding_size(*new, placement.rotate))
    return new, Box(*_corner((wide, high), background, placement, rng), wide, high)


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


def choose_seeds(
    subjects: Sequence[Size], background: Size, placements: Sequence[Placement], seed: int
) -> list[int | list[int]]:
    """The seed that each of several subjects is to be placed with.

    The first one's is `seed`, so that it lies where it would lie alone. Each further one with a
    random place gets the first of a row of seeds that puts it clear of those before it; where
    none of them does, the one that covers least of theirs. Raises InputError as `outline` does.
    """
    chosen: list[int | list[int]] = []
    taken: list[Box] = []
    for number, (subject, placement) in enumerate(zip(subjects, placements, strict=True)):
        best, least = outline(subject, background, placement, seed)[1], math.inf
        pick: int | list[int] = seed
        for attempt in range(_TRIES if number and placement.random else 0):
            drawn = [seed, number, attempt]
            box = outline(subject, background, placement, drawn)[1]
            common = sum(both.area for other in taken if (both := box.intersect(other)))
            if common < least:
                best, least, pick = box, common, drawn
            if not common:
                break
        chosen.append(pick)
        taken.append(best)
    return chosen


def bounding_size(width: float, height: float, degrees: float) -> tuple[float, float]:
    """The bounding box of a rectangle after a turn."""
    angle = math.radians(degrees)
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    if degrees % 90 == 0:
        cos, sin = float(round(cos)), float(round(sin))
    return width * cos + height * sin, width * sin + height * cos


def _scale(
    turned: tuple[float, float], size: Size, placement: Placement, rng: np.random.Generator
) -> tuple[float, str]:
    """What the subject's pixels are multiplied by, and the option that says so."""
    if placement.box is not None:
        box = placement.box
        return min(box.width / turned[0], box.height / turned[1]), "box"
    fits = min(size[0] / turned[0], size[1] / turned[1])
    if placement.scale is not None:
        if placement.random and placement.scale > fits:
            raise InputError(
                f"scale {placement.scale:g} makes the subject larger than the background; "
                f"expected at most {fits:.3g} for a random place wholly inside."
            )
        return placement.scale, f"scale {placement.scale:g}"
    share = rng.uniform(*RANDOM_SHARE) if placement.random else DEFAULT_SHARE
    return min(share * min(size) / max(turned), fits), "the default scale"


def _corner(
    drawn: Size, size: Size, placement: Placement, rng: np.random.Generator
) -> tuple[int, int]:
    """The top left pixel of the drawn subject in the background."""
    if placement.random:
        # Rounding may make the drawing a pixel larger than what was fitted.
        free = [max(size[i] - drawn[i], 0) for i in (0, 1)]
        return int(rng.integers(free[0] + 1)), int(rng.integers(free[1] + 1))
    if placement.box is not None:
        box = placement.box
        return box.x + (box.width - drawn[0]) // 2, box.y + (box.height - drawn[1]) // 2
    centre = placement.at if placement.at is not None else (size[0] / 2, size[1] / 2)
    return math.floor(centre[0] - drawn[0] / 2 + 0.5), math.floor(centre[1] - drawn[1] / 2 + 0.5)


def _rotated(paint: Image, degrees: float) -> Image:
    """Turned counter-clockwise round its centre, on a canvas that holds all of it."""
    import cv2

    if degrees % 90 == 0:
        return np.rot90(paint, int(degrees // 90) % 4)
    height, width = paint.shape[:2]
    wide, high = (math.ceil(v - 1e-6) for v in bounding_size(width, height, degrees))
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
