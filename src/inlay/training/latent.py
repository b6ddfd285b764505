"""What the trainings on latents share: pictures with holes, whose content is learnt, and a network
beside a frozen checkpoint.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from inlay.checkpoints.load import load_backbone
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.conditions import Conditions
from inlay.diffusion.text import Embedding
from inlay.learning.loop import VALIDATED, check_side, inside, prediction_error
from inlay.learning.samples import random_crop, random_mask
from inlay.learning.settings import Optimizer, TrainingConfig
from inlay.training.corpus import Corpus, load_corpus
from inlay.training.objects import ObjectCache
from inlay.training.trainer import Batch, Sample, Trainer

Rng = np.random.Generator

# Captions come again: as many stay embedded, a few tens of kilobytes each.
_CAPTIONS = 1024
# Crops on which the deviation of latent channels is measured.
_MEASURED = 64


class LatentConfig(TrainingConfig):
    """What every training on latents can be told."""

    caption_dropout: float = Field(0.3, ge=0, le=1, description="share trained without caption")
    channel_weight_power: float = Field(1.0, ge=0, le=2)
    """latent channels weigh by their deviation to this power"""


class MaskedConfig(LatentConfig):
    """What every training on masked pictures can be told."""

    hole_weight: float = Field(0.75, ge=0, le=1, description="loss share that counts in the hole")


class BranchConfig(LatentConfig):
    """What every training beside a checkpoint can be told."""

    model: str = Field("embedded", description="checkpoint that it is trained for")
    resolution: int | None = Field(
        None,
        ge=16,
        description="picture side in pixels; None is half of the checkpoint's own, where light "
        "and colour are learnt at a quarter of the cost",
    )
    optimizer: Optimizer = "adamw"


def favoured_timesteps(
    u: NDArray[np.float64], share: float, above: float, total: int = 1000
) -> NDArray[np.int64]:
    """Numbers in [0, 1) to timesteps: uniform, but for a share that is above `above` * total alone.
    There colour, light and what the picture shows are settled.
    """
    bounds = np.interp(u, [0.0, above * (1 - share), 1.0], [0.0, above * total, total])
    return np.clip(bounds.astype(np.int64), 0, total - 1)


def as_plane(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A picture (h, w, 3) as (3, h, w) in [-1, 1]."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32) / np.float32(127.5) - 1


def captions_of(batch: Batch) -> list[str]:
    return cast("list[str]", batch["caption"])


class LatentTrainer(Trainer):
    """A run on latents of a checkpoint, `size` the side of its pictures.

    A sample has a caption, and noise (C, h, w) of its latents' shape; one that is learned from has
    the timestep t, too.
    """

    config: LatentConfig
    backbone: Backbone
    corpus: Corpus
    held_out: Corpus
    size: int

    @cached_property
    def objects(self) -> ObjectCache:
        return ObjectCache()

    @abstractmethod
    def sample(self, corpus: Corpus, rng: Rng, shape: tuple[int, int] | None = None) -> Sample:
        """One sample of a split, of (height, width), by default the square of the run's size."""

    @abstractmethod
    def timesteps(self, u: NDArray[np.float64]) -> NDArray[np.int64]:
        """Numbers in [0, 1) to timesteps to learn at."""

    def shape(self, step: int) -> tuple[int, int]:
        """The (height, width) of a step's pictures."""
        return self.size, self.size

    def draw(self, step: int, row: int) -> Sample:
        rng = np.random.default_rng([self.config.seed, 2, step, row])
        sample = dict(self.sample(self.corpus, rng, self.shape(step)))
        if rng.random() < self.config.caption_dropout:
            sample["caption"] = ""
        # Stratified timesteps: the same loss, less variance.
        u = (row + rng.random()) / self.count(step)
        return sample | {"t": self.timesteps(np.array([u]))[0]}

    def noise(self, shape: tuple[int, int], rng: Rng) -> NDArray[np.float32]:
        """Standard normal noise (C, h, w) for the latents of pictures of (height, width)."""
        sides = (side // self.backbone.factor for side in shape)
        return rng.standard_normal((self.backbone.latent_channels, *sides), dtype=np.float32)

    @cached_property
    def channel_weight(self) -> Tensor:
        """What each latent channel weighs in the loss: (1, C, 1, 1), 1 on average.

        What a channel weighs in the picture grows with the square of its deviation, which is
        measured on 64 crops; a smaller power keeps the finer channels in the game.
        """
        rng = np.random.default_rng([self.config.seed, 4])
        pictures = (self.corpus.draw(rng)[0][..., :3] for _ in range(_MEASURED))
        crops = [as_plane(random_crop(picture, self.size, rng)) for picture in pictures]
        with torch.no_grad():
            parts = torch.from_numpy(np.stack(crops)).to(self.device).split(8)
            z = torch.cat([self.backbone.encode(some) for some in parts])
        visible = z.std((0, 2, 3)) ** self.config.channel_weight_power
        return (visible / visible.mean()).view(1, -1, 1, 1)

    def learn_fast(self, *networks: Any) -> None:
        """Explicit attention on CPUs, where the fused kernel's backward is slow."""
        if self.device.type == "cpu":
            for network in networks:
                if hasattr(network, "set_attn_processor"):
                    network.set_attn_processor(AttnProcessor())


class MaskedTrainer(LatentTrainer):
    """A run on pictures x (3, S, S) with holes, mask (1, S, S) of 0 and 1, whose content is learnt.
    A subclass may say more of them, and of the loss.
    """

    config: MaskedConfig
    # What reports compare, by the ends of their names: whether control() is left out.
    sides: tuple[tuple[str, bool], ...] = (("", False),)

    def crop(
        self, picture: NDArray[np.uint8], side: int, rng: Rng
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """A square of a picture (H, W, 3 or 4), (S, S, 3), and a hole in it (S, S)."""
        return random_crop(picture[..., :3], side, rng), random_mask(side, rng)

    def sample(self, corpus: Corpus, rng: Rng, shape: tuple[int, int] | None = None) -> Sample:
        side = self.size if shape is None else shape[0]
        picture, caption = corpus.draw(rng)
        crop, hole = self.crop(picture, side, rng)
        noise = self.noise((side, side), rng)
        return {"x": as_plane(crop), "mask": hole[None], "noise": noise, "caption": caption}

    def embed(self, captions: Sequence[str]) -> Embedding:
        """Captions as the U-Net reads them."""
        return self.backbone.embed(captions, (self.size, self.size))

    def control(self, x: Tensor) -> Sequence[Tensor] | None:
        """A T2I-Adapter's features of pictures (N, 3, S, S), where there is one."""
        return None

    def errors(
        self, batch: Batch, captions: Sequence[str], bare: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Squared error (N, C, h, w) of what the U-Net predicts, `bare` without control(); and the
        latent mask.
        """
        backbone, x, factor = self.backbone, batch["x"], self.backbone.factor
        hole = batch["mask"][:, :, ::factor, ::factor]
        with torch.no_grad():
            z, seen = backbone.encode(x), backbone.encode_masked(x, hole)
        text = self.embed(captions)
        with torch.autocast(self.device.type, torch.bfloat16):
            features = None if bare else self.control(x)
            conditions = Conditions(text, mask=hole, masked_latent=seen, control=features)
            error = prediction_error(backbone, z, batch["noise"], batch["t"], conditions)
        return error**2, hole

    def penalty(self, batch: Batch, error: Tensor) -> Tensor | float:
        """What else a step's loss has, given the error that every caption leaves."""
        return 0.0

    def loss(self, batch: Batch) -> Tensor:
        error, hole = self.errors(batch, captions_of(batch))
        weight = (1 - self.config.hole_weight) + self.config.hole_weight * hole
        loss = (error * weight * self.channel_weight).mean() / weight.mean()
        return loss + self.penalty(batch, error)

    def figures(self, batch: Batch) -> Mapping[str, Tensor]:
        """errors() in the holes by timestep; of v, where the network predicts that."""
        found = {}
        for side, bare in self.sides:
            for t in VALIDATED:
                given = batch | {"t": torch.full((len(batch["x"]),), t, device=self.device)}
                error = inside(*self.errors(given, captions_of(batch), bare))
                found[f"validation_v_loss{side}/{t}"] = error
        return found


class BranchTrainer(LatentTrainer):
    """One run: the frozen checkpoint, the photos, and the network that learns beside it."""

    config: BranchConfig

    def open(self) -> torch.device:
        model, place = self.config.model, self.processes.device or "auto"
        self.backbone = backbone = load_backbone(model, device=place, dtype="float32")
        backbone.text.cache_size = _CAPTIONS
        backbone.text.clear()
        # Half of the checkpoint's own side, to the next multiple that it takes.
        half = -(-backbone.native_size // 2 // backbone.multiple) * backbone.multiple
        self.size = check_side(self.config.resolution or half, backbone)
        return backbone.device

    @property
    def short_side(self) -> int:
        """Of the pictures that are held in memory: crops go down to about half of one."""
        return max(288, self.size * 5 // 4)

    def read(self, folder: Path, held_out: bool) -> Corpus:
        return load_corpus(folder, held_out, self.short_side, captioned=False)

    def begin(self) -> None:
        self.learn_fast(self.backbone.network, self.network)

    @property
    def whose(self) -> str:
        article = "an" if self.kind[0] in "aeiou" else "a"
        return f"{article} {self.kind} for the model {self.config.model}"
