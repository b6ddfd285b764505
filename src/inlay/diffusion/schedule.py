"""Noise levels, the DDIM step, and the order in which a run visits them.

Timesteps come from diffusers' own DDIMScheduler, so spacing, offset and the final level follow the
checkpoint's scheduler config. A noise level is addressed by its index: 0 is the least noisy
level a model is called at, S - 1 the noisiest, and -1 the clean picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Schedule", "add_noise", "ddim_schedule", "ddim_step", "repaint_indices", "sigma"]


@dataclass(frozen=True)
class Schedule:
    """The levels of one run, least noisy first.

    timesteps[k] is the model's timestep at level k, alphas[k] its cumulative alpha, and
    `final_alpha` the cumulative alpha of level -1 (1 where the checkpoint ends in a clean picture).
    """

    timesteps: tuple[int, ...]
    alphas: tuple[float, ...]
    final_alpha: float

    def __len__(self) -> int:
        return len(self.timesteps)

    def alpha(self, index: int) -> float:
        """Cumulative alpha of level `index`; -1 is the end of the run."""
        return self.final_alpha if index < 0 else self.alphas[index]


def ddim_schedule(
    scheduler_config: Mapping[str, Any], num_inference_steps: int, strength: float = 1.0
) -> Schedule:
    """The DDIM levels (Song et al. 2021, arXiv 2010.02502) of a checkpoint.

    With `strength` below 1 only the last int(strength * steps) levels remain, as in diffusers'
    image-to-image pipelines; strength 0 leaves none.
    """
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(dict(scheduler_config), clip_sample=False)
    total = int(scheduler.config.num_train_timesteps)
    steps = min(num_inference_steps, total)
    scheduler.set_timesteps(steps)
    # Leading spacing plus an offset can name a timestep beyond the last one.
    timesteps = [min(int(t), total - 1) for t in scheduler.timesteps][::-1]
    run = min(int(steps * strength + 1e-9), steps)
    timesteps = timesteps[:run]
    alphas = tuple(float(scheduler.alphas_cumprod[t]) for t in timesteps)
    # Always the final level last: diffusers steps to t - T // S, which for step counts that do not
    # divide T ends a little short of it.
    final = scheduler.final_alpha_cumprod
    return Schedule(tuple(timesteps), alphas, float(final))


def add_noise(x0: Tensor, noise: Tensor, alpha: float) -> Tensor:
    """sqrt(alpha) * x0 + sqrt(1 - alpha) * noise, the forward process at one level."""
    return math.sqrt(alpha) * x0 + math.sqrt(1 - alpha) * noise


def ddim_step(
    x0: Tensor,
    eps: Tensor,
    alpha: float,
    alpha_next: float,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """The DDIM step (arXiv 2010.02502, eq. 12 and 16) from `alpha` to `alpha_next`.

    eta = 0 is deterministic; eta = 1 puts as much fresh `noise` (standard normal, as x0) in as
    ancestral sampling does, so that a weak network's errors do not add up over the steps.
    """
    if eta == 0 or noise is None or alpha_next >= 1:
        return add_noise(x0, eps, alpha_next)
    variance = eta**2 * (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)
    direction = math.sqrt(max(1 - alpha_next - variance, 0.0))
    return math.sqrt(alpha_next) * x0 + direction * eps + math.sqrt(variance) * noise


def repaint_indices(
    steps: int, start: float = 0.0, jump_length: int = 10, repeats: int = 10
) -> list[int]:
    """RePaint's resampling schedule (Lugmayr et al. 2022, arXiv 2201.09865, appendix B).

    Returns level indices from steps - 1 down to -1 in moves of one: a move down is a denoising
    step, a move up a re-noising. On reaching j in {0, L, 2L, ...} with j < steps - L and
    j <= int(start * steps) - L the run climbs L levels, `repeats` - 1 times. start = 0 turns it
    off.
    """
    last = int(start * steps + 1e-9) - jump_length
    left = {
        j: repeats - 1
        for j in range(0, steps - jump_length, jump_length)
        if start > 0 and j <= last
    }
    index, indices = steps, []
    while index >= 1:
        index -= 1
        indices.append(index)
        if left.get(index, 0) > 0:
            left[index] -= 1
            for _ in range(jump_length):
                index += 1
                indices.append(index)
    return [*indices, -1]


def sigma(alpha: float) -> float:
    """Noise over signal, sqrt((1 - alpha) / alpha); infinite at zero terminal SNR."""
    return ((1 - alpha) / alpha) ** 0.5 if alpha > 0 else float("inf")
