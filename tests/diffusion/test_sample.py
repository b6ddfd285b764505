"""The sampling loop with denoisers whose answer is known."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from inlay.diffusion.sample import CLEAN, Level, Step, descents, repaint, sample

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
