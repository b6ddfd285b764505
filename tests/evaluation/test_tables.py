"""Tables of scores: averages in their order, intervals, wins, what was published beside them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from inlay.evaluation.tables import Board, Kept, Table, interval, published, write_tables


def scores() -> list[dict[str, object]]:
    """Two pairs: one with two samples of `a`; `b` has no figure of the second."""
    base = {"category": "cup", "picture": "x.png", "seconds": 1.0}
    return [
        {**base, "pair": "p", "method": "a", "sample": 0, "ssim": 0.2, "lpips": 0.4},
        {**base, "pair": "p", "method": "a", "sample": 1, "ssim": 0.4, "lpips": 0.2},
        {**base, "pair": "p", "method": "b", "sample": 0, "ssim": 0.5, "lpips": 0.5},
        {**base, "pair": "q", "method": "a", "sample": 0, "ssim": 0.9, "lpips": 0.1},
        {**base, "pair": "q", "method": "b", "sample": 0, "ssim": 0.9},
    ]


def test_samples_are_averaged_before_pairs() -> None:
    board = Board.of(scores(), {"ssim": True, "lpips": False})
    one, other = board.means()
    # Not the mean of all three pictures, 0.5.
    assert one["ssim"][0] == pytest.approx((0.3 + 0.9) / 2) and one["pairs"] == 2
    assert other["lpips"][0] == 0.5 and np.isnan(other["lpips"][1])
    # A tie is half a win; where one has no figure the pair does not count.
    assert board.wins("ssim", "a", "b") == pytest.approx((0 + 0.5) / 2)
    assert board.wins("lpips", "a", "b") == 1 and board.wins("lpips", "b", "a") == 0


def test_intervals_are_those_of_a_slow_bootstrap() -> None:
    values = np.random.default_rng(1).normal(3, 2, 40)
    rng, means = np.random.default_rng(7), []
    for row in rng.integers(40, size=(2000, 40)):
        means.append(sum(values[number] for number in row) / 40)
    means.sort()
    low, high = interval(values, seed=7)
    assert low == pytest.approx(np.quantile(means, 0.025))
    assert high == pytest.approx(np.quantile(means, 0.975))
    # About 1.96 standard errors to either side.
    assert high - low == pytest.approx(3.92 * values.std() / 40**0.5, rel=0.15)
    assert interval(np.full(9, 2.0)) == (2, 2)


def test_only_the_same_protocol_is_put_beside_ours() -> None:
    (ours,) = published(dataset="murecom", protocol="dreamcom")
    assert ours["rows"]["DreamCom"] == [0.584, 0.778, 0.174, 0.731]
    assert published(dataset="murecom", protocol="bcmi") == []
    assert published(dataset="dreameditbench", protocol="shine") == []
    (shine,) = published(dataset="shine-dreameditbench", protocol="shine")
    assert dict(zip(shine["metrics"], shine["rows"]["DreamCom"], strict=True))["lpips"] == 0.02
    (attention,) = published(dataset="murecom", protocol="dreamcom", ablation="dreamcom-attention")
    assert attention["rows"]["-Both"] == [0.546, 0.764]
    board = Board.of(scores(), {"lpips": False})
    table, wins = board.tables("cups", [ours])
    assert table.headers == ["method", "pairs", "ssim ↑", "lpips ↓"] and table.own == 2
    assert table.rows[-1] == ["DreamCom (published)", "1920", "0.731", "0.174"]
    assert "arXiv 2309.15508" in table.notes[1] and wins.rows[0] == ["a", "25%", "100%"]


def test_one_table_in_three_forms(tmp_path: Path) -> None:
    rows = [["a|b & c_d", "1.00"], ['say "x", y', "50%"]]
    table = Table("Scores", ["method", "ssim ↑"], rows, own=1, notes=["A note."])
    written = write_tables(tmp_path, "tables", [table])
    assert [path.name for path in written] == ["tables.md", "tables.tex", "tables.csv"]
    text = (tmp_path / "tables.md").read_text()
    assert "| a\\|b & c_d | 1.00 |" in text and "| --- | ---: |" in text and "A note." in text
    latex = (tmp_path / "tables.tex").read_text().splitlines()
    assert r"method & ssim $\uparrow$ \\" in latex and r"a|b \& c\_d & 1.00 \\" in latex
    assert latex[latex.index(r"a|b \& c\_d & 1.00 \\") + 1] == r"\midrule"
    read = list(csv.reader(io.StringIO((tmp_path / "tables.csv").read_text())))
    assert read == [["method", "ssim ↑"], *rows]


def test_scores_are_found_once_and_outlive_a_cut_line(tmp_path: Path) -> None:
    path, calls = tmp_path / "scores.jsonl", list[str]()

    def find(name: str) -> dict[str, float]:
        calls.append(name)
        return {"ssim": 1 / 3}

    for _ in range(2):
        kept = Kept(path)
        for name in ("one", "two"):
            assert kept.values([name], lambda name=name: find(name)) == {"ssim": 1 / 3}
        kept.close()
    assert calls == ["one", "two"]
    path.write_text(path.read_text()[:-30])
    for _ in range(2):
        kept = Kept(path)
        assert kept.values(["two"], lambda: find("again")) == {"ssim": 1 / 3}
        kept.close()
    assert calls == ["one", "two", "again"]


def test_damaged_lines_cost_their_own_values_alone(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    kept = Kept(file)
    kept.values("a", lambda: {"x": 1.0})
    kept.close()
    file.write_bytes(b'null\n{"key": 3}\n\xff\xfe\n' + file.read_bytes() + b'{"key": "')
    kept = Kept(file)
    assert kept.values("b", lambda: {"x": 2.0}) == {"x": 2.0}
    assert kept.values("a", lambda: {"x": 3.0}) == {"x": 1.0}
    kept.close()
    kept = Kept(file)
    assert kept.values("b", lambda: {"x": 3.0}) == {"x": 2.0}
    kept.close()
