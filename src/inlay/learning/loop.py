"""What training runs have in common: noise, rate, average, state, and the loop that reports."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from inlay.errors import InputError
from inlay.learning.runlog import RunLog

__all__ = [
    "VALIDATION_TIMESTEPS",
    "Trainable",
    "channel_weight",
    "check_state",
    "follow",
    "locally_averaged",
    "noised",
    "put_in_place",
    "rate",
    "read_state",
    "reports",
    "train",
    "whole_patches",
    "write_state",
    "x0_of",
]

VALIDATION_TIMESTEPS = (100, 300, 500, 700, 900)


def whole_patches(mask: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """A picture mask (N, 1, H, W) as latent mask (N, 1, H / factor, W / factor), and that as mask.

    Whole patches are erased, as inference does: a patch half erased is neither seen nor hole.
    """
    latent = mask[:, :, ::factor, ::factor]
    return latent, latent.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def noised(z: Tensor, noise: Tensor, alphas: Tensor) -> tuple[Tensor, Tensor]:
    """Latents (N, C, h, w) at cumulative alphas (N,), and v there (Salimans and Ho 2022)."""
    a = alphas.view(-1, 1, 1, 1)
    return a.sqrt() * z + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * z


def x0_of(output: Tensor, noisy: Tensor, alphas: Tensor, prediction_type: str) -> Tensor:
    """x0 (N, C, h, w) of a U-Net's output for latents at cumulative alphas (N,), none of them 0."""
    a = alphas.view(-1, 1, 1, 1)
    if prediction_type == "sample":
        return output
    if prediction_type == "v_prediction":
        return a.sqrt() * noisy - (1 - a).sqrt() * output
    return (noisy - (1 - a).sqrt() * output) / a.sqrt()


def channel_weight(z: Tensor, power: float) -> Tensor:
    """What each channel of latents (N, C, h, w) weighs in a loss: (1, C, 1, 1), 1 on average.

    What a channel weighs in the picture grows with the square of its deviation; a smaller power
    keeps the finer channels in the game.
    """
    visible = z.std((0, 2, 3)) ** power
    return (visible / visible.mean()).view(1, -1, 1, 1)


def locally_averaged(x: Tensor, mask: Tensor) -> Tensor:
    """x (N, C, h, w) averaged inside a mask (N, 1, h, w) of 0 and 1 about every pixel, 0 outside.

    A Gaussian of a sixteenth of the longer side, normalised by what of it is inside the mask.
    """
    deviation = max(x.shape[2:]) / 16
    reach = math.ceil(3 * deviation)
    bell = torch.exp(-(torch.arange(-reach, reach + 1, device=x.device) ** 2) / 2 / deviation**2)
    # Mask and picture in one: both are blurred alike.
    both = torch.cat([x * mask, mask], 1)
    count = both.shape[1]
    for shape, padding in (((-1, 1), (reach, 0)), ((1, -1), (0, reach))):
        kernel = bell.view(1, 1, *shape).expand(count, 1, -1, -1)
        both = functional.conv2d(both, kernel.to(both), padding=padding, groups=count)
    return both[:, :-1] / both[:, -1:].clamp_min(1e-6) * mask


def rate(step: int, steps: int, peak: float, warmup_steps: int, cooldown_share: float) -> float:
    """The learning rate of a step from 0: linear warm-up, then `peak`, then linear decay."""
    warm = min(1.0, (step + 1) / warmup_steps)
    left = (steps - step) / max(1.0, cooldown_share * steps)
    return peak * warm * min(1.0, left)


@torch.no_grad()
def follow(average: dict[str, Tensor], network: nn.Module, step: int, decay: float) -> None:
    """Move an average of a network's state on after `step` steps; it begins less inert."""
    slow = min(decay, (1 + step) / (10 + step))
    for key, value in network.state_dict().items():
        if value.dtype.is_floating_point:
            average[key].lerp_(value, 1 - slow)


def check_state(out: Path) -> None:
    """Raises InputError where a folder holds no state to go on from."""
    if not (out / "state.safetensors").is_file():
        raise InputError(f"{out} holds no state.safetensors to resume from.")


