"""What the trainings share: samples that are made ahead, steps, reports, and the folder that is
written.

A sample is a mapping of arrays, drawn from a corpus by a generator of its own, so that a resumed
run sees what an unbroken one would have seen.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from inlay.learning.loop import Run, TrainState, check_state, train
from inlay.learning.settings import TrainingConfig

# Arrays, of a shape that all samples of a step share, numbers or text; tensors with a row for each.
Sample = Mapping[str, Any]
Batch = dict[str, Tensor]

_VALIDATED = 64


class Ahead:
    """What make(step, row) gives, made in threads while the step before is learned from."""

    def __init__(self, make: Callable[[int, int], Sample], workers: int) -> None:
        """Without `workers` all is made when it is asked for."""
        self._make = make
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._coming: dict[tuple[int, int], Future[Sample]] = {}

    def get(self, step: int, rows: Sequence[int]) -> list[Sample]:
        """Those of these rows of a step."""
        if self._pool is None:
            return [self._make(step, row) for row in rows]
        for key in itertools.product((step, step + 1), rows):
            if key not in self._coming:
                self._coming[key] = self._pool.submit(self._make, *key)
        return [self._coming.pop((step, row)).result() for row in rows]


class Trainer(Run):
    """A run on two splits of a folder, with the folder OUT/KIND that it writes.

    A subclass says what it is (`kind`, for messages and the folder) and what splits, network,
    samples, loss and figures are.
    """

    kind: str
    # Whether all matrix products of a loss are in bfloat16.
    bfloat16: ClassVar[bool] = False
    # Two splits of anything that has a length.
    corpus: Any
    held_out: Any

    def __init__(
        self, folder: Path, out: Path, config: TrainingConfig, resume: bool = False
    ) -> None:
        self.config, self.out, self.resumed = config, out, resume
        if resume:
            check_state(out)
        self.device = self.open()
        self.corpus, self.held_out = (self.read(folder, held) for held in (False, True))
        torch.manual_seed(config.seed)
        self.network: Any = self.new_network()
        self.begin()
        self.network.to(self.device).train()
        self.state = TrainState(self.network, config)
        if resume:
            self.state.load(out, self.whose)
        out.mkdir(parents=True, exist_ok=True)

    def open(self) -> torch.device:
        """Open what is needed besides the folder; gives the device to train on."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @abstractmethod
    def read(self, folder: Path, held_out: bool) -> Any:
        """One split of a folder; raises InputError where there is nothing to learn from."""

    @abstractmethod
    def new_network(self) -> nn.Module:
        """What learns, with random weights."""

    def begin(self) -> None:
        """Give the network the weights that it begins with, where the settings name some."""

    @abstractmethod
    def sample(self, corpus: Any, rng: np.random.Generator) -> Sample:
        """One sample of a split."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """What a step makes less of, a scalar."""

    @abstractmethod
    def figures(self, batch: Batch) -> Mapping[str, Tensor]:
        """What validation says of each sample, (N,) by name; NaN where it says nothing. A name may
        begin with that of a group and a slash.
        """

    @property
    def whose(self) -> str:
        """What a state has to be of."""
        return f"a {self.kind}"

    @cached_property
    def _ahead(self) -> Ahead:
        workers = min(8, os.cpu_count() or 1) if self.device.type == "cuda" else 0
        return Ahead(self.draw, workers)

    def count(self, step: int) -> int:
        """How many samples a step has, over all processes."""
        return self.config.batch

    def draw(self, step: int, row: int) -> Sample:
        """The sample of a row of a step."""
        return self.sample(self.corpus, np.random.default_rng([self.config.seed, 2, step, row]))

    def batch(self, samples: Sequence[Sample]) -> Batch:
        """Samples as tensors on the device; text stays a list."""
        made = default_collate([*samples]).items()
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in made}

    def train_step(self) -> float:
        rows = self.processes.rows(self.count(self.step))
        batch = self.batch(self._ahead.get(self.step, rows))
        with torch.autocast(self.device.type, torch.bfloat16, self.bfloat16):
            loss = self.loss(batch) / self.processes.count
        loss.backward()
        total = self.processes.add_up(self.network.parameters(), loss.detach())
        self.state.update(self.learning_rate())
        return float(total)

    def shown(self) -> Iterator[Batch]:
        """Samples of the held-out split, the same each time: up to 64, at most four a thing."""
        numbers, seed = range(min(_VALIDATED, 4 * len(self.held_out))), self.config.seed
        for start in numbers[:: self.config.batch]:
            some = numbers[start : start + self.config.batch]
            rngs = (np.random.default_rng([seed, 3, number]) for number in some)
            yield self.batch([self.sample(self.held_out, rng) for rng in rngs])

    @torch.no_grad()
    def report(self) -> tuple[dict[str, Any], dict[str, float]]:
        """The mean figures of shown(), with the averaged weights, by their groups."""
        parts: dict[str, list[Tensor]] = {}
        with self.state.averaged():
            self.network.eval()
            for batch in self.shown():
                for name, values in self.figures(batch).items():
                    parts.setdefault(name, []).append(values.float().cpu())
            self.network.train()
        row, curves = dict[str, Any](), dict[str, float]()
        for name, means in parts.items():
            group, _, key = name.rpartition("/")
            mean = float(torch.cat(means).nanmean())
            if np.isfinite(mean):
                row.setdefault(group or "validation", {})[key] = round(mean, 5)
                curves[f"{group or 'validation'}/{key}"] = mean
        return row, curves

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
