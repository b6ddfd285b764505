"""Benchmarks of our own: cases with a known truth as pairs of a data set, and their figures.

Each method runs on every case, and on some of them with the truth itself in place of what was
disturbed: what it changes there is harm. One plain method is what all are compared with.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from inlay.batch.command import Running
from inlay.errors import InputError
from inlay.evaluation.bench import OF_REQUEST, Bench, Variant
from inlay.evaluation.figures import measure
from inlay.evaluation.metrics import Metric
from inlay.evaluation.pairs import Pair
from inlay.pictures.arrays import Box, bounds, from_levels, to_uint8
from inlay.request import Request
from inlay.result.record import with_inputs

PASTE = "paste"
MAX_CASES = 10_000
SHORT_SIDE = 384

# The figures of which less is better.
LOWER = ("fmse", "delta_e", "energy", "rim", "together", "shadow", "darkening")

Image = NDArray[np.uint8]


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


@dataclass(frozen=True, eq=False)
class Known(Pair):
    """A case as a pair of a data set, whose pictures lie in files, or its truth undisturbed."""

    number: int = 0
    file: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    undisturbed: bool = False

    def case(self) -> Case:
        """What its figures are taken from, read from the files."""
        truth, mask = (np.asarray(PILImage.open(str(f))) for f in (self.truth, self.truth_mask))
        under = getattr(self.request, "background", None)
        place = None if under is None else np.asarray(PILImage.open(under))
        levels = from_levels(mask)
        return Case(self.number, self.file, self.category, levels, truth, truth, place)


@dataclass(eq=False)
class Benchmark(ABC):
    """What methods are measured on: a data set that makes its pairs, and what is said of results.

    sources are photographs or the like, of which `count` cases are made. `harmless` is how many of
    these are also run undisturbed; None is all. `inputs` is the folder for the pictures of pairs().
    Raises InputError for numbers out of bounds.
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
    inputs: Path | None = None

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
    def order(self, case: Case, pasted: Image) -> dict[str, Any]:
        """The request, but for its method, that has a method work on a case whose object looks as
        in `pasted`; its pictures are arrays.
        """

    def figures(self, case: Case, result: Image) -> dict[str, float]:
        """Of one result, uint8 (h, w, 3)."""
        return measure(result, case.truth, case.mask)

    def problems(self) -> list[str]:
        return []

    def pairs(self) -> Iterator[Known]:
        """The cases, and after each of the first ones that with nothing to be mended."""
        folder = self.inputs
        if folder is None:
            raise RuntimeError("the pictures of pairs need a folder; say inputs.")
        folder.mkdir(parents=True, exist_ok=True)

        def file(name: str, picture: Image) -> Path:
            PILImage.fromarray(picture).save(folder / f"{name}.png", compress_level=1)
            return folder / f"{name}.png"

        try:
            for case in self.cases():
                number, box = f"{case.number:05d}", bounds(case.mask)
                truth = file(f"{number}-truth", case.truth)
                mask = file(f"{number}-mask", to_uint8(case.mask))
                for undisturbed in (False, True)[: 1 + (case.number < (self.harmless or 0))]:
                    name = f"{number}-undisturbed" if undisturbed else number
                    order = self.order(case, case.truth if undisturbed else case.pasted)
                    request = Request.of({**order, "method": self.base})
                    arrays = {place: np.asarray(each) for place, each in request.inputs().items()}
                    files = {
                        place: str(file(f"{name}-{place}", each)) for place, each in arrays.items()
                    }
                    known = (case.number, case.name, case.facts, undisturbed)
                    places = (box or Box(0, 0, 1, 1), truth, mask, "")
                    request = with_inputs(request, files)
                    yield Known(name, case.kind, request, (), (), *places, *known)
        except InputError:
            shutil.rmtree(folder)
            raise

    def measured(self, pair: Any, result: PILImage.Image) -> dict[str, float]:
        """The figures of a result of one of the pairs."""
        return self.figures(pair.case(), np.asarray(result.convert("RGB"), np.uint8))

    def shares(self, cases: Sequence[Mapping[str, Any]], label: str) -> dict[str, float | None]:
        """Further figures of a variant over some cases of a report."""
        return {}


