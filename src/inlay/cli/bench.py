"""bench: how well methods do, measured on pictures whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from inlay.cli.listing import table
from inlay.cli.options import Checkpoint, OutFolder, Saying, flag
from inlay.cli.outputs import listening, say
from inlay.cli.train import made_folder
from inlay.errors import InputError, nearest, show


@dataclass(frozen=True)
class Benchmark(Checkpoint, Saying):
    """The options of bench."""

    methods: str = flag(
        "Methods that harmonize; NAME:KEY=VALUE:KEY=VALUE is one with settings.", "A,B",
        default="reinhard,poisson,cdc",
    )  # fmt: skip
    cases: int = flag("Disturbed photos to run on.", "N", default=100, least=1)
    harmless: int | None = flag("Untouched photos to run on; all by default.", "N")
    seed: int = flag("Of all randomness.", "N", default=0)
    split: Literal["held-out", "training", "all"] | None = flag(
        "Which photos; held-out is the default where metadata.jsonl has any."
    )
    include: list[str] | None = flag("Only such names; may be repeated.", "PATTERN")
    short_side: int = flag("Reduce photos to this short side.", "N", default=384, least=1)
    set: list[str] | None = flag("A setting of one of the methods.", "METHOD.KEY=VALUE")


def bench(
    benchmark: Annotated[Literal["harmony"], typer.Argument(help="Which benchmark: harmony.")],
    folder: Annotated[
        list[str], typer.Argument(help="Folders of photos; scikit-image means those it ships.")
    ],
    output: OutFolder,
    given: Benchmark,
) -> None:
    """Measure methods on known truths.

    harmony: objects of photos, disturbed on purpose; writes harmony.json, harmony.md and
    sheet.png.
    """
    variants = _variants(given.methods, given.set or [])

    from inlay.composer import Composer
    from inlay.evaluation.harmony import run_harmony, summary
    from inlay.evaluation.photos import find_photos
    from inlay.evaluation.tables import COLUMNS, as_dict, cells, kind_cells, write_report
    from inlay.training.disturb import KINDS

    photos = find_photos(folder, given.split, given.include or [])
    composer = Composer(given.model, device=given.device, dtype=given.dtype)
    with made_folder(output) as out, listening(quiet=given.quiet, bar=not given.json) as heard:
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
        include = given.include or []
        report.settings |= {"folders": folder, "split": given.split, "include": include}
        report.settings |= {"photos": len(photos), "model": given.model}
        written = write_report(report, out)
    if given.json:
        say(json.dumps(as_dict(report), allow_nan=False, indent=1))
    elif not given.quiet:
        say(table([header for header, _, _ in COLUMNS], cells(summary(report)), "all cases"))
        kinds = kind_cells(report)
        say(table(["method", *KINDS], kinds, "fPSNR (improved) by kind"))
        for path in written:
            say(path)


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
        if name not in known:
            raise InputError(f"--methods is {show(name)}; {nearest(name, known)}")
    for item in sets:
        name, dot, _ = item.partition(".")
        if not dot or "=" in name:
            raise InputError(f"--set {show(item)} is wrong; expected METHOD.KEY=VALUE.")
        if name not in names.values():
            near = nearest(name, names.values())
            raise InputError(f"--set {show(item)} is for a method that is not run; {near}")
    variants = {}
    for label, name in names.items():
        own = (item.partition(".")[2] for item in sets if item.startswith(f"{name}."))
        items = [*label.split(":")[1:], *own]
        found = parse_sets(items, methods.get(name).settings)
        if len(found) > 1:
            raise InputError(
                f"a list stands for a setting of {name}; give one variant for each value, as in "
                f"{name}:KEY=A,{name}:KEY=B."
            )
        variants[label] = (name, found[0][1])
    return variants
