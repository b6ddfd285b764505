"""Known changes of light and tone: what an object looks like that was lit or developed otherwise.

disturb_object() is what the benchmark of harmonization deals, draw_sample() what a harmonizer
learns to undo. Light is changed in linear light, as a lamp or a camera would change it, within the
bounds of _parameters(). A lamp moves along the Planckian locus from 6504 K, by Bradford's
adaptation; "mixed" is two or three of the others in a drawn order, each at 0.7 of its strength.
Training alone deals "contrast", and a second change that only a part of the object shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from inlay.errors import InputError
from inlay.learning.samples import random_crop, random_mask
from inlay.pictures.arrays import blur, bounds, from_levels, luma, srgb_decode, srgb_encode
from inlay.training.objects import ObjectCache, move_object, widen

Rng = np.random.Generator
Image = NDArray[np.uint8]
Mask = NDArray[np.float32]
Floats = NDArray[np.float64]

_SINGLE = ("gain", "exposure", "temperature", "saturation", "gamma")
KINDS = (*_SINGLE, "mixed")
TRAINED = (*KINDS, "contrast")
_CHANNELS = ("red", "green", "blue")

# Rows of IEC 61966-2-1's matrix from linear sRGB to XYZ under D65.
_SRGB_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_DAYLIGHT = 6504.0
_MIXED = 0.7
_LEVELS = srgb_decode(np.arange(256) / 255)
# Least and largest share of a crop that an object takes, and how often another crop is tried.
_SHARE = (0.03, 0.6)
_TRIES = 4


@dataclass(frozen=True)
class Change:
    """One change: its kind (any but "mixed") and its parameters.

    gain: red, green, blue in stops; exposure: stops; temperature: kelvin and tint in stops of
    green; saturation: factor; gamma: exponent; contrast: red, green, blue, the logarithm to 2 of
    how steep a curve through the middle of the sRGB values is.
    """

    kind: str
    parameters: Mapping[str, float]


def draw(kind: str, rng: Rng, strength: float = 1.0) -> list[Change]:
    """Draw a change of a kind; several for "mixed".

    strength in (0, 1] scales the ranges of _parameters() (the logarithms of the factors).
    Raises InputError for an unknown kind or a strength out of bounds.
    """
    if kind not in TRAINED:
        raise InputError(f"disturbance {kind!r} is unknown; known are {', '.join(TRAINED)}.")
    if not 0 < strength <= 1:
        raise InputError(f"strength is {strength}; expected a number above 0 and at most 1.")
    if kind == "mixed":
        names = rng.permutation(_SINGLE)[: int(rng.integers(2, 4))]
        return [change for name in names for change in draw(str(name), rng, _MIXED * strength)]
    return [Change(kind, _parameters(kind, rng, strength))]


def _either_side(rng: Rng, least: float, most: float) -> float:
    return float(rng.uniform(least, most)) * (1 if rng.random() < 0.5 else -1)


def _parameters(kind: str, rng: Rng, strength: float) -> dict[str, float]:
    """What is drawn for a single kind, see Change."""
    if kind == "contrast":
        stops = _either_side(rng, 0.2, 0.7) + rng.uniform(-0.2, 0.2, 3)
        return dict(zip(_CHANNELS, (strength * stops).tolist(), strict=True))
    if kind == "gain":
        stops = rng.uniform(-1.0, 1.0, 3)
        # A change that cannot be seen is none.
        if np.abs(stops).max() < 0.4:
            stops *= 0.4 / np.abs(stops).max()
        return dict(zip(_CHANNELS, (strength * stops).tolist(), strict=True))
    if kind == "exposure":
        return {"stops": strength * _either_side(rng, 0.35, 1.1)}
    if kind == "temperature":
        mired = float(rng.uniform(40, 120) if rng.random() < 0.5 else -rng.uniform(35, 85))
        kelvin = 1e6 / (1e6 / _DAYLIGHT + strength * mired)
        return {"kelvin": kelvin, "tint": strength * float(rng.uniform(-0.12, 0.12))}
    if kind == "saturation":
        power = float(rng.uniform(0.5, 1.1) if rng.random() < 0.5 else -rng.uniform(0.7, 1.5))
        return {"factor": 2.0 ** (strength * power)}
    return {"exponent": 2.0 ** (strength * _either_side(rng, 0.15, 0.5))}


def disturb(picture: Image, changes: Sequence[Change]) -> Floats:
    """A picture, uint8 (..., 3) sRGB, after the changes in their order; float64 in [0, 1], sRGB.

    What leaves [0, 1] is clipped after each change, as a file between two programs would be, but
    not rounded.
    """
    linear = _LEVELS[picture]
    for change in changes:
        linear = np.clip(_change(linear, change), 0, 1)
    return srgb_encode(linear)


def _change(linear: Floats, change: Change) -> Floats:
    values = change.parameters
    channels = [values.get(name, 0.0) for name in _CHANNELS]
    if change.kind == "gain":
        return linear * np.exp2(channels)
    if change.kind == "exposure":
        return np.asarray(linear * 2.0 ** values["stops"], np.float64)
    if change.kind == "temperature":
        return linear @ _lamp(values["kelvin"], values["tint"]).T
    if change.kind == "saturation":
        grey = linear @ _SRGB_TO_XYZ[1][:, None]
        return np.asarray(grey + values["factor"] * (linear - grey), np.float64)
    if change.kind == "gamma":
        return srgb_decode(srgb_encode(linear) ** values["exponent"])
    if change.kind == "contrast":
        light, dark = (
            x ** np.exp2(channels) for x in (srgb_encode(linear), 1 - srgb_encode(linear))
        )
        return srgb_decode(light / (light + dark))
    raise InputError(f"disturbance {change.kind!r} is unknown; known are {', '.join(TRAINED)}.")


def _lamp(kelvin: float, tint: float) -> Floats:
    """The matrix on linear sRGB that moves the lamp from daylight; a white keeps its luminance.
    Adaptation after Lam 1985 (Bradford), on the chromaticities of the Planckian locus.
    """
    there, here = (_BRADFORD @ _planck(k) for k in (kelvin, _DAYLIGHT))
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(there / here) @ _BRADFORD
    matrix = np.linalg.inv(_SRGB_TO_XYZ) @ adapted @ _SRGB_TO_XYZ
    matrix = np.diag([1.0, 2.0**tint, 1.0]) @ matrix
    return np.asarray(matrix / (_SRGB_TO_XYZ[1] @ matrix.sum(axis=1)), np.float64)


def _planck(kelvin: float) -> Floats:
    """XYZ (Y = 1) of a black body of 1000 to 15000 K, by Krystek's rational functions (1985)."""
    t, square = kelvin, kelvin**2
    u = 0.860117757 + 1.54118254e-4 * t + 1.28641212e-7 * square
    v = 0.317398726 + 4.22806245e-5 * t + 4.20481691e-8 * square
    u /= 1 + 8.42420235e-4 * t + 7.08145163e-7 * square
    v /= 1 - 2.89741816e-5 * t + 1.61456053e-7 * square
    # From the UCS of 1960: x = 3u / d, y = 2v / d, d = 2u - 8v + 4.
    return np.array([1.5 * u / v, 1.0, (4 - u - 10 * v) / (2 * v)])


