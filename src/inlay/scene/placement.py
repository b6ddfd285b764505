"""Where a subject goes in a background, how large it becomes, and what of it is seen there.

Sizes are (width, height) in pixels. No pixel of the background is touched here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inlay.errors import InputError
from inlay.pictures.arrays import bounds, resize
from inlay.pictures.box import Box
from inlay.scene.window import Layer

if TYPE_CHECKING:
    from inlay.scene.cutout import Cutout
    from inlay.scene.subject import Subject


Size = tuple[int, int]
Seed = int | Sequence[int]
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


def outline(shape: Size, background: Size, subject: Subject, seed: Seed = 0) -> tuple[Size, Box]:
    """The size a subject's cut-out is resampled to, and the box it covers once it is turned.

    shape is the cut-out's own size. The box may lie partly outside the background. Raises
    InputError where the subject would be smaller than one pixel or larger than reason.
    """
    rng = np.random.default_rng(seed)
    width, height = shape
    turned = bounding_size(*shape, subject.rotate)
    fits = min(background[0] / turned[0], background[1] / turned[1])
    if subject.box is not None:
        scale, option = min(subject.box.width / turned[0], subject.box.height / turned[1]), "box"
    elif subject.scale is not None:
        scale, option = subject.scale, f"scale {subject.scale:g}"
        if subject.random and scale > fits:
            raise InputError(
                f"{option} makes the subject larger than the background; expected at most "
                f"{fits:.3g} for a random place wholly inside."
            )
    else:
        share = rng.uniform(*RANDOM_SHARE) if subject.random else DEFAULT_SHARE
        scale, option = min(share * min(background) / max(turned), fits), "the default scale"
    new = max(1, math.floor(width * scale + 0.5)), max(1, math.floor(height * scale + 0.5))
    if max(width, height) * scale < 0.5:
        raise InputError(f"{option} makes the subject smaller than one pixel; give a larger one.")
    straight = subject.rotate % 90 == 0
    if new[0] * new[1] > LARGEST_AREA or (not straight and max(new) > LONGEST_TURNED):
        raise InputError(
            f"{option} makes the subject {new[0]} x {new[1]} pixels; give a smaller one."
        )
    wide, high = (math.ceil(v - 1e-6) for v in bounding_size(*new, subject.rotate))
    return new, Box(*_corner((wide, high), background, subject, rng), wide, high)


def place(cutout: Cutout, size: Size, subject: Subject, seed: Seed = 0) -> Layer:
    """Lay a subject's cut-out into a background of (width, height), cropped to what can be seen.

    Resampling is done on colours multiplied with alpha (Porter and Duff 1984), over the area
    when shrinking and bicubic when growing, so no colour of transparent pixels bleeds in.
    Parts outside the background are cut off. Raises InputError where nothing of the subject
    lies inside, or where its size would be below one pixel or beyond reason.
    """
    new, box = outline(cutout.size, size, subject, seed)
    paint = np.dstack([cutout.rgb * cutout.alpha[..., None], cutout.alpha]).astype(np.float32)
    if subject.flip:
        paint = paint[:, ::-1]
    paint = _rotated(resize(paint, new[::-1]), subject.rotate, (box.width, box.height))
    inside = box.intersect(Box.of_size(size))
    if inside is not None:
        paint = paint[inside.shifted(-box.x, -box.y).slices]
    seen = None if inside is None else bounds(paint[..., 3])
    if inside is None or seen is None:
        what = f"at {subject.at[0]:g},{subject.at[1]:g}" if subject.at else "the place"
        if subject.box is not None:
            what = "box " + ",".join(str(v) for v in subject.box.as_dict().values())
        raise InputError(
            f"{what} puts the subject wholly outside the background, "
            f"which is {size[0]} x {size[1]} pixels."
        )
    paint = paint[seen.slices]
    alpha = paint[..., 3]
    # Cubic resampling overshoots colour and alpha alike, so their ratio is taken first.
    rgb = np.clip(paint[..., :3] / np.maximum(alpha, 1e-4)[..., None], 0, 1)
    return Layer(
        seen.shifted(inside.x, inside.y),
        np.ascontiguousarray(rgb, np.float32),
        np.ascontiguousarray(np.clip(alpha, 0, 1), np.float32),
        cutout.concept,
    )


def place_all(
    cutouts: Sequence[Cutout], size: Size, subjects: Sequence[Subject], seed: int
) -> list[Layer]:
    """Lay several cut-outs into a background of (width, height); random places keep apart.

    The first one is placed with `seed`, so that it lies where it would lie alone. Each further one
    with a random place gets the first of a row of seeds that puts it clear of those before it;
    where none of them does, the one that covers least of theirs. Raises InputError as `place` does.
    """
    layers: list[Layer] = []
    taken: list[Box] = []
    for number, (cutout, subject) in enumerate(zip(cutouts, subjects, strict=True)):
        drawn = number and subject.random
        seeds = [[seed, number, n] for n in range(_TRIES)] if drawn else [seed]
        boxes = [outline(cutout.size, size, subject, each)[1] for each in seeds]
        common = [sum(b.area for other in taken if (b := box.intersect(other))) for box in boxes]
        best = common.index(min(common))
        layers.append(place(cutout, size, subject, seeds[best]))
        taken.append(boxes[best])
    return layers


def bounding_size(width: float, height: float, degrees: float) -> tuple[float, float]:
    """The bounding box of a rectangle after a turn."""
    angle = math.radians(degrees)
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    if degrees % 90 == 0:
        cos, sin = float(round(cos)), float(round(sin))
    return width * cos + height * sin, width * sin + height * cos


def _corner(drawn: Size, size: Size, subject: Subject, rng: np.random.Generator) -> Size:
    """The top left pixel of the drawn subject in the background."""
    if subject.random:
        # Rounding may make the drawing a pixel larger than what was fitted.
        free = [max(size[i] - drawn[i], 0) for i in (0, 1)]
        return int(rng.integers(free[0] + 1)), int(rng.integers(free[1] + 1))
    if subject.box is not None:
        box = subject.box
        return box.x + (box.width - drawn[0]) // 2, box.y + (box.height - drawn[1]) // 2
    x, y = subject.at or (size[0] / 2, size[1] / 2)
    return math.floor(x - drawn[0] / 2 + 0.5), math.floor(y - drawn[1] / 2 + 0.5)


def _rotated(paint: Image, degrees: float, size: Size) -> Image:
    """Turned counter-clockwise round its centre, on a canvas of (width, height) that holds it."""
    import cv2

    if degrees % 90 == 0:
        return np.rot90(paint, int(degrees // 90) % 4)
    height, width = paint.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    matrix[:, 2] += (size[0] - width) / 2, (size[1] - height) / 2
    # Beyond its edge the subject is transparent, which also softens a straight cut.
    turned = cv2.warpAffine(np.ascontiguousarray(paint), matrix, size, flags=cv2.INTER_CUBIC)
    return np.asarray(turned, np.float32)
