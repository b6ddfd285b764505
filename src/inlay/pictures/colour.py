"""ICC profiles: a picture's own samples to sRGB and back.

Profiles made of a 3 x 3 matrix and three curves, and grey ones made of one curve, are evaluated
here in float64: libvips passes through 16-bit Lab, which shifts 16-bit samples by hundreds of
levels. Profiles made of tables (printers' CMYK, some scanners) go through libvips in 16 bits.

Measured (tests/pictures/test_colour.py): `from_srgb(to_srgb(x))` is x itself in 16 bits for matrix
and grey profiles where sRGB holds the colour, and within 1 of 255 of LittleCMS; tables are within 1
of 255 of LittleCMS.

The intent is relative colorimetric with black point compensation. Sources: ICC.1:2022 (7.2 header,
7.3 tag table, 10.6 curveType, 10.18 parametricCurveType, 10.31 XYZType, F.2 and F.3 models), IEC
61966-2-1 (sRGB).
"""

from __future__ import annotations

import logging
import struct
import tempfile
from abc import ABC, abstractmethod
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
from numpy.typing import NDArray

from inlay.pictures.arrays import from_levels, row_bands, samples_of, to_levels, vips_image

# One thread and nothing kept: a picture is decoded row by row and never asked for twice.
pyvips.concurrency_set(1)
pyvips.cache_set_max(0)
# What is wrong with a file is said by an error of ours.
logging.getLogger("pyvips").setLevel(logging.ERROR)

Samples = NDArray[Any]
Floats = NDArray[np.float64]