def disturb_object(truth: Image, mask: Mask, changes: Sequence[Change]) -> Image:
    """The photograph with the masked part disturbed, rounded to 8 bits.

    truth is uint8 (h, w, 3), mask float32 (h, w) in [0, 1]. Edges are blended in sRGB values, as
    every program pastes; where the mask is 0 no byte changes.
    """
    rows, columns = np.nonzero(mask > 0)
    result = truth.copy()
    share = mask[rows, columns, None].astype(np.float64)
    before = truth[rows, columns]
    after = before + share * (255 * disturb(before, changes) - before)
    result[rows, columns] = np.floor(after + 0.5).astype(np.uint8)
    return result


class Policy(BaseModel):
    """How samples are made."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    kinds: tuple[str, ...] = Field(TRAINED, description="of disturbance, drawn alike")
    least_strength: float = Field(0.3, gt=0, le=1, description="of a disturbance; the most is 1")
    undisturbed_share: float = Field(0.1, ge=0, lt=1)
    """share whose object is left as it was"""
    uneven_share: float = Field(0.3, ge=0, le=1)
    """share with a second change, of one side of the object or of its dark parts alone"""
    geometry: float = Field(0.0, ge=0, le=1)
    """share whose object is cut out, moved and blurred, too, with an erased ring round it"""
    window_share: float = Field(0.7, ge=0, le=1)
    """share of objects seen as in use, in a window round them; the others in any crop"""
    whole_picture_augmentation: float = Field(0.5, ge=0, le=1)
    """share recoloured as a whole before the object is disturbed"""
    blob_share: float = Field(0.1, ge=0, le=1)
    """share of random shapes in place of whole objects"""
    mask_jitter: float = Field(0.02, ge=0, le=0.2)
    """how far masks are off, in picture sizes"""

    @field_validator("kinds")
    @classmethod
    def _known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if not kinds or any(kind not in TRAINED for kind in kinds):
            raise ValueError(f"expected some of {', '.join(TRAINED)}")
        return kinds

    def plain(self) -> Policy:
        """Whole objects, all disturbed, their pictures and masks as they are."""
        none = ("undisturbed_share", "uneven_share", "geometry", "whole_picture_augmentation")
        return self.model_copy(update=dict.fromkeys((*none, "blob_share", "mask_jitter"), 0.0))


@dataclass(frozen=True, eq=False)
class Sample:
    """truth and pasted, uint8 (h, w, 3) sRGB; mask and region, float32 (h, w) in [0, 1]; caption.

    pasted differs from truth only where the region is above 0: the object's mask, and where the
    object was moved the ring round it. The caption is empty where the truth was recoloured, as it
    may name a colour.
    """

    truth: Image
    mask: Mask
    pasted: Image
    region: Mask
    caption: str


def draw_sample(
    picture: Image,
    caption: str,
    cache: ObjectCache,
    size: tuple[int, int],
    policy: Policy,
    rng: Rng,
) -> Sample:
    """A sample of (height, width), cut from a picture (H, W, 3 or 4). A fourth channel is the
    picture's object, else `cache` knows where objects are.
    """
    truth, shape = _cut(picture, cache, size, policy, rng)
    if rng.random() < policy.whole_picture_augmentation:
        truth, caption = _restyle(truth, rng), ""
    mask = jitter(shape, policy.mask_jitter, rng)
    pasted, region = truth, mask
    if rng.random() >= policy.undisturbed_share:
        kind, strength = str(rng.choice(policy.kinds)), rng.uniform(policy.least_strength, 1, 2)
        pasted = disturb_object(truth, mask, draw(kind, rng, float(strength[0])))
        if rng.random() < policy.uneven_share:
            second = draw(str(rng.choice(policy.kinds)), rng, 0.7 * float(strength[1]))
            pasted = disturb_object(pasted, mask * _part(truth, mask, rng), second)
    if rng.random() < policy.geometry:
        pasted, mask, region = move_object(truth, pasted, mask, rng)
    return Sample(truth, mask, pasted, region, caption)


def _part(truth: Image, mask: Mask, rng: Rng) -> Mask:
    """What a second light reaches of an object, (h, w) in [0, 1]: one side, or the dark parts."""
    if rng.random() < 0.5:
        return np.asarray((1 - luma(from_levels(truth))) ** 2, np.float32)
    y, x = np.indices(mask.shape, np.float32)
    angle = rng.uniform(-np.pi, np.pi)
    way = np.asarray(np.cos(angle) * x + np.sin(angle) * y)
    inside = way[mask >= mask.max() / 2]
    ramp = 0.5 + (way - inside.mean()) / (3.6 * max(inside.std(), 1.0))
    return np.asarray(np.clip(ramp, 0, 1), np.float32)


def _cut(
    picture: Image, cache: ObjectCache, size: tuple[int, int], policy: Policy, rng: Rng
) -> tuple[Image, NDArray[np.bool_]]:
    """A crop and what of it is the object; a random shape where crops show none."""
    objects = [] if rng.random() < policy.blob_share else cache.of(picture)
    picture = np.ascontiguousarray(picture[..., :3])
    for _ in range(_TRIES if objects else 0):
        chosen = objects[int(rng.integers(len(objects)))]
        near = bounds(chosen, 127) if rng.random() < policy.window_share else None
        both = random_crop(np.dstack([picture, chosen]), size, rng, near)
        shape = both[..., 3] > 127
        if _SHARE[0] <= shape.mean() <= _SHARE[1]:
            return np.ascontiguousarray(both[..., :3]), shape
    crop = random_crop(picture, size, rng)
    while True:
        shape = random_mask(max(size), rng)[: size[0], : size[1]] > 0.5
        if _SHARE[0] <= shape.mean() <= _SHARE[1]:
            return crop, shape


def _restyle(picture: Image, rng: Rng) -> Image:
    """A picture (H, W, 3) under another light, in other colours and with another tone, as a whole.
    What is usual for an object then says nothing about its light: its surroundings have to.
    """
    lit = srgb_decode(disturb(picture, draw("mixed", rng)))
    colours = np.clip(lit @ _palette(rng).T, 0, 1)
    return np.asarray(np.floor(255 * srgb_encode(colours) + 0.5), np.uint8)


def _palette(rng: Rng) -> NDArray[np.float64]:
    """A matrix on linear sRGB that turns hues and mixes channels a little; greys stay as they are.

    The hue is turned about the grey axis (Rodrigues), half of the time by a little, else by any
    angle.
    """
    angle = rng.normal(0, 0.3) if rng.random() < 0.5 else rng.uniform(-np.pi, np.pi)
    turn, _ = cv2.Rodrigues(np.full(3, angle * 3**-0.5))
    mix = np.eye(3) + rng.normal(0, 0.08, (3, 3))
    mix /= mix.sum(axis=1, keepdims=True)
    return np.asarray(mix @ turn, np.float64)


def jitter(shape: NDArray[np.bool_], most: float, rng: Rng) -> Mask:
    """A mask (S, S) of a shape made wider or narrower by up to `most` picture sizes, its edge soft.
    As masks come from people and from segmentation: not to the pixel. On the levels of 8 bits.
    """
    mask = shape.astype(np.float32)
    side = max(shape.shape)
    reach = round(float(rng.uniform(-most, most)) * side)
    sigma = float(rng.uniform(0, most / 2)) * side
    changed = widen(mask, reach)
    # A thin thing does not vanish.
    mask = changed if changed.sum() > mask.sum() / 2 else mask
    if sigma > 0.3:
        mask = blur(mask, sigma, mirror=True)
    return np.asarray(np.round(mask * 255) / 255, np.float32)
