"""Scores as tables in Markdown, LaTeX and CSV: means, intervals, wins, what was published."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inlay.errors import __version__
from inlay.evaluation.benchmark import Report, summary
from inlay.pictures.arrays import Box, bounds
from inlay.pictures.sheet import contact_sheet
from inlay.pictures.write import replace_file

_PACKAGES = ("numpy", "scikit-image", "pillow", "torch", "diffusers")
# What of a score's row is no figure.
FACTS = ("pair", "category", "method", "sample", "picture", "seconds")
# Of a bootstrap: how often, and what lies outside the interval on either side.
_RESAMPLES, _TAIL = 2000, 0.025
_PUBLISHED = Path(__file__).with_name("published.json")
_LATEX = str.maketrans(
    {sign: rf"\{sign}" for sign in "&%$#_{}"}
    | {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$", "Δ": r"$\Delta$", "–": "--"}
)

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """A title, headers, rows of text of which the first `own` are ours, and notes below."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    own: int = 10_000
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """Under its title, the first column to the left and all others to the right."""
        cells = [self.headers, ["---", *["---:"] * (len(self.headers) - 1)], *self.rows]
        lines = [
            f"| {' | '.join(text.replace('|', chr(92) + '|') for text in row)} |" for row in cells
        ]
        return "\n".join([f"{self.title}:\n", *lines, *(f"\n{note}" for note in self.notes)]) + "\n"

    def latex(self) -> str:
        r"""A tabular for booktabs; what was published stands below a \midrule."""
        head, *lines = (
            " & ".join(text.translate(_LATEX) for text in row) + r" \\"
            for row in (self.headers, *self.rows)
        )
        if self.own < len(lines):
            lines.insert(self.own, r"\midrule")
        notes = [f"% {note}" for note in (self.title, *self.notes)]
        columns = "l" + "r" * (len(self.headers) - 1)
        begin = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule"]
        return "\n".join([*notes, *begin, *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def csv(self) -> str:
        """Headers and rows, commas between them."""
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([self.headers, *self.rows])
        return file.getvalue()


def interval(values: Values, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of the mean of some values by a percentile bootstrap (Efron 1979): that of
    2,000 samples of them with replacement. NaN where there are fewer than two.
    """
    if len(values) < 2:
        return np.nan, np.nan
    drawn = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [_TAIL, 1 - _TAIL])
    return float(low), float(high)


@dataclass(frozen=True)
class Board:
    """The scores of methods, pair by pair: {figure: {method: value by pair}}, NaN where there is
    none; the mean over the samples of a pair. `higher` says of each figure whether more is better.
    """

    pairs: Sequence[str]
    values: Mapping[str, Mapping[str, Values]]
    higher: Mapping[str, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, scores: Sequence[Mapping[str, Any]], higher: Mapping[str, bool]) -> Board:
        """From the rows of a Bench's scores."""
        pairs, labels = (list(dict.fromkeys(s[key] for s in scores)) for key in ("pair", "method"))
        samples: dict[tuple[str, str, str], list[float]] = {}
        for score in scores:
            for name in score.keys() - set(FACTS):
                key = (name, score["method"], score["pair"])
                samples.setdefault(key, []).append(float(score[name]))
        names = [n for n in dict.fromkeys(n for s in scores for n in s) if n not in FACTS]
        means = {key: float(np.mean(found)) for key, found in samples.items()}
        values = {
            name: {
                label: np.array([means.get((name, label, pair), np.nan) for pair in pairs])
                for label in labels
            }
            for name in names
        }
        return cls(pairs, values, {name: higher.get(name, True) for name in names})

    def means(self) -> list[dict[str, Any]]:
        """For each method: method, pairs, and of each figure mean, low and high."""
        rows = []
        for label in next(iter(self.values.values()), {}):
            row: dict[str, Any] = {"method": label}
            for name, by in self.values.items():
                found = by[label][~np.isnan(by[label])]
                row["pairs"] = max(row.get("pairs", 0), len(found))
                mean = float(found.mean()) if len(found) else np.nan
                row[name] = (mean, *interval(found))
            rows.append(row)
        return rows

    def wins(self, name: str, one: str, other: str) -> float:
        """The share of pairs on which one method is better than another; half of a tie counts."""
        better = self.values[name][one] - self.values[name][other]
        better = np.sign(better[~np.isnan(better)]) * (1 if self.higher[name] else -1)
        return float((better.mean() + 1) / 2) if len(better) else np.nan

    def tables(self, published: Sequence[Mapping[str, Any]] = (), title: str = "") -> list[Table]:
        """Means with 95% intervals, ours before what was published; wins over all other methods."""
        names = list(self.values)
        heads = [f"{name} {'↑' if self.higher[name] else '↓'}" for name in names]
        rows = [
            [row["method"], str(row["pairs"]), *(_mean(*row[name]) for name in names)]
            for row in self.means()
        ]
        own, notes = len(rows), [f"Means over {len(self.pairs)} pairs, 95% bootstrap intervals."]
        for each in published:
            for label, figures in each["rows"].items():
                known = dict(zip(each["metrics"], figures, strict=True))
                texts = [f"{known[n]:.4g}" if known.get(n) is not None else "–" for n in names]
                rows.append([f"{label} (published)", str(each.get("pairs", "–")), *texts])
            notes.append(f"Published: {each['source']}.")
        found = [Table(title or "Scores", ["method", "pairs", *heads], rows, own, notes)]
        labels = list(next(iter(self.values.values()), {}))
        if len(labels) > 1:
            shares = [
                [np.nanmean([self.wins(n, label, o) for o in labels if o != label]) for n in names]
                for label in labels
            ]
            texts = [
                [label, *(f"{s:.0%}" for s in own)]
                for label, own in zip(labels, shares, strict=True)
            ]
            found.append(
                Table(
                    "Wins, the mean share of pairs over each other method",
                    ["method", *heads],
                    texts,
                )
            )
        return found


def _mean(mean: float, low: float, high: float) -> str:
    return "–" if np.isnan(mean) else f"{_short(mean)} [{_short(low)}, {_short(high)}]"


def _short(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"


def published(**told: str) -> list[dict[str, Any]]:
    """The rows that papers published under a protocol on a data set, by protocol, dataset and, of
    its tables, ablation; never those of another protocol.
    """
    found: list[dict[str, Any]] = json.loads(_PUBLISHED.read_text(encoding="utf-8"))
    keys = ("protocol", "dataset", "ablation")
    return [each for each in found if all(each.get(key) == told.get(key) for key in keys)]


def write_tables(folder: Path, name: str, tables: Sequence[Table], head: str = "") -> list[Path]:
    """Write tables as NAME.md, NAME.tex and, of the first, NAME.csv; returns the files."""
    files = {
        f"{name}.md": head + "\n".join(table.markdown() for table in tables),
        f"{name}.tex": "\n".join(table.latex() for table in tables),
        f"{name}.csv": tables[0].csv() if tables else "",
    }
    for file, text in files.items():
        replace_file(folder / file, methodcaller("write", text.encode()))
    return [folder / file for file in files]


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


def truth_tables(report: Report) -> list[Table]:
    """All cases, and by kind; "-" where there is no figure."""
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
    heading = f"{what[0].upper()}{what[1:]}, and the share of improved cases, by "
    return [
        Table("All cases", [header for header, _, _ in columns], overall),
        Table(heading + report.benchmark.nouns[2], ["method", *kinds], by_kind),
    ]


def truth_head(report: Report) -> str:
    """What one must know to read the tables."""
    settings, (sources, untouched, _) = report.settings, report.benchmark.nouns
    models = {
        f"{model['name']} ({model['hash'][:12]})"
        for about in report.methods.values()
        if (model := about["model"]) is not None
    }
    return (
        f"# {report.benchmark.title}\n\n"
        f"inlay {__version__}, {len(report.cases)} cases of {settings[sources]} {sources}, seed "
        f"{settings['seed']}, short side {settings['short_side']} pixels, model "
        f"{', '.join(sorted(models)) or 'none needed'}. "
        f"Harm is measured on {len(report.harm)} untouched {untouched}.\n\n"
    )


def sheet(report: Report) -> Image.Image:
    """Best, median and worst case of each method by its gain in dB over the plain one: the object
    and a little round it, or all where the surroundings are to change.
    """
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
            whole = Image.open(views["mask"])
            box = bounds(np.asarray(whole)) or Box.of_size(whole.size)
            near = box.grown(max(box.width, box.height) // 3 + 8).intersect(Box.of_size(whole.size))
            if report.benchmark.blank["verb"] == "compose" or near is None:
                near = Box.of_size(whole.size)
            for name, caption in captions.items():
                with Image.open(views[name]) as view:
                    part = view.convert("RGB").crop((near.x, near.y, near.right, near.bottom))
                pictures.append(part)
                labels.append(caption)
    return contact_sheet(pictures, labels, columns=2 + len(report.methods), cell=200)


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write NAME.json, tables as NAME.md, .tex and .csv (of the benchmark), and sheet.png into a
    folder that is there.

    Each file appears whole or not at all; those of an earlier run are replaced. Raises InputError
    where one cannot be written.
    """
    picture, name = io.BytesIO(), report.benchmark.name
    sheet(report).save(picture, format="PNG")
    files = {
        "sheet.png": picture.getvalue(),
        f"{name}.json": (json.dumps(as_dict(report), allow_nan=False, indent=1) + "\n").encode(),
    }
    for file, data in files.items():
        replace_file(folder / file, methodcaller("write", data))
    written = write_tables(folder, name, truth_tables(report), truth_head(report))
    return [*written, *(folder / file for file in files)]
