"""The loop of every training run: what it holds and keeps, its steps, its log, and the processes
that share it.
"""

from __future__ import annotations

import atexit
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inlay.checkpoints.folder import check_safetensors
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.conditions import Conditions
from inlay.errors import InputError
from inlay.learning.settings import TrainingConfig

# Timesteps of 1000 at which a run is validated.
VALIDATED = (100, 300, 500, 700, 900)
_FILE = "state.safetensors"
# Rows of an embedding are looked up, not multiplied, and the outermost convolutions map to and
# from latents: orthogonal updates are meant for the matrices in between. Those of a ControlNet that
# begin at zero would grow too slowly by them, as all directions move by the same small step.
_NOT_MATRICES = ("embedding", "conv_in.", "conv_out.", "controlnet_")


def check_state(out: Path) -> None:
    """Raises InputError where a folder holds no state to go on from, or one that is not whole."""
    if not (out / _FILE).is_file():
        raise InputError(f"{out} holds no {_FILE} to resume from.")
    check_safetensors(out / _FILE, "state")


class JointOptimizer:
    """One `step(lr)` for all parameters of a network.

    kind "adamw": AdamW throughout (Loshchilov and Hutter 2019). kind "muon": every weight of two
    or more dimensions inside the network is updated by its orthogonalised momentum (Muon, Jordan
    2024; convolutions as matrices of out-channels by the rest), scaled to the size of an AdamW
    update (Liu et al. 2025, arXiv 2502.16982), so that both share one learning rate.
    """

    def __init__(self, network: nn.Module, kind: str, learning_rate: float) -> None:
        self._named = dict(network.named_parameters())
        # The storage is shared: what Muon writes, the network has.
        matrices = {
            name: nn.Parameter(p.detach().view(len(p), -1))
            for name, p in self._named.items()
            if kind == "muon" and p.ndim >= 2 and not any(part in name for part in _NOT_MATRICES)
        }
        rest = {name: p for name, p in self._named.items() if name not in matrices}
        common: dict[str, Any] = {"lr": learning_rate, "weight_decay": 0.01}
        adamw: Any = torch.optim.AdamW(rest.values(), **common, fused=True)
        # Each optimizer, and what it has in the place of a name's parameter.
        self._parts = [(adamw, rest)]
        if matrices:
            muon: Any = torch.optim.Muon(
                matrices.values(), **common, adjust_lr_fn="match_rms_adamw"
            )
            self._parts.append((muon, matrices))

    def step(self, learning_rate: float) -> None:
        """Update every parameter from its gradient."""
        for optimizer, own in self._parts:
            for name, parameter in own.items():
                grad = self._named[name].grad
                parameter.grad = None if grad is None else grad.reshape(parameter.shape)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """What has to be kept for resuming, as named tensors."""
        return {
            f"{key}.{name}": value
            for optimizer, own in self._parts
            for name, parameter in own.items()
            for key, value in optimizer.state.get(parameter, {}).items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up a state(); parameters that it does not mention start afresh. Raises KeyError or
        ValueError for what is not of these parameters.
        """
        owners = {name: (each, p) for each, own in self._parts for name, p in own.items()}
        for full, value in tensors.items():
            key, _, name = full.partition(".")
            optimizer, parameter = owners[name]
            if value.shape != (() if key == "step" else parameter.shape):
                raise ValueError(full)
            if (key == "momentum_buffer") == (optimizer is not self._parts[0][0]):
                # AdamW counts its steps on the CPU unless it is told otherwise.
                where = value.device if key == "step" else parameter.device
                optimizer.state[parameter][key] = value.to(where)


class TrainState:
    """One network, `step` updates into its training; the average is what is kept in the end."""

    def __init__(self, network: Any, config: TrainingConfig) -> None:
        self.network, self.ema_decay = network, config.ema_decay
        self.average = {k: v.detach().clone() for k, v in network.state_dict().items()}
        kind = getattr(config, "optimizer", "adamw")
        self.optimizer = JointOptimizer(network, kind, config.learning_rate)
        self.step = 0

    def update(self, learning_rate: float) -> None:
        """Learn from the gradients that are there, and forget them."""
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step(learning_rate)
        self.network.zero_grad(set_to_none=True)
        self.step += 1
        # The average begins less inert.
        slow = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.network.state_dict().items():
                if value.dtype.is_floating_point:
                    self.average[key].lerp_(value, 1 - slow)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the network has the averaged weights."""
        kept = {key: value.clone() for key, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        try:
            yield
        finally:
            self.network.load_state_dict(kept)

    def save(self, out: Path) -> None:
        """Write a resumable state to OUT (safetensors, renamed into place)."""
        network, optimizer = self.network.state_dict(), self.optimizer.state()
        groups = {"net": network, "ema": self.average, "opt": optimizer}
        tensors = {
            f"{group}.{key}": value.detach().cpu().contiguous().clone()
            for group, named in groups.items()
            for key, value in named.items()
        }
        temporary = out / f"{_FILE}.tmp"
        save_file(tensors, temporary, metadata={"step": str(self.step)})
        os.replace(temporary, out / _FILE)

    def load(self, out: Path, whose: str) -> None:
        """Continue from save(); raises InputError where it was not `whose` state."""
        check_state(out)
        kept = load_file(out / _FILE)
        network, average, optimizer = (
            {name[4:]: value for name, value in kept.items() if name.startswith(group)}
            for group in ("net.", "ema.", "opt.")
        )
        try:
            self.network.load_state_dict(network)
            for key, value in self.average.items():
                value.copy_(average[key])
            self.optimizer.load(optimizer)
            with safe_open(out / _FILE, "pt") as file:
                self.step = int((file.metadata() or {})["step"])
        except (RuntimeError, KeyError, ValueError):
            raise InputError(
                f"the state in {out} is not of {whose}; expected one that this command wrote with "
                "the same settings."
            ) from None


class Processes:
    """The processes that share a run, as `accelerate launch` starts them; mostly there is one.

    Each takes its rows of every batch, and their gradients are added up. Not by wrapping the
    networks: several may learn, a loss has two backward passes, and a layer that no hole of a
    process's rows touches has no gradient there, which wrappers wait for.
    """

    def __init__(self, alone: bool = False) -> None:
        self.count = 1 if alone else int(os.environ.get("WORLD_SIZE", 1))
        # Which one it is, and its own device where there are several.
        self.number, self.device = 0, cast("torch.device | None", None)
        if self.count > 1:
            from accelerate import Accelerator

            # Precision is set by the run itself: the frozen U-Net, too, is under autocast.
            state = Accelerator(mixed_precision="no")
            self.number, self.device = state.process_index, state.device
            # A group that still listens when Python ends can abort the process.
            atexit.register(state.end_training)
        # Whether this is the process that writes and tells.
        self.first = self.number == 0

    def rows(self, batch: int) -> list[int]:
        """This process's rows of a batch. Raises InputError where they cannot be shared out."""
        if batch % (n := self.count):
            raise InputError(f"batch is {batch}; expected a multiple of the {n} processes.")
        return list(range(self.number, batch, self.count))

    def goes_on(self, say: bool) -> bool:
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


def check_side(side: int, backbone: Backbone) -> int:
    """A side of pictures to learn from; raises InputError where the checkpoint takes others."""
    if side % backbone.multiple:
        raise InputError(
            f"resolution is {side}; expected a multiple of {backbone.multiple} for the model "
            f"{backbone.name}."
        )
    return side


def prediction_error(
    backbone: Backbone, z: Tensor, noise: Tensor, t: Tensor, conditions: Conditions
) -> Tensor:
    """What a network says of latents (N, C, h, w) noised to timesteps (N,), less what is right."""
    level, kind = backbone.levels.rows(t), backbone.prediction_type
    output = backbone.predict(level.add_noise(z, noise), t, conditions)
    return output - level.output(z, noise, kind)


def inside(error: Tensor, mask: Tensor) -> Tensor:
    """Each sample's mean error (N, C, h, w) in its mask (N, 1, h, w); NaN where that is empty."""
    return (error.mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))


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
    plot = _plotter(run, log) if shared.first else None
    started, losses = time.monotonic(), list[float]()
    while run.step < config.steps and shared.goes_on(not stop):
        losses.append(run.train_step())
        if not np.isfinite(losses[-1]):
            raise InputError(
                f"the loss of step {run.step} is no finite number; take a lower learning_rate, or "
                "undamaged weights."
            )
        if plot is None:
            continue
        minutes = (time.monotonic() - started) / 60
        stop = config.max_minutes is not None and minutes >= config.max_minutes
        if run.step % 50 == 0:
            recent = float(np.mean(losses[-50:]))
            plot({"loss/training": recent, "rate": run.learning_rate()})
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
            plot(values)
            run.export({"figures": row})
            log(json.dumps(row))


def _plotter(run: Run, log: Callable[[str], None]) -> Callable[[Mapping[str, float]], None]:
    """What takes figures by the name of their curve, for TensorBoard where its writer is there."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        log("for curves in TensorBoard: pip install tensorboardX; OUT/log.jsonl has the figures")
        return lambda values: None
    writer: Any = SummaryWriter(str(run.out / "events"))

    def plot(values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, run.step)
        writer.flush()

    return plot
