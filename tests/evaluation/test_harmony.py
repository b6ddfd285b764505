"""The known-truth benchmark on real photographs: photos, cases, figures, files, command line."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from inlay import Composer
from inlay.cli import main
from inlay.errors import InputError
from inlay.evaluation.benchmark import PASTE, Report, run, summary
from inlay.evaluation.figures import measure
from inlay.evaluation.harmony import Harmony
from inlay.evaluation.photos import BUNDLED, Photo, find_photos
from inlay.evaluation.report import write_report
from inlay.learning.folder import is_held_out
from inlay.training.disturb import KINDS, Change, disturb_object

SHORT_SIDE = 128

# The hash of a name decides its split; these two lie on either side.
HELD_OUT = next(n for n in (f"photo-{i}.png" for i in range(999)) if is_held_out(n))
TRAINING = next(n for n in (f"photo-{i}.png" for i in range(999)) if not is_held_out(n))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photographs, one with a given mask."""
    place = tmp_path / "photos"
    (place / "masks").mkdir(parents=True)
    (place / "deep").mkdir()
    Image.fromarray(data.coffee()).resize((300, 200)).save(place / "coffee.png")
    Image.fromarray(data.astronaut()).resize((200, 200)).save(place / "deep" / "astronaut.jpg")
    mask = np.zeros((200, 200), np.uint8)
    mask[40:120, 60:140] = 255
    Image.fromarray(mask).save(place / "masks" / "astronaut.png")
    return place


def names(photos: list[Photo]) -> list[str]:
    return [photo.name for photo in photos]


def test_a_plain_folder_counts_with_its_masks(folder: Path) -> None:
    photos = find_photos([str(folder)])
    assert names(photos) == ["coffee.png", "deep/astronaut.jpg"]
    assert photos[0].read(100)[1] is None
    picture, mask = photos[1].read(100)
    assert picture.shape == (100, 100, 3) and mask is not None
    expected = np.zeros((100, 100), np.float32)
    expected[20:60, 30:70] = 1
    assert np.array_equal(mask, expected)
    assert photos[0].read(100)[0].shape == (100, 150, 3)
    assert photos[0].read(4000)[0].shape == (200, 300, 3)
    assert names(find_photos([str(folder)], include=["astro*"])) == ["deep/astronaut.jpg"]
    assert names(find_photos([str(folder)], include=["deep/*"])) == ["deep/astronaut.jpg"]
    both = find_photos([BUNDLED, str(folder)], include=["coffee*"])
    assert "coffee" in names(both) and "coffee#1" in names(both) and "coffee.png" in names(both)


def test_metadata_lists_and_splits(folder: Path) -> None:
    rows = [
        {"file_name": HELD_OUT, "text": "a"},
        {"file_name": TRAINING, "mask": "masks/astronaut.png"},
    ]
    metadata = folder / "metadata.jsonl"
    metadata.write_text("\n".join(json.dumps(row) for row in rows))
    assert names(find_photos([str(folder)])) == [HELD_OUT]
    training = find_photos([str(folder)], "training")
    assert names(training) == [TRAINING]
    assert training[0].mask == folder / "masks" / "astronaut.png"
    assert names(find_photos([str(folder)], "all")) == [HELD_OUT, TRAINING]
    metadata.write_text(json.dumps(rows[1]))
    assert names(find_photos([str(folder)])) == [TRAINING]
    for bad in ("[]", "{", '{"file_name": 3}', '{"file_name": "../x.png"}',
                '{"file_name": "x.png", "mask": "/etc/x.png"}'):  # fmt: skip
        metadata.write_text(bad)
        with pytest.raises(InputError, match="line 1"):
            find_photos([str(folder)])


def test_the_bundled_photos_are_there_whole_and_cropped() -> None:
    photos = find_photos([BUNDLED])
    assert len(photos) == 30 and len(set(names(photos))) == 30
    by_name = dict(zip(names(photos), photos, strict=True))
    assert np.array_equal(by_name["coffee"].read(4000)[0], data.coffee())
    crop = by_name["coffee#4"]
    assert crop.crop == (0.35, 0.35, 0.65, 0.65)
    assert np.array_equal(crop.read(4000)[0], data.coffee()[140:400, 210:600])


def test_a_case_depends_on_the_seed_and_its_number_alone() -> None:
    photos = find_photos([BUNDLED], include=["coffee*", "astronaut*"])
    few = list(Harmony(photos, 3, 7, None, SHORT_SIDE).cases())
    many = list(islice(Harmony(photos, 1000, 7, None, SHORT_SIDE).cases(), 3))
    other = list(Harmony(photos, 3, 8, None, SHORT_SIDE).cases())
    for one, two in zip(few, many, strict=True):
        assert (one.name, one.kind, one.facts) == (two.name, two.kind, two.facts)
        assert np.array_equal(one.pasted, two.pasted) and np.array_equal(one.mask, two.mask)
    assert [case.facts for case in few] != [case.facts for case in other]


