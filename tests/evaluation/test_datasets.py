"""Layouts of data sets, on look-alikes; what is missing or odd is said and never guessed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation import lookalikes
from inlay.errors import InputError
from inlay.evaluation.datasets import NAMES, open_dataset
from inlay.evaluation.photos import find_photos
from inlay.pictures.arrays import Box
from inlay.request import Request

COUNTS = {
    "murecom": 8,
    "murecom-rmobj": 8,
    "dreameditbench": 6,
    "shine-dreameditbench": 2,
    "tf-icon": 1,
    "cocoee": 1,
    "iharmony4": 5,
    "libcom": 2,
    "manifest": 2,
}


def problems(name: str, root: Path) -> list[str]:
    """Those of a look-alike but for its being a small one."""
    return [line for line in open_dataset(name, root).problems() if " all of it has " not in line]


@pytest.mark.parametrize("name", NAMES)
def test_a_layout_gives_requests_whose_files_are_there(name: str, tmp_path: Path) -> None:
    root = lookalikes.LAYOUTS[name](tmp_path)
    pairs = list(open_dataset(name, root).pairs())
    assert len(pairs) == COUNTS[name]
    assert len({pair.name for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert pair.name == Path(pair.name).name
        told = pair.request.model_dump(mode="json") | {"method": {"name": "reinhard"}, "seed": 3}
        request = Request.of(told)
        paths = [*request.inputs().values(), *pair.references, *filter(None, pair.reference_masks)]
        assert all(Path(path).is_file() for path in paths)
        width, height = Image.open(pair.background).size
        assert pair.box.intersect(Box(0, 0, width, height)) == pair.box
        assert len(pair.references) == len(pair.reference_masks)
    assert [pair.name for pair in open_dataset(name, root).pairs()] == [p.name for p in pairs]
    expected = ["replacement_source"] * 2 if name == "dreameditbench" else []
    found = [line for line in problems(name, root) if "has no box" not in line]
    assert [line.partition("/")[0] for line in found] == expected


def test_murecoms_boxes_end_with_their_last_pixel_and_its_classes_may_be_two_words(
    tmp_path: Path,
) -> None:
    root = lookalikes.murecom(tmp_path)
    assert "Coffee cup 1.jpg 70 60 129 109" in (root / "Coffee_cup/bg/bbox.txt").read_text()
    pairs = list(open_dataset("murecom", root).pairs())
    assert [pair.name for pair in pairs[:3]] == ["Cat-0-fg1", "Cat-0-fg2", "Cat-1-fg1"]
    assert {pair.box for pair in pairs} == {Box(70, 60, 60, 50)}
    assert {pair.category for pair in pairs} == {"Cat", "Coffee_cup"}
    assert [path.name for path in pairs[0].references] == ["0.jpg", "1.jpg"]
    assert all(path and path.suffix == ".png" for path in pairs[0].reference_masks)
    assert pairs[0].truth is None
    assert open_dataset("murecom", root).problems() == [
        "murecom has 8 pairs here; all of it has 1920."
    ]


def test_what_murecom_lacks_is_said(tmp_path: Path) -> None:
    root = lookalikes.murecom(tmp_path, backgrounds=4)
    cat, cup = root / "Cat", root / "Coffee_cup"
    (cat / "bg" / "1.jpg").unlink()
    (cat / "fg1" / "1.png").unlink()
    lines = ["Cat 0.jpg -5 60 500 109", "Cat 2.jpg 300 60 400 109", "no box here 1 2 x", ""]
    (cat / "bg" / "bbox.txt").write_text("\n".join(lines))
    (cup / "bg" / "bbox.txt").unlink()
    (cup / "bg" / "3_bbox.png").unlink()
    # What was made of photos, or is the truth of them, is no photo.
    for name in ("composite", "truth", "0_rmobj"):
        shutil.copy(cup / "bg" / "0.jpg", cup / "bg" / f"{name}.jpg")
        shutil.copy(cup / "fg1" / "0.jpg", cup / "fg1" / f"{name}.jpg")
    (root / "Dog").mkdir()
    pairs = list(open_dataset("murecom", root).pairs())
    boxes = {pair.name: pair.box for pair in pairs}
    assert boxes["Cat-0-fg1"] == Box(0, 60, 200, 50)
    assert "Cat-2-fg1" not in boxes and "Coffee_cup-3-fg1" not in boxes
    assert boxes["Cat-3-fg1"] == boxes["Coffee_cup-0-fg1"] == Box(70, 60, 60, 50)
    assert len(pairs) == 10
    assert [len(pair.references) for pair in pairs] == [2] * 10
    assert problems("murecom", root) == [
        "Cat/fg1/1.jpg has no mask 1.png.",
        "Cat/bg/bbox.txt: 'no box here 1 2 x' names no box.",
        "Cat/bg lacks the photos 1.",
        "Cat/bg/0.jpg: the box [-5, 60, 501, 110] goes beyond the photo; it is clamped.",
        "Cat/bg/2.jpg: the box [300, 60, 401, 110] lies outside the photo.",
        "Coffee_cup/bg/3.jpg has no line in bbox.txt and no 3_bbox.png.",
        "Dog has no folder bg.",
    ]


def test_an_object_taken_out_goes_back_as_another_photo_shows_it(tmp_path: Path) -> None:
    root = lookalikes.murecom(tmp_path, photos=3)
    pair = next(pair for pair in open_dataset("murecom-rmobj", root).pairs())
    home = root / "Cat" / "fg1"
    assert pair.background == home / "0_rmobj.jpg"
    assert (pair.truth, pair.truth_mask) == (home / "0.jpg", home / "0.png")
    assert pair.references == (home / "1.jpg", home / "2.jpg")
    assert Path(pair.request.subjects_of()[0].picture) == home / "1.jpg"
    mask = np.asarray(Image.open(home / "0.png")) > 127
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert (pair.box.x, pair.box.right) == (columns[0], columns[-1] + 1)
    assert (pair.box.y, pair.box.bottom) == (rows[0], rows[-1] + 1)
    # A background whose object was taken out takes those of its category.
    shutil.copy(root / "Cat/bg/1.jpg", root / "Cat/bg/1_rmobj.jpg")
    first = next(iter(open_dataset("murecom-rmobj", root).pairs()))
    assert first.background == root / "Cat/bg/1_rmobj.jpg"
    assert first.truth == root / "Cat/bg/1.jpg" and first.references[0] == home / "0.jpg"


def test_boxes_of_the_squashed_picture_are_those_of_its_own_pixels(tmp_path: Path) -> None:
    folder = list(open_dataset("dreameditbench", lookalikes.dreameditbench(tmp_path / "a")).pairs())
    # 400 x 256 pixels: x times 400 / 512, y times 256 / 512.
    assert {pair.box for pair in folder} == {Box(100, 32, 200, 192)}
    names = [pair.name for pair in folder]
    assert names[2:4] == ["addition-dog-found0", "addition-dog-found1"]
    # dog2 has no class of its own.
    assert folder[4].background.parent.name == "dog" and folder[4].category == "dog2"
    shine = list(open_dataset("shine-dreameditbench", lookalikes.shine(tmp_path / "b")).pairs())
    assert shine[0].box == Box(100, 200, 301, 303) and shine[0].prompt == "A cat."
    photo = lookalikes.places((384, 384))[0]
    lookalikes.save(photo, tmp_path / "b/cat/bg/0.jpg")
    half = next(open_dataset("shine-dreameditbench", tmp_path / "b").pairs())
    # 401 and 503 at half the size lie between two pixels; to the even one.
    assert half.box == Box(50, 100, 150, 152)


def test_the_hubs_rows_become_files_once(tmp_path: Path) -> None:
    root = lookalikes.dreameditbench_hub(tmp_path)
    (pair,) = open_dataset("dreameditbench", root).pairs()
    assert pair.box == Box(100, 32, 200, 192) and pair.prompt == "a photo of a sks cat"
    assert [path.name for path in pair.references] == ["cat-0.jpg", "cat-1.jpg"]
    assert Image.open(pair.background).size == (400, 256)
    pair.background.write_bytes(b"kept as it is")
    list(open_dataset("dreameditbench", root).problems())
    assert pair.background.read_bytes() == b"kept as it is"


def test_iharmony4_goes_by_its_names_and_its_lists(tmp_path: Path) -> None:
    root = lookalikes.iharmony4(tmp_path)
    pairs = {pair.name: pair for pair in open_dataset("iharmony4", root).pairs()}
    assert [name for name in pairs if name.startswith("HFlickr")] == ["HFlickr-c1_1_2"]
    pair = pairs["HCOCO-c2_1_2"]
    assert pair.request.verb == "harmonize" and pair.background.name == "c2_1_2.jpg"
    assert pair.truth and pair.truth_mask
    assert (pair.truth.name, pair.truth_mask.name) == ("c2.jpg", "c2_1.png")
    assert {p.name for p in open_dataset("iharmony4", root / "HCOCO").pairs()} == {
        name for name in pairs if name.startswith("HCOCO")
    }
    pair.truth_mask.unlink()
    assert problems("iharmony4", root) == [
        "HCOCO: c2_1_1.jpg goes with c2_1.png.",
        "HCOCO: c2_1_2.jpg goes with c2_1.png.",
    ]


def test_a_manifest_says_more_than_requests(tmp_path: Path) -> None:
    root = lookalikes.manifest(tmp_path)
    file = root / "manifest.jsonl"
    one, two = open_dataset("manifest", root).pairs()
    assert (one.truth, one.prompt, one.category) == (root / "place.png", "a cat", "cat")
    assert (one.references, one.reference_masks) == ((root / "cat.png",), (root / "mask.png",))
    assert one.box == Box(20, 30, 100, 60) and two.request.verb == "harmonize"
    row = json.loads(file.read_text().splitlines()[0])
    subject = {"picture": "cat.png"}
    rows = [
        row | {"references": ["cat.png", "place.png"], "name": "a"},
        row | {"references": ["cat.png"], "reference_masks": [], "name": "b"},
        row | {"reference_masks": ["mask.png", "mask.png"], "name": "c"},
        row | {"subjects": [subject | {"random": True}], "name": "d"},
        row | {"subjects": [subject | {"size": 3}], "name": "e"},
        row | {"truth": "gone.png", "name": "a"},
        row | {"subjects": [subject | {"box": [900, 900, 20, 20]}], "name": "f"},
    ]
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    found = list(open_dataset("manifest", file).pairs())
    assert [pair.name for pair in found] == ["a", "b", "a", "f"]
    assert found[0].reference_masks == (None, None)
    said = problems("manifest", file)
    assert said[0] == "row 3: references and reference_masks differ in number."
    assert said[1] == "row 4: it says no box and no mask of where the object is."
    assert said[2].startswith("row 5: ") and "size" in said[2]
    assert said[3] == "the name a stands for two pairs; the first one counts."
    assert said[4] == f"{root / 'gone.png'} is not there or is no picture."
    assert said[5] == "f: the box lies outside place.png."


def test_files_are_looked_at(tmp_path: Path) -> None:
    root = lookalikes.libcom(tmp_path)
    lookalikes.save(np.zeros((9, 9, 3), np.uint8), root / "one" / "truth.png")
    (root / "two" / "foreground.jpg").write_bytes(b"no picture")
    shutil.copytree(root / "two", root / "four")
    (root / "four" / "bbox.txt").write_text("900 900 950 990")
    (root / "three").mkdir()
    shutil.copy(root / "one" / "composite.png", root / "three")
    outside = "four/background.jpg: the box ['900', '900', '950', '990'] lies outside the photo."
    assert problems("libcom", root) == [
        f"{root.name}/{outside}",
        f"{root / 'one' / 'composite.png'} is not as large as truth.png.",
        "three has neither composite_mask nor foreground and bbox.txt.",
        f"{root / 'two' / 'foreground.jpg'} is not there or is no picture.",
    ]


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean murecom"):
        open_dataset("murecon", tmp_path)
    with pytest.raises(InputError, match="does not exist; expected a folder as cocoee has it"):
        open_dataset("cocoee", tmp_path / "gone")
    with pytest.raises(InputError, match="holds no pair of murecom: it is empty"):
        list(open_dataset("murecom", tmp_path).pairs())
    (tmp_path / "Cat").mkdir()
    with pytest.raises(InputError, match="holds no pair of murecom: Cat has no folder bg"):
        list(open_dataset("murecom", tmp_path).pairs())
    with pytest.raises(InputError, match="has no folder of subjects"):
        list(open_dataset("dreameditbench", tmp_path).pairs())


def test_what_was_made_is_no_photo(tmp_path: Path) -> None:
    root = lookalikes.libcom(tmp_path)
    for name in ("one/photo.png", "one/truth.jpg", "result.png"):
        lookalikes.save(lookalikes.places()[0], root / name)
    names = {photo.name for photo in find_photos([str(root)])}
    two = {f"two/{name}" for name in ("background.jpg", "foreground.jpg", "foreground_mask.png")}
    assert names == {"one/photo.png", *two}


def test_a_set_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    dataset = open_dataset("murecom-rmobj", "scikit-image")
    pairs = {pair.name: pair for pair in dataset.pairs()}
    assert len(pairs) >= 4 and dataset.problems() == []
    # Its two photos are two photographs.
    left = pairs["motorcycle-fg1-0"]
    assert pairs["motorcycle-fg1-1"].truth == left.references[0]
    for pair in pairs.values():
        assert pair.truth and pair.truth_mask
        place, truth = (np.asarray(Image.open(f), np.int16) for f in (pair.background, pair.truth))
        where = np.asarray(Image.open(pair.truth_mask)) > 127
        far = np.ones(where.shape, np.bool_)
        far[pair.box.grown(24).intersect(Box.of_size(where.shape[::-1])).slices] = False
        changed = np.abs(place - truth).mean(-1)
        # The object is gone, and the rest is there but for what JPEG does.
        assert changed[where].mean() > 15 and changed[far].mean() < 1.5
    others = list(open_dataset("murecom", "scikit-image").pairs())
    assert len(others) == 12
    assert {pair.category for pair in others} == {name.partition("-")[0] for name in pairs}
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    list(open_dataset("murecom", "scikit-image").pairs())
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}


def test_odd_files_are_told_of_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = lookalikes.libcom(tmp_path / "libcom")
    (root / "two" / "bbox.txt").write_bytes(b"\xff\xfe 1e999 0 20 20")
    assert any("has no box x1, y1, x2, y2" in each for each in problems("libcom", root))
    table = lookalikes.dreameditbench_hub(tmp_path / "hub")
    (table / "odd.parquet").write_bytes(b"PAR1")
    assert "odd.parquet is no Parquet file, or is damaged." in problems("dreameditbench", table)
    place = root / "one" / "composite.png"
    row = {"verb": "compose", "background": str(place), "subjects": [{"picture": str(place)}]}
    row["subjects"][0]["box"] = [1, 1, 9, 9]  # type: ignore[index]
    rows = [
        row | {"name": "数" * 70},
        row | {"name": "b", "references": str(place)},
        row | {"name": "c", "truth": 5.5, "references": [""]},
        {"verb": "harmonize", "picture": str(place), "mask": str(root / "two" / "bbox.txt")},
    ]
    file = tmp_path / "manifest.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    monkeypatch.chdir(tmp_path)
    # Of a path from here, the pictures' do not begin here.
    (pair,) = open_dataset("manifest", "manifest.jsonl").pairs()
    assert pair.background.is_absolute() and len(pair.name.encode()) == 150
    said = problems("manifest", file)
    assert said[0] == said[1].replace("row 3", "row 2")
    assert said[0] == "row 2: references is wrong; expected text, or a list of it."
    assert said[2].startswith("row 4: mask")
