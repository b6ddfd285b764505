"""Colour: from the samples of a picture to sRGB and back, and between the spaces of profiles.

Profiles are LittleCMS's business, through libvips: relative colorimetric with black point
compensation. It is exact for 8-bit samples but puts 16-bit ones through a coarse table, so levels
between those of 8 bits are interpolated here. Still, pictures are worked on in the space that they
are in, and only what comes from elsewhere is converted.

Sources: IEC 61966-2-1 (sRGB), ICC.1:2022 (7.2 header, 7.3 tag table).
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
from numpy.typing import NDArray

from inlay.pictures.arrays import (
    Image,
    from_levels,
    row_bands,
    samples_of,
    srgb_decode,
    srgb_encode,
    to_levels,
    vips_image,
)

# Luminance of linear sRGB under D50, the white of the profile connection space.
_LUMINANCE = np.array([0.2225045, 0.7168786, 0.0606169])
_SPACES = {b"GRAY": "L", b"RGB ": "RGB", b"CMYK": "CMYK"}
# Where a profile's tag table ends that has as many tags as any.
_TAGS = 2532


def to_srgb(samples: NDArray[Any], icc: bytes | None) -> Image:
    """Samples (h, w, C) of grey, RGB or CMYK to float32 (h, w, 3), sRGB in [0, 1].

    Without a profile RGB and grey are sRGB, and inks show (1 - cmy) (1 - k).
    """
    if icc is not None:
        return from_levels(_through(samples, icc, None))
    values = from_levels(samples)
    if values.shape[-1] == 4:
        return (1 - values[..., :3]) * (1 - values[..., 3:])
    return np.repeat(values, 3 // values.shape[-1], axis=-1)


def from_srgb(rgb: Image, kind: str, icc: bytes | None, depth: int) -> NDArray[Any]:
    """The inverse of `to_srgb` for samples of `kind` ("L", "RGB" or "CMYK") and 8 or 16 bits.

    Values outside [0, 1] are clipped, NaN becomes 0. Colour becomes grey by its luminance; inks
    have all grey as black.
    """
    if icc is not None:
        return to_levels(from_levels(_through(to_levels(rgb, 16), None, icc)), depth)
    if kind == "RGB":
        return to_levels(rgb, depth)
    values = np.clip(np.nan_to_num(rgb.astype(np.float64)), 0, 1)
    if kind == "L":
        light = srgb_decode(values) @ _LUMINANCE[:, None] / _LUMINANCE.sum()
        return to_levels(srgb_encode(light), depth)
    light = values.max(axis=-1, keepdims=True)
    inks = np.where(light > 0, 1 - values / np.maximum(light, 1e-12), 0)
    return to_levels(np.concatenate([inks, 1 - light], axis=-1), depth)


def convert(rgb: Image, source: bytes | None, target: bytes | None) -> Image:
    """Values (h, w, 3) in [0, 1] from one RGB or grey profile's space to another's; None is sRGB.

    Exact where the two are the same. Grey is three equal values.
    """
    if source == target:
        return rgb
    samples = to_levels(rgb, 16)[..., : 1 if _kind(source) == "L" else 3]
    values = from_levels(_through(samples, source, target))
    return np.repeat(values, 3 // values.shape[-1], axis=-1)


@lru_cache(maxsize=8)
def check_profile(icc: bytes, kind: str) -> str:
    """What a profile is for samples of `kind`: "srgb", "two-way" or "one-way".

    Published sRGB profiles are off by up to one level of 8 bits where one channel is 0 and others
    full; up to 1.5 levels it is sRGB. Raises ValueError where the profile cannot be used.
    """
    if icc[36:40] != b"acsp":
        raise ValueError("it is not an ICC profile")
    if _kind(icc) != kind:
        raise ValueError("it is for another kind of colours")
    grid = _grid(18, len(kind)).astype(np.uint8)
    try:
        shown = _exactly(grid, icc, None)
    except pyvips.Error:
        raise ValueError("it is damaged") from None
    if kind == "RGB" and np.abs(shown / 257 - grid).max() < 1.5:
        return "srgb"
    try:
        _exactly(grid[..., :1].repeat(3, axis=-1), None, icc)
    except pyvips.Error:
        return "one-way"
    return "two-way"


def _grid(steps: int, channels: int) -> NDArray[Any]:
    """All colours (1, n, channels) that have evenly spaced levels between 0 and 255."""
    levels = np.linspace(0, 255, steps)
    axes = np.meshgrid(*[levels] * channels, indexing="ij")
    return np.stack(axes, axis=-1).reshape(1, -1, channels)


@lru_cache(maxsize=2)
def _inverse(icc: bytes) -> Any:
    """A function from sRGB (..., 3) in [0, 1] back to samples, in [0, 1], of a one-way profile:
    linear between what it makes of a grid, the nearest of those beyond. Inks have grey as black.
    """
    from scipy import interpolate

    channels = len(_kind(icc))
    own = _grid(256 if channels == 1 else 18, channels)[0]
    if channels == 4:
        own = own[own[:, :3].min(-1) == 0]
    shown = _exactly(own[None].astype(np.uint8), icc, None)[0] / 65535
    nodes = _grid(33, 3)[0] / 255
    table = interpolate.NearestNDInterpolator(shown, own / 255)(nodes)
    # All colours may lie on a line.
    with suppress(RuntimeError):
        between = interpolate.LinearNDInterpolator(shown, own / 255)(nodes)
        table = np.where(np.isnan(between), table, between)
    axes = [np.linspace(0, 1, 33)] * 3
    return interpolate.RegularGridInterpolator(axes, table.reshape(33, 33, 33, channels))


def _kind(icc: bytes | None) -> str:
    return "RGB" if icc is None else _SPACES.get(icc[16:20], "")


def _through(samples: NDArray[Any], source: bytes | None, target: bytes | None) -> NDArray[Any]:
    """Samples (h, w, C) of one profile as 16-bit samples of another; raises pyvips.Error."""
    if target is not None and check_profile(target, _kind(target)) == "one-way":
        return to_levels(_inverse(target)(from_levels(_through(samples, source, None))), 16)
    if samples.dtype == np.uint8:
        return _exactly(samples, source, target)
    parts = []
    for rows in row_bands(*samples.shape[:2]):
        below = (samples[rows] // 257).astype(np.uint8)
        share = samples[rows] / np.float32(257) - below
        first = _exactly(below, source, target).astype(np.float32)
        between = first.copy()
        for channel in range(samples.shape[2]):
            above = below.copy()
            above[..., channel] += above[..., channel] < 255
            step = _exactly(above, source, target) - first
            between += step * share[..., channel, None]
        parts.append(to_levels(between / 65535, 16))
    return np.concatenate(parts)


def _exactly(levels: NDArray[Any], source: bytes | None, target: bytes | None) -> NDArray[Any]:
    """`_through` for 8-bit samples, by libvips."""
    image = vips_image(levels, _kind(source))
    if source is not None:
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", source)
    with tempfile.TemporaryDirectory() as folder:
        into = "srgb"
        if target is not None:
            Path(into := f"{folder}/own.icc").write_bytes(target)
        given = {"input_profile": "srgb"} if source is None else {"embedded": True}
        intent = _intent(source, b"A2B") if target is None else _intent(target, b"B2A")
        options = {"intent": intent, "black_point_compensation": True, "depth": 16, **given}
        samples = samples_of(image.icc_transform(into, **options))
    return samples.reshape(*levels.shape[:2], -1)


def _intent(icc: bytes | None, tables: bytes) -> str:
    """libvips takes no other intent's tables in place of missing ones."""
    tags = (icc or b"")[128:_TAGS]
    return "perceptual" if tables + b"0" in tags and tables + b"1" not in tags else "relative"