def test_cases_are_the_truth_but_for_their_object() -> None:
    photos = find_photos([BUNDLED], include=["coffee*", "chelsea*", "astronaut*"])
    cases = list(Harmony(photos, len(KINDS) + 1, 1, None, SHORT_SIDE).cases())
    assert [case.kind for case in cases] == [*KINDS, KINDS[0]]
    assert [case.number for case in cases] == list(range(len(cases)))
    by_name = dict(zip(names(photos), photos, strict=True))
    for case in cases:
        assert np.array_equal(case.truth, by_name[case.name].read(SHORT_SIDE)[0])
        assert (case.pasted == case.truth)[case.mask == 0].all()
        assert 14 <= measure(case.pasted, case.truth, case.mask)["fpsnr"] <= 32
        changes = [
            Change(p["kind"], {k: v for k, v in p.items() if k != "kind"})
            for p in case.facts["parameters"]
        ]
        assert (len(changes) > 1) == (case.kind == "mixed")
        assert np.array_equal(disturb_object(case.truth, case.mask, changes), case.pasted)


def test_later_rounds_take_other_objects_of_the_same_photo(tmp_path: Path) -> None:
    # Two cups, and no more, of the coffee.
    coffee = data.coffee()
    Image.fromarray(np.hstack([coffee, coffee[:, ::-1]])).save(tmp_path / "cups.png")
    first, second = Harmony(find_photos([str(tmp_path)]), 2, 0, None, 192).cases()
    assert np.array_equal(first.truth, second.truth)
    assert not np.array_equal(first.mask, second.mask)


def test_what_shows_no_object_is_passed_over(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (200, 200), (90, 90, 90)).save(folder / "flat.png")
    with caplog.at_level("INFO", logger="inlay"):
        cases = list(Harmony(find_photos([str(folder)]), 5, 0, None, SHORT_SIDE).cases())
    assert {case.name for case in cases} <= {"coffee.png", "deep/astronaut.jpg"}
    # Each is read and reported once, however often the photos are dealt.
    assert sum("broken.png" in message for message in caplog.messages) == 1
    assert sum("flat.png" in message for message in caplog.messages) == 1
    barren = find_photos([str(folder)], include=["flat*", "broken*"])
    with pytest.raises(InputError, match="none of the 2 photos"):
        list(Harmony(barren, 1, 0, None, SHORT_SIDE).cases())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    photos = find_photos([BUNDLED], include=["coffee*", "astronaut*"])
    variants: dict[str, tuple[str, dict[str, Any]]] = {
        "still": ("reinhard", {"amount": 0.0}),
        "reinhard": ("reinhard", {"amount": 1.0}),
        "gentle": ("reinhard", {"amount": 0.3}),
    }
    # A model that is not there: classical methods never ask for it.
    model = {"name": "no/such/model"}
    chosen = Harmony(photos, count=7, seed=3, harmless=2, short_side=SHORT_SIDE)
    return run(chosen, variants, tmp_path_factory.mktemp("run"), model=model)


def test_paste_comes_first_and_harms_nothing(report: Report) -> None:
    assert list(report.methods) == [PASTE, "still", "reinhard", "gentle"]
    assert len(report.cases) == 7 and len(report.harm) == 2
    paste, still, reinhard, gentle = summary(report)
    assert (paste["harm_delta_e"], paste["harm_fpsnr"], paste["improved"]) == (0, 60, 0)
    assert (paste["gain"], paste["fmse_ratio"]) == (0, 1)
    # Ties are no improvements.
    assert still["improved"] == 0 and still["fmse"] == paste["fmse"]
    assert reinhard["harm_delta_e"] > gentle["harm_delta_e"] > 0
    settings = report.methods["gentle"]["settings"]
    assert settings["amount"] == 0.3 and report.methods["gentle"]["model"] is None


def test_figures_are_those_of_a_direct_run(report: Report) -> None:
    photos = find_photos([BUNDLED], include=["coffee*", "astronaut*"])
    case = list(Harmony(photos, 5, 3, None, SHORT_SIDE).cases())[4]
    mask = Image.fromarray(np.round(case.mask * 255).astype(np.uint8))
    made = Composer().harmonize(case.pasted, mask=mask, method="reinhard", amount=0.3, seed=3)
    expected = measure(np.asarray(made.image), case.truth, case.mask)
    found = report.cases[4]["results"]["gentle"]
    assert {name: found[name] for name in expected} == expected


def test_summaries_are_plain_means(report: Report) -> None:
    for kind in (None, "gain", "mixed"):
        cases = [case for case in report.cases if kind in (None, case["kind"])]
        row = next(r for r in summary(report, kind) if r["label"] == "gentle")
        own = [case["results"]["gentle"] for case in cases]
        base = [case["results"][PASTE] for case in cases]
        assert row["cases"] == len(cases)
        for name in ("fmse", "fpsnr", "delta_e"):
            assert row[name] == pytest.approx(sum(f[name] for f in own) / len(cases))
        ratio = sum(f["fmse"] for f in own) / sum(f["fmse"] for f in base)
        assert row["fmse_ratio"] == pytest.approx(ratio)
        better = sum(f["fmse"] < b["fmse"] for f, b in zip(own, base, strict=True))
        assert row["improved"] == pytest.approx(better / len(cases))
        gains = [f["fpsnr"] - b["fpsnr"] for f, b in zip(own, base, strict=True)]
        assert row["gain"] == pytest.approx(sum(gains) / len(gains))
        if len(gains) == 1:
            assert row["gain_error"] is None
        else:
            mean = sum(gains) / len(gains)
            variance = sum((g - mean) ** 2 for g in gains) / (len(gains) - 1)
            assert row["gain_error"] == pytest.approx((variance / len(gains)) ** 0.5)
    # Harm was measured on cases 0 and 1 alone: no figure for the kind of case 5.
    assert all(row["harm_delta_e"] is None for row in summary(report, "mixed"))


