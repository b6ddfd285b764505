"""The benchmark on triples whose truth is known: closed forms in place of renderings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from inlay import Composer
from inlay.cli import main
from inlay.errors import InputError
from inlay.evaluation.benchmark import PASTE, Case, Report, run, summary
from inlay.evaluation.relight import Relight, find_triples
from inlay.pictures.arrays import Box, to_uint8
from inlay.request import Request
from inlay.result import Result

SIZE = 64
PLACE, OBJECT, OTHER, SHADE = 160, 100, 140, 120
# The object, and the shadow that it casts to its right.
BODY, SHADOW = Box(20, 16, 16, 32), Box(36, 40, 20, 8)


def write_triple(folder: Path, number: int, floating: bool = False) -> dict[str, Any]:
    """A grey object, wholly or half opaque; the place, its shadow and another light are flat."""
    alpha = np.zeros((SIZE, SIZE), np.uint8)
    alpha[BODY.slices] = 255
    alpha[BODY.y, BODY.x : BODY.right] = 102
    place = np.full((SIZE, SIZE, 3), PLACE, np.uint8)
    truth = place.copy()
    if not floating:
        truth[SHADOW.slices] = SHADE
    share = alpha[..., None] / 255
    truth = np.asarray(np.round(share * OBJECT + (1 - share) * truth), np.uint8)
    other = np.full((SIZE, SIZE, 3), OTHER, np.uint8)
    names = {kind: f"{kind}/{number}.webp" for kind in ("place", "truth", "other")}
    pictures = {"place": place, "truth": np.dstack([truth, alpha])}
    for kind, picture in {**pictures, "other": np.dstack([other, alpha])}.items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / names[kind], lossless=True, exact=True)
    pose = "floating" if floating else "standing"
    line = {"file_name": names["truth"], "place": names["place"], "other": names["other"]}
    return line | {"held_out": True, "contact": not floating, "pose": pose, "number": number}


def write_lines(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two triples that are held out, the second floating, and one to train on."""
    place = tmp_path / "triples"
    lines = [write_triple(place, number, number == 1) for number in (2, 0, 1)]
    lines[0]["held_out"] = False
    write_lines(place, lines)
    return place


def names(folder: Path, *arguments: Any) -> list[str]:
    return [row.file_name for _, row in find_triples([str(folder)], *arguments)]


def test_triples_are_those_that_are_held_out(folder: Path) -> None:
    assert names(folder) == ["truth/0.webp", "truth/1.webp"]
    assert names(folder, "training") == ["truth/2.webp"]
    assert names(folder, "all") == [f"truth/{n}.webp" for n in range(3)]
    assert names(folder, "all", ["*/2*", "truth/1*"]) == ["truth/1.webp", "truth/2.webp"]
    both = Relight(find_triples([str(folder)]))
    assert (both.count, both.harmless) == (2, 2)
    assert [case.name for case in both.cases()] == names(folder)
    assert len(list(Relight(find_triples([str(folder)]), count=1).cases())) == 1


def test_the_object_is_laid_in_at_its_own_pixels(folder: Path) -> None:
    benchmark = Relight(find_triples([str(folder)]))
    case = next(benchmark.cases())
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    made = paste_over(benchmark, case, texture)
    share = case.mask[..., None]
    over = np.where(share > 0, share * texture + (1 - share) * PLACE, PLACE)
    assert np.abs(np.asarray(made.image) - over).max() <= 0.5001
    layer, box = made.layers[0]
    assert box == BODY
    assert np.array_equal(np.asarray(layer)[..., 3], to_uint8(case.mask[BODY.slices]))


def paste_over(benchmark: Relight, case: Case, pasted: Any) -> Result:
    order = {**benchmark.order(case, pasted), "method": PASTE, **Relight.plain}
    return Composer("no/such/model").run(Request.of(order))


