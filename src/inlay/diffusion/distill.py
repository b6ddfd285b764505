"""The optimise-the-latent loop: a pure function of a predictor, two branches and a budget.

Nothing is trained and nothing is sampled. A latent moves along the difference of two noise
predictions that share timestep and noise (Delta Denoising Score, Hertz et al. 2023, arXiv
2304.07090), as FreeCompose (Chen et al. 2024, arXiv 2407.04947) does. Notation as in backbone.py;
no gradient goes through the U-Net.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from inlay.diffusion.attention_shared import Role
from inlay.diffusion.draws import Span, draw_levels
from inlay.diffusion.schedule import add_noise
from inlay.diffusion.text import Conditioning, join

__all__ = ["Branch", "Iterate", "Outcome", "Term", "delta", "distill", "roles"]

Optimizer = Literal["SGD", "AdamW"]


@dataclass(frozen=True, eq=False)
class Branch:
    """One side of the difference: a latent (1, C, h, w) and what the network is told of it.

    cond and uncond are one row each; uncond None turns guidance off, and both branches must have
    it or neither. mask (1, 1, h, w) and masked_latent (1, C, h, w) are for inpainting checkpoints;
    control are a T2I-Adapter's features, level by level, each of one row. Of all three, too, both
    branches must have them or neither.
    """

    z: Tensor
    cond: Conditioning
    uncond: Conditioning | None = None
    mask: Tensor | None = None
    masked_latent: Tensor | None = None
    control: Sequence[Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Term:
    """Another pull on the latent: `weight` times the gradient of loss(z), a scalar.

    Where the loss is dear it may be taken at every `every`-th iteration only, then `every`-fold.
    """

    weight: float
    loss: Callable[[Tensor], Tensor]
    every: int = 1


@dataclass(eq=False)
class Iterate:
    """One iteration, as listeners see it: number from 0, g and z (1, C, h, w) after the step."""

    number: int
    total: int
    timestep: int
    g: Tensor
    z: Tensor


@dataclass(frozen=True, eq=False)
class Outcome:
    """The last latent, and how many iterations were made before the run ended or stood still."""

    z: Tensor
    iterations: int


class Predict(Protocol):
    """eps after guidance, as Backbone.predict_noise() gives it, for one or two latents."""

    def __call__(
        self,
        z: Tensor,
        t: int,
        cond: Conditioning,
        uncond: Conditioning | None = None,
        guidance_scale: float = 1.0,
        mask: Tensor | None = None,
        masked_latent: Tensor | None = None,
        control: Sequence[Tensor] | None = None,
    ) -> Tensor: ...


def roles(with_source: bool, guided: bool) -> tuple[Role, ...]:
    """The rows of a call in the order of its batch: [source, target], unconditional rows first."""
    rows: tuple[Role, ...] = ("source", "target") if with_source else ("target",)
    return rows * (2 if guided else 1)


def _guided(branch: Branch, guidance_scale: float) -> bool:
    return branch.uncond is not None and guidance_scale != 1


def _predictions(
    predict: Predict,
    branches: Sequence[Branch],
    t: int,
    noise: Tensor,
    alpha: float,
    guidance_scale: float,
) -> list[Tensor]:
    """eps of each branch (1, C, h, w), all their rows in ONE batch."""
    unconds = [branch.uncond for branch in branches if branch.uncond is not None]
    masks = [branch.mask for branch in branches if branch.mask is not None]
    masked = [b.masked_latent for b in branches if b.masked_latent is not None]
    controls = [branch.control for branch in branches if branch.control is not None]
    if any(len(some) not in (0, len(branches)) for some in (unconds, masks, masked, controls)):
        raise ValueError(
            "both branches must have an uncond, a mask, a masked_latent and a control, or neither"
        )
    with torch.no_grad():
        eps = predict(
            torch.cat([add_noise(branch.z, noise, alpha) for branch in branches]),
            t,
            join(*(branch.cond for branch in branches)),
            join(*unconds) if unconds else None,
            guidance_scale,
            torch.cat(masks) if masks else None,
            torch.cat(masked) if masked else None,
            [torch.cat(level) for level in zip(*controls, strict=True)] if controls else None,
        )
    return list(eps.split(1))


def delta(
    predict: Predict,
    source: Branch | None,
    target: Branch,
    t: int,
    noise: Tensor,
    alpha: float,
    guidance_scale: float,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(g, the source's eps), each (1, C, h, w): g = eps(target) - eps(source).

    The gradient of Delta Denoising Score (arXiv 2304.07090, eq. 3) with w(t) = 1: both branches
    are noised with the same `noise` to the cumulative alpha of timestep t. With `known`, the
    source's eps of an earlier call, only the target's rows run. Without a source its eps is the
    noise itself (score distillation, Poole et al. 2022, arXiv 2209.14988).
    """
    if source is None or known is not None:
        (eps,) = _predictions(predict, [target], t, noise, alpha, guidance_scale)
        reference = noise if known is None else known
    else:
        both = [source, target]
        reference, eps = _predictions(predict, both, t, noise, alpha, guidance_scale)
    return eps - reference, reference


