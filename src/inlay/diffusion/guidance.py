"""Classifier-free guidance that keeps the spread of what the words alone say."""

from __future__ import annotations

from torch import Tensor

__all__ = ["rescaled"]


def rescaled(
    unconditional: Tensor, conditional: Tensor, scale: float, share: float = 0.7
) -> Tensor:
    """Guidance on raw outputs (n, C, h, w), whose rows have about the conditional ones' spread.

    g = u + scale * (c - u); the result is share * g * std(c) / std(g) + (1 - share) * g, with the
    standard deviations over a row (Lin et al. 2024, arXiv 2305.08891, eq. 14 to 16). Where little
    is given, plain guidance drives large areas to pure black or white.
    """
    guided = unconditional + scale * (conditional - unconditional)
    spread = [
        x.flatten(1).std(1).clamp_min(1e-6)[:, None, None, None] for x in (conditional, guided)
    ]
    return guided * (share * spread[0] / spread[1] + 1 - share)
