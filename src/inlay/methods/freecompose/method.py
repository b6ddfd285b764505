"""FreeCompose (Chen et al. 2024, arXiv 2407.04947): removal, harmonization and re-posing on frozen
weights.

The picture's own latent moves along the difference of two noise predictions (Delta Denoising
Score): that of the picture as it becomes, and that of a source picture. What the source is and
what either call may see is a plan, one for each task and variant; the loop is diffusion/distill.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inlay.diffusion.attention import FirstLayer, HiddenRegion, SharedSource, self_attention_from
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.branches import control_image, fit_drawing
from inlay.diffusion.conditions import Conditions
from inlay.diffusion.distill import Descent, Iterate, Side, Span, Term, beside, distill
from inlay.diffusion.perceptual import latent_loss
from inlay.diffusion.sample import Denoise, draw_noise, step_count
from inlay.errors import InputError
from inlay.methods.base import Context
from inlay.methods.freecompose import FreeComposeSettings
from inlay.methods.workspace import Workspace, dilate, ramp
from inlay.scene.stitch import Painted, Window


@dataclass
class Plan:
    """What the loop is to do; region is the latent mask (1, 1, h, w) of what may change."""

    region: Tensor
    source: Side | None
    target: Side
    attention: HiddenRegion | SharedSource | None = None


def _plan(
    work: Workspace,
    settings: FreeComposeSettings,
    region: Tensor,
    sides: Sequence[tuple[Tensor, Tensor]],
    attention: HiddenRegion | SharedSource | None = None,
    lines: Sequence[list[Tensor]] = (),
) -> Plan:
    """The plan for source and target, each a latent and the picture (1, 3, H, W) it is made of,
    which an inpainting checkpoint is shown round the region or not; lines are control features.
    """
    verb, drawn = work.context.verb, work.context.control is not None
    guided = settings.guidance_scale != 1
    negative = work.embed(settings.negative_prompt) if guided else None
    prompts, sees = settings.prompts(verb, drawn), settings.sees_surroundings(verb)

    def branch(i: int) -> Side:
        z, picture = sides[i]
        seen = work.conditions(region, picture) if sees[i] else work.blank(region)
        text, control = work.embed(prompts[i]), lines[i] if lines else None
        return Side(z, replace(seen, text=text, negative=negative, control=control))

    source = None if settings.variant == "score" else branch(0)
    return Plan(region, source, branch(1), attention)


def removal(work: Workspace, settings: FreeComposeSettings) -> Plan:
    """Both branches are the filled hole, the source under a prompt that names a thing in it. Raises
    InputError where the mask leaves nothing to go by.
    """
    region = work.latent_mask(work.window.mask(work.size, settings.grow), cover=True)
    if region.all():
        raise InputError("the mask covers all that the model sees; leave some background out.")
    # Both branches start from the fill: a source with the object would bring the object back.
    z = work.smooth_fill(region)[0] if settings.start == "smooth" else work.source()
    since = _since(work, settings, "hide", settings.num_iterations)
    attention = HiddenRegion(region, **since) if settings.hide_region else None
    return _plan(work, settings, region, [(z, work.picture)] * 2, attention)


def harmonization(work: Workspace, settings: FreeComposeSettings) -> Plan:
    """The source is the background before pasting, the collage named as one, or the noise."""
    region = work.latent_mask(work.window.mask(work.size), cover=True)
    window, source = work.window, (work.source(), work.picture)
    sides = [source, source]
    if settings.variant == "background" and np.array_equal(window.clean, window.pasted):
        work.context.note(
            "freecompose: the background before pasting is not known, so a smooth fill stands for "
            "it"
        )
        sides[0] = work.smooth_fill(region)
    elif settings.variant == "background":
        sides[0] = work.source("clean"), window.tensor("clean", work.size)
    return _plan(work, settings, region, sides)


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
    window, context, name = work.window, work.context, settings.adapter
    since = _since(work, settings, "share", settings.num_iterations)
    shared = SharedSource(**since, t_min=settings.share_t_min)
    if not name and work.backbone.name == "embedded":
        name = "embedded"
    if not name:
        raise InputError(
            f"the variant semantic needs the setting adapter for the model {work.backbone.name}: "
            "the folder or the hub id of a T2I-Adapter."
        )
    assert context.models is not None
    adapter = context.adapter = context.models.adapter(name)
    own = drawn = control_image(work.picture, settings.control_type)
    if context.control is not None:
        part = context.control[window.box.slices]
        if not (part > 0.5).any():
            context.note("freecompose: the control picture shows no lines round the subject")
        elif part.mean() > 0.5:
            context.note(
                "freecompose: the control picture is mostly white; lines are white on black"
            )
        drawn = fit_drawing(part, work.size, settings.control_type)
    region = work.latent_mask(window.mask(work.size), cover=True)
    scale = settings.adapter_conditioning_scale
    lines = [adapter.features(each, scale) for each in (own, drawn)]
    attention = shared if settings.share else None
    return _plan(work, settings, region, [(work.source(), work.picture)] * 2, attention, lines)


def _since(work: Workspace, settings: FreeComposeSettings, word: str, steps: int) -> dict[str, Any]:
    """The rule's layer and call, of some steps, from which on attention is to hide or to share, by
    the word's settings; raises InputError for a layer that the model does not have.
    """
    told, layers = str(getattr(settings, f"{word}_from_layer")), work.backbone.layers()
    first: FirstLayer = "decoder" if told == "decoder" else int(told)
    if not self_attention_from(layers, first):
        count = len(self_attention_from(layers, 0))
        raise InputError(
            f"{word}_from_layer is {told}, but the model has {count} layers of self-attention; "
            f"give 0 to {count - 1}, or decoder."
        )
    call = math.ceil(getattr(settings, f"{word}_from_iteration") * steps)
    return {"first_layer": first, "first_call": call}


def _steered(backbone: Backbone, settings: FreeComposeSettings, conditions: Conditions) -> Denoise:
    """A denoiser that is shown the control picture's lines at some timesteps alone."""
    shown, free = (backbone.denoiser(x) for x in (conditions, replace(conditions, control=None)))
    timesteps = range(settings.control_t_min, settings.control_t_max)
    return lambda z, level: (shown if level.timestep in timesteps else free)(z, level)


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
    context, late, pixels = work.context, settings.late_share, settings.blend_pixels
    spans = [Span(1 - late, settings.t_min, settings.t_max)]
    if late > 0:
        spans.append(Span(late, settings.t_min, settings.late_t_max))
    told = settings.model_dump(include={"pool_size", "eta", "optimizer", "plateau", "patience"})
    descent = Descent(spans, settings.num_iterations, **told)

    def tell(now: Iterate) -> None:
        work.tell(now.number + 1, now.total, lambda: work.image(now.z))

    outside, near = settings.outside_weight, dilate(plan.region) if pixels else plan.region
    with work.backbone.attention(plan.attention):
        latent, iterations = distill(
            partial(_steered, work.backbone, settings),
            work.backbone.levels,
            plan.source,
            plan.target,
            descent,
            generator=context.generator,
            # Sharing reads the source's rows, which must then run each time.
            rerun_source=isinstance(plan.attention, SharedSource),
            weight=outside + (1 - outside) * ramp(near, pixels),
            terms=_terms(work, settings, plan),
            progress=tell,
        )
    if iterations < settings.num_iterations:
        context.note(f"freecompose: stood still after {iterations} steps, so it stopped")
        context.progress(settings.num_iterations, context.total)
    context.done = settings.num_iterations
    return latent


