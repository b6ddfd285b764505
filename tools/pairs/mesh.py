"""Triangle meshes: solids of revolution, tubes, boxes, blobs; turned, joined and laid to rest."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

__all__ = [
    *("Mesh", "about", "ball", "block", "corners", "dents", "join", "prism", "rest", "revolve"),
    *("tube", "turn_to"),
]

Floats = NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True, eq=False)
class Mesh:
    """Corners (N, 3) and texture coordinates (N, 2) of triangles (M, 3); z points up."""

    points: Floats
    uv: Floats
    faces: NDArray[np.int64]

    def moved(self, by: tuple[float, float, float]) -> Mesh:
        return replace(self, points=self.points + np.asarray(by))

    def scaled(self, by: float | tuple[float, float, float]) -> Mesh:
        return replace(self, points=self.points * np.asarray(by))

    def turned(self, matrix: Floats) -> Mesh:
        """Turned about the origin by a rotation matrix (3, 3)."""
        return replace(self, points=self.points @ matrix.T)


def about(axis: str, degrees: float) -> Floats:
    """The rotation matrix about x, y or z."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
    return matrix


def join(*meshes: Mesh) -> Mesh:
    """One mesh of several."""
    starts = np.cumsum([0, *(len(mesh.points) for mesh in meshes)])
    return Mesh(
        np.concatenate([mesh.points for mesh in meshes]),
        np.concatenate([mesh.uv for mesh in meshes]),
        np.concatenate([mesh.faces + k for mesh, k in zip(meshes, starts, strict=False)]),
    )


def _grid(points: Floats, tiles: tuple[float, float] = (1, 1)) -> Mesh:
    """The surface through a grid of points (A, B, 3), facing points_b × points_a."""
    a, b = points.shape[:2]
    v, u = np.meshgrid(np.linspace(0, tiles[1], a), np.linspace(0, tiles[0], b), indexing="ij")
    first = (np.arange(a - 1)[:, None] * b + np.arange(b - 1)).ravel()
    quads = np.stack([first, first + 1, first + b + 1, first + b], axis=1)
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    return Mesh(points.reshape(-1, 3), np.stack([u, v], axis=-1).reshape(-1, 2), faces)


def revolve(profile: Floats, around: int = 40, tiles: tuple[float, float] = (1, 1)) -> Mesh:
    """The solid of a profile (N, 2) of radius and height, from the bottom up, about z."""
    angle = np.linspace(0, 2 * np.pi, around + 1)
    radius, height = profile[:, :1], profile[:, 1:]
    points = np.stack(
        [
            radius * np.cos(angle),
            radius * np.sin(angle),
            np.broadcast_to(height, (len(profile), around + 1)),
        ],
        axis=-1,
    )
    return _grid(points, tiles)


def tube(path: Floats, radius: float | Floats, around: int = 14, closed: bool = False) -> Mesh:
    """A tube of given radius along a path (N, 3); open ones end in caps."""
    path = np.asarray(path, float)
    thick = np.broadcast_to(np.asarray(radius, float), len(path))
    ahead = np.roll(path, -1, 0) - np.roll(path, 1, 0) if closed else np.gradient(path, axis=0)
    ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
    side = np.cross(ahead[0], [0.31, 0.87, 0.38])
    rings = []
    for centre, along, r in zip(path, ahead, thick, strict=True):
        side = side - along * (side @ along)
        side /= np.linalg.norm(side)
        angle = np.linspace(0, 2 * np.pi, around + 1)[:, None]
        rings.append(centre + r * (np.cos(angle) * side + np.sin(angle) * np.cross(along, side)))
    if closed:
        # The frame turns along the way: the last ring meets the first at the nearest corner.
        turn = np.argmin(((rings[0][:-1] - rings[-1][0]) ** 2).sum(axis=1))
        rings.append(np.roll(rings[0][:-1], -turn, 0)[np.r_[0:around, 0]])
    else:
        rings = [np.repeat(path[:1], around + 1, 0), *rings, np.repeat(path[-1:], around + 1, 0)]
    return _grid(np.stack(rings), (1, len(path) / 8))


def block(width: float, depth: float, height: float, bevel: float = 0.0) -> Mesh:
    """A box that stands on z = 0, centred; each face has the whole texture. `bevel` rounds it."""
    bevel = min(bevel, 0.49 * min(width, depth, height))
    sides = []
    for axis in range(3):
        for sign in (-1, 1):
            size = np.array([width, depth, height]) / 2
            b, c = (axis + 1) % 3, (axis + 2) % 3
            p, q = _ticks(size[b], bevel), _ticks(size[c], bevel)
            grid = np.zeros((len(q), len(p), 3))
            grid[..., axis], grid[..., b], grid[..., c] = sign * size[axis], p[None], q[:, None]
            core = np.clip(grid, -(size - bevel), size - bevel)
            away = grid - core
            length = np.linalg.norm(away, axis=-1, keepdims=True)
            rounded = core + bevel * away / np.maximum(length, 1e-9)
            side = _grid(rounded if bevel else grid)
            across, up, flip = ((1, 2, sign), (0, 2, -sign), (0, 1, sign))[axis]
            uv = np.stack([flip * grid[..., across] / size[across], grid[..., up] / size[up]], -1)
            uv = uv.reshape(-1, 2) / 2 + 0.5
            sides.append(Mesh(side.points, uv, side.faces if sign > 0 else side.faces[:, ::-1]))
    return join(*sides).moved((0, 0, height / 2))


