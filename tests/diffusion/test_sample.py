"""The sampling loop with denoisers whose answer is known."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from inlay.diffusion.sample import Step, denoise
from inlay.diffusion.schedule import Schedule, add_noise, repaint_indices

SCHEDULE = Schedule((1, 201, 401, 601, 801), (0.99, 0.8, 0.5, 0.2, 0.01), 1.0)


class Oracle:
    """Knows the clean picture: eps follows from it."""

    def __init__(self, clean: Tensor) -> None:
        self.clean, self.calls = clean, list[tuple[int, int, int]]()

    def __call__(self, z: Tensor, timestep: int, number: int, total: int) -> tuple[Tensor, Tensor]:
        self.calls.append((timestep, number, total))
        alpha = SCHEDULE.alphas[SCHEDULE.timesteps.index(timestep)]
        return (z - alpha**0.5 * self.clean) / (1 - alpha) ** 0.5, self.clean


def test_an_oracle_is_followed_to_the_clean_picture() -> None:
    clean = torch.linspace(-1, 1, 24).reshape(1, 2, 3, 4)
    oracle = Oracle(clean)
    start = add_noise(clean, torch.randn_like(clean), SCHEDULE.alphas[-1])
    seen: list[int] = []
    result = denoise(
        oracle, start, SCHEDULE, indices=[4, 3, 2, 1, 0, -1], noise=torch.randn_like,
        progress=lambda step: seen.append(step.number),
    )  # fmt: skip
    torch.testing.assert_close(result, clean)
    assert oracle.calls == [(801, 0, 5), (601, 1, 5), (401, 2, 5), (201, 3, 5), (1, 4, 5)]
    assert seen == [0, 1, 2, 3, 4]


def test_upward_moves_renoise_the_estimate_at_the_top_level() -> None:
    clean = torch.zeros(1, 1, 2, 2)
    levels: list[tuple[int, float]] = []
    marks = iter(range(1, 100))

    def denoiser(z: Tensor, timestep: int, number: int, total: int) -> tuple[Tensor, Tensor]:
        levels.append((timestep, float(z.mean())))
        return torch.zeros_like(z), clean + 7.0

    def noise(like: Tensor) -> Tensor:
        return torch.full_like(like, float(next(marks)))

    indices = repaint_indices(5, 1.0, 2, 2)
    denoise(denoiser, torch.zeros_like(clean), SCHEDULE, indices=indices, noise=noise)
    down = sum(b < a for a, b in itertools.pairwise(indices))
    assert len(levels) == down
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
        alpha = SCHEDULE.alphas[top]
        expected = alpha**0.5 * 7.0 + (1 - alpha) ** 0.5 * mark
        assert any(
            t == SCHEDULE.timesteps[top] and abs(mean - expected) < 1e-5 for t, mean in levels
        )


def test_hooks_run_in_order_and_their_result_is_kept() -> None:
    def zero(z: Tensor, timestep: int, number: int, total: int) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(z), torch.zeros_like(z)

    def add_one(step: Step) -> Tensor:
        return step.x0 + 1

    def double(step: Step) -> Tensor:
        assert torch.equal(step.z, step.alpha_next**0.5 * step.x0)
        return step.z * 2

    result = denoise(
        zero, torch.zeros(1, 1, 1, 1), SCHEDULE, indices=[0, -1], noise=torch.randn_like,
        on_x0=[add_one, lambda step: step.x0 * 3], on_step=[double],
    )  # fmt: skip
    assert result.item() == 6.0
