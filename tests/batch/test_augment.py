"""Training data: where things go, and that every label is right to the pixel in every format."""

from __future__ import annotations

import io
import json
import runpy
import tarfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from inlay import Box, Composer, InputError, Request
from inlay.batch.augment import find_ground, numbers
from inlay.batch.labels import polygons
from inlay.batch.sources import read_photos, read_things
from inlay.cli import main
from photos import cup, cutout, ellipse_alpha

coco = pytest.importorskip("pycocotools.mask")
Mask = NDArray[np.bool_]
EXAMPLES = Path(__file__).parents[2] / "examples"
FORMATS = "coco,yolo,voc,masks,imagefolder,webdataset"


def ellipse(shape: tuple[int, int], box: Box) -> Mask:
    mask = np.zeros(shape, bool)
    mask[box.slices] = ellipse_alpha(box.height, box.width) > 127
    return mask


def sources(folder: Path) -> tuple[Path, Path]:
    """Two photos with COCO's JSON, whose things are said in all its ways, and two objects."""
    photos, things = folder / "photos", folder / "things"
    (things / "cup").mkdir(parents=True)
    photos.mkdir()
    Image.fromarray(cup()).resize((90, 80)).save(things / "cup" / "1.png")
    Image.fromarray(cutout(data.chelsea(), Box(60, 20, 300, 260))).resize((100, 87)).save(
        things / "cat.png"
    )
    images, annotations = [], []
    for number, picture in enumerate((data.coffee(), data.astronaut())):
        small = cv2.resize(picture, (300, 220), interpolation=cv2.INTER_AREA)
        Image.fromarray(small).save(photos / f"{number}.png")
        size = {"width": 300, "height": 220}
        images.append({"id": number + 7, "file_name": f"{number}.png", **size})
        mask = ellipse((220, 300), Box(30, 110, 90, 90))
        code = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        counts: list[int] = np.diff(
            np.flatnonzero(np.diff(np.concatenate([[2], mask.T.ravel(), [2]]))).tolist()
        ).tolist()
        kinds: list[dict[str, Any]] = [
            {"segmentation": {"size": [220, 300], "counts": code["counts"].decode()}},
            {"segmentation": {"size": [220, 300], "counts": counts}, "iscrowd": 1},
            {"segmentation": [[200, 100, 280, 120, 240, 200.5], [10, 10, 20, 10, 20, 30]]},
            {"bbox": [150, 120, 60, 40]},
        ]
        for each in kinds[2 * number : 2 * number + 2]:
            own = {"id": len(annotations), "image_id": number + 7, "category_id": 3 + number}
            annotations.append({**own, **each})
    categories = [{"id": 3, "name": "plate"}, {"id": 4, "name": "face & hair"}]
    told = {"images": images, "annotations": annotations, "categories": categories}
    (photos / "instances.json").write_text(json.dumps(told))
    return photos / "instances.json", things


def seen(own: int, layers: list[tuple[Any, str]]) -> list[tuple[str, Mask, float]]:
    """What is seen of things that lie over each other, as slowly as it can be said; the first
    `own` are a photo's, which hide nothing of each other.
    """
    found = []
    for number, (alpha, name) in enumerate(layers):
        left = alpha
        for above, _ in layers[max(number + 1, own) :]:
            left = left * (1 - above)
        found.append((name, left >= 0.5 - 1e-6, left.sum() / alpha.sum()))
    return found