def write_state(out: Path, step: int, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write named tensors as "GROUP.NAME" to OUT/state.safetensors, renamed into place."""
    temporary = out / "state.safetensors.tmp"
    tensors = {
        f"{group}.{key}": value.detach().cpu().contiguous().clone()
        for group, named in groups.items()
        for key, value in named.items()
    }
    save_file(tensors, temporary, metadata={"step": str(step)})
    os.replace(temporary, out / "state.safetensors")


def read_state(out: Path) -> tuple[int, dict[str, dict[str, Tensor]]]:
    """The step and the groups of write_state(); raises InputError where there is no such file."""
    check_state(out)
    path = out / "state.safetensors"
    with safe_open(path, "pt") as file:
        step = int((file.metadata() or {})["step"])
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in load_file(path).items():
        group, _, key = name.partition(".")
        groups.setdefault(group, {})[key] = value
    return step, groups


def put_in_place(temporary: Path, target: Path) -> Path:
    """A folder of weights under its own name, instead of what may be there."""
    for file in temporary.rglob("*.safetensors"):
        # save_pretrained makes them private to the user; a package's files are not.
        file.chmod(0o644)
    if target.exists():
        shutil.rmtree(target)
    os.replace(temporary, target)
    return target


class _Limits(Protocol):
    @property
    def steps(self) -> int: ...
    @property
    def save_every(self) -> int: ...
    @property
    def max_minutes(self) -> float | None: ...


class Trainable(Protocol):
    """A run that train() can drive; `step` counts the steps that are made."""

    out: Path

    @property
    def step(self) -> int: ...

    @property
    def config(self) -> _Limits: ...

    def train_step(self) -> float:
        """Make a step and return its loss."""
        ...

    def learning_rate(self) -> float: ...

    def curves(self) -> dict[str, float]:
        """Figures of the last steps besides the loss, by the name of their curve."""
        ...

    def report(self) -> tuple[dict[str, Any], dict[str, float]]:
        """What validation says: for the row of the log, and as curves."""
        ...

    def save_state(self) -> None: ...

    def export(self, figures: dict[str, Any]) -> Path: ...


def train(trainer: Trainable, log: Callable[[str], None]) -> None:
    """Train to the last step, or until its minutes are up.

    Every `save_every` steps, and early on more often, a resumable state, a report (OUT/log.jsonl,
    and OUT/events for TensorBoard) and what is trained so far are written.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        log("for curves in TensorBoard: pip install tensorboardX; OUT/log.jsonl has the figures")
    for line in _run(trainer):
        log(line)


def reports(step: int, every: int) -> bool:
    """Whether a step is reported and kept: each `every`-th, and before the first of these the 25th,
    50th, 100th ..., so that a short run, too, shows where it goes.
    """
    early = step < every and step % 25 == 0 and (step // 25).bit_count() == 1
    return early or step % every == 0


def _run(trainer: Trainable) -> Iterator[str]:
    config, told = trainer.config, RunLog(trainer.out)
    started = time.monotonic()
    losses: list[float] = []
    while trainer.step < config.steps:
        losses.append(trainer.train_step())
        minutes = (time.monotonic() - started) / 60
        stop = config.max_minutes is not None and minutes >= config.max_minutes
        if trainer.step % 50 == 0:
            recent, curves = float(np.mean(losses[-50:])), trainer.curves()
            scalars = {"loss/training": recent, "rate": trainer.learning_rate(), **curves}
            told.scalars(trainer.step, scalars)
            yield " ".join(
                [f"step {trainer.step} loss {recent:.4f} minutes {minutes:.1f}"]
                + [f"{name.rpartition('/')[2]} {value:.5f}" for name, value in curves.items()]
            )
        if reports(trainer.step, config.save_every) or stop or trainer.step == config.steps:
            trainer.save_state()
            validation, curves = trainer.report()
            row = {
                "step": trainer.step,
                "minutes": round(minutes, 2),
                "train_loss": round(float(np.mean(losses[-config.save_every :])), 5),
                **validation,
            }
            told.row(row, curves)
            trainer.export({"figures": row})
            yield json.dumps(row)
        if stop:
            break
    told.close()
