"""Training of a T2I-Adapter (Mou et al. 2023, arXiv 2302.08453) beside a frozen checkpoint.

Pictures are their own control: the lines of a photo, and the photo to be denoised. Only the adapter
learns; the loss is the checkpoint's own, on what its U-Net predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from inlay.diffusion.branches import ControlAdapter, control_image, new_adapter
from inlay.learning.samples import random_crop, random_mask
from inlay.training.latent import BranchConfig, BranchTrainer, MaskedConfig, MaskedTrainer


class AdapterConfig(BranchConfig, MaskedConfig):
    """The whole recipe; it is written next to the weights it made."""

    control_type: Literal["canny", "sketch"] = Field("canny", description="lines to learn")
    resolution: int = Field(128, ge=16, description="picture side in pixels")
    timestep_power: float = Field(3.0, ge=1, le=10)
    """how much noisy timesteps are favoured; 1 is not at all"""
    whole_share: float = Field(0.6, ge=0, le=1)
    """share of holes that are all of the picture; others are large"""


def noisy_timesteps(u: NDArray[np.float64], power: float, total: int = 1000) -> NDArray[np.int64]:
    """Numbers in [0, 1) to timesteps, t = (1 - u^power) * total.

    With a power of 3 the cubic sampling of T2I-Adapter (arXiv 2302.08453, section 3.4): the layout
    is settled while there is much noise, so that is where an adapter has to learn most; t is above
    300 of 1000 in 89 of 100 cases.
    """
    return np.clip(((1 - u**power) * total).astype(np.int64), 0, total - 1)


def large_hole(side: int, whole_share: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A hole (S, S) that is larger than random_mask()'s, as only in a hole the lines alone say what
    is where: for a share all of the picture, else two of those.
    """
    if rng.random() < whole_share:
        return np.ones((side, side), np.float32)
    return np.maximum(random_mask(side, rng), random_mask(side, rng))


class AdapterTrainer(BranchTrainer, MaskedTrainer):
    """One run: the frozen checkpoint, the adapter, its optimiser and average."""

    kind = "adapter"
    config: AdapterConfig
    sides = (("", False), ("_without_adapter", True))

    @cached_property
    def adapter(self) -> ControlAdapter:
        return ControlAdapter(self.network, self.backbone, name="to be trained")

    def new_network(self) -> Any:
        return new_adapter(self.backbone)

    def crop(
        self, picture: NDArray[np.uint8], side: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        hole = large_hole(side, self.config.whole_share, rng)
        return random_crop(picture[..., :3], side, rng), hole

    def timesteps(self, u: NDArray[np.float64]) -> NDArray[np.int64]:
        return noisy_timesteps(u, self.config.timestep_power, len(self.backbone.levels))

    def control(self, x: Tensor) -> Sequence[Tensor]:
        return self.adapter.features(control_image(x, self.config.control_type))