def test_labels_are_those_of_the_layers_in_every_format(tmp_path: Path) -> None:
    photos, things = sources(tmp_path)
    out = tmp_path / "out"
    command = ["augment", str(photos), str(things), "-o", str(out), "--labels", FORMATS]
    command += ["--places", "0,0.45,1,0.55", "--copies", "2", "--count", "5,6", "--overlap", "0.9"]
    command += ["--workers", "1", "--seed", "4", "--size", "0.6,0.9", "-q", "--visible", "0.4"]
    assert main(command) == 0
    assert Image.open(out / "preview.png").size[0] > 300
    told = json.loads((out / "coco.json").read_text())
    ringed = json.loads((out / "coco_polygons.json").read_text())
    names = {each["id"]: each["name"] for each in told["categories"]}
    assert sorted(names.values()) == ["cat", "cup", "face & hair", "plate"]
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").open()]
    known = {Path(photo.path).name: photo for photo in read_photos(str(photos))}
    metadata = [json.loads(line) for line in (out / "images" / "metadata.jsonl").open()]
    with tarfile.open(out / "webdataset" / "000000.tar") as tar:
        packed = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
    total = hidden = 0
    rows = [json.loads(line) for line in (out / "manifest.jsonl").open()]
    assert len(rows) == len(told["images"]) == 4
    for image, row, listed in zip(told["images"], rows, metadata, strict=True):
        stem, size = Path(row["name"]).stem, (image["height"], image["width"])
        assert image["file_name"] == row["name"] and listed["file_name"] == f"{stem}.png"
        del row["name"]
        result = Composer().run(Request.of(row))
        made = np.asarray(Image.open(out / image["file_name"]))
        assert np.array_equal(made, np.asarray(result.image))
        layers = list[tuple[Any, str]]()
        for name, mask in known[Path(row["background"]).name].masks(*size[::-1]):
            layers.append((mask.astype(np.float64), name))
        own = len(layers)
        for layer, subject in zip(result.layers, row["subjects"], strict=True):
            alpha = np.zeros(size)
            alpha[layer.box.slices] = np.asarray(layer.mask) / 255
            layers.append((alpha, Path(subject["picture"]).parent.name))
        truth = seen(own, layers)
        kept = [each for each in truth if each[2] >= 0.4]
        gone = [each["category"] for each in dropped if each["file_name"] == f"{stem}.png"]
        assert gone == [name for name, _, share in truth if share < 0.4]
        mine = [each for each in told["annotations"] if each["image_id"] == image["id"]]
        rings = [each for each in ringed["annotations"] if each["image_id"] == image["id"]]
        lines = (out / "labels" / f"{stem}.txt").read_text().splitlines()
        voc = ElementTree.parse(out / "Annotations" / f"{stem}.xml")
        objects = np.asarray(Image.open(out / "SegmentationObject" / f"{stem}.png"))
        kinds = np.asarray(Image.open(out / "SegmentationClass" / f"{stem}.png"))
        assert np.array_equal(
            np.asarray(Image.open(io.BytesIO(packed[f"{stem}.mask.png"]))), objects
        )
        assert json.loads(packed[f"{stem}.json"]) == listed["objects"]
        assert packed[f"{stem}.png"] == (out / "images" / f"{stem}.png").read_bytes()
        assert len(mine) == len(rings) == len(lines) == len(kept) == len(voc.findall("object"))
        last = np.zeros(size, np.uint8)
        for number, (name, mask, share) in enumerate(kept, 1):
            label = mine[number - 1]
            assert names[label["category_id"]] == name and label["visible"] == pytest.approx(
                share, abs=1e-3
            )
            assert np.array_equal(coco.decode(label["segmentation"]).astype(bool), mask)
            x, y, width, height = label["bbox"]
            assert mask[y : y + height, x : x + width].sum() == mask.sum() == label["area"]
            assert (
                mask[[y, y + height - 1]].any(1).all() and mask[:, [x, x + width - 1]].any(0).all()
            )
            polygon = coco.merge(coco.frPyObjects(rings[number - 1]["segmentation"], *size))
            assert iou(coco.decode(polygon).astype(bool), mask) >= 0.99
            kind, *shares = lines[number - 1].split()
            points = np.array(shares, float).reshape(-1, 2) * size[::-1]
            outline = coco.merge(coco.frPyObjects([points.ravel().tolist()], *size))
            assert iou(coco.decode(outline).astype(bool), mask) >= 0.99
            assert f"{kind}: {json.dumps(name)}" in (out / "data.yaml").read_text()
            assert listed["objects"]["bbox"][number - 1] == label["bbox"]
            bounds = voc.findall("object")[number - 1].find("bndbox")
            assert bounds is not None
            assert [int(each.text or 0) for each in bounds] == [x + 1, y + 1, x + width, y + height]
            alpha = np.asarray(Image.open(out / "masks" / f"{stem}-{number}.png"))
            assert np.array_equal(alpha > 127, mask)
            last[mask] = number
            hidden += share < 0.99
        assert np.array_equal(objects, last)
        assert {int(kind) for kind in kinds[objects == len(kept)]} == {mine[-1]["category_id"]}
        total += len(kept)
    example = runpy.run_path(str(EXAMPLES / "torch_dataset.py"))["Composites"](str(out))
    assert len(example) == 4
    picture, target = example[3]
    assert picture.shape == (3, *size) and np.array_equal(target["masks"][-1].numpy() > 0, mask)
    assert target["boxes"][-1].tolist() == [x, y, x + width, y + height]
    assert total >= 10 and hidden >= 2 and len(dropped) >= 2, (total, hidden, dropped)


