"""Places and their light: rooms, terraces and open ground about a support at z = 0."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pairs.mesh import Mesh, about, ball, block, dents, join, tube
from pairs.paint import Photos, Texture, colour, ground, kelvin, linear, material
from pairs.shapes import SHAPES

__all__ = ["Light", "Solid", "World", "build_world", "solids"]

Rng = np.random.Generator
Floats = NDArray[np.float64]
Node = dict[str, Any]
PLACES = {"room": 0.45, "terrace": 0.2, "open": 0.35}


@dataclass(frozen=True)
class Light:
    """Where a light stands (a unit vector from the origin), its warmth, and how much it gives."""

    kind: str
    direction: tuple[float, float, float]
    kelvin: float
    irradiance: float


@dataclass(frozen=True, eq=False)
class Solid:
    """A mesh and the node of its material."""

    mesh: Mesh
    material: Node


@dataclass
class World:
    """What is there beside the object: solids, nodes of emitters and flat shapes, facts."""

    place: str
    support: str
    solids: list[Solid] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    lights: list[Light] = field(default_factory=list)


@dataclass(frozen=True)
class Site:
    """What a world is built about: the camera, the object's reach in the plane, and a wall."""

    camera: tuple[float, float, float]
    reach: float
    wall: float | None
    table: bool


def solids(parts: dict[str, Mesh], rng: Rng, photos: Photos) -> tuple[str, list[Solid]]:
    """A thing's parts in materials of their own, and the name of the largest one's."""
    found = [(*material(part, rng, photos), mesh) for part, mesh in parts.items()]
    largest = max(found, key=lambda item: float(np.prod(np.ptp(item[2].points, axis=0) + 0.05)))
    return largest[0], [Solid(mesh, node) for _, node, mesh in found]


def build_world(rng: Rng, site: Site, scenes: Photos, textures: Photos) -> World:
    """A random place for that camera and object, lit."""
    place = (
        "room"
        if site.table and rng.random() < 0.75
        else str(rng.choice([*PLACES], p=[*PLACES.values()]))
    )
    floor = -float(rng.uniform(1.6, 2.6)) if site.table else 0.0
    world = World(place, "")
    reach = 60.0 if place != "room" else 10.0
    tiles = float(rng.uniform(0.25, 0.6)) * 2 * reach
    name, node = ground(rng, place != "room", (tiles, tiles), textures)
    world.support = f"{name} {'floor' if place == 'room' else 'ground'}"
    world.nodes.append(_sheet((0, 0, floor), (reach, 0, 0), (0, reach, 0), node))
    back = site.wall
    if back is None:
        back = float(rng.uniform(1.3, 5.5)) + site.reach
    if place == "room":
        _room(world, rng, site, (floor, back), textures)
        _lamps(world, rng, site)
    else:
        if place == "terrace" or site.wall is not None:
            _, node = ground(rng, True, (30.0, 8.0), textures)
            high = float(rng.uniform(1.5, 6))
            world.nodes.append(_sheet((0, back, floor + high), (40, 0, 0), (0, 0, high), node))
        _sky(world, rng, scenes, walled=place == "terrace" or site.wall is not None)
        _landscape(world, rng, floor, back if place == "terrace" else 4.0, textures)
    if site.table:
        world.support = _table(world, rng, site, floor, back, textures)
    _clutter(world, rng, site, back, textures)
    return world


def _sheet(centre: Any, right: Any, up: Any, node: Node) -> Node:
    """A rectangle of half sides `right` and `up`; it faces right × up."""
    facing = np.cross(right, up).astype(float)
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, up, facing / np.linalg.norm(facing), centre], axis=1)
    key = "emitter" if node["type"] == "area" else "bsdf"
    return {"type": "rectangle", "to_world": matrix, key: node}


