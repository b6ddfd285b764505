"""Sampling with any of diffusers' schedulers, for methods whose maths does not need DDIM."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from inlay.diffusion.sample import Denoise, Level, Levels, Step, step_count
from inlay.errors import InputError

__all__ = ["Solver", "make_solver"]


def make_solver(
    name: str, scheduler_config: Mapping[str, Any], levels: Levels, steps: int
) -> Solver:
    """A sampler by the class name of one of diffusers' schedulers, with a checkpoint's levels.

    It is tried out on a few numbers with a network that knows the answer. Raises InputError for a
    name that is not a scheduler of diffusers with the usual step(), or for one that does not find
    that answer with these noise levels.
    """
    import diffusers

    kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    config = {**scheduler_config, "clip_sample": False}
    # Runge-Kutta warm-up evaluates the network between its levels; every SD checkpoint skips it.
    config["skip_prk_steps"] = True
    try:
        if kind is None or not _finds_the_answer(Solver(kind.from_config(config), levels, steps)):
            raise LookupError(name)
        return Solver(kind.from_config(config), levels, steps)
    # Schedulers of other kinds of model, or with needs that are not installed, fail in many ways.
    except Exception:
        raise InputError(
            f"scheduler {name!r} does not sample this model in {steps} steps; use for example "
            "DDIMScheduler, EulerDiscreteScheduler or UniPCMultistepScheduler."
        ) from None


def _finds_the_answer(solver: Solver) -> bool:
    clean = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)

    def oracle(z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        assert isinstance(level.timestep, int)
        here = solver.level(level.timestep)
        return (z - here.signal * clean) / max(float(here.noise), 1e-3), clean

    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(clean.shape, generator=generator)
    result = solver(
        oracle,
        torch.zeros_like(clean),
        strength=1.0,
        noise=lambda like: draw,
        generator=generator,
    )
    # NaN is not below anything.
    return bool((result - clean).abs().max() < 0.3)


class Solver:
    """One of diffusers' schedulers at a number of steps, as a Sampler.

    levels are the checkpoint's, which the denoiser is called at.
    """

    def __init__(self, scheduler: Any, levels: Levels, steps: int) -> None:
        self.scheduler, self.levels, self.steps = scheduler, levels, steps

    def level(self, timestep: int) -> Level:
        """The scheduler's own level, which at zero terminal SNR keeps a little signal."""
        alpha = float(self.scheduler.alphas_cumprod[timestep])
        return Level(math.sqrt(alpha), math.sqrt(1 - alpha), timestep)

    def __call__(
        self,
        denoiser: Denoise,
        source: Tensor,
        *,
        strength: float,
        noise: Callable[[Tensor], Tensor],
        generator: torch.Generator,
        keep_outside: Tensor | None = None,
        progress: Callable[[Step], None] = lambda step: None,
    ) -> Tensor:
        run, scheduler = step_count(self.steps, strength), self.scheduler
        if run == 0:
            return source
        count = len(scheduler.alphas_cumprod)
        scheduler.set_timesteps(self.steps)
        # Leading spacing plus an offset can name a timestep beyond the last one.
        scheduler.timesteps = scheduler.timesteps.clamp(max=count - 1)
        # Solvers of higher order list each level more than once: `order` entries make a step.
        begin = (self.steps - run) * int(getattr(scheduler, "order", 1))
        timesteps = scheduler.timesteps[begin:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        z: Tensor = scheduler.add_noise(source, noise(source), timesteps[:1])
        draws = "generator" in inspect.signature(scheduler.step).parameters
        extra = {"generator": generator} if draws else {}
        for number, t in enumerate(timesteps):
            level = self.level(min(max(round(float(t)), 0), count - 1))
            assert isinstance(level.timestep, int)
            inputs = scheduler.scale_model_input(z, t)
            eps, x0 = denoiser(inputs, self.levels[level.timestep])
            output = level.output(x0, eps, scheduler.config.prediction_type)
            z = scheduler.step(output, t, z, **extra).prev_sample
            if keep_outside is not None:
                kept, after = source, timesteps[number + 1 : number + 2]
                if len(after):
                    kept = scheduler.add_noise(source, noise(source), after)
                z = z * keep_outside + kept * (1 - keep_outside)
            progress(Step(number, len(timesteps), level, level, x0, eps, z))
        return z
