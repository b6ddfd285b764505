"""Small data sets in the layouts of the published ones, made of scikit-image's photographs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from photos import ellipse_alpha

Photo = NDArray[np.uint8]
# Where an object is in its photo: x1, y1, x2, y2, their end exclusive.
CAT, CUP = (60, 20, 360, 280), (150, 10, 420, 250)


def save(array: Photo, path: Path, size: tuple[int, int] | None = None) -> Path:
    """An array as a file of its suffix, resampled to (width, height) where one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.resize(size) if size else image).save(path, quality=95)
    return path


def box_mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> Photo:
    """White in a box, whose end is exclusive, of (width, height) pixels."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 255
    return mask


def objects() -> dict[str, tuple[Photo, Photo]]:
    """By category a photo of 240 x 160 pixels and its object's mask."""
    found = {}
    for name, photo, (x1, y1, x2, y2) in (
        ("Cat", data.chelsea(), CAT),
        ("Coffee_cup", data.coffee(), CUP),
    ):
        mask = np.zeros(photo.shape[:2], np.uint8)
        mask[y1:y2, x1:x2] = ellipse_alpha(y2 - y1, x2 - x1)
        small = [np.asarray(Image.fromarray(each).resize((240, 160))) for each in (photo, mask)]
        found[name] = small[0], (small[1] > 127).astype(np.uint8) * 255
    return found


def places(size: tuple[int, int] = (200, 150)) -> list[Photo]:
    """Two photographs of other things."""
    photos = data.rocket(), data.stereo_motorcycle()[0]
    return [np.asarray(Image.fromarray(photo).resize(size)) for photo in photos]


def murecom(root: Path, backgrounds: int = 2, subjects: int = 2, photos: int = 2) -> Path:
    """MureCom with two categories, the objects' photos without them, and boxes of 60 x 50."""
    for name, (photo, mask) in objects().items():
        lines = []
        for number in range(backgrounds):
            place = places()[number % 2]
            save(np.roll(place, 7 * number, 1), root / name / "bg" / f"{number}.jpg")
            save(box_mask((200, 150), (70, 60, 130, 110)), root / name / f"bg/{number}_bbox.png")
            lines.append(f"{name.replace('_', ' ')} {number}.jpg 70 60 129 109\n")
        (root / name / "bg" / "bbox.txt").write_text("".join(lines))
        for subject in range(1, subjects + 1):
            for number in range(photos):
                home, light = root / name / f"fg{subject}", 1 - 0.1 * number - 0.2 * (subject - 1)
                lit = (photo * light).astype(np.uint8)
                save(lit, home / f"{number}.jpg")
                save(mask, home / f"{number}.png")
                bare = np.where(mask[..., None] > 0, lit[:20].mean((0, 1)), lit)
                save(bare.astype(np.uint8), home / f"{number}_rmobj.jpg")
                save((photo * 0.5).astype(np.uint8), home / f"{number}_aug" / "0.jpg")
    return root


def dreameditbench(root: Path, photos: int = 2) -> Path:
    """DreamEditBench's folders: two subjects of one class, and one of its own."""
    for task, boxes in (("addition", True), ("replacement", False)):
        for name in ("dog", "cat"):
            home, told = root / "data" / f"{task}_source" / name, {}
            for number, place in enumerate(places((400, 256))):
                save(place, home / f"found{number}.jpg")
                told[f"found{number}.jpg"] = [128, 64, 384, 448]
            if boxes:
                (home / "bbox.json").write_text(json.dumps(told))
    cat, cup = (photo for photo, _ in objects().values())
    for name, photo in (("dog", cup), ("dog2", cup[:, ::-1]), ("cat", cat)):
        for number in range(photos):
            lit = (photo * (1 - 0.1 * number)).astype(np.uint8)
            save(np.ascontiguousarray(lit), root / "subjects" / name / f"{number:02d}.jpg")
    return root


def dreameditbench_hub(root: Path) -> Path:
    """DreamEditBench as the hub has it: Parquet with pictures as bytes; one row has no box."""
    import pyarrow as pa
    from pyarrow import parquet

    def encoded(photo: Photo) -> dict[str, Any]:
        file = io.BytesIO()
        Image.fromarray(photo).save(file, "JPEG", quality=95)
        return {"bytes": file.getvalue(), "path": "a.jpg"}

    cat = objects()["Cat"][0]
    rows = [
        {
            "subject_name": "cat",
            "subject_images": [encoded(cat), encoded(cat[:, ::-1])],
            "source_images": [encoded(places((400, 256))[number])],
            "identifier": "sks",
            "source_prompt": "a rocket",
            "target_prompt": "a photo of a sks cat",
            "add_bounding_box": box,
            "task_type": task,
        }
        for number, (task, box) in enumerate(
            (("addition", [128, 64, 384, 448]), ("replacement", None))
        )
    ]
    (root / "data").mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows), root / "data" / "test-00000.parquet")
    return root


