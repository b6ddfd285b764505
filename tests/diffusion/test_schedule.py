"""Noise levels and DDIM against diffusers, RePaint's order against its published definition."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import DDIMScheduler

from inlay.diffusion.schedule import add_noise, ddim_schedule, ddim_step, repaint_indices, sigma

SD1 = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "steps_offset": 1, "set_alpha_to_one": False,
}  # fmt: skip
ZERO = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
}  # fmt: skip


@pytest.mark.parametrize("config", [SD1, ZERO], ids=["sd1", "zero-snr"])
@pytest.mark.parametrize("steps", [1, 8, 25, 50])
# Not quite 1: diffusers takes the root of a rounded -0 at zero terminal SNR.
@pytest.mark.parametrize("eta", [0.0, 0.6, 0.99])
def test_ddim_follows_diffusers_step_by_step(
    config: dict[str, object], steps: int, eta: float
) -> None:
    scheduler = DDIMScheduler.from_config({**config, "clip_sample": False})
    scheduler.set_timesteps(steps)
    schedule = ddim_schedule(config, steps)
    generator = torch.Generator().manual_seed(steps)
    theirs = ours = torch.randn(1, 4, 5, 6, generator=generator)
    assert list(schedule.timesteps)[::-1] == scheduler.timesteps.tolist()
    for index in reversed(range(steps)):
        output = torch.randn(1, 4, 5, 6, generator=generator)
        noise = torch.randn(1, 4, 5, 6, generator=generator)
        theirs = scheduler.step(
            output, schedule.timesteps[index], theirs, eta=eta, variance_noise=noise
        ).prev_sample
        alpha = schedule.alpha(index)
        if config is ZERO:
            x0 = alpha**0.5 * ours - (1 - alpha) ** 0.5 * output
            eps = alpha**0.5 * output + (1 - alpha) ** 0.5 * ours
        else:
            x0 = (ours - (1 - alpha) ** 0.5 * output) / alpha**0.5
            eps = output
        ours = ddim_step(x0, eps, alpha, schedule.alpha(index - 1), eta, noise)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_strength_keeps_the_least_noisy_levels() -> None:
    whole = ddim_schedule(SD1, 50)
    part = ddim_schedule(SD1, 50, 0.3)
    assert part.timesteps == whole.timesteps[:15]
    assert len(ddim_schedule(SD1, 50, 0.0)) == 0
    assert len(ddim_schedule(SD1, 50, 0.01)) == 0


def test_forward_process_keeps_unit_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    x, n = torch.randn(2, 200_000, generator=generator)
    for alpha in (0.0, 0.3, 0.99, 1.0):
        assert add_noise(x, n, alpha).var().item() == pytest.approx(1, abs=0.02)


def test_sigma() -> None:
    assert sigma(0.5) == pytest.approx(1.0)
    assert sigma(0.2) == pytest.approx(2.0)
    assert sigma(0.0) == float("inf")


def _literal_repaint(steps: int, start: float, length: int, repeats: int) -> list[int]:
    """Walk down; at every marked index climb `length` and come back, repeats - 1 times."""
    path: list[int] = []

    def descend(top: int, bottom: int) -> None:
        path.extend(range(top, bottom, -1))

    marked = [
        j for j in range(steps) if j % length == 0 and j < steps - length
        and j <= int(start * steps) - length
    ]  # fmt: skip
    top = steps - 1
    for j in sorted(marked, reverse=True):
        descend(top, j - 1)
        for _ in range(repeats - 1):
            path.extend(range(j + 1, j + length + 1))
            descend(j + length - 1, j - 1)
        top = j - 1
    descend(top, -2)
    return path


@pytest.mark.parametrize(
    ("steps", "start", "length", "repeats"),
    [(50, 0.2, 10, 10), (50, 1.0, 10, 10), (50, 0.5, 5, 3), (20, 1.0, 4, 2), (7, 1.0, 10, 4)],
)
def test_repaint_order(steps: int, start: float, length: int, repeats: int) -> None:
    got = repaint_indices(steps, start, length, repeats)
    assert got == _literal_repaint(steps, start, length, repeats)
    assert all(abs(a - b) == 1 for a, b in itertools.pairwise(got))


def test_repaint_lengths_of_the_release() -> None:
    assert len(repaint_indices(50, 0.2, 10, 10)) == 231
    assert len(repaint_indices(50, 1.0, 10, 10)) == 771
    assert repaint_indices(4, 0.0) == [3, 2, 1, 0, -1]
