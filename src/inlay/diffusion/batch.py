"""Several pictures through a network together: jobs take turns, and what they ask of it is joined.

A job is the code of one picture as it is, in a thread of its own, of which one runs at a time. It
runs until it calls the network. Once all wait for that, calls of one shape are made as one batch,
in the jobs' order: what is joined follows from the jobs alone, never from the time they take.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from contextvars import copy_context
from copy import copy
from dataclasses import dataclass, replace
from threading import Semaphore, Thread
from typing import Any

import psutil
import torch
from torch import Tensor

from inlay.diffusion.attention import AttentionRule
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.conditions import Conditions, repeat_rows
from inlay.errors import Cancelled

# The largest batch that is chosen; of a picture in it, what the network holds at once, in its
# widest layers (42 to 65 on Stable Diffusion 1.5).
_MOST, _LAYERS = 16, 64


def fitting(backbone: Backbone) -> int:
    """How many pictures of the checkpoint's size half of its device's free memory is enough for."""
    cuda = backbone.device.type == "cuda"
    free = (
        torch.cuda.mem_get_info(backbone.device)[0] if cuda else psutil.virtual_memory().available
    )
    side, config = backbone.native_size // backbone.factor, backbone.network.config
    width: int = (config.get("block_out_channels") or [4 * backbone.latent_channels])[0]
    # Both rows of guidance.
    each = 2 * side**2 * width * _LAYERS * backbone.dtype.itemsize
    return max(1, min(_MOST, free // (2 * each)))


@dataclass(frozen=True, eq=False)
class Call:
    """What a job calls the network with, see Backbone.predict(), and the rules in force."""

    z: Tensor
    timestep: float | Tensor
    conditions: Conditions
    rules: tuple[AttentionRule, ...]

    @property
    def kind(self) -> Any:
        """What calls must have in common to be made as one; those under a rule are made alone."""
        told, guide = self.conditions, self.conditions.guide
        tensors = [self.z, told.text.hidden, told.mask, told.masked_latent, told.reference]
        tensors += [*(told.text.added or {}).values(), *(told.control or ())]
        shapes = [None if x is None else x.shape[1:] for x in tensors]
        branch = guide and (id(guide.network), guide.scale, guide.condition.shape[1:])
        return id(self) if self.rules else (*shapes, branch, told.guidance_scale)

    def whole(self) -> Conditions:
        """The conditions with a row of everything for each of z."""
        told, count = self.conditions, len(self.z)
        names = "mask", "masked_latent", "reference"
        known = {name: x for name in names if (x := getattr(told, name)) is not None}
        rows: dict[str, Any] = {name: repeat_rows(x, count) for name, x in known.items()}
        control = told.control and [repeat_rows(x, count) for x in told.control]
        guide = told.guide
        if guide is not None:
            guide = replace(guide, condition=repeat_rows(guide.condition, count))
        return replace(told, **rows, control=control, guide=guide)


class _Turn(Thread):
    """A job that runs from one move() to its next call of the network.

    `call` is the one that it waits for, None once it has ended; `outcome` is then what it made or
    raised.
    """

    def __init__(self, backbone: Backbone, job: Callable[[Backbone], Any]) -> None:
        super().__init__(daemon=True)
        self.job, self.context, self.backbone = job, copy_context(), copy(backbone)
        self.backbone.rules, self.backbone.wait = [], self.wait
        self.moves, self.stops = Semaphore(0), Semaphore(0)
        self.call: Call | None = None
        self.answer: Any = None
        self.outcome: Any = None

    def run(self) -> None:
        try:
            self.outcome = self.context.run(self.job, self.backbone)
        except BaseException as error:
            self.outcome = error
        self.call = None
        self.stops.release()

    def wait(self, z: Tensor, timestep: float | Tensor, conditions: Conditions) -> Tensor:
        """The network's answer, in the job's thread."""
        self.call = Call(z, timestep, conditions, tuple(self.backbone.rules))
        self.stops.release()
        self.moves.acquire()
        if isinstance(self.answer, BaseException):
            raise self.answer
        answer: Tensor = self.answer
        return answer

    def move(self, answer: Any = None) -> None:
        """Let the job go on with an answer, or an exception to raise, until it calls or ends."""
        self.answer = answer
        if self.ident is None:
            self.start()
        else:
            self.moves.release()
        self.stops.acquire()


def run_together(
    backbone: Backbone, jobs: Sequence[Callable[[Backbone], Any]]
) -> list[Any | BaseException]:
    """What each job makes on a backbone of its own, or what it raised; the others then go on.

    Where this is interrupted all jobs are ended. Gradients do not flow through the network.
    """
    turns = [_Turn(backbone, job) for job in jobs]
    try:
        for turn in turns:
            turn.move()
        while calls := {turn: turn.call for turn in turns if turn.call is not None}:
            groups = defaultdict[Any, list[_Turn]](list)
            for turn, call in calls.items():
                groups[call.kind].append(turn)
            answers = dict[_Turn, Any]()
            for some in groups.values():
                answers |= zip(
                    some, _answers(backbone, [calls[turn] for turn in some]), strict=True
                )
            for turn in calls:
                turn.move(answers.pop(turn))
    finally:
        for turn in turns:
            if turn.is_alive():
                turn.answer = Cancelled()
                turn.moves.release()
                turn.join()
    return [turn.outcome for turn in turns]


def _answers(backbone: Backbone, calls: Sequence[Call]) -> list[Any]:
    """The network's answers to calls of one kind, or what it raised; made by halves where they are
    too many for the device.
    """
    first, rows = calls[0], [len(call.z) for call in calls]
    told, times = first.conditions, first.timestep
    try:
        if len(calls) > 1:
            told = Conditions.join(*(call.whole() for call in calls))
            pairs = zip(calls, rows, strict=True)
            times = torch.cat([torch.as_tensor(each.timestep).expand(n) for each, n in pairs])
        with ExitStack() as rules, torch.no_grad():
            for rule in first.rules:
                rules.enter_context(backbone.attention(rule))
            z = torch.cat([call.z for call in calls])
            return list(backbone.predict(z, times, told).split(rows))
    except torch.OutOfMemoryError as error:
        if len(calls) == 1:
            return [error]
    except Exception as error:
        return [error] * len(calls)
    half = len(calls) // 2
    return [*_answers(backbone, calls[:half]), *_answers(backbone, calls[half:])]
