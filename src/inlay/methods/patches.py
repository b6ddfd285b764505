"""patches: take an object out by copying pieces of the picture round it into the hole."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from inlay.methods.base import Context, Method, Settings
from inlay.pictures.arrays import FAINT, grow
from inlay.scene.fill import copy_pieces, fill_hole, hole_of, shadow_of
from inlay.scene.stitch import Painted, Window


class PatchesSettings(Settings, use_attribute_docstrings=True):
    context: float = Field(1.0, ge=0, le=4)
    """surroundings that pieces are copied from, on each side of the hole, in units of the hole's
    longer side
    """
    dilate: int = Field(5, ge=0, le=200)
    """pixels by which the mask is widened, to take the rim and its halo too"""
    shadow: float = Field(0.0, ge=0, le=1)
    """how far beside the mask the thing's shadow is taken out too, where there is one, in units of
    the mask's longer side; 0 leaves it
    """
    row_weight: float = Field(1.0, ge=0, le=10)
    """how much pieces keep to their height in the picture, unless they fit far better without; 0
    lets sky lie under a roof
    """


def run(window: Window, backbone: object, settings: PatchesSettings, context: Context) -> Painted:
    """Copy into the grown mask; raises InputError where nothing is left to copy from."""
    # Compiled code: listing the methods does not wait for it.
    from inlay.scene.patches import find_sources

    alpha = window.alpha
    if settings.shadow > 0 and not window.soft and not (alpha > FAINT).all():
        region = grow(alpha > FAINT, settings.dilate)
        shadow = shadow_of(window.clean, region, settings.shadow)
        alpha = np.maximum(alpha, grow(shadow, settings.dilate)).astype(np.float32)
        told = "a shadow goes too" if shadow.any() else "no shadow is seen"
        context.note(f"patches: {told} beside what is taken out")
    region, hole, dilate = hole_of(alpha, settings.dilate)
    if dilate < settings.dilate:
        context.note(f"patches: dilate lowered from {settings.dilate} to {dilate} pixels")
    sources = find_sources(window.clean, hole, context.seed, settings.row_weight)
    if sources is None:
        context.note("patches: too little of the picture is left to copy from, so it is blurred in")
        rgb = fill_hole(window.clean, hole)
    else:
        rgb = copy_pieces(window.clean, hole, sources)
    return Painted(window.soften(np.asarray(rgb)), region if window.soft else hole)


METHOD = Method(
    name="patches",
    summary="removes an object by copying pieces of the picture round it into the hole",
    source="He and Sun 2012, Statistics of patch offsets; PatchMatch: Barnes et al. 2009; "
    "Wexler et al. 2007",
    verbs=("remove",),
    settings=PatchesSettings,
)
