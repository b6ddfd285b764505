"""Removals from large pictures: what is thin goes piece by piece, at the picture's own scale."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from inlay.pictures.arrays import Box, Mask, bounds, distance
from inlay.scene.stitch import FADE, GROWN, Painted, Window, crop_box

# A thing is long from so many of the model's sides on, and thin up to this share of one. Room on
# each side of a piece, in units of it; for more pieces than the most, they become larger.
_LONG, _THIN, _ROOM, _MOST = 2, 1 / 3, 0.125, 16


def piecewise(window: Window, side: int, paint: Callable[[Window, int, int], Painted]) -> Painted:
    """A window with its mask painted by `paint(part, number, count)`, of `count` parts of it.

    Where the mask is much longer than `side`, the model's, what is thin in it is painted in windows
    of about that many pixels along it, each on what the last one left, and then the rest.
    """
    thin, pieces = thin_pieces(window.alpha > 0, side)
    if not pieces:
        return paint(window, 0, 1)
    rgb, changed, left = window.pasted.copy(), np.zeros(window.shape, np.bool_), window.alpha.copy()
    whole = Box.of_size(window.shape[::-1])
    if (left[~thin] > 0).any():
        pieces.append(whole)
    for number, piece in enumerate(pieces):
        part = crop_box(piece, (whole.width, whole.height), _ROOM, side)
        # A soft mask says how much of each pixel is to change, once.
        within = piece.grown(0 if window.soft else GROWN + FADE).intersect(part) or part
        seen, inner = rgb[part.slices].copy(), within.shifted(-part.x, -part.y).slices
        box = part.shifted(window.box.x, window.box.y)
        small = Window(box, seen, seen, left[part.slices].copy(), seen, space=window.space)
        painted = paint(small, number, len(pieces))
        where = painted.mask[inner]
        rgb[within.slices][where] = painted.rgb[inner][where]
        changed[within.slices] |= where
        left[piece.slices][thin[piece.slices]] = 0
    return Painted(rgb, changed)


def thin_pieces(mask: Mask, side: int) -> tuple[Mask, list[Box]]:
    """What of a mask (h, w) is thin, and boxes that hold all of that, each fit for a window of
    about `side` pixels; none where the mask is not long.
    """
    import cv2

    box = bounds(mask)
    if box is None or max(box.width, box.height) <= _LONG * side:
        return mask, []
    count, labels = cv2.connectedComponents(mask.astype(np.uint8))
    thick = np.zeros(count, np.bool_)
    thick[labels[distance(~mask) > _THIN * side / 2]] = True
    thin = mask & ~thick[labels]
    most = side / (1 + 2 * _ROOM)
    while len(pieces := _split(thin, most)) > _MOST:
        most *= 1.1
    return thin, pieces


def _split(mask: Mask, most: float) -> list[Box]:
    """Boxes of sides of at most `most` pixels that hold all of a mask (h, w), none twice."""
    box = bounds(mask)
    if box is None or max(box.width, box.height) <= most:
        return [] if box is None else [box]
    pieces, wide = [], box.width >= box.height
    length = box.width if wide else box.height
    cuts = np.linspace(0, length, math.ceil(length / most) + 1).round().astype(int).tolist()
    for start, end in itertools.pairwise(cuts):
        part = Box(box.x + start, box.y, end - start, box.height)
        if not wide:
            part = Box(box.x, box.y + start, box.width, end - start)
        pieces += [each.shifted(part.x, part.y) for each in _split(mask[part.slices], most)]
    return pieces
