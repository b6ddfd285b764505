"""Benchmarks on data sets: what is made and scored, kills that lose nothing, other tools' work."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from evaluation import lookalikes
from inlay.cli import main
from inlay.errors import InputError
from inlay.evaluation.bench import ABLATIONS, Bench, Variant, read_ablation
from inlay.evaluation.datasets import open_dataset
from inlay.evaluation.metrics import Metric
from inlay.evaluation.pairs import Pair
from inlay.evaluation.report import write_results
from inlay.request import Request

PASTE = Variant("paste", {"name": "paste"}, {"shadow": "none"})
POISSON = Variant("poisson", {"name": "poisson"}, {"shadow": "none"})


@pytest.fixture(scope="module")
def murecom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories with two backgrounds and two objects each: eight pairs."""
    return lookalikes.murecom(tmp_path_factory.mktemp("data") / "murecom")


def change(pair: Pair, result: Image.Image) -> float:
    """The mean absolute difference from the background, in levels."""
    pictures = result, Image.open(pair.background)
    one, two = (np.asarray(each.convert("RGB"), float) for each in pictures)
    return float(np.abs(one - two).mean())


CHANGE = Metric("change", "test", "this file", False, None, change)
AWAY = Metric("DINO", "test", "this file", True, "its network is not there.")


def test_every_pair_is_made_and_scored(murecom: Path, tmp_path: Path) -> None:
    told = list[tuple[int, int]]()
    bench = Bench(
        open_dataset("murecom", murecom), [PASTE, POISSON], tmp_path, samples=2, seed=5,
        progress=lambda *at: told.append(at),
    )  # fmt: skip
    assert bench.write(lambda: None) == 0
    scores = bench.score([CHANGE, AWAY])
    assert len(scores) == 8 * 2 * 2 and told[-1] == (32, 32)
    assert [s["method"] for s in scores[:4]] == ["paste", "paste", "poisson", "poisson"]
    for score in scores[:2]:
        pair = next(pair for pair in bench.pairs if pair.name == score["pair"])
        order = pair.request.model_dump(mode="json")
        order |= {"method": "paste", "shadow": "none", "seed": 5 + score["sample"]}
        assert Request.of(order).model_dump()["background"] == str(pair.background)
        assert score["change"] == change(pair, Image.open(score["picture"]))
        assert score["picture"].endswith(f"paste/{pair.name}-seed={5 + score['sample']}.png")
    about = {"title": "cups", "benchmark": "murecom", "protocol": "test", "seed": 5}
    (table, wins), written = write_results(bench, scores, [CHANGE, AWAY], about)
    assert table.headers == ["method", "pairs", "change ↓"] and len(table.rows) == 2
    assert table.notes[-1].startswith("Not measured: DINO;")
    assert "DINO of test: its network is not there." in bench.problems
    assert [row[0] for row in wins.rows] == ["paste", "poisson"]
    rows = parquet.read_table(tmp_path / "scores.parquet")
    assert rows.to_pylist() == scores
    assert json.loads(rows.schema.metadata[b"inlay"])["seed"] == 5
    assert all(path.is_file() for path in written)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<article") == 8 and "http:" not in page and "https:" not in page


def test_only_what_is_chosen_is_run(murecom: Path, tmp_path: Path) -> None:
    bench = Bench(
        open_dataset("murecom", murecom), [PASTE], tmp_path,
        chosen=lambda pair: pair.category == "Cat", most=3,
    )  # fmt: skip
    bench.write(lambda: None)
    assert len(bench.pairs) == 3 and {pair.category for pair in bench.pairs} == {"Cat"}
    assert len(list((tmp_path / "pictures" / "paste").iterdir())) == 3
    wrong = [Variant("paste", {"name": "paste", "size": 3})]
    with pytest.raises(InputError, match="size"):
        Bench(open_dataset("murecom", murecom), wrong, tmp_path / "new").write(lambda: None)
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="called the same"):
        Bench(open_dataset("murecom", murecom), [PASTE, PASTE], tmp_path)


