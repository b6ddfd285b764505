"""The optimise-the-latent loop: a pure function of a denoiser, two sides and a budget.

A latent moves along the difference of two noise predictions that share timestep and noise (Delta
Denoising Score, Hertz et al. 2023, arXiv 2304.07090), as FreeCompose (Chen et al. 2024, arXiv
2407.04947) does. `beside` is for sampling such a target beside its source instead.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from inlay.diffusion.conditions import Conditions
from inlay.diffusion.sample import Denoise, Level, Levels, draw_noise

Optimizer = Literal["SGD", "AdamW"]
# A function of (z, level) under some conditions, such as Backbone.denoiser.
DenoiserOf = Callable[[Conditions], Denoise]


@dataclass(frozen=True, eq=False)
class Side:
    """One side of the difference: a latent (1, C, h, w) and what the network is told of it."""

    z: Tensor
    conditions: Conditions


@dataclass(frozen=True, eq=False)
class Term:
    """Another pull on the latent: `weight` times the gradient of loss(z), a scalar. Where the loss
    is dear it may be taken at every `every`-th iteration only, then `every`-fold.
    """

    weight: float
    loss: Callable[[Tensor], Tensor]
    every: int = 1


@dataclass(frozen=True)
class Span:
    """A stretch of a run: `share` of the iterations draw t uniformly from [t_min, t_max)."""

    share: float
    t_min: int
    t_max: int

    def timestep(self, place: float) -> int:
        """The timestep at a place in [0, 1) of the stretch."""
        return min(self.t_min + int(place * (self.t_max - self.t_min)), self.t_max - 1)


@dataclass(frozen=True)
class Descent:
    """How a latent is moved: how often, at which levels, by which steps, and when it is enough.

    The spans follow each other, their shares taken of their sum. pool_size > 0 draws that many
    pairs of timestep and noise for each span and goes round them; 0 draws anew each time. AdamW (no
    decay) takes eta as its learning rate. With `plateau` > 0 the run ends once the latent moved
    less than that (root mean square over what may move) within `patience` iterations.
    """

    spans: Sequence[Span]
    iterations: int
    pool_size: int = 0
    eta: float = 0.49
    optimizer: Optimizer = "SGD"
    plateau: float = 0.0
    patience: int = 20


@dataclass(eq=False)
class Draw:
    """A timestep and its noise (1, C, h, w); source holds a prediction made with them, if any."""

    t: int
    noise: Tensor
    source: Tensor | None = None


@dataclass(eq=False)
class Iterate:
    """One iteration, as listeners see it: number from 0, g and z (1, C, h, w) after the step."""

    number: int
    total: int
    g: Tensor
    z: Tensor


def draw_levels(
    descent: Descent, timesteps: int, like: Tensor, generator: torch.Generator
) -> Iterator[Draw]:
    """One draw an iteration, span after span, from `generator`, with noise of the shape of `like`;
    of a pool the same objects come back. Raises ValueError for a span beyond `timesteps` or shares
    without a sum.
    """
    for span in descent.spans:
        if not 0 <= span.t_min < span.t_max <= timesteps or span.share < 0:
            raise ValueError(f"{span} does not lie within 0 to {timesteps} timesteps")
    whole = sum(span.share for span in descent.spans)
    if whole <= 0:
        raise ValueError("the spans leave no share of the iterations")

    def places() -> Iterator[float]:
        size = descent.pool_size
        while size == 0:
            yield float(torch.rand((), generator=generator))
        # Stratified, and in mixed order: so a small pool still covers the whole range of t.
        order = torch.randperm(size, generator=generator)
        yield from ((order + torch.rand(size, generator=generator)) / size).tolist()

    done, last = 0.0, 0
    for span in descent.spans:
        done, first = done + span.share, last
        last = max(round(descent.iterations * done / whole), first)
        draws = (Draw(span.timestep(place), draw_noise(like, generator)) for place in places())
        pool = itertools.cycle(draws) if descent.pool_size else draws
        yield from itertools.islice(pool, last - first)


def delta(
    denoiser: DenoiserOf,
    source: Side | None,
    target: Side,
    level: Level,
    noise: Tensor,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(g, the source's eps), each (1, C, h, w): g = eps(target) - eps(source).

    The gradient of Delta Denoising Score (arXiv 2304.07090, eq. 3) with w(t) = 1: both sides
    are noised to the level with the same `noise`, and all their rows run in ONE batch, [source,
    target]. With `known`, the source's eps of an earlier call, only the target's rows run. Without
    a source its eps is the noise itself (score distillation, Poole et al. 2022, arXiv 2209.14988).
    """
    sides = [target] if source is None or known is not None else [source, target]
    with torch.no_grad():
        denoise = denoiser(Conditions.join(*(side.conditions for side in sides)))
        noisy = torch.cat([level.add_noise(side.z, noise) for side in sides])
        eps = denoise(noisy, level)[0].split(1)
    reference = known if known is not None else noise if source is None else eps[0]
    return eps[-1] - reference, reference