def _room(world: World, rng: Rng, site: Site, span: tuple[float, float], textures: Photos) -> None:
    floor, back = span
    front = site.camera[1] - float(rng.uniform(0.6, 3))
    left, right = -float(rng.uniform(2, 6)), float(rng.uniform(2, 6))
    top = max(site.camera[2] + 0.6, floor + float(rng.uniform(4.5, 8)))
    middle, high = (floor + top) / 2, (top - floor) / 2
    x, y, wide, deep = (
        (left + right) / 2,
        (front + back) / 2,
        (right - left) / 2,
        (back - front) / 2,
    )
    _, paint = ground(rng, False, (6.0, 4.0), textures)
    plain = _matt(_pale(rng))
    world.nodes += [
        _sheet(
            (x, back, middle), (wide, 0, 0), (0, 0, high), paint if rng.random() < 0.4 else plain
        ),
        _sheet((x, front, middle), (wide, 0, 0), (0, 0, high), plain),
        _sheet((left, y, middle), (0, deep, 0), (0, 0, high), plain),
        _sheet((right, y, middle), (0, deep, 0), (0, 0, high), plain),
        _sheet((x, y, top), (wide, 0, 0), (0, deep, 0), _matt((0.8, 0.8, 0.78))),
    ]
    if site.wall is None:
        _furnish(world, rng, (left, right, back, floor), textures)
    if not site.table and rng.random() < 0.25:
        wide, deep = rng.uniform(1, 2.5, 2)
        rug = _matt(Texture(textures.draw(rng)))
        world.nodes.append(_sheet((0, 0, 1e-3), (wide, 0, 0), (0, deep, 0), rug))
    _windows(world, rng, (left, right, front, back, floor, top))


def _furnish(world: World, rng: Rng, span: tuple[float, ...], textures: Photos) -> None:
    """A skirting board, pictures and a cupboard at the wall behind."""
    left, right, back, floor = span
    if rng.random() < 0.7:
        high, middle = float(rng.uniform(0.1, 0.3)), (left + right) / 2
        skirt = block(right - left, 0.04, high).moved((middle, back - 0.02, floor))
        world.solids.append(Solid(skirt, _matt(_pale(rng))))
    for _ in range(int(rng.choice([0, 1, 1, 2]))):
        wide, high = rng.uniform(0.3, 0.9, 2)
        x, z = float(rng.uniform(max(left, -3), min(right, 3))), float(rng.uniform(0.6, 2.4))
        photo = _matt(Texture(textures.draw(rng)))
        world.nodes.append(_sheet((x, back - 0.03, z), (wide, 0, 0), (0, 0, high), photo))
        edge = block(2 * wide + 0.14, 0.05, 2 * high + 0.14).moved((x, back, z - high - 0.07))
        world.solids.append(Solid(edge, _matt(colour(rng, muted=True))))
    if rng.random() < 0.5:
        wide, deep, high = rng.uniform((0.8, 0.5, 1), (2.2, 0.9, 3.5))
        where = (float(rng.uniform(left + 1, right - 1)), back - deep / 2, floor)
        wood = material("wood", rng, textures)[1]
        world.solids.append(Solid(block(wide, deep, high, 0.03).moved(where), wood))


def _pale(rng: Rng) -> tuple[float, float, float]:
    r, g, b = colour(rng, muted=True)
    share, tone = rng.uniform(0.05, 0.6), rng.uniform(0.35, 0.8)
    return (
        share * r + (1 - share) * tone,
        share * g + (1 - share) * tone,
        share * b + (1 - share) * tone,
    )


def _matt(paint: Any) -> Node:
    return {"type": "twosided", "bsdf": {"type": "diffuse", "reflectance": paint}}


def _shine(world: World, kind: str, node: Node, at: Any, power: tuple[float, float]) -> None:
    """Add an emitter and its fact; `power` is its warmth and its irradiance at the origin."""
    world.nodes.append(node)
    x, y, z = np.asarray(at, float) / np.linalg.norm(at)
    world.lights.append(Light(kind, (float(x), float(y), float(z)), *power))


def _area(rgb: Any) -> Node:
    return {"type": "area", "radiance": tuple(float(c) for c in rgb)}


def _windows(world: World, rng: Rng, bounds: tuple[float, ...]) -> None:
    """One or two windows on the sides or behind the camera, or a panel at the ceiling."""
    left, right, front, back, floor, top = bounds
    kinds = rng.choice(
        ["left", "right", "front", "panel"], int(rng.choice([1, 1, 1, 2])), replace=False
    )
    warmth = float(rng.uniform(4500, 9000))
    for kind in kinds:
        half = rng.uniform(0.45, 1.4, 2)
        low = floor + 1.0 + half[1]
        z = float(np.clip(rng.uniform(low, low + 2), floor + half[1], top - half[1] - 0.05))
        # A wide window in a short room lies as far back as it can.
        most = min(back - half[0], 1.5)
        y = float(rng.uniform(min(max(front + half[0], -4), most), most))
        if kind == "panel":
            at = (float(rng.uniform(-1.5, 1.5)), float(rng.uniform(-2, 1)), top - 0.02)
            sides = ((half[0], 0, 0), (0, -half[1], 0))
            warmth = float(rng.uniform(2800, 6000))
        elif kind == "front":
            at = (float(rng.uniform(-1.5, 1.5)), front + 0.02, z)
            sides = ((-half[0], 0, 0), (0, 0, half[1]))
        else:
            sign = 1 if kind == "left" else -1
            at = ((left if kind == "left" else right) + sign * 0.02, y, z)
            sides = ((0, sign * half[0], 0), (0, 0, half[1]))
        shown = np.linalg.norm(np.cross(*sides)) * 4
        give = float(rng.uniform(0.4, 1.5))
        gain = give * (np.linalg.norm(at) ** 2) / shown
        _shine(
            world,
            "window",
            _sheet(at, *sides, _area(gain * np.asarray(kelvin(warmth)))),
            at,
            (warmth, give),
        )


