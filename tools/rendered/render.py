"""Procedural pictures of simple objects under a known light, to train on beside photographs.

A seed draws a room, a studio or open ground, a light, a camera and one to four objects; the rays
are followed in linear light (radiance.py), then exposed, curved and blurred as a camera would.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from rendered import raycast as rc
from rendered.objects import SHAPES, build
from rendered.radiance import (
    Light,
    Material,
    Scene,
    Thing,
    radiance,
)
from rendered.raycast import Floats, Vector, unit

__all__ = ["COLOURS", "MATERIALS", "SHAPES", "Rendered", "render"]

Rng = np.random.Generator

COLOURS = (
    *("black", "white", "gray", "red", "orange", "yellow", "green", "blue", "purple", "pink"),
    "brown",
)
MATERIALS = ("wooden", "metal", "marble", "striped", "checkered", "woven", "tiled", "brick")
# Rays of a pixel on each axis.
_OVER = 2
# Shares of the picture that the main object may show.
_LEAST, _MOST = 0.05, 0.33


@dataclass(frozen=True, eq=False)
class Rendered:
    """A picture (H, W, 3) uint8 in sRGB, the main object's mask (H, W) of 0 and 255, a caption."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    caption: str


def render(seed: int, size: int = 160) -> Rendered:
    """A square picture of `size` pixels; the same seed and size give the same bytes.

    The caption reads "a rendering of a {colour or material} {shape}", perhaps followed by "on a
    {colour or material} floor"; the words are those of COLOURS, MATERIALS and SHAPES. The mask
    shows the pixels where the captioned object is seen, and covers 3 to 45 % of the picture.
    Raises ValueError when `size` is below 16 or `seed` is negative.
    """
    if size < 16:
        raise ValueError(f"size is {size}; expected 16 or more")
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected 0 or more")
    rng = np.random.default_rng(seed)
    scene, shape = _scene(rng)
    origin, frame, zoom, shift = _camera(scene, rng)
    shown = size * _OVER
    rays = _rays(shown, frame, zoom, shift)
    light, owner = radiance(scene, origin, rays, rng, cone=2 / zoom / shown)
    linear = light.reshape(3, size, _OVER, size, _OVER)
    # Highlights are clipped before the mean, or single bright rays would leave jagged spots.
    bright = 4 * np.median(light.max(axis=0))
    image = np.minimum(linear, bright).mean(axis=(2, 4)).transpose(1, 2, 0)
    cover = (owner == _main(scene)).reshape(size, _OVER, size, _OVER).mean(axis=(1, 3))
    mask = np.where(cover >= 0.5, 255, 0).astype(np.uint8)
    return Rendered(_developed(image, rng), mask, _caption(scene, shape))


def _main(scene: Scene) -> int:
    """Where the main object stands among the things: the first after the planes."""
    return next(k for k, thing in enumerate(scene.things) if thing.shades)


def _colour_name(linear: Vector) -> str:
    """The nearest of COLOURS to a linear colour with parts in [0, 1]."""
    r, g, b = (min(1.0, x) ** (1 / 2.2) for x in linear)
    hue, saturation, value = colorsys.rgb_to_hsv(r, g, b)
    if value < 0.2:
        return "black"
    if saturation < 0.14 or (saturation < 0.25 and value < 0.35):
        return "white" if value > 0.72 else "gray"
    hue *= 360
    if 50 <= hue < 68 and value < 0.62:
        return "green"
    if hue < 50 and hue >= 12 and (value < 0.62 or (saturation < 0.5 and value < 0.8)):
        return "brown"
    if (hue < 20 or hue >= 300) and saturation < 0.5 and value > 0.7:
        return "pink"
    limits = ((12, "red"), (42, "orange"), (68, "yellow"), (165, "green"), (255, "blue"))
    for limit, name in limits:
        if hue < limit:
            return name
    return "purple" if hue < 300 else "pink" if hue < 340 else "red"


def _caption(scene: Scene, shape: str) -> str:
    def article(words: str) -> str:
        return f"an {words}" if words[0] in "aeiou" else f"a {words}"

    material, floor = scene.things[_main(scene)].material, scene.things[0].material
    named = material.name or _colour_name(material.first)
    text = f"a rendering of {article(f'{named} {shape}')}"
    # Half of the floors stay unnamed, by a number that the scene already holds.
    if floor.name or int(floor.shift[0] * 1000) % 2:
        text += f" on {article(floor.name or _colour_name(floor.first))} floor"
    return text


def _hsv(hue: float, saturation: float, value: float) -> Vector:
    r, g, b = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return r**2.2, g**2.2, b**2.2


