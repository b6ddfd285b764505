"""Metrics of composites, each under the name of the protocol that says how it is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image as PILImage

from inlay.errors import InputError, nearest, show
from inlay.evaluation.pairs import Pair

PROTOCOLS = ("dreamcom", "bcmi", "shine", "dreamedit", "iharmony4", "inlay")
Value = float | dict[str, float]


@dataclass(frozen=True)
class Metric:
    """One figure of a result, or several of one run of a network, by their names.

    source: the paper or release that it follows. reason: why it cannot be had here, one sentence;
    None where it can. Called with a pair and its result, it says {} where the pair lacks what it
    is measured by, such as a truth. Raises InputError where it cannot be had, or the result does
    not fit the pair.
    """

    name: str
    protocol: str
    source: str
    higher_is_better: bool
    reason: str | None = None
    measure: Callable[[Pair, PILImage.Image], Value] = field(repr=False, default=lambda *_: {})

    def __call__(self, pair: Pair, result: PILImage.Image) -> Value:
        if self.reason:
            raise InputError(f"{self.name} of {self.protocol} is not available: {self.reason}")
        return self.measure(pair, result)


def metrics_of(protocol: str, models: Mapping[str, Path] | None = None) -> list[Metric]:
    """The metrics of a protocol, one of PROTOCOLS; raises InputError for another name.

    models: the folder of a network's files by its name: dino, dinov2, clip, dreamsim, sam, vgg16,
    alexnet; one that is not named comes from the hub.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"there is no protocol {show(protocol)}; {nearest(protocol, PROTOCOLS)}")
    return []
