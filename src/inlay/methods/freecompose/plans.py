"""What FreeCompose's loop compares with what: its two branches, for each task and variant.

FreeCompose: Chen et al. 2024, arXiv 2407.04947. The loop itself is diffusion/distill.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from inlay.errors import InputError
from inlay.methods.freecompose.settings import (
    COLLAGE,
    HARMONIOUS,
    WITH_OBJECT,
    WITHOUT_OBJECT,
    FreeComposeSettings,
)
from inlay.methods.workspace import Workspace, fill_smoothly
from inlay.pictures.arrays import bounds
from inlay.scene.window import Window

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.diffusion.attention_shared import HiddenRegion, SharedSource
    from inlay.diffusion.distill import Branch

__all__ = ["Plan", "harmonization", "removal", "semantic", "widen_region"]


@dataclass
class Plan:
    """What the loop is to do: the latent mask of what may change, its two branches, and what is
    changed about self-attention meanwhile.
    """

    region: Tensor
    source: Branch | None
    target: Branch
    attention: HiddenRegion | SharedSource | None = None


def _branch(
    work: Workspace,
    z: Tensor,
    prompt: str,
    region: Tensor,
    picture: Tensor | None,
    control: list[Tensor] | None = None,
) -> Branch:
    """An inpainting checkpoint is shown `picture` (1, 3, H, W) round the region, or nothing."""
    from inlay.diffusion.distill import Branch

    settings, embed = work.settings, work.backbone.embed
    seen = work.blank(region) if picture is None else work.conditions(region, picture)
    guided = settings.guidance_scale != 1
    negative = embed([settings.negative_prompt], work.size) if guided else None
    text = embed([prompt], work.size)
    return Branch(z, replace(seen, text=text, negative=negative, control=control))


def removal(work: Workspace, settings: FreeComposeSettings) -> Plan:
    """Both branches are the filled hole, the source under a prompt that names a thing in it.

    Raises InputError where the mask leaves nothing to go by.
    """
    from inlay.diffusion.attention_shared import HiddenRegion

    picture = work.window.tensor("pasted", work.size)
    region = work.latent_mask(work.window.mask(work.size, settings.grow), cover=True)
    if region.all():
        raise InputError("the mask covers all that the model sees; leave some background out.")
    # Both branches start from the fill: a source with the object would bring the object back.
    smooth = settings.start == "smooth"
    z = work.encode(fill_smoothly(picture, work.whole(region))) if smooth else work.source()
    source_sees, target_sees = settings.sees_surroundings("target")
    prompt = settings.prompt or WITHOUT_OBJECT
    target = _branch(work, z, prompt, region, picture if target_sees else None)
    source = None
    if settings.variant != "score":
        prompt = settings.source_prompt or WITH_OBJECT
        source = _branch(work, z, prompt, region, picture if source_sees else None)
    return Plan(region, source, target, HiddenRegion(region) if settings.hide_region else None)


def harmonization(work: Workspace, settings: FreeComposeSettings) -> Plan:
    """The source is the background before pasting, the collage named as one, or the noise."""
    window, variant = work.window, settings.variant
    pasted = window.tensor("pasted", work.size)
    region = work.latent_mask(window.mask(work.size), cover=True)
    default: Literal["both", "target"] = "both" if variant == "background" else "target"
    source_sees, target_sees = settings.sees_surroundings(default)
    prompt = settings.prompt or HARMONIOUS
    target = _branch(work, work.source(), prompt, region, pasted if target_sees else None)
    if variant == "score":
        return Plan(region, None, target)
    if variant == "background":
        before, z = _background(work, region)
        prompt = settings.source_prompt or prompt
    else:
        before, z, prompt = pasted, work.source(), settings.source_prompt or COLLAGE
    return Plan(region, _branch(work, z, prompt, region, before if source_sees else None), target)


def _background(work: Workspace, region: Tensor) -> tuple[Tensor, Tensor]:
    """The picture (1, 3, H, W) before pasting and its latent; where unknown, smoothly filled."""
    window = work.window
    if not np.array_equal(window.clean, window.pasted):
        before = window.tensor("clean", work.size)
        return before, work.encode(before, "clean")
    work.context.note(
        "freecompose: the background before pasting is not known, so a smooth fill stands for it"
    )
    before = fill_smoothly(window.tensor("pasted", work.size), work.whole(region))
    return before, work.encode(before)


def widen_region(window: Window, settings: FreeComposeSettings) -> Window:
    """The window with the region that a re-posed subject may need: its box, or its mask, grown."""
    if settings.region == "mask":
        return replace(window, alpha=window.region(settings.grow))
    hard = window.region()
    tight = bounds(hard)
    assert tight is not None
    wide = tight.grown(round(settings.grow * max(window.shape)))
    box = np.zeros_like(hard)
    box[max(wide.y, 0) : wide.bottom, max(wide.x, 0) : wide.right] = 1
    return replace(window, alpha=box)


def semantic(work: Workspace, settings: FreeComposeSettings) -> Plan:
    """Both branches are the pasted picture, each with the lines that it is to have.

    The source is shown its own, the target those of the control picture; where there is none it
    has the source's, and the prompts make the difference. The target's queries may see the
    source's keys and values, which keeps the subject what it is. Raises InputError for an adapter
    or a layer that the model does not have.
    """
    from inlay.diffusion.control import control_image, fit_drawing

    window, drawing = work.window, work.context.control
    attention = _sharing(work, settings) if settings.share else None
    adapter = work.context.adapter(_adapter_name(work, settings))
    pasted = window.tensor("pasted", work.size)
    lines = [control_image(pasted, settings.control_type)] * 2
    if drawing is not None:
        part = drawing[window.box.slices]
        _look_at(part, work)
        lines[1] = fit_drawing(part, work.size, settings.control_type)
    region = work.latent_mask(window.mask(work.size), cover=True)
    prompts = settings.semantic_prompts(drawing is not None)
    source, target = (
        _branch(
            work,
            work.source(),
            prompt,
            region,
            pasted if sees else None,
            adapter.features(control, settings.adapter_conditioning_scale),
        )
        for prompt, control, sees in zip(
            prompts, lines, settings.sees_surroundings("both"), strict=True
        )
    )
    return Plan(region, source, target, attention)


def _look_at(drawing: NDArray[np.float32], work: Workspace) -> None:
    """Say what is odd about a control picture (h, w), as far as the window shows it."""
    if not (drawing > 0.5).any():
        work.context.note("freecompose: the control picture shows no lines round the subject")
    elif drawing.mean() > 0.5:
        work.context.note(
            "freecompose: the control picture is mostly white; lines are white on black"
        )


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
    from inlay.diffusion.attention_shared import FirstLayer, SharedSource, self_attention_from

    decoder, layers = settings.share_from_layer == "decoder", work.backbone.layers()
    first: FirstLayer = "decoder" if decoder else int(settings.share_from_layer)
    if not self_attention_from(layers, first):
        count = len(self_attention_from(layers, 0))
        raise InputError(
            f"share_from_layer is {first}, but the model has {count} layers of self-attention; "
            f"give 0 to {count - 1}, or decoder."
        )
    return SharedSource(first, settings.first_shared(settings.num_iterations))
