"""Filling a hole with pieces of the picture round it: shift map, then PatchMatch, coarse to fine.

A shift map of a small picture says where things go. From there on it is PatchMatch completion
(Wexler, Shechtman and Irani 2007; Barnes et al. 2009), each level twice the last one's size. Every
pixel is copied from one place, and only the steps where two pieces meet are evened out.

Features are float32 (h, w, 5), padded by PAD: CIELAB, and how much L differs across and down.
Sources are int32 (h, w, 2): the row and column that a pixel is copied from; targets are (n, 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inlay.pictures.arrays import Image, Mask, distance, grow, masked_blur, resize
from inlay.scene.fill import membrane
from inlay.scene.shiftmap import compiled, shift_map, strangeness

Sources = NDArray[np.int32]

# Half the side of a patch less one half; features go on so far beyond the picture.
RADIUS = 3
PAD = 2 * RADIUS
_INNER = (slice(PAD, -PAD), slice(PAD, -PAD))
# What a pixel inside the hole counts in a patch, a pixel further in: Wexler et al., section 3.2.
_TRUST, _LEAST_TRUST = 1 / 1.3, 0.02
# The weight of texture beside colour (Newson et al. 2014, section 3.2), over so many pixels.
_TEXTURE, _REACH = 0.5, 9
# The shift map's picture has at most so long a side and so many pixels to fill; how much a row
# counts in it, in levels from the top of the picture to its bottom.
_SIDE, _HOLE, _ROWS = 256 + 2 * PAD, 7000, 250
# CIELAB as levels of 8 bits.
_LEVELS = (2.55, 1.0, 1.0)
# What the guide's colour and its roughness (a logarithm) count; how far around a pixel they are
# looked at; and how much rougher the guide is than the rim: seams are cheapest where nothing is.
_LIGHT, _ROUGH, _BROAD, _ROUGHER = 0.1, 12.0, 6.0, 0.15
# What it counts that a colour is none of the rim's, which is so wide; of pixels blurred so much.
_STRANGE, _RIM, _FINE = 0.3, 8.0, 1.0
# How many times as good a map must be that does not keep to rows.
_BETTER = 1.35
# The most pixels of a hole that patches are compared for; larger ones copy what the half finds.
_MOST = 1_000_000
# Rounds of searching and voting at each size; random tries begin so far away; sweeps at most of
# what makes neighbours agree.
_ROUNDS, _TRIES, _SWEEPS = 2, 8, 20


@compiled
def _distance(features: Image, trust: Image, y: int, x: int, v: int, u: int, limit: float) -> float:
    """Weighted squared difference of the patches at (y, x) and (v, u), or more than the limit."""
    total = 0.0
    for dy in range(-RADIUS, RADIUS + 1):
        for dx in range(-RADIUS, RADIUS + 1):
            square = np.float32(0)
            for c in range(features.shape[2]):
                step = features[y + dy, x + dx, c] - features[v + dy, u + dx, c]
                square += step * step
            total += trust[y + dy, x + dx] * square
        if total > limit:
            break
    return total


@compiled
def _search(
    features: Image,
    usable: Mask,
    trust: Image,
    targets: Sources,
    sources: Sources,
    costs: Image,
    draws: NDArray[np.uint64],
) -> None:
    """PatchMatch (Barnes et al. 2009, section 3.2), there and back: what neighbours say, and
    random tries nearer and nearer. Costs are negative where there is no target.
    """
    height, width = usable.shape
    for y, x in targets:
        costs[y, x] = _distance(features, trust, y, x, sources[y, x, 0], sources[y, x, 1], 1e30)
    state = draws[0]
    for sweep in range(2):
        step = 1 if sweep % 2 == 0 else -1
        for y, x in targets[::step]:
            best, by, bx = costs[y, x], sources[y, x, 0], sources[y, x, 1]
            size = _TRIES
            tries = 0
            while tries < 2 or size >= 1:
                if tries < 2:
                    ny, nx = (y - step, x) if tries == 0 else (y, x - step)
                    known = costs[ny, nx] >= 0
                    v, u = sources[ny, nx, 0] + y - ny, sources[ny, nx, 1] + x - nx
                    known = known and 0 <= v < height and 0 <= u < width
                else:
                    # Marsaglia 2003, "Xorshift RNGs".
                    state ^= state << np.uint64(13)
                    state ^= state >> np.uint64(7)
                    state ^= state << np.uint64(17)
                    top, left = max(by - size, 0), max(bx - size, 0)
                    rows = min(by + size, height - 1) - top + 1
                    columns = min(bx + size, width - 1) - left + 1
                    v = top + np.int64(state >> np.uint64(40)) % rows
                    u = left + np.int64((state >> np.uint64(8)) & np.uint64(0xFFFFFF)) % columns
                    known = True
                    size //= 2
                tries += 1
                if known and usable[v, u] and (v != by or u != bx):
                    cost = _distance(features, trust, y, x, v, u, best)
                    if cost < best:
                        best, by, bx = cost, v, u
            costs[y, x], sources[y, x, 0], sources[y, x, 1] = best, by, bx
    draws[0] = state


@compiled
def _vote(
    features: Image,
    hole: Mask,
    trust: Image,
    targets: Sources,
    sources: Sources,
    costs: Image,
    sharpness: float,
) -> None:
    """Each pixel of the hole as the mean of what the patches over it say (Wexler et al., eq. 4)."""
    height, width, channels = features.shape
    total, mass = np.zeros_like(features), np.zeros((height, width), np.float32)
    for y, x in targets:
        weight = trust[y, x] * math.exp(-costs[y, x] * sharpness) + 1e-12
        v, u = sources[y, x]
        for dy in range(-RADIUS, RADIUS + 1):
            for dx in range(-RADIUS, RADIUS + 1):
                if hole[y + dy, x + dx]:
                    mass[y + dy, x + dx] += weight
                    for c in range(channels):
                        total[y + dy, x + dx, c] += weight * features[v + dy, u + dx, c]
    for y in range(height):
        for x in range(width):
            if hole[y, x]:
                for c in range(channels):
                    features[y, x, c] = total[y, x, c] / mass[y, x]


@compiled
def _seam(features: Image, trust: Image, sources: Sources, y: int, x: int, v: int, u: int) -> float:
    """How far the eight neighbours of (y, x) show where it is copied from (v, u): Kwatra et al.
    2003, "Graphcut textures", eq. 1, over CIELAB.
    """
    total = 0.0
    for dy in range(-1, 2):
        for dx in range(-1, 2):
            inside = trust[y + dy, x + dx] < 1
            sv, su = y + dy, x + dx
            if inside:
                sv, su = sources[y + dy, x + dx, 0], sources[y + dy, x + dx, 1]
            if trust[y + dy, x + dx] == 0 or (inside and sv - dy == v and su - dx == u):
                continue
            for c in range(3):
                step = abs(features[v + dy, u + dx, c] - features[sv, su, c])
                if inside:
                    step += abs(features[v, u, c] - features[sv - dy, su - dx, c])
                else:
                    step *= 2
                total += step
    return total


@compiled
def _settle(features: Image, trust: Image, usable: Mask, points: Sources, sources: Sources) -> None:
    """Give each pixel a neighbour's shift where that lessens its seams, until none does."""
    for sweep in range(_SWEEPS):
        changes = 0
        for y, x in points[:: 1 if sweep % 2 == 0 else -1]:
            by, bx = sources[y, x]
            best = _seam(features, trust, sources, y, x, by, bx) - 1e-3
            for k in range(4):
                dy, dx = (1 - 2 * (k % 2), 0) if k < 2 else (0, 1 - 2 * (k % 2))
                if not 0 < trust[y + dy, x + dx] < 1:
                    continue
                v, u = sources[y + dy, x + dx, 0] - dy, sources[y + dy, x + dx, 1] - dx
                if (v == by and u == bx) or not usable[v, u]:
                    continue
                cost = _seam(features, trust, sources, y, x, v, u)
                if cost < best:
                    best, by, bx = cost, v, u
                    changes += 1
            sources[y, x, 0], sources[y, x, 1] = by, bx
        if changes == 0:
            break


