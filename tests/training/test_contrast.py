"""The loss that makes captions matter: its value by hand and its gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inlay.training.embedded import contrast, other_captions


def squares(*values: float) -> torch.Tensor:
    """Errors (N, 2, 2, 2), each row constant."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 2, 2, 2).clone()


def test_the_margin_is_counted_by_hand() -> None:
    own, other = squares(2.0, 1.0, 4.0), squares(2.1, 1.0, 3.0)
    hole = torch.ones(3, 1, 2, 2)
    # Gaps of 5%, 0 and -25% against a margin of 10%: 0.05, 0.1 and 0.35 are missing.
    assert contrast(own, other, hole, margin=0.1).item() == pytest.approx((0.05 + 0.1 + 0.35) / 3)


def test_only_the_hole_counts_and_rows_without_one_are_nothing() -> None:
    own, other = squares(1.0, 1.0), squares(1.0, 1.0)
    hole = torch.zeros(2, 1, 2, 2)
    hole[0, 0, 0] = 1
    other[0, :, 1] = 9.0
    other[1] = 9.0
    assert contrast(own, other, hole, margin=0.1).item() == pytest.approx(0.1 / 2)


def test_it_pulls_the_errors_apart_until_the_margin_is_reached() -> None:
    hole = torch.ones(1, 1, 2, 2)
    own, other = squares(1.0).requires_grad_(), squares(1.05).requires_grad_()
    contrast(own, other, hole, margin=0.1).backward()
    assert own.grad is not None and other.grad is not None
    # Relative to its own error of 1, spread over the 8 values of the row.
    assert torch.allclose(own.grad, torch.full_like(own, 1 / 8))
    assert torch.allclose(other.grad, torch.full_like(other, -1 / 8))
    own, other = squares(1.0).requires_grad_(), squares(1.2).requires_grad_()
    contrast(own, other, hole, margin=0.1).backward()
    assert own.grad is not None and other.grad is not None
    assert not own.grad.any() and not other.grad.any()


def test_another_caption_is_another_and_the_same_for_the_same_seed() -> None:
    pool = ["a hat"] * 5 + ["a shoe"] * 5 + ["a dress"]
    captions = ["a hat", "a shoe", "a dress"] * 20
    chosen = other_captions(captions, pool, np.random.default_rng(1))
    assert all(a != b and b in pool for a, b in zip(captions, chosen, strict=True))
    assert chosen == other_captions(captions, pool, np.random.default_rng(1))
    assert other_captions(["a hat"], ["a hat"] * 3, np.random.default_rng(1)) == ["a hat"]
