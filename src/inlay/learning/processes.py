"""The processes that share a run, as `accelerate launch` starts them; mostly there is one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from inlay.errors import InputError

__all__ = ["Processes"]


class Processes:
    """Each takes its rows of every batch, and their gradients are added up.

    Not by wrapping the networks: several may learn, a loss has two backward passes, and a layer
    that no hole of a process's rows touches has no gradient there, which wrappers wait for.
    """

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        self.number = 0
        self._accelerator: Any = None
        if self.count > 1:
            from accelerate import Accelerator

            # Precision is set by the run itself: the frozen U-Net, too, is under autocast.
            self._accelerator = Accelerator(mixed_precision="no")
            self.number = self._accelerator.process_index

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.number == 0

    @property
    def device(self) -> torch.device | None:
        """This process's own device where there are several."""
        return None if self._accelerator is None else self._accelerator.device

    def rows(self, batch: int) -> list[int]:
        """This process's rows of a batch. Raises InputError where they cannot be shared out."""
        if batch % self.count:
            raise InputError(
                f"batch is {batch}; expected a multiple of the {self.count} processes."
            )
        return list(range(self.number, batch, self.count))

    def goes_on(self, say: bool, device: torch.device) -> bool:
        """Whether another step is made: what the first process says goes for all."""
        if self._accelerator is None:
            return say
        from accelerate.utils import broadcast

        return bool(broadcast(torch.tensor([float(say)], device=device)).item())

    def add_up(self, parameters: Iterable[nn.Parameter], loss: Tensor) -> Tensor:
        """Add up the gradients of all processes in place, and their losses (a scalar)."""
        if self._accelerator is None:
            return loss
        learning = list(parameters)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in learning]
        flat = torch.cat([*(grad.reshape(-1).float() for grad in grads), loss.reshape(1)])
        flat = self._accelerator.reduce(flat, reduction="sum")
        parts = flat.split([*(grad.numel() for grad in grads), 1])
        for parameter, part in zip(learning, parts, strict=False):
            parameter.grad = part.view_as(parameter).to(parameter)
        total: Tensor = parts[-1][0]
        return total