def test_figures_are_closed_forms(folder: Path) -> None:
    """Paste, the truth, half of the shadow's darkening, and a darkening where none belongs."""
    benchmark = Relight(find_triples([str(folder)]))
    standing, floating = benchmark.cases()
    report = Report(benchmark, {}, methods={PASTE: {}, "truth": {}, "half": {}, "dark": {}})
    for case in (standing, floating):
        made = paste_over(benchmark, case, case.pasted)
        paste = np.asarray(made.image)
        half, dark = case.truth.copy(), case.truth.copy()
        half[SHADOW.slices] = (half[SHADOW.slices].astype(int) + PLACE) // 2
        dark[case.mask == 0] -= 3
        pictures = {PASTE: paste, "truth": case.truth, "half": half, "dark": dark}
        results = {
            name: benchmark.figures(case, p) | {"seconds": 0} for name, p in pictures.items()
        }
        row = {"number": case.number, "kind": case.kind, **case.facts, "results": results}
        report.cases.append(row)
    paste, truth, half, dark = summary(report)
    ratios = ("fmse_ratio", "shadow_ratio", "shadow_ratio_all", "together_ratio")
    assert [paste[name] for name in ratios] == [1, 1, 1, 1]
    assert [truth[name] for name in ratios] == [0, 0, 0, 0]
    assert (paste["improved"], truth["improved"]) == (0, 1)
    assert paste["fmse"] == (OTHER - OBJECT) ** 2 and paste["floating"] == 0
    # Of a difference half as large a quarter is left, and of the whole that of the shadow alone.
    assert half["shadow_ratio"] == pytest.approx(0.25) and half["fmse_ratio"] == 0
    area, square = SHADOW.width * SHADOW.height, (PLACE - SHADE) ** 2
    found = report.cases[0]["results"]
    assert found[PASTE]["shadow"] == pytest.approx(area * square / SIZE**2)
    assert found["half"]["together"] == pytest.approx(area * square / 4 / SIZE**2)
    rest = SIZE**2 - BODY.width * BODY.height
    assert found["dark"]["darkening"] == pytest.approx(3 + area * (PLACE - SHADE) / rest)
    assert dark["floating"] == 3 and truth["floating"] == 0 and truth["psnr"] == 60
    assert [row["label"] for row in summary(report, "lying")] == []
    alone = summary(report, "floating")[2]
    assert alone["shadow_ratio"] is None and alone["floating"] == 0


def test_paste_harms_nothing_and_others_do(folder: Path, tmp_path: Path) -> None:
    variants: dict[str, Any] = {"full": ("reinhard", {"amount": 1.0}), PASTE: (PASTE, {})}
    report = run(Relight(find_triples([str(folder)])), variants, tmp_path / "run")
    paste, full = summary(report)
    assert list(report.methods) == [PASTE, "full"] and report.settings["triples"] == 2
    assert paste["harm_delta_e"] < 1 < full["harm_delta_e"]
    # It takes the colour of what lies round it, lighter than both the object and its truth.
    assert full["fmse_ratio"] > 1 and full["improved"] == 0
    assert full["cases"] == 2 == len(report.harm)


def test_a_variant_names_its_shadow(folder: Path, tmp_path: Path) -> None:
    """A contact shadow darkens the ground, on which paste and a method by itself leave nothing."""
    shadows = {kind: ("paste", {"shadow": kind}) for kind in ("none", "contact")}
    report = run(Relight(find_triples([str(folder)])), shadows, tmp_path / "run")
    paste, none, contact = summary(report)
    assert [report.methods[label]["shadow"]["kind"] for label in report.methods] == [
        "none", "none", "contact",
    ]  # fmt: skip
    assert none == {**paste, "label": "none", "seconds": none["seconds"]}
    assert contact["floating"] > 0 == none["floating"] and contact["fmse_ratio"] == 1
    for case in report.cases:
        assert case["results"]["contact"]["darkening"] > case["results"]["none"]["darkening"] == 0