def test_the_files_say_what_was_found(report: Report, tmp_path: Path) -> None:
    (tmp_path / "harmony.md").write_text("of an earlier run")
    written = write_report(report, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in written)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<article") == 7 and "gentle" in page
    found = json.loads((tmp_path / "harmony.json").read_text())
    assert found["settings"]["seed"] == 3
    assert found["cases"] == report.cases and found["harm"] == report.harm
    assert found["overall"] == summary(report)
    table = (tmp_path / "harmony.md").read_text()
    assert f"| gentle | {summary(report)[3]['fmse']:.1f} |" in table
    sheet = Image.open(tmp_path / "sheet.png")
    # Truth, mask and four methods across; best, median and worst of three methods down.
    assert sheet.width == 6 * 208 + 8 and sheet.height > 9 * 60


def test_the_command_repeats_itself(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["bench", "harmony", str(folder), "--methods", "paste,reinhard:amount=0.5,poisson"]
    command += ["--cases", "4", "--harmless", "1", "--short-side", "128", "--json"]
    command += ["--set", "reinhard.space=cielab", "--model", "no/such/model"]
    found = []
    monkeypatch.chdir(folder.parent)
    for out in ("one", "two"):
        assert main([*command, "-o", out]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed == json.loads((folder.parent / out / "harmony.json").read_text())
        for row in (*printed["cases"], *printed["harm"]):
            for figures in row["results"].values():
                figures.pop("seconds")
        found.append((printed["cases"], printed["harm"], printed["methods"]))
    assert found[0] == found[1]
    reinhard = found[0][2]["reinhard:amount=0.5"]
    assert reinhard["settings"]["amount"] == 0.5 and reinhard["settings"]["space"] == "cielab"
    assert (folder.parent / "one" / "sheet.png").read_bytes() == (
        folder.parent / "two" / "sheet.png"
    ).read_bytes()


def test_the_command_prints_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "out"
    command = [
        "bench",
        "harmony",
        str(folder),
        "--cases",
        "2",
        "--short-side",
        "96",
        "-o",
        str(out),
    ]
    assert main([*command, "--methods", "feather"]) == 0
    printed = capsys.readouterr().out
    assert "feather" in printed and "paste" in printed and str(out / "harmony.json") in printed
    assert main([*command, "--methods", "paste", "--quiet"]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main([*command, "--methods", "paste", "--quiet", "--resume"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main([*command, "--seed", "4", "--resume"]) == 2
    assert "was begun with seed 0, not 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--methods", "rheinhard"], "did you mean reinhard?"),
        (["--methods", "telea"], "known are"),
        (["--methods", ","], "--methods"),
        (["--methods", "reinhard:amount=2"], "amount"),
        (["--methods", "reinhard:amount=0.1,reinhard", "--set", "poisson.x=1"], "not run"),
        (["--methods", "reinhard", "--set", "amount=1"], "METHOD.KEY=VALUE"),
        (["--methods", "reinhard", "--set", "reinhard.amount=0,1"], "one variant"),
        (["--methods", "reinhard", "--set", "reinhard.amont=1"], "amount"),
        (["--cases", "0"], "--cases"),
        (["--cases", "10001"], "cases"),
        (["--cases", "2", "--harmless", "3"], "harmless"),
        (["--short-side", "20"], "short side"),
        (["--seed", "-1"], "seed"),
        (["--split", "held"], "held-out"),
        (["--include", "nothing*"], "no photos"),
        (["--device", "abacus"], "--device"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    out = folder.parent / "new" / "out"
    command = ["bench", "harmony", str(folder), "-o", str(out), "--methods", "reinhard"]
    assert main([*command, *arguments]) == 2
    printed, error = capsys.readouterr()
    assert printed == "" and error.count("\n") == 1 and word in error
    assert not out.parent.exists()


def test_folders_that_cannot_serve_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    (tmp_path / "empty").mkdir()
    method = ["--methods", "paste", "--cases", "1"]
    for source, out, word in (
        (tmp_path / "missing", tmp_path / "out", "not a folder"),
        (file, tmp_path / "out", "not a folder"),
        (tmp_path / "empty", tmp_path / "out", "no photos"),
        (folder, file, "cannot be written"),
        (folder, file / "deep", "cannot be written"),
    ):
        assert main(["bench", "harmony", str(source), "-o", str(out), *method]) == 2
        error = capsys.readouterr().err
        assert word in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists() and file.read_text() == ""
