"""Where rays meet simple solids: spheres, boxes, frustums, rings and planes.

Vectors are float32 arrays (3, N), one column a ray; z points up. A solid lives in its own frame:
a turn, a stretch and a place bring its canonical form into the world. The stretch is applied to
rays unnormalised, so that distances along a ray mean the same in both frames.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Ball",
    "Box",
    "Frustum",
    "Group",
    "Plane",
    "Ring",
    "Solid",
    "blocked",
    "dot",
    "nearest",
    "turned",
    "unit",
]

Floats = NDArray[Any]
Vector = tuple[float, float, float]

# Hits nearer than this are the surface that the ray starts from.
_NEAR = np.float32(1e-4)
_FAR = np.float32(np.inf)


def dot(a: Floats, b: Floats) -> Floats:
    """Inner products of the columns of two arrays (3, N) or (3, 1), as (N,)."""
    found: Floats = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
    return found


def unit(a: Floats) -> Floats:
    """The columns of an array (3, N) scaled to length 1."""
    scaled: Floats = a / np.sqrt(np.maximum(dot(a, a), np.float32(1e-20)))
    return scaled


def turned(yaw: float = 0.0, tilt: float = 0.0) -> Floats:
    """A rotation (3, 3) into a frame leaned by `tilt` about x, then turned by `yaw` about z.

    Both are in radians. The rows are the frame's axes in the world.
    """
    cy, sy, ct, st = np.cos(yaw), np.sin(yaw), np.cos(tilt), np.sin(tilt)
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, ct, -st], [0, st, ct]])
    return np.asarray((about_z @ about_x).T, np.float32)


def _keep(t: Floats, valid: NDArray[np.bool_]) -> Floats:
    return np.where(valid & (t > _NEAR), t, _FAR)


@dataclass(frozen=True, eq=False)
class Solid(ABC):
    """A canonical form, stretched by `scale`, turned by `turn` and moved to `centre`."""

    centre: Vector = (0.0, 0.0, 0.0)
    scale: Vector = (1.0, 1.0, 1.0)
    turn: Floats = field(default_factory=turned)

    def hit(self, origin: Floats, direction: Floats) -> Floats:
        """Distance (N,), in lengths of `direction`, to the first hit ahead; inf where none.

        `origin` is (3, N) or (3, 1), `direction` (3, N) of any length above 0.
        """
        stretch = np.array(self.scale, np.float32)[:, None]
        o = self.turn @ (origin - np.array(self.centre, np.float32)[:, None]) / stretch
        d = self.turn @ direction / stretch
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return self._hit(o, d)

    def normal(self, points: Floats) -> Floats:
        """Outward unit normals (3, N) at points (3, N) of the surface."""
        stretch = np.array(self.scale, np.float32)[:, None]
        local = self.turn @ (points - np.array(self.centre, np.float32)[:, None]) / stretch
        return unit(self.turn.T @ (self._normal(local) / stretch))

    @abstractmethod
    def _hit(self, o: Floats, d: Floats) -> Floats: ...

    @abstractmethod
    def _normal(self, p: Floats) -> Floats: ...


@dataclass(frozen=True, eq=False)
class Ball(Solid):
    """The unit sphere; unequal scales make an ellipsoid."""

    def _hit(self, o: Floats, d: Floats) -> Floats:
        a = dot(d, d)
        middle = -dot(o, d) / a
        # From the nearest approach, not from b² - ac, which float32 would cancel away.
        q = o + middle * d
        half = np.sqrt((1 - dot(q, q)) / a)
        return np.minimum(_keep(middle - half, half >= 0), _keep(middle + half, half >= 0))

    def _normal(self, p: Floats) -> Floats:
        return p


@dataclass(frozen=True, eq=False)
class Box(Solid):
    """The cube from -1 to 1 on every axis."""

    def _hit(self, o: Floats, d: Floats) -> Floats:
        inverse = 1 / np.where(np.abs(d) < 1e-9, np.float32(1e-9), d)
        low, high = (-1 - o) * inverse, (1 - o) * inverse
        enter = np.minimum(low, high).max(axis=0)
        leave = np.maximum(low, high).min(axis=0)
        return np.where(enter > _NEAR, _keep(enter, enter <= leave), _keep(leave, enter <= leave))

    def _normal(self, p: Floats) -> Floats:
        face = np.abs(p) >= np.abs(p).max(axis=0)
        return np.where(face, np.sign(p), 0).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Frustum(Solid):
    """Radius `bottom` at z = 0 to `top` at z = 1: a cylinder, a cone or a slice of a vase.

    A cap is the annulus between its `holes` entry and the rim; a hole as wide as the rim leaves
    it open. `slopes` are the changes of radius over z that normals show at both ends, so that
    stacked slices look smooth; without them normals are exact.
    """

    bottom: float = 1.0
    top: float = 1.0
    holes: tuple[float, float] = (0.0, 0.0)
    slopes: tuple[float, float] | None = None

    def _hit(self, o: Floats, d: Floats) -> Floats:
        m = np.float32(self.top - self.bottom)
        radius = self.bottom + m * o[2]
        a = d[0] ** 2 + d[1] ** 2 - (m * d[2]) ** 2
        a = np.where(np.abs(a) < 1e-9, np.float32(1e-9), a)
        b = o[0] * d[0] + o[1] * d[1] - m * d[2] * radius
        c = o[0] ** 2 + o[1] ** 2 - radius**2
        root = np.sqrt(b * b - a * c)
        found = np.full(d.shape[1], _FAR)
        for t in ((-b - root) / a, (-b + root) / a):
            z = o[2] + t * d[2]
            found = np.minimum(found, _keep(t, (z >= 0) & (z <= 1)))
        for level, rim, hole in ((0, self.bottom, self.holes[0]), (1, self.top, self.holes[1])):
            if hole < rim:
                t = (level - o[2]) / d[2]
                away = (o[0] + t * d[0]) ** 2 + (o[1] + t * d[1]) ** 2
                found = np.minimum(found, _keep(t, (away <= rim * rim) & (away >= hole * hole)))
        return found

    def _normal(self, p: Floats) -> Floats:
        away = np.sqrt(p[0] ** 2 + p[1] ** 2)
        start, end = self.slopes or (self.top - self.bottom, self.top - self.bottom)
        side = np.stack([p[0] / (away + 1e-9), p[1] / (away + 1e-9), start * (p[2] - 1)])
        side[2] -= end * p[2]
        wall = np.abs(away - (self.bottom + (self.top - self.bottom) * p[2]))
        low = (np.abs(p[2]) < wall) & (self.holes[0] < self.bottom)
        high = (np.abs(p[2] - 1) < wall) & (self.holes[1] < self.top)
        flat = low | high
        side[:2] *= ~flat
        side[2] = np.where(flat, np.where(high, 1, -1), side[2])
        return side.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Ring(Solid):
    """A torus of radius 1 about z with a tube of radius `tube`; `half` keeps x > 0 only.

    Found by stepping along the distance field, to about 1e-3. The scale must be uniform.
    """

    tube: float = 0.3
    half: bool = False

    def _hit(self, o: Floats, d: Floats) -> Floats:
        o = np.broadcast_to(o, d.shape)
        length = np.sqrt(dot(d, d))
        way = d / length
        middle = -dot(o, way)
        q = o + middle * way
        half = np.sqrt((1 + self.tube) ** 2 - dot(q, q))
        found = np.full(d.shape[1], _FAR)
        near = np.flatnonzero((half >= 0) & (middle + half > 0))
        t = np.maximum(middle - half, 1e-3)[near]
        end = (middle + half)[near]
        start, step = o[:, near], way[:, near]
        for turn in range(40):
            p = start + t * step
            gap = np.sqrt((np.sqrt(p[0] ** 2 + p[1] ** 2) - 1) ** 2 + p[2] ** 2) - self.tube
            t += gap
            if turn % 8 == 7:
                # Rays that have arrived or left the bound need no more steps.
                done = (np.abs(gap) < 5e-4) | (t > end)
                hits = (np.abs(gap) < 5e-4) & (t > _NEAR) & ((p[0] > 0) | (not self.half))
                found[near[hits]] = t[hits]
                near, t, end = near[~done], t[~done], end[~done]
                start, step = start[:, ~done], step[:, ~done]
        return found / length

    def _normal(self, p: Floats) -> Floats:
        away = 1 - 1 / np.sqrt(p[0] ** 2 + p[1] ** 2 + 1e-12)
        return np.stack([p[0] * away, p[1] * away, p[2]]).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Plane(Solid):
    """The plane z = 0 without end."""

    def _hit(self, o: Floats, d: Floats) -> Floats:
        t = -o[2] / d[2]
        return _keep(t, np.isfinite(t))

    def _normal(self, p: Floats) -> Floats:
        return np.stack([np.zeros_like(p[0]), np.zeros_like(p[0]), np.ones_like(p[0])])


@dataclass(frozen=True, eq=False)
class Group:
    """Solids that make one object, within `reach` of `centre` (inf: without bound)."""

    solids: Sequence[Solid]
    centre: Vector = (0.0, 0.0, 0.0)
    reach: float = float("inf")

    def near(self, origin: Floats, direction: Floats, spread: float = 0.0) -> NDArray[np.intp]:
        """Indices of the rays that may meet the group.

        `direction` (3, N) has length 1; rays may lean off by the angle `spread` in radians.
        """
        if not np.isfinite(self.reach):
            return np.arange(direction.shape[1])
        offset = np.array(self.centre, np.float32)[:, None] - origin
        along = dot(offset, direction)
        reach = self.reach + spread * np.maximum(along, 0)
        aside = dot(offset, offset) - along * along
        return np.flatnonzero((along > -self.reach) & (aside < reach * reach))


def nearest(
    groups: Sequence[Group], origin: Floats, direction: Floats
) -> tuple[Floats, NDArray[np.int16]]:
    """The first hit of unit rays: distances (N,), inf where none, and which solid, or -1.

    Solids are numbered through all groups in their order.
    """
    distance = np.full(direction.shape[1], _FAR)
    which = np.full(direction.shape[1], -1, np.int16)
    number = 0
    for group in groups:
        rays = group.near(origin, direction)
        # Slices, not index arrays, where every ray takes part: no copies.
        o = origin if origin.shape[1] == 1 else origin[:, rays]
        d = direction[:, rays]
        for solid in group.solids:
            t = solid.hit(o, d)
            closer = np.flatnonzero(t < distance[rays])
            distance[rays[closer]] = t[closer]
            which[rays[closer]] = number
            number += 1
    return distance, which


def blocked(group: Group, origin: Floats, direction: Floats, limit: Floats) -> NDArray[np.bool_]:
    """Whether unit rays (3, N) meet the group before the distance `limit` (N,)."""
    found = np.zeros(direction.shape[1], bool)
    for solid in group.solids:
        open_ = np.flatnonzero(~found)
        found[open_] = solid.hit(origin[:, open_], direction[:, open_]) < limit[open_]
    return found
