"""FreeCompose (Chen et al. 2024, arXiv 2407.04947): removal, harmonization and re-posing on frozen
weights.

Nothing is sampled. The picture's own latent moves along the difference of two noise predictions
(Delta Denoising Score): that of the picture as it becomes, and that of a source picture. What the
source is, and what either network call may see, decides what the movement does: that is a plan, one
for each task and variant. The loop itself is diffusion/distill.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from inlay.diffusion.attention import (
    FirstLayer,
    HiddenRegion,
    SharedSource,
    self_attention_from,
)
from inlay.diffusion.backbone import Backbone, Conditions
from inlay.diffusion.branches import control_image, fit_drawing
from inlay.diffusion.distill import Descent, Side, Span, Term, beside, distill
from inlay.diffusion.perceptual import latent_loss
from inlay.diffusion.sample import Denoise, Level, step_count
from inlay.errors import InputError
from inlay.methods.base import Context
from inlay.methods.freecompose.settings import FreeComposeSettings
from inlay.methods.workspace import (
    Workspace,
    add_change,
    add_texture,
    fill_smoothly,
    ramp,
    replace_region,
)
from inlay.scene.window import Painted, Window

# As for `inpaint`: ancestral steps leave flat places clean.
_SCHEDULER, _TEXTURE_STEPS = "EulerAncestralDiscreteScheduler", 50


@dataclass
class Plan:
    """What the loop is to do: the latent mask of what may change, its two branches, and what is
    changed about self-attention meanwhile.
    """

    region: Tensor
    source: Side | None
    target: Side
    attention: HiddenRegion | SharedSource | None = None


def _branch(
    work: Workspace,
    z: Tensor,
    prompt: str,
    region: Tensor,
    picture: Tensor | None,
    control: list[Tensor] | None = None,
) -> Side:
    """An inpainting checkpoint is shown `picture` (1, 3, H, W) round the region, or nothing."""
    settings, embed = work.settings, work.backbone.embed
    seen = work.blank(region) if picture is None else work.conditions(region, picture)
    guided = settings.guidance_scale != 1
    negative = embed([settings.negative_prompt], work.size) if guided else None
    text = embed([prompt], work.size)
    return Side(z, replace(seen, text=text, negative=negative, control=control))


def removal(work: Workspace, settings: FreeComposeSettings) -> Plan:
    """Both branches are the filled hole, the source under a prompt that names a thing in it.

    Raises InputError where the mask leaves nothing to go by.
    """
    region = work.latent_mask(work.window.mask(work.size, settings.grow), cover=True)
    if region.all():
        raise InputError("the mask covers all that the model sees; leave some background out.")
    # Both branches start from the fill: a source with the object would bring the object back.
    smooth = settings.start == "smooth"
    z = work.encode(fill_smoothly(work.picture, work.whole(region))) if smooth else work.source()
    source_sees, target_sees = settings.sees_surroundings("target")
    source, prompts = None, settings.prompts("remove")
    if settings.variant != "score":
        source = _branch(work, z, prompts[0], region, work.picture if source_sees else None)
    target = _branch(work, z, prompts[1], region, work.picture if target_sees else None)
    return Plan(region, source, target, HiddenRegion(region) if settings.hide_region else None)


def harmonization(work: Workspace, settings: FreeComposeSettings) -> Plan:
    """The source is the background before pasting, the collage named as one, or the noise."""
    variant, before, z = settings.variant, work.picture, work.source()
    region = work.latent_mask(work.window.mask(work.size), cover=True)
    default: Literal["both", "target"] = "both" if variant == "background" else "target"
    source_sees, target_sees = settings.sees_surroundings(default)
    source, prompts = None, settings.prompts(work.context.verb)
    target = _branch(work, z, prompts[1], region, before if target_sees else None)
    if variant == "background":
        before, z = _background(work, region)
    if variant != "score":
        source = _branch(work, z, prompts[0], region, before if source_sees else None)
    return Plan(region, source, target)


def _background(work: Workspace, region: Tensor) -> tuple[Tensor, Tensor]:
    """The picture (1, 3, H, W) before pasting and its latent; where unknown, smoothly filled."""
    window = work.window
    if not np.array_equal(window.clean, window.pasted):
        before = window.tensor("clean", work.size)
        return before, work.encode(before, "clean")
    work.context.note(
        "freecompose: the background before pasting is not known, so a smooth fill stands for it"
    )
    before = fill_smoothly(work.picture, work.whole(region))
    return before, work.encode(before)


def widen_region(window: Window, settings: FreeComposeSettings) -> Window:
    """The window with the region that a re-posed subject may need: its box, or its mask, grown."""
    if settings.region == "mask":
        return replace(window, alpha=window.region(settings.grow))
    wide = window.region_box().grown(round(settings.grow * max(window.shape)))
    box = np.zeros_like(window.alpha)
    box[max(wide.y, 0) : wide.bottom, max(wide.x, 0) : wide.right] = 1
    return replace(window, alpha=box)


def semantic(work: Workspace, settings: FreeComposeSettings) -> Plan:
    """Both branches are the pasted picture, each with the lines that it is to have.

    The source is shown its own, the target those of the control picture; where there is none it
    has the source's, and the prompts make the difference. The target's queries may see the
    source's keys and values, which keeps the subject what it is. Raises InputError for an adapter
    or a layer that the model does not have.
    """
    window, drawing, note = work.window, work.context.control, work.context.note
    attention = _sharing(work, settings) if settings.share else None
    assert work.context.models is not None
    adapter = work.context.models.adapter(_adapter_name(work, settings))
    work.context.adapter = adapter
    lines = [control_image(work.picture, settings.control_type)] * 2
    if drawing is not None:
        part = drawing[window.box.slices]
        if not (part > 0.5).any():
            note("freecompose: the control picture shows no lines round the subject")
        elif part.mean() > 0.5:
            note("freecompose: the control picture is mostly white; lines are white on black")
        lines[1] = fit_drawing(part, work.size, settings.control_type)
    region = work.latent_mask(window.mask(work.size), cover=True)
    prompts = settings.prompts("compose", drawing is not None)
    sees = settings.sees_surroundings("both")
    source, target = (
        _branch(
            work,
            work.source(),
            prompts[i],
            region,
            work.picture if sees[i] else None,
            adapter.features(lines[i], settings.adapter_conditioning_scale),
        )
        for i in (0, 1)
    )
    return Plan(region, source, target, attention)


def _adapter_name(work: Workspace, settings: FreeComposeSettings) -> str:
    if settings.adapter:
        return settings.adapter
    if work.backbone.name == "embedded":
        return "embedded"
    raise InputError(
        f"the variant semantic needs the setting adapter for the model {work.backbone.name}: the "
        "folder or the hub id of a T2I-Adapter."
    )


def _sharing(work: Workspace, settings: FreeComposeSettings) -> SharedSource:
    decoder, layers = settings.share_from_layer == "decoder", work.backbone.layers()
    first: FirstLayer = "decoder" if decoder else int(settings.share_from_layer)
    if not self_attention_from(layers, first):
        count = len(self_attention_from(layers, 0))
        raise InputError(
            f"share_from_layer is {first}, but the model has {count} layers of self-attention; "
            f"give 0 to {count - 1}, or decoder."
        )
    return SharedSource(first, settings.first_shared(settings.num_iterations))


@dataclass(frozen=True)
class _Steered:
    """A backbone's denoiser that is shown the control picture's lines at some timesteps alone."""

    backbone: Backbone
    settings: FreeComposeSettings

    def denoiser(self, conditions: Conditions) -> Denoise:
        steered = self.backbone.denoiser(conditions)
        free = self.backbone.denoiser(replace(conditions, control=None))
        timesteps = range(self.settings.control_t_min, self.settings.control_t_max)

        def denoise(z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
            return (steered if level.timestep in timesteps else free)(z, level)

        return denoise


def _terms(work: Workspace, settings: FreeComposeSettings, plan: Plan) -> list[Term]:
    """The perceptual terms: how far the picture may look different from where it started."""
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
    context, late = work.context, settings.late_share
    spans = [Span(1 - late, settings.t_min, settings.t_max)]
    if late > 0:
        spans.append(Span(late, settings.t_min, settings.late_t_max))
    descent = Descent(
        spans,
        settings.num_iterations,
        settings.pool_size,
        settings.eta,
        settings.optimizer,
        settings.plateau,
        settings.patience,
    )
    with work.backbone.attention(plan.attention):
        latent, iterations = distill(
            _Steered(work.backbone, settings).denoiser,
            work.backbone.levels,
            plan.source,
            plan.target,
            descent,
            generator=context.generator,
            # Sharing reads the source's rows, which must then run each time.
            rerun_source=isinstance(plan.attention, SharedSource),
            weight=ramp(plan.region, settings.blend_pixels),
            terms=_terms(work, settings, plan),
            progress=lambda iterate: work.tell(iterate.number + 1, iterate.total, iterate.z),
        )
    if iterations < settings.num_iterations:
        context.note(f"freecompose: stood still after {iterations} steps, so it stopped")
        context.progress(settings.num_iterations, context.total)
    context.done = settings.num_iterations
    return latent


def _sample(work: Workspace, settings: FreeComposeSettings, plan: Plan, z: Tensor) -> Tensor:
    """The latent noised, then sampled: it has the texture that a mean of many gradients lacks."""
    seen = plan.target.conditions.masked_latent
    conditions = replace(work.conditions(plan.region), masked_latent=seen)
    solver = work.backbone.solver(_SCHEDULER, _TEXTURE_STEPS)
    return work.paint(solver, conditions, z, settings.texture, lambda step: None)


def _redraw(work: Workspace, settings: FreeComposeSettings, plan: Plan, z: Tensor) -> Tensor:
    """The latent sampled by its lines and prompt: the loop alone leaves outlines soft."""
    attention = plan.attention
    assert plan.source is not None
    if isinstance(attention, SharedSource):
        attention = replace(attention, first_call=settings.first_shared(_redraw_steps(settings)))
    solver = work.backbone.solver("DDIMScheduler", settings.redraw_steps)
    steered = _Steered(work.backbone, settings).denoiser
    denoise = beside(steered, plan.source, plan.target, work.context.noise(plan.source.z))
    conditions = work.conditions(plan.region)
    with work.backbone.attention(attention):
        return work.paint(solver, conditions, z, settings.redraw, denoise=denoise)


def _redraw_steps(settings: FreeComposeSettings) -> int:
    redraws = settings.variant == "semantic"
    return step_count(settings.redraw_steps, settings.redraw) if redraws else 0


# Not inference_mode: the perceptual terms need gradients of what is made here.
@torch.no_grad()
def run(
    window: Window, backbone: Backbone, settings: FreeComposeSettings, context: Context
) -> Painted:
    """Remove what the window's mask covers, harmonize what is pasted, or re-pose it, as the verb
    and the variant say.

    Raises InputError where the mask leaves nothing to go by, for a perceptual term that this
    checkpoint or this installation does not have, or a variant or adapter that does not fit.
    """
    settings.check_use(context.verb, context.control is not None)
    reposes = settings.variant == "semantic"
    if reposes:
        window = widen_region(window, settings)
    context.total = settings.num_iterations + _redraw_steps(settings)
    work = Workspace.of(window, backbone, settings, context)
    if context.verb == "remove":
        plan = removal(work, settings)
        fill = _distill(work, settings, plan)
        image = work.image(fill)
        if settings.texture > 0:
            sample = work.image(_sample(work, settings, plan, fill))
            image = add_texture(work, image, sample, plan.region)
        return replace_region(work, image, settings.grow)
    plan = semantic(work, settings) if reposes else harmonization(work, settings)
    after = _distill(work, settings, plan)
    if reposes and settings.redraw > 0:
        after = _redraw(work, settings, plan, after)
    if (reposes or settings.decoding == "plain") and context.total > 0:
        return replace_region(work, work.image(after))
    return add_change(work, work.source(), after, settings.smoothing, settings.rim)