def distill(
    denoiser: DenoiserOf,
    levels: Levels,
    source: Side | None,
    target: Side,
    descent: Descent,
    *,
    generator: torch.Generator,
    rerun_source: bool = False,
    weight: Tensor | None = None,
    terms: Sequence[Term] = (),
    progress: Callable[[Iterate], None] = lambda iterate: None,
) -> tuple[Tensor, int]:
    """Move the target's latent: z <- z - eta * (weight * g + gradients of `terms`). Returns the
    last one, and how many iterations were made before the run ended or stood still.

    g is delta()'s, at a timestep and with a noise drawn on the CPU from `generator`. The source is
    predicted once for each pair of a pool, unless `rerun_source` (for attention that reads the
    source's rows) asks for all rows always. weight (1, 1, h, w) acts on g alone, the terms act
    everywhere. `progress` is called after each step; what it raises ends the run. Not to be called
    inside torch.inference_mode() with terms.
    """
    z, step = target.z, _stepper(descent, target.z)
    stands_still = _plateau(descent, weight)
    for number, draw in enumerate(draw_levels(descent, len(levels), z, generator)):
        known = None if rerun_source else draw.source
        moved = replace(target, z=z)
        g, draw.source = delta(denoiser, source, moved, levels[draw.t], draw.noise, known)
        pull = g if weight is None else g * weight
        z = step(z, pull + _gradient(terms, z, number))
        progress(Iterate(number, descent.iterations, g, z))
        if stands_still(z):
            return z, number + 1
    return z, descent.iterations


def _gradient(terms: Sequence[Term], z: Tensor, number: int) -> Tensor | float:
    """The weighted gradient of the terms that are due."""
    due = [term for term in terms if term.weight and (number + 1) % term.every == 0]
    if not due:
        return 0.0
    with torch.enable_grad():
        leaf = z.detach().clone().requires_grad_()
        loss = sum((term.weight * term.every * term.loss(leaf) for term in due), leaf.sum() * 0)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return torch.as_tensor(gradient)


def _stepper(descent: Descent, z: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """A function from a latent and its gradient to the next latent."""
    if descent.optimizer == "SGD":
        return lambda z, g: z - descent.eta * g
    place = torch.nn.Parameter(z.clone())
    # Decay would pull the picture toward grey: a latent is no weight.
    adam = torch.optim.AdamW([place], lr=descent.eta, weight_decay=0.0)

    def adapt(z: Tensor, g: Tensor) -> Tensor:
        place.grad = g
        adam.step()
        return place.detach().clone()

    return adapt


def _plateau(descent: Descent, weight: Tensor | None) -> Callable[[Tensor], bool]:
    """A function of one latent after the other: whether they move too little to go on."""
    past: deque[Tensor] = deque(maxlen=descent.patience + 1)

    def reached(z: Tensor) -> bool:
        past.append(z)
        if descent.plateau <= 0 or len(past) <= descent.patience:
            return False
        square = (z - past[0]) ** 2
        moves = torch.ones_like(square) if weight is None else weight.expand_as(square)
        mean = (square * moves).sum() / moves.sum().clamp_min(1e-6)
        return float(mean) < descent.plateau**2

    return reached


def beside(denoiser: DenoiserOf, source: Side, target: Side, noise: Tensor) -> Denoise:
    """A denoiser of the target alone whose network gets the rows [source, target].

    It is MasaCtrl's way to another pose (Cao et al. 2023, arXiv 2304.08465): the target is sampled
    by its own prompt and lines, and reads the keys and values of the source, which is under the
    same noise (1, C, h, w) at every level, not inverted.
    """
    denoise = denoiser(Conditions.join(source.conditions, target.conditions))

    def both(z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        eps, x0 = denoise(torch.cat([level.add_noise(source.z, noise), z]), level)
        return eps[1:], x0[1:]

    return both
