"""A study: its statistics against published examples, and what is kept of what people say."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data
from starlette.testclient import TestClient

from inlay.cli import main
from inlay.errors import InputError
from inlay.evaluation.study import QUESTIONS, Study, bradley_terry, krippendorff

_ = math.nan
# Four observers and twelve units: Krippendorff 2011, Computing Krippendorff's Alpha-Reliability.
EXAMPLE = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
        [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
    ]
)


def test_alpha_is_that_of_krippendorffs_example() -> None:
    found = {metric: krippendorff(EXAMPLE, metric) for metric in ("nominal", "ordinal", "interval")}
    assert {name: round(value, 3) for name, value in found.items()} == {
        "nominal": 0.743, "ordinal": 0.815, "interval": 0.849,
    }  # fmt: skip


def test_alpha_of_agreement_chance_and_nothing() -> None:
    agreed = np.array([[1.0, 2, 3], [1, 2, 3]])
    assert krippendorff(agreed, "ordinal") == 1
    assert krippendorff(np.array([[1.0, 2], [2, 1]]), "nominal") == pytest.approx(1 - 1 / (2 / 3))
    assert math.isnan(krippendorff(agreed[:1], "nominal"))


def test_bradley_terry_has_its_maximum_there() -> None:
    wins = np.array([[0, 7, 4], [2, 0, 6], [3, 1, 0.0]])
    scores = bradley_terry(wins)
    assert scores.sum() == pytest.approx(0, abs=1e-9) and scores.argmax() == 0

    def likelihood(at: Any) -> float:
        games = [(i, j) for i in range(3) for j in range(3) if i != j]
        return sum((wins[i, j] + 0.5) * -math.log1p(math.exp(at[j] - at[i])) for i, j in games)

    for step in np.eye(3) * 1e-3:
        assert likelihood(scores) >= max(likelihood(scores + step), likelihood(scores - step))
    # Of two the odds are closed: 3 and a half to 1 and a half.
    one, other = bradley_terry(np.array([[0, 3], [1, 0.0]]))
    assert one - other == pytest.approx(math.log(3.5 / 1.5))


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A benchmark's folder: two pairs, each by three methods that differ in brightness."""
    photo, lines = data.coffee()[::4, ::4], []
    Image.fromarray(photo).save(tmp_path / "place.png")
    for name in ("cup-0", "cup-1"):
        pictures = {}
        for method, level in (("dark", 0.4), ("plain", 1.0), ("grey", 0.7)):
            pictures[method] = str(tmp_path / f"{method}-{name}.png")
            Image.fromarray((photo * level).astype(np.uint8)).save(pictures[method])
        place = str(tmp_path / "place.png")
        told = {"name": name, "background": place, "references": [place], "box": [20, 10, 60, 50]}
        lines.append(json.dumps({**told, "pictures": pictures}))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    return tmp_path


def rating(study: Study, trial: str, who: str, best: list[str], question: str) -> dict[str, Any]:
    """What somebody says who ranks methods so."""
    shown = study.trials[trial].methods
    order = sorted(shown, key=lambda picture: best.index(shown[picture]))
    return {"annotator": who, "trial": trial, "question": question, "order": order}


RANKS = {"ann": ["plain", "grey", "dark"], "bob": ["grey", "plain", "dark"]}


def test_what_two_people_say_is_averaged(bench: Path) -> None:
    study = Study.open(bench)
    page = "".join(path.read_text() for path in (bench / "study" / "page").glob("*.[hj]*"))
    # Nothing of the page tells which method made a picture.
    told_by_page = page.partition("const STUDY")[2].partition("\n")[0]
    assert told_by_page and not re.search("dark|plain|grey|cup-", told_by_page)
    with TestClient(study.app()) as client:
        for who, best in RANKS.items():
            for trial in study.trials:
                for question in QUESTIONS:
                    told = rating(study, trial, who, [*best, "whole", "broken"], question)
                    assert client.post("/api/ratings", json=told).status_code == 201
        # Who thinks better of it is heard again.
        first = next(name for name, trial in study.trials.items() if not trial.check)
        again = rating(study, first, "ann", RANKS["bob"], "compatibility")
        assert client.post("/api/ratings", json=again).status_code == 201
        assert client.get("/api/ratings?annotator=ann").json().count(
            {"trial": first, "question": "compatibility"}
        ) == 1  # fmt: skip
        for wrong in (
            {**again, "order": again["order"][:2]}, {**again, "trial": "0" * 16},
            {**again, "annotator": "<b>"}, {**again, "more": 1}, [],
        ):  # fmt: skip
            assert client.post("/api/ratings", json=wrong).status_code == 422
        assert client.get("/key.json").status_code == client.get("/../key.json").status_code == 404
    compatibility, fidelity = Study.open(bench).tables()
    means = {row[0]: row[2].split()[0] for row in compatibility.rows}
    # By ann 2 and 1, by bob 2 and 2.
    assert means == {"dark": "3.00", "plain": "1.75", "grey": "1.25"}
    assert {row[0]: row[2].split()[0] for row in fidelity.rows} == {
        "dark": "3.00", "plain": "1.50", "grey": "1.50",
    }  # fmt: skip
    assert "8 ratings" not in fidelity.notes[0] and "4 ratings by 2" in fidelity.notes[0]


