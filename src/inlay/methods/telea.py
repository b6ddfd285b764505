"""telea: take an object out by growing its surroundings into the hole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inlay.errors import InputError
from inlay.methods.base import Context, Method, Painted, Settings
from inlay.pictures.arrays import grow
from inlay.scene.fill import WORKING_SIDE, fill_hole

if TYPE_CHECKING:
    from inlay.diffusion.backbone import Backbone
    from inlay.scene.window import Window

__all__ = ["METHOD", "TeleaSettings"]


class TeleaSettings(Settings):
    """How far to look, and how much of the object's rim to take with it."""

    radius: float = Field(
        5.0, ge=1, le=100, description="how far round a pixel the fill looks, in pixels"
    )
    dilate: int = Field(
        4, ge=0, le=200, description="pixels by which the mask is grown, to take the rim too"
    )
    algorithm: Literal["telea", "navier-stokes"] = Field(
        "telea", description="fast marching, or the Navier-Stokes equations of the same library"
    )
    working_side: int = Field(
        WORKING_SIDE, ge=64, le=8192, description="longer side that larger windows are filled at"
    )


def run(
    window: Window, backbone: Backbone | None, settings: TeleaSettings, context: Context
) -> Painted:
    """Fill the grown mask; raises InputError where nothing is left to fill it from."""
    region = window.alpha > 0.5 / 255
    if region.all():
        raise InputError("the mask covers the whole picture; leave some of the background out.")
    dilate = settings.dilate
    while (hole := grow(region, dilate)).all():
        dilate //= 2
    if dilate < settings.dilate:
        context.note(f"telea: dilate lowered from {settings.dilate} to {dilate} pixels")
    rgb = fill_hole(
        window.clean,
        hole,
        radius=settings.radius,
        algorithm=settings.algorithm,
        max_side=settings.working_side,
    )
    context.progress(1, 1)
    return Painted(rgb, hole)


METHOD = Method(
    name="telea",
    summary="removes an object by growing the picture round it into the hole",
    source="Telea, An image inpainting technique based on the fast marching method, 2004",
    verbs=("remove",),
    settings=TeleaSettings,
    run=run,
    needs_model=False,
)
