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

    methods: str | None = flag(
        "Methods; NAME:KEY=VALUE:KEY=VALUE is one with settings, or with shadow=KIND.", "A,B"
    )
    cases: int = flag("Cases to run on; relight: at most.", "N", default=100, least=1)
    harmless: int | None = flag("Of these, undisturbed ones to run on; all by default.", "N")
    seed: int = flag("Of all randomness.", "N", default=0)
    split: Literal["held-out", "training", "all"] | None = flag(
        "Which pictures; held-out is the default where metadata.jsonl has any."
    )
    include: list[str] | None = flag("Only such names; may be repeated.", "PATTERN")
    short_side: int = flag("Reduce pictures to this short side.", "N", default=384, least=1)
    set: list[str] | None = flag("A setting of one of the methods.", "METHOD.KEY=VALUE")


def bench(
    benchmark: Annotated[
        Literal["harmony", "relight", "removal"], typer.Argument(help="Which benchmark.")
    ],
    folder: Annotated[
        list[str], typer.Argument(help="Folders of pictures; scikit-image means its photos.")
    ],
    output: OutFolder,
    given: Benchmark,
) -> None:
    """Measure methods on known truths.

    harmony: objects of photos, disturbed on purpose. relight: rendered objects that come from
    another light, of tools/render_pairs.py. removal: holes in photos. Writes NAME.json, NAME.md
    and sheet.png.
    """
    from inlay.composer import Composer
    from inlay.evaluation.benchmark import Benchmark as Runs
    from inlay.evaluation.benchmark import run
    from inlay.evaluation.harmony import Harmony
    from inlay.evaluation.photos import find_photos
    from inlay.evaluation.relight import Relight, find_triples
    from inlay.evaluation.removal import Removal
    from inlay.evaluation.tables import as_dict, tables, write_report

    kinds: dict[str, type[Runs]] = {"harmony": Harmony, "relight": Relight, "removal": Removal}
    include = given.include or []
    find = find_triples if benchmark == "relight" else find_photos
    sources = find(folder, given.split, include)
    chosen = kinds[benchmark](sources, given.cases, given.seed, given.harmless, given.short_side)
    named = chosen.methods if given.methods is None else given.methods
    variants = _variants(named, given.set or [], str(chosen.blank["verb"]))
    composer = Composer(given.model, device=given.device, dtype=given.dtype)
    with made_folder(output) as out, listening(quiet=given.quiet, bar=not given.json) as heard:
        heard.label = "measuring"
        report = run(chosen, variants, composer, heard.step)
        report.settings |= {"folders": folder, "split": given.split, "include": include}
        report.settings["model"] = given.model
        written = write_report(report, out)
    if given.json:
        say(json.dumps(as_dict(report), allow_nan=False, indent=1))
    elif not given.quiet:
        for heading, headers, rows in tables(report):
            say(table(headers, rows, heading))
        for path in written:
            say(path)


def _variants(text: str, sets: Sequence[str], verb: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Read --methods and --set; the text of each variant is its label."""
    from inlay.evaluation.benchmark import OF_REQUEST
    from inlay.methods import registry as methods
    from inlay.settings import parse_values

    known = [
        name
        for name, method in methods.all_methods().items()
        if verb in method.verbs and not method.concepts
    ]
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
        items = [item.partition("=") for item in (*label.split(":")[1:], *own)]
        request = {key: value for key, _, value in items if key in OF_REQUEST}
        rest = ["".join(item) for item in items if item[0] not in OF_REQUEST]
        found = parse_values(rest, methods.get(name).settings)
        variants[label] = (name, found | request)
    return variants
