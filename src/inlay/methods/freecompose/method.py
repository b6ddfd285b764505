"""FreeCompose (Chen et al. 2024, arXiv 2407.04947): removal, harmonization and re-posing on frozen
weights.

Nothing is sampled. The picture's own latent moves along the difference of two noise predictions
(Delta Denoising Score): that of the picture as it becomes, and that of a source picture. What the
source is, and what either network call may see, decides what the movement does: that is in
plans.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from inlay.methods.base import Context, Method, Painted
from inlay.methods.freecompose.plans import Plan, harmonization, removal, semantic, widen_region
from inlay.methods.freecompose.settings import PRESETS, FreeComposeSettings
from inlay.methods.workspace import Workspace, add_change, add_texture, replace_region
from inlay.scene.window import Window

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.diffusion.backbone import Backbone, Conditions
    from inlay.diffusion.distill import Iterate, Term
    from inlay.diffusion.sample import Denoise, Level

__all__ = ["METHOD", "FreeComposeSettings"]

# As for `inpaint`: ancestral steps leave flat places clean.
_SCHEDULER, _TEXTURE_STEPS = "EulerAncestralDiscreteScheduler", 50


@dataclass(frozen=True)
class _Steered:
    """A backbone's denoiser that is shown the control picture's lines at some timesteps alone."""

    backbone: Backbone
    timesteps: range

    def denoiser(self, conditions: Conditions) -> Denoise:
        steered = self.backbone.denoiser(conditions)
        free = self.backbone.denoiser(replace(conditions, control=None))

        def denoise(z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
            return (steered if level.timestep in self.timesteps else free)(z, level)

        return denoise


def _steered(work: Workspace, settings: FreeComposeSettings) -> _Steered:
    return _Steered(work.backbone, range(settings.control_t_min, settings.control_t_max))


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


def _distill(work: Workspace, settings: FreeComposeSettings, plan: Plan) -> Tensor:
    """The latent after the loop."""
    from inlay.diffusion.attention_shared import SharedSource
    from inlay.diffusion.distill import Descent, Span, distill
    from inlay.diffusion.ilvr import ramp

    backbone, context, late = work.backbone, work.context, settings.late_share
    spans = [Span(1 - late, settings.t_min, settings.t_max)]
    if late > 0:
        spans.append(Span(late, settings.t_min, settings.late_t_max))

    def progress(iterate: Iterate) -> None:
        preview = work.preview(iterate.z) if context.previews else None
        context.progress(iterate.number + 1, _total(settings), preview)

    with backbone.attention(plan.attention):
        z, iterations = distill(
            _steered(work, settings).denoiser,
            backbone.levels,
            plan.source,
            plan.target,
            Descent(
                spans,
                settings.num_iterations,
                settings.pool_size,
                settings.eta,
                settings.optimizer,
                settings.plateau,
                settings.patience,
            ),
            generator=context.generator,
            # Sharing reads the source's rows, which must then run each time.
            rerun_source=isinstance(plan.attention, SharedSource),
            weight=ramp(plan.region, settings.blend_pixels),
            terms=_terms(work, settings, plan),
            progress=progress,
        )
    if iterations < settings.num_iterations:
        context.note(f"freecompose: stood still after {iterations} steps, so it stopped")
        context.progress(settings.num_iterations, _total(settings))
    return z


def _sample(work: Workspace, settings: FreeComposeSettings, plan: Plan, z: Tensor) -> Tensor:
    """The latent noised, then sampled: it has the texture that a mean of many gradients lacks."""
    seen = plan.target.conditions.masked_latent
    denoiser = work.backbone.denoiser(replace(work.conditions(plan.region), masked_latent=seen))
    return work.backbone.solver(_SCHEDULER, _TEXTURE_STEPS)(
        denoiser,
        z,
        strength=settings.texture,
        generator=work.context.generator,
        keep_outside=denoiser.keep_outside,
    )


def _redraw(work: Workspace, settings: FreeComposeSettings, plan: Plan, z: Tensor) -> Tensor:
    """The latent sampled by its lines and prompt: the loop alone leaves outlines soft."""
    from inlay.diffusion.attention_shared import SharedSource
    from inlay.diffusion.distill import redraw

    backbone, context, attention = work.backbone, work.context, plan.attention
    if plan.source is None:
        raise ValueError("only a plan with two branches can be redrawn")
    if isinstance(attention, SharedSource):
        attention = replace(attention, first_call=settings.first_shared(_redraw_steps(settings)))
    with backbone.attention(attention):
        return redraw(
            _steered(work, settings).denoiser,
            backbone.solver("DDIMScheduler", settings.redraw_steps),
            plan.source,
            replace(plan.target, z=z),
            strength=settings.redraw,
            generator=context.generator,
            keep_outside=backbone.denoiser(work.conditions(plan.region)).keep_outside,
            progress=work.progress(settings.num_iterations, _total(settings)),
        )


def _redraw_steps(settings: FreeComposeSettings) -> int:
    from inlay.diffusion.sample import step_count

    redraws = settings.variant == "semantic"
    return step_count(settings.redraw_steps, settings.redraw) if redraws else 0


def _total(settings: FreeComposeSettings) -> int:
    """Steps of the loop and of the sampling at its end, where a picture is redrawn."""
    return settings.num_iterations + _redraw_steps(settings)


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
        window = widen_region(window, settings)
    # Not inference_mode: the perceptual terms need gradients of what is made here.
    with torch.no_grad():
        work = Workspace.of(window, backbone, settings, context)
        if context.verb == "remove":
            plan = removal(work, settings)
            fill = _distill(work, settings, plan)
            if settings.texture == 0:
                return replace_region(work, work.image(fill), settings.grow)
            sample = _sample(work, settings, plan, fill)
            image = add_texture(work, fill, sample, plan.region)
            return replace_region(work, image, settings.grow)
        plan = semantic(work, settings) if reposes else harmonization(work, settings)
        after = _distill(work, settings, plan)
        if reposes and settings.redraw > 0:
            after = _redraw(work, settings, plan, after)
        if (reposes or settings.decoding == "plain") and _total(settings) > 0:
            return replace_region(work, work.image(after))
        return add_change(work, work.source(), after, settings.smoothing, settings.rim)


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
