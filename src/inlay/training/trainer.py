"""What the trainings share: data, validation and files; and a network beside a checkpoint."""

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
from inlay.errors import InputError
from inlay.learning.loop import Run, validation_curve
from inlay.learning.settings import Optimizer, TrainingConfig
from inlay.learning.state import TrainState, check_state
from inlay.training.batches import Batch, CorpusLoader
from inlay.training.corpus import Corpus, load_corpus
from inlay.training.losses import channel_weight

Errors = Callable[[Batch, Tensor, Tensor], tuple[Tensor, Tensor]]

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
    """A run on a corpus: what it validates on, and the folder OUT/KIND that it writes.

    A subclass says what it is (`kind`, for messages and the folder), the side of its pictures, and
    the (channels, factor) of its latents.
    """

    kind: str
    device: torch.device
    held_out: Corpus
    size: int
    latent: tuple[int, int]

    def noise(self, rng: np.random.Generator, *rows: int, size: int | None = None) -> Tensor:
        """Standard normal noise (*rows, C, h, w) in the shape of latents."""
        channels, factor = self.latent
        side = (size or self.size) // factor
        drawn = rng.standard_normal((*rows, channels, side, side), dtype=np.float32)
        return torch.from_numpy(drawn).to(self.device)

    def some_pictures(self, corpus: Corpus) -> Tensor:
        """64 crops (64, 3, S, S), to measure latents by."""
        rng = np.random.default_rng([self.config.seed, 4])
        return CorpusLoader(corpus, self.device).batch(64, self.size, rng).x

    def errors(self, batch: Batch, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error (N, C, h, w) of what the U-Net predicts, and the latent mask."""
        raise NotImplementedError

    def enlarge(self, mask: Tensor, rng: np.random.Generator) -> Tensor:
        """The holes (N, 1, S, S) that are learned from, of those that a loader gives."""
        return mask

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

    def write(self, network: Any, folder: Path) -> None:
        """Write the network, in the half precision that it is given in."""
        network.save_pretrained(folder)

    def export(self, figures: dict[str, Any]) -> None:
        """Write the averaged weights in float16 as a folder of diffusers' layout OUT/KIND."""
        recipe = {"config": self.config.model_dump(mode="json"), **figures}
        self.state.export(self.out / self.kind, recipe, self.write)


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
        self.latent = backbone.latent_channels, backbone.factor
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
        with torch.no_grad():
            latents = [backbone.encode(x) for x in self.some_pictures(self.photos).split(8)]
        self.channel_weight = channel_weight(torch.cat(latents), config.channel_weight_power)

    def new_network(self) -> Any:
        """What learns, with its first weights."""
        raise NotImplementedError
