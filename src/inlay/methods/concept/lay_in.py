"""How a sample of a concept is laid into the background: its box, or the object alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inlay.methods.base import Painted
from inlay.methods.concept.found import found_object
from inlay.methods.workspace import to_image
from inlay.pictures.arrays import bounds, resize, soft_rim
from inlay.pictures.box import Box
from inlay.scene.matte import matte
from inlay.scene.window import Window

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.methods.concept.details import Reference
    from inlay.methods.concept.fill import Filler

__all__ = ["box_of", "painted"]

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]


def box_of(window: Window) -> Box:
    """The window's box that is to be filled, in its pixels."""
    box = bounds(window.grown(0))
    assert box is not None
    return box


def painted(fill: Filler, latent: Tensor, photos: Sequence[Reference] = ()) -> Painted:
    """The window with its box, or the object in it, as a latent (1, C, h, w) says.

    Blended into the background over `feather`. Detail comes from the photos, where the settings
    ask for it. Where the object does not stand out in its box, the box is laid in.
    """
    work, settings = fill.work, fill.settings
    window = work.window
    new = resize(to_image(work.backbone.decode(latent)), window.shape)
    weight = window.rim(settings.feather)
    inside = window.grown(0)
    if settings.region == "object" or settings.details > 0:
        outline = found_object(new, window.clean, box_of(window))
        if outline is not None:
            # The sample's outline is no sharper than the model's pixels.
            reach = max(window.shape) / max(work.size)
            inside = np.minimum(matte(np.clip(new, 0, 1), outline, "wide", reach), weight)
            if settings.region == "object":
                rim = soft_rim(outline, settings.feather * max(window.shape))
                weight = np.minimum(np.maximum(inside, rim), weight)
        elif settings.region == "object":
            fill.note(
                "the object does not stand out from the background, so its whole box is laid in"
            )
    if settings.details > 0:
        new = _with_details(fill, new, inside, photos)
    cover = weight[..., None]
    # What the decoder gives beyond white and black is no colour to blend with.
    rgb = window.clean * (1 - cover) + np.clip(new, 0, 1) * cover
    return Painted(rgb.astype(np.float32), weight > 0)


def _with_details(fill: Filler, new: Image, inside: Image, photos: Sequence[Reference]) -> Image:
    """The window with the photos' detail in the object, and a note of what was done."""
    from inlay.methods.concept.details import carried

    work, settings = fill.work, fill.settings
    window = work.window
    part = box_of(window).slices
    pixel = window.shape[0] / work.size[0], window.shape[1] / work.size[1]
    made, told = carried(
        new[part],
        inside[part],
        pixel,
        photos,
        amount=settings.details,
        least=settings.details_agreement,
        feather=settings.feather * max(window.shape),
    )
    fill.note(told)
    result = new.copy()
    result[part] = made
    return result