@dataclass(eq=False)
class Report:
    """What a run found: but for the benchmark plain values that go into JSON as they are.

    settings: how the run was asked for. methods: label to method, settings, model, device, dtype.
    cases: number, file, kind, facts, and for each label its figures; harm: those of what was not
    disturbed, without facts. views: the pictures of each case, by column of the contact sheet.
    """

    benchmark: Benchmark = field(repr=False)
    settings: dict[str, Any]
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    cases: list[dict[str, Any]] = field(default_factory=list)
    harm: list[dict[str, Any]] = field(default_factory=list)
    views: list[dict[str, Path]] = field(default_factory=list, repr=False)
    pairs: Sequence[Known] = field(default=(), repr=False)
    scores: list[dict[str, Any]] = field(default_factory=list, repr=False)

    @classmethod
    def of(
        cls,
        benchmark: Benchmark,
        methods: dict[str, dict[str, Any]],
        pairs: Sequence[Any],
        scores: list[dict[str, Any]],
    ) -> Report:
        """From the scores of a Bench: a row a picture, those of a pair one after the other."""
        settings: dict[str, Any] = {"cases": benchmark.count, "seed": benchmark.seed}
        settings |= {"harmless": benchmark.harmless, "short_side": benchmark.short_side}
        settings |= {benchmark.nouns[0]: len(benchmark.sources)}
        report = cls(benchmark, settings, methods, pairs=pairs, scores=scores)
        facts = ("pair", "category", "method", "sample", "seed", "picture")
        found: dict[str, dict[str, Mapping[str, Any]]] = {}
        for score in scores:
            found.setdefault(score["pair"], {})[score["method"]] = score
        for pair in pairs:
            own = found.get(pair.name, {})
            if own.keys() != methods.keys():
                # What one of them could not do says nothing of the others.
                continue
            row: dict[str, Any] = {"number": pair.number, "file": pair.file, "kind": pair.category}
            if not pair.undisturbed:
                row |= pair.facts
                views = {"truth": Path(str(pair.truth)), "mask": Path(str(pair.truth_mask))}
                report.views.append(views | {n: Path(s["picture"]) for n, s in own.items()})
            row["results"] = {
                name: {key: value for key, value in score.items() if key not in facts}
                for name, score in own.items()
            }
            (report.harm if pair.undisturbed else report.cases).append(row)
        return report


def run(
    benchmark: Benchmark,
    variants: Mapping[str, tuple[str, Mapping[str, Any]]],
    folder: str | Path,
    given: Running | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    model: Mapping[str, Any] | None = None,
) -> Report:
    """Run named variants of methods, {label: (method, settings)}, on a benchmark of known truths.

    The plain method is always there, as the first one. Pictures go to the folder; a second run goes
    on from there. Raises InputError for an unknown method or wrong settings before any work.
    """
    base = benchmark.base
    if variants.get(base, (base, {})) != (base, {}):
        raise InputError(f"the variant {base!r} is the plain {base}; call yours by another name.")
    everything = {base: (base, {}), **variants, **{base: (base, benchmark.plain)}}
    chosen = []
    for label, (name, choice) in everything.items():
        request = {key: choice[key] for key in OF_REQUEST if key in choice}
        own = {key: choice[key] for key in choice.keys() - request.keys()}
        chosen.append(Variant(label, {"name": name, **own}, request))
    for variant in chosen:
        Request.of({**benchmark.blank, **variant.request, "method": variant.method})
    benchmark.inputs = Path(folder, "inputs").absolute()
    told: dict[str, Any] = {"seed": benchmark.seed, "model": model, "progress": progress}
    bench = Bench(benchmark, chosen, folder, given, **told)
    if bench.write(lambda: None):
        raise InputError(bench.problems[0])
    figures = Metric("figures", benchmark.name, "inlay", True, None, benchmark.measured)
    return Report.of(benchmark, bench.about(), bench.pairs, bench.score([figures]))


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
        # The first picture's has the loading of a model in it.
        row["seconds"] = float(np.median(own["seconds"]))
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