def _paint(rng: Rng) -> Vector:
    """A linear colour: muted, vivid, an earth tone or nearly grey."""
    kind = rng.random()
    if kind < 0.4:
        return _hsv(rng.random(), rng.uniform(0.3, 0.6), rng.uniform(0.4, 0.85))
    if kind < 0.65:
        return _hsv(rng.random(), rng.uniform(0.7, 0.92), rng.uniform(0.55, 0.9))
    if kind < 0.8:
        return _hsv(rng.uniform(0.04, 0.13), rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.8))
    value = rng.choice([rng.uniform(0.08, 0.2), rng.uniform(0.35, 0.75), rng.uniform(0.82, 0.93)])
    return _hsv(rng.random(), rng.uniform(0, 0.08), float(value))


def _near(colour: Vector, factor: float) -> Vector:
    r, g, b = (min(0.85, x * factor) for x in colour)
    return r, g, b


def _material(
    rng: Rng, patterns: tuple[str, ...], plain: float, scale: float, muted: bool = False
) -> Material:
    """A material: plain with probability `plain`, else in one of the patterns.

    Muted ones, for floors and walls, are mostly near to grey.
    """
    shift = (float(rng.random()), float(rng.random()))
    paint = _paint(rng)
    if muted and rng.random() < 0.85:
        grey, pale = float(np.mean(paint)), float(rng.uniform(0.2, 0.7))
        paint = tuple(grey + (x - grey) * pale * 0.7 for x in paint)  # type: ignore[assignment]
    rough = float(rng.uniform(0.15, 0.9))
    pattern = "plain" if rng.random() < plain else str(rng.choice(patterns))
    span = scale * float(rng.uniform(0.8, 1.5))
    base = Material("", paint, _near(paint, 0.8), "plain", span, rough, shift=shift)
    if pattern == "metal":
        tint = [(0.9, 0.9, 0.9), (0.9, 0.68, 0.35), (0.85, 0.5, 0.36), (0.5, 0.5, 0.53)]
        colour = tint[int(rng.integers(len(tint)))]
        rough = float(rng.uniform(0.05, 0.45))
        base = replace(base, rough=rough, metal=True, traced=True)
        return replace(base, name="metal", first=colour, second=colour)
    if pattern in ("wooden", "planks"):
        light = _hsv(rng.uniform(0.06, 0.1), rng.uniform(0.4, 0.65), rng.uniform(0.45, 0.8))
        dark = _near(light, float(rng.uniform(0.35, 0.6)))
        return replace(base, name="wooden", first=light, second=dark, pattern=pattern)
    if pattern == "marble":
        stone = _hsv(rng.random(), rng.uniform(0, 0.15), rng.uniform(0.7, 0.92))
        vein = _near(stone, float(rng.uniform(0.15, 0.45)))
        return replace(base, name=pattern, first=stone, second=vein, pattern=pattern, rough=0.25)
    if pattern == "brick":
        clay = _hsv(rng.uniform(0.01, 0.08), rng.uniform(0.35, 0.65), rng.uniform(0.4, 0.75))
        mortar = _hsv(0.1, 0.1, rng.uniform(0.5, 0.75))
        return replace(base, name=pattern, first=clay, second=mortar, pattern=pattern, rough=0.9)
    if pattern == "tiled":
        joint = _near(paint, 0.45) if rng.random() < 0.5 else _hsv(0.1, 0.08, 0.6)
        return replace(base, name=pattern, second=joint, pattern=pattern)
    if pattern in ("striped", "checkered"):
        other = _paint(rng) if rng.random() < 0.5 else _hsv(0.1, 0.08, 0.88)
        return replace(
            base, name=pattern, second=other, pattern=pattern, scale=span * float(rng.uniform(2, 4))
        )
    if pattern == "woven":
        return replace(base, name=pattern, second=_near(paint, 0.45), pattern=pattern, rough=1.0)
    glossy = rng.random() < 0.35
    shine = float(rng.uniform(0.04, 0.08))
    return replace(base, rough=0.12 if glossy else rough, shine=shine, traced=bool(glossy))


