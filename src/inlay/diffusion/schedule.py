"""The older forward process, until everybody has levels."""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["add_noise"]


def add_noise(x0: Tensor, noise: Tensor, alpha: float) -> Tensor:
    """sqrt(alpha) * x0 + sqrt(1 - alpha) * noise."""
    return math.sqrt(alpha) * x0 + math.sqrt(1 - alpha) * noise
