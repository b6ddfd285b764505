"""feather: paste with a soft rim, softened inward so nothing outside the subject changes."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from inlay.methods.base import Context, Method, Settings
from inlay.pictures.arrays import Image, blur, distance
from inlay.scene.fill import backdrop
from inlay.scene.stitch import Painted, Window


class FeatherSettings(Settings, use_attribute_docstrings=True):
    radius: float = Field(4.0, ge=0, le=200)
    """width of the soft rim inside the edge, in pixels"""


def inward(alpha: Image, radius: float) -> Image:
    """A weight (h, w) in [0, 1]: 0 at the edge of alpha and outside, 1 from `radius` inward.

    It is max(2 G - 1, 0) for G the Gaussian blur of alpha over half the radius. Along a straight
    edge that is erf(d / (sqrt(2) sigma)) at distance d: 0.95 at d = radius. The picture's border
    is no edge.
    """
    if radius <= 0:
        return np.ones_like(alpha)
    return np.clip(2 * blur(alpha, radius / 2) - 1, 0, 1)


def run(window: Window, backbone: object, settings: FeatherSettings, context: Context) -> Painted:
    """B + w (P - B) for the paste P, the background B and the inward weight w."""
    solid = np.pad(window.alpha > 0.5, 1, mode="edge")
    inner = float(distance(~solid).max()) if solid.any() else 0.0
    # A rim wider than this would leave nothing of a thin subject.
    radius = min(settings.radius, inner / 2)
    if radius < settings.radius:
        context.note(f"feather radius lowered from {settings.radius:g} to {radius:.1f} pixels")
    behind = backdrop(window.clean, window.pasted, window.alpha)
    weight = inward(window.alpha, radius)[..., None]
    return Painted(window.soften(behind + weight * (window.pasted - behind)), window.alpha > 0)


METHOD = Method(
    name="feather",
    summary="pastes with a soft rim; the softening stays inside the subject's own edge",
    source="Gaussian-softened alpha, after Porter and Duff 1984",
    verbs=("compose", "harmonize"),
    settings=FeatherSettings,
)
