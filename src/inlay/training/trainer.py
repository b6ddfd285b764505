"""What the trainings share: data, files and first steps; and a network beside a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from inlay.checkpoints.load import load_backbone
from inlay.diffusion.backbone import Backbone
from inlay.errors import InputError
from inlay.learning.loop import Run, train
from inlay.learning.settings import Optimizer, TrainingConfig
from inlay.learning.state import TrainState, check_state
from inlay.training.batches import CorpusLoader
from inlay.training.corpus import Corpus, load_corpus
from inlay.training.objects import ObjectCache

# Captions come again: as many stay embedded, a few tens of kilobytes each.
_CAPTIONS = 1024


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

    def noise(self, rng: np.random.Generator, *rows: int, size: int | None = None) -> Tensor:
        """Standard normal noise (*rows, C, h, w) in the shape of latents."""
        side = (size or self.size) // self.backbone.factor
        shape = (*rows, self.backbone.latent_channels, side, side)
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
            from diffusers.models.attention_processor import AttnProcessor

            for network in networks:
                if hasattr(network, "set_attn_processor"):
                    network.set_attn_processor(AttnProcessor())

    def save_state(self) -> None:
        """Write a resumable state, and the objects found so far."""
        super().save_state()
        self.objects.save()

    def write(self, network: Any, folder: Path) -> None:
        """Write the network, in the half precision that it is given in."""
        network.save_pretrained(folder)

    def export(self, figures: dict[str, Any]) -> None:
        """Write the averaged weights in float16 as a folder of diffusers' layout OUT/KIND."""
        recipe = {"config": self.config.model_dump(mode="json"), **figures}
        self.state.export(self.out / self.kind, recipe, self.write)


def train_folder(
    kind: Callable[[Path, Path, Any, bool], Trainer],
    folder: Path,
    out: Path,
    config: TrainingConfig,
    resume: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train one kind of network on an image folder and return the folder OUT/KIND with it.

    Every `save_every` steps a resumable state, a report (OUT/log.jsonl, and OUT/events for
    TensorBoard) and the network so far are written. Raises InputError for an unusable folder or
    checkpoint, or nothing to resume.
    """
    trainer = kind(folder, out, config, resume)
    if trainer.processes.first:
        log(f"{len(trainer.corpus)} pictures to train on, {len(trainer.held_out)} held out")
    train(trainer, log)
    return out / trainer.kind


class BranchTrainer(Trainer):
    """One run: the frozen checkpoint, the photos, and the network that learns beside it.

    A subclass makes that network.
    """

    config: BranchConfig

    def __init__(self, folder: Path, out: Path, config: BranchConfig, resume: bool) -> None:
        self.config, self.out = config, out
        if resume:
            check_state(out)
        place = self.processes.device
        self.backbone = backbone = load_backbone(
            config.model, device=place or "auto", dtype="float32"
        )
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
        self.short_side = max(288, self.size * 5 // 4)
        self.corpus, self.held_out = (
            load_corpus(folder, held_out, self.short_side, captioned=False)
            for held_out in (False, True)
        )
        backbone.text.cache_size = _CAPTIONS
        torch.manual_seed(config.seed)
        self.network = self.new_network().to(self.device).train()
        self.learn_fast(backbone.network, self.network)
        self.state = TrainState(
            self.network, config.optimizer, config.learning_rate, config.ema_decay
        )
        if resume:
            article = "an" if self.kind[0] in "aeiou" else "a"
            self.state.load(out, f"{article} {self.kind} for the model {config.model}")
        out.mkdir(parents=True, exist_ok=True)
        self.objects = ObjectCache(out / "objects.safetensors")
        self.channel_weight = self.weigh_channels(config.channel_weight_power)

    def new_network(self) -> Any:
        """What learns, with its first weights."""
        raise NotImplementedError
