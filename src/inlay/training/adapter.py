"""Training of a T2I-Adapter (Mou et al. 2023, arXiv 2302.08453) beside a frozen checkpoint.

Pictures are their own control: the lines of a photo, and the photo to be denoised. Only the adapter
learns; the loss is the checkpoint's own, on what its U-Net predicts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from inlay.checkpoints.load import load_backbone
from inlay.diffusion.control import control_image
from inlay.diffusion.t2i_adapter import ControlAdapter, new_adapter
from inlay.errors import InputError
from inlay.learning.learner import Learner
from inlay.learning.loop import (
    VALIDATION_TIMESTEPS,
    channel_weight,
    check_state,
    noised,
    rate,
    train,
    whole_patches,
)
from inlay.training.corpus import load_corpus, random_mask
from inlay.training.feed import HostFeed, Policy

__all__ = ["AdapterConfig", "AdapterTrainer", "large_holes", "noisy_timesteps", "train_adapter"]

# Captions come again: as many stay embedded, a few tens of kilobytes each.
_CAPTIONS = 1024


class AdapterConfig(BaseModel):
    """The whole recipe; it is written next to the weights it made."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field("embedded", description="checkpoint that the adapter is for")
    control_type: Literal["canny", "sketch"] = Field("canny", description="lines to learn")
    steps: int = Field(4000, ge=1, description="steps in all")
    batch: int = Field(16, ge=1, description="batch size")
    resolution: int = Field(128, ge=16, description="picture side in pixels")
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="of the weight matrices")
    learning_rate: float = Field(3e-4, gt=0, description="after warm-up")
    warmup_steps: int = Field(100, ge=1, description="linear warm-up")
    cooldown_share: float = Field(0.25, ge=0, le=1, description="share of steps of linear decay")
    caption_dropout: float = Field(0.3, ge=0, le=1, description="share trained without caption")
    timestep_power: float = Field(
        3.0, ge=1, le=10, description="how much noisy timesteps are favoured; 1 is not at all"
    )
    whole_share: float = Field(
        0.6, ge=0, le=1, description="share of holes that are all of the picture; others are large"
    )
    hole_weight: float = Field(0.75, ge=0, le=1, description="loss share that counts in the hole")
    channel_weight_power: float = Field(
        1.0, ge=0, le=2, description="latent channels weigh by their deviation to this power"
    )
    ema_decay: float = Field(0.999, ge=0, lt=1, description="exponential moving average")
    max_minutes: float | None = Field(None, gt=0, description="stop (resumable) after this time")
    save_every: int = Field(500, ge=1, description="steps between resumable states")
    seed: int = Field(0, ge=0, description="of weights, data order, masks and noise")


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


