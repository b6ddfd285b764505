"""What FreeCompose's loop compares with what: its two branches, for each task and variant.

FreeCompose: Chen et al. 2024, arXiv 2407.04947. The loop itself is diffusion/distill.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

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
from inlay.methods.workspace import Workspace, smoothly_filled
from inlay.pictures.arrays import bounds
from inlay.scene.window import Window

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.diffusion.attention_shared import HiddenRegion, SharedSource
    from inlay.diffusion.backbone import Conditioning
    from inlay.diffusion.distill import Branch

__all__ = ["Plan", "harmonization", "removal", "reposed", "semantic"]


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
    import torch

    from inlay.diffusion.distill import Branch

    backbone, settings = work.backbone, work.settings
    uncond: Conditioning | None = None
    if settings.guidance_scale != 1:
        uncond = backbone.embed([settings.negative_prompt], work.size)
    cond = backbone.embed([prompt], work.size)
    if backbone.kind == "plain":
        return Branch(z, cond, uncond, control=control)
    if picture is None:
        # A picture erased as a whole, as in training: its latent is that of grey, which is not 0.
        region, picture = torch.ones_like(region), torch.zeros(1, 3, *work.size)
    seen = work.encode(picture * (1 - work.whole(region)))
    return Branch(z, cond, uncond, region, seen, control)


def removal(work: Workspace, settings: FreeComposeSettings) -> Plan:
    """Both branches are the filled hole, the source under a prompt that names a thing in it.

    Raises InputError where the mask leaves nothing to go by.
    """
    from inlay.diffusion.attention_shared import HiddenRegion, chosen_layers

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
    return Plan(region, source, target, hidden)


def harmonization(work: Workspace, settings: FreeComposeSettings) -> Plan:
    """The source is the background before pasting, the collage named as one, or the noise."""
    window, variant = work.window, settings.variant
    pasted = window.tensor("pasted", work.size)
    region = work.latent_mask(window.mask(work.size), cover=True)
    shown = settings.surroundings
    if shown == "auto":
        shown = "both" if variant == "background" else "target"
    prompt = settings.prompt or HARMONIOUS
    target = _branch(work, work.source(), prompt, region, None if shown == "none" else pasted)
    if variant == "score":
        return Plan(region, None, target)
    if variant == "background":
        before, z = _background(work, region)
        named = settings.source_prompt or prompt
    else:
        before, z, named = pasted, work.source(), settings.source_prompt or COLLAGE
    return Plan(
        region, _branch(work, z, named, region, before if shown == "both" else None), target
    )


def _background(work: Workspace, region: Tensor) -> tuple[Tensor, Tensor]:
    """The picture (1, 3, H, W) before pasting and its latent; where unknown, smoothly filled."""
    window = work.window
    if not np.array_equal(window.clean, window.pasted):
        before = window.tensor("clean", work.size)
        return before, work.encode(before, "clean")
    work.context.note(
        "freecompose: the background before pasting is not known, so a smooth fill stands for it"
    )
    before = smoothly_filled(window.tensor("pasted", work.size), work.whole(region))
    return before, work.encode(before)


def reposed(window: Window, settings: FreeComposeSettings) -> Window:
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
    from inlay.diffusion.control import control_image, fitted

    window, context = work.window, work.context
    drawn = context.control
    attention = _sharing(work, settings) if settings.share else None
    adapter = context.adapter(_adapter_name(work, settings))
    pasted = window.tensor("pasted", work.size)
    lines = [control_image(pasted, settings.control_type)] * 2
    if drawn is not None:
        part = drawn[window.box.slices]
        _look_at(part, work)
        lines[1] = fitted(part, work.size, settings.control_type)
    region = work.latent_mask(window.mask(work.size), cover=True)
    shown = "both" if settings.surroundings == "auto" else settings.surroundings
    prompts = settings.semantic_prompts(drawn is not None)
    branches = []
    sees_it = (("both",), ("both", "target"))
    for text, control, sees in zip(prompts, lines, sees_it, strict=True):
        seen = pasted if shown in sees else None
        features = adapter.features(control, settings.adapter_conditioning_scale)
        branches.append(_branch(work, work.source(), text, region, seen, features))
    return Plan(region, branches[0], branches[1], attention)


def _look_at(drawn: NDArray[np.float32], work: Workspace) -> None:
    """Say what is odd about a control picture (h, w), as far as the window shows it."""
    if not (drawn > 0.5).any():
        work.context.note("freecompose: the control picture shows no lines round the subject")
    elif drawn.mean() > 0.5:
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
    from inlay.diffusion.attention_shared import SharedSource, chosen_layers

    if settings.share_from_layer == "decoder":
        return SharedSource(chosen_layers(work.backbone.unet, "decoder"))
    layers = chosen_layers(work.backbone.unet, int(settings.share_from_layer))
    if not layers:
        count = len(chosen_layers(work.backbone.unet, 0))
        raise InputError(
            f"share_from_layer is {settings.share_from_layer}, but the model has {count} layers of "
            f"self-attention; give 0 to {count - 1}, or decoder."
        )
    return SharedSource(layers)
