"""Plain diffusion inpainting: the region is painted anew under the prompt.

On an inpainting checkpoint the mask and the masked latent go into the network; on a plain one the
region outside is replaced after every step by the source noised to that step's level (blended
latents, Avrahami et al. 2023, arXiv 2206.02779).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from inlay.methods.base import Context, DiffusionSettings, Method, Scheduler
from inlay.scene.stitch import Painted, Window

if TYPE_CHECKING:
    from inlay.diffusion.backbone import Backbone


class InpaintSettings(DiffusionSettings):
    context: float = Field(0.6, ge=0, le=4)
    """surroundings seen on each side of the hole, in units of the hole's longer side"""
    grow: float = Field(0.02, ge=0, le=0.5)
    """how far the hole that the model fills is widened, in units of the crop's longer side; what is
    written reaches 8 pixels beyond the mask at most
    """
    scheduler: Scheduler = "EulerAncestralDiscreteScheduler"
    """which of diffusers' schedulers samples, by class name"""


def run(window: Window, backbone: Backbone, settings: InpaintSettings, context: Context) -> Painted:
    """Paint the window's region anew; strength below 1 starts from what is there."""
    import torch

    from inlay.methods.workspace import Workspace

    solver = backbone.solver(settings.scheduler, settings.num_inference_steps)
    if settings.strength == 0:
        return Painted(window.pasted, window.alpha > 1)
    with torch.inference_mode():
        work = Workspace(window, backbone, settings, context)
        hole = work.latent_mask(window.mask(work.size, settings.grow), cover=True)
        conditions = work.conditions(hole, work.picture)
        latent = work.paint(solver, conditions, work.source(), settings.strength)
        return work.replace_region(work.image(latent), settings.grow)


METHOD = Method(
    name="inpaint",
    summary="diffusion inpainting: the region is painted anew from its surroundings and the prompt",
    source="Rombach et al. 2022, arXiv 2112.10752; blended latents: arXiv 2206.02779",
    verbs=("remove",),
    settings=InpaintSettings,
)
