"""What the trainings share: files and first steps; pictures with holes, whose content is learnt; a
network beside a checkpoint.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from inlay.checkpoints.load import load_backbone
from inlay.diffusion.backbone import Backbone, Conditions
from inlay.diffusion.text import Embedding
from inlay.errors import InputError
from inlay.learning.loop import (
    Run,
    TrainState,
    check_state,
    prediction_error,
    train,
    validation_curve,
)
from inlay.learning.settings import Optimizer, TrainingConfig
from inlay.training.corpus import Ahead, Batch, Corpus, CorpusLoader, load_corpus
from inlay.training.objects import ObjectCache

# Captions come again: as many stay embedded, a few tens of kilobytes each.
_CAPTIONS = 1024


class MaskedConfig(TrainingConfig):
    """What every training on masked pictures can be told."""

    caption_dropout: float = Field(0.3, ge=0, le=1, description="share trained without caption")
    hole_weight: float = Field(0.75, ge=0, le=1, description="loss share that counts in the hole")


class BranchConfig(TrainingConfig):
    """What every training beside a checkpoint can be told."""

    model: str = Field("embedded", description="checkpoint that it is trained for")
    resolution: int | None = Field(
        None,
        ge=16,
        description="picture side in pixels; None is half of the checkpoint's own, where light "
        "and colour are learnt at a quarter of the cost",
    )
    optimizer: Optimizer = "adamw"
    channel_weight_power: float = Field(1.0, ge=0, le=2)
    """latent channels weigh by their deviation to this power"""


def favoured_timesteps(
    u: NDArray[np.float64], share: float, above: float, total: int = 1000
) -> NDArray[np.int64]:
    """Numbers in [0, 1) to timesteps: uniform, but for a share that is above `above` * total alone.
    There colour, light and what the picture shows are settled.
    """
    bounds = np.interp(u, [0.0, above * (1 - share), 1.0], [0.0, above * total, total])
    return np.clip(bounds.astype(np.int64), 0, total - 1)


class Trainer(Run):
    """A run on a corpus, with the folder OUT/KIND that it writes.

    A subclass says what it is (`kind`, for messages and the folder), and has a checkpoint, the side
    of its pictures and those that are held out.
    """

    kind: str
    backbone: Backbone
    device: torch.device
    corpus: Corpus
    held_out: Corpus
    objects: ObjectCache
    size: int
    channel_weight: Tensor

    def noise(self, rng: np.random.Generator, x: Tensor) -> Tensor:
        """Standard normal noise (N, C, h, w) in the shape of the latents of pictures x."""
        sides = [side // self.backbone.factor for side in x.shape[2:]]
        shape = (len(x), self.backbone.latent_channels, *sides)
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(self.device)

    @torch.no_grad()
    def weigh_channels(self, power: float) -> Tensor:
        """What each latent channel weighs in the loss: (1, C, 1, 1), 1 on average.

        What a channel weighs in the picture grows with the square of its deviation, which is
        measured on 64 crops; a smaller power keeps the finer channels in the game.
        """
        rng = np.random.default_rng([self.config.seed, 4])
        x = CorpusLoader(self.corpus, self.device).batch(64, self.size, rng).x
        z = torch.cat([self.backbone.encode(some) for some in x.split(8)])
        visible = z.std((0, 2, 3)) ** power
        return (visible / visible.mean()).view(1, -1, 1, 1)

    def learn_fast(self, *networks: Any) -> None:
        """Explicit attention on CPUs, where the fused kernel's backward is slow."""
        if self.device.type == "cpu":
            for network in networks:
                if hasattr(network, "set_attn_processor"):
                    network.set_attn_processor(AttnProcessor())

    def write(self, network: Any, folder: Path) -> None:
        """Write the network, in the half precision that it is given in."""
        network.save_pretrained(folder)

    def export(self, figures: dict[str, Any]) -> None:
        """Write the averaged weights in float16 as a folder of diffusers' layout OUT/KIND, with the
        recipe as training.json; renamed into place.
        """
        target, temporary = self.out / self.kind, self.out / f"{self.kind}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        network: Any = copy.deepcopy(self.state.network)
        network.load_state_dict(self.state.average)
        self.write(network.half(), temporary)
        recipe = {"config": self.config.model_dump(mode="json"), **figures, "step": self.step}
        (temporary / "training.json").write_text(json.dumps(recipe, indent=2) + "\n")
        for file in temporary.rglob("*.safetensors"):
            # save_pretrained makes them private to the user; a package's files are not.
            file.chmod(0o644)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)


