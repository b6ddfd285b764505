"""Noise levels, and the sampler: a pure function of a denoiser, a start and an order of levels.

A variance-preserving checkpoint and a flow-matching one differ in their levels alone: sqrt(a) and
sqrt(1 - a) for the cumulative alpha a, or 1 - t and t.
"""

from __future__ import annotations

import inspect
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
InitialLatent = Literal["noise", "source"]


@dataclass(frozen=True)
class Level:
    """A noise level: z = signal * x0 + noise * eps, for a picture x0 and standard normal eps.

    timestep is what the network is told. They are numbers, or tensors of a batch: (N, 1, 1, 1) and
    timestep (N,); see Levels.rows().
    """

    signal: float | Tensor
    noise: float | Tensor
    timestep: float | Tensor

    @classmethod
    def of_alpha(cls, alpha: float, timestep: int) -> Level:
        """The variance-preserving level of a cumulative alpha."""
        return cls(math.sqrt(alpha), math.sqrt(1 - alpha), timestep)

    @property
    def sigma(self) -> float:
        """Noise over signal; infinite where there is no signal (zero terminal SNR)."""
        return float(self.noise / self.signal) if self.signal else math.inf

    def add_noise(self, x0: Tensor, eps: Tensor) -> Tensor:
        """z of a picture and a noise, the forward process."""
        return self.signal * x0 + self.noise * eps

    def x0(self, z: Tensor, eps: Tensor) -> Tensor:
        """The picture in a sample, by its noise; ValueError where the signal is the number 0."""
        if not isinstance(self.signal, Tensor) and self.signal == 0:
            raise ValueError(f"at timestep {self.timestep} the signal is 0: eps says nothing of x0")
        return (z - self.noise * eps) / self.signal

    def eps(self, z: Tensor, x0: Tensor) -> Tensor:
        """The noise in a sample, by its picture."""
        return (z - self.signal * x0) / self.noise

    def output(self, x0: Tensor, eps: Tensor, prediction_type: str) -> Tensor:
        """What a network says of a sample of this picture and this noise, when it is right.

        prediction_type is diffusers': epsilon, sample, v_prediction (Salimans and Ho 2022, arXiv
        2202.00512, app. D) or flow_prediction.
        """
        if prediction_type == "v_prediction":
            return self.signal * eps - self.noise * x0
        if prediction_type == "flow_prediction":
            return eps - x0
        return x0 if prediction_type == "sample" else eps

    def estimates(self, output: Tensor, z: Tensor, prediction_type: str) -> tuple[Tensor, Tensor]:
        """(eps, x0) that a network's output for a sample stands for; x0 of v and flow also where
        there is no signal.
        """
        if prediction_type == "v_prediction":
            return self.signal * output + self.noise * z, self.signal * z - self.noise * output
        if prediction_type == "flow_prediction":
            return z + self.signal * output, z - self.noise * output
        if prediction_type == "sample":
            return self.eps(z, output), output
        return output, self.x0(z, output)


CLEAN = Level(1.0, 0.0, 0)


class Levels(ABC):
    """The noise levels that a checkpoint was trained at; timesteps count from the least noisy."""

    @abstractmethod
    def __len__(self) -> int:
        """How many training timesteps there are."""

    @abstractmethod
    def __getitem__(self, timestep: int, /) -> Level: ...

    @abstractmethod
    def rows(self, timesteps: Tensor) -> Level:
        """The levels of timesteps (N,) as one Level of tensors, float32 on the same device."""

    @abstractmethod
    def whole(self, steps: int) -> list[Level]:
        """The levels of a sampling from noise in their order, with the one that it ends at."""

    def run(self, steps: int, strength: float = 1.0) -> list[Level]:
        """The levels of a sampling in their order, noisiest first, with the one it ends at. With
        `strength` below 1 the last int(strength * steps) steps alone, which may be none.
        """
        steps = min(steps, len(self))
        left = step_count(steps, strength)
        return self.whole(steps)[-left - 1 :] if left else []


# (eps, x0), both (N, C, h, w) in float32, of a sample (N, C, h, w) at a level.
Denoise = Callable[[Tensor, Level], tuple[Tensor, Tensor]]


@dataclass
class Step:
    """One denoising step, from `level` to `to`, as callbacks see it.

    `number` of `total` counts from 0, repeats included; z is the sample at `to`, (N, C, h, w) as
    are x0 and eps.
    """

    number: int
    total: int
    level: Level
    to: Level
    x0: Tensor
    eps: Tensor
    z: Tensor