# Linear sRGB to XYZ under D50, the profile connection space (Bradford-adapted IEC 61966-2-1).
_SRGB_TO_XYZ = np.array(
    [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
)
_SPACES = {b"GRAY": "L", b"RGB ": "RGB", b"CMYK": "CMYK"}
# A curve is sampled at every 16-bit level.
_STEPS = 65536
_MAX_TAGS = 200
# Numbers in a parametric curve, by its function type.
_PARAMETERS = {0: 1, 1: 3, 2: 4, 3: 5, 4: 7}


def srgb_encode(linear: NDArray[Any]) -> NDArray[Any]:
    """Linear light in [0, 1] to sRGB values (IEC 61966-2-1), of any shape; floats stay as deep."""
    curved = 1.055 * np.power(linear, 1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, linear * 12.92, curved)


def srgb_decode(values: NDArray[Any]) -> NDArray[Any]:
    """Inverse of srgb_encode(): sRGB values in [0, 1] to linear light; floats stay as deep."""
    curved = np.power((values + 0.055) / 1.055, 2.4)
    return np.where(values <= 0.04045, values / 12.92, curved)


def _top(samples: Samples) -> int:
    return int(np.iinfo(samples.dtype).max)


class Conversion(ABC):
    """Between samples of one kind and sRGB.

    `two_way` is False where a profile has no way back.
    """

    two_way = True

    def to_srgb(self, samples: Samples) -> NDArray[np.float32]:
        """uint8 or uint16 (h, w) or (h, w, C) to float32 (h, w, 3) in [0, 1]."""
        rgb = np.empty((*samples.shape[:2], 3), np.float32)
        for rows in row_bands(*samples.shape[:2]):
            rgb[rows] = np.clip(self._forward(samples[rows]), 0, 1)
        return rgb

    def from_srgb(self, rgb: NDArray[np.float32], depth: int) -> Samples:
        """Float (h, w, 3) to samples (h, w) or (h, w, C) of `depth` 8 or 16 bits, rounded.

        Values outside [0, 1] are clipped; NaN becomes 0.
        """
        parts = []
        for rows in row_bands(*rgb.shape[:2]):
            known = np.clip(np.nan_to_num(rgb[rows].astype(np.float64)), 0, 1)
            parts.append(to_levels(self._backward(known, depth), depth))
        return np.concatenate(parts)

    @abstractmethod
    def _forward(self, samples: Samples) -> NDArray[np.floating[Any]]: ...

    @abstractmethod
    def _backward(self, rgb: Floats, depth: int) -> Floats: ...


class _PlainRgb(Conversion):
    """No profile, or one that is sRGB."""

    def _forward(self, samples: Samples) -> NDArray[np.floating[Any]]:
        return from_levels(samples)

    def _backward(self, rgb: Floats, depth: int) -> Floats:
        return rgb


class _Matrix(Conversion):
    """Three curves, then a matrix (ICC.1:2022, F.3)."""

    def __init__(self, tables: Floats, to_xyz: Floats) -> None:
        self.tables = tables
        self.to_linear = np.linalg.solve(_SRGB_TO_XYZ, to_xyz)
        if not np.isfinite(self.to_linear).all() or np.linalg.cond(self.to_linear) > 1e6:
            raise ValueError("the profile's primaries do not span a colour space")
        self.from_linear = np.linalg.inv(self.to_linear)

    def _forward(self, samples: Samples) -> Floats:
        tables = self.tables[:, :: 65535 // _top(samples)]
        linear = np.stack([tables[c][samples[..., c]] for c in range(3)], axis=-1)
        return srgb_encode(np.clip(linear @ self.to_linear.T, 0, 1))

    def _backward(self, rgb: Floats, depth: int) -> Floats:
        linear = srgb_decode(rgb) @ self.from_linear.T
        return np.stack([_invert(self.tables[c], linear[..., c]) for c in range(3)], axis=-1)

    def is_srgb(self) -> bool:
        """Whether it is sRGB but for the rounding of its own numbers: at most 1.5 8-bit levels off.

        Published sRGB profiles are off by up to one level where one channel is 0 and others full.
        """
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
        return bool(np.abs(self._forward(grid) - grid / 255).max() < 1.5 / 255)


class _Grey(Conversion):
    """One curve from grey to luminance (ICC.1:2022, F.2); sRGB's own where there is no profile."""

    def __init__(self, table: Floats) -> None:
        self.table = table
        self.shown = srgb_encode(table)

    def _forward(self, samples: Samples) -> Floats:
        grey = self.shown[:: 65535 // _top(samples)][samples]
        return np.repeat(grey[..., None], 3, axis=-1)

    def _backward(self, rgb: Floats, depth: int) -> Floats:
        return _invert(self.table, srgb_decode(rgb) @ _SRGB_TO_XYZ[1] / _SRGB_TO_XYZ[1].sum())


class _PlainCmyk(Conversion):
    """Ink shares without a profile: rgb = (1 - cmy) (1 - k), and back with all grey as black."""

    def _forward(self, samples: Samples) -> Floats:
        inks = samples.astype(np.float64) / _top(samples)
        shown: Floats = (1 - inks[..., :3]) * (1 - inks[..., 3:])
        return shown

    def _backward(self, rgb: Floats, depth: int) -> Floats:
        light = rgb.max(axis=-1, keepdims=True)
        inks = np.where(light > 0, 1 - rgb / np.maximum(light, 1e-12), 0)
        return np.concatenate([inks, 1 - light], axis=-1)


class _Tables(Conversion):
    """Any other profile, through libvips."""

    def __init__(self, icc: bytes, kind: str, found: dict[bytes, bytes]) -> None:
        self.icc, self.kind = icc, kind
        # libvips takes no other intent's tables in place of missing ones.
        self.there = "relative" if b"A2B1" in found else "perceptual"
        self.back = "relative" if b"B2A1" in found else "perceptual"
        try:
            self._forward(np.zeros((1, 1, len(kind)) if len(kind) > 1 else (1, 1), np.uint8))
        except pyvips.Error as error:
            raise ValueError("the profile cannot be used") from error
        try:
            self._backward(np.zeros((1, 1, 3)), 8)
        except pyvips.Error:
            self.two_way = False

    def _forward(self, samples: Samples) -> NDArray[np.floating[Any]]:
        image = vips_image(samples, self.kind, self.icc)
        options = {"intent": self.there, "black_point_compensation": True, "depth": 16}
        return from_levels(samples_of(image.icc_transform("srgb", embedded=True, **options)))

    def _backward(self, rgb: Floats, depth: int) -> Floats:
        image = vips_image(to_levels(rgb, 16), "RGB", None)
        options = {"intent": self.back, "black_point_compensation": True, "depth": depth}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "own.icc"
            path.write_bytes(self.icc)
            own = samples_of(image.icc_transform(str(path), input_profile="srgb", **options))
        values: Floats = own / np.float64(_top(own))
        return values


def _invert(table: Floats, values: Floats) -> Floats:
    """Where a rising curve, sampled evenly over [0, 1], takes these values."""
    return np.interp(values, table, np.linspace(0, 1, len(table)))


@lru_cache(maxsize=8)
def conversion(icc: bytes | None, kind: str) -> Conversion:
    """How samples of `kind` ("L", "RGB" or "CMYK") under a profile become sRGB.

    Raises ValueError where the profile is damaged or is for another kind of samples.
    """
    if icc is None:
        if kind == "L":
            return _Grey(srgb_decode(np.linspace(0, 1, _STEPS)))
        return _PlainCmyk() if kind == "CMYK" else _PlainRgb()
    found = tags(icc)
    if _SPACES.get(icc[16:20]) != kind:
        raise ValueError("the profile is for another kind of colours")
    if b"A2B0" not in found and icc[20:24] == b"XYZ ":
        if kind == "L" and b"kTRC" in found:
            return _Grey(curve(found[b"kTRC"]))
        if kind == "RGB" and b"rTRC" in found:
            matrix = _Matrix(*_primaries(found))
            return _PlainRgb() if matrix.is_srgb() else matrix
    return _Tables(icc, kind, found)


def tags(icc: bytes) -> dict[bytes, bytes]:
    """The tagged elements of a profile by their four-letter names; ValueError where damaged."""
    if len(icc) < 132 or icc[36:40] != b"acsp":
        raise ValueError("not an ICC profile")
    (count,) = struct.unpack_from(">I", icc, 128)
    if count > _MAX_TAGS or len(icc) < 132 + 12 * count:
        raise ValueError("the profile's tag table is damaged")
    found = {}
    for entry in range(count):
        name, offset, size = struct.unpack_from(">4sII", icc, 132 + 12 * entry)
        found[name] = icc[offset : offset + size]
    return found


def curve(tag: bytes) -> Floats:
    """A tone curve (_STEPS,) at even steps of [0, 1], rising, in [0, 1].

    Raises ValueError where the tag is damaged or the curve does not rise.
    """
    if len(tag) < 12:
        raise ValueError("the profile has a curve without a body")
    x = np.linspace(0, 1, _STEPS)
    with np.errstate(all="ignore"):
        y = _sampled(tag, x) if tag[:4] == b"curv" else _parametric(tag, x)
    if not np.isfinite(y).all():
        raise ValueError("the profile's curve is not finite")
    y = np.maximum.accumulate(np.clip(y, 0, 1))
    if y[-1] - y[0] < 0.1:
        raise ValueError("the profile's curve does not rise")
    return y


def _sampled(tag: bytes, x: Floats) -> Floats:
    """A table of evenly spaced points, or one number: the exponent."""
    (count,) = struct.unpack_from(">I", tag, 8)
    if count == 0:
        return x
    points = np.frombuffer(tag, ">u2", count, 12).astype(np.float64)
    if count == 1:
        gamma: Floats = x ** (points[0] / 256)
        return gamma
    return np.interp(x, np.linspace(0, 1, count), points / 65535)


def _parametric(tag: bytes, x: Floats) -> Floats:
    """Y = (a x + b)^g + e from x = d on, c x + f below; types 0 to 3 leave some of these out."""
    (function,) = struct.unpack_from(">H", tag, 8)
    if tag[:4] != b"para" or function not in _PARAMETERS:
        raise ValueError("the profile has a curve of unknown type")
    given = np.frombuffer(tag, ">i4", _PARAMETERS[function], 12) / 65536
    g, a, b, c, d, e, f = np.concatenate([given, np.zeros(7 - len(given))])
    if function == 0:
        a = np.float64(1)
    elif function in (1, 2):
        c, d, e, f = np.float64(0), -b / a, c, c
    y: Floats = np.where(x >= d, np.maximum(a * x + b, 0) ** g + e, c * x + f)
    return y


def _primaries(found: dict[bytes, bytes]) -> tuple[Floats, Floats]:
    """The three tone curves (3, _STEPS) and the matrix (3, 3) from linear RGB to D50 XYZ.

    Raises ValueError where one is missing or damaged.
    """
    try:
        curves = np.stack([curve(found[name]) for name in (b"rTRC", b"gTRC", b"bTRC")])
        columns = [
            np.frombuffer(found[name], ">i4", 3, 8) / 65536 for name in (b"rXYZ", b"gXYZ", b"bXYZ")
        ]
    except KeyError:
        raise ValueError("the profile lacks a primary or a curve") from None
    return curves, np.stack(columns, axis=-1)
