"""The light that rays see in a scene of simple solids, all of it linear.

One key light (a ball, near or as far as the sun)
casts soft shadows; a sky fills in, weakened where solids stand close; shiny things see one bounce.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from rendered import raycast as rc
from rendered.raycast import (
    Floats,
    Vector,
    dot,
    unit,
)

__all__ = ["Light", "Material", "Scene", "Thing", "radiance"]

Rng = np.random.Generator

# Shadow rays that each ray from the camera sends.
_SHADOW_RAYS = 3


@dataclass(frozen=True)
class Material:
    """Two linear colours in a pattern, and how the surface shines.

    `scale` is the pattern's repeats in a unit of length, `rough` in (0, 1], `shine` the share of
    light mirrored straight on; `metal` mirrors in its colour. `traced` follows the mirrored ray.
    """

    name: str
    first: Vector
    second: Vector
    pattern: str = "plain"
    scale: float = 1.0
    rough: float = 0.5
    shine: float = 0.04
    metal: bool = False
    traced: bool = False
    shift: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Thing:
    """An object: its solids, its material, and whether its texture wraps around it."""

    group: rc.Group
    material: Material
    wraps: bool = False
    shades: bool = True


@dataclass(frozen=True)
class Light:
    """A ball of light; `colour` is the linear light (r, g, b) that it gives at the origin."""

    place: Vector
    radius: float
    colour: Vector


@dataclass(frozen=True, eq=False)
class Scene:
    """Things, a key light, and a sky in linear light from the horizon to the zenith.

    Where `haze` is above 0, things at that distance have faded by 63 % into the sky.
    """

    things: Sequence[Thing]
    light: Light
    horizon: Vector
    zenith: Vector
    haze: float = 0.0


def _column(v: Sequence[float]) -> Floats:
    return np.array(v, np.float32)[:, None]


@lru_cache(maxsize=1)
def _tile() -> Floats:
    """A seamless 256 x 256 cloud: noise of amplitude 1/f^1.5, of mean 0 and deviation 1."""
    f = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None]) * 256
    spectrum = np.fft.rfft2(np.random.default_rng(7).standard_normal((256, 256)))
    cloud = np.fft.irfft2(np.where(f > 0, spectrum / np.maximum(f, 1) ** 1.5, 0))
    return np.asarray(cloud / cloud.std(), np.float32)


def _noise(u: Floats, v: Floats) -> Floats:
    """The cloud at places (N,), repeating every unit."""
    rows = -(-len(u) // 256)
    maps = np.zeros((2, rows * 256), np.float32)
    maps[0, : len(u)], maps[1, : len(u)] = (u % 1) * 256, (v % 1) * 256
    x, y = maps.reshape(2, rows, 256)
    found = cv2.remap(_tile(), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return np.asarray(found, np.float32).reshape(-1)[: len(u)]


def _wave(x: Floats, width: Floats, share: float = 0.5) -> Floats:
    """1 for `share` of each unit and 0 for the rest, blurred over `width`; (N,)."""
    edge = (share / 2 - np.abs((x % 1) - 0.5)) / np.maximum(width, 0.015) + 0.5
    far = np.clip(width * 1.5 - 0.5, 0, 1)
    blurred: Floats = np.clip(edge, 0, 1) * (1 - far) + share * far
    return blurred


def _albedo(m: Material, u: Floats, v: Floats, size: Floats) -> Floats:
    """Linear colours (3, N) at texture places (N,) seen at `size` lengths a sample."""
    first, second = _column(m.first), _column(m.second)
    width = size * m.scale
    u, v = u * m.scale + m.shift[0], v * m.scale + m.shift[1]
    grain = _noise(u * 0.37, v * 0.37)
    fade = np.clip(1.2 - width, 0, 1)
    tone = 1 + 0.03 * grain
    if m.pattern == "checkered":
        a, b = 2 * _wave(u, width) - 1, 2 * _wave(v, width) - 1
        mix = 0.5 + 0.5 * a * b
    elif m.pattern == "striped":
        mix = _wave(v, width)
    elif m.pattern == "woven":
        over = np.sin(u * 40) * np.sin(v * 40)
        mix = 0.5 + 0.5 * over * np.clip(1.5 - width * 12, 0, 1)
    elif m.pattern == "marble":
        vein = np.abs(_noise(u * 0.3 + 0.02 * grain, v * 0.3))
        mix = np.exp(-5 * vein) + 0.12 * np.clip(grain, 0, 2)
    elif m.pattern in ("tiled", "brick", "planks"):
        tall = {"tiled": 1.0, "brick": 2.2, "planks": 4.0}[m.pattern]
        row = np.floor(v * tall)
        along = u if m.pattern == "tiled" else u + row * (0.5 if m.pattern == "brick" else 0.37)
        joint = {"tiled": 0.04, "brick": 0.05, "planks": 0.008}[m.pattern]
        seam = 1 - _wave(along + 0.5, width, joint)
        seam *= 1 - _wave(v * tall + 0.5, width * tall, joint * tall)
        which = np.floor(along) * 0.377 + row * 0.613
        tone = tone + 0.09 * fade * _noise(which, which * 1.7)
        mix = 1 - seam
        if m.pattern == "planks":
            mix = 0.5 * mix + 0.22 * fade * (1 + _noise(along * 0.1 + which, v * 1.6 + which))
    elif m.pattern == "wooden":
        bent = v * 2 + 0.35 * _noise(u * 0.12, v * 0.3)
        rings = 0.5 + 0.5 * np.sin(bent * 9)
        mix = rings * 0.6 * np.clip(1.3 - width * 5, 0, 1) + 0.15 * _noise(u * 0.15, v * 2.5)
    else:
        mix = np.clip(0.06 * grain, 0, 1)
    mix = np.clip(mix, 0, 1).astype(np.float32)
    colours: Floats = (first * (1 - mix) + second * mix) * np.maximum(tone, 0.3)
    return colours


def _sky(scene: Scene, d: Floats, mirrored: bool = False) -> Floats:
    """Linear light (3, N) that comes from the directions d, with the lamp's glow in it.

    Mirrored directions see the lamp itself and uneven surroundings, or metal would look like paint.
    """
    up = np.clip(d[2], 0, 1) ** 0.6
    light = _column(scene.horizon) * (1 - up) + _column(scene.zenith) * up
    light = light * (1 - 0.55 * np.clip(-d[2] * 3, 0, 1))
    lamp, near = _column(scene.light.colour), dot(d, unit(_column(scene.light.place)))
    light = light + 0.25 * lamp * np.exp((near - 1) * 14)
    if mirrored:
        light = light * np.clip(0.75 + 0.9 * d[0] * (d[2] + 0.4) - 0.35 * d[1], 0.15, 2)
        light = light + 0.9 * lamp * np.clip((near - 0.93) * 25, 0, 1)
    return np.asarray(light)


def _openness(scene: Scene, p: Floats, n: Floats, own: NDArray[np.int16]) -> Floats:
    """Share (N,) of the sky that points see, each solid taken as a ball of about its size."""
    found = np.ones(p.shape[1], np.float32)
    for index, thing in enumerate(scene.things):
        if not thing.shades:
            plane = thing.group.solids[0]
            gap = plane.turn[2] @ (p - _column(plane.centre))
            found *= np.where(own == index, 1, 1 - 0.35 * np.exp(-np.abs(gap) * 2.5))
            continue
        for solid in thing.group.solids:
            extent = np.array(solid.scale)
            middle = np.array(solid.centre)
            if isinstance(solid, rc.Frustum):
                wide = (solid.bottom + solid.top) / 2
                extent = extent * (wide, wide, 0.5)
                middle = middle + solid.turn[2] * solid.scale[2] / 2
            reach = float(np.prod(extent) ** (1 / 3)) * (
                0.7 if isinstance(solid, rc.Ring) else 1.05
            )
            away = _column(tuple(middle)) - p
            square = dot(away, away)
            lean = np.clip(dot(n, away) / np.sqrt(square), 0, 1)
            cover = lean * np.minimum(reach * reach / square, 1)
            found *= np.where(own == index, 1, 1 - 0.9 * cover)
    return found


def _lit(scene: Scene, p: Floats, n: Floats, rays: int, rng: Rng) -> Floats:
    """Share (N,) of the key light's ball that points see."""
    place = _column(scene.light.place)
    axis = unit(place)
    side = unit(np.cross(axis, _column((0.3, 0.9, 0.2)), axis=0).astype(np.float32))
    other = np.cross(axis, side, axis=0)
    away = place - p
    length = np.sqrt(dot(away, away))
    toward = away / length
    facing = dot(n, toward) > 0
    hidden = np.zeros((rays, p.shape[1]), bool)
    start = p + n * np.float32(4e-3)
    # A spiral over the light's disc; each point takes its own turn of it.
    turns = np.asarray(rng.random(p.shape[1], np.float32))
    for thing in scene.things:
        if not thing.shades:
            continue
        spread = scene.light.radius / float(length.min())
        points = thing.group.near(start, toward, spread)
        points = points[facing[points]]
        if not len(points):
            continue
        for ray in range(rays):
            turn = turns[points]
            angle = (ray * 2.39996 + turn * 6.2832).astype(np.float32)
            wide = scene.light.radius * np.sqrt((ray + turn * 7 % 1) / rays)
            target = place + side * (wide * np.cos(angle)) + other * (wide * np.sin(angle))
            way = target - start[:, points]
            reach = np.sqrt(dot(way, way))
            hidden[ray, points] |= rc.blocked(thing.group, start[:, points], way / reach, reach)
    return np.asarray(1 - hidden.mean(axis=0, dtype=np.float32))