@dataclass(eq=False)
class Level:
    """A picture at one size: features (h, w, 5) and the hole (h, w), both padded."""

    features: Image
    hole: Mask

    @classmethod
    def of(cls, features: Image, hole: Mask) -> Level:
        """From arrays that end where the picture does."""
        padded = np.pad(features, ((PAD, PAD), (PAD, PAD), (0, 0)), mode="edge")
        return cls(np.ascontiguousarray(padded), np.pad(hole, PAD))

    def half(self) -> Level:
        """The picture at half its size: means of what is known, and a hole wherever some was."""
        hole = self.hole[_INNER]
        known = (~hole).astype(np.float32)
        features = _halved(self.features[_INNER] * known[..., None])
        features /= np.maximum(_halved(known), 0.1)[..., None]
        return Level.of(features, _halved(hole.astype(np.float32)) > 0)

    @cached_property
    def usable(self) -> Mask:
        """The pixels whose patch is known and inside the picture."""
        inside = np.zeros_like(self.hole)
        inside[_INNER] = True
        return ~_near(self.hole | ~inside)

    @cached_property
    def targets(self) -> Sources:
        """The pixels of the picture whose patch has some of the hole in it."""
        near = np.zeros_like(self.hole)
        near[_INNER] = _near(self.hole)[_INNER]
        return np.argwhere(near).astype(np.int32)

    @cached_property
    def trust(self) -> Image:
        """What a pixel counts in a patch: 1 where it is known, 0 beyond the picture."""
        trust = np.zeros(self.hole.shape, np.float32)
        trust[_INNER] = np.maximum(_TRUST ** distance(~self.hole), _LEAST_TRUST)[_INNER]
        return trust

    def map_shifts(self, row_weight: float) -> Sources:
        """The hole's sources as the shift map has them."""
        colours = self.features[..., :3] * np.array(_LEVELS, np.float32)
        # What the rim lets one expect: about which colour, and how rough.
        broad = masked_blur(self.features, (~self.hole).astype(np.float32), _BROAD)
        broad[..., :3] *= np.array(_LEVELS, np.float32) * _LIGHT
        broad[..., 3:] = np.log2(1 + broad[..., 3:]) * _ROUGH
        guide = membrane(broad, self.hole)
        guide[self.hole, 3:] += _ROUGHER * _ROUGH
        # What no part of the rim has is not what lies in the hole.
        fine = masked_blur(colours, (~self.hole).astype(np.float32), _FINE)
        rim = fine[grow(self.hole, _RIM) & (self.trust == 1)]
        strange = _STRANGE * strangeness(fine, rim[:: 1 + len(rim) // 256])
        guide = np.dstack([guide, np.where(self.hole, 0, strange)]).astype(np.float32)
        rows = np.linspace(0, _ROWS, len(colours), dtype=np.float32)
        rows = np.broadcast_to(rows[:, None], self.hole.shape)
        told = (guide, self.usable, self.hole)
        sources, cost = shift_map(colours, rows * np.float32(row_weight), *told)
        if row_weight > 0:
            # From above or below only where that is plainly better.
            others, least = shift_map(colours, np.zeros_like(rows), *told)
            sources = others if least * _BETTER < cost else sources
        return np.asarray(np.clip(sources, 0, np.array(self.hole.shape) - 1), np.int32)

    def refine(self, first: Sources, seed: int) -> Sources:
        """Sources that fit and agree, from first ones: all in the level's own pixels."""
        sources, targets = np.zeros_like(first), tuple(self.targets.T)
        places = first[targets]
        usable = np.argwhere(self.usable)
        drawn = np.random.default_rng(seed).integers(len(usable), size=len(places))
        fits = self.usable[tuple(places.T)][:, None]
        sources[targets] = np.where(fits, places, usable[drawn])
        features, costs = self.features.copy(), np.full(self.hole.shape, -1, np.float32)
        costs[targets] = 0
        told = (self.trust, self.targets, sources, costs)
        _vote(features, self.hole, *told, 0.0)
        draws = np.array([2**40 + seed % 2**32], np.uint64)
        for number in range(_ROUNDS):
            _search(features, self.usable, *told, draws)
            # The last picture is sharp: only what fits best has a say.
            sharpness = 4 if number == _ROUNDS - 1 else 1.5
            sharpness /= float(np.quantile(costs[targets], 0.75)) + 1e-3
            _vote(features, self.hole, *told, sharpness)
        points = np.argwhere(self.hole).astype(np.int32)
        _settle(self.features, self.trust, self.usable, points, sources)
        return sources


def _near(mask: Mask) -> Mask:
    """The pixels whose patch has some of a mask in it."""
    import cv2

    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * RADIUS + 1,) * 2, np.uint8)) > 0