def shine(root: Path) -> Path:
    """Shine-DreamEditBench: one class, two backgrounds of 768 x 768."""
    cat, mask = objects()["Cat"]
    save(cat, root / "cat" / "fg" / "03.jpg")
    save(mask, root / "cat" / "fg" / "03.png")
    told = []
    for number, place in enumerate(places((768, 768))):
        save(place, root / "cat" / "bg" / f"{number}.jpg")
        about = {"source_prompt": "A cat.", "target_prompt": "A <sks>."}
        told.append({"image": f"{number}.jpg", "bbox": [100, 200, 401, 503], **about})
    (root / "cat" / "bg" / "content.json").write_text(json.dumps(told))
    return root


def tf_icon(root: Path) -> Path:
    """TF-ICON's benchmark: one sample, with a composite that its authors put beside it."""
    home = root / "Real-Real" / "a cat at a launch"
    cat, mask = objects()["Cat"]
    save(places()[0], home / "bg7.jpg")
    save(cat, home / "fg7_63d2.jpg")
    save(mask, home / "fg7_mask.png")
    save(box_mask((200, 150), (20, 30, 120, 90)), home / "mask_bg_fg.jpg")
    save(places()[1], home / "cp_bg_fg.jpg")
    return root


def cocoee(root: Path) -> Path:
    """COCOEE: one picture, its reference and its box."""
    save(places()[0], root / "GT_3500" / "000000000139_GT.png")
    save(objects()["Cat"][0], root / "Ref_3500" / "000000000139_ref.png")
    mask = box_mask((200, 150), (20, 30, 120, 90))
    save(mask, root / "Mask_bbox_3500" / "000000000139_mask.png")
    return root


def iharmony4(root: Path) -> Path:
    """iHarmony4 with two of its parts; of one there is a list of what is for the test."""
    for part in ("HCOCO", "HFlickr"):
        for name, (photo, mask) in zip(("c1", "c2"), objects().values(), strict=True):
            save(photo, root / part / "real_images" / f"{name}.jpg")
            save(mask, root / part / "masks" / f"{name}_1.png")
            for version in (1, 2):
                dark = np.where(mask[..., None] > 0, photo // (version + 1), photo)
                save(dark, root / part / "composite_images" / f"{name}_1_{version}.jpg")
    (root / "HFlickr" / "HFlickr_test.txt").write_text("c1_1_2.jpg\n")
    return root


def libcom(root: Path) -> Path:
    """libcom: a triple whose truth is known, and a pair to compose."""
    photo, mask = objects()["Cat"]
    save(np.where(mask[..., None] > 0, photo // 2, photo), root / "one" / "composite.png")
    save(mask, root / "one" / "composite_mask.png")
    save(photo, root / "one" / "truth.png")
    for name, picture in (("background", places()[0]), ("foreground", photo)):
        save(picture, root / "two" / f"{name}.jpg")
    save(mask, root / "two" / "foreground_mask.png")
    (root / "two" / "bbox.txt").write_text("20 30 120 90")
    return root


def manifest(root: Path) -> Path:
    """Requests in a manifest, with what judges them beside."""
    photo, mask = objects()["Cat"]
    save(places()[0], root / "place.png")
    save(photo, root / "cat.png")
    save(mask, root / "mask.png")
    subject = {"picture": "cat.png", "mask": "mask.png", "box": [20, 30, 100, 60]}
    row = {"name": "one", "verb": "compose", "background": "place.png", "subjects": [subject]}
    more = {"truth": "place.png", "prompt": "a cat", "category": "cat"}
    other = {"name": "two", "verb": "harmonize", "picture": "cat.png", "mask": "mask.png"}
    lines = [json.dumps(each) + "\n" for each in (row | more, other)]
    (root / "manifest.jsonl").write_text("".join(lines))
    return root


LAYOUTS = {
    "murecom": murecom,
    "murecom-rmobj": murecom,
    "dreameditbench": dreameditbench,
    "shine-dreameditbench": shine,
    "tf-icon": tf_icon,
    "cocoee": cocoee,
    "iharmony4": iharmony4,
    "libcom": libcom,
    "manifest": manifest,
}