def test_pictures_of_other_tools_are_scored(murecom: Path, tmp_path: Path) -> None:
    pairs = list(open_dataset("murecom", murecom).pairs())
    theirs = tmp_path / "theirs"
    (theirs / pairs[1].name).mkdir(parents=True)
    place = Image.open(pairs[0].background)
    place.save(theirs / f"{pairs[0].name}.png")
    # Of another size, and two samples of one pair.
    for number in (0, 1):
        place.resize((64, 64)).save(theirs / pairs[1].name / f"{number}.jpg")
    place.save(theirs / "nobody.png")
    folders = [str(theirs)]
    bench = Bench(open_dataset("murecom", murecom), [PASTE], tmp_path / "out", results=folders)
    assert bench.write(lambda: None) == 0
    own = [score for score in bench.score([CHANGE]) if score["method"] == "theirs"]
    assert [(s["pair"], s["sample"]) for s in own] == [
        (pairs[0].name, 0), (pairs[1].name, 0), (pairs[1].name, 1),
    ]  # fmt: skip
    assert own[0]["change"] == 0 < own[1]["change"]
    said = " ".join(bench.problems)
    assert "1 pictures in" in said and "theirs has no picture for 6 of 8 pairs" in said
    with pytest.raises(InputError, match="no folder"):
        Bench(open_dataset("murecom", murecom), [], tmp_path, results=["nowhere"]).write(
            lambda: None
        )


