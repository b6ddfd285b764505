"""Training of a network beside a frozen checkpoint: what adapters and harmonizers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from inlay.checkpoints.load import load_backbone
from inlay.errors import InputError
from inlay.learning.loop import Run
from inlay.learning.settings import Optimizer, TrainingConfig
from inlay.learning.state import TrainState, check_state
from inlay.training.batches import Augmentation, HostLoader
from inlay.training.corpus import load_corpus
from inlay.training.losses import channel_weight

__all__ = ["BranchConfig", "BranchRun"]

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
    caption_dropout: float = Field(0.3, ge=0, le=1, description="share trained without caption")
    channel_weight_power: float = Field(
        1.0, ge=0, le=2, description="latent channels weigh by their deviation to this power"
    )


class BranchRun(Run):
    """One run: the frozen checkpoint, the photos, and the network that learns beside it.

    A subclass says what it is (`kind`, for messages and the folder of its weights) and makes it.
    """

    kind: str
    config: BranchConfig

    def __init__(self, folder: Path, out: Path, config: BranchConfig, resume: bool) -> None:
        self.config, self.out = config, out
        if resume:
            check_state(out)
        place = self.processes.device if self.processes is not None else None
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
        self.photos, self.held_out = (
            load_corpus(folder, held_out, self.short_side, captioned=False)
            for held_out in (False, True)
        )
        backbone.text.cache_size = _CAPTIONS
        torch.manual_seed(config.seed)
        self.network = self.new_network().to(self.device).train()
        if self.device.type == "cpu":
            from diffusers.models.attention_processor import AttnProcessor

            # Explicit attention: the fused kernel's backward is slow on CPUs.
            for module in (backbone.network, self.network):
                if hasattr(module, "set_attn_processor"):
                    module.set_attn_processor(AttnProcessor())
        self.state = TrainState(
            self.network, config.optimizer, config.learning_rate, config.ema_decay
        )
        if resume:
            article = "an" if self.kind[0] in "aeiou" else "a"
            self.state.load(out, f"{article} {self.kind} for the model {config.model}")
        out.mkdir(parents=True, exist_ok=True)
        self.channel_weight = channel_weight(self._latents(), config.channel_weight_power)

    def new_network(self) -> Any:
        """What learns, with its first weights."""
        raise NotImplementedError

    @torch.no_grad()
    def _latents(self) -> Tensor:
        """Those of some crops."""
        loader = HostLoader(self.photos, Augmentation(), self.device)
        some = loader.batch(64, self.size, np.random.default_rng([self.config.seed, 4])).x
        return torch.cat([self.backbone.encode(x) for x in some.split(8)])

    def noise(self, rng: np.random.Generator, *rows: int) -> Tensor:
        """Standard normal noise (*rows, C, h, w) in the shape of latents."""
        side = self.size // self.backbone.factor
        shape = (*rows, self.backbone.latent_channels, side, side)
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(self.device)

    def export(self, figures: dict[str, Any]) -> None:
        """Write the averaged weights in float16 as a folder of diffusers' layout OUT/KIND."""
        recipe = {"config": self.config.model_dump(mode="json"), **figures}
        self.state.export(self.out / self.kind, recipe)
