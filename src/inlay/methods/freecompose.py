"""FreeCompose (Chen et al. 2024, arXiv 2407.04947): removal and harmonization on frozen weights.

Nothing is sampled. The picture's own latent moves along the difference of two noise predictions
(Delta Denoising Score): that of the picture as it becomes, and that of a source picture. What the
source is, and what either network call may see, decides what the movement does.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, model_validator

from inlay.errors import InputError
from inlay.methods.base import Context, Method, ModelSettings, Painted
from inlay.methods.latent import Workspace, replaced, residual, smoothly_filled
from inlay.window import Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from inlay.diffusion.attention_sharing import HiddenRegion, Role
    from inlay.diffusion.backbone import Backbone, Conditioning
    from inlay.diffusion.distill import Branch, Iterate, Term

__all__ = ["METHOD", "FreeComposeSettings"]

HARMONIOUS = "A harmonious scene"
COLLAGE = "A collage with an object pasted into another picture"
WITH_OBJECT, WITHOUT_OBJECT = "Something in some place.", "Some place."


class FreeComposeSettings(ModelSettings):
    prompt: str = Field(
        "",
        max_length=2000,
        description=f'what the picture should show; by default "{HARMONIOUS}", '
        f'for remove "{WITHOUT_OBJECT}"',
    )
    source_prompt: str = Field(
        "",
        max_length=2000,
        description="what the picture shows as it is; by default the prompt, for the variant "
        f'collage "{COLLAGE}", for remove "{WITH_OBJECT}"',
    )
    guidance_scale: float = Field(
        7.5, ge=0, le=50, description="classifier-free guidance of both branches; 1 is off"
    )
    decoding: Literal["residual", "plain"] = Field(
        "residual",
        description="residual keeps the picture's own detail and adds the change; plain takes the "
        "decoder's output as it is, as remove always does",
    )
    variant: Literal["background", "collage", "score"] = Field(
        "background",
        description="what the picture is compared with: to be harmonized the background before "
        "pasting, itself under a prompt that calls it a collage, or the noise alone (score), "
        "to remove itself or (score) the noise",
    )
    surroundings: Literal["auto", "none", "target", "both"] = Field(
        "auto",
        description="inpainting checkpoints: which branch is shown the picture round the region; "
        "auto is both for the variant background, else target",
    )
    num_iterations: int = Field(200, ge=0, le=5000, description="steps of the latent; 0 is none")
    eta: float = Field(
        0.49, ge=0, le=10, description="length of a step over its gradient; AdamW's learning rate"
    )
    optimizer: Literal["SGD", "AdamW"] = Field(
        "SGD", description="how the steps are taken; AdamW wants an eta of about 0.02"
    )
    t_min: int = Field(50, ge=0, le=999, description="least noisy timestep that is drawn")
    t_max: int = Field(950, ge=1, le=1000, description="end of the range of timesteps, exclusive")
    late_share: float = Field(
        0.0, ge=0, le=1, description="share of the steps, at the end, that use late_t_max; 0 off"
    )
    late_t_max: int = Field(150, ge=1, le=1000, description="end of the range of the late steps")
    pool_size: int = Field(
        32,
        ge=0,
        le=1000,
        description="pairs of timestep and noise that are used in turn, so that the source is "
        "predicted once for each; 0 draws anew at every step",
    )
    plateau: float = Field(
        0.0,
        ge=0,
        le=1,
        description="stop once the latent moves less than this in `patience` steps; 0 off",
    )
    patience: int = Field(
        20, ge=1, le=1000, description="steps over which the plateau is looked at"
    )
    blend_pixels: int = Field(
        1, ge=0, le=32, description="latent pixels beyond the region over which the pull fades out"
    )
    perceptual: Literal["auto", "encoder", "laplacian", "lpips"] = Field(
        "auto",
        description="features of the perceptual terms: the checkpoint's encoder, a Laplacian "
        "pyramid, or LPIPS (extra package); auto is the encoder where there is one",
    )
    foreground_weight: float = Field(
        0.25,
        ge=0,
        le=10,
        description="harmonizing: holds the look of the object; 0 off; stable while its product "
        "with eta and perceptual_every is below 2",
    )
    background_weight: float = Field(
        0.0, ge=0, le=10, description="holds the look of what lies round the region; 0 off"
    )
    perceptual_every: int = Field(
        4, ge=1, le=100, description="the perceptual terms are taken at every so many steps"
    )
    start: Literal["object", "smooth"] = Field(
        "smooth",
        description="remove starts from the picture as it is, or from a smooth fill of the hole, "
        "which large holes need",
    )
    grow: float = Field(
        0.02,
        ge=0,
        le=0.5,
        description="remove: how far the hole is widened, over shadows too, in window sizes",
    )
    hide_region: bool = Field(
        True, description="remove: the decoder's self-attention does not see into the hole"
    )
    rim: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="residual decoding: how far beyond the object the change fades out, in window "
        "sizes; shadows need some, coarse models leave a halo there",
    )
    smoothing: float = Field(
        0.03,
        ge=0,
        le=0.5,
        description="residual decoding: blur of the change inside the object, in window sizes",
    )

    @model_validator(mode="after")
    def _ranges_hold_a_timestep(self) -> FreeComposeSettings:
        last = self.late_t_max if self.late_share > 0 else self.t_max
        if min(self.t_max, last) <= self.t_min:
            raise ValueError(
                f"t_min is {self.t_min}; expected a whole number below t_max ({self.t_max})"
                + (f" and late_t_max ({last})." if self.late_share > 0 else ".")
            )
        return self


@dataclass
class _Plan:
    """What the loop is to do: the latent mask of what may change, and its two branches."""

    region: Tensor
    source: Branch | None
    target: Branch
    hidden: HiddenRegion | None = None


def _branch(
    work: Workspace, z: Tensor, prompt: str, region: Tensor, picture: Tensor | None
) -> Branch:
    """An inpainting checkpoint is shown `picture` (1, 3, H, W) round the region, or nothing."""
    import torch

    from inlay.diffusion.distill import Branch

    backbone, settings = work.backbone, work.settings
    uncond: Conditioning | None = None
    if settings.guidance_scale != 1:
        uncond = backbone.embed([settings.negative_prompt], work.size)
    cond = backbone.embed([prompt], work.size)
    if backbone.kind == "plain":
        return Branch(z, cond, uncond)
    if picture is None:
        # A picture erased as a whole, as in training: its latent is that of grey, which is not 0.
        region, picture = torch.ones_like(region), torch.zeros(1, 3, *work.size)
    return Branch(z, cond, uncond, region, work.encode(picture * (1 - work.whole(region))))


def _removal(work: Workspace, settings: FreeComposeSettings) -> _Plan:
    from inlay.diffusion.attention_sharing import HiddenRegion, chosen_layers

    picture = work.window.tensor("pasted", work.size)
    region = work.latent_mask(work.window.mask(work.size, settings.grow), cover=True)
    if region.all():
        raise InputError("the mask covers all that the model sees; leave some background out.")
    # Both branches start from the fill: a source with the object would bring the object back.
    smooth = settings.start == "smooth"
    z = work.encode(smoothly_filled(picture, work.whole(region))) if smooth else work.source()
    shown = settings.surroundings
    target = _branch(
        work, z, settings.prompt or WITHOUT_OBJECT, region, None if shown == "none" else picture
    )
    source: Branch | None = None
    if settings.variant != "score":
        seen, named = picture if shown == "both" else None, settings.source_prompt or WITH_OBJECT
        source = _branch(work, z, named, region, seen)
    hidden = None
    if settings.hide_region:
        hidden = HiddenRegion(region, chosen_layers(work.backbone.unet, "decoder"))
    return _Plan(region, source, target, hidden)


def _harmonization(work: Workspace, settings: FreeComposeSettings) -> _Plan:
    window, variant = work.window, settings.variant
    if variant == "background" and np.array_equal(window.clean, window.pasted):
        work.context.note(
            "freecompose: the background before pasting is not known, so the variant is collage"
        )
        variant = "collage"
    pasted = window.tensor("pasted", work.size)
    region = work.latent_mask(window.mask(work.size), cover=True)
    shown = settings.surroundings
    if shown == "auto":
        shown = "both" if variant == "background" else "target"
    prompt = settings.prompt or HARMONIOUS
    target = _branch(work, work.source(), prompt, region, None if shown == "none" else pasted)
    if variant == "score":
        return _Plan(region, None, target)
    if variant == "background":
        before = window.tensor("clean", work.size)
        z, named = work.encode(before, "clean"), settings.source_prompt or prompt
    else:
        before, z, named = pasted, work.source(), settings.source_prompt or COLLAGE
    return _Plan(
        region, _branch(work, z, named, region, before if shown == "both" else None), target
    )


def _terms(work: Workspace, settings: FreeComposeSettings, plan: _Plan) -> list[Term]:
    """The perceptual terms: how far the picture may look different from where it started."""
    from inlay.diffusion.distill import Term
    from inlay.diffusion.perceptual import latent_loss

    inside = work.whole(plan.region).to(work.backbone.device)
    weights = [(settings.background_weight, 1 - inside, True)]
    if work.context.verb != "remove":
        # The object's overall colour is what is to change, so its low-pass is left out.
        weights.append((settings.foreground_weight, inside, False))
    return [
        Term(
            weight,
            latent_loss(work.backbone, plan.target.z, mask, settings.perceptual, base=base),
            settings.perceptual_every,
        )
        for weight, mask, base in weights
        if weight > 0 and mask.any()
    ]


def _moved(work: Workspace, settings: FreeComposeSettings, plan: _Plan) -> Tensor:
    """The latent after the loop; the U-Net is afterwards as it was."""
    from inlay.diffusion.attention import swapped_processors
    from inlay.diffusion.distill import distill
    from inlay.diffusion.draws import Span
    from inlay.diffusion.ilvr import ramp

    backbone, context, hidden = work.backbone, work.context, plan.hidden
    late = settings.late_share
    spans = [Span(1 - late, settings.t_min, settings.t_max)]
    if late > 0:
        spans.append(Span(late, settings.t_min, settings.late_t_max))

    def before(number: int, t: int, rows: Sequence[Role]) -> None:
        if hidden is not None:
            hidden.roles = rows

    def progress(iterate: Iterate) -> None:
        preview = work.preview(iterate.z) if context.previews else None
        context.progress(iterate.number + 1, iterate.total, preview)

    scope = swapped_processors(backbone.unet, hidden.processor) if hidden else nullcontext()
    with scope:
        outcome = distill(
            backbone.predict_noise,
            backbone.alphas_cumprod,
            plan.source,
            plan.target,
            spans=spans,
            iterations=settings.num_iterations,
            guidance_scale=settings.guidance_scale,
            eta=settings.eta,
            noise=context.noise,
            generator=context.generator,
            pool_size=settings.pool_size,
            weight=ramp(plan.region, settings.blend_pixels),
            terms=_terms(work, settings, plan),
            optimizer=settings.optimizer,
            plateau=settings.plateau,
            patience=settings.patience,
            before=before,
            progress=progress,
        )
    if outcome.iterations < settings.num_iterations:
        context.note(f"freecompose: stood still after {outcome.iterations} steps, so it stopped")
        context.progress(settings.num_iterations, settings.num_iterations)
    return outcome.z


def run(
    window: Window, backbone: Backbone | None, settings: FreeComposeSettings, context: Context
) -> Painted:
    """Remove what the window's mask covers, or harmonize what is pasted, as the verb says.

    Raises InputError where the mask leaves nothing to go by, or for a perceptual term that this
    checkpoint or this installation does not have.
    """
    import torch

    if backbone is None:
        raise ValueError("freecompose needs a backbone")
    # Not inference_mode: the perceptual terms need gradients of what is made here.
    with torch.no_grad():
        work = Workspace.of(window, backbone, settings, context)
        if context.verb == "remove":
            return replaced(work, _moved(work, settings, _removal(work, settings)), settings.grow)
        after = _moved(work, settings, _harmonization(work, settings))
        if settings.decoding == "plain" and settings.num_iterations > 0:
            return replaced(work, after)
        return residual(work, work.source(), after, settings.smoothing, settings.rim)


METHOD = Method(
    name="freecompose",
    summary="moves the picture's latent along a difference of noise predictions; removes too",
    source="Chen et al. 2024, arXiv 2407.04947; Delta Denoising Score: arXiv 2304.07090",
    verbs=("compose", "harmonize", "remove"),
    settings=FreeComposeSettings,
    run=run,
    needs_model=True,
)
