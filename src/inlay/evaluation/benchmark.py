"""What every benchmark shares: cases with a known truth, methods run on them, and a report.

Each method runs on every case, and on some of them with the truth itself in place of what was
disturbed: what it changes there is harm. One plain method is what all are compared with.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from skimage.color import deltaE_ciede2000, rgb2lab

from inlay.composer import Composer
from inlay.errors import InputError
from inlay.pictures.arrays import Box, bounds, to_uint8
from inlay.request import Request
from inlay.result import Result

PASTE = "paste"
MAX_CASES = 10_000
SHORT_SIDE = 384
# What of a variant is the request's and not the method's.
OF_REQUEST = ("shadow",)

# In dB. Without a cap one faultless case would make every mean infinite.
MAX_PSNR = 60.0

Image = NDArray[np.uint8]
Variant = tuple[str, Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Case:
    """One known truth.

    truth and pasted are uint8 (h, w, 3) sRGB, mask float32 (h, w) in [0, 1] on the levels of 8
    bits. pasted shows the object that is to be made like the truth's, over the truth's surroundings
    or, where `place` (as truth) shows these without an object, to be laid over them by the mask.
    kind is what the tables sort by; facts are what else the report says of it.
    """

    number: int
    name: str
    kind: str
    mask: NDArray[np.float32] = field(repr=False)
    truth: Image = field(repr=False)
    pasted: Image = field(repr=False)
    place: Image | None = field(default=None, repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Benchmark(ABC):
    """What methods are measured on: where its cases come from, and what is said of results.

    sources are photographs or the like, of which `count` cases are made. `harmless` is how many of
    these are also run undisturbed; None is all. Raises InputError for numbers out of bounds.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    # A request that lacks a method, by which variants are checked; the plain method that all are
    # compared with, and what it is asked.
    blank: ClassVar[Mapping[str, Any]]
    base: ClassVar[str] = PASTE
    # What is run where no method is named.
    methods: ClassVar[str] = "reinhard,poisson,cdc"
    plain: ClassVar[Mapping[str, Any]] = {}
    # What the sources are called, what stays undisturbed, and what a case's kind is.
    nouns: ClassVar[tuple[str, str, str]]
    kinds: ClassVar[Sequence[str]]
    # Header, key of a summary's row, format; the figure in dB by which the contact sheet chooses.
    columns: ClassVar[Sequence[tuple[str, str, str]]]
    rank: ClassVar[str]
    # The figure that is told for each kind, and what it is.
    told: ClassVar[tuple[str, str]] = ("fpsnr", "fPSNR in dB")

    sources: Sequence[Any]
    count: int = 100
    seed: int = 0
    harmless: int | None = None
    short_side: int = SHORT_SIDE

    def __post_init__(self) -> None:
        self.harmless = self.count if self.harmless is None else self.harmless
        for name, value, least, most in (
            ("cases", self.count, 1, MAX_CASES),
            ("harmless", self.harmless, 0, self.count),
            ("seed", self.seed, 0, 2**63 - 1),
            ("short side", self.short_side, 64, 4096),
        ):
            if not least <= value <= most:
                raise InputError(
                    f"{name} is {value}; expected a whole number from {least} to {most}."
                )

    @abstractmethod
    def cases(self) -> Iterator[Case]:
        """Cases 0 to count - 1."""

    @abstractmethod
    def make(self, composer: Composer, case: Case, pasted: Image, **choice: Any) -> Result:
        """Run a method on a case whose object looks as in `pasted`."""

    def figures(self, case: Case, result: Image) -> dict[str, float]:
        """Of one result, uint8 (h, w, 3)."""
        return measure(result, case.truth, case.mask)

    def shares(self, cases: Sequence[Mapping[str, Any]], label: str) -> dict[str, float | None]:
        """Further figures of a variant over some cases of a report."""
        return {}


@dataclass(eq=False)
class Report:
    """What a run found: but for the benchmark plain values that go into JSON as they are.

    settings: how the run was asked for. methods: label to method, settings, model, device, dtype.
    cases: number, file, kind, facts, and for each label its figures; harm: those of what was not
    disturbed, without facts. views: small JPEG pictures for the contact sheet, by case and column.
    """

    benchmark: Benchmark = field(repr=False)
    settings: dict[str, Any]
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    cases: list[dict[str, Any]] = field(default_factory=list)
    harm: list[dict[str, Any]] = field(default_factory=list)
    views: list[dict[str, bytes]] = field(default_factory=list, repr=False)


