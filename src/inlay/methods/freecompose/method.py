"""FreeCompose (Chen et al. 2024, arXiv 2407.04947): removal, harmonization and re-posing on frozen
weights.

Nothing is sampled. The picture's own latent moves along the difference of two noise predictions
(Delta Denoising Score): that of the picture as it becomes, and that of a source picture. What the
source is, and what either network call may see, decides what the movement does: that is in
freecompose_plans.py.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from inlay.methods.base import Context, Method, Painted
from inlay.methods.freecompose.plans import (
    Plan,
    harmonization,
    removal,
    reposed,
    semantic,
)
from inlay.methods.freecompose.settings import PRESETS, FreeComposeSettings
from inlay.methods.workspace import (
    Workspace,
    painted_in,
    replaced,
    residual,
    textured,
)
from inlay.scene.window import Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from inlay.diffusion.attention_shared import Role
    from inlay.diffusion.backbone import Backbone, Conditioning
    from inlay.diffusion.distill import Iterate, Term
    from inlay.diffusion.redraw import Predictor

__all__ = ["METHOD", "FreeComposeSettings"]

# As for `inpaint`: ancestral steps leave flat places clean.
_SCHEDULER, _TEXTURE_STEPS = "EulerAncestralDiscreteScheduler", 50


def _terms(work: Workspace, settings: FreeComposeSettings, plan: Plan) -> list[Term]:
    """The perceptual terms: how far the picture may look different from where it started."""
    from inlay.diffusion.distill import Term
    from inlay.diffusion.perceptual import latent_loss

    inside = work.whole(plan.region).to(work.backbone.device)
    weights = [(settings.background_weight, 1 - inside, True)]
    if work.context.verb != "remove" and settings.variant != "semantic":
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


def _predictor(work: Workspace, settings: FreeComposeSettings) -> Predictor:
    """The backbone's noise and x0, with control at the timesteps that have it."""

    def predict(
        z: Tensor,
        t: int,
        cond: Conditioning,
        uncond: Conditioning | None = None,
        guidance_scale: float = 1.0,
        mask: Tensor | None = None,
        masked_latent: Tensor | None = None,
        control: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        acts = settings.control_t_min <= t < settings.control_t_max
        shown = control if acts else None
        return work.backbone.predict_both(
            z, t, cond, uncond, guidance_scale, mask, masked_latent, shown
        )

    return predict


def _moved(work: Workspace, settings: FreeComposeSettings, plan: Plan) -> Tensor:
    """The latent after the loop; the U-Net is afterwards as it was."""
    from inlay.diffusion.attention import swapped_processors
    from inlay.diffusion.attention_shared import SharedSource
    from inlay.diffusion.distill import distill
    from inlay.diffusion.draws import Span
    from inlay.diffusion.ilvr import ramp

    backbone, context, attention = work.backbone, work.context, plan.attention
    late = settings.late_share
    spans = [Span(1 - late, settings.t_min, settings.t_max)]
    if late > 0:
        spans.append(Span(late, settings.t_min, settings.late_t_max))

    def before(number: int, t: int, rows: Sequence[Role]) -> None:
        if attention is not None:
            attention.roles = rows
        if isinstance(attention, SharedSource):
            attention.on = number >= settings.share_from_iteration * settings.num_iterations

    def progress(iterate: Iterate) -> None:
        preview = work.preview(iterate.z) if context.previews else None
        context.progress(iterate.number + 1, _total(settings), preview)

    predict = _predictor(work, settings)
    scope = swapped_processors(backbone.unet, attention.processor) if attention else nullcontext()
    with scope:
        outcome = distill(
            lambda *branches: predict(*branches)[0],
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
            # Sharing reads the source's rows, which must then run each time.
            rerun_source=isinstance(attention, SharedSource),
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
        context.progress(settings.num_iterations, _total(settings))
    return outcome.z


def _sampled(work: Workspace, settings: FreeComposeSettings, plan: Plan, z: Tensor) -> Tensor:
    """The latent noised, then sampled: it has the texture that a mean of many gradients lacks."""
    context, backbone = work.context, work.backbone
    seen = plan.target.masked_latent
    denoiser = backbone.denoiser(replace(work.conditions(plan.region), masked_latent=seen))
    return backbone.solver(_SCHEDULER, _TEXTURE_STEPS)(
        denoiser,
        z,
        strength=settings.texture,
        noise=context.noise,
        generator=context.generator,
        keep_outside=denoiser.keep_outside,
    )


def _redrawn(work: Workspace, settings: FreeComposeSettings, plan: Plan, z: Tensor) -> Tensor:
    """The latent sampled by its lines and prompt: the loop alone leaves outlines soft."""
    from inlay.diffusion.attention import swapped_processors
    from inlay.diffusion.attention_shared import SharedSource
    from inlay.diffusion.redraw import redraw

    backbone, context, attention = work.backbone, work.context, plan.attention
    if plan.source is None:
        raise ValueError("only a plan with two branches can be redrawn")

    def before(number: int, total: int, rows: Sequence[Role]) -> None:
        if isinstance(attention, SharedSource):
            attention.roles = rows
            attention.on = number >= settings.share_from_iteration * total

    scope = swapped_processors(backbone.unet, attention.processor) if attention else nullcontext()
    with scope:
        return redraw(
            _predictor(work, settings),
            backbone.solver("DDIMScheduler", settings.redraw_steps),
            plan.source,
            replace(plan.target, z=z),
            strength=settings.redraw,
            noise=context.noise,
            generator=context.generator,
            guidance_scale=settings.guidance_scale,
            keep_outside=plan.region if backbone.kind == "plain" else None,
            before=before,
            progress=work.progress(settings.num_iterations, _total(settings)),
        )


def _total(settings: FreeComposeSettings) -> int:
    """Steps of the loop and of the sampling at its end, where a picture is redrawn."""
    redraws = settings.variant == "semantic" and settings.redraw > 0
    sampled = int(settings.redraw_steps * settings.redraw + 1e-9) if redraws else 0
    return settings.num_iterations + sampled


def run(
    window: Window, backbone: Backbone | None, settings: FreeComposeSettings, context: Context
) -> Painted:
    """Remove what the window's mask covers, harmonize what is pasted, or re-pose it, as the verb
    and the variant say.

    Raises InputError where the mask leaves nothing to go by, for a perceptual term that this
    checkpoint or this installation does not have, or a variant or adapter that does not fit.
    """
    import torch

    if backbone is None:
        raise ValueError("freecompose needs a backbone")
    settings.check_use(context.verb, context.control is not None)
    reposes = settings.variant == "semantic"
    if reposes:
        window = reposed(window, settings)
    # Not inference_mode: the perceptual terms need gradients of what is made here.
    with torch.no_grad():
        work = Workspace.of(window, backbone, settings, context)
        if context.verb == "remove":
            plan = removal(work, settings)
            filled = _moved(work, settings, plan)
            if settings.texture == 0:
                return replaced(work, filled, settings.grow)
            sample = _sampled(work, settings, plan, filled)
            return painted_in(work, textured(work, filled, sample, plan.region), settings.grow)
        plan = semantic(work, settings) if reposes else harmonization(work, settings)
        after = _moved(work, settings, plan)
        if reposes and settings.redraw > 0:
            after = _redrawn(work, settings, plan, after)
        if (reposes or settings.decoding == "plain") and _total(settings) > 0:
            return replaced(work, after)
        return residual(work, work.source(), after, settings.smoothing, settings.rim)


METHOD = Method(
    name="freecompose",
    summary="moves the picture's latent along a difference of noise predictions; removes and "
    "re-poses too",
    source="Chen et al. 2024, arXiv 2407.04947; Delta Denoising Score: arXiv 2304.07090",
    verbs=("compose", "harmonize", "remove"),
    settings=FreeComposeSettings,
    run=run,
    needs_model=True,
    presets=PRESETS,
)
