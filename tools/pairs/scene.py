"""A numbered scene: an object with its pose, a camera, its own place and another one's light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pairs.mesh import Mesh, about, join, rest, turn_to
from pairs.paint import Photos
from pairs.shapes import FLAT, SHAPES, UPRIGHT
from pairs.world import Site, Solid, World, build_world, solids

__all__ = ["Scene", "View", "build_scene"]

Rng = np.random.Generator


@dataclass(frozen=True)
class View:
    """A camera: where it stands, what it looks at, its field of view (degrees) and aperture."""

    origin: tuple[float, float, float]
    target: tuple[float, float, float]
    field: float
    aperture: float
    roll: float

    def toward(self, vector: tuple[float, float, float]) -> tuple[float, float, float]:
        """A direction of the world as right, up and toward the camera."""
        behind = np.subtract(self.origin, self.target)
        behind = behind / np.linalg.norm(behind)
        right = np.cross([0, 0, 1], behind)
        right /= np.linalg.norm(right)
        x, y, z = (float(axis @ vector) for axis in (right, np.cross(behind, right), behind))
        return round(x, 4), round(y, 4), round(z, 4)


@dataclass(frozen=True, eq=False)
class Scene:
    """The object, its two worlds and the camera; `pose` is standing, lying, leaning or floating."""

    name: str
    finish: str
    pose: str
    gap: float
    thing: list[Solid]
    home: World
    away: World
    view: View

    @property
    def caption(self) -> str:
        """Words such as "a rendering of a wooden vase on a tiled floor"."""
        text = f"a rendering of a {self.finish} {self.name}"
        return text if self.pose == "floating" else f"{text} on a {self.home.support}"


def build_scene(number: int, attempt: int, scenes: Photos, textures: Photos) -> Scene:
    """The scene of a number; the same number, attempt and folders give the same scene."""
    rng = np.random.default_rng([number, attempt, 0])
    draw = rng.random()
    pose = (
        "floating"
        if draw < 0.2
        else "leaning"
        if draw < 0.3
        else "lying"
        if draw < 0.42
        else "standing"
    )
    name = str(rng.choice(FLAT if pose == "leaning" else [*SHAPES]))
    if pose == "lying" and name in UPRIGHT:
        pose = "standing"
    parts, gap = _posed(SHAPES[name](rng), pose, rng)
    finish, thing = solids(parts, rng, textures)
    points = join(*parts.values()).points
    reach = float(np.linalg.norm(points[:, :2], axis=1).max())
    wall = None
    if pose == "leaning":
        wall = float(points[:, 1].max()) + 0.002
    elif pose != "floating" and rng.random() < 0.15:
        wall = float(points[:, 1].max()) + float(rng.uniform(0.02, 0.5))
    table = pose != "floating" and rng.random() < 0.45
    view = _camera(points, rng, table)
    site = Site(view.origin, reach, wall, table)
    home = build_world(np.random.default_rng([number, attempt, 1]), site, scenes, textures)
    away = build_world(np.random.default_rng([number, attempt, 2]), site, scenes, textures)
    return Scene(name, finish, pose, gap, thing, home, away, view)


def _posed(parts: dict[str, Mesh], pose: str, rng: Rng) -> tuple[dict[str, Mesh], float]:
    """The parts scaled, turned and set above the origin, and their height above the support."""
    points = join(*parts.values()).points
    size = float(rng.uniform(0.75, 1.15) / np.ptp(points, axis=0).max())
    matrix = about("z", float(rng.uniform(0, 360)))
    if pose == "lying":
        matrix = matrix @ rest(points, rng)
    elif pose == "leaning":
        matrix = about("x", float(90 - rng.uniform(8, 30))) @ about("z", float(rng.choice([0, 90])))
        matrix = about("z", float(rng.normal(0, 2))) @ matrix
    elif pose == "floating" and rng.random() < 0.6:
        axis = rng.normal(size=3)
        matrix = matrix @ turn_to(np.array([0.0, 0.0, 1.0]), axis / np.linalg.norm(axis))
    gap = float(rng.uniform(0.3, 1.8)) if pose == "floating" else 0.0
    turned = points @ matrix.T * size
    low, high = turned.min(0), turned.max(0)
    shift = (-(low[0] + high[0]) / 2, -(low[1] + high[1]) / 2, gap - low[2])
    return {k: m.turned(matrix).scaled(size).moved(shift) for k, m in parts.items()}, gap


def _camera(points: NDArray[np.float64], rng: Rng, table: bool) -> View:
    """A camera on the side of -y, to which the object is a third to three quarters of the side."""
    middle = (points.min(0) + points.max(0)) / 2
    radius = float(np.linalg.norm(points - middle, axis=1).max())
    field = float(rng.uniform(24, 52))
    share = float(rng.uniform(0.36, 0.75))
    away = radius / share / np.tan(np.radians(field / 2))
    high = np.radians(rng.uniform(8, 42) if table else rng.uniform(4, 38))
    jitter = rng.uniform(-0.22, 0.22, 2) * away * np.tan(np.radians(field / 2)) * (1 - share) * 2
    target = middle + np.array([jitter[0], 0, jitter[1]])
    origin = target + away * np.array([0, -np.cos(high), np.sin(high)])
    origin[2] = max(origin[2], 0.15)
    aperture = float(away * rng.uniform(0.004, 0.02)) if rng.random() < 0.4 else 0.0
    x, y, z = map(float, origin)
    a, b, c = map(float, target)
    return View((x, y, z), (a, b, c), field, aperture, float(rng.normal(0, 1.2)))