def _scene(rng: Rng) -> tuple[Scene, str]:
    """A scene with its main object at the origin, and that object's shape."""
    kind = str(rng.choice(["room", "corner", "studio", "outside"], p=[0.38, 0.15, 0.22, 0.25]))
    grounds = (
        "wooden",
        "planks",
        "planks",
        "tiled",
        "tiled",
        "checkered",
        "marble",
        "woven",
        "brick",
    )
    floor = _material(rng, grounds, {"studio": 1.0, "outside": 0.5}.get(kind, 0.25), 0.9, True)
    if rng.random() > 0.35 or kind == "studio":
        floor = replace(floor, traced=False, rough=max(floor.rough, 0.5))
    if kind == "outside" and floor.name in ("", "woven"):
        floor = replace(floor, first=_near(floor.first, 0.7), rough=1.0)
    things = [Thing(rc.Group([rc.Plane()]), floor, shades=False)]
    if kind in ("room", "corner"):
        wall = _material(rng, ("brick", "striped", "planks", "tiled"), 0.8, 0.9, True)
        if wall.name == "":
            pale = _hsv(rng.random(), rng.uniform(0, 0.3), rng.uniform(0.55, 0.92))
            wall = replace(wall, first=pale, second=_near(pale, 0.9), traced=False)
        wall = replace(wall, rough=0.9, traced=False)
        yaw = float(rng.uniform(-0.4, 0.4)) if kind == "room" else float(rng.uniform(0.4, 1.1))
        far = float(rng.uniform(1.6, 4.5))
        for angle in (yaw, yaw - np.pi / 2)[: 1 if kind == "room" else 2]:
            # Rows: along the wall, up, and towards the camera.
            axes = np.array(
                [[np.cos(angle), np.sin(angle), 0], [0, 0, 1], [np.sin(angle), -np.cos(angle), 0]]
            )
            place = -axes[2] * far
            plane = rc.Plane((float(place[0]), float(place[1]), 0.0), turn=axes.astype(np.float32))
            things.append(Thing(rc.Group([plane]), wall, shades=False))
    shape = str(rng.choice(SHAPES))
    solid = ("wooden", "metal", "metal", "marble", "striped", "checkered", "woven")
    things.append(build(shape, (0.0, 0.0), 0.5, rng, _material(rng, solid, 0.5, 1.6)))
    taken = [(0.0, 0.0, things[-1].group.reach)]
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.3, 0.35, 0.22, 0.13]))):
        s = float(rng.uniform(0.22, 0.6))
        angle, away = rng.uniform(-0.35, np.pi + 0.35), rng.uniform(0.9, 1.9)
        x, y = float(away * np.cos(angle)), float(away * np.sin(angle))
        if all(np.hypot(x - p, y - q) > r + 1.2 * s for p, q, r in taken):
            taken.append((x, y, 1.2 * s))
            other = _material(rng, solid, 0.6, 1.6)
            things.append(build(str(rng.choice(SHAPES)), (x, y), s, rng, other))
    warm = rng.normal(0, 0.22) - (0.1 if kind == "outside" else -0.06)
    tint = np.array([1 + 0.6 * warm, 1, 1 - 0.75 * warm]).clip(0.35, 1.8)
    # Room lamps stand near and on the camera's side of the walls.
    span = (-2.9, -0.25) if kind in ("room", "corner") else (-np.pi, np.pi)
    turn, rise = rng.uniform(*span), np.radians(rng.uniform(22, 75))
    reach = float(rng.uniform(20, 60) if kind == "outside" else rng.uniform(3.0, 7.0))
    place = reach * np.array(
        [np.cos(turn) * np.cos(rise), np.sin(turn) * np.cos(rise), np.sin(rise)]
    )
    wide = reach * float(rng.uniform(0.008, 0.05) if kind == "outside" else rng.uniform(0.04, 0.28))
    key = tint * rng.uniform(0.9, 2.2)
    light = Light(tuple(place.tolist()), wide, tuple(key.tolist()))
    cool = np.array([1 - 0.35 * warm, 1, 1 + 0.4 * warm]).clip(0.6, 1.5)
    level = rng.uniform(0.25, 0.7)
    horizon, zenith = cool * level, cool * level * rng.uniform(0.6, 1.1)
    haze = 0.0
    if kind == "outside":
        horizon = np.array([0.85, 0.93, 1.0]) * rng.uniform(0.6, 1.2) * (0.6 + 0.4 * tint)
        zenith = horizon * (0.38, 0.55, 0.85) if rng.random() < 0.7 else horizon * 0.8
        haze = float(rng.uniform(14, 60))
    elif kind == "studio":
        # The floor runs into the backdrop without an edge.
        paper = np.array(floor.first) * 1.1 + 0.05
        horizon, zenith = paper * rng.uniform(0.5, 1.0), paper * rng.uniform(0.15, 0.9) + 0.1
        haze = float(rng.uniform(6, 10))
    return Scene(things, light, tuple(horizon.tolist()), tuple(zenith.tolist()), haze), shape


