"""Our own network that finds a picture's subject, or the thing that a box or points name.

A small U-Net looks at the picture, or at the box and some of what lies round it, as a square of 256
pixels. It says how much of each pixel is subject, and how well it expects to have done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from inlay.pictures.arrays import Box, Image, bounds
from inlay.scene.network import Layers, cutter, load_layers

# A place in pixels of the picture, and whether it lies on the subject.
Point = tuple[float, float, bool]

SIDE = 256
# Radius of the disc that stands for a point, in pixels of the square.
_RADIUS = 6
# Share of a box's sides that is seen beyond it, on each.
_MARGIN = 0.25
# A subject whose box fills more of the picture than this is not looked at again from nearer.
_LARGE = 0.55
# Sides of squares round a point that are looked at as well, over the picture's shorter one.
_NEAR = (0.5, 0.25, 0.12)
# What the second look says, against the first.
_NEARER = 0.65


def find_subject(
    rgb: Image, box: Box | None = None, points: Sequence[Point] = (), net: Layers | None = None
) -> tuple[Image, float]:
    """How much of each pixel is subject, (h, w) in [0, 1], and the IoU that is expected of it.

    rgb is (h, w, 3) in [0, 1]; points lie inside it. With a box nothing beyond its surroundings is
    looked at; without one the subject that was found is looked at again from nearer. Where a point
    is given, squares round it are looked at as well, and the best answer is taken.
    """
    net = net or load_layers(cutter)
    whole = Box.of_size((rgb.shape[1], rgb.shape[0]))
    if box is not None:
        return _look(net, rgb, _view(box, whole), box, points)
    found, expected = _look(net, rgb, whole, None, points)
    found = of_points(found, points)
    for view in _squares(whole, points):
        other, promised = _look(net, rgb, view, None, points)
        other = of_points(other, points)
        seen = bounds(other > 0.5)
        # What the view cuts off is not the whole thing.
        if seen is None or seen.grown(1).intersect(whole) != seen.grown(1).intersect(view):
            continue
        if promised > expected or not (found > 0.5).any():
            found, expected = other, promised
    near = bounds(found > 0.5)
    if near is None or near.area > _LARGE * whole.area:
        return found, expected
    nearer, also = _look(net, rgb, _view(near, whole), near, points)
    expected = (1 - _NEARER) * expected + _NEARER * also
    return of_points((1 - _NEARER) * found + _NEARER * nearer, points), expected


def _squares(whole: Box, points: Sequence[Point]) -> Iterator[Box]:
    """Smaller and smaller squares round the point that is first, with all that are on it."""
    for share in _NEAR if points else ():
        side = max(1, round(share * min(whole.width, whole.height)))
        x, y = (int(v) - side // 2 for v in points[0][:2])
        view = Box(x, y, side, side).intersect(whole) or whole
        if all(view.x <= a < view.right and view.y <= b < view.bottom for a, b, on in points if on):
            yield view


def of_points(found: Image, points: Sequence[Point]) -> Image:
    """Of what was found the pieces that points lie on; all of it without a point."""
    _, labels = cv2.connectedComponents((found > 0.5).astype(np.uint8))
    height, width = found.shape
    named = {
        int(labels[min(int(y), height - 1), min(int(x), width - 1)]) for x, y, on in points if on
    }
    if not any(on for _, _, on in points):
        return found
    return np.where(np.isin(labels, [0, *named]) & (len(named - {0}) > 0), found, np.float32(0))


def _view(box: Box, whole: Box) -> Box:
    """A box and some of what lies round it, inside the picture."""
    x, y = (round(_MARGIN * side) for side in (box.width, box.height))
    wide = Box(box.x - x, box.y - y, box.width + 2 * x, box.height + 2 * y)
    return wide.intersect(whole) or whole


def as_square(part: Image, view: Box, box: Box | None, points: Sequence[Point]) -> Image:
    """What the network reads, (256, 256, 5), of a part (h, w, 3) of a picture, at `view` in it."""
    enlarged = min(part.shape[:2]) <= SIDE
    way = cv2.INTER_CUBIC if enlarged else cv2.INTER_AREA
    square = np.zeros((SIDE, SIDE, 5), np.float32)
    square[..., :3] = (cv2.resize(part, (SIDE, SIDE), interpolation=way) - 0.5) * 4
    across, down = SIDE / view.width, SIDE / view.height
    if box is not None:
        own = box.shifted(-view.x, -view.y)
        left, right = (round(v * across) for v in (own.x, own.right))
        top, bottom = (round(v * down) for v in (own.y, own.bottom))
        square[top : max(bottom, top + 2), left : max(right, left + 2), 3] = 1
    discs = np.zeros((SIDE, SIDE), np.float32)
    for x, y, on in points:
        centre = int((x - view.x) * across), int((y - view.y) * down)
        cv2.circle(discs, centre, _RADIUS, 1.0 if on else -1.0, -1)
    square[..., 4] = discs
    return square


def _look(
    net: Layers, rgb: Image, view: Box, box: Box | None, points: Sequence[Point]
) -> tuple[Image, float]:
    """What the network says of a part of the picture: the mean of as it is and mirrored."""
    square = as_square(np.clip(rgb[view.slices], 0, 1), view, box, points)
    logits, _, expected = cutter(net, np.stack([square, square[:, ::-1]]).transpose(0, 3, 1, 2))
    found = net.act(logits, "sigmoid")[:, 0]
    mean = (found[0] + found[1, :, ::-1]) / 2
    alpha = np.zeros(rgb.shape[:2], np.float32)
    large = cv2.resize(mean, (view.width, view.height), interpolation=cv2.INTER_LINEAR)
    alpha[view.slices] = large
    return alpha, float(net.act(expected, "sigmoid").mean())