def _halved(values: Image) -> Image:
    height, width = values.shape[:2]
    room = ((0, height % 2), (0, width % 2), (0, 0))[: values.ndim]
    return resize(np.pad(values, room, mode="edge"), ((height + 1) // 2, (width + 1) // 2))


def _doubled(sources: Sources, shape: tuple[int, ...]) -> Sources:
    """Sources at twice the size, for a picture of (height, width)."""
    rows, columns = np.indices(shape, np.int32)
    doubled = 2 * sources[rows // 2, columns // 2] + np.stack([rows % 2, columns % 2], -1)
    return np.asarray(np.clip(doubled, 0, np.array(shape) - 1), np.int32)


def _features(rgb: Image, hole: Mask) -> Image:
    import cv2

    lab = cv2.cvtColor(np.clip(rgb, 0, 1), cv2.COLOR_RGB2LAB)
    known = (~grow(hole, 1.5)).astype(np.float32)
    mass = np.maximum(cv2.blur(known, (_REACH, _REACH)), 1e-3)
    steps = [np.abs(np.diff(lab[..., 0], axis=i, append=lab[..., 0].take([-1], i))) for i in (1, 0)]
    texture = [_TEXTURE * cv2.blur(step * known, (_REACH, _REACH)) / mass for step in steps]
    return np.dstack([lab, *texture]).astype(np.float32)


def find_sources(rgb: Image, hole: Mask, seed: int = 0, row_weight: float = 1.0) -> Sources | None:
    """From where each pixel of a hole (h, w) is to be copied: (h, w, 2), elsewhere of no meaning;
    None where no whole patch of the picture, float32 (h, w, 3) in [0, 1], is left.
    """
    if np.count_nonzero(hole) > _MOST:
        small = find_sources(_halved(rgb), _halved(hole.astype(np.float32)) > 0, seed, row_weight)
        return None if small is None else _doubled(small, hole.shape)
    levels = [Level.of(_features(rgb, hole), hole)]
    while np.count_nonzero(levels[-1].hole) > _HOLE or max(levels[-1].hole.shape) > _SIDE:
        levels.append(levels[-1].half())
    while levels and not levels[-1].usable.any():
        levels.pop()
    if not levels:
        return None
    level = levels.pop()
    sources = level.map_shifts(row_weight)
    if not level.usable[tuple(sources[level.hole].T)].all():
        # No shift reaches some of the hole.
        sources = level.refine(sources, seed)
    for level in levels[::-1]:
        inner = _doubled(sources[_INNER] - PAD, level.hole[_INNER].shape) + PAD
        sources = level.refine(np.pad(inner, ((PAD, PAD), (PAD, PAD), (0, 0))), seed)
    return sources[_INNER] - PAD
