"""bench: how well methods do, measured on pictures whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay.cli import options
from inlay.cli.options import Checkpoint, OutFolder, Saying, flag, grouped
from inlay.errors import InputError, nearest, show

if TYPE_CHECKING:
    from inlay.evaluation.harmony import Report

_BENCHMARKS = ("harmony",)
_SPLITS = ("held-out", "training", "all")


@dataclass(frozen=True)
class Benchmark(Checkpoint, Saying):
    """The options of bench."""

    methods: str = flag(
        "Methods that harmonize; NAME:KEY=VALUE:KEY=VALUE is one with settings.", "A,B",
        default="reinhard,poisson,cdc",
    )  # fmt: skip
    cases: int = flag("Disturbed photos to run on.", "N", default=100)
    harmless: int | None = flag("Untouched photos to run on; all by default.", "N")
    seed: int = flag("Of all randomness.", "N", default=0)
    split: str | None = flag(
        "held-out (default where metadata.jsonl has any), training or all.", "S", words=_SPLITS
    )
    include: list[str] | None = flag("Only such names; may be repeated.", "PATTERN")
    short_side: int = flag("Reduce photos to this short side.", "N", default=384)
    set: list[str] | None = flag("A setting of one of the methods.", "METHOD.KEY=VALUE")

    def __post_init__(self) -> None:
        Checkpoint.__post_init__(self)
        if self.split is not None:
            options.one_of(self.split, _SPLITS, "--split")
        for name, value in (("--cases", self.cases), ("--short-side", self.short_side)):
            if value < 1:
                raise InputError(f"{name} is {value}; expected a whole number of at least 1.")


@grouped
def bench(
    benchmark: Annotated[str, typer.Argument(metavar="BENCHMARK", help=", ".join(_BENCHMARKS))],
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER", help="Folders of photos; scikit-image means those it ships."
        ),
    ],
    output: OutFolder,
    given: Benchmark,
) -> None:
    """Measure methods on known truths.

    harmony: objects of photos, disturbed on purpose; writes harmony.json, harmony.md, cases.csv
    and sheet.png.
    """
    options.one_of(benchmark, _BENCHMARKS, "BENCHMARK")
    variants = _variants(given.methods, given.set or [])

    from inlay.cli.progress import listening
    from inlay.cli.train import made_folder
    from inlay.composer import Composer
    from inlay.evaluation.harmony import run_harmony
    from inlay.evaluation.photos import find_photos
    from inlay.evaluation.tables import as_dict, write_report

    photos = find_photos(folders, given.split, given.include or [])
    composer = Composer(given.model, device=given.device, dtype=given.dtype)
    with made_folder(output) as folder, listening(quiet=given.quiet, bar=not given.json) as heard:
        heard.label = "harmonizing"
        report = run_harmony(
            photos,
            variants,
            count=given.cases,
            seed=given.seed,
            harmless=given.harmless,
            short_side=given.short_side,
            composer=composer,
            progress=heard.step,
        )
        report.settings |= {
            "folders": folders,
            "split": given.split,
            "include": given.include or [],
            "photos": len(photos),
            "model": given.model,
        }
        written = write_report(report, folder)
    if given.json:
        import json as encoder

        print(encoder.dumps(as_dict(report), allow_nan=False, indent=1))
    elif not given.quiet:
        _print(report)
        for path in written:
            typer.echo(str(path))


def _variants(text: str, sets: Sequence[str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Read --methods and --set; the text of each variant is its label."""
    from inlay.methods import registry as methods
    from inlay.settings import parse_sets

    known = [name for name, method in methods.all_methods().items() if "harmonize" in method.verbs]
    labels = [label.strip() for label in text.split(",") if label.strip()]
    if not labels:
        raise InputError(f"--methods is {show(text)}; expected names like reinhard,cdc.")
    names = {label: label.split(":")[0] for label in labels}
    for name in names.values():
        options.one_of(name, known, "--methods")
    own: dict[str, list[str]] = {}
    for item in sets:
        name, dot, setting = item.partition(".")
        if not dot or "=" in name:
            raise InputError(f"--set {show(item)} is wrong; expected METHOD.KEY=VALUE.")
        if name not in names.values():
            raise InputError(
                f"--set {show(item)} is for a method that is not run; "
                f"{nearest(name, names.values())}"
            )
        own.setdefault(name, []).append(setting)
    variants = {}
    for label, name in names.items():
        items = [*label.split(":")[1:], *own.get(name, [])]
        found = parse_sets(items, methods.get(name).settings)
        if len(found) > 1:
            raise InputError(
                f"a list stands for a setting of {name}; give one variant for each value, as in "
                f"{name}:KEY=A,{name}:KEY=B."
            )
        variants[label] = (name, found[0][1])
    return variants


def _print(report: Report) -> None:
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table

    from inlay.evaluation.harmony import summary
    from inlay.evaluation.tables import COLUMNS, cells, kind_cells
    from inlay.training.disturb import KINDS

    # A pipe has no width; there nothing may be folded.
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 160)
    for title, headers, rows in (
        ("all cases", [header for header, _, _ in COLUMNS], cells(summary(report))),
        ("fPSNR (improved) by kind", ["method", *KINDS], kind_cells(report)),
    ):
        table = Table(box=box.SIMPLE, title=title, title_justify="left")
        for number, header in enumerate(headers):
            table.add_column(header, justify="right" if number else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print(table)
