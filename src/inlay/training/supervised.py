"""Training of a small network of our own, with no checkpoint beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import save_file
from torch import nn

from inlay.learning.settings import Optimizer, Rate, TrainingConfig, Warmup
from inlay.scene.network import load_layers
from inlay.training.network import Learner
from inlay.training.trainer import Batch, Sample, Trainer

__all__ = ["Batch", "Sample", "SupervisedConfig", "SupervisedTrainer"]


class SupervisedConfig(TrainingConfig):
    """What every such training can be told."""

    learning_rate: Rate = 1.5e-3
    warmup_steps: Warmup = 300
    optimizer: Optimizer = "adamw"
    start_from: str | None = None
    """folder whose weights are begun with; embedded are those that ship with inlay"""


class SupervisedTrainer(Trainer):
    """One run. The network is a definition that reads arrays of a shape; its name is the training's
    kind.
    """

    definition: ClassVar[Any]
    shape: ClassVar[tuple[int, int, int]]
    config: SupervisedConfig
    bfloat16 = True

    def new_network(self) -> Learner:
        return Learner(self.definition, self.shape)

    def begin(self) -> None:
        if (name := self.config.start_from) is not None:
            folder = None if name == "embedded" else Path(name)
            self.network.load(load_layers(self.definition, folder))

    def write(self, network: nn.Module, folder: Path) -> None:
        """The weights alone, as model.safetensors; how many batches were counted is left out."""
        folder.mkdir()
        tensors = {k: v.cpu() for k, v in network.state_dict().items() if v.is_floating_point()}
        save_file(tensors, folder / "model.safetensors")