def run(
    benchmark: Benchmark,
    variants: Mapping[str, Variant],
    composer: Composer | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Run named variants of methods, {label: (method, settings)}, on a benchmark.

    The plain method is always there, as the first one. progress(done, total) is called after each
    picture and may raise. The model of `composer` is loaded only where a method needs it. Raises
    InputError for an unknown method or wrong settings before any work.
    """
    base = benchmark.base
    if variants.get(base, (base, {})) != (base, {}):
        raise InputError(f"the variant {base!r} is the plain {base}; call yours by another name.")
    everything = {base: (base, {}), **variants, **{base: (base, benchmark.plain)}}
    for name, choice in everything.values():
        request = {key: choice[key] for key in OF_REQUEST if key in choice}
        own = {key: choice[key] for key in choice.keys() - request.keys()}
        Request.of({**benchmark.blank, **request, "method": {"name": name, **own}})
    composer = composer or Composer()
    count, harmless = benchmark.count, benchmark.harmless or 0
    settings = {"cases": count, "seed": benchmark.seed, "harmless": harmless}
    settings |= {"short_side": benchmark.short_side, benchmark.nouns[0]: len(benchmark.sources)}
    report = Report(benchmark, settings)
    total, done = (count + harmless) * len(everything), 0
    for case in benchmark.cases():
        for pasted, rows in ((case.pasted, report.cases), (case.truth, report.harm)):
            if rows is report.harm and case.number >= harmless:
                continue
            results, views = {}, {}
            for label, (name, choice) in everything.items():
                started = time.perf_counter()
                made = benchmark.make(composer, case, pasted, method=name, **choice)
                seconds = time.perf_counter() - started - made.record["timings"]["load_s"]
                views[label] = np.asarray(made.image.convert("RGB"), np.uint8)
                figures = benchmark.figures(case, views[label])
                results[label] = {**figures, "seconds": round(seconds, 4)}
                report.methods.setdefault(label, _about(made.record))
                done += 1
                if progress is not None:
                    progress(done, total)
            row: dict[str, Any] = {"number": case.number, "file": case.name, "kind": case.kind}
            if rows is report.cases:
                row |= case.facts
                report.views.append(_views(case, views))
            rows.append({**row, "results": results})
    return report


def _about(record: Mapping[str, Any]) -> dict[str, Any]:
    request, own = record["request"], record["request"]["method"]
    about = {key: record[key] for key in ("method", "model", "device", "dtype")}
    about |= {key: request[key] for key in OF_REQUEST if key in request}
    return about | {"settings": {key: own[key] for key in own if key not in ("name", "preset")}}


def _views(case: Case, results: Mapping[str, Image]) -> dict[str, bytes]:
    """Small pictures, truth, mask and each result: of the object and a little round it, or all of
    them where their surroundings are to change.
    """
    box = bounds(case.mask)
    assert box is not None
    near = box.grown(max(box.width, box.height) // 3 + 8)
    whole = Box.of_size(case.mask.shape[::-1])
    part = (whole if case.place is not None else near.intersect(whole) or box).slices
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

    The mean of every figure, among them fmse, fpsnr (dB), delta_e and seconds a picture; the ratio
    of fmse to the plain method's; gain (mean of fpsnr less its, dB) and the standard error;
    improved (share of cases with a lower fmse; ties are none); harm_delta_e and harm_fpsnr on what
    was not disturbed, None where none was run; and the benchmark's own shares.
    """
    cases, harm = (
        [case for case in listed if kind in (None, case["kind"])]
        for listed in (report.cases, report.harm)
    )
    rows = []
    for label in report.methods if cases else ():
        own, paste = _columns(cases, label), _columns(cases, report.benchmark.base)
        gains, untouched = own["fpsnr"] - paste["fpsnr"], _columns(harm, label)
        row: dict[str, Any] = {"label": label, "cases": len(cases)}
        row |= {name: float(values.mean()) for name, values in own.items()}
        row["fmse_ratio"] = ratio(cases, label, "fmse", report.benchmark.base)
        row["gain"] = float(gains.mean())
        row["gain_error"] = float(gains.std(ddof=1) / len(cases) ** 0.5) if cases[1:] else None
        row["improved"] = float((own["fmse"] < paste["fmse"]).mean())
        for name in ("delta_e", "fpsnr"):
            row[f"harm_{name}"] = float(untouched[name].mean()) if harm else None
        rows.append(row | report.benchmark.shares(cases, label))
    return rows


def _columns(cases: Sequence[Mapping[str, Any]], label: str) -> dict[str, NDArray[np.float64]]:
    found = [case["results"][label] for case in cases]
    return {name: np.array([each[name] for each in found]) for name in (found or [{}])[0]}


def ratio(
    cases: Sequence[Mapping[str, Any]], label: str, figure: str, base: str = PASTE
) -> float | None:
    """The sum of a figure over that of the plain method's; None where that is 0."""
    own, plain = (sum(case["results"][name][figure] for case in cases) for name in (label, base))
    return own / plain if plain else None


def measure(result: Image, truth: Image, mask: NDArray[np.float32]) -> dict[str, float]:
    """All figures of a result; pictures are uint8 (h, w, 3) sRGB, the mask float32 (h, w).

    Pixels count where the mask is above 0.5. fmse is in squared 8-bit levels, fpsnr in dB, delta_e
    the mean CIEDE2000 (Sharma, Wu and Dalal 2005) under D65. Raises InputError where no pixel
    counts or the sizes differ.
    """
    error = fmse(result, truth, mask)
    one, two = (rgb2lab(picture[mask > 0.5][:, None]) for picture in (result, truth))
    delta_e = float(np.mean(deltaE_ciede2000(one, two)))
    return {"fmse": error, "fpsnr": psnr(error), "delta_e": delta_e}


def fmse(result: Image, truth: Image, mask: NDArray[np.float32]) -> float:
    """Mean squared error over the pixels and channels inside the mask, in 8-bit levels."""
    if result.shape != truth.shape or result.shape != (*mask.shape, 3):
        raise InputError(
            f"the result is {result.shape}, the truth {truth.shape} and the mask {mask.shape}; "
            "expected arrays of one height and width."
        )
    chosen = mask > 0.5
    if not chosen.any():
        raise InputError("the mask is nowhere above 0.5; expected white where the object is.")
    return float(np.mean((result[chosen].astype(np.float64) - truth[chosen]) ** 2))


def psnr(mean_square: float) -> float:
    """Peak signal-to-noise ratio in dB of an error in squared 8-bit levels, at most MAX_PSNR."""
    floor = 255.0**2 / 10 ** (MAX_PSNR / 10)
    return float(10 * np.log10(255.0**2 / max(mean_square, floor)))
