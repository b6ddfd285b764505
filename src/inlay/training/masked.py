"""Trainings on masked pictures: a picture with a hole is given, and what the hole holds learnt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from inlay.diffusion.backbone import Conditions
from inlay.diffusion.text import Embedding
from inlay.learning.loop import prediction_error, validation_curve
from inlay.learning.settings import TrainingConfig
from inlay.training.batches import Ahead, Batch, CorpusLoader
from inlay.training.trainer import Trainer

Errors = Callable[[Batch, Tensor, Tensor], tuple[Tensor, Tensor]]


class MaskedConfig(TrainingConfig):
    """What every training on masked pictures can be told."""

    caption_dropout: float = Field(0.3, ge=0, le=1, description="share trained without caption")
    hole_weight: float = Field(0.75, ge=0, le=1, description="loss share that counts in the hole")


class MaskedTrainer(Trainer):
    """A run on pictures with holes, which its `loader` gives.

    A subclass says what timesteps are learned at, and may say more of its batches and its loss.
    """

    config: MaskedConfig
    loader: CorpusLoader

    @cached_property
    def _ahead(self) -> Ahead[tuple[Batch, np.random.Generator]]:
        return Ahead(self._draw, workers=int(self.device.type == "cuda"))

    def _draw(self, step: int, _: int) -> tuple[Batch, np.random.Generator]:
        """The pictures of a step, and the generator that all else of it comes from."""
        # Everything random in a step comes from (seed, step): a resumed run repeats nothing.
        rng = np.random.default_rng([self.config.seed, 2, step])
        batch = self.loader.batch(*self.shape(step), rng)
        batch.mask = self.enlarge(batch.mask, rng)
        return batch, rng

    def shape(self, step: int) -> tuple[int, int]:
        """How many pictures a step has, and their side."""
        return self.config.batch, self.size

    def enlarge(self, mask: Tensor, rng: np.random.Generator) -> Tensor:
        """The holes (N, 1, S, S) that are learned from, of those that a loader gives."""
        return mask

    def timesteps(self, u: NDArray[np.float64]) -> NDArray[np.int64]:
        """Numbers in [0, 1) to timesteps to learn at."""
        raise NotImplementedError

    def embed(self, captions: Sequence[str]) -> Embedding:
        """Captions as the U-Net reads them."""
        return self.backbone.embed(captions, (self.size, self.size))

    def control(self, x: Tensor) -> Sequence[Tensor] | None:
        """A T2I-Adapter's features of pictures (N, 3, S, S), where there is one."""
        return None

    def errors(
        self, batch: Batch, t: Tensor, noise: Tensor, bare: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Squared error (N, C, h, w) of what the U-Net predicts, `bare` without control(); and the
        latent mask.
        """
        backbone, x, factor = self.backbone, batch.x, self.backbone.factor
        hole = batch.mask[:, :, ::factor, ::factor]
        with torch.no_grad():
            z, seen = backbone.encode(x), backbone.encode_masked(x, hole)
        text = self.embed(batch.captions)
        with torch.autocast(self.device.type, torch.bfloat16):
            features = None if bare else self.control(x)
            conditions = Conditions(text, mask=hole, masked_latent=seen, control=features)
            return prediction_error(backbone, z, noise, t, conditions) ** 2, hole

    def penalty(
        self, batch: Batch, t: Tensor, noise: Tensor, error: Tensor, rng: np.random.Generator
    ) -> Tensor | float:
        """What else a step's loss has, given the error that every caption leaves."""
        return 0.0

    def train_step(self) -> float:
        c = self.config
        ((batch, rng),) = self._ahead.get(self.step, [0])
        count, size = len(batch.x), batch.x.shape[-1]
        batch.captions = [
            "" if rng.random() < c.caption_dropout else text for text in batch.captions
        ]
        # Stratified timesteps: the same loss, less variance.
        u = (np.arange(count) + rng.random(count)) / count
        t = torch.from_numpy(self.timesteps(u)).to(self.device)
        noise = self.noise(rng, count, size=size)
        error, hole = self.errors(batch, t, noise)
        weight = (1 - c.hole_weight) + c.hole_weight * hole
        loss = (error * weight * self.channel_weight).mean() / weight.mean()
        (loss + self.penalty(batch, t, noise, error, rng)).backward()
        self.state.update(self.learning_rate())
        return float(loss.detach())

    def validate(self, errors: Errors | None = None, pictures: int = 64) -> dict[int, float]:
        """Error in the holes of the held-out split by timestep, with the averaged weights; of v,
        where the network predicts that.

        Empty where nothing is held out, as may be with a handful of photos.
        """
        count = min(pictures, len(self.held_out))
        if count == 0:
            return {}
        rng = np.random.default_rng([self.config.seed, 3])
        batch = CorpusLoader(self.held_out, self.device).of(np.arange(count), self.size, rng)
        batch.mask = self.enlarge(batch.mask, rng)
        noise = self.noise(rng, count)
        of = errors or self.errors
        with self.state.averaged():
            return validation_curve(lambda t: of(batch, t, noise), count, self.device)

    def validations(self) -> dict[str, dict[int, float]]:
        """validate(), and others to compare it with by what is added to its name."""
        return {"": self.validate()}

    def report(self) -> tuple[dict[str, Any], dict[str, float]]:
        row: dict[str, Any] = {}
        curves: dict[str, float] = {}
        for side, losses in self.validations().items():
            row[f"validation_v_loss{side}"] = {str(t): round(v, 5) for t, v in losses.items()}
            curves |= {f"v_loss_in_hole{side}/{t}": v for t, v in losses.items()}
        return row, curves
