"""Harmonization against a known truth: photographs whose object was disturbed on purpose.

An object of a photograph is given another light or tone (inlay.training.disturb), every method
tries to make it belong again, and its result is measured by the photograph as it was.

A case hangs on the photographs, the seed and its own number alone, not on how many there are.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from inlay.errors import InputError
from inlay.evaluation.benchmark import Benchmark, Case
from inlay.evaluation.figures import fmse, psnr
from inlay.evaluation.photos import Photo
from inlay.pictures.arrays import to_uint8
from inlay.training.disturb import KINDS, Image, Mask, disturb_object, draw
from inlay.training.objects import find_objects

# Foreground PSNR of the disturbed object, in dB: more cannot be seen, less is no photograph.
_VISIBLE = (14.0, 32.0)
_DRAWS = 8

_log = logging.getLogger("inlay")


class Harmony(Benchmark):
    """Objects of photographs (`sources`: Photo), disturbed; methods harmonize them."""

    name = "harmony"
    title = "Harmonization against a known truth"
    blank: ClassVar[Mapping[str, Any]] = {"verb": "harmonize", "picture": "photo"}
    nouns = ("photos", "photographs", "kind of disturbance")
    kinds = KINDS
    columns = (
        ("method", "label", "{}"),
        ("fMSE", "fmse", "{:.1f}"),
        ("of paste's", "fmse_ratio", "{:.3f}"),
        ("fPSNR", "fpsnr", "{:.2f}"),
        ("gain dB", "gain", "{:+.2f}"),
        ("± s.e.", "gain_error", "{:.2f}"),
        ("ΔE2000", "delta_e", "{:.2f}"),
        ("improved", "improved", "{:.0%}"),
        ("harm ΔE2000", "harm_delta_e", "{:.2f}"),
        ("harm fPSNR", "harm_fpsnr", "{:.2f}"),
        ("s/picture", "seconds", "{:.2f}"),
    )
    rank = "fpsnr"

    def order(self, case: Case, pasted: Image) -> dict[str, Any]:
        return {"verb": "harmonize", "picture": pasted, "mask": to_uint8(case.mask)}

    def cases(self) -> Iterator[Case]:
        """Cases 0 to count - 1, the kinds of disturbance dealt in turn.

        Photographs are dealt in an order drawn from the seed, and again from the start where there
        are fewer than cases: then another object of theirs is taken. Those that cannot be read,
        show no object, or hardly change under the disturbance are passed over. Raises InputError
        where a case finds no photograph at all.
        """
        order = np.random.default_rng([self.seed, 0, 1]).permutation(len(self.sources)).tolist()
        dealt = itertools.cycle(order)
        visits: Counter[int] = Counter()
        barren: set[int] = set()
        for number in range(self.count):
            kind = KINDS[number % len(KINDS)]
            rng = np.random.default_rng([self.seed, number])
            for index in itertools.islice(dealt, 2 * len(order)):
                if index in barren:
                    continue
                photo = self.sources[index]
                prepared = _prepare(photo, self.short_side, visits[index])
                if prepared is None:
                    barren.add(index)
                    continue
                visits[index] += 1
                truth, mask = prepared
                if (found := _disturb(truth, mask, kind, rng)) is not None:
                    facts = {"parameters": found[1]}
                    yield Case(number, photo.name, kind, mask, truth, found[0], facts=facts)
                    break
            else:
                raise InputError(
                    f"case {number} ({kind}): none of the {len(order)} photos shows an object that "
                    "can be disturbed; give other photos, or masks."
                )


def _prepare(photo: Photo, short_side: int, visit: int) -> tuple[Image, Mask] | None:
    """The picture and one of its objects; the log says why there is none."""
    try:
        picture, given = photo.read(short_side)
    except InputError as error:
        _log.warning("left out: %s", error)
        return None
    objects = find_objects(picture) if given is None else [given]
    # Methods need something round the object to go by.
    objects = [o for o in objects if (o > 0.5).any() and (o == 0).mean() > 0.05]
    if not objects:
        reason = "shows no object that stands off" if given is None else "has a useless mask"
        _log.info("left out: %s %s", photo.name, reason)
        return None
    return picture, objects[visit % len(objects)]


def _disturb(
    truth: Image, mask: Mask, kind: str, rng: np.random.Generator
) -> tuple[Image, list[dict[str, Any]]] | None:
    """The disturbed picture and the changes made, in their order, each with its kind.

    None where no draw of the kind changes this object visibly but plausibly.
    """
    for _ in range(_DRAWS):
        changes = draw(kind, rng)
        result = disturb_object(truth, mask, changes)
        if _VISIBLE[0] <= psnr(fmse(result, truth, mask)) <= _VISIBLE[1]:
            return result, [{"kind": change.kind, **change.parameters} for change in changes]
    return None
