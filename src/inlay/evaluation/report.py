"""What a benchmark found, as files: a page with pictures, tables, a contact sheet, all scores."""

from __future__ import annotations

import base64
import io
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from inlay.errors import InputError, __version__
from inlay.evaluation.bench import Bench, Scores
from inlay.evaluation.benchmark import LOWER, Report, summary
from inlay.evaluation.metrics import Metric
from inlay.evaluation.pairs import Pair
from inlay.evaluation.protocols import photo
from inlay.evaluation.tables import FACTS, Board, Table, published, write_tables
from inlay.pictures.arrays import Box, bounds
from inlay.pictures.sheet import contact_sheet
from inlay.pictures.write import replace_file

# Of a page: the pairs that are shown at most, the bytes of all pictures, their longest side, and
# the qualities that are tried.
_SHOWN, _BYTES, _SIDE, _QUALITIES = 200, 20_000_000, 420, (88, 78, 65, 50, 35, 20)
_log = logging.getLogger("inlay")
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
    """Write NAME.json, tables as NAME.md, .tex and .csv (of the benchmark), sheet.png, report.html
    and scores.parquet into a folder that is there.

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
    tables = truth_tables(report)
    written = write_tables(folder, name, tables, truth_head(report))
    written += _write_parquet(folder / "scores.parquet", report.scores, report.settings)
    names = {pair.name for pair in report.pairs if not pair.undisturbed}
    disturbed = [score for score in report.scores if score["pair"] in names]
    board = Board.of(disturbed, dict.fromkeys(LOWER, False))
    page, title = folder / "report.html", report.benchmark.title
    _write_page(page, title, tables, report.pairs, disturbed, board, [])
    return [page, *written, *(folder / file for file in files)]


def write_results(
    bench: Bench, scores: Scores, metrics: Sequence[Metric], about: Mapping[str, Any]
) -> tuple[list[Table], list[Path]]:
    """The tables of a benchmark, and the files that it leaves: tables.md, .tex and .csv,
    scores.parquet and report.html. What was published stands beside it where dataset, protocol and
    ablation are the same.
    """
    protocols = list(dict.fromkeys(metric.protocol for metric in metrics))
    higher = {
        f"{metric.name}{end}": metric.higher_is_better
        for metric in metrics
        for end in ("", f" · {metric.protocol}")
    }
    keys = {"protocol": about["protocol"], "dataset": about["benchmark"]}
    keys |= {"ablation": about["ablation"]} if "ablation" in about else {}
    board = Board.of(scores, higher)
    known = [
        each
        for each in published(**keys)
        if all(pair.name.startswith(each.get("only", "")) for pair in bench.pairs)
    ]
    tables = board.tables(f"{about['title']}, protocol {about['protocol']}", known)
    for other in protocols[1:]:
        tables += board.tables(f"{about['title']}, protocol {other}", of=other)
    missing = [metric for metric in metrics if metric.reason]
    bench.problems += [f"{each.name} of {each.protocol}: {each.reason}" for each in missing]
    if missing:
        names = ", ".join(each.name for each in missing)
        note = f"Not measured: {names}; the reasons stand in report.html."
        tables[0] = replace(tables[0], notes=[*tables[0].notes, note])
    written = write_tables(bench.out, "tables", tables, f"# {about['title']}\n\n")
    written += _write_parquet(bench.out / "scores.parquet", scores, about)
    title = f"{about['title']} · {about['protocol']}"
    _write_pairs(bench.out / "pairs.jsonl", bench)
    page = bench.out / "report.html"
    _write_page(page, title, tables, bench.pairs, scores, board, bench.problems)
    return tables, [page, *written]


def _write_parquet(path: Path, scores: Scores, about: Mapping[str, Any]) -> list[Path]:
    """Every score, a row a picture; what the benchmark was is in the table's metadata. Without
    pyarrow there is no such file.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        _log.warning("pyarrow is not installed, so that no %s is written", path.name)
        return []
    columns = list(dict.fromkeys(key for score in scores for key in score))
    data = {key: [score.get(key) for score in scores] for key in columns}
    table = pyarrow.table(data).replace_schema_metadata({"inlay": json.dumps(dict(about))})
    replace_file(path, partial(parquet.write_table, table))
    return [path]


def _write_pairs(path: Path, bench: Bench) -> None:
    """The pairs with the first picture of each method, for a study."""
    lines = []
    for pair in bench.pairs:
        told: dict[str, Any] = {"name": pair.name, "background": str(pair.background.absolute())}
        told["box"] = [pair.box.x, pair.box.y, pair.box.width, pair.box.height]
        told["references"] = [str(each.absolute()) for each in pair.references]
        files = {label: bench.files.get((label, pair.name), ([],))[0] for label in bench.labels}
        told["pictures"] = {label: own[0] for label, own in files.items() if own}
        lines.append(json.dumps(told) + "\n")
    replace_file(path, methodcaller("write", "".join(lines).encode()))