def radiance(
    scene: Scene,
    origin: Floats,
    direction: Floats,
    rng: Rng,
    cone: float = 0.0,
    bounce: bool = True,
) -> tuple[Floats, NDArray[np.int16]]:
    """Linear light (3, N) along unit rays, and the index (N,) of the thing that each meets, or -1.

    `origin` is (3, 1) or (3, N), `cone` the angle in radians between neighbouring rays. The light
    is linear in the key light and the sky together.
    """
    t, which = rc.nearest([thing.group for thing in scene.things], origin, direction)
    solids = [(s, k) for k, thing in enumerate(scene.things) for s in thing.group.solids]
    light = _sky(scene, direction, not bounce)
    owner = np.array([k for _, k in solids] + [-1], np.int16)[which]
    if which.max() < 0:
        return light, owner
    # A slice where every ray hits: no copies.
    seen = slice(None) if which.min() >= 0 else np.flatnonzero(which >= 0)
    d, far, mine = direction[:, seen], t[seen], owner[seen]
    p = (origin if origin.shape[1] == 1 else origin[:, seen]) + far * d
    n = np.empty_like(p)
    for number, (solid, _) in enumerate(solids):
        on = np.flatnonzero(which[seen] == number)
        n[:, on] = solid.normal(p[:, on])
    back = dot(n, d)
    n *= -np.sign(back) + (back == 0)
    facing = np.abs(back)
    away = _column(scene.light.place) - p
    square = dot(away, away)
    toward = away / np.sqrt(square)
    nl = np.maximum(dot(n, toward), 0)
    fall = np.float32(np.sum(np.square(scene.light.place))) / square
    key = nl * fall * _lit(scene, p, n, _SHADOW_RAYS if bounce else 1, rng)
    open_ = _openness(scene, p, n, mine)
    # Light from above, and from below what the ground gives back of it.
    up = 0.5 + 0.5 * n[2]
    above = 0.5 * (_column(scene.horizon) + _column(scene.zenith))
    ground = np.array(scene.things[0].material.first, np.float32)[:, None]
    below = ground * (0.25 * _column(scene.light.colour) + 0.5 * above)
    fill = (above * up + below * (1 - up)) * open_
    half = unit(toward - d)
    shown = np.empty_like(p)
    for index, thing in enumerate(scene.things):
        on = np.flatnonzero(mine == index)
        if not len(on):
            continue
        m = thing.material
        u, v = _unrolled(thing, p[:, on], n[:, on])
        colour = _albedo(m, u, v, far[on] * cone / np.maximum(facing[on], 0.08))
        straight = colour if m.metal else np.float32(m.shine)
        graze = np.square(np.square(1 - facing[on])) * (1 - facing[on])
        fresnel = straight + (1 - straight) * graze * (1 - 0.7 * m.rough)
        power = 2 / max(m.rough, 0.08) ** 3
        gleam = (power + 8) / 8 * np.maximum(dot(n[:, on], half[:, on]), 0) ** power
        lamp = _column(scene.light.colour) * key[on]
        mirrored = d[:, on] + 2 * facing[on] * n[:, on]
        if m.traced and bounce:
            rough = mirrored + rng.standard_normal(mirrored.shape, np.float32) * m.rough**2 * 0.4
            start = p[:, on] + n[:, on] * np.float32(4e-3)
            around = radiance(scene, start, unit(rough), rng, cone * 4, bounce=False)[0]
        else:
            around = _sky(scene, mirrored, m.metal) * open_[on] * (1 - 0.5 * m.rough)
        body = 0 if m.metal else colour * (lamp + fill[:, on])
        shown[:, on] = body + fresnel * (np.minimum(gleam, 40) * lamp * 0.35 + around)
    if scene.haze:
        clear = np.exp(-((far / scene.haze) ** 1.5))
        shown = shown * clear + light[:, seen] * (1 - clear)
    light[:, seen] = shown
    return light, owner


def _unrolled(thing: Thing, p: Floats, n: Floats) -> tuple[Floats, Floats]:
    """Texture places (N,), (N,), in lengths along the surface."""
    solid = thing.group.solids[0]
    local, face = solid.turn @ (p - _column(solid.centre)), np.abs(solid.turn @ n)
    if thing.wraps:
        # The seam of the angle lies at +y, behind the object.
        around = np.arctan2(local[0], -local[1]) * 0.6 * thing.group.reach
        flat = face[2] > 0.95
        return np.where(flat, local[0], around), np.where(flat, local[1], local[2])
    top, side = face[2] >= face[:2].max(axis=0), face[0] > face[1]
    u = np.where(side & ~top, local[1], local[0])
    return u, np.where(top, local[1], local[2])