def test_what_cannot_be_read_costs_nothing_else(
    murecom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(murecom, tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    command = ["bench", "murecom", "set", "--include", "Cat*", "--methods", "paste", "-q"]
    names = ["Cat-0-fg1", "Cat-0-fg2", "Cat-1-fg1", "Cat-1-fg2"]
    (tmp_path / "theirs" / f"{names[0]}.png").mkdir(parents=True)
    (tmp_path / "theirs" / f"{names[1]}.png").write_bytes(b"no picture")
    (tmp_path / "theirs" / f"{names[2]}.png").touch()
    shutil.copy(tmp_path / "set/Cat/bg/1.jpg", tmp_path / "theirs" / f"{names[3]}.jpg")
    # Nobody's figure needs it but what is shown beside.
    (tmp_path / "set/Cat/fg2/0.jpg").write_bytes(b"no photo")
    assert main([*command, "--results", "theirs", "-o", "out"]) == 1
    scores = parquet.read_table(tmp_path / "out/scores.parquet").to_pylist()
    assert [(s["method"], s["pair"]) for s in scores] == [
        ("paste", names[0]), ("paste", names[2]), ("theirs", names[3]),
    ]  # fmt: skip
    assert "theirs has no picture for 3 of 4 pairs" in (tmp_path / "out/report.html").read_text()
    for line in (tmp_path / "out/pairs.jsonl").read_text().splitlines():
        assert all(Path(path).is_file() for path in json.loads(line)["pictures"].values())
    # What a figure came of has changed: it is taken again.
    place = tmp_path / "set/Cat/bg/1.jpg"
    Image.open(place).transpose(Image.Transpose.ROTATE_180).save(place)
    main([*command, "--results", "theirs", "-o", "out", "--resume"])
    again = parquet.read_table(tmp_path / "out/scores.parquet").to_pylist()
    assert again[-1]["ssim"] < scores[-1]["ssim"] - 0.1
    for wrong in ("dnio=set", "dino=", "=set"):
        assert main([*command, "--metric", wrong, "-o", "new"]) == 2
    (tmp_path / "out/bench.json").write_text("[")
    assert main([*command, "-o", "out", "--resume"]) == 2


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """SIGINT as in a terminal; a shell's background jobs are born ignoring it and pass it on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_interrupted_it_says_how_to_go_on(
    murecom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def interrupt() -> None:
        while not list(out.glob("pictures/paste/*.png")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    command = ["bench", "murecom", str(murecom), "--methods", "paste", "--samples", "4", "-q"]
    watch = threading.Thread(target=interrupt)
    watch.start()
    assert main([*command, "-o", str(out)]) == 130
    watch.join()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "with --resume the same command goes on" in said[0]
    assert (out / "bench.json").is_file()


def test_killed_and_resumed_it_says_the_same(
    murecom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "murecom", str(murecom), "--methods", "paste,poisson,reinhard", "-o"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "inlay", *command, str(out)], stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while len(list(out.rglob("pictures/*/*.png"))) < 5 and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("pictures/*/*.png")}
    assert 5 <= len(before) < 24 and not (out / "tables.md").exists()
    assert main([*command, str(out)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*command, str(out), "--seed", "1", "--resume"]) == 2
    assert "begun with seed 0, not 1" in capsys.readouterr().err
    assert main([*command, str(out), "--resume"]) == 0
    for name in ("tables.md", "tables.tex", "tables.csv"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    found = [parquet.read_table(folder / "scores.parquet").drop_columns(["picture", "seconds"])
             for folder in (out, tmp_path / "whole")]  # fmt: skip
    assert found[0].equals(found[1])
    # What was whole was not made again; the last one may have been told of too late.
    after = {path: path.stat().st_mtime_ns for path in before}
    assert sum(after[path] != before[path] for path in before) <= 3


def is_first_cat(pair: Pair) -> bool:
    return pair.name.startswith("Cat") and "fg1" in pair.name


def test_concepts_are_learnt_once_for_all_backgrounds(murecom: Path, tmp_path: Path) -> None:
    variants = [
        Variant("exemplar", {"name": "exemplar", "num_inference_steps": 1}).learnt({"steps": 1}),
        Variant("one", {"name": "exemplar", "num_inference_steps": 1}, {}, {"steps": 1}, 1),
    ]
    told: dict[str, Any] = {
        "chosen": lambda pair: pair.name.startswith("Cat") and "fg1" in pair.name
    }
    bench = Bench(open_dataset("murecom", murecom), variants, tmp_path, **told)
    assert bench.write(lambda: None) == 0 and len(bench.pairs) == 2
    files = sorted((tmp_path / "concepts").glob("*.safetensors"))
    assert len(files) == 2
    shutil.rmtree(tmp_path / "pictures")
    times = [path.stat().st_mtime_ns for path in files]
    again = Bench(open_dataset("murecom", murecom), variants, tmp_path, **told)
    assert again.write(lambda: None) == 0 and len(again.files) == 4
    assert [path.stat().st_mtime_ns for path in files] == times


def test_ablations_are_yaml(
    murecom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in ABLATIONS.glob("*.yaml"):
        about, variants = read_ablation(path.stem)
        assert about["title"] and len(variants) > 3
        for variant in variants:
            assert variant.choice("compose").name == variant.method["name"]
    _, references = read_ablation("dreamcom-references")
    assert [variant.references for variant in references] == [1, 2, 3, 4, 5]
    file = tmp_path / "amounts.yaml"
    file.write_text(
        "title: How much\nvariants:\n  little:\n    method: {name: reinhard, amount: 0.1}\n"
        "  much:\n    method: {name: reinhard, amount: 1}\n    request: {shadow: none}\n"
    )
    command = ["bench", "murecom", str(murecom), "--ablation", str(file), "--cases", "1"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    assert "How much" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out" / "pictures").glob("*/")) >= ["little", "much"]
    for wrong in ("method: paste", "method: {name: x}, learn: [1]", "method: {}, references: 0"):
        file.write_text(f"when: 2026-01-01\nvariants: {{odd one: {{{wrong}}}}}")
        assert main([*command, "-o", str(tmp_path / "new")]) == 2
        assert "of the variant 'odd one' is wrong" in capsys.readouterr().err
    for text in ("variants: 3", "variants: {}", "a: [", "variants: {a: {}}"):
        file.write_text(text)
        assert main([*command, "-o", str(tmp_path / "new")]) == 2
        assert "no YAML" in capsys.readouterr().err
    assert main([*command[:4], "cdc-gird", "-o", str(tmp_path / "new")]) == 2
    assert "did you mean cdc-grid?" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
