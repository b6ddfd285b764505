"""Which piece of a small picture goes where in its hole: shift maps, found by graph cuts.

Pritch, Kav-Venaki and Peleg 2009, "Shift-map image editing"; the shifts to choose from are those by
which the picture is like itself (He and Sun 2012, "Statistics of patch offsets for image
completion"). A pixel's row is a channel beside its colour: what may lie at a place hangs on its
height in the picture more than on its column. Features are float32 (h, w, c), and a pixel is usable
where something may be copied from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from inlay.pictures.arrays import Image, Mask, distance

Table = NDArray[np.int32]
F = TypeVar("F", bound=Callable[..., Any])

# How many shifts there are to choose from, of how many that are looked at more closely.
SHIFTS, _CLOSER = 60, 2000
# Pixels beside the hole, and in it, by which shifts are judged; how unlike two pixels may be, and
# what it is worth that a pixel of the hole can be filled, beside being like a known one.
_BESIDE, _WITHIN, _ALIKE, _LEVEL, _AGAIN = 500, 150, 30.0, 60.0, 0.02
# The shortest shift, in pixels. What is farther apart than this, or not known, is as far.
_SHORTEST, _FAR = 6, 500.0
# The cost of what cannot be, and rounds through all shifts.
_NEVER, _ROUNDS = 1e6, 2


def compiled(function: F) -> F:
    """The function as machine code, kept on disk after its first call."""
    kept: F = njit(cache=True, nogil=True, fastmath=True)(function)
    return kept


@compiled
def _apart(features: Image, usable: Mask, y: int, x: int, v: int, u: int) -> float:
    """How unlike two pixels are."""
    height, width = usable.shape
    one = 0 <= y < height and 0 <= x < width and usable[y, x]
    two = 0 <= v < height and 0 <= u < width and usable[v, u]
    if not (one and two):
        return 0.0 if one == two else _FAR
    total = 0.0
    for c in range(features.shape[2]):
        step = features[y, x, c] - features[v, u, c]
        total += step * step
    return round(min(math.sqrt(total), _FAR))


@compiled
def strangeness(colours: Image, rim: Image) -> Image:
    """How far each pixel's colour is from the nearest of the rim's (n, 3)."""
    height, width, channels = colours.shape
    apart = np.empty((height, width), np.float32)
    for y in range(height):
        for x in range(width):
            nearest = np.float32(1e30)
            for j in range(len(rim)):
                total = np.float32(0)
                for c in range(channels):
                    step = colours[y, x, c] - rim[j, c]
                    total += step * step
                nearest = min(nearest, total)
            apart[y, x] = math.sqrt(nearest)
    return apart


@compiled
def _likeness(
    features: Image, strange: Image, usable: Mask, known: Table, missing: Table, shifts: Table
) -> Image:
    """For each shift (n, 2), how like each known pixel is to the one it leads to, 0 to 1, and how
    likely a missing pixel has what lies there, 0 where that is nothing.
    """
    table = np.zeros((len(shifts), len(known) + len(missing)), np.float32)
    height, width = usable.shape
    for i in range(len(shifts)):
        for j in range(len(known) + len(missing)):
            inside = j >= len(known)
            y, x = missing[j - len(known)] if inside else known[j]
            v, u = y + shifts[i, 0], x + shifts[i, 1]
            if not (0 <= v < height and 0 <= u < width and usable[v, u]):
                continue
            if inside:
                # Of a place far up or down there is little to expect, or of one that is strange.
                level = 1 - abs(features[y, x, -1] - features[v, u, -1]) / _LEVEL
                table[i, j] = max(_AGAIN, level * (1 - strange[v, u] / _ALIKE))
            else:
                table[i, j] = max(0.0, 1 - _apart(features, usable, y, x, v, u) / _ALIKE)
    return table


def choose_shifts(features: Image, strange: Image, usable: Mask, hole: Mask) -> Table:
    """At most SHIFTS shifts (n, 2) of rows and columns, each the one that adds most to the last."""
    height, width = hole.shape
    missing = np.argwhere(hole).astype(np.int32)
    near = distance(hole)
    reach = max(float(distance(~hole).max()), 8.0)
    known = np.argwhere(usable & (near <= reach)).astype(np.int32)
    if not len(known):
        known = np.argwhere(usable).astype(np.int32)
    known = known[:: -(-len(known) // _BESIDE)]
    missing = missing[:: -(-len(missing) // _WITHIN)]
    rows, columns = np.mgrid[1 - height : height, 1 - width : width].astype(np.int32)
    shifts = np.stack([rows.ravel(), columns.ravel()], 1)
    shifts = shifts[np.abs(shifts).max(1) >= _SHORTEST]
    total = np.concatenate(
        [
            # In parts, for the whole table is large; what can fill nothing is of no use.
            (table := _likeness(features, strange, usable, known[::8], missing[::4], part)).sum(1)
            * table[:, len(known[::8]) :].any(1)
            for part in np.array_split(shifts, 1 + len(shifts) // 4096)
        ]
    )
    shifts = shifts[np.argsort(-total, kind="stable")[:_CLOSER]]
    table = _likeness(features, strange, usable, known, missing, shifts)
    weight = np.ones(table.shape[1], np.float32)
    chosen: list[int] = []
    while len(chosen) < min(SHIFTS, len(shifts)):
        best = int(np.argmax(table @ weight))
        chosen.append(best)
        # What is explained, or can be filled, already counts less.
        weight[: len(known)] *= 1 - 0.5 * table[best, : len(known)]
        weight[len(known) :] *= 1 - (1 - _AGAIN) * table[best, len(known) :]
        close = np.abs(shifts - shifts[best]).max(1) <= 1
        table[close] = 0
    return np.asarray(shifts[chosen], np.int32)


@compiled
def _flow(
    excess: NDArray[np.float64], ways: NDArray[np.float64], links: Table
) -> NDArray[np.int32]:
    """Minimum cut by Dinic's maximum flow (1970): for each node how many steps it is from the sink
    in what is left, 0 where it is cut off from it.

    excess (n,) is what a node may have from the source, or, negative, give to the sink; ways (n, 4)
    what may go to each neighbour, of links (n, 4), -1 where there is none; the way back from
    neighbour k is its k ^ 1. Both are changed.
    """
    count = len(excess)
    queue, path = np.empty(count, np.int32), np.empty(count + 1, np.int32)
    steps, turn = np.zeros(count, np.int32), np.zeros(count, np.int32)
    while True:
        steps[:], turn[:] = 0, 0
        head = tail = 0
        for i in range(count):
            if excess[i] < 0:
                steps[i] = 1
                queue[tail] = i
                tail += 1
        while head < tail:
            j = queue[head]
            head += 1
            for k in range(4):
                i = links[j, k]
                if i >= 0 and steps[i] == 0 and ways[i, k ^ 1] > 0:
                    steps[i] = steps[j] + 1
                    queue[tail] = i
                    tail += 1
        moved = False
        for start in range(count):
            while excess[start] > 0 and steps[start] > 0:
                length, path[0] = 0, start
                while length >= 0:
                    i = path[length]
                    if steps[i] == 1:
                        break
                    while turn[i] < 4:
                        j = links[i, turn[i]]
                        if j >= 0 and ways[i, turn[i]] > 0 and steps[j] == steps[i] - 1:
                            break
                        turn[i] += 1
                    if turn[i] == 4:
                        steps[i] = -1
                        length -= 1
                        if length >= 0:
                            turn[path[length]] += 1
                    else:
                        length += 1
                        path[length] = links[i, turn[i]]
                if length < 0:
                    break
                amount = min(excess[start], -excess[path[length]])
                for n in range(length):
                    amount = min(amount, ways[path[n], turn[path[n]]])
                moved = moved or amount > 0
                excess[start] -= amount
                excess[path[length]] += amount
                for n in range(length):
                    i, k = path[n], turn[path[n]]
                    ways[i, k] -= amount
                    ways[path[n + 1], k ^ 1] += amount
                if excess[path[length]] >= 0:
                    steps[path[length]] = -1
        if not moved:
            return steps


@compiled
def _expand(
    features: Image,
    usable: Mask,
    points: Table,
    links: Table,
    alone: NDArray[np.float64],
    shifts: Table,
    labels: NDArray[np.int64],
    label: int,
) -> bool:
    """Give a label to all pixels that are the better for it, together (Boykov, Veksler and Zabih
    2001, section 5); alone (n, labels) is what a label costs a pixel. Whether any changed.
    """
    count = len(points)
    excess, ways = np.zeros(count), np.zeros((count, 4))
    for i in range(count):
        excess[i] += alone[i, label] - alone[i, labels[i]]
        for k in (0, 2):
            j = links[i, k]
            if j < 0:
                continue
            # What it costs to keep both, to change the second, and to change the first.
            both, second, first = 0.0, 0.0, 0.0
            for side in range(2):
                y, x = points[i if side == 0 else j]
                ay, ax = y + shifts[labels[i], 0], x + shifts[labels[i], 1]
                by, bx = y + shifts[labels[j], 0], x + shifts[labels[j], 1]
                v, u = y + shifts[label, 0], x + shifts[label, 1]
                both += _apart(features, usable, ay, ax, by, bx)
                second += _apart(features, usable, ay, ax, v, u)
                first += _apart(features, usable, v, u, by, bx)
            excess[i] += first - both
            excess[j] -= first
            ways[i, k] = max(second + first - both, 0.0)
    steps = _flow(excess, ways, links)
    changed = False
    for i in range(count):
        if steps[i] > 0 and labels[i] != label:
            labels[i] = label
            changed = True
    return changed


@compiled
def _alone(
    features: Image, guide: Image, usable: Mask, hole: Mask, points: Table, shifts: Table
) -> NDArray[np.float64]:
    """What each shift costs each pixel (n, labels): how far it is from the guide, and how it goes
    on what is known beside it.
    """
    height, width = usable.shape
    costs = np.zeros((len(points), len(shifts)))
    for i in range(len(points)):
        y, x = points[i]
        for s in range(len(shifts)):
            v, u = y + shifts[s, 0], x + shifts[s, 1]
            if not (0 <= v < height and 0 <= u < width and usable[v, u]):
                costs[i, s] = _NEVER
                continue
            apart = 0.0
            for c in range(guide.shape[2]):
                apart += (guide[y, x, c] - guide[v, u, c]) ** 2
            costs[i, s] = round(math.sqrt(apart))
            for k in range(4):
                dy, dx = (1 - 2 * (k % 2), 0) if k < 2 else (0, 1 - 2 * (k % 2))
                if 0 <= y + dy < height and 0 <= x + dx < width and not hole[y + dy, x + dx]:
                    apart = 0.0
                    for c in range(features.shape[2]):
                        step = features[y + dy, x + dx, c] - features[v + dy, u + dx, c]
                        apart += step * step
                    costs[i, s] += 2 * round(min(math.sqrt(apart), _FAR))
    return costs


@compiled
def _energy(
    features: Image,
    usable: Mask,
    points: Table,
    links: Table,
    alone: NDArray[np.float64],
    shifts: Table,
    labels: NDArray[np.int64],
) -> float:
    """What a shift map costs a pixel, but for those that no shift reaches."""
    total = 0.0
    for i in range(len(points)):
        if alone[i, labels[i]] < _NEVER:
            total += alone[i, labels[i]]
        for k in (0, 2):
            j = links[i, k]
            if j < 0:
                continue
            for y, x in (points[i], points[j]):
                v, u = y + shifts[labels[i], 0], x + shifts[labels[i], 1]
                by, bx = y + shifts[labels[j], 0], x + shifts[labels[j], 1]
                total += _apart(features, usable, v, u, by, bx)
    return total / len(points)


def shift_map(
    colours: Image, rows: Image, guide: Image, usable: Mask, hole: Mask
) -> tuple[Table, float]:
    """From where each pixel of a hole is copied, int32 (h, w, 2), elsewhere 0; and what that costs
    a pixel where rows do not count. rows (h, w) is what a pixel's height counts beside its colour;
    guide (h, w, c) is about what is expected in the hole, and what is there elsewhere.

    usable must be False within a pixel of the border. Where no shift reaches, it is what lies in
    the hole or out of the picture.
    """
    features = np.dstack([colours, rows])
    points = np.argwhere(hole).astype(np.int32)
    shifts = choose_shifts(features, guide[..., -1], usable, hole)
    numbers = np.full((hole.shape[0] + 2, hole.shape[1] + 2), -1, np.int32)
    numbers[1:-1, 1:-1][hole] = range(len(points))
    y, x = points.T + 1
    links = np.stack([numbers[y + 1, x], numbers[y - 1, x], numbers[y, x + 1], numbers[y, x - 1]])
    links = np.ascontiguousarray(links.T)
    alone = _alone(features, guide, usable, hole, points, shifts)
    labels = alone.argmin(1)
    told, left = (features, usable, points, links, alone, shifts, labels), list(range(len(shifts)))
    for _ in range(_ROUNDS):
        left = [label for label in left if _expand(*told, label)]
    sources = np.zeros((*hole.shape, 2), np.int32)
    sources[hole] = points + shifts[labels]
    alone = _alone(colours, guide, usable, hole, points, shifts)
    return sources, _energy(colours, usable, points, links, alone, shifts, labels)
