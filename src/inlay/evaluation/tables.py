"""A report of a benchmark as tables, files and a contact sheet."""

from __future__ import annotations

import io
import json
import platform
from importlib.metadata import version
from operator import methodcaller
from pathlib import Path
from typing import Any

from PIL import Image

from inlay.errors import __version__
from inlay.evaluation.benchmark import Report, summary
from inlay.pictures.sheet import contact_sheet
from inlay.pictures.write import replace_file

_PACKAGES = ("numpy", "scikit-image", "pillow", "torch", "diffusers")


def as_dict(report: Report) -> dict[str, Any]:
    """Everything that was found, for the JSON file."""
    import cv2

    versions = {"python": platform.python_version(), "opencv": cv2.__version__}
    versions |= {name: version(name) for name in _PACKAGES}
    return {
        "inlay": __version__,
        "benchmark": report.benchmark.name,
        "settings": report.settings,
        "versions": versions,
        "methods": report.methods,
        "overall": summary(report),
        "by_kind": {kind: summary(report, kind) for kind in report.benchmark.kinds},
        "cases": report.cases,
        "harm": report.harm,
    }


def tables(report: Report) -> list[tuple[str, list[str], list[list[str]]]]:
    """Heading, headers and rows of each table; "-" where there is no figure."""
    columns, kinds = report.benchmark.columns, report.benchmark.kinds
    figure, what = report.benchmark.told
    overall = [
        ["-" if row[key] is None else form.format(row[key]) for _, key, form in columns]
        for row in summary(report)
    ]
    by_kind = [[label] for label in report.methods]
    for kind in kinds:
        rows = summary(report, kind)
        texts = [f"{row[figure]:.2f} ({row['improved']:.0%})" for row in rows]
        for line, text in zip(by_kind, texts or ["-"] * len(by_kind), strict=True):
            line.append(text)
    heading = f"{what}, and the share of improved cases, by {report.benchmark.nouns[2]}"
    return [
        ("all cases", [header for header, _, _ in columns], overall),
        (heading, ["method", *kinds], by_kind),
    ]


def markdown(report: Report) -> str:
    """The tables as Markdown, with what one must know to read them."""
    settings, (sources, untouched, _) = report.settings, report.benchmark.nouns
    models = {
        f"{model['name']} ({model['hash'][:12]})"
        for about in report.methods.values()
        if (model := about["model"]) is not None
    }
    lines = [
        f"# {report.benchmark.title}\n",
        f"inlay {__version__}, {len(report.cases)} cases of {settings[sources]} {sources}, seed "
        f"{settings['seed']}, short side {settings['short_side']} pixels, model "
        f"{', '.join(sorted(models)) or 'none needed'}. "
        f"Harm is measured on {len(report.harm)} untouched {untouched}.",
    ]
    for heading, headers, rows in tables(report):
        cells = [headers, ["---", *["---:"] * (len(headers) - 1)]]
        cells += [[text.replace("|", "\\|") for text in row] for row in rows]
        lines += [f"\n{heading[0].upper()}{heading[1:]}:\n"]
        lines += [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join(lines) + "\n"


def sheet(report: Report) -> Image.Image:
    """Best, median and worst case of each method by its gain in dB over the plain one."""
    pictures, labels, rank = [], [], report.benchmark.rank
    plain = report.benchmark.base
    for label in [label for label in report.methods if label != plain] or [plain]:
        found = [case["results"] for case in report.cases]
        base = [0.0 if label == plain else each[plain][rank] for each in found]
        ranked = sorted(range(len(found)), key=lambda i: base[i] - found[i][label][rank])
        for word, place in (("best", 0), ("median", len(ranked) // 2), ("worst", -1)):
            case, views = report.cases[ranked[place]], report.views[ranked[place]]
            captions = {
                "truth": f"{label} {word}: {case['file']}",
                "mask": f"case {case['number']}: {case['kind']}",
                **{n: f"{n} {f[rank]:.1f} dB" for n, f in case["results"].items()},
            }
            for name, caption in captions.items():
                with Image.open(io.BytesIO(views[name])) as view:
                    pictures.append(view.convert("RGB"))
                labels.append(caption)
    return contact_sheet(pictures, labels, columns=2 + len(report.methods), cell=200)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write NAME.json, NAME.md (of the benchmark) and sheet.png into a folder that is there.

    Each file appears whole or not at all; those of an earlier run are replaced. Raises InputError
    where one cannot be written.
    """
    picture, name = io.BytesIO(), report.benchmark.name
    sheet(report).save(picture, format="PNG")
    files = {
        "sheet.png": picture.getvalue(),
        f"{name}.md": markdown(report).encode(),
        f"{name}.json": (json.dumps(as_dict(report), allow_nan=False, indent=1) + "\n").encode(),
    }
    for file, data in files.items():
        replace_file(folder / file, methodcaller("write", data))
    return [folder / file for file in files]
