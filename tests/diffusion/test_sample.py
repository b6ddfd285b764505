"""The sampling loop with denoisers whose answer is known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from inlay.diffusion.sample import CLEAN, Level, Step, ddim_step, descents, repaint, sample
from inlay.diffusion.unet import DdpmLevels

ALPHAS = {801: 0.01, 601: 0.2, 401: 0.5, 201: 0.8, 1: 0.99}
LEVELS = [*(Level(math.sqrt(a), math.sqrt(1 - a), t) for t, a in ALPHAS.items()), CLEAN]


class Oracle:
    """Knows the clean picture: eps follows from it."""

    def __init__(self, clean: Tensor) -> None:
        self.clean, self.calls = clean, list[Level]()

    def __call__(self, z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        self.calls.append(level)
        return level.eps(z, self.clean), self.clean


def test_an_oracle_is_followed_to_the_clean_picture() -> None:
    clean = torch.linspace(-1, 1, 24).reshape(1, 2, 3, 4)
    oracle = Oracle(clean)
    start = LEVELS[0].add_noise(clean, torch.randn_like(clean))
    seen: list[tuple[int, int]] = []
    result = sample(
        oracle, start, LEVELS, noise=torch.randn_like,
        progress=lambda step: seen.append((step.number, step.total)),
    )  # fmt: skip
    torch.testing.assert_close(result, clean)
    assert oracle.calls == LEVELS[:-1]
    assert seen == [(0, 5), (1, 5), (2, 5), (3, 5), (4, 5)]


def test_upward_moves_renoise_the_estimate_at_the_top_level() -> None:
    clean = torch.zeros(1, 1, 2, 2)
    calls: list[tuple[Level, float]] = []
    marks = iter(range(1, 100))

    def denoiser(z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        calls.append((level, float(z.mean())))
        return torch.zeros_like(z), clean + 7.0

    def noise(like: Tensor) -> Tensor:
        return torch.full_like(like, float(next(marks)))

    indices = repaint([4, 3, 2, 1, 0, -1], 1.0, 2, 2)
    walk = repaint(LEVELS, 1.0, 2, 2)
    sample(denoiser, torch.zeros_like(clean), walk, noise=noise)
    down = sum(b < a for a, b in itertools.pairwise(indices))
    assert len(calls) == down == descents(walk)
    # Every climb ends in sqrt(a) * x0 + sqrt(1 - a) * n at its top, one draw a climb.
    after_climb = [
        (indices[i], k)
        for k, i in enumerate(
            [
                i
                for i in range(1, len(indices) - 1)
                if indices[i] > indices[i - 1] and indices[i + 1] < indices[i]
            ],
            1,
        )
    ]
    assert after_climb
    for top, mark in after_climb:
        level = LEVELS[4 - top]
        expected = level.signal * 7.0 + level.noise * mark
        assert any(one == level and abs(mean - expected) < 1e-5 for one, mean in calls)


def test_callbacks_run_in_order_and_their_result_is_kept() -> None:
    def zero(z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(z), torch.zeros_like(z)

    def change(step: Step) -> Tensor:
        return (step.x0 + 1) * 3

    def double(step: Step) -> Tensor:
        assert torch.equal(step.z, step.to.signal * step.x0)
        return step.z * 2

    result = sample(
        zero, torch.zeros(1, 1, 1, 1), LEVELS[-2:], noise=torch.randn_like,
        on_x0=change, on_step=double,
    )  # fmt: skip
    assert result.item() == 6.0


# --- Levels, DDIM against diffusers, RePaint's order against its published definition ---------

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
    levels = DdpmLevels(config).run(steps)
    generator = torch.Generator().manual_seed(steps)
    theirs = ours = torch.randn(1, 4, 5, 6, generator=generator)
    assert [level.timestep for level in levels[:-1]] == scheduler.timesteps.tolist()
    kind = scheduler.config.prediction_type
    for here, to in itertools.pairwise(levels):
        output = torch.randn(1, 4, 5, 6, generator=generator)
        noise = torch.randn(1, 4, 5, 6, generator=generator)
        theirs = scheduler.step(
            output, here.timestep, theirs, eta=eta, variance_noise=noise
        ).prev_sample
        x0 = here.estimates(output, ours, kind)[1]
        eps = here.estimates(output, ours, kind)[0]
        ours = ddim_step(Step(0, 1, here, to, x0, eps, ours), eta, noise)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_strength_keeps_the_least_noisy_levels() -> None:
    levels = DdpmLevels(SD1)
    assert levels.run(50, 0.3) == levels.run(50)[-16:]
    assert levels.run(50, 0.0) == levels.run(50, 0.01) == []


def test_forward_process_keeps_unit_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    x, n = torch.randn(2, 200_000, generator=generator)
    for alpha in (0.0, 0.3, 0.99, 1.0):
        level = Level(alpha**0.5, (1 - alpha) ** 0.5, 0)
        assert level.add_noise(x, n).var().item() == pytest.approx(1, abs=0.02)


def test_sigma() -> None:
    assert Level(0.5**0.5, 0.5**0.5, 0).sigma == pytest.approx(1.0)
    assert Level(0.2**0.5, 0.8**0.5, 0).sigma == pytest.approx(2.0)
    assert Level(0.0, 1.0, 0).sigma == float("inf")


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
    got = repaint(range(steps - 1, -2, -1), start, length, repeats)
    assert got == _literal_repaint(steps, start, length, repeats)
    assert all(abs(a - b) == 1 for a, b in itertools.pairwise(got))


def test_repaint_lengths_of_the_release() -> None:
    assert len(repaint(range(49, -2, -1), 0.2, 10, 10)) == 231
    assert len(repaint(range(49, -2, -1), 1.0, 10, 10)) == 771
    assert repaint(range(3, -2, -1), 0.0) == [3, 2, 1, 0, -1]
