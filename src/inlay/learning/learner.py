"""A network that learns beside a frozen checkpoint: its optimiser, its average, its files."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from inlay.errors import InputError
from inlay.learning.loop import (
    follow,
    put_in_place,
    read_state,
    write_state,
)
from inlay.learning.optim import JointOptimizer

__all__ = ["Learner"]


class Learner:
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
        follow(self.average, self.network, self.step, self.ema_decay)

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
        write_state(out, self.step, groups)

    def load(self, out: Path, whose: str) -> None:
        """Continue from save(); raises InputError where it was not `whose` state."""
        step, groups = read_state(out)
        try:
            self.network.load_state_dict(groups["net"])
            for key, value in self.average.items():
                value.copy_(groups["ema"][key])
        except (RuntimeError, KeyError):
            raise InputError(
                f"the state in {out} is not of {whose}; expected one that this command wrote with "
                "the same settings."
            ) from None
        self.step = step
        self.optimizer.load(groups.get("opt", {}))

    def export(self, target: Path, recipe: Mapping[str, Any]) -> Path:
        """Write the averaged weights in float16 as a folder of diffusers' layout, and the recipe
        as training.json beside them; renamed into place.
        """
        temporary = target.with_name(target.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        network: Any = copy.deepcopy(self.network)
        network.load_state_dict(self.average)
        network.half().save_pretrained(temporary)
        text = json.dumps({**recipe, "step": self.step}, indent=2)
        (temporary / "training.json").write_text(text + "\n")
        return put_in_place(temporary, target)