def _gradient(terms: Sequence[Term], z: Tensor, number: int) -> Tensor | None:
    """The weighted gradient of the terms that are due, or None where none is."""
    due = [term for term in terms if term.weight and (number + 1) % term.every == 0]
    if not due:
        return None
    with torch.enable_grad():
        leaf = z.detach().clone().requires_grad_()
        loss = sum((term.weight * term.every * term.loss(leaf) for term in due), leaf.sum() * 0)
        (gradient,) = torch.autograd.grad(loss, leaf)
    pull: Tensor = gradient
    return pull


def _stepper(optimizer: Optimizer, z: Tensor, eta: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A function from a latent and its gradient to the next latent."""
    if optimizer == "SGD":
        return lambda z, g: z - eta * g
    place = torch.nn.Parameter(z.clone())
    # Decay would pull the picture toward grey: a latent is no weight.
    adam = torch.optim.AdamW([place], lr=eta, weight_decay=0.0)

    def adapt(z: Tensor, g: Tensor) -> Tensor:
        place.grad = g
        adam.step()
        return place.detach().clone()

    return adapt


class _Plateau:
    """Whether the latent moved less than `least` (RMS over what may move) in `patience` steps."""

    def __init__(self, least: float, patience: int, weight: Tensor | None) -> None:
        self.least, self.patience, self.weight = least, patience, weight
        self.past: list[Tensor] = []

    def reached(self, z: Tensor) -> bool:
        if self.least <= 0:
            return False
        self.past.append(z)
        if len(self.past) <= self.patience:
            return False
        square = (z - self.past.pop(0)) ** 2
        weight = torch.ones_like(square) if self.weight is None else self.weight.expand_as(square)
        return float((square * weight).sum() / weight.sum().clamp_min(1e-6)) < self.least**2


def distill(
    predict: Predict,
    alphas: Tensor,
    source: Branch | None,
    target: Branch,
    *,
    spans: Sequence[Span],
    iterations: int,
    noise: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    guidance_scale: float = 7.5,
    eta: float = 0.49,
    pool_size: int = 0,
    rerun_source: bool = False,
    weight: Tensor | None = None,
    terms: Sequence[Term] = (),
    optimizer: Optimizer = "SGD",
    plateau: float = 0.0,
    patience: int = 20,
    before: Callable[[int, int, tuple[Role, ...]], None] = lambda number, t, rows: None,
    progress: Callable[[Iterate], None] = lambda iterate: None,
) -> Outcome:
    """Move the target's latent: z <- z - eta * (weight * g + gradients of `terms`).

    g is delta()'s, at a timestep drawn on the CPU from `generator` and with `noise(like)`; alphas
    (T,) are the cumulative alphas of all timesteps. The spans follow each other, their shares
    taken of their sum. The source stays as it is; None is score distillation.

    pool_size > 0 draws that many pairs of timestep and noise for each span and goes round them, so
    that the source is predicted once a pair and then only the target's rows run, unless
    `rerun_source` (for attention that reads the source's rows) asks for all of them; 0 draws anew
    each time. weight (1, 1, h, w) acts on g alone, the terms act everywhere. AdamW (no decay) takes
    eta as its learning rate. With `plateau` > 0 the run ends once z moved less than that (root
    mean square where weight is, latent units) within `patience` iterations.

    `before(number, t, roles)` is called ahead of each prediction, `progress` after each step; what
    they raise ends the run. Not to be called inside torch.inference_mode() with terms.
    """
    draws = draw_levels(spans, iterations, len(alphas), pool_size, target.z, generator, noise)
    z, step = target.z, _stepper(optimizer, target.z, eta)
    still = _Plateau(plateau, patience, weight)
    guided = _guided(target, guidance_scale)
    for number, draw in enumerate(draws):
        known = None if rerun_source else draw.source
        before(number, draw.t, roles(source is not None and known is None, guided))
        moved, alpha = replace(target, z=z), float(alphas[draw.t])
        g, draw.source = delta(
            predict, source, moved, draw.t, draw.noise, alpha, guidance_scale, known
        )
        pull = g if weight is None else g * weight
        extra = _gradient(terms, z, number)
        z = step(z, pull if extra is None else pull + extra)
        progress(Iterate(number, iterations, draw.t, g, z))
        if still.reached(z):
            return Outcome(z, number + 1)
    return Outcome(z, iterations)
