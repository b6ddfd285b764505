"""Scores as tables in Markdown, LaTeX and CSV: means, intervals, wins, what was published."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import methodcaller
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inlay.pictures.write import replace_file

# What of a score's row is no figure.
FACTS = ("pair", "category", "method", "sample", "picture", "seconds")
# Of a bootstrap: how often, and what lies outside the interval on either side.
_RESAMPLES, _TAIL = 2000, 0.025
_TIE = 1e-4
_PUBLISHED = Path(__file__).with_name("published.json")
_LATEX = str.maketrans(
    {sign: rf"\{sign}" for sign in "&%$#_{}"}
    | {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$", "Δ": r"$\Delta$", "–": "--"}
)

Values = NDArray[np.float64]


class Kept:
    """Values in a file of lines, which grows as they come, so that none is found twice; several
    threads may ask for them.
    """

    def __init__(self, path: Path) -> None:
        self._known, self._lock = dict[str, dict[str, float]](), Lock()
        if path.exists():
            for line in path.read_bytes().splitlines():
                # One may be cut or damaged.
                with suppress(ValueError, KeyError, TypeError):
                    told = json.loads(line)
                    self._known[told["key"]] = told["values"]
        self._file = path.open("a")
        # After a line that was cut.
        self._file.write("\n" if self._file.tell() else "")

    def values(self, key: Any, find: Callable[[], dict[str, float]]) -> dict[str, float]:
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        if digest not in self._known:
            values = find()
            with self._lock:
                self._known[digest] = values
                self._file.write(json.dumps({"key": digest, "values": values}) + "\n")
                self._file.flush()
        return self._known[digest]

    def close(self) -> None:
        self._file.close()


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
    methods: Sequence[str]
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
        return cls(pairs, labels, values, {name: higher.get(name, True) for name in names})

    def means(self) -> list[dict[str, Any]]:
        """For each method: method, pairs, and of each figure mean, low and high."""
        rows = []
        for label in self.methods:
            row: dict[str, Any] = {"method": label, "pairs": 0}
            for name, by in self.values.items():
                found = by[label][~np.isnan(by[label])]
                row["pairs"] = max(row["pairs"], len(found))
                mean = float(found.mean()) if len(found) else np.nan
                row[name] = (mean, *interval(found))
            rows.append(row)
        return rows

    def wins(self, name: str, one: str, other: str) -> float:
        """The share of pairs on which one method is better than another; half of a tie counts,
        which is a difference that no table would show.
        """
        better = self.values[name][one] - self.values[name][other]
        better = np.where(np.abs(better) < _TIE, 0, better)[~np.isnan(better)]
        better = np.sign(better) * (1 if self.higher[name] else -1)
        return float((better.mean() + 1) / 2) if len(better) else np.nan

    def tables(
        self, title: str, published: Sequence[Mapping[str, Any]] = (), of: str = ""
    ) -> list[Table]:
        """Means with 95% intervals, ours before what was published; wins over all other methods.
        of: the protocol, where it is not the first.
        """
        names = [name for name in self.values if name.endswith(of and f" · {of}")]
        names = names if of else [name for name in names if " · " not in name]
        heads = [
            f"{name.partition(' · ')[0]} {'↑' if self.higher[name] else '↓'}" for name in names
        ]
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
        found = [Table(title, ["method", "pairs", *heads], rows, own, notes)]
        labels = self.methods
        if names and len(labels) > 1:
            wins = list[list[str]]()
            for label in labels:
                others = [other for other in labels if other != label]
                shares = [np.nanmean([self.wins(n, label, o) for o in others]) for n in names]
                wins.append([label, *(f"{s:.0%}" if s == s else "–" for s in shares)])
            what = f"{title}: wins, as the mean share of pairs over each other method"
            more = [f"{head[:-1]}↑" for head in heads]
            found.append(Table(what, ["method", *more], wins))
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