def train_folder(
    kind: Callable[[Path, Path, Any, bool], Trainer],
    folder: Path,
    out: Path,
    config: TrainingConfig,
    resume: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train one kind of network on an image folder, see train(), and return the folder OUT/KIND
    with it. Raises InputError for an unusable folder or checkpoint, or nothing to resume.
    """
    trainer = kind(folder, out, config, resume)
    if trainer.processes.first:
        log(f"{len(trainer.corpus)} pictures to train on, {len(trainer.held_out)} held out")
    train(trainer, log)
    return out / trainer.kind


class MaskedTrainer(Trainer):
    """A run on pictures with holes, which its `loader` gives. A subclass says what timesteps are
    learned at, and may say more of its batches and its loss.
    """

    config: MaskedConfig
    loader: CorpusLoader
    # What reports compare, by the ends of their names: whether control() is left out.
    sides: tuple[tuple[str, bool], ...] = (("", False),)

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

    @abstractmethod
    def timesteps(self, u: NDArray[np.float64]) -> NDArray[np.int64]:
        """Numbers in [0, 1) to timesteps to learn at."""

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
        count = len(batch.x)
        batch.captions = [
            "" if rng.random() < c.caption_dropout else text for text in batch.captions
        ]
        # Stratified timesteps: the same loss, less variance.
        u = (np.arange(count) + rng.random(count)) / count
        t = torch.from_numpy(self.timesteps(u)).to(self.device)
        noise = self.noise(rng, batch.x)
        error, hole = self.errors(batch, t, noise)
        weight = (1 - c.hole_weight) + c.hole_weight * hole
        loss = (error * weight * self.channel_weight).mean() / weight.mean()
        (loss + self.penalty(batch, t, noise, error, rng)).backward()
        self.state.update(self.learning_rate())
        return float(loss.detach())

    def validate(self, bare: bool = False, pictures: int = 64) -> dict[int, float]:
        """errors() in the holes of the held-out split by timestep, with the averaged weights; of v,
        where the network predicts that.

        Empty where nothing is held out, as may be with a handful of photos.
        """
        count = min(pictures, len(self.held_out))
        if count == 0:
            return {}
        rng = np.random.default_rng([self.config.seed, 3])
        batch = CorpusLoader(self.held_out, self.device).of(np.arange(count), self.size, rng)
        batch.mask = self.enlarge(batch.mask, rng)
        noise = self.noise(rng, batch.x)
        with self.state.averaged():
            return validation_curve(
                lambda t: self.errors(batch, t, noise, bare), count, self.device
            )

    def report(self) -> tuple[dict[str, Any], dict[str, float]]:
        row: dict[str, Any] = {}
        curves: dict[str, float] = {}
        for side, bare in self.sides:
            losses = self.validate(bare)
            row[f"validation_v_loss{side}"] = {str(t): round(v, 5) for t, v in losses.items()}
            curves |= {f"v_loss_in_hole{side}/{t}": v for t, v in losses.items()}
        return row, curves


class BranchTrainer(Trainer):
    """One run: the frozen checkpoint, the photos, and the network that learns beside it. A subclass
    makes that network.
    """

    config: BranchConfig

    def __init__(self, folder: Path, out: Path, config: BranchConfig, resume: bool) -> None:
        self.config, self.out = config, out
        if resume:
            check_state(out)
        place = self.processes.device or "auto"
        self.backbone = backbone = load_backbone(config.model, device=place, dtype="float32")
        self.device = backbone.device
        # Half of the checkpoint's own side, to the next multiple that it takes.
        half = -(-backbone.native_size // 2 // backbone.multiple) * backbone.multiple
        self.size = config.resolution or int(half)
        if self.size % backbone.multiple:
            raise InputError(
                f"resolution is {self.size}; expected a multiple of {backbone.multiple} for "
                f"the model {config.model}."
            )
        # Crops go down to about half of a picture.
        self.short_side = side = max(288, self.size * 5 // 4)
        self.corpus, self.held_out = (
            load_corpus(folder, held, side, captioned=False) for held in (False, True)
        )
        backbone.text.cache_size = _CAPTIONS
        torch.manual_seed(config.seed)
        self.network = self.new_network().to(self.device).train()
        self.learn_fast(backbone.network, self.network)
        self.state = TrainState(self.network, config)
        if resume:
            article = "an" if self.kind[0] in "aeiou" else "a"
            self.state.load(out, f"{article} {self.kind} for the model {config.model}")
        out.mkdir(parents=True, exist_ok=True)
        self.objects = ObjectCache()
        self.channel_weight = self.weigh_channels(config.channel_weight_power)

    @abstractmethod
    def new_network(self) -> Any:
        """What learns, with its first weights."""
