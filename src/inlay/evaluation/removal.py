"""Removal against a known truth: holes in photographs where nothing but background was.

What lies in the hole is painted over with something strange, and every method takes that out. The
truth is the photograph, but real texture in another place is as good: so what counts is whether the
fill is as rough as the truth, and whether its rim shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from inlay.errors import InputError
from inlay.evaluation.benchmark import Benchmark, Case, Image
from inlay.pictures.arrays import Mask, blur, distance, from_levels, luma, to_uint8
from inlay.training.objects import find_objects

# Half the size of a hole over the short side of the picture, places that are tried for it, and the
# most of it that may lie on a thing of the photograph.
_RADIUS, _PLACES, _ON_THINGS = 0.13, 64, 0.02
# Mean gradient of what cannot be told from flat; how far beyond a hole its rim may be.
_FLAT, _RIM = 0.2 / 255, 9


class Removal(Benchmark):
    """Holes in photographs (`sources`: Photo); methods fill them."""

    name = "removal"
    title = "Removal against a known truth"
    blank: ClassVar[Mapping[str, Any]] = {"verb": "remove", "picture": "photo", "mask": "mask"}
    base = "telea"
    methods = "patches,freecompose"
    nouns = ("photos", "photographs", "shape and place of the hole")
    kinds = ("disc, texture", "disc, edge", "thing, texture", "thing, edge")
    columns = (
        ("method", "label", "{}"),
        ("|log2 energy|", "energy", "{:.2f}"),
        ("rim", "rim", "{:.2f}"),
        ("fPSNR", "fpsnr", "{:.2f}"),
        ("ΔE2000", "delta_e", "{:.2f}"),
        ("s/picture", "seconds", "{:.2f}"),
    )
    rank = "fpsnr"
    told = ("energy", "|log2| of the fill's gradient energy over the truth's")

    def __post_init__(self) -> None:
        self.harmless = 0
        super().__post_init__()

    def cases(self) -> Iterator[Case]:
        """Cases 0 to count - 1, the kinds in turn, photographs in an order drawn from the seed;
        those without room beside what they show are passed over. Raises InputError where too few
        are left.
        """
        number = 0
        for index in np.random.default_rng([self.seed, 0]).permutation(len(self.sources)):
            photo, rng = self.sources[index], np.random.default_rng([self.seed, 1, number])
            truth, given = photo.read(self.short_side)
            things = find_objects(truth) if given is None else [given]
            shape, _, place = (kind := self.kinds[number % 4]).partition(", ")
            hole = _hole(truth, sum(things, np.zeros(truth.shape[:2])), shape, place, rng)
            if hole is None:
                continue
            strange = np.where(hole[..., None], 255 - truth[::-1, ::-1], truth)
            yield Case(number, photo.name, kind, hole.astype(np.float32), truth, strange)
            if (number := number + 1) == self.count:
                return
        raise InputError(
            f"only {number} of the {len(self.sources)} photos have room for a hole; give more of "
            f"them, or ask for fewer cases than {self.count}."
        )

    def order(self, case: Case, pasted: Image) -> dict[str, Any]:
        return {"verb": "remove", "picture": pasted, "mask": to_uint8(case.mask)}

    def figures(self, case: Case, result: Image) -> dict[str, float]:
        """Those of the hole; energy: |log2| of the mean gradient in it over the truth's; rim: the
        same of what lies up to 9 pixels round it.
        """
        hole = case.mask > 0.5
        round_it = (distance(hole) <= _RIM) & ~hole
        two = [_gradients(from_levels(picture)) for picture in (result, case.truth)]
        inside, rim = (
            abs(float(np.log2(np.divide(*(each[where].mean() + _FLAT for each in two)))))
            for where in (hole, round_it)
        )
        return super().figures(case, result) | {"energy": inside, "rim": rim}


def _gradients(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """The length of luma's gradient at each pixel."""
    return np.asarray(np.hypot(*np.gradient(luma(picture))), np.float32)


def _hole(
    truth: Image, things: NDArray[Any], shape: str, place: str, rng: np.random.Generator
) -> Mask | None:
    """A disc, or a body with a head and limbs, beside what the photograph shows: of some places
    the one with the strongest edge, or of the rougher half that with the weakest.
    """
    height, width = truth.shape[:2]
    radius = _RADIUS * min(height, width)
    light = luma(from_levels(truth))
    rough = _gradients(from_levels(truth))
    edges = np.hypot(*np.gradient(blur(np.ascontiguousarray(light), radius / 3)))
    rows, columns = np.mgrid[:height, :width]
    found = []
    for _ in range(_PLACES):
        y, x = rng.uniform(1.2 * radius, np.array([height, width]) - 1.2 * radius)
        parts = [(0.0, 0.0, 1.0, 1.0)]
        if shape == "thing":
            slant = rng.uniform(-0.3, 0.3)
            parts = [(0, 0, 0.65, 0.5), (-0.8, slant, 0.35, 0.3)]
            parts += [(0.75, side + slant, 0.4, 0.18) for side in (-0.25, 0.25)]
        hole = np.zeros((height, width), np.bool_)
        for down, across, tall, wide in parts:
            v, u = rows - y - down * radius, columns - x - across * radius
            hole |= (v / (tall * radius)) ** 2 + (u / (wide * radius)) ** 2 <= 1
        if things[hole].mean() <= _ON_THINGS:
            found.append((float(edges[hole].mean()), float(rough[hole].mean()), hole))
    if not found:
        return None
    if place == "edge":
        return max(found, key=lambda each: each[0])[2]
    middle = np.median([each[1] for each in found])
    return min((each for each in found if each[1] >= middle), key=lambda each: each[0])[2]
