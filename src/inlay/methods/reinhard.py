"""reinhard: give the subject the mean and spread of colour of what lies round it."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from inlay.methods.base import Context, Method, Settings
from inlay.pictures.arrays import FAINT, Image, distance, srgb_decode, srgb_encode
from inlay.scene.fill import foreground
from inlay.scene.stitch import Painted, Window

# Reinhard et al. 2001, eqs. 4 and 6.
_LMS = np.array(
    [[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]], np.float32
)
_LALPHABETA = np.diag(1 / np.sqrt([3, 6, 2])) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])
# IEC 61966-2-1's matrix to XYZ, over the white point D65; then CIE 15:2004, 8.2.1.
_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
) / np.array([[0.9505], [1.0], [1.089]])
_CIELAB = np.array([[0, 116, 0], [500, -500, 0], [0, 200, -200]])
_KNEE = 6 / 29
# Darker than this the logarithm would make noise the loudest part of the statistics.
_DARK = 1 / 512


class ReinhardSettings(Settings, use_attribute_docstrings=True):
    amount: float = Field(0.15, ge=0, le=1)
    """how much of the change is made: 0 leaves the paste as it is, 1 is as published"""
    space: Literal["lalphabeta", "cielab"] = "lalphabeta"
    """colour space in which mean and spread are matched"""
    reach: float = Field(0.5, ge=0.02, le=4)
    """how far round the subject to look, in units of the square root of its area"""
    limit: float = Field(2.0, ge=1, le=10)
    """by what factor a channel's spread is stretched or shrunk at most"""


def to_space(rgb: Image, space: str) -> Image:
    """sRGB (..., 3) in [0, 1] to l-alpha-beta (base-10 logarithms) or CIELAB (L in 0..100)."""
    linear = srgb_decode(rgb)
    if space == "cielab":
        ratio = np.maximum(linear @ _XYZ.T, 0)
        root = np.where(ratio > _KNEE**3, np.cbrt(ratio), ratio / (3 * _KNEE**2) + 4 / 29)
        return np.asarray(root @ _CIELAB.T - (16, 0, 0), np.float32)
    logs = np.log10(np.maximum(linear @ _LMS.T, 0) + _DARK)
    return np.asarray(logs @ _LALPHABETA.T, np.float32)


def from_space(values: Image, space: str) -> Image:
    """The inverse of `to_space`, clipped to [0, 1]."""
    if space == "cielab":
        root = (values + np.array([16, 0, 0], np.float32)) @ np.linalg.inv(_CIELAB).T
        ratio = np.where(root > _KNEE, root**3, 3 * _KNEE**2 * (root - 4 / 29))
        linear = np.clip(ratio @ np.linalg.inv(_XYZ).T, 0, 1)
    else:
        logs = np.minimum(values @ np.linalg.inv(_LALPHABETA).T, 2.0)
        linear = np.clip((10**logs - _DARK) @ np.linalg.inv(_LMS).T, 0, 1)
    return np.asarray(np.clip(srgb_encode(linear), 0, 1), np.float32)


def transfer(
    values: Image, weight: Image, target: Image, target_weight: Image, limit: float
) -> Image:
    """Eqs. 10 and 11: shift and stretch channels to the target's mean and standard deviation.
    values and target are (n, 3) and (m, 3), the weights (n,) and (m,).
    """
    mean, spread = _statistics(values, weight)
    wanted, wanted_spread = _statistics(target, target_weight)
    gain = np.clip(wanted_spread / np.maximum(spread, 1e-6), 1 / limit, limit)
    return np.asarray((values - mean) * gain + wanted, np.float32)


def _statistics(values: Image, weight: Image) -> tuple[Image, Image]:
    share = weight.astype(np.float64) / weight.sum(dtype=np.float64)
    mean = share @ values
    return mean, np.sqrt(share @ (values - mean) ** 2)


def run(window: Window, backbone: object, settings: ReinhardSettings, context: Context) -> Painted:
    """Transfer from the ring round the subject to the subject, then lay it over by alpha."""
    alpha = window.alpha
    effect = alpha > 0
    there = alpha > FAINT
    if there.all() or not effect.any():
        context.note("reinhard: there is nothing round the subject, so its colours stay")
        return Painted(window.pasted, effect)
    away = distance(there)
    width = max(settings.reach * float(np.sqrt(alpha.sum())), 3.0)
    ring = (away > 0) & (away <= width)
    subject, space = foreground(window.pasted, window.clean, alpha)[effect], settings.space
    own, around = (to_space(colours, space) for colours in (subject, window.clean[ring]))
    every = np.ones(len(around), np.float32)
    changed = from_space(transfer(own, alpha[effect], around, every, settings.limit), space)
    rgb = window.pasted.copy()
    rgb[effect] += settings.amount * alpha[effect][:, None] * (changed - subject)
    return Painted(np.clip(rgb, 0, 1), effect)


METHOD = Method(
    name="reinhard",
    summary="gives the subject the mean and spread of colour of its surroundings",
    source="Reinhard, Ashikhmin, Gooch and Shirley, Color transfer between images, 2001",
    verbs=("compose", "harmonize"),
    settings=ReinhardSettings,
    presets={"paper": {"amount": 1.0}},
)
