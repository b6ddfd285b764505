"""What a training run holds and keeps: its network, the average of its weights, its optimizer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inlay.checkpoints.folder import check_safetensors
from inlay.errors import InputError

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
        named, matrices = dict(network.named_parameters()), dict[str, nn.Parameter]()
        for name, parameter in named.items():
            inner = parameter.ndim >= 2 and not any(part in name for part in _NOT_MATRICES)
            if kind == "muon" and inner:
                # The storage is shared: what Muon writes, the network has.
                matrices[name] = nn.Parameter(parameter.detach().view(len(parameter), -1))
        self._matrices = [(named[name], flat) for name, flat in matrices.items()]
        rest = {name: p for name, p in named.items() if name not in matrices}
        common: dict[str, Any] = {"lr": learning_rate, "weight_decay": 0.01}
        adamw: Any = torch.optim.AdamW(rest.values(), **common, fused=True)
        # Each parameter's optimizer, and what that one has in its place.
        self._owners = {name: (adamw, p) for name, p in rest.items()}
        self._optimizers = [adamw]
        if matrices:
            muon: Any = torch.optim.Muon(
                matrices.values(), **common, adjust_lr_fn="match_rms_adamw"
            )
            self._owners |= {name: (muon, flat) for name, flat in matrices.items()}
            self._optimizers.append(muon)

    def step(self, learning_rate: float) -> None:
        """Update every parameter from its gradient."""
        for parameter, flat in self._matrices:
            assert parameter.grad is not None
            flat.grad = parameter.grad.reshape(flat.shape)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """What has to be kept for resuming, as named tensors."""
        return {
            f"{key}.{name}": value
            for name, (optimizer, parameter) in self._owners.items()
            for key, value in optimizer.state.get(parameter, {}).items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up a state(); parameters that it does not mention start afresh. Raises KeyError or
        ValueError for what is not of these parameters.
        """
        for full, value in tensors.items():
            key, _, name = full.partition(".")
            optimizer, parameter = self._owners[name]
            if value.shape != (() if key == "step" else parameter.shape):
                raise ValueError(full)
            if (key == "momentum_buffer") == (optimizer is not self._optimizers[0]):
                # AdamW counts its steps on the CPU unless it is told otherwise.
                where = value.device if key == "step" else parameter.device
                optimizer.state[parameter][key] = value.to(where)


class TrainState:
    """One network, `step` updates into its training; the average is what is kept in the end."""

    def __init__(
        self, network: Any, optimizer: str, learning_rate: float, ema_decay: float
    ) -> None:
        self.network, self.ema_decay = network, ema_decay
        self.average = {k: v.detach().clone() for k, v in network.state_dict().items()}
        self.optimizer = JointOptimizer(network, optimizer, learning_rate)
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
        groups = {
            "net": self.network.state_dict(),
            "ema": self.average,
            "opt": self.optimizer.state(),
        }
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
        groups: dict[str, dict[str, Tensor]] = {"net": {}, "ema": {}, "opt": {}}
        for name, value in load_file(out / _FILE).items():
            group, _, key = name.partition(".")
            groups.setdefault(group, {})[key] = value
        try:
            self.network.load_state_dict(groups["net"])
            for key, value in self.average.items():
                value.copy_(groups["ema"][key])
            self.optimizer.load(groups["opt"])
            with safe_open(out / _FILE, "pt") as file:
                self.step = int((file.metadata() or {})["step"])
        except (RuntimeError, KeyError, ValueError):
            raise InputError(
                f"the state in {out} is not of {whose}; expected one that this command wrote with "
                "the same settings."
            ) from None