def iou(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1))


def test_polygons_are_exact_for_any_mask() -> None:
    """Holes and pieces, one of which touches the border, and a single pixel."""
    rng = np.random.default_rng(0)
    masks = [cv2.GaussianBlur(rng.normal(size=(90, 120)), (0, 0), 6) > 0 for _ in range(5)]
    masks += [np.pad(np.ones((1, 1), bool), 3), np.ones((5, 7), bool)]
    for mask in masks:
        height, width = mask.shape
        rings = [ring.ravel().tolist() for ring in polygons(mask)]
        found = coco.decode(coco.merge(coco.frPyObjects(rings, height, width)))
        assert np.array_equal(found.astype(bool), mask)


def test_things_stand_on_the_ground_and_none_in_the_sky(tmp_path: Path) -> None:
    """A rendered place whose horizon is known: feet are below it, and what is far is small."""
    rng, (height, width) = np.random.default_rng(1), (300, 400)
    place = np.full((height, width, 3), (120, 170, 230), np.uint8)
    place[140:] = rng.integers(60, 140, (160, width, 1))
    ground = find_ground(place)
    assert ground is not None and not ground.feet[: int(0.6 * len(ground.feet))].any()
    assert abs(ground.horizon / len(ground.feet) - 140 / 300) < 0.05
    assert find_ground(np.full((200, 300, 3), (120, 170, 230), np.uint8)) is None
    (tmp_path / "places").mkdir()
    Image.fromarray(place).save(tmp_path / "places" / "field.png")
    (tmp_path / "things").mkdir()
    Image.fromarray(cup()).save(tmp_path / "things" / "cup.png")
    command = ["augment", str(tmp_path / "places"), str(tmp_path / "things"), "--preview", "-q"]
    for seed in ("1", "1", "2"):
        out = tmp_path / f"out{seed}"
        assert main([*command, "-o", str(out), "--copies", "30", "--seed", seed]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out1" / "manifest.jsonl").open()]
    other = [json.loads(line) for line in (tmp_path / "out2" / "manifest.jsonl").open()]
    assert [row["subjects"] for row in rows] != [row["subjects"] for row in other]
    boxes = np.array([each["box"] for row in rows for each in row["subjects"]])
    feet = boxes[:, 1] + boxes[:, 3]
    assert len(boxes) >= 40 and feet.min() > 175 and feet.max() <= 300
    far, near = boxes[feet < 220, 3], boxes[feet > 270, 3]
    assert np.median(far) < 0.7 * np.median(near)


def test_places_and_sources_that_are_wrong_are_refused(tmp_path: Path) -> None:
    photos, things = sources(tmp_path)
    for source, words in (
        (tmp_path / "none", "no folder and no COCO"),
        (things / "cat.png", "no COCO"),
    ):
        with pytest.raises(InputError, match=words):
            read_photos(str(source))
    broken = json.loads(photos.read_text())
    broken["annotations"][0]["segmentation"]["size"] = [22, 30]
    photos.write_text(json.dumps(broken))
    with pytest.raises(InputError, match=r"0\.png is damaged"):
        read_photos(str(photos))[0].masks(300, 220)
    for text in ("1", "2,1", "a,b", "1,9"):
        with pytest.raises(InputError, match="--count"):
            numbers(text, "count", 2, most=8)


def test_objects_of_coco_are_cut_out(tmp_path: Path) -> None:
    photos, _ = sources(tmp_path)
    things = read_things(str(photos), tmp_path / "objects")
    assert [thing.category for thing in things] == ["plate", "plate", "face & hair", "face & hair"]
    cut = Image.open(things[0].path)
    assert cut.mode == "RGBA" and abs(cut.width - 81) <= 2 and cut.getpixel((0, 0))[3] == 0  # type: ignore[index]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "objects").rglob("*.png")}
    assert read_things(str(photos), tmp_path / "objects") == things
    assert before == {path: path.stat().st_mtime_ns for path in before}