def _ticks(half: float, bevel: float) -> Floats:
    if bevel == 0:
        return np.array([-half, half])
    curve = half - bevel + bevel * np.tan(np.linspace(0, np.pi / 4, 5))
    return np.array([*-curve[::-1], *curve])


def ball(radius: float = 1.0, dense: int = 24) -> Mesh:
    """A sphere about the origin."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, dense + 1)
    return revolve(radius * np.stack([np.cos(angle), np.sin(angle)], axis=1), 2 * dense, (2, 1))


def dents(mesh: Mesh, rng: Rng, depth: float, waves: float = 2.0) -> Mesh:
    """The mesh about the origin, pushed in and out by smooth noise of a share of its radius."""
    points, push = mesh.points, np.zeros(len(mesh.points))
    for octave in range(3):
        for _ in range(4):
            wave = rng.normal(0, waves * 2**octave, 3)
            push += np.sin(points @ wave + rng.uniform(0, 6.28)) / 2**octave / 4
    return replace(mesh, points=points * (1 + depth * push)[:, None])


def prism(outline: Floats, depth: float) -> Mesh:
    """A convex outline (N, 2) in x and z, counter-clockwise, drawn out along y, centred."""
    count = len(outline)
    caps = []
    for y, order in ((-depth / 2, 1), (depth / 2, -1)):
        points = np.stack([outline[:, 0], np.full(count, y), outline[:, 1]], axis=1)
        fan = np.stack([np.zeros(count - 2, int), np.arange(1, count - 1), np.arange(2, count)], 1)
        span = np.ptp(outline, axis=0)
        caps.append(Mesh(points, (outline - outline.min(0)) / span, fan[:, ::order]))
    ring = outline[np.r_[0:count, 0]]
    walls = np.stack([np.insert(ring, 1, y, axis=1) for y in (depth / 2, -depth / 2)])
    return join(*caps, _grid(walls))


def corners(mesh: Mesh, crease: float = 40.0) -> tuple[Floats, Floats, Floats]:
    """Points, normals and texture coordinates (3 M, …) of each corner of each triangle.

    Normals are the mean of those neighbours' that turn less than `crease` degrees away.
    """
    points = mesh.points[mesh.faces]
    raw = np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0])
    area = np.linalg.norm(raw, axis=1)
    keep = area > 1e-10
    points, raw, area, faces = points[keep], raw[keep], area[keep], mesh.faces[keep]
    unit = raw / area[:, None]
    extent = max(np.ptp(mesh.points, axis=0).max(), 1e-9)
    _, place = np.unique(
        np.round(mesh.points / extent * 1e5).astype(int), axis=0, return_inverse=True
    )
    at = place.ravel()[faces].ravel()
    order = np.argsort(at, kind="stable")
    start = np.searchsorted(at[order], np.arange(at.max() + 2))
    degree = (start[1:] - start[:-1])[at]
    first = np.repeat(np.arange(len(at)), degree)
    step = np.arange(len(first)) - np.repeat(np.cumsum(degree) - degree, degree)
    second = order[np.repeat(start[at], degree) + step]
    close = (unit[first // 3] * unit[second // 3]).sum(axis=1) > np.cos(np.radians(crease))
    normals = np.zeros((len(at), 3))
    np.add.at(normals, first[close], raw[second[close] // 3])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return points.reshape(-1, 3), normals, mesh.uv[faces].reshape(-1, 2)


def rest(points: Floats, rng: Rng) -> Floats:
    """A rotation matrix that lays points (N, 3) on a face on which they stay, drawn by its area."""
    hull = ConvexHull(points)
    middle = hull.points[hull.vertices].mean(axis=0)
    normals, offsets = hull.equations[:, :3], hull.equations[:, 3]
    foot = middle - normals * (normals @ middle + offsets)[:, None]
    # The foot of the middle lies within the face when it lies behind no other face's plane.
    stable = (foot @ normals.T + offsets).max(axis=1) < 1e-6
    if not stable.any():
        return np.eye(3)
    triangles = hull.points[hull.simplices]
    area = np.linalg.norm(
        np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1
    )
    chance = np.where(stable, area, 0)
    down = normals[rng.choice(len(normals), p=chance / chance.sum())]
    return turn_to(down, np.array([0.0, 0.0, -1.0]))


def turn_to(start: Floats, end: Floats) -> Floats:
    """The rotation matrix that takes one unit vector into another."""
    axis, cosine = np.cross(start, end), float(start @ end)
    if cosine < -0.9999:
        return about("x", 180.0)
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1 + cosine)