def _lamps(world: World, rng: Rng, site: Site) -> None:
    """None to two lamps: small spheres, sharper and warmer than windows."""
    for _ in range(int(rng.choice([0, 1, 1]))):
        turn, away = rng.uniform(-np.pi, np.pi), rng.uniform(1.2, 2)
        at = np.array([away * np.cos(turn), away * np.sin(turn), rng.uniform(1.3, 3.4)])
        sight = np.asarray(site.camera)
        seen = (at - sight) @ -sight / np.linalg.norm(at - sight) / np.linalg.norm(sight)
        if seen > np.cos(np.radians(40)) or at[1] < site.camera[1]:
            continue
        radius, warmth = float(rng.uniform(0.06, 0.3)), float(rng.uniform(2400, 5000))
        give = float(rng.uniform(0.5, 4))
        radiance = give * (at @ at) / (np.pi * radius**2)
        node = {
            "type": "sphere",
            "center": [float(c) for c in at],
            "radius": radius,
            "emitter": _area(radiance * np.asarray(kelvin(warmth))),
        }
        _shine(world, "lamp", node, at, (warmth, give))


def _sky(world: World, rng: Rng, scenes: Photos, walled: bool) -> None:
    """A sky of a photo and, on three days of four, a sun."""
    image = _panorama(scenes.draw(rng), rng)
    world.nodes.append(
        {
            "type": "envmap",
            "bitmap": image.astype(np.float32),
            "to_world": np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], float),
        }
    )
    rows = np.sin(np.linspace(np.pi / 2, 0, image.shape[0] // 2)).clip(0)[:, None]
    upper = image[: len(rows)] @ [0.2126, 0.7152, 0.0722]
    world.lights.append(
        Light(
            "sky",
            (0.0, 0.0, 1.0),
            6500.0,
            float(np.pi * (upper * rows).mean() / max(rows.mean(), 1e-6)),
        )
    )
    if rng.random() < 0.25:
        return
    high = np.radians(rng.uniform(12, 70))
    turn = rng.uniform(-np.pi, 0) if walled else rng.uniform(-np.pi, np.pi)
    at = np.array([np.cos(high) * np.cos(turn), np.cos(high) * np.sin(turn), np.sin(high)])
    spread = float(np.radians(rng.choice([0.4, 0.8, 2, 5], p=[0.35, 0.3, 0.2, 0.15])))
    warmth = float(np.clip(2600 + 3600 * np.sin(high) + rng.normal(0, 300), 2400, 6500))
    give = float(rng.uniform(0.8, 6))
    radiance = give / (np.pi * np.sin(spread) ** 2)
    node = {
        "type": "sphere",
        "center": [float(c) for c in 300 * at],
        "radius": 300 * float(np.sin(spread)),
        "emitter": _area(radiance * np.asarray(kelvin(warmth))),
    }
    _shine(world, "sun", node, at, (warmth, give))


def _panorama(photo: NDArray[np.uint8], rng: Rng) -> Floats:
    """A photo as a lat-long map (512, 1024, 3) in linear light whose upper half has the mean 0.32.

    It and its mirror image span half of the horizon each; its lower third lies below the horizon.
    """
    light = linear(photo / 255.0)
    luma = light @ [0.2126, 0.7152, 0.0722]
    light = light * (1 + 5 * np.clip((luma - 0.7) / 0.3, 0, 1) ** 2)[..., None]
    light = np.concatenate([light, light[:, ::-1]], axis=1)
    horizon = rng.uniform(0.5, 0.75)
    angle = np.linspace(90, -90, 512)
    row = np.where(
        angle > 0, horizon * (1 - angle / 90) ** 0.9, horizon - angle / 40 * (1 - horizon)
    )
    rows = np.clip(row, 0, 1) * (light.shape[0] - 1)
    columns = np.linspace(0, light.shape[1] - 1, 1024)
    grid = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
    found = cv2.remap(light.astype(np.float32), *grid, cv2.INTER_CUBIC).clip(0).astype(float)
    # All directions meet at the zenith and below: they become one colour there.
    blend = np.clip((np.abs(angle) - 50) / 40, 0, 1)[:, None, None]
    for half in (slice(0, 256), slice(256, 512)):
        found[half] += blend[half] * (found[half].mean(axis=(0, 1)) - found[half])
    found = np.roll(found, int(rng.integers(1024)), axis=1)
    return np.asarray(found * 0.32 / max(found[:256].mean(), 1e-3))


def _landscape(world: World, rng: Rng, floor: float, start: float, textures: Photos) -> None:
    """Things far behind: buildings, bushes, trunks."""
    for _ in range(rng.integers(0, 7)):
        x, y = float(rng.uniform(-14, 14)), float(rng.uniform(start + 2.5, 25))
        kind = rng.integers(3)
        if kind == 0:
            mesh, part = block(*rng.uniform((2, 2, 2), (7, 5, 9))), "label"
        elif kind == 1:
            mesh, part = dents(ball(float(rng.uniform(0.5, 1.8)), 24), rng, 0.25, 4), "leaf"
        else:
            crown = dents(ball(float(rng.uniform(1, 2)), 24), rng, 0.3, 3).moved((0, 0, 4))
            trunk = tube(np.linspace((0, 0, 0), (0, 0, 3.5), 4), 0.2)
            world.solids.append(
                Solid(trunk.moved((x, y, floor)), material("wood", rng, textures)[1])
            )
            mesh, part = crown, "leaf"
        world.solids.append(Solid(mesh.moved((x, y, floor)), material(part, rng, textures)[1]))


def _table(world: World, rng: Rng, site: Site, floor: float, back: float, textures: Photos) -> str:
    """A table top below the object, on legs or a block; returns what it is."""
    x0, x1 = -site.reach - rng.uniform(0.15, 2), site.reach + rng.uniform(0.15, 2)
    y0 = -site.reach - rng.uniform(0.15, 1.2)
    y1 = (
        back - 0.001
        if site.wall is not None
        else min(site.reach + rng.uniform(0.3, 2), back - 0.01)
    )
    wide, deep, thick = float(x1 - x0), float(y1 - y0), float(rng.uniform(0.06, 0.2))
    tiles = float(rng.uniform(0.3, 0.7))
    name, node = ground(rng, False, (wide * tiles, deep * tiles), textures)
    middle = (float(x0 + x1) / 2, float(y0 + y1) / 2, -thick)
    top = block(wide, deep, thick, float(rng.choice([0, 0.03]))).moved(middle)
    world.solids.append(Solid(top, node))
    tall = -thick - floor
    if rng.random() < 0.6:
        feet = [
            block(0.12, 0.12, tall).moved(
                (middle[0] + s * (wide / 2 - 0.1), middle[1] + t * (deep / 2 - 0.1), floor)
            )
            for s in (-1, 1)
            for t in (-1, 1)
        ]
        under = join(*feet)
    else:
        under = block(wide * 0.94, deep * 0.94, tall).moved((middle[0], middle[1], floor))
    world.solids.append(Solid(under, material("wood", rng, textures)[1]))
    return f"{name} table"


def _clutter(world: World, rng: Rng, site: Site, back: float, textures: Photos) -> None:
    """None to three things behind and beside the object, on what it stands on."""
    taken = [(0.0, 0.0, site.reach + 0.05)]
    tops = [s.mesh.points for s in world.solids[-2:-1]] if site.table else []
    for _ in range(int(rng.choice([0, 0, 1, 1, 2, 3]))):
        parts = SHAPES[str(rng.choice([*SHAPES]))](rng)
        whole = join(*parts.values())
        size = float(rng.uniform(0.5, 1.3))
        turn, reach = (
            float(rng.uniform(0, 360)),
            size * float(np.linalg.norm(whole.points[:, :2], axis=1).max()),
        )
        x, y = float(rng.uniform(-2, 2)), float(rng.uniform(0.1, 3.5))
        low, high = (
            (tops[0].min(0), tops[0].max(0)) if tops else (np.full(3, -9.0), np.array([9, back, 0]))
        )
        inside = low[0] + reach < x < high[0] - reach and y < min(high[1], back) - reach
        if not inside or any(np.hypot(x - a, y - b) < reach + r for a, b, r in taken):
            continue
        taken.append((x, y, reach))
        base = float(whole.points[:, 2].min())
        placed = {
            k: m.moved((0, 0, -base)).scaled(size).turned(about("z", turn)).moved((x, y, 0))
            for k, m in parts.items()
        }
        world.solids += solids(placed, rng, textures)[1]