def _write_page(
    path: Path,
    title: str,
    tables: Sequence[Table],
    pairs: Sequence[Pair],
    scores: Scores,
    board: Board,
    problems: Sequence[str],
) -> None:
    """One page with everything in it: it asks nothing of any server. Of more than 200 pairs those
    are shown that are worst by the first figure.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    first: dict[str, dict[str, Mapping[str, Any]]] = {}
    for score in scores:
        first.setdefault(score["pair"], {}).setdefault(score["method"], score)
    named = {pair.name: pair for pair in pairs}
    name = next(iter(board.values), None)
    ranks = np.nanmean([*board.values[name].values()], axis=0) if name else np.zeros(len(first))
    worst = np.argsort(ranks if name is None or board.higher[name] else -ranks)[:_SHOWN]
    chosen = [named[board.pairs[number]] for number in sorted(worst)] if name else []
    count = sum(2 + len(pair.references[:1]) + len(first[pair.name]) for pair in chosen)
    cards, figures = [], []
    for pair in chosen:
        own = first[pair.name]
        shots: list[tuple[str, Path, str | None]] = [("background", pair.background, None)]
        shots += [("object", photo, None) for photo in pair.references[:1]]
        shots += [("truth", pair.truth, None)] if pair.truth else []
        shots += [(label, Path(score["picture"]), label) for label, score in own.items()]
        most = _BYTES // max(count, 1)
        made = [each for shot in shots if (each := _shot(pair, *shot, most=most))]
        cards.append({"name": pair.name, "category": pair.category, "shots": made})
        figures.append(
            {
                label: {k: v for k, v in score.items() if k not in FACTS and np.isfinite(v)}
                for label, score in own.items()
            }
        )
    labels = list(dict.fromkeys(score["method"] for score in scores))
    data = json.dumps({"higher": dict(board.higher), "scores": figures}).replace("<", "\\u003c")
    environment = Environment(autoescape=True)
    template = environment.from_string(Path(__file__).with_name("report.html").read_text("utf-8"))
    text = template.render(
        title=title,
        lead=f"{len(pairs)} pairs, {len(labels)} methods, inlay {__version__}. Choose a picture to "
        "compare it with its background.",
        tables=tables, plots=_plots(board), problems=problems, cards=cards, labels=labels,
        higher=board.higher, data=Markup(data),
    )  # fmt: skip
    replace_file(path, methodcaller("write", text.encode()))


def _shot(pair: Pair, label: str, file: Path, method: str | None, most: int) -> dict[str, Any]:
    """A picture of a page, of `most` bytes at most as far as JPEG can; of a background with the
    box, in percent. Nothing where it cannot be read.
    """
    try:
        small = photo(file).copy()
    except InputError:
        return {}
    whole = small.size
    side = min(_SIDE, max(96, int((most * 6) ** 0.5)))
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= most:
            break
    shot: dict[str, Any] = {"label": label, "method": method, "size": small.size}
    if label == "background":
        box, (width, height) = pair.box, whole
        shares = (box.x / width, box.y / height, box.width / width, box.height / height)
        shot["box"] = [round(100 * share, 2) for share in shares]
    return shot | {"data": base64.b64encode(buffer.getvalue()).decode()}


def _plots(board: Board) -> list[dict[str, Any]]:
    """For each figure the methods' means and intervals, as places in a drawing 330 wide."""
    plots, means = [], board.means()
    for name in board.values:
        rows = [(row["method"], *row[name]) for row in means if not np.isnan(row[name][0])]
        if not rows:
            continue
        ends = [value for _, *own in rows for value in own if not np.isnan(value)]
        low, high = min(ends), max(ends)
        if high - low < 1e-9:
            # Nothing to be seen.
            continue
        span = high - low

        def place(value: float, low: float = low, span: float = span) -> float:
            return round(130 + 185 * (value - low) / span, 1)

        arrow = "↑" if board.higher[name] else "↓"
        shown = [
            {"label": label, "mean": place(mean), "text": f"{mean:.4g}"}
            | {"low": place(mean if np.isnan(least) else least)}
            | {"high": place(mean if np.isnan(most) else most)}
            for label, mean, least, most in rows
        ]
        digits = min(6, max(3, int(2 - np.log10(span / max(abs(low), abs(high))))))
        values = (low, low + span / 2, high)
        form = f".{digits}g" if max(map(abs, values)) < 1000 else ".0f"
        ticks = [(place(value), format(value, form)) for value in values]
        plots.append({"name": f"{name} {arrow}", "rows": shown, "ticks": ticks})
    return plots
