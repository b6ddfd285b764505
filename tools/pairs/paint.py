"""Colours, textures and materials, as the nodes of a scene that Mitsuba reads.

A node is a dict with its plugin's `type`; where Mitsuba wants a texture it holds a linear colour (a
tuple of three) or a Texture.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Photos", "Texture", "colour", "ground", "kelvin", "linear", "material"]

Rng = np.random.Generator
Colour = tuple[float, float, float]
WORDS = {
    "planks": "plank",
    "wood": "wooden",
    "tiles": "tiled",
    "checker": "checkered",
    "lawn": "grassy",
    "stripes": "striped",
    "dots": "dotted",
}
"""patterns that captions call by another word"""
Node = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Texture:
    """A picture (H, W, 3) uint8 in sRGB that is repeated `tiles` times along u and v."""

    image: NDArray[np.uint8]
    tiles: tuple[float, float] = (1.0, 1.0)


class Photos:
    """The pictures of a folder by name, drawn at random, at most `side` pixels high and wide."""

    def __init__(self, folder: Path, side: int) -> None:
        names = (
            p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
        )
        self.paths = sorted(names)
        self.side = side
        if not self.paths:
            raise SystemExit(f"{folder} holds no pictures; expected JPEG, PNG or WebP files.")

    def draw(self, rng: Rng) -> NDArray[np.uint8]:
        """One picture (H, W, 3) in RGB; those that cannot be read give way to the next."""
        start = int(rng.integers(len(self.paths)))
        for step in range(len(self.paths)):
            path = self.paths[(start + step) % len(self.paths)]
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is not None:
                shrink = min(1.0, self.side / max(image.shape[:2]))
                image = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
                return np.asarray(image[..., ::-1], np.uint8)
        raise SystemExit("no picture of the folder can be read.")


def linear(srgb: Any) -> Any:
    """Linear light of sRGB values in [0, 1]."""
    x = np.asarray(srgb, np.float64)
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def kelvin(temperature: float) -> Colour:
    """Linear colour of a black body of 1,500 to 15,000 K, its luminance 1 (T. Helland's fit)."""
    t = temperature / 100
    red = 255 if t <= 66 else 329.7 * (t - 60) ** -0.1332
    green = 99.47 * np.log(t) - 161.1 if t <= 66 else 288.1 * (t - 60) ** -0.0755
    blue = 255 if t >= 66 else 0 if t <= 19 else 138.5 * np.log(t - 10) - 305
    rgb = linear(np.clip([red, green, blue], 8, 255) / 255)
    r, g, b = rgb / (rgb @ [0.2126, 0.7152, 0.0722])
    return float(r), float(g), float(b)


def colour(rng: Rng, muted: bool = False) -> Colour:
    """A linear colour as things have it: greys, earths, muted and vivid ones (none if `muted`)."""
    kind = rng.random() * (0.62 if muted else 1)
    if kind < 0.27:
        h, s, v = rng.random(), rng.uniform(0, 0.1), rng.uniform(0.12, 0.95)
    elif kind < 0.45:
        h, s, v = rng.uniform(0.04, 0.14), rng.uniform(0.2, 0.65), rng.uniform(0.3, 0.9)
    elif kind < 0.7:
        h, s, v = rng.random(), rng.uniform(0.15, 0.5), rng.uniform(0.35, 0.9)
    else:
        h, s, v = rng.random(), rng.uniform(0.6, 0.95), rng.uniform(0.5, 0.95)
    r, g, b = np.minimum(linear(colorsys.hsv_to_rgb(h, s, v)), 0.85)
    return float(r), float(g), float(b)


def _noise(rng: Rng, side: int, rough: float = 0.5, stretch: float = 1.0) -> NDArray[np.float64]:
    """Smooth noise (side, side) that repeats, about 0 with deviation 1."""
    fy, fx = np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij")
    radius = np.hypot(fx * stretch, fy / stretch) + 1 / side
    spectrum = np.fft.fft2(rng.normal(size=(side, side))) * radius ** -(2 - rough)
    spectrum[0, 0] = 0
    noise = np.fft.ifft2(spectrum).real
    return np.asarray(noise / noise.std())


def _srgb(rgb: NDArray[np.float64]) -> NDArray[np.uint8]:
    x = np.clip(rgb, 0, 1)
    coded = np.where(x <= 0.0031308, x * 12.92, 1.055 * x ** (1 / 2.4) - 0.055)
    return np.asarray(np.round(coded * 255), np.uint8)


def _pattern(kind: str, rng: Rng, base: Colour, side: int = 256) -> NDArray[np.uint8]:
    """A texture that repeats: of a ground, a wall or a thing."""
    y, x = np.mgrid[:side, :side] / side
    first, second = np.asarray(base), np.asarray(colour(rng, muted=True))
    second = first * rng.uniform(0.6, 1.2) if rng.random() < 0.6 else first * 0.6 + second * 0.4
    grain = 1 + 0.06 * _noise(rng, side, 1.2)[..., None]
    if kind in ("planks", "wood"):
        rows = int(rng.integers(4, 9)) if kind == "planks" else 1
        row = np.floor(y * rows).astype(int)
        tone = rng.normal(1, 0.12 if rows > 1 else 0, rows)[row]
        fibre = 1 + 0.13 * _noise(rng, side, 0.6, 3.5)
        ends = rng.random(rows)[row]
        gap = (np.abs((y * rows) % 1 - 0.5) > 0.475) | (np.abs((x - ends) % 1) < 0.006)
        value = tone * fibre * np.where(gap & (rows > 1), 0.45, 1)
        return _srgb(first * value[..., None])
    if kind in ("tiles", "brick", "checker"):
        count = int(rng.integers(3, 7))
        shift = (np.floor(y * 2 * count) % 2) / 2 if kind == "brick" else 0
        u, v = x * count + shift, y * count * (2 if kind == "brick" else 1)
        iu, iv = np.floor(u).astype(int) % count, np.floor(v).astype(int)
        tone = rng.normal(1, 0.07, (2 * count, count))[iv % (2 * count), iu]
        odd = ((iu + iv) % 2)[..., None] * (kind == "checker")
        joint = (np.abs(u % 1 - 0.5) > 0.48) | (np.abs(v % 1 - 0.5) > 0.47)
        rgb = (first * (1 - odd) + second * odd) * tone[..., None]
        return _srgb(np.where(joint[..., None], second * 0.9, rgb) * grain)
    if kind == "stripes":
        wave = np.sin(2 * np.pi * x * rng.integers(2, 9)) > rng.uniform(-0.5, 0.5)
        return _srgb(np.where(wave[..., None], first, np.asarray(colour(rng))) * grain)
    if kind == "dots":
        count = rng.integers(3, 9)
        away = np.hypot((x * count) % 1 - 0.5, (y * count) % 1 - 0.5)
        return _srgb(np.where((away < 0.28)[..., None], np.asarray(colour(rng)), first) * grain)
    if kind == "label":
        return _label(rng, base, side)
    soft = np.clip(_noise(rng, side, rng.uniform(0.1, 1.1)) * 0.22 + 0.4, 0, 1)[..., None]
    speck = 1 + rng.uniform(0.02, 0.14) * rng.normal(size=(side, side))[..., None]
    return _srgb((first * (1 - soft) + second * soft) * cv2.blur(speck, (2, 2))[..., None])


def _label(rng: Rng, base: Colour, side: int) -> NDArray[np.uint8]:
    """What is printed on a package: fields, a disc and lines like words."""
    image = np.full((side, side, 3), _srgb(np.asarray(base)), np.uint8)

    def ink() -> tuple[int, ...]:
        return tuple(int(c) for c in _srgb(np.asarray(colour(rng))))

    for _ in range(rng.integers(1, 4)):
        a, b = rng.integers(0, side, 2), rng.integers(side // 6, side, 2)
        cv2.rectangle(image, tuple(map(int, a)), tuple(map(int, a + b)), ink(), -1)
    if rng.random() < 0.6:
        where = tuple(map(int, rng.integers(side // 4, 3 * side // 4, 2)))
        cv2.circle(image, where, int(rng.integers(side // 12, side // 4)), ink(), -1, cv2.LINE_AA)
    dark = ink()
    for _ in range(rng.integers(1, 5)):
        word = "".join(chr(rng.integers(65, 91)) for _ in range(rng.integers(3, 9)))
        at = (int(rng.integers(0, side // 3)), int(rng.integers(side // 6, side)))
        size = float(rng.uniform(0.6, 2.2))
        cv2.putText(
            image, word, at, cv2.FONT_HERSHEY_DUPLEX, size, dark, int(size * 2), cv2.LINE_AA
        )
    return image


def _crop(rng: Rng, photos: Photos) -> Texture:
    """A square part of a photo, as the print of a thing."""
    image = photos.draw(rng)
    height, width = image.shape[:2]
    side = int(min(height, width) * rng.uniform(0.45, 1))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    return Texture(image[top : top + side, left : left + side])


def _finish(rng: Rng, paint: Colour | Texture, kind: str) -> Node:
    """A surface of that paint: matt, fabric, plastic, glossy or metal."""
    if kind == "metal":
        tint = paint if isinstance(paint, tuple) else colour(rng)
        bright = tuple(0.45 + 0.5 * c / max(tint) for c in tint)
        return {
            "type": "roughconductor",
            "material": "none",
            "specular_reflectance": bright,
            "alpha": float(rng.uniform(0.12, 0.4)),
            "distribution": "ggx",
        }
    if kind == "matt":
        return {"type": "diffuse", "reflectance": paint}
    if kind == "plastic":
        alpha = float(rng.uniform(0.08, 0.3))
        return {
            "type": "roughplastic",
            "diffuse_reflectance": paint,
            "alpha": alpha,
            "nonlinear": True,
        }
    node: Node = {"type": "principled", "base_color": paint, "specular": 0.5}
    if kind == "fabric":
        return node | {"roughness": 0.95, "sheen": float(rng.uniform(0, 0.6)), "specular": 0.1}
    return node | {
        "roughness": float(rng.uniform(0.2, 0.55)),
        "metallic": float(rng.choice([0, 0, 0.5])),
    }


def material(part: str, rng: Rng, photos: Photos) -> tuple[str, Node]:
    """A name and the node of a material for a part of that kind (see shapes.py)."""
    part = part.split()[0]
    kinds = {
        "metal": ("metal",),
        "dark": ("plastic", "matt"),
        "paper": ("matt",),
        "leaf": ("matt", "plastic"),
        "label": ("matt", "plastic", "glossy"),
        "fabric": ("fabric", "matt"),
        "wood": ("matt", "plastic", "glossy"),
    }.get(part, ("matt", "plastic", "plastic", "glossy", "metal", "fabric", "matt"))
    kind = str(rng.choice(kinds))
    paint: Colour | Texture = colour(rng)
    name = kind
    base = paint
    if part == "dark":
        paint = (0.02, 0.02, 0.022) if rng.random() < 0.6 else (0.06, 0.03, 0.02)
    elif part == "paper":
        paint = (0.75, 0.72, 0.64)
    elif part == "leaf":
        paint = tuple(
            linear(colorsys.hsv_to_rgb(rng.uniform(0.2, 0.4), 0.6, rng.uniform(0.25, 0.65)))
        )
    elif kind != "metal":
        pick = rng.random()
        if part == "label" and pick < 0.5:
            paint, name = Texture(_pattern("label", rng, base)), "printed"
        elif part == "wood" or (part == "main" and pick < 0.12):
            brown = tuple(
                linear(colorsys.hsv_to_rgb(rng.uniform(0.04, 0.11), 0.55, rng.uniform(0.3, 0.8)))
            )
            paint, name = Texture(_pattern("wood", rng, brown)), "wooden"
        elif pick < (0.75 if part in ("label", "fabric") else 0.42):
            paint, name = _crop(rng, photos), "printed"
        elif pick < 0.85 and part in ("fabric", "main", "label"):
            pattern = str(rng.choice(["stripes", "dots", "checker", "speckled", "speckled"]))
            paint, name = Texture(_pattern(pattern, rng, base), (2.0, 2.0)), pattern
    node = _finish(rng, paint, kind)
    return WORDS.get(name, name), {"type": "twosided", "bsdf": node}


def ground(rng: Rng, outdoor: bool, tiles: tuple[float, float], photos: Photos) -> tuple[str, Node]:
    """A name and the node of a material for a floor, a table, a wall or the ground."""
    pick = rng.random()
    base = colour(rng, muted=True)
    bright = max(base)
    grey, tone = rng.uniform(0.45 if outdoor else 0.25, 0.95), rng.uniform(0.2, 0.75)
    base = tuple(tone * (grey + (1 - grey) * c / bright) for c in base)
    if outdoor:
        names = ("speckled", "speckled", "speckled", "speckled", "tiles", "planks", "brick", "lawn")
    else:
        names = (
            "plain",
            "plain",
            "planks",
            "planks",
            "wood",
            "tiles",
            "speckled",
            "checker",
            "brick",
        )
    name = str(rng.choice(names))
    if name in ("planks", "wood"):
        base = tuple(
            linear(
                colorsys.hsv_to_rgb(
                    rng.uniform(0.05, 0.11), rng.uniform(0.2, 0.6), rng.uniform(0.3, 0.85)
                )
            )
        )
    if name == "lawn":
        base = tuple(
            linear(colorsys.hsv_to_rgb(rng.uniform(0.17, 0.3), 0.55, rng.uniform(0.25, 0.5)))
        )
    if not outdoor and pick < 0.12:
        paint: Colour | Texture = Texture(_crop(rng, photos).image, (tiles[0] / 3, tiles[1] / 3))
        name = "printed"
    elif name == "plain":
        paint = base
    else:
        paint = Texture(_pattern("speckled" if name == "lawn" else name, rng, base, 384), tiles)
    polished = not outdoor and rng.random() < 0.45
    if polished:
        node = (
            _finish(rng, paint, "plastic")
            if rng.random() < 0.5
            else {
                "type": "principled",
                "base_color": paint,
                "roughness": float(rng.uniform(0.25, 0.5)),
                "specular": 0.5,
            }
        )
    else:
        node = _finish(rng, paint, "matt")
    return WORDS.get(name, name), {"type": "twosided", "bsdf": node}