def guide(unconditional: Tensor, conditional: Tensor, scale: float, rescale: float = 0) -> Tensor:
    """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598) on raw outputs (n, C, h, w).

    g = u + scale * (c - u). With `rescale` the result is rescale * g * std(c) / std(g) +
    (1 - rescale) * g, standard deviations over a row (Lin et al. 2024, arXiv 2305.08891, eq. 14 to
    16): where little is given, plain guidance drives large areas to pure black or white.
    """
    guided = unconditional + scale * (conditional - unconditional)
    if rescale == 0:
        return guided
    spread = [
        x.flatten(1).std(1).clamp_min(1e-6)[:, None, None, None] for x in (conditional, guided)
    ]
    return guided * (rescale * spread[0] / spread[1] + 1 - rescale)


def draw_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the shape, device and dtype of `like`, drawn on the CPU."""
    return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)


def step_count(steps: int, strength: float) -> int:
    """How many of a run's steps a strength leaves."""
    return int(steps * strength + 1e-9)


def start(
    noised: Callable[[Tensor, Tensor], Tensor],
    source: Tensor,
    noise: Tensor,
    strength: float,
    initial: InitialLatent = "noise",
    sigma: float = 1.0,
) -> Tensor:
    """What a run begins with: `noised(source, noise)`, but at strength 1 `sigma * noise` alone. An
    `initial` of "source" keeps the signal of the noisiest level, 0.068 in Stable Diffusion.
    """
    return sigma * noise if strength == 1 and initial == "noise" else noised(source, noise)


def sample(
    denoiser: Denoise,
    z: Tensor,
    levels: Sequence[Level],
    *,
    noise: Callable[[Tensor], Tensor],
    eta: float = 0.0,
    on_x0: Callable[[Step], Tensor] = lambda step: step.x0,
    on_step: Callable[[Step], Tensor] = lambda step: step.z,
    progress: Callable[[Step], None] = lambda step: None,
) -> Tensor:
    """Walk the levels with DDIM steps down and re-noisings up; return the last sample.

    `on_x0` gives a new x0 estimate before the step is taken, `on_step` a new sample after it.
    `noise(like)` draws the noise of an upward move, which starts again from the latest x0 estimate;
    of several moves up in a row only the last is carried out, as each would overwrite the one
    before. `eta` is the share of fresh noise a step, 0 to 1.
    """
    moves, total = list(itertools.pairwise(levels)), descents(levels)
    number, x0 = 0, z
    for position, (before, after) in enumerate(moves):
        if _up(before, after):
            if not any(_up(*move) for move in moves[position + 1 : position + 2]):
                z = after.add_noise(x0, noise(z))
            continue
        eps, x0 = denoiser(z, before)
        step = Step(number, total, before, after, x0, eps, z)
        step.x0 = x0 = on_x0(step)
        step.z = ddim_step(step, eta, noise(z) if eta > 0 else None)
        z = step.z = on_step(step)
        number += 1
        progress(step)
    return z


def descents(levels: Sequence[Level]) -> int:
    """How many denoising steps a walk of levels has."""
    return sum(not _up(before, after) for before, after in itertools.pairwise(levels))


def _up(before: Level, after: Level) -> bool:
    return bool(after.noise > before.noise)