def test_the_command_writes_what_it_prints(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder.parent / "out"
    command = ["bench", "relight", str(folder), "-o", str(out), "--model", "no/such/model"]
    command += ["--methods", "paste,reinhard:amount=0.5:shadow=none,poisson"]
    command += ["--set", "poisson.shadow=cast,direction=20"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((out / "relight.json").read_text())
    assert found["settings"] == {
        "cases": 2, "seed": 0, "harmless": 2, "short_side": 384, "triples": 2,
        "folders": [str(folder)], "split": None, "include": [], "model": "no/such/model",
    }  # fmt: skip
    assert [case["kind"] for case in found["cases"]] == ["standing", "floating"]
    reinhard, poisson = list(found["methods"].values())[1:]
    assert (reinhard["settings"]["amount"], reinhard["shadow"]["kind"]) == (0.5, "none")
    assert (poisson["shadow"]["kind"], poisson["shadow"]["direction"]) == ("cast", 20)
    text = (out / "relight.md").read_text()
    assert "2 cases of 2 triples" in text and "| paste | 1600.0 | 1.000 | 0% | 1.000 |" in text
    sheet = Image.open(out / "sheet.png")
    # Truth, mask and three methods across; best, median and worst of two methods down.
    assert sheet.width == 5 * 208 + 8 and sheet.height > 6 * SIZE
    more = folder.parent / "more"
    command[command.index(str(out))] = str(more)
    assert main([*command, "--split", "all", "--cases", "1", "--harmless", "0"]) == 0
    printed = capsys.readouterr().out
    assert "floating" in printed and str(more / "relight.json") in printed


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda root: (root / "metadata.jsonl").unlink(), "no triples of the split held-out"),
        (lambda root: (root / "other" / "1.webp").unlink(), "1.webp"),
        (lambda root: (root / "place" / "0.webp").write_bytes(b"no picture"), "0.webp"),
        (lambda root: Image.new("RGBA", (9, 9)).save(root / "other" / "0.webp"), "of no triple"),
        (lambda root: Image.new("L", (SIZE, SIZE)).save(root / "other" / "0.webp"), "of no triple"),
        (lambda root: write_lines(root, [{"file_name": "truth/0.webp"}]), "no triples"),
        (
            lambda root: write_lines(root, [write_triple(root, 0) | {"held_out": False}]),
            "no triples of the split held-out",
        ),
        (
            lambda root: write_lines(root, [write_triple(root, 0) | {"other": "../x.webp"}]),
            "line 1",
        ),
        (lambda root: (root / "metadata.jsonl").write_text("{"), "line 1"),
    ],
)
def test_folders_that_hold_no_triples_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], change: Any, word: str
) -> None:
    change(folder)
    out = folder.parent / "out"
    command = ["bench", "relight", str(folder), "-o", str(out), "--methods", "paste"]
    assert main(command) == 2
    printed, error = capsys.readouterr()
    assert printed == "" and error.count("\n") == 1 and word in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--methods", "telea"], "known are"),
        (["--methods", "dreamcom"], "freecompose?"),
        (["--methods", "reinhard:amount=2"], "amount"),
        (["--methods", "reinhard:shadoww=none"], "unknown"),
        (["--methods", "reinhard:shadow=thrown"], "shadow"),
        (["--harmless", "3"], "harmless"),
        (["--include", "nothing*"], "no triples"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    command = ["bench", "relight", str(folder), "-o", str(folder.parent / "out"), *arguments]
    assert main(command) == 2
    printed, error = capsys.readouterr()
    assert printed == "" and error.count("\n") == 1 and word in error


def test_a_variant_of_paste_keeps_another_name(folder: Path) -> None:
    benchmark = Relight(find_triples([str(folder)]))
    with pytest.raises(InputError, match="call yours by another name"):
        run(benchmark, {PASTE: ("reinhard", {})}, folder.parent / "out")