def test_who_fails_the_checks_is_left_out(bench: Path) -> None:
    study = Study.open(bench)
    for who, best in {**RANKS, "eve": ["broken", "whole", "dark", "plain", "grey"]}.items():
        for trial in study.trials:
            told = rating(study, trial, who, [*best, "whole", "broken"], "fidelity")
            study.save(study.check(json.dumps(told).encode()))
    table = study.tables()[1]
    assert "4 ratings by 2" in table.notes[0] and "eve" in table.notes[1]
    assert dict((row[0], row[2][:4]) for row in table.rows)["dark"] == "3.00"


def test_damaged_files_are_one_sentence(bench: Path) -> None:
    Study.open(bench)
    (bench / "study" / "key.json").write_text("{}")
    with pytest.raises(InputError, match=r"key\.json is damaged"):
        Study.open(bench)
    (bench / "study" / "key.json").unlink()
    lines = (bench / "pairs.jsonl").read_text()
    for text in (lines[:-9], '{"name": 3}', "3"):
        (bench / "pairs.jsonl").write_text(text)
        with pytest.raises(InputError, match="their list is damaged"):
            Study.open(bench)
    (bench / "pairs.jsonl").write_text(lines)
    (bench / "study").rename(bench / "away")
    (bench / "study").touch()
    with pytest.raises(InputError, match="study cannot be written to"):
        Study.open(bench)
    with pytest.raises(InputError, match="holds no pairs"):
        Study.open(bench / "pairs.jsonl")


def test_a_cut_line_costs_no_other_and_what_is_no_number_is_refused(bench: Path) -> None:
    study = Study.open(bench)
    told = rating(study, next(iter(study.trials)), "ann", RANKS["ann"], "fidelity")
    line = json.dumps(told).encode()
    study.save(study.check(line))
    file = bench / "study" / "ratings.jsonl"
    file.write_bytes(file.read_bytes() + line[:40])
    study.save(study.check(json.dumps({**told, "annotator": "bob"}).encode()))
    assert [each.annotator for each in study.ratings()] == ["ann", "bob"]
    for seconds in ("NaN", "Infinity"):
        with pytest.raises(InputError, match="seconds"):
            study.check(line[:-1] + f', "seconds": {seconds}}}'.encode())


def test_pictures_are_shown_upright_and_of_one_size(bench: Path) -> None:
    photo = Image.open(bench / "place.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(bench / "turned.png", exif=exif)
    deep = np.asarray(photo.convert("L").resize((40, 30)), np.uint16) * 257
    Image.fromarray(deep).save(bench / "deep.png")
    pictures = {"turned": str(bench / "turned.png"), "deep": str(bench / "deep.png")}
    place = str(bench / "turned.png")
    told = {"name": "a", "background": place, "references": [], "box": [20, 10, 60, 50]}
    (bench / "pairs.jsonl").write_text(json.dumps({**told, "pictures": pictures}))
    study = Study.open(bench)
    folder = bench / "study" / "page" / "pictures"
    shown = {
        method: np.asarray(Image.open(folder / f"{picture}.jpg"), float)
        for trial in study.trials.values()
        for picture, method in trial.methods.items()
    }
    assert {each.shape[:2] for each in shown.values()} == {photo.size[::-1]}
    assert np.abs(shown["turned"] - np.asarray(photo)).mean() < 6
    assert abs(shown["deep"].mean() - np.asarray(photo.convert("L")).mean()) < 6
    odd = np.abs(shown["whole"] - shown["broken"]).mean(2)
    assert odd[10:60, 20:80].mean() > 30 > 3 > odd[70:].mean()


def test_choices_of_two(bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study.open(bench, choice=True, most=4, seed=1)
    asked = [trial for trial in study.trials.values() if not trial.check]
    assert len(asked) == 4 and all(len(trial.methods) == 2 for trial in asked)
    for who, best in RANKS.items():
        for trial in study.trials:
            told = rating(study, trial, who, [*best, "whole", "broken"], "compatibility")
            study.save(study.check(json.dumps(told).encode()))
    rows = {row[0]: row for row in study.tables()[0].rows}
    assert rows["dark"][2].startswith("0.00") and float(rows["dark"][3]) < 0
    with (bench / "study" / "ratings.jsonl").open("ab") as file:
        file.write(b'{"annotator": "ann", "tri')
    assert main(["study", str(bench), "--choice", "--trials", "4", "--seed", "1"]) == 0
    assert "chosen" in capsys.readouterr().out
    assert (bench / "study" / "results.csv").is_file()
    assert main(["study", str(bench)]) == 2
    assert "begun with other options" in capsys.readouterr().err


def test_what_is_no_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no pairs"):
        Study.open(tmp_path)
    pair = {"name": "a", "background": "x.png", "references": [], "box": [0, 0, 1, 1]}
    told = json.dumps(pair | {"pictures": {"paste": "x.png"}})
    (tmp_path / "pairs.jsonl").write_text(told)
    with pytest.raises(InputError, match="nothing to rank"):
        Study.open(tmp_path)
    assert not (tmp_path / "study").exists()
