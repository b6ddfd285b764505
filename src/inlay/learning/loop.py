"""The loop of every training run: its steps, its log, and the processes that share it."""

from __future__ import annotations

import atexit
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from inlay.diffusion.backbone import Backbone, Conditions
from inlay.errors import InputError
from inlay.learning.settings import TrainingConfig
from inlay.learning.state import TrainState

# Of 1000.
VALIDATION_TIMESTEPS = (100, 300, 500, 700, 900)


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Processes:
    """The processes that share a run, as `accelerate launch` starts them; mostly there is one.

    Each takes its rows of every batch, and their gradients are added up. Not by wrapping the
    networks: several may learn, a loss has two backward passes, and a layer that no hole of a
    process's rows touches has no gradient there, which wrappers wait for.
    """

    def __init__(self, alone: bool = False) -> None:
        self.count = 1 if alone else int(os.environ.get("WORLD_SIZE", 1))
        self.number = 0
        # This process's own device where there are several.
        self.device: torch.device | None = None
        if self.count > 1:
            from accelerate import Accelerator

            # Precision is set by the run itself: the frozen U-Net, too, is under autocast.
            state = Accelerator(mixed_precision="no")
            self.number, self.device = state.process_index, state.device
            # A group that still listens when Python ends can abort the process.
            atexit.register(_leave)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.number == 0

    def rows(self, batch: int) -> list[int]:
        """This process's rows of a batch. Raises InputError where they cannot be shared out."""
        if batch % self.count:
            raise InputError(
                f"batch is {batch}; expected a multiple of the {self.count} processes."
            )
        return list(range(self.number, batch, self.count))

    def goes_on(self, say: bool = True) -> bool:
        """Whether another step is made: what the first process says goes for all."""
        if self.count == 1:
            return say
        from accelerate.utils import broadcast

        return bool(broadcast(torch.tensor([float(say)], device=self.device)).item())

    def add_up(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        """Add up the gradients of all processes in place, and their losses (a scalar)."""
        if self.count == 1:
            return loss
        from accelerate.utils import reduce

        learning = list(parameters)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in learning]
        *grads, total = reduce([*grads, loss], reduction="sum")
        for parameter, grad in zip(learning, grads, strict=True):
            parameter.grad = grad
        return cast("Tensor", total)


class Run(ABC):
    """A run that train() drives: what it learns, by which settings, and its folder `out`."""

    config: TrainingConfig
    out: Path
    state: TrainState
    # Which other processes make the same steps; by default there are none.
    processes = Processes(alone=True)

    @property
    def step(self) -> int:
        """How many steps are made."""
        return self.state.step

    def learning_rate(self) -> float:
        """That of the next step: linear warm-up, then the peak, then linear decay."""
        c = self.config
        warm = min(1.0, (self.step + 1) / c.warmup_steps)
        left = (c.steps - self.step) / max(1.0, c.cooldown_share * c.steps)
        return c.learning_rate * warm * min(1.0, left)

    @abstractmethod
    def train_step(self) -> float:
        """Make a step, on this process's rows of the batch, and return its loss."""

    @abstractmethod
    def report(self) -> tuple[dict[str, Any], dict[str, float]]:
        """What validation says: for the row of the log, and as curves."""

    def export(self, figures: dict[str, Any]) -> None:  # noqa: B027
        """Write what is trained so far, with figures of it, where the run writes it at reports."""


def prediction_error(
    backbone: Backbone, z: Tensor, noise: Tensor, t: Tensor, conditions: Conditions
) -> Tensor:
    """What a network says of latents (N, C, h, w) noised to timesteps (N,), less what is right."""
    level, kind = backbone.levels.rows(t), backbone.prediction_type
    output = backbone.predict(level.add_noise(z, noise), t, conditions)
    return output - level.output(z, noise, kind)


@torch.no_grad()
def validation_curve(
    errors: Callable[[Tensor], tuple[Tensor, Tensor]],
    rows: int,
    device: torch.device,
    total: int = 1000,
    learnt: Callable[[int], bool] = lambda t: True,
) -> dict[int, float]:
    """The mean error inside the masks at VALIDATION_TIMESTEPS, those of them that are `learnt` at,
    of a schedule of `total`.

    errors(timesteps (N,)) gives an error (N, C, h, w) and the mask (N, 1, h, w) that counts.
    """
    result = {}
    for share in filter(learnt, VALIDATION_TIMESTEPS):
        t = share * total // 1000
        error, where = errors(torch.full((rows,), t, device=device))
        inside = (error.mean(1, keepdim=True) * where).sum()
        result[t] = float(inside / where.sum().clamp_min(1e-6))
    return result


def reports(step: int, every: int) -> bool:
    """Whether a step is reported and kept: each `every`-th, and before the first of these the 25th,
    50th, 100th ..., so that a short run, too, shows where it goes.
    """
    early = step < every and step % 25 == 0 and (step // 25).bit_count() == 1
    return early or step % every == 0


def train(run: Run, log: Callable[[str], None]) -> None:
    """Train to the last step, or until its minutes are up.

    Every `save_every` steps, and early on more often, a resumable state, a report (OUT/log.jsonl,
    and OUT/events for TensorBoard) and what is trained so far are written. Of several processes the
    first one writes and tells, and the others follow it. Raises InputError for a loss that is none.
    """
    config, shared, stop = run.config, run.processes, False
    curves = _Curves(run, log) if shared.first else None
    started, losses = time.monotonic(), list[float]()
    while run.step < config.steps and shared.goes_on(not stop):
        losses.append(run.train_step())
        if not np.isfinite(losses[-1]):
            raise InputError(
                f"the loss of step {run.step} is no finite number; take a lower learning_rate, or "
                "undamaged weights."
            )
        if curves is None:
            continue
        minutes = (time.monotonic() - started) / 60
        stop = config.max_minutes is not None and minutes >= config.max_minutes
        if run.step % 50 == 0:
            recent = float(np.mean(losses[-50:]))
            curves.add({"loss/training": recent, "rate": run.learning_rate()})
            log(f"step {run.step} loss {recent:.4f} minutes {minutes:.1f}")
        if reports(run.step, config.save_every) or stop or run.step == config.steps:
            run.state.save(run.out)
            validation, values = run.report()
            row = {
                "step": run.step,
                "minutes": round(minutes, 2),
                "train_loss": round(float(np.mean(losses[-config.save_every :])), 5),
                **validation,
            }
            with (run.out / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            curves.add(values)
            run.export({"figures": row})
            log(json.dumps(row))


class _Curves:
    """A run's figures for TensorBoard, where its writer is installed."""

    def __init__(self, run: Run, log: Callable[[str], None]) -> None:
        self.run, self.writer = run, cast("Any", None)
        try:
            from tensorboardX import SummaryWriter

            self.writer = SummaryWriter(str(run.out / "events"))
        except ImportError:
            log(
                "for curves in TensorBoard: pip install tensorboardX; OUT/log.jsonl has the figures"
            )

    def add(self, values: Mapping[str, float]) -> None:
        """Figures by the name of their curve."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, self.run.step)
            self.writer.flush()
