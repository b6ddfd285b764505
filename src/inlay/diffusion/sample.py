"""The sampling loop: a pure function of a denoiser, a start and an order of noise levels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from inlay.diffusion.schedule import Schedule, add_noise, ddim_step

__all__ = ["Denoiser", "Hook", "Step", "denoise"]


@dataclass
class Step:
    """One denoising step, as hooks see it.

    number counts the denoising steps made so far (repeats included) out of `total`; index is the
    level the step started from; alpha and alpha_next are the cumulative alphas it goes between.
    x0 and eps are (1, C, h, w); z is the sample at alpha_next.
    """

    number: int
    total: int
    index: int
    timestep: int
    alpha: float
    alpha_next: float
    x0: Tensor
    eps: Tensor
    z: Tensor


class Denoiser(Protocol):
    def __call__(self, z: Tensor, timestep: int, number: int, total: int) -> tuple[Tensor, Tensor]:
        """(eps, x0) for a sample at a timestep."""
        ...


Hook = Callable[[Step], Tensor]


def denoise(
    denoiser: Denoiser,
    z: Tensor,
    schedule: Schedule,
    *,
    indices: Sequence[int],
    noise: Callable[[Tensor], Tensor],
    eta: float = 0.0,
    on_x0: Sequence[Hook] = (),
    on_step: Sequence[Hook] = (),
    progress: Callable[[Step], None] = lambda step: None,
) -> Tensor:
    """Walk `indices` with DDIM steps down and re-noisings up; return the last sample.

    `on_x0` hooks return a new x0 estimate before the step is taken, `on_step` hooks a new sample
    after it, in order. `noise(like)` draws the noise of an upward move, which starts again from
    the latest x0 estimate; of several moves up in a row only the last is carried out, as
    each would overwrite the one before. `eta` is DDIM's share of fresh noise, 0 to 1.
    """
    moves = list(itertools.pairwise(indices))
    total = sum(after < before for before, after in moves)
    number, x0 = 0, z
    for position, (before, after) in enumerate(moves):
        if after > before:
            climbing = position + 1 < len(moves) and moves[position + 1][1] > after
            if not climbing:
                z = add_noise(x0, noise(z), schedule.alpha(after))
            continue
        timestep = schedule.timesteps[before]
        eps, x0 = denoiser(z, timestep, number, total)
        step = Step(
            number, total, before, timestep, schedule.alpha(before), schedule.alpha(after),
            x0, eps, z,
        )  # fmt: skip
        for hook in on_x0:
            step.x0 = hook(step)
        fresh = noise(z) if eta > 0 else None
        step.z = ddim_step(step.x0, step.eps, step.alpha, step.alpha_next, eta, fresh)
        for hook in on_step:
            step.z = hook(step)
        z, x0 = step.z, step.x0
        number += 1
        progress(step)
    return z
