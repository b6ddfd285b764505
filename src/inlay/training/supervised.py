"""Training of a network of our own that learns from samples alone, with no checkpoint beside it.

A sample is a mapping of arrays, drawn from a corpus by a generator of its own, so that a resumed
run sees what an unbroken one would have seen.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import default_collate

from inlay.learning.loop import TrainState, check_state
from inlay.learning.settings import Optimizer, Rate, TrainingConfig, Warmup
from inlay.scene.network import load_layers
from inlay.training.corpus import Ahead
from inlay.training.network import Learner
from inlay.training.trainer import Trainer

# Arrays of a shape that all samples share, and tensors with a row for each.
Sample = Mapping[str, NDArray[Any]]
Batch = dict[str, Tensor]

_VALIDATED = 64


class SupervisedConfig(TrainingConfig):
    """What every such training can be told."""

    learning_rate: Rate = 1.5e-3
    warmup_steps: Warmup = 300
    optimizer: Optimizer = "adamw"
    start_from: str | None = None
    """folder whose weights are begun with; embedded are those that ship with inlay"""


class SupervisedTrainer(Trainer):
    """One run; a subclass says what a corpus, the network, a sample, loss and figures are.

    The network is a definition that reads arrays of a shape; its name is the training's kind.
    """

    definition: ClassVar[Any]
    shape: ClassVar[tuple[int, int, int]]
    config: SupervisedConfig
    # Two splits of anything that has a length.
    corpus: Any
    held_out: Any

    def __init__(
        self, folder: Path, out: Path, config: SupervisedConfig, resume: bool = False
    ) -> None:
        self.config, self.out = config, out
        if resume:
            check_state(out)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.corpus, self.held_out = (self.read(folder, held) for held in (False, True))
        torch.manual_seed(config.seed)
        self.network = Learner(self.definition, self.shape)
        if config.start_from is not None:
            begun = None if config.start_from == "embedded" else Path(config.start_from)
            self.network.load(load_layers(self.definition, begun))
        self.network.to(self.device).train()
        self.state = TrainState(self.network, config)
        if resume:
            self.state.load(out, f"a {self.kind}")
        out.mkdir(parents=True, exist_ok=True)
        workers = min(8, os.cpu_count() or 1) if self.device.type == "cuda" else 0
        self._ahead = Ahead(self._draw, workers)

    @abstractmethod
    def read(self, folder: Path, held_out: bool) -> Any:
        """One split of a folder; raises InputError where there is nothing to learn from."""

    @abstractmethod
    def sample(self, corpus: Any, rng: np.random.Generator) -> Sample:
        """One sample of a split."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """What a step makes less of, a scalar; matrix products are in bfloat16."""

    @abstractmethod
    def figures(self, batch: Batch) -> Mapping[str, Tensor]:
        """What validation says of each sample, (N,) by name; NaN where it says nothing."""

    def _draw(self, step: int, row: int) -> Sample:
        return self.sample(self.corpus, np.random.default_rng([self.config.seed, 2, step, row]))

    def _batch(self, samples: Sequence[Sample]) -> Batch:
        return {key: value.to(self.device) for key, value in default_collate([*samples]).items()}

    def train_step(self) -> float:
        batch = self._batch(self._ahead.get(self.step, range(self.config.batch)))
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.loss(batch)
        loss.backward()
        self.state.update(self.learning_rate())
        return float(loss.detach())

    @torch.no_grad()
    def report(self) -> tuple[dict[str, Any], dict[str, float]]:
        """The mean figures of samples of the held-out split, the same each time: up to 64, four for
        each thing in it.
        """
        rows: dict[str, list[Tensor]] = {}
        numbers = range(min(_VALIDATED, 4 * len(self.held_out)))
        with self.state.averaged():
            self.network.eval()
            for start in numbers[:: self.config.batch]:
                some = numbers[start : start + self.config.batch]
                seeds = ([self.config.seed, 3, number] for number in some)
                drawn = [self.sample(self.held_out, np.random.default_rng(s)) for s in seeds]
                for name, values in self.figures(self._batch(drawn)).items():
                    rows.setdefault(name, []).append(values.float().cpu())
            self.network.train()
        means = {name: float(torch.cat(parts).nanmean()) for name, parts in rows.items()}
        known = {name: round(value, 5) for name, value in means.items() if np.isfinite(value)}
        return {"validation": known}, {f"validation/{name}": v for name, v in known.items()}

    def write(self, network: nn.Module, folder: Path) -> None:
        """The weights alone, as model.safetensors; how many batches were counted is left out."""
        folder.mkdir()
        tensors = {k: v.cpu() for k, v in network.state_dict().items() if v.is_floating_point()}
        save_file(tensors, folder / "model.safetensors")