class AdapterTrainer:
    """One run: the frozen checkpoint, the adapter, its optimiser and average."""

    def __init__(
        self, folder: Path, out: Path, config: AdapterConfig, resume: bool = False
    ) -> None:
        self.config, self.out = config, out
        if resume:
            check_state(out)
        self.corpus = load_corpus(folder, held_out=False, captioned=False)
        self.held_out = load_corpus(folder, held_out=True, captioned=False)
        self.backbone = load_backbone(config.model, dtype="float32")
        self.device = self.backbone.device
        if config.resolution % self.backbone.multiple:
            raise InputError(
                f"resolution is {config.resolution}; expected a multiple of "
                f"{self.backbone.multiple} for the model {config.model}."
            )
        out.mkdir(parents=True, exist_ok=True)
        self.backbone.text.cache_size = _CAPTIONS
        if self.device.type == "cpu":
            from diffusers.models.attention_processor import AttnProcessor

            # Explicit attention: the fused kernel's backward is slow on CPUs.
            self.backbone.unet.set_attn_processor(AttnProcessor())
        torch.manual_seed(config.seed)
        network = new_adapter(self.backbone).to(self.device).train()
        self.adapter = ControlAdapter(
            network, self.backbone, name="to be trained", hasher=lambda: ""
        )
        self.learner = Learner(network, config.optimizer, config.learning_rate, config.ema_decay)
        self.feed = HostFeed(self.corpus, Policy(), self.device)
        self.alphas = self.backbone.alphas_cumprod.to(self.device)
        some = self.feed.batch(64, config.resolution, np.random.default_rng([config.seed, 4])).x
        with torch.no_grad():
            latents = self.backbone.encode(some)
        self.channel_weight = channel_weight(latents, config.channel_weight_power)
        self._without: dict[int, float] | None = None
        if resume:
            self.learner.load(out, f"an adapter for the model {config.model}")

    @property
    def step(self) -> int:
        return self.learner.step

    def _errors(
        self, x: Tensor, mask: Tensor, captions: list[str], t: Tensor, noise: Tensor, adapted: bool
    ) -> tuple[Tensor, Tensor]:
        """Squared error (N, C, h, w) of what the U-Net predicts, and the latent mask."""
        backbone = self.backbone
        inpaints = backbone.kind == "inpaint"
        hole, erased = whole_patches(mask, backbone.factor)
        with torch.no_grad():
            z = backbone.encode(x)
            seen = backbone.encode(x * (1 - erased)) if inpaints else None
        noisy, v = noised(z, noise, self.alphas[t])
        target = {"v_prediction": v, "epsilon": noise, "sample": z}[backbone.prediction_type]
        text = backbone.embed(captions, (x.shape[2], x.shape[3]))
        with torch.autocast(self.device.type, torch.bfloat16):
            features = None
            if adapted:
                lines = control_image(x, self.config.control_type)
                features = self.adapter.features(lines)
            output = backbone.predict(noisy, t, text, hole if inpaints else None, seen, features)
        return (output - target) ** 2, hole

    def learning_rate(self) -> float:
        c = self.config
        return rate(self.step, c.steps, c.learning_rate, c.warmup_steps, c.cooldown_share)

    def curves(self) -> dict[str, float]:
        return {}

    def train_step(self) -> float:
        c = self.config
        # Everything random in a step comes from (seed, step): a resumed run repeats nothing.
        rng = np.random.default_rng([c.seed, 2, self.step])
        batch = self.feed.batch(c.batch, c.resolution, rng)
        mask = large_holes(batch.mask.cpu(), c.whole_share, rng).to(self.device)
        captions = ["" if rng.random() < c.caption_dropout else text for text in batch.captions]
        # Stratified timesteps: the same loss, less variance.
        u = (np.arange(c.batch) + rng.random(c.batch)) / c.batch
        t = noisy_timesteps(u, c.timestep_power, len(self.alphas))
        noise = self._noise(c.batch, rng)
        steps = torch.from_numpy(t).to(self.device)
        error, hole = self._errors(batch.x, mask, captions, steps, noise, adapted=True)
        weight = (1 - c.hole_weight) + c.hole_weight * hole
        loss = (error * weight * self.channel_weight).mean() / weight.mean()
        loss.backward()
        self.learner.update(self.learning_rate())
        return float(loss.detach())

    def _noise(self, count: int, rng: np.random.Generator) -> Tensor:
        side = self.config.resolution // self.backbone.factor
        shape = (count, self.backbone.latent_channels, side, side)
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(self.device)

    @torch.no_grad()
    def validate(self, adapted: bool, pictures: int = 64) -> dict[int, float]:
        """Error in large holes of the held-out split by timestep, with the averaged adapter or
        without one; of v, where the checkpoint predicts that.

        Empty where nothing is held out, as may be with a handful of photos.
        """
        if len(self.held_out) == 0:
            return {}
        rng = np.random.default_rng([self.config.seed, 3])
        indices = np.arange(min(pictures, len(self.held_out)))
        batch = HostFeed(self.held_out, Policy(), self.device).of(
            indices, self.config.resolution, rng
        )
        mask = large_holes(batch.mask.cpu(), self.config.whole_share, rng).to(self.device)
        noise = self._noise(len(indices), rng)
        result = {}
        with self.learner.averaged():
            for t in VALIDATION_TIMESTEPS:
                steps = torch.full((len(indices),), t, device=self.device)
                error, hole = self._errors(batch.x, mask, batch.captions, steps, noise, adapted)
                result[t] = float((error.mean(1, keepdim=True) * hole).sum() / hole.sum())
        return result

    def report(self) -> tuple[dict[str, Any], dict[str, float]]:
        if self._without is None:
            self._without = self.validate(adapted=False)
        sides = {"": self.validate(adapted=True), "_without_adapter": self._without}
        row = {
            f"validation_v_loss{side}": {str(t): round(v, 5) for t, v in found.items()}
            for side, found in sides.items()
        }
        curves = {
            f"v_loss_in_hole{side}/{t}": v
            for side, found in sides.items()
            for t, v in found.items()
        }
        return row, curves

    def save_state(self) -> None:
        """Write a resumable state to OUT."""
        self.learner.save(self.out)

    def export(self, figures: dict[str, Any]) -> Path:
        """Write the averaged weights in float16 as a T2IAdapter folder OUT/adapter."""
        recipe = {"config": self.config.model_dump(mode="json"), **figures}
        return self.learner.export(self.out / "adapter", recipe)


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
    log(f"{len(trainer.corpus)} pictures to train on, {len(trainer.held_out)} held out")
    train(trainer, log)
    return out / "adapter"
