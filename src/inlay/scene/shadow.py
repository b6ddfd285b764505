"""The shadow that a subject gives what lies below it, at its contact with the ground or cast.

A shadow is a darkness from 0 to below 1 on a box, (h, w, 1) or (h, w, 3): by so much the linear
light there is less. It is found on a reduced window and enlarged smoothly; the subject's own rim
stays as sharp as its alpha. Beyond a finite reach it is 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, WithJsonSchema

from inlay.errors import InputError, show
from inlay.pictures.arrays import (
    FAINT,
    Box,
    Image,
    blur,
    bounds,
    extend,
    resize,
    row_bands,
    smoothstep,
    srgb_decode,
    srgb_encode,
)
from inlay.pictures.colour import convert
from inlay.pictures.picture import Picture
from inlay.scene.network import CALM, MULTIPLE, Layers, load_layers
from inlay.scene.network import shadow as network
from inlay.scene.stitch import Layer, Scene, Window, write
from inlay.settings import Form, checked

# The longer side of the reduced window, in pixels; a darkness below this is none.
_SIDE, _FAINT = 384, 0.006
# Contact: what of the lower outline is no higher above the ground touches it, in heights of the
# subject; how dark it is, and its width and height in units of the root of the subject's area, of a
# narrow shadow and a wide one.
_TOUCHING = 0.32
_NARROW, _WIDE = (0.9, 0.06, 0.02), (0.6, 0.25, 0.1)
# Cast: its darkness, and how much of that is left at its far end; its blur there in the same units,
# that at its foot over it, and its height over its width.
_CAST, _FAR, _BLUR, _SHARP, _SQUASH = 0.45, 0.35, 0.09, 0.12, 0.6
# So many blurs stand for all; the least height of a cast shadow, over its length: a plane that is
# seen from its edge has none.
_LEVELS, _FLATTEST = 5, 0.12
# What the network sees round a subject, in units of its longer side; the share of that window at
# each side over which what it says fades out; from where to where it is sure of a ground.
_CONTEXT, _FADE, _STANDING = 0.5, 0.12, (0.3, 0.7)
# Beside a subject's upper part, from one height over the ground to another in units of its own, so
# much less is believed of what the network says: as a glow round the outline it is no shadow.
_GLOW = 0.45, 0.85, 0.75
# The longer side of what it reads, in pixels; fewer stops than these are no shadow.
_SEEN, _UNSEEN = 96, 0.015
# How much of a contact shadow is added to what it says, which is softer there.
_ADDED = 0.85

# What a shadow falls on.
Ground = Literal["all", "picture", "subjects"]


class Shadow(Form):
    """The shadow of a request's subjects.

    kind: auto (our network's, where it sees something stand), none, contact (soft and dark below
    what touches the ground) or cast (the silhouette too, as light throws it). softness is a factor
    on every blur, opacity one on the darkness. ground: the y of the line that the subject stands
    on, in pixels of the picture; None is its lower edge. For cast alone: direction, in degrees in
    the picture's plane, counter-clockwise from the right, and length, over the subject's height.
    """

    kind: Literal["auto", "none", "contact", "cast"] = "auto"
    direction: float = Field(20.0, ge=-360, le=360)
    length: float = Field(0.5, ge=0, le=5)
    softness: float = Field(1.0, ge=0, le=5)
    opacity: float = Field(1.0, ge=0, le=1)
    ground: float | None = Field(None, ge=-1e6, le=1e6)


def as_shadow(value: Any, name: str) -> Shadow:
    """A Shadow from its kind alone, from "cast,length=0.5", or from a mapping; None is auto."""
    if isinstance(value, str):
        kind, *more = (part.strip() for part in value.split(","))
        pairs = (part.partition("=") for part in more)
        value = {"kind": kind, **{key.strip(): text.strip() for key, _, text in pairs}}
    if not isinstance(value, Shadow | Mapping | None):
        raise InputError(f"{name} is {show(value)}; expected auto, none, contact or cast.")
    try:
        return value if isinstance(value, Shadow) else Shadow(**(value or {}))
    except InputError as error:
        raise InputError(f"{name} {error}") from None


_WORD = {"type": "string", "title": "its kind, with KEY=VALUE after commas"}
ShadowField = Annotated[
    Shadow, checked(as_shadow), WithJsonSchema({"anyOf": [_WORD, Shadow.model_json_schema()]})
]


def shade(
    picture: Picture, layers: Sequence[Layer], number: int, shadow: Shadow, on: Ground = "all"
) -> tuple[Picture, Box, Image] | None:
    """The picture with the shadow of one of some layers; a box round what is darker, and the mask
    (h, w) of that, 0 or 1, in it.

    The layers lie in the picture, later ones over earlier ones. The shadow falls on all that is
    below its own layer, never on that or on those over it; or on "subjects" there alone; or on the
    "picture" in which none of them lies yet. Where a picture is clear it stays so. None where there
    is no shadow.
    """
    if (found := darkness(picture, layers[number], shadow, laid=on != "picture")) is None:
        return None
    box, dark = found
    free = _uncovered([] if on == "picture" else layers[number:], box)
    below = _uncovered(layers[:number], box) if on == "subjects" else None
    samples, mask = picture.crop(box).copy(), np.zeros(free.shape, np.bool_)
    part = replace(picture, base=samples, patches=())
    for rows in row_bands(*free.shape):
        band = Box(0, rows.start, box.width, rows.stop - rows.start)
        was, under, share = part.colours(band), part.alpha(band), free[rows]
        if under is not None:
            # The share of what is seen there that does not belong to them; alpha is rounded.
            rest = under - 1 + share
            share = np.where(rest > FAINT, rest / np.maximum(under, FAINT), 0)
        if below is not None:
            share = share * (1 - below[rows])
        mask[rows] = share * (dark[rows] @ np.ones(dark.shape[-1], np.float32)) > 0
        less = darkened(was, dark[rows], picture.space) - was
        write(picture, samples[rows], was + share[..., None] * less, was, mask[rows], under)
    if (inner := bounds(mask)) is None:
        return None
    near = inner.shifted(box.x, box.y)
    return picture.patched(near, samples[inner.slices]), near, mask[inner.slices].astype(np.float32)


def darkened(colours: Image, dark: Image, space: bytes | None) -> Image:
    """Colours (..., 3) in the space of a profile with so much less light; None is sRGB."""
    if space is None:
        # On the straight part of its curve less light is less of the value, above it less of that
        # and 0.055; few pixels go from one to the other.
        made = (colours + 0.055) * np.exp(np.log1p(-dark) / 2.4) - 0.055
        straight = colours <= 0.04045
        between = (made <= 0.04045) & ~straight
        made = np.where(straight, colours * (1 - dark), made)
        share = 1 - np.broadcast_to(dark, made.shape)[between]
        made[between] = srgb_encode(srgb_decode(colours[between]) * share)
        return np.asarray(made, np.float32)
    # The space's own curve, along its greys.
    steps = np.linspace(0, 1, 1025, dtype=np.float32)
    greys = np.repeat(steps[None, :, None], 3, axis=-1)
    light = np.maximum.accumulate(srgb_decode(convert(greys, space, None))[0].mean(-1))
    linear = np.interp(colours, steps, light) * (1 - dark)
    return np.asarray(np.interp(linear, light, steps), np.float32)


def _uncovered(layers: Sequence[Layer], box: Box) -> Image:
    """How much of each pixel of a box no layer covers, (h, w)."""
    free = np.ones((box.height, box.width), np.float32)
    for layer in layers:
        if (part := layer.box.intersect(box)) is not None:
            own = layer.alpha[part.shifted(-layer.box.x, -layer.box.y).slices]
            free[part.shifted(-box.x, -box.y).slices] *= 1 - own
    return free


def darkness(
    picture: Picture, layer: Layer, shadow: Shadow, laid: bool = False
) -> tuple[Box, Image] | None:
    """The box in which a layer's shadow on a picture lies, and that, (h, w, 1) or (h, w, 3).

    It runs on below the layer, which the picture shows if it is `laid`. None where there is none:
    a concept has no outline yet, and what the picture cuts off below stands on nothing in it.
    """
    ground = layer.box.bottom if shadow.ground is None else shadow.ground
    if shadow.kind == "none" or layer.concept is not None:
        return None
    if shadow.kind == "auto":
        room, dark = _predicted(picture, layer, ground, laid)
    elif shadow.ground is None and ground >= picture.height:
        return None
    else:
        room, dark = _drawn(picture.size, layer, ground, shadow)
    dark = np.asarray(np.maximum(shadow.opacity * dark - _FAINT, 0) / (1 - _FAINT), np.float32)
    dark = resize(dark, (room.height, room.width)).reshape(room.height, room.width, -1)
    np.clip(dark, 0, 1 - _FAINT, out=dark)
    # Quicker than a largest: a sum of what is never below 0.
    near = bounds(dark @ np.ones(dark.shape[-1], np.float32), 0)
    return None if near is None else (near.shifted(room.x, room.y), dark[near.slices])


def _drawn(size: tuple[int, int], layer: Layer, ground: float, shadow: Shadow) -> tuple[Box, Image]:
    """A contact shadow or a cast one, reduced, in a picture of (width, height), and its box."""
    unit = float(np.sqrt(layer.alpha.sum())) * shadow.softness
    length, angle = shadow.length, math.radians(shadow.direction)
    across, down = length * math.cos(angle), -length * math.sin(angle)
    down = math.copysign(max(abs(down), _FLATTEST * length, 1e-3), down)
    box, tall = layer.box, max(ground - layer.box.y, 0)
    if shadow.kind == "cast":
        tip = box.x + across * tall, ground + down * tall, box.width, 1
        box = box.hull(Box(*tip))  # type: ignore[arg-type]
    room = box.grown(math.ceil(2.8 * unit * _WIDE[1]) + 2).intersect(Box.of_size(size)) or layer.box
    scale = min(1.0, _SIDE / max(room.width, room.height))
    shape = max(1, round(room.height * scale)), max(1, round(room.width * scale))
    alpha = np.clip(resize(1 - _uncovered([layer], room), shape), 0, 1)
    foot, unit = (ground - room.y) * scale, unit * scale
    dark = contact(alpha, foot, unit)
    if shadow.kind == "cast":
        dark = 1 - (1 - dark) * (1 - cast(alpha, foot, unit, across, down))
    return room, dark


def contact(alpha: Image, foot: float, unit: float) -> Image:
    """Ambient occlusion where an alpha (h, w) touches the ground, whose line is y = foot: (h, w).

    The lower outline, as far as it lies near that line, is the front of a footprint; that is as
    dark as it is, blurred narrowly and widely (`unit` pixels is what they are in units of).
    """
    solid = alpha > 0.5
    if not solid.any():
        return np.zeros_like(alpha)
    rows = np.arange(len(alpha), dtype=np.float32)[:, None] + 0.5
    tall = max(foot - int(solid.any(1).argmax()), 1.0)
    lowest = np.minimum(len(alpha) - solid[::-1].argmax(0), foot)
    touches = solid.any(0) * smoothstep(1 - (foot - lowest) / (_TOUCHING * tall))
    light = np.ones_like(alpha)
    for strength, across, down in (_NARROW, _WIDE):
        behind = np.clip(lowest + 0.5 - rows, 0, 1) * (rows > lowest - max(2.5 * down * unit, 1))
        print_ = (behind * touches).astype(np.float32)
        soft = blur(print_, max(across * unit, 0.3), down=max(down * unit, 0.3))
        light *= 1 - strength * np.minimum(2 * soft, 1)
    return 1 - light


def cast(alpha: Image, foot: float, unit: float, across: float, down: float) -> Image:
    """The silhouette laid on the ground whose line is y = foot, each point by its height times
    (across, down) from its foot; paler and softer the higher that is: (h, w).
    """
    import cv2

    height, width = alpha.shape
    rows = np.arange(height, dtype=np.float32) + 0.5
    upright = alpha * (rows < foot)[:, None]
    if not (upright > 0.5).any():
        return np.zeros_like(alpha)
    line, lean = foot - 0.5, across / down
    matrix = np.array([[1, -lean, lean * line], [0, -1 / down, line + line / down]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    flat = np.asarray(cv2.warpAffine(upright, matrix, (width, height), flags=flags), np.float32)
    tall = foot - int((upright > 0.5).any(1).argmax())
    share = np.clip((rows - foot) / (down * tall), 0, 1)
    dark = np.zeros_like(alpha)
    for level in range(_LEVELS):
        at = level / (_LEVELS - 1)
        sigma = max(unit * _BLUR * (_SHARP + (1 - _SHARP) * at), 0.5)
        weight = np.clip(1 - np.abs(share - at) * (_LEVELS - 1), 0, 1)
        dark += weight[:, None] * blur(flat, sigma, down=sigma * _SQUASH)
    return np.asarray(dark * (_CAST * (1 - (1 - _FAR) * share))[:, None], np.float32)


def predict_shadow(rgb: Image, alpha: Image, net: Layers | None = None) -> tuple[Image, float]:
    """Which share of its linear light each pixel keeps, (h, w, 3) in (0, 1], and the probability
    that the object touches anything, by our own network (inlay.scene.network).

    rgb (h, w, 3) is the window in sRGB with the object in it, alpha (h, w) the object's. The shares
    are meant for what lies round the object.
    """
    import cv2

    scale = _SEEN / max(alpha.shape)
    height, width = (max(1, round(v * scale / MULTIPLE)) * MULTIPLE for v in alpha.shape)
    small = np.dstack([resize(v, (height, width)) for v in (np.clip(rgb, 0, 1), alpha)])
    both = np.stack([small, small[:, ::-1]]).transpose(0, 3, 1, 2)
    maps, touches = network(net or load_layers(network), both)
    # The mean of the answers as it is and mirrored, in stops.
    darker = np.logaddexp(0, (maps[0] + maps[1, :, :, ::-1]) / 2 - CALM)
    # A shadow that cannot be seen is none.
    darker *= np.clip((darker - _UNSEEN) / _UNSEEN, 0, 1)
    large = cv2.resize(darker.transpose(1, 2, 0), alpha.shape[::-1])
    return np.exp2(-np.asarray(large, np.float32)), float((1 + np.tanh(touches.mean() / 2)) / 2)


def _predicted(picture: Picture, layer: Layer, ground: float, laid: bool) -> tuple[Box, Image]:
    """What the network says, (h, w, 3), reduced, and of which box; none of what does not stand.

    Some of a contact shadow on the ground line is added.
    """
    window = Window.of(picture, Scene(layer.region, None if laid else layer), _CONTEXT)
    box, scale = window.box, min(1.0, _SIDE / max(window.shape))
    shape = max(1, round(box.height * scale)), max(1, round(box.width * scale))
    rgb, alpha = (np.clip(resize(v, shape), 0, 1) for v in (window.pasted, window.alpha))
    if window.space is not None:
        rgb = convert(rgb, window.space, None)
    factor, standing = predict_shadow(rgb, alpha)
    free = alpha < 0.5
    dark = extend(1 - factor, free) if free.any() else np.zeros_like(rgb)
    start, end, less = _GLOW
    rows, tall = np.arange(shape[0], dtype=np.float32) + 0.5, max(ground - layer.box.y, 1) * scale
    up = ((ground - box.y) * scale - rows) / tall
    dark *= (1 - less * smoothstep((up - start) / (end - start)))[:, None, None]
    if ground < picture.height:
        unit = float(np.sqrt(layer.alpha.sum())) * scale
        dark = 1 - (1 - dark) * (
            1 - _ADDED * contact(alpha, (ground - box.y) * scale, unit)[..., None]
        )
    low, high = _STANDING
    dark *= smoothstep(np.full((1, 1, 1), (standing - low) / (high - low), np.float32))
    dark *= _fade(box.y, box.bottom, picture.height, shape[0])[:, None, None]
    return box, dark * _fade(box.x, box.right, picture.width, shape[1])[:, None]


def _fade(start: int, end: int, whole: int, count: int) -> Image:
    """A weight (count,) from start to end that falls to 0 there, where that is no border."""
    away = (np.arange(count, dtype=np.float32) + 0.5) / (_FADE * count)
    first, last = (1 if start <= 0 else away), (1 if end >= whole else away[::-1])
    return smoothstep(np.minimum(first, last) * np.ones_like(away))
