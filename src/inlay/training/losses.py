"""What the losses of training weigh and compare."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

MARGIN = 0.02


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """A picture's holes (N, 1, H, W) as those of its latent, (N, 1, H / factor, W / factor)."""
    return mask[:, :, ::factor, ::factor]


def erase(x: Tensor, hole: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) with what latent holes (N, 1, h, w) stand for set to 0.

    Whole patches are erased, as inference does: a patch half erased is neither seen nor hole.
    """
    factor = x.shape[3] // hole.shape[3]
    return x * (1 - hole.repeat_interleave(factor, 2).repeat_interleave(factor, 3))


def channel_weight(z: Tensor, power: float) -> Tensor:
    """What each channel of latents (N, C, h, w) weighs in a loss: (1, C, 1, 1), 1 on average.

    What a channel weighs in the picture grows with the square of its deviation; a smaller power
    keeps the finer channels in the game.
    """
    visible = z.std((0, 2, 3)) ** power
    return (visible / visible.mean()).view(1, -1, 1, 1)


def local_mean(x: Tensor, mask: Tensor) -> Tensor:
    """x (N, C, h, w) averaged inside a mask (N, 1, h, w) of 0 and 1 about every pixel, 0 outside.

    A Gaussian of a sixteenth of the longer side, normalised by what of it is inside the mask.
    """
    deviation = max(x.shape[2:]) / 16
    reach = math.ceil(3 * deviation)
    bell = torch.exp(-(torch.arange(-reach, reach + 1, device=x.device) ** 2) / 2 / deviation**2)
    # Mask and picture in one: both are blurred alike.
    both = torch.cat([x * mask, mask], 1)
    count = both.shape[1]
    for shape, padding in (((-1, 1), (reach, 0)), ((1, -1), (0, reach))):
        kernel = bell.view(1, 1, *shape).expand(count, 1, -1, -1)
        both = functional.conv2d(both, kernel.to(both), padding=padding, groups=count)
    return both[:, :-1] / both[:, -1:].clamp_min(1e-6) * mask


def other_captions(
    captions: Sequence[str], pool: Sequence[str], rng: np.random.Generator
) -> list[str]:
    """For each caption one of `pool` that differs from it; itself where all are the same."""
    chosen = []
    for caption in captions:
        others = [pool[i] for i in rng.integers(0, len(pool), 8) if pool[i] != caption]
        chosen.append(others[0] if others else caption)
    return chosen


def contrast(own: Tensor, other: Tensor, hole: Tensor, margin: float = MARGIN) -> Tensor:
    """A loss that makes the words matter: a picture's own caption has to explain it best.

    Mean over rows of max(0, margin - (other - own) / own), errors taken inside the hole. `own` and
    `other` are squared errors (N, C, h, w) under the two captions, `hole` (N, 1, h, w) holds 0 and
    1. Rows without a hole count as 0.

    The denoising error by caption is what a diffusion model classifies with (Li et al. 2023, "Your
    diffusion model is secretly a zero-shot classifier", arXiv 2303.16203). Where the outline and
    the surroundings tell what is missing, plain training has next to no reason to read the caption,
    and guidance has nothing to push with. The margin between the errors is trained, and no further
    than to MARGIN, so that a caption that does not fit costs a picture no more than that.
    """
    size = hole.sum((1, 2, 3)) * own.shape[1]
    first, second = ((error * hole).sum((1, 2, 3)) / size.clamp_min(1) for error in (own, other))
    gap = (second - first) / first.detach().clamp_min(1e-6)
    return (functional.relu(margin - gap) * (size > 0)).mean()
