"""telea: take an object out by growing its surroundings into the hole."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from inlay.methods.base import Context, Method, Settings
from inlay.scene.fill import WORKING_SIDE, fill_hole, hole_of
from inlay.scene.stitch import Painted, Window


class TeleaSettings(Settings, use_attribute_docstrings=True):
    radius: float = Field(5.0, ge=1, le=100)
    """how far from a pixel the fill looks, in pixels"""
    dilate: int = Field(4, ge=0, le=200)
    """pixels by which the mask is widened, to take the rim too"""
    algorithm: Literal["telea", "navier-stokes"] = "telea"
    """how the hole is filled: by fast marching, or by Navier-Stokes equations"""
    working_side: int = Field(WORKING_SIDE, ge=64, le=8192)
    """longer side, in pixels, to which larger crops are shrunk for the fill of a large hole"""


def run(window: Window, backbone: object, settings: TeleaSettings, context: Context) -> Painted:
    """Fill the grown mask; raises InputError where nothing is left to fill it from."""
    region, hole, dilate = hole_of(window.alpha, settings.dilate)
    if dilate < settings.dilate:
        context.note(f"telea: dilate lowered from {settings.dilate} to {dilate} pixels")
    rgb = fill_hole(
        window.clean,
        hole,
        radius=settings.radius,
        algorithm=settings.algorithm,
        max_side=settings.working_side,
    )
    return Painted(window.soften(rgb), region if window.soft else hole)


METHOD = Method(
    name="telea",
    summary="removes an object by growing the picture round it into the hole",
    source="Telea, An image inpainting technique based on the fast marching method, 2004",
    verbs=("remove",),
    settings=TeleaSettings,
)
