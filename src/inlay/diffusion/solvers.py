"""Sampling with any of diffusers' schedulers, for methods whose maths does not need DDIM."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from inlay.diffusion.sample import Denoiser, Step

__all__ = ["make_solver", "solve"]


def make_solver(name: str, scheduler_config: Mapping[str, Any], steps: int = 20) -> Any:
    """A diffusers scheduler by class name, with a checkpoint's noise levels.

    It is tried out at `steps` steps on a few numbers with a network that knows the answer. Raises
    LookupError for a name that is not a scheduler of diffusers with the usual step(), or for one
    that does not find that answer with these noise levels.
    """
    import diffusers

    kind = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    config = {**scheduler_config, "clip_sample": False}
    # Runge-Kutta warm-up evaluates the network between its levels; every SD checkpoint skips it.
    config["skip_prk_steps"] = True
    try:
        if kind is None or not _finds_the_answer(kind.from_config(config), steps):
            raise LookupError(name)
        return kind.from_config(config)
    # Schedulers of other kinds of model, or with needs that are not installed, fail in many ways.
    except Exception:
        raise LookupError(name) from None


def _finds_the_answer(solver: Any, steps: int) -> bool:
    clean = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
    alphas = solver.alphas_cumprod

    def oracle(z: Tensor, timestep: int, number: int, total: int) -> tuple[Tensor, Tensor]:
        alpha = float(alphas[timestep])
        return (z - alpha**0.5 * clean) / max(1 - alpha, 1e-6) ** 0.5, clean

    generator = torch.Generator().manual_seed(0)
    start = torch.zeros_like(clean)
    draw = torch.randn(clean.shape, generator=generator)
    result = solve(
        solver,
        oracle,
        start,
        steps=steps,
        strength=1.0,
        noise=lambda like: draw,
        generator=generator,
    )
    # NaN is not below anything.
    return bool((result - clean).abs().max() < 0.3)


def solve(
    solver: Any,
    denoiser: Denoiser,
    source: Tensor,
    *,
    steps: int,
    strength: float,
    noise: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    keep_outside: Tensor | None = None,
    progress: Callable[[Step], None] = lambda step: None,
) -> Tensor:
    """Noise `source` (1, C, h, w) to the level of `strength`, then run the solver to the end.

    With `keep_outside`, a mask (1, 1, h, w), the sample outside it is replaced after each step by
    the source noised to that step's level (blended latents, arXiv 2206.02779). `generator` is
    for solvers that add noise themselves. strength 0 returns the source.
    """
    run = int(steps * strength + 1e-9)
    if run == 0:
        return source
    solver.set_timesteps(steps)
    # Leading spacing plus an offset can name a timestep beyond the last one.
    solver.timesteps = solver.timesteps.clamp(max=len(solver.alphas_cumprod) - 1)
    # Solvers of higher order list each level more than once: `order` entries make a step.
    begin = (steps - run) * int(getattr(solver, "order", 1))
    timesteps = solver.timesteps[begin:]
    if hasattr(solver, "set_begin_index"):
        solver.set_begin_index(begin)
    z: Tensor = solver.add_noise(source, noise(source), timesteps[:1])
    extra = {"generator": generator} if "generator" in _parameters(solver) else {}
    alphas = solver.alphas_cumprod
    for number, t in enumerate(timesteps):
        level = min(max(round(float(t)), 0), len(alphas) - 1)
        alpha = float(alphas[level])
        eps, x0 = denoiser(solver.scale_model_input(z, t), level, number, len(timesteps))
        output = _as_predicted(solver.config.prediction_type, eps, x0, alpha)
        z = solver.step(output, t, z, **extra).prev_sample
        last = number + 1 == len(timesteps)
        if keep_outside is not None:
            kept = source
            if not last:
                kept = solver.add_noise(source, noise(source), timesteps[number + 1 : number + 2])
            z = z * keep_outside + kept * (1 - keep_outside)
        progress(Step(number, len(timesteps), 0, level, alpha, alpha, x0, eps, z))
    return z


def _as_predicted(prediction_type: str, eps: Tensor, x0: Tensor, alpha: float) -> Tensor:
    """eps and x0 as what the solver was told that the model predicts."""
    if prediction_type == "v_prediction":
        return math.sqrt(alpha) * eps - math.sqrt(1 - alpha) * x0
    return x0 if prediction_type == "sample" else eps


def _parameters(solver: Any) -> set[str]:
    import inspect

    return set(inspect.signature(solver.step).parameters)
