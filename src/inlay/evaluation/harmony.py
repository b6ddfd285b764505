"""Harmonization against a known truth: photographs whose object was disturbed on purpose.

An object of a photograph is given another light or tone (inlay.training.disturb), every method
tries to make it belong again, and its result is measured by the photograph as it was. Each method
also runs on untouched photographs: what it changes there is harm.

A case hangs on the photographs, the seed and its own number alone, not on how many there are.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from inlay.composer import Composer
from inlay.errors import InputError
from inlay.evaluation.metrics import fmse, measure, psnr
from inlay.evaluation.photos import Photo
from inlay.methods import registry as methods
from inlay.pictures.arrays import Box, bounds, to_uint8
from inlay.settings import validate_settings
from inlay.training.disturb import KINDS, Image, Mask, disturb_object, draw
from inlay.training.objects import find_objects

PASTE = "paste"
MAX_CASES = 10_000
SHORT_SIDE = 384
# Of one method on one picture.
FIGURES = ("fmse", "fpsnr", "delta_e", "seconds")

# Foreground PSNR of the disturbed object, in dB: more cannot be seen, less is no photograph.
_VISIBLE = (14.0, 32.0)
_DRAWS = 8

_log = logging.getLogger("inlay")

Variant = tuple[str, Mapping[str, Any]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Case:
    """One known truth.

    truth and pasted are uint8 (h, w, 3) sRGB, mask float32 (h, w) in [0, 1] on the levels of 8
    bits; kind is the disturbance dealt, parameters its changes in their order, each with its kind.
    """

    number: int
    name: str
    truth: Image
    mask: Mask
    kind: str
    pasted: Image
    parameters: list[dict[str, Any]]


@dataclass(eq=False)
class Report:
    """What a run found; plain values that go into JSON as they are.

    settings: how the run was asked for. methods: label to method, settings, model, device, dtype.
    cases: file, kind, parameters, and for each label its FIGURES; harm: the same for untouched
    photographs. views: small JPEG pictures for the contact sheet, by case and column.
    """

    settings: dict[str, Any]
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    cases: list[dict[str, Any]] = field(default_factory=list)
    harm: list[dict[str, Any]] = field(default_factory=list)
    views: list[dict[str, bytes]] = field(default_factory=list, repr=False)


def make_cases(
    photos: Sequence[Photo], count: int, seed: int, short_side: int = SHORT_SIDE
) -> Iterator[Case]:
    """Cases 0 to count - 1, the kinds of disturbance dealt in turn.

    Photographs are dealt in an order drawn from the seed, and again from the start where there are
    fewer than cases: then another object of theirs is taken. Those that cannot be read, show no
    object, or hardly change under the disturbance are passed over. Raises InputError where a case
    finds no photograph at all.
    """
    order = np.random.default_rng([seed, 0, 1]).permutation(len(photos)).tolist()
    dealt = itertools.cycle(order)
    visits: Counter[int] = Counter()
    barren: set[int] = set()
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        rng = np.random.default_rng([seed, number])
        for index in itertools.islice(dealt, 2 * len(order)):
            if index in barren:
                continue
            prepared = _prepare(photos[index], short_side, visits[index])
            if prepared is None:
                barren.add(index)
                continue
            visits[index] += 1
            made = _disturb(*prepared, kind, rng)
            if made is not None:
                yield Case(number, photos[index].name, *prepared, kind, *made)
                break
        else:
            raise InputError(
                f"case {number} ({kind}): none of the {len(photos)} photos shows an object that "
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
    """A case's pasted picture and its parameters; None where no draw of the kind changes the object
    visibly but plausibly.
    """
    for _ in range(_DRAWS):
        changes = draw(kind, rng)
        result = disturb_object(truth, mask, changes)
        if _VISIBLE[0] <= psnr(fmse(result, truth, mask)) <= _VISIBLE[1]:
            return result, [{"kind": change.kind, **change.parameters} for change in changes]
    return None


def run_harmony(
    photos: Sequence[Photo],
    variants: Mapping[str, Variant],
    *,
    count: int = 100,
    seed: int = 0,
    harmless: int | None = None,
    short_side: int = SHORT_SIDE,
    composer: Composer | None = None,
    progress: Progress | None = None,
) -> Report:
    """Run named variants of methods, {label: (method, settings)}, on disturbed photographs.

    Plain paste is always there, as the first one. `harmless` is how many of the photographs are
    also handed over undisturbed; None is all. progress(done, total) is called after each picture
    and may raise. The model of `composer` is loaded only where a method needs it. Raises
    InputError for an unknown method, wrong settings or numbers out of bounds, before any work.
    """
    harmless = count if harmless is None else harmless
    for name, value, least, most in (
        ("cases", count, 1, MAX_CASES),
        ("harmless", harmless, 0, count),
        ("seed", seed, 0, 2**63 - 1),
        ("short side", short_side, 64, 4096),
    ):
        if not least <= value <= most:
            raise InputError(f"{name} is {value}; expected a whole number from {least} to {most}.")
    everything: dict[str, Variant] = {PASTE: (PASTE, {}), **variants}
    if everything[PASTE] != (PASTE, {}):
        raise InputError(f"the variant {PASTE!r} is the plain paste; call yours by another name.")
    for name, settings in everything.values():
        validate_settings(methods.get(name, "harmonize").settings, settings)
    composer = composer or Composer()
    report = Report({"cases": count, "seed": seed, "harmless": harmless, "short_side": short_side})
    total, done = (count + harmless) * len(everything), 0
    for case in make_cases(photos, count, seed, short_side):
        for picture, rows in ((case.pasted, report.cases), (case.truth, report.harm)):
            if rows is report.harm and case.number >= harmless:
                continue
            results, views = {}, {}
            for label, variant in everything.items():
                views[label], results[label], about = _run(composer, picture, case, variant, seed)
                report.methods.setdefault(label, about)
                done += 1
                if progress is not None:
                    progress(done, total)
            row: dict[str, Any] = {"number": case.number, "file": case.name}
            if rows is report.cases:
                row |= {"kind": case.kind, "parameters": case.parameters}
                report.views.append(_views(case, views))
            rows.append({**row, "results": results})
    return report


def _run(
    composer: Composer, picture: Image, case: Case, variant: Variant, seed: int
) -> tuple[Image, dict[str, float], dict[str, Any]]:
    """One method on one picture: what it made, its figures, and how it was set."""
    name, settings = variant
    mask = to_uint8(case.mask)
    started = time.perf_counter()
    made = composer.harmonize(picture, mask=mask, method=name, seed=seed, **settings)
    seconds = time.perf_counter() - started - made.record["timings"]["load_s"]
    result = np.asarray(made.image.convert("RGB"), np.uint8)
    figures = {**asdict(measure(result, case.truth, case.mask)), "seconds": round(seconds, 4)}
    about = {key: made.record[key] for key in ("method", "model", "device", "dtype")}
    own = made.record["request"]["method"]
    about["settings"] = {key: own[key] for key in own if key not in ("name", "preset")}
    return result, figures, about


def _views(case: Case, results: Mapping[str, Image]) -> dict[str, bytes]:
    """Small pictures of the object and a little round it: truth, mask, and each result."""
    box = bounds(case.mask)
    assert box is not None
    near = box.grown(max(box.width, box.height) // 3 + 8)
    part = (near.intersect(Box.of_size(case.mask.shape[::-1])) or box).slices
    white = np.repeat(to_uint8(case.mask)[..., None], 3, axis=2)
    views = {}
    for label, picture in {"truth": case.truth, "mask": white, **results}.items():
        small, file = PILImage.fromarray(picture[part]), BytesIO()
        small.thumbnail((224, 224))
        # Compressed: the pictures of thousands of cases stay in memory until the end.
        small.save(file, "JPEG", quality=92)
        views[label] = file.getvalue()
    return views


def summary(report: Report, kind: str | None = None) -> list[dict[str, Any]]:
    """One row a variant over all cases, or over those of one kind; an empty list without any.

    fmse, its ratio to paste's, fpsnr (mean of the cases, dB), gain (mean of fpsnr less paste's, dB)
    and its standard error, delta_e, improved (share of cases with a lower fmse than paste; ties
    are none), seconds a picture, and harm_delta_e and harm_fpsnr on untouched photographs, None
    where none were run.
    """
    cases = [case for case in report.cases if kind is None or case["kind"] == kind]
    numbers = {case["number"] for case in cases}
    harm = [case for case in report.harm if case["number"] in numbers]
    rows = []
    for label in report.methods if cases else ():
        own, paste, harmed = (_column(*x) for x in ((cases, label), (cases, PASTE), (harm, label)))
        gains = own["fpsnr"] - paste["fpsnr"]
        row: dict[str, Any] = {"label": label, "cases": len(cases)}
        row |= {name: float(values.mean()) for name, values in own.items()}
        row["fmse_ratio"] = float(own["fmse"].mean() / paste["fmse"].mean())
        row["gain"] = float(gains.mean())
        row["gain_error"] = float(gains.std(ddof=1) / len(cases) ** 0.5) if cases[1:] else None
        row["improved"] = float((own["fmse"] < paste["fmse"]).mean())
        for name in ("delta_e", "fpsnr"):
            row[f"harm_{name}"] = float(harmed[name].mean()) if harm else None
        rows.append(row)
    return rows


def _column(cases: Sequence[Mapping[str, Any]], label: str) -> dict[str, NDArray[np.float64]]:
    return {name: np.array([case["results"][label][name] for case in cases]) for name in FIGURES}
