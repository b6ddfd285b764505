"""The benchmark of removals: where its holes lie, and what its figures say of known fills."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from inlay.cli import main
from inlay.errors import InputError
from inlay.evaluation.benchmark import Case, run, summary
from inlay.evaluation.photos import find_photos
from inlay.evaluation.removal import Removal


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("photos")
    for name in ("grass", "gravel", "brick", "chelsea", "coffee"):
        Image.fromarray(getattr(data, name)()).convert("RGB").save(place / f"{name}.png")
    return place


def benchmark(folder: Path, count: int = 4, seed: int = 0) -> Removal:
    return Removal(find_photos([str(folder)]), count, seed, short_side=128)


def test_cases_are_holes_in_the_truth(folder: Path) -> None:
    for case in benchmark(folder).cases():
        hole = case.mask > 0
        assert case.kind == Removal.kinds[case.number]
        np.testing.assert_array_equal(case.pasted[~hole], case.truth[~hole])
        assert (case.pasted[hole] != case.truth[hole]).any()
        # A disc of 0.13 short sides, or a thing that is smaller than that.
        disc = np.pi * (0.13 * 128) ** 2
        assert hole.sum() == pytest.approx(disc, rel=0.05) or 0.3 * disc < hole.sum() < 0.8 * disc
        rows, columns = np.nonzero(hole)
        assert rows.min() > 0 and columns.min() > 0
        assert rows.max() < hole.shape[0] - 1 and columns.max() < hole.shape[1] - 1


def test_a_case_hangs_on_the_seed(folder: Path) -> None:
    one, two, third = (list(benchmark(folder, 2, seed).cases()) for seed in (0, 0, 1))
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(first.mask, second.mask)
    assert any((a.truth.shape != b.truth.shape) or (a.mask != b.mask).any()
               for a, b in zip(one, third, strict=True))  # fmt: skip


def test_figures_of_known_fills() -> None:
    rng = np.random.default_rng(0)
    truth = np.clip(128 + 20 * rng.normal(size=(96, 96, 1)), 0, 255).astype(np.uint8)
    truth = np.repeat(truth, 3, -1)
    mask = np.zeros((96, 96), np.float32)
    mask[30:66, 30:66] = 1
    bench = Removal([None], 1)
    case = Case(0, "noise", "disc, texture", mask, truth, truth)
    same = bench.figures(case, truth)
    assert same["energy"] == same["rim"] == 0 and same["fpsnr"] == 60
    inside = mask > 0
    half, there = truth.copy(), truth[inside]
    half[inside] = np.round(128 + (there.astype(float) - 128) / 2).astype(np.uint8)
    assert bench.figures(case, half)["energy"] == pytest.approx(1, abs=0.1)
    # Texture of the same kind in another place is as good, whatever its PSNR.
    other = truth.copy()
    other[inside] = rng.permutation(there)
    found = bench.figures(case, other)
    assert found["energy"] < 0.1 and found["rim"] < 0.1 and found["fpsnr"] < 25


def test_patches_beat_telea_on_texture(folder: Path, tmp_path: Path) -> None:
    report = run(benchmark(folder, 3), {"patches": ("patches", {})}, tmp_path)
    telea, patches = summary(report)
    assert telea["label"] == "telea" and not report.harm
    assert patches["energy"] < 0.6 < telea["energy"]


def test_too_few_photos_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="only 5 of the 5 photos have room"):
        list(benchmark(folder, 6).cases())


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    told = ["--cases", "2", "--short-side", "96", "--methods", "patches:dilate=2", "-o", str(out)]
    assert main(["bench", "removal", str(folder), *told]) == 0
    assert "|log2 energy|" in capsys.readouterr().out
    found = json.loads((out / "removal.json").read_text())
    assert [row["label"] for row in found["overall"]] == ["telea", "patches:dilate=2"]
    assert found["settings"]["harmless"] == 0
    assert (out / "sheet.png").is_file() and (out / "removal.md").is_file()
