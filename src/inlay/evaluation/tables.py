"""A report of the harmonization benchmark as tables, files and a contact sheet."""

from __future__ import annotations

import io
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from operator import methodcaller
from pathlib import Path
from typing import Any

from PIL import Image

from inlay.errors import __version__
from inlay.evaluation.harmony import PASTE, Report, summary
from inlay.pictures.sheet import contact_sheet
from inlay.pictures.write import replace_file
from inlay.training.disturb import KINDS

# Header, key of the row, format.
COLUMNS = (
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

_CELL = 200


def as_dict(report: Report) -> dict[str, Any]:
    """Everything that was found, for harmony.json."""
    return {
        "inlay": __version__,
        "benchmark": "harmony",
        "settings": report.settings,
        "versions": _versions(),
        "methods": report.methods,
        "overall": summary(report),
        "by_kind": {kind: summary(report, kind) for kind in KINDS},
        "cases": report.cases,
        "harm": report.harm,
    }


def _versions() -> dict[str, str]:
    names = ("numpy", "opencv-python-headless", "scikit-image", "pillow", "torch", "diffusers")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The rows of a summary as text, in the order of COLUMNS; "-" where there is no figure."""
    return [
        ["-" if row[key] is None else form.format(row[key]) for _, key, form in COLUMNS]
        for row in rows
    ]


def kind_cells(report: Report) -> list[list[str]]:
    """For each method, fPSNR and the share of improved cases by kind; the kinds head the rest."""
    table = [[label] for label in report.methods]
    for kind in KINDS:
        rows = summary(report, kind)
        texts = [f"{row['fpsnr']:.2f} ({row['improved']:.0%})" for row in rows]
        for line, text in zip(table, texts or ["-"] * len(table), strict=True):
            line.append(text)
    return table


def markdown(report: Report) -> str:
    """The tables as Markdown, with what one must know to read them."""
    settings = report.settings
    models = {
        f"{model['name']} ({model['hash'][:12]})"
        for about in report.methods.values()
        if (model := about["model"]) is not None
    }
    lines = [
        "# Harmonization against a known truth",
        "",
        f"inlay {__version__}, {len(report.cases)} cases, seed {settings['seed']}, short side "
        f"{settings['short_side']} pixels, model {', '.join(sorted(models)) or 'none needed'}. "
        f"Harm is measured on {len(report.harm)} untouched photographs.",
        "",
        *_table([header for header, _, _ in COLUMNS], cells(summary(report))),
        "",
        "fPSNR in dB, and the share of improved cases, by kind of disturbance:",
        "",
        *_table(["method", *KINDS], kind_cells(report)),
    ]
    return "\n".join(lines) + "\n"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [list(headers), ["---", *["---:"] * (len(headers) - 1)]]
    lines += [[text.replace("|", "\\|") for text in row] for row in rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def sheet(report: Report) -> Image.Image:
    """Best, median and worst case of each method by its gain in dB over paste, one row each."""
    pictures, labels = [], []
    for label in [label for label in report.methods if label != PASTE] or [PASTE]:
        ranked = sorted(range(len(report.cases)), key=lambda i: -_rank(report.cases[i], label))
        for word, place in (("best", 0), ("median", len(ranked) // 2), ("worst", -1)):
            case, views = report.cases[ranked[place]], report.views[ranked[place]]
            found = {n: f"{n} {f['fpsnr']:.1f} dB" for n, f in case["results"].items()}
            captions = {
                "truth": f"{label} {word}: {case['file']}",
                "mask": f"case {case['number']}: {case['kind']}",
                **found,
            }
            for name, caption in captions.items():
                with Image.open(io.BytesIO(views[name])) as view:
                    pictures.append(view.convert("RGB"))
                labels.append(caption)
    return contact_sheet(pictures, labels, columns=2 + len(report.methods), cell=_CELL)


def _rank(case: Mapping[str, Any], label: str) -> float:
    found = case["results"]
    base = 0.0 if label == PASTE else found[PASTE]["fpsnr"]
    return float(found[label]["fpsnr"] - base)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write harmony.json, harmony.md and sheet.png into a folder that is there.

    Each file appears whole or not at all; those of an earlier run are replaced. Raises InputError
    where one cannot be written.
    """
    picture = io.BytesIO()
    sheet(report).save(picture, format="PNG")
    files = {
        "sheet.png": picture.getvalue(),
        "harmony.md": markdown(report).encode(),
        "harmony.json": (json.dumps(as_dict(report), allow_nan=False, indent=1) + "\n").encode(),
    }
    for name, data in files.items():
        replace_file(folder / name, methodcaller("write", data))
    return [folder / name for name in files]