@dataclass(frozen=True, eq=False)
class Sampler:
    """Noises a picture to the level of a strength and samples from there to the end: by sample()
    with `eta`, or by one of diffusers' schedulers for methods whose maths does not need DDIM.
    """

    levels: Levels
    steps: int
    eta: float = 0.0
    scheduler: Any = None

    def __call__(
        self,
        denoiser: Denoise,
        source: Tensor,
        *,
        strength: float,
        generator: torch.Generator,
        initial: InitialLatent = "noise",
        keep_outside: Tensor | None = None,
        progress: Callable[[Step], None] = lambda step: None,
    ) -> Tensor:
        """What becomes of `source` (1, C, h, w), see start(); at strength 0 itself.

        After each step all outside of `keep_outside`, a mask (1, 1, h, w), is the source noised to
        its level (blended latents, Avrahami et al. 2023, arXiv 2206.02779).
        """

        def keep(z: Tensor, noised: Callable[[Tensor, Tensor], Tensor] | None) -> Tensor:
            if keep_outside is None:
                return z
            known = noised(source, draw_noise(source, generator)) if noised else source
            return z * keep_outside + known * (1 - keep_outside)

        if self.scheduler is not None:
            return self._scheduled(denoiser, source, strength, generator, initial, keep, progress)
        levels = self.levels.run(self.steps, strength)
        if not levels:
            return source
        return sample(
            denoiser,
            start(levels[0].add_noise, source, draw_noise(source, generator), strength, initial),
            levels,
            noise=partial(draw_noise, generator=generator),
            eta=self.eta,
            on_step=lambda step: keep(step.z, step.to.add_noise if step.to.noise else None),
            progress=progress,
        )

    def _scheduled(
        self,
        denoiser: Denoise,
        source: Tensor,
        strength: float,
        generator: torch.Generator,
        initial: InitialLatent,
        keep: Callable[..., Tensor],
        progress: Callable[[Step], None],
    ) -> Tensor:
        scheduler, count = self.scheduler, len(self.levels)
        run = step_count(self.steps, strength)
        if run == 0:
            return source
        scheduler.set_timesteps(self.steps)
        # Leading spacing plus an offset can name a timestep beyond the last one.
        scheduler.timesteps = scheduler.timesteps.clamp(max=count - 1)
        # Solvers of higher order list each level more than once: `order` entries make a step.
        begin = (self.steps - run) * int(getattr(scheduler, "order", 1))
        timesteps = scheduler.timesteps[begin:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        noised = partial(scheduler.add_noise, timesteps=timesteps[:1])
        noise, sigma = draw_noise(source, generator), float(scheduler.init_noise_sigma)
        z = start(noised, source, noise, strength, initial, sigma)
        draws = "generator" in inspect.signature(scheduler.step).parameters
        extra = {"generator": generator} if draws else {}
        for number, t in enumerate(timesteps):
            timestep = min(max(round(float(t)), 0), count - 1)
            # The scheduler's own level: at zero terminal SNR it keeps a little signal.
            level = Level.of_alpha(float(scheduler.alphas_cumprod[timestep]), timestep)
            eps, x0 = denoiser(scheduler.scale_model_input(z, t), self.levels[timestep])
            output = level.output(x0, eps, scheduler.config.prediction_type)
            z = scheduler.step(output, t, z, **extra).prev_sample
            after = timesteps[number + 1 : number + 2]
            z = keep(z, partial(scheduler.add_noise, timesteps=after) if len(after) else None)
            progress(Step(number, len(timesteps), level, level, x0, eps, z))
        return z


def ddim_step(step: Step, eta: float = 0.0, noise: Tensor | None = None) -> Tensor:
    """The sample at step.to, by DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16).

    eta = 0 is deterministic; eta = 1 puts as much fresh `noise` (standard normal, as x0) in as
    ancestral sampling does, so that a weak network's errors do not add up over the steps.
    """
    here, to = step.level, step.to
    if eta == 0 or noise is None or to.noise == 0:
        return to.add_noise(step.x0, step.eps)
    # What noise is left of the old one is what the signal's growth alone would leave.
    left = (here.signal * to.noise) / (here.noise * to.signal)
    variance = eta**2 * to.noise**2 * (1 - left**2)
    direction = math.sqrt(max(to.noise**2 - variance, 0.0))
    return to.signal * step.x0 + direction * step.eps + math.sqrt(variance) * noise


def repaint(
    levels: Sequence[T], start: float = 0.0, jump_length: int = 10, repeats: int = 10
) -> list[T]:
    """RePaint's resampling (Lugmayr et al. 2022, arXiv 2201.09865, appendix B) of a run's levels.

    levels are noisiest first, with the one that the run ends at; a move down the result is a
    denoising step, a move up a re-noising. Counted from the least noisy level, on reaching number j
    of {0, L, 2L, ...} with j < S - L and j <= int(start * S) - L, S steps in all, the run climbs
    L levels, `repeats` - 1 times. start = 0 turns it off.
    """
    steps = len(levels) - 1
    last = step_count(steps, start) - jump_length
    places = range(0, steps - jump_length, jump_length)
    left = {j: repeats - 1 for j in places if start > 0 and j <= last}
    index, indices = steps, list[int]()
    while index >= 1:
        index -= 1
        indices.append(index)
        if left.get(index, 0) > 0:
            left[index] -= 1
            indices += range(index + 1, index + jump_length + 1)
            index += jump_length
    return [levels[steps - 1 - index] for index in [*indices, -1]]
