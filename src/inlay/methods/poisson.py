"""poisson: keep the subject's gradients, take the colour from the background at its edge."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from inlay.methods.base import Context, Method, Settings
from inlay.pictures.arrays import Box, Image, Mask, bounds
from inlay.scene.fill import backdrop, foreground, membrane
from inlay.scene.stitch import Painted, Window


class PoissonSettings(Settings, use_attribute_docstrings=True):
    gradients: Literal["normal", "mixed"] = "normal"
    """normal keeps the subject's gradients; mixed takes the stronger of subject and background, for
    see-through things, smoke and writing
    """
    amount: float = Field(0.15, ge=0, le=1)
    """how much of the change is made: 0 leaves the paste as it is, 1 is as published"""


def clone(source: Image, target: Image, inside: Mask, gradients: str) -> Image:
    """Solve Pérez, Gangnet and Blake 2003, eq. 3 (mixed: eq. 12), for the inside of a mask.

    source, target: (h, w, 3) in [0, 1]. Returns the target with the inside solved, not clipped:
    the source and a membrane that takes its rim to the target's, and for the mixed gradients what
    they have more of than the source's.
    """
    tight = bounds(inside)
    near = None if tight is None else tight.grown(1).intersect(Box.of_size(inside.shape[::-1]))
    assert near is not None
    part, hole = near.slices, inside[near.slices]
    solved = source[part] + membrane(target[part] - source[part], hole)
    if gradients == "mixed":
        padded = [np.pad(each[part], ((1, 1), (1, 1), (0, 0)), "edge") for each in (source, target)]
        more = np.zeros_like(solved)
        for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
            beside = (each[dy:, dx:][: near.height, : near.width] for each in padded)
            own, others = (
                each - at for each, at in zip((source[part], target[part]), beside, strict=True)
            )
            more += np.where(np.abs(others) > np.abs(own), others - own, 0) / 4
        solved += membrane(np.zeros_like(solved), hole, more)
    result = target.copy()
    result[part][hole] = solved[hole]
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
    presets={"paper": {"amount": 1.0}},
)
