"""Plain diffusion inpainting: the region is painted anew under the prompt.

On an inpainting checkpoint the mask and the masked latent go into the network; on a plain one the
region outside is replaced after every step by the source noised to that step's level (blended
latents, Avrahami et al. 2023, arXiv 2206.02779).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from inlay.methods.base import Context, DiffusionSettings, Method, Painted
from inlay.methods.latent import Workspace, replaced

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.diffusion.backbone import Backbone
    from inlay.diffusion.denoise import Step
    from inlay.window import Window

__all__ = ["METHOD", "InpaintSettings"]


class InpaintSettings(DiffusionSettings):
    context: float = Field(
        0.6, ge=0, le=4, description="margin that the model sees round the hole, in hole sizes"
    )
    grow: float = Field(
        0.02, ge=0, le=0.5, description="how far the hole is widened, in window sizes"
    )


def run(
    window: Window, backbone: Backbone | None, settings: InpaintSettings, context: Context
) -> Painted:
    """Paint the window's region anew; strength below 1 starts from what is there."""
    import torch

    from inlay.diffusion.denoise import denoise
    from inlay.diffusion.schedule import add_noise, ddim_schedule

    if backbone is None:
        raise ValueError("inpaint needs a backbone")
    with torch.inference_mode():
        work = Workspace.of(window, backbone, settings, context)
        image, mask = window.tensor("pasted", work.size), window.mask(work.size, settings.grow)
        source, latent_mask = work.source(), work.latent_mask(mask)
        schedule = ddim_schedule(
            backbone.scheduler_config, settings.num_inference_steps, settings.strength
        )
        if len(schedule) == 0:
            return Painted(window.pasted, window.alpha > 1)

        def keep_outside(step: Step) -> Tensor:
            kept = add_noise(source, context.noise(source), step.alpha_next)
            return step.z * latent_mask + kept * (1 - latent_mask)

        masked = work.encode(image * (1 - mask)) if backbone.kind == "inpaint" else None
        start = add_noise(source, context.noise(source), schedule.alpha(len(schedule) - 1))
        result = denoise(
            work.denoiser(latent_mask, masked),
            start,
            schedule,
            indices=range(len(schedule) - 1, -2, -1),
            noise=context.noise,
            on_step=[] if backbone.kind == "inpaint" else [keep_outside],
            progress=work.progress(),
        )
        return replaced(work, result, settings.grow)


METHOD = Method(
    name="inpaint",
    summary="diffusion inpainting: the region is painted anew from its surroundings and the prompt",
    source="Rombach et al. 2022, arXiv 2112.10752; blended latents: arXiv 2206.02779",
    verbs=("remove",),
    settings=InpaintSettings,
    run=run,
    needs_model=True,
)
