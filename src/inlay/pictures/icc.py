"""The parts of an ICC profile that inlay evaluates itself: its tags, tone curves and primaries.

Source: ICC.1:2022, 7.2 header, 7.3 tag table, 10.6 curveType, 10.18 parametricCurveType,
10.31 XYZType.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

__all__ = ["STEPS", "curve", "primaries", "tags"]

Floats = NDArray[np.float64]

# A curve is sampled at every 16-bit level.
STEPS = 65536
_MAX_TAGS = 200
# Numbers in a parametric curve, by its function type.
_PARAMETERS = {0: 1, 1: 3, 2: 4, 3: 5, 4: 7}


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
    """A tone curve (STEPS,) at even steps of [0, 1], rising, in [0, 1].

    Raises ValueError where the tag is damaged or the curve does not rise.
    """
    if len(tag) < 12:
        raise ValueError("the profile has a curve without a body")
    x = np.linspace(0, 1, STEPS)
    with np.errstate(all="ignore"):
        y = _sampled(tag, x) if tag[:4] == b"curv" else _parametric(tag, x)
    if not np.isfinite(y).all():
        raise ValueError("the profile's curve is not finite")
    y = np.maximum.accumulate(np.clip(y, 0, 1))
    if y[-1] - y[0] < 0.1:
        raise ValueError("the profile's curve does not rise")
    return y


def _sampled(tag: bytes, x: Floats) -> Floats:
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


def primaries(found: dict[bytes, bytes]) -> tuple[Floats, Floats]:
    """The three tone curves (3, STEPS) and the matrix (3, 3) from linear RGB to D50 XYZ.

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
