"""poisson: keep the subject's gradients, take the colour from the background at its edge."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from inlay.methods.base import Context, Method, Settings
from inlay.pictures.arrays import Box, Image, Mask, bounds, to_uint8
from inlay.scene.fill import backdrop, foreground, membrane
from inlay.scene.stitch import Painted, Window

# OpenCV erodes the mask by three pixels and mixes the two gradients along its edge; grown by so
# many, the mask has that edge outside the inside.
_GROWN = 5
_PAD = 10


class PoissonSettings(Settings):
    gradients: Literal["normal", "mixed"] = "normal"
    """normal keeps the subject's gradients; mixed takes the stronger of subject and background, for
    see-through things, smoke and writing
    """
    amount: float = Field(1.0, ge=0, le=1)
    """how much of the change is made; 0 leaves the paste as it is"""


def clone(source: Image, target: Image, inside: Mask, gradients: str) -> Image:
    """Solve Pérez, Gangnet and Blake 2003, eq. 3 (mixed: eq. 12), for the inside of a mask.

    source, target: (h, w, 3) in [0, 1]. Returns the target with the inside solved, not clipped.
    OpenCV solves over the mask's whole rectangle, so its result also drifts off the target
    outside the mask; the harmonic continuation of that drift is taken off inside, which leaves
    the Laplacian as it is and makes the edge fit. Inside and outside end up at 8-bit precision.
    """
    import cv2

    tight = bounds(inside)
    near = None if tight is None else tight.grown(_PAD).intersect(Box.of_size(inside.shape[::-1]))
    assert near is not None
    part = near.slices

    def padded(image: Image) -> NDArray[np.uint8]:
        return np.pad(to_uint8(image[part]), ((_PAD, _PAD), (_PAD, _PAD), (0, 0)), mode="symmetric")

    # OpenCV writes into the mask it is given, and needs it clear of the picture's border.
    kernel = np.ones((2 * _GROWN + 1,) * 2, np.uint8)
    mask = cv2.dilate(np.pad(inside[part].astype(np.uint8) * 255, _PAD), kernel)
    x, y, w, h = cv2.boundingRect(mask)
    flag = cv2.NORMAL_CLONE if gradients == "normal" else cv2.MIXED_CLONE
    middle = x + w // 2, y + h // 2
    solved = cv2.seamlessClone(padded(source), padded(target), mask, middle, flag)
    solved = np.asarray(solved[_PAD:-_PAD, _PAD:-_PAD], np.float32) / np.float32(255)
    hole = inside[part]
    drift = membrane(solved - target[part], hole)
    result = target.copy()
    result[part][hole] = (solved - drift)[hole]
    return result


def run(window: Window, backbone: object, settings: PoissonSettings, context: Context) -> Painted:
    """Clone the subject's colours, continued beyond its soft edge; add the change by alpha."""
    alpha = window.alpha
    effect = alpha > 0
    inside = alpha > min(0.02, float(alpha.max()) / 2)
    if not inside.any():
        return Painted(window.pasted, effect)
    behind = backdrop(window.clean, window.pasted, alpha)
    source = foreground(window.pasted, window.clean, alpha)
    solved = clone(source, behind, inside, settings.gradients)
    # Adding the change, rather than laying the solution over, keeps the soft rim's own detail.
    change = np.where(inside[..., None], alpha[..., None] * (solved - source), 0)
    rgb = np.clip(window.pasted + np.float32(settings.amount) * change, 0, 1)
    return Painted(rgb.astype(np.float32), effect)


METHOD = Method(
    name="poisson",
    summary="keeps the subject's gradients and takes its overall colour from the background",
    source="Pérez, Gangnet and Blake, Poisson image editing, SIGGRAPH 2003",
    verbs=("compose", "harmonize"),
    settings=PoissonSettings,
)