def _redraw(
    work: Workspace, settings: FreeComposeSettings, plan: Plan, z: Tensor, steps: int
) -> Tensor:
    """The latent sampled by its lines and prompt: the loop alone leaves outlines soft."""
    attention = plan.attention
    assert plan.source is not None
    if isinstance(attention, SharedSource):
        attention = replace(attention, **_since(work, settings, "share", steps))
    solver = work.backbone.solver("DDIMScheduler", settings.redraw_steps)
    steered = partial(_steered, work.backbone, settings)
    noise = draw_noise(z, work.context.generator)
    denoise = beside(steered, plan.source, plan.target, noise)
    conditions = work.conditions(plan.region)
    with work.backbone.attention(attention):
        return work.paint(solver, conditions, z, settings.redraw, denoise=denoise)


# Not inference_mode: the perceptual terms need gradients of what is made here.
@torch.no_grad()
def run(
    window: Window, backbone: Backbone, settings: FreeComposeSettings, context: Context
) -> Painted:
    """Remove what the window's mask covers, harmonize what is pasted, or re-pose it, as the verb
    and the variant say.

    Raises InputError where the mask leaves nothing to go by, for a perceptual term that this
    checkpoint or this installation does not have, or an adapter that does not fit.
    """
    redraws, reposes = 0, settings.variant == "semantic"
    if reposes:
        window = widen_region(window, settings)
        redraws = step_count(settings.redraw_steps, settings.redraw)
    context.total = settings.num_iterations + redraws
    work = Workspace(window, backbone, settings, context)
    if context.verb == "remove":
        plan = removal(work, settings)
        fill = _distill(work, settings, plan)
        image = work.image(fill)
        if settings.texture > 0:
            # A sample has the texture that a mean of many gradients lacks; as for `inpaint`,
            # ancestral steps leave flat places clean.
            solver = backbone.solver("EulerAncestralDiscreteScheduler", 50)
            seen = plan.target.conditions.masked_latent
            conditions = replace(work.conditions(plan.region), masked_latent=seen)
            sample = work.paint(solver, conditions, fill, settings.texture, lambda step: None)
            image = work.add_texture(image, work.image(sample), plan.region)
        return work.replace_region(image, settings.grow)
    plan = semantic(work, settings) if reposes else harmonization(work, settings)
    after = _distill(work, settings, plan)
    if reposes and settings.redraw > 0:
        after = _redraw(work, settings, plan, after, redraws)
    if (reposes or settings.decoding == "plain") and context.total > 0:
        return work.replace_region(work.image(after))
    return work.add_change(work.source(), after, settings.smoothing, settings.rim)
