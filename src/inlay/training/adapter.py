"""Training of a T2I-Adapter (Mou et al. 2023, arXiv 2302.08453) beside a frozen checkpoint.

Pictures are their own control: the lines of a photo, and the photo to be denoised. Only the adapter
learns; the loss is the checkpoint's own, on what its U-Net predicts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from inlay.diffusion.backbone import Conditions
from inlay.diffusion.control import ControlAdapter, control_image, new_adapter
from inlay.learning.loop import prediction_error, train
from inlay.learning.samples import random_mask
from inlay.training.batches import Batch, CorpusLoader
from inlay.training.losses import latent_mask
from inlay.training.trainer import BranchConfig, BranchTrainer


class AdapterConfig(BranchConfig):
    """The whole recipe; it is written next to the weights it made."""

    control_type: Literal["canny", "sketch"] = Field("canny", description="lines to learn")
    resolution: int = Field(128, ge=16, description="picture side in pixels")
    timestep_power: float = Field(3.0, ge=1, le=10)
    """how much noisy timesteps are favoured; 1 is not at all"""
    whole_share: float = Field(0.6, ge=0, le=1)
    """share of holes that are all of the picture; others are large"""
    hole_weight: float = Field(0.75, ge=0, le=1, description="loss share that counts in the hole")


def noisy_timesteps(u: NDArray[np.float64], power: float, total: int = 1000) -> NDArray[np.int64]:
    """Numbers in [0, 1) to timesteps, t = (1 - u^power) * total.

    With a power of 3 the cubic sampling of T2I-Adapter (arXiv 2302.08453, section 3.4): the layout
    is settled while there is much noise, so that is where an adapter has to learn most; t is above
    300 of 1000 in 89 of 100 cases.
    """
    return np.clip(((1 - u**power) * total).astype(np.int64), 0, total - 1)


def large_holes(mask: Tensor, whole_share: float, rng: np.random.Generator) -> Tensor:
    """Holes (N, 1, S, S) made larger, as only in a hole the lines alone say what is where.

    A share becomes all of the picture; the others are united with a second random hole.
    """
    grown = []
    for hole in mask:
        second = random_mask(hole.shape[-1], rng)
        whole = rng.random() < whole_share
        grown.append(torch.ones_like(hole) if whole else hole.maximum(torch.from_numpy(second)))
    return torch.stack(grown)


class AdapterTrainer(BranchTrainer):
    """One run: the frozen checkpoint, the adapter, its optimiser and average."""

    kind = "adapter"
    config: AdapterConfig

    def __init__(
        self, folder: Path, out: Path, config: AdapterConfig, resume: bool = False
    ) -> None:
        super().__init__(folder, out, config, resume)
        self.adapter = ControlAdapter(
            self.network, self.backbone, name="to be trained", hasher=lambda: ""
        )
        self.loader = CorpusLoader(self.photos, self.device)
        self._without: dict[int, float] | None = None

    def new_network(self) -> Any:
        return new_adapter(self.backbone)

    def enlarge(self, mask: Tensor, rng: np.random.Generator) -> Tensor:
        return large_holes(mask.cpu(), self.config.whole_share, rng).to(self.device)

    def errors(
        self, batch: Batch, t: Tensor, noise: Tensor, adapted: bool = True
    ) -> tuple[Tensor, Tensor]:
        """As any trainer's, with the adapter or without."""
        backbone, x = self.backbone, batch.x
        hole = latent_mask(batch.mask, backbone.factor)
        with torch.no_grad():
            z, seen = backbone.encode(x), backbone.encode_masked(x, hole)
        text = backbone.embed(batch.captions, (self.size, self.size))
        with torch.autocast(self.device.type, torch.bfloat16):
            lines = control_image(x, self.config.control_type) if adapted else None
            features = None if lines is None else self.adapter.features(lines)
            conditions = Conditions(text, mask=hole, masked_latent=seen, control=features)
            error = prediction_error(backbone, z, noise, t, conditions)
        return error**2, hole

    def train_step(self) -> float:
        c = self.config
        # Everything random in a step comes from (seed, step): a resumed run repeats nothing.
        rng = np.random.default_rng([c.seed, 2, self.step])
        batch = self.loader.batch(c.batch, self.size, rng)
        batch.mask = self.enlarge(batch.mask, rng)
        batch.captions = [
            "" if rng.random() < c.caption_dropout else text for text in batch.captions
        ]
        # Stratified timesteps: the same loss, less variance.
        u = (np.arange(c.batch) + rng.random(c.batch)) / c.batch
        t = noisy_timesteps(u, c.timestep_power, len(self.backbone.levels))
        noise = self.noise(rng, c.batch)
        error, hole = self.errors(batch, torch.from_numpy(t).to(self.device), noise)
        weight = (1 - c.hole_weight) + c.hole_weight * hole
        loss = (error * weight * self.channel_weight).mean() / weight.mean()
        loss.backward()
        self.state.update(self.learning_rate())
        return float(loss.detach())

    def validations(self) -> dict[str, dict[int, float]]:
        if self._without is None:
            self._without = self.validate(functools.partial(self.errors, adapted=False))
        return {"": self.validate(), "_without_adapter": self._without}


def train_adapter(
    folder: Path,
    out: Path,
    config: AdapterConfig | None = None,
    resume: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train on an image folder and return the T2IAdapter folder OUT/adapter.

    Raises InputError for an unusable folder or checkpoint, or nothing to resume.
    """
    trainer = AdapterTrainer(folder, out, config or AdapterConfig(), resume)
    log(f"{len(trainer.photos)} pictures to train on, {len(trainer.held_out)} held out")
    train(trainer, log)
    return out / "adapter"