def _rays(size: int, frame: Floats, zoom: float, shift: tuple[float, float]) -> Floats:
    """Unit rays (3, size²), row by row, of a camera whose frame has rows right, up and forward."""
    x = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    right, up = np.meshgrid((x - shift[0]) / zoom, -(x - shift[1]) / zoom)
    local = np.stack([right.ravel(), up.ravel(), np.ones(size * size, np.float32)])
    return unit(frame.T @ local.astype(np.float32))


def _camera(scene: Scene, rng: Rng) -> tuple[Floats, Floats, float, tuple[float, float]]:
    """Where the camera stands, its frame, its zoom (1 / tan of half the view) and its shift.

    The zoom is corrected until the main object covers the share of the picture that was drawn.
    """
    main = _main(scene)
    group = scene.things[main].group
    away, rise = (
        rng.uniform(2.4, 5.5),
        np.radians(rng.choice([rng.uniform(5, 20), rng.uniform(15, 50)])),
    )
    swing = rng.uniform(-0.35, 0.35)
    centre = np.array(group.centre)
    step = (np.sin(swing) * np.cos(rise), -np.cos(swing) * np.cos(rise), np.sin(rise))
    origin = (centre + away * np.array(step)).astype(np.float32)[:, None]
    forward = -np.array(step, np.float32)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    roll = rng.normal(0, 0.02)
    up = np.cross(right, forward)
    frame = np.stack(
        [
            right * np.cos(roll) + up * np.sin(roll),
            up * np.cos(roll) - right * np.sin(roll),
            forward,
        ]
    ).astype(np.float32)
    share = float(np.exp(rng.uniform(np.log(_LEAST * 1.3), np.log(_MOST * 0.85))))
    # Above 0.5 the object would leave the picture when it is large.
    shift = (float(rng.uniform(-0.25, 0.25)), float(rng.uniform(-0.15, 0.25)))
    groups = [thing.group for thing in scene.things]
    before = sum(len(other.solids) for other in groups[:main])
    mine = range(before, before + len(group.solids))
    zoom = 2.0
    for _ in range(6):
        which = rc.nearest(groups, origin, _rays(48, frame, zoom, shift))[1]
        seen = np.isin(which, mine).reshape(48, 48)
        cover = float(seen.mean())
        rim = seen[0].any() or seen[-1].any() or seen[:, 0].any() or seen[:, -1].any()
        if rim and cover > _LEAST * 1.3:
            zoom *= 0.85
            share = min(share, cover * 0.75)
        elif abs(np.log(max(cover, 1e-3) / share)) < 0.15:
            break
        else:
            zoom *= float(np.clip(np.sqrt(share / max(cover, 1e-3)), 0.4, 2.5))
    return origin, frame, zoom, shift


def _developed(linear: Floats, rng: Rng) -> NDArray[np.uint8]:
    """Linear light (H, W, 3) to sRGB as a camera would: exposure, vignette, curve, blur, noise."""
    size = linear.shape[0]
    grey = linear @ np.array([0.21, 0.72, 0.07], np.float32)
    middle = float(np.exp(np.log(grey + 1e-3).mean()))
    exposed = linear * np.float32(rng.uniform(0.16, 0.34) / middle)
    # White balance takes most of the light's tint away, but never all of it.
    cast = exposed.mean(axis=(0, 1)) / exposed.mean()
    exposed = exposed / cast ** np.float32(rng.uniform(0.0, 0.5))
    x = np.linspace(-1, 1, size, dtype=np.float32)
    exposed *= (1 - np.float32(rng.uniform(0, 0.2)) * (x[:, None] ** 2 + x**2) / 2)[..., None]
    # Straight at first, then rolling off towards white.
    rolled = np.where(exposed < 0.5, exposed, 1 - 0.5 * np.exp(-(exposed - 0.5) * 2))
    shown = np.where(
        rolled <= 0.0031308, rolled * 12.92, 1.055 * np.maximum(rolled, 1e-6) ** (1 / 2.4) - 0.055
    ).astype(np.float32)
    contrast = np.float32(rng.uniform(-0.1, 0.5))
    shown += contrast * (shown * shown * (3 - 2 * shown) - shown)
    blur = float(rng.uniform(0, 0.7)) * size / 160
    if blur > 0.25:
        shown = np.asarray(cv2.GaussianBlur(shown, (0, 0), blur), np.float32)
    noise = rng.standard_normal(shown.shape, np.float32) * np.float32(rng.exponential(0.006))
    shown = np.clip(shown + noise * (1.2 - 0.6 * shown), 0, 1)
    return np.asarray(np.floor(shown * 255 + 0.5), np.uint8)
