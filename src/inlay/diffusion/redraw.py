"""Sampling of a target beside its source: one batch, so that attention can pass between the two.

It is MasaCtrl's way to another pose (Cao et al. 2023, arXiv 2304.08465): the target is sampled by
its own prompt and lines, and reads the keys and values of the source at the same noise level. Here
the source is noised to each level instead of being inverted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from inlay.diffusion.attention_shared import Role
from inlay.diffusion.distill import Branch, roles
from inlay.diffusion.sample import Level, Step, step_count
from inlay.diffusion.text import Conditioning, join

__all__ = ["Predictor", "redraw"]


class Predictor(Protocol):
    """(eps, x0) after guidance of several latents, as Backbone.predict_both() gives them."""

    def __call__(
        self,
        z: Tensor,
        t: int,
        cond: Conditioning,
        uncond: Conditioning | None = None,
        guidance_scale: float = 1.0,
        mask: Tensor | None = None,
        masked_latent: Tensor | None = None,
        control: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]: ...


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else torch.cat([a, b])


def redraw(
    predict: Predictor,
    solver: Any,
    source: Branch,
    target: Branch,
    *,
    strength: float,
    noise: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    guidance_scale: float = 1.0,
    keep_outside: Tensor | None = None,
    before: Callable[[int, int, tuple[Role, ...]], None] = lambda number, total, rows: None,
    progress: Callable[[Step], None] = lambda step: None,
) -> Tensor:
    """The target's latent (1, C, h, w), noised to the level of `strength` and sampled from there.

    predict gets the rows [source, target], the source's latent under the same noise at each of the
    solver's levels; alphas (T,) are the cumulative alphas. solver, steps, strength, noise,
    generator and keep_outside are those of solve(). `before(number, total, roles)` is called ahead
    of each prediction, the roles with unconditional rows first.
    """
    uncond = None
    if source.uncond is not None and target.uncond is not None and guidance_scale != 1:
        uncond = join(source.uncond, target.uncond)
    cond = join(source.cond, target.cond)
    mask = _both(source.mask, target.mask)
    seen = _both(source.masked_latent, target.masked_latent)
    control = None
    if source.control is not None and target.control is not None:
        control = [torch.cat(pair) for pair in zip(source.control, target.control, strict=True)]
    fixed = noise(source.z)

    calls = itertools.count()

    def denoiser(z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        assert isinstance(level.timestep, int)
        before(next(calls), step_count(solver.steps, strength), roles(True, uncond is not None))
        rows = torch.cat([level.add_noise(source.z, fixed), z])
        eps, x0 = predict(rows, level.timestep, cond, uncond, guidance_scale, mask, seen, control)
        return eps[1:], x0[1:]

    result: Tensor = solver(
        denoiser,
        target.z,
        strength=strength,
        noise=noise,
        generator=generator,
        keep_outside=keep_outside,
        progress=progress,
    )
    return result
