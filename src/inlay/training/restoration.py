"""How well a harmonizer gives back what was disturbed, beside doing nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inlay.diffusion.backbone import Backbone, Conditions, Guide
from inlay.diffusion.branches import correct, few_levels
from inlay.pictures.arrays import masked_blur
from inlay.training.batches import Samples, cover

# In squares of 8-bit levels: a change that cannot be seen can neither be undone nor made worse.
_SEEN = 0.5 * (2 / 255) ** 2


@torch.no_grad()
def restoration(
    backbone: Backbone, network: Any, samples: Samples, seed: int, timestep: int | None = None
) -> dict[str, float]:
    """Errors of the one-step answer over those of the pasted picture, inside the masks.

    The answer is correct() of a single step without a prompt, from the pasted picture noised to
    `timestep`, or where that is None from pure noise. latent and picture are sums of squared errors
    over all samples, divided by those of the pasted ones; the picture is written as methods write
    it, the pasted one plus the decoded change; in smooth the change is blurred inside the mask,
    which leaves light and takes away invented detail. improved is the share of samples whose smooth
    picture came nearer to the truth; untouched the squared change where nothing was disturbed, in
    the unit of `picture`. Empty where no sample shows a change.
    """
    names = ("latent", "latent_before", "picture", "picture_before", "smooth")
    rows: list[dict[str, float]] = []
    cond = backbone.embed([""], (samples.truth.shape[2], samples.truth.shape[3]))
    levels = few_levels(backbone, 1) if timestep is None else [backbone.levels[timestep]]
    parts = (x.split(1) for x in (samples.truth, samples.pasted, samples.mask))
    for row, (truth, pasted, mask) in enumerate(zip(*parts, strict=True)):
        if float(_inside((pasted - truth) ** 2, mask)) < _SEEN:
            continue
        hole = cover(mask, backbone.factor)
        seen, z = backbone.encode_masked(truth, hole), backbone.encode(truth)
        figures: dict[str, float] = {}
        for prefix, start in (("", pasted), ("calm_", truth)):
            before = backbone.encode(start)
            guide = Guide(network, torch.cat([start, mask], 1))
            conditions = Conditions(cond, mask=hole, masked_latent=seen, guide=guide)
            after, _ = correct(
                backbone, conditions, before, levels,
                generator=torch.Generator().manual_seed(seed + row),
                from_pasted=timestep is not None,
            )  # fmt: skip
            change = backbone.decode(after) - backbone.decode(before)
            picture = (start + change).clamp(-1, 1)
            blurred = (start + _smooth(change, mask)).clamp(-1, 1)
            compared = (
                (after, z, hole), (before, z, hole),
                (picture, truth, mask), (start, truth, mask), (blurred, truth, mask),
            )  # fmt: skip
            for name, (x, y, m) in zip(names, compared, strict=True):
                figures[prefix + name] = float(_inside((x - y) ** 2, m))
        rows.append(figures)
    if not rows:
        return {}
    total = {name: math.fsum(figures[name] for figures in rows) for name in rows[0]}
    return {
        "latent": total["latent"] / total["latent_before"],
        "picture": total["picture"] / total["picture_before"],
        "smooth": total["smooth"] / total["picture_before"],
        "improved": sum(f["smooth"] < f["picture_before"] for f in rows) / len(rows),
        "untouched": total["calm_picture"] / total["picture_before"],
    }


def _smooth(change: Tensor, mask: Tensor) -> Tensor:
    """A change (1, 3, H, W) blurred inside a mask (1, 1, H, W), by a sixteenth of the picture."""
    picture = np.ascontiguousarray(change[0].permute(1, 2, 0).cpu().numpy())
    weight = mask[0, 0].cpu().numpy()
    smooth = masked_blur(picture, weight, change.shape[3] / 16, mirror=True)
    return torch.from_numpy(smooth).permute(2, 0, 1)[None].to(change.device)


def _inside(error: Tensor, mask: Tensor) -> Tensor:
    """Mean of (1, C, h, w) under a mask (1, 1, h, w)."""
    return (error.mean(1, keepdim=True) * mask).sum() / mask.sum()
