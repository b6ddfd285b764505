"""A loss that makes the words matter: a picture's own caption has to explain it best.

The denoising error by caption is what a diffusion model classifies with (Li et al. 2023, "Your
diffusion model is secretly a zero-shot classifier", arXiv 2303.16203). Where the outline and the
surroundings tell what is missing, plain training has next to no reason to read the caption, and
guidance has nothing to push with. Here the margin between the two errors is trained, and no
further than to MARGIN, so that a caption that does not fit costs a picture no more than that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.nn import functional

__all__ = ["MARGIN", "contrast", "other_captions"]

MARGIN = 0.02


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
    """Mean over rows of max(0, margin - (other - own) / own), errors taken inside the hole.

    `own` and `other` are squared errors (N, C, h, w) under the two captions, `hole` (N, 1, h, w)
    holds 0 and 1. Rows without a hole count as 0.
    """
    size = hole.sum((1, 2, 3)) * own.shape[1]
    first, second = ((error * hole).sum((1, 2, 3)) / size.clamp_min(1) for error in (own, other))
    gap = (second - first) / first.detach().clamp_min(1e-6)
    return (functional.relu(margin - gap) * (size > 0)).mean()
