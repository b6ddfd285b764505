"""bench: how well methods do, measured on pictures whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay.cli import options
from inlay.cli.options import DEVICES, DTYPES, Json, Quiet, _completes, _model_names
from inlay.errors import InputError, nearest, show

if TYPE_CHECKING:
    from inlay.evaluation.harmony import Report

_SPLITS = ("held-out", "training", "all")


def harmony(
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="FOLDER", help="Folders of photos; scikit-image means those it ships."
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR", help="Folder to write to.")
    ],
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            metavar="A,B",
            help="Methods that harmonize; NAME:KEY=VALUE:KEY=VALUE is one with settings.",
        ),
    ] = "reinhard,poisson,cdc",
    cases: Annotated[
        int, typer.Option("--cases", metavar="N", help="Disturbed photos to run on.")
    ] = 100,
    harmless: Annotated[
        int | None,
        typer.Option("--harmless", metavar="N", help="Untouched photos to run on; all by default."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of all randomness.")] = 0,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            metavar="S",
            help="held-out (default where metadata.jsonl has any), training or all.",
            autocompletion=_completes(*_SPLITS),
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="PATTERN", help="Only such names; may be repeated."),
    ] = None,
    short_side: Annotated[
        int, typer.Option("--short-side", metavar="N", help="Reduce photos to this short side.")
    ] = 384,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="embedded, a diffusers folder, a .safetensors file or a hub id.",
            autocompletion=_model_names,
        ),
    ] = "embedded",
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="D", help=", ".join(DEVICES), autocompletion=_completes(*DEVICES)
        ),
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype", metavar="D", help=", ".join(DTYPES), autocompletion=_completes(*DTYPES)
        ),
    ] = "auto",
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="METHOD.KEY=VALUE", help="A setting of one of the methods."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Harmonization against a known truth: objects of photos, disturbed on purpose.

    Writes harmony.json, harmony.md, cases.csv and sheet.png.
    """
    options.one_of(device, DEVICES, "--device")
    options.one_of(dtype, DTYPES, "--dtype")
    if split is not None:
        options.one_of(split, _SPLITS, "--split")
    for name, value in (("--cases", cases), ("--short-side", short_side)):
        if value < 1:
            raise InputError(f"{name} is {value}; expected a whole number of at least 1.")
    variants = _variants(methods, sets or [])

    from inlay.cli.outputs import made_folder
    from inlay.cli.progress import listening
    from inlay.composer import Composer
    from inlay.evaluation.harmony import run_harmony
    from inlay.evaluation.photos import find_photos
    from inlay.evaluation.tables import as_dict, write_report

    photos = find_photos(folders, split, include or [])
    composer = Composer(model, device=device, dtype=dtype)
    with made_folder(output) as folder, listening(quiet=quiet, bar=not json) as listener:
        listener.label = "harmonizing"
        report = run_harmony(
            photos,
            variants,
            count=cases,
            seed=seed,
            harmless=harmless,
            short_side=short_side,
            composer=composer,
            progress=listener.step,
        )
        report.settings |= {
            "folders": folders,
            "split": split,
            "include": include or [],
            "photos": len(photos),
            "model": model,
        }
        written = write_report(report, folder)
    if json:
        import json as encoder

        print(encoder.dumps(as_dict(report), allow_nan=False, indent=1))
    elif not quiet:
        _print(report)
        for path in written:
            typer.echo(str(path))


def _variants(text: str, sets: Sequence[str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Read --methods and --set; the text of each variant is its label."""
    from inlay import methods
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
