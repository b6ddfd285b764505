"""Which noise levels and which noise a distillation looks at its pictures with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Draw", "Span", "draw_levels"]


@dataclass(frozen=True)
class Span:
    """A stretch of a run: `share` of the iterations draw t uniformly from [t_min, t_max)."""

    share: float
    t_min: int
    t_max: int


@dataclass(eq=False)
class Draw:
    """A timestep and its noise (1, C, h, w); source holds a prediction made with them, if any."""

    t: int
    noise: Tensor
    source: Tensor | None = None


@dataclass(eq=False)
class _Pool:
    """The draws of one span: `size` of them in turn, or a new one each time where size is 0."""

    span: Span
    size: int
    like: Tensor
    generator: torch.Generator
    noise: Callable[[Tensor], Tensor]
    draws: list[Draw] = field(default_factory=list)

    def endless(self) -> Iterator[Draw]:
        while not self.size:
            yield self._draw(float(torch.rand((), generator=self.generator)))
        # Stratified, and in mixed order: so a small pool still covers the whole range of t.
        order = torch.randperm(self.size, generator=self.generator)
        places = (order + torch.rand(self.size, generator=self.generator)) / self.size
        while True:
            for number in range(self.size):
                if len(self.draws) <= number:
                    self.draws.append(self._draw(float(places[number])))
                yield self.draws[number]

    def _draw(self, place: float) -> Draw:
        span = self.span
        t = min(span.t_min + int(place * (span.t_max - span.t_min)), span.t_max - 1)
        return Draw(t, self.noise(self.like))


def draw_levels(
    spans: Sequence[Span],
    iterations: int,
    timesteps: int,
    pool_size: int,
    like: Tensor,
    generator: torch.Generator,
    noise: Callable[[Tensor], Tensor],
) -> Iterator[Draw]:
    """One draw an iteration, the spans one after the other, their shares taken of their sum.

    The timestep comes from `generator`, on the CPU, and the noise from `noise(like)`. With
    pool_size > 0 each span has that many draws, made when first needed, and goes round them; the
    same objects come back. Raises ValueError for a span beyond `timesteps` or shares without a sum.
    """
    for span in spans:
        if not 0 <= span.t_min < span.t_max <= timesteps or span.share < 0:
            raise ValueError(f"{span} does not lie within 0 to {timesteps} timesteps")
    whole = sum(span.share for span in spans)
    if whole <= 0:
        raise ValueError("the spans leave no share of the iterations")

    def walk() -> Iterator[Draw]:
        done, number = 0.0, 0
        for span in spans:
            done += span.share
            pool = _Pool(span, pool_size, like, generator, noise).endless()
            while number < round(iterations * done / whole):
                yield next(pool)
                number += 1

    return walk()
