"""Does learning an object work, and what of DreamCom does it take?

For each subject the last photo is held out, and the object is learnt from the others. Told are
learning: by how much the denoising loss in the held-out photo's box falls, and in the held-out
    photos' boxes of the other subjects (each under a prompt with its own class), the mean over
    noise levels of 1 - after / before.
insertion: how far the box's colours are from the references' boxes (Hellinger distance of joint RGB
    histograms), over all backgrounds and seeds; "before" is the checkpoint without what was learnt.
The rows are the whole method, without masked cross-attention (in training and inference), without
masked self-attention, without both, and 1 to 5 references.

    python benchmarks/dreamcom.py SUBJECTS BACKGROUNDS -o DIR [--only NAME ...] [--set KEY=VALUE]
        [--learn KEY=VALUE]

SUBJECTS holds a folder of photos for each subject of --boxes (some of DreamBooth's, whose
boxes are in dreambooth_boxes.json as shares of the photo: left, top, right, bottom); BACKGROUNDS is
a folder of photos, or scikit-image. What was learnt and measured stays in DIR, and a second run
goes on from it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from inlay import Box, Composer
from inlay.checkpoints.concept import attach
from inlay.evaluation.photos import find_photos
from inlay.learning.learn import learn
from inlay.learning.photos import with_places
from inlay.learning.settings import LearnConfig
from inlay.methods.base import Context
from inlay.methods.concept.fill import filler
from inlay.methods.dreamcom import prediction_error
from inlay.methods.registry import get
from inlay.pictures.read import read_picture
from inlay.scene.stitch import Region, Scene, Window
from inlay.settings import parse_sets

OWN_BOXES = Path(__file__).parent / "dreambooth_boxes.json"
SHORT_SIDE = 384
# The box's longer side, in short sides of the background.
SIZE = 0.45
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
# What each row is learnt with, and what it is put in with.
ABLATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": ({}, {}),
    "-MCAttn": ({"mask_cross_attention": False}, {}),
    "-MSAttn": ({}, {"self_attention": "a"}),
    "-both": ({"mask_cross_attention": False}, {"self_attention": "a"}),
}


@dataclass(frozen=True)
class Subject:
    name: str
    class_name: str
    photos: list[Path]
    boxes: list[Box]

    @property
    def kept(self) -> int:
        """How many photos there are to learn from."""
        return len(self.photos) - 1


def subjects(folder: Path, boxes: Path, only: list[str]) -> Iterator[Subject]:
    for name, entry in json.loads(boxes.read_text()).items():
        if only and name not in only:
            continue
        photos, places = [], []
        for file, share in entry["boxes"].items():
            photo = folder / name / file
            width, height = read_picture(photo).size
            left, top, right, bottom = (
                round(v * side) for v, side in zip(share, (width, height) * 2, strict=True)
            )
            photos.append(photo)
            places.append(Box(left, top, right - left, bottom - top))
        yield Subject(name, entry["class"], photos, places)


def learnt(subject: Subject, count: int, settings: dict[str, Any], folder: Path) -> Path:
    """The file of a subject learnt from its first `count` photos."""
    off = "" if settings.get("mask_cross_attention", True) else "-unmasked"
    path = folder / f"{subject.name}-{count}{off}.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        config = LearnConfig.model_validate(settings)
        chosen = subject.photos[:count], subject.boxes[:count]
        learn(with_places(*chosen), subject.class_name, path, config, device="cpu")
    return path


def loss(composer: Composer, file: Path, subject: Subject, scale: float) -> np.ndarray:
    """Denoising loss in the held-out photo's box at each of LEVELS, what was learnt scaled."""
    with attach(composer.backbone, file) as about:
        prompt = about.prompt.replace(about.class_name, subject.class_name)
    picture, box = read_picture(subject.photos[-1]), subject.boxes[-1]
    mask = np.zeros((picture.height, picture.width), np.float32)
    mask[box.slices] = 1
    backbone = composer.backbone
    window = Window.of(picture, Scene(Region.of(mask)), 0.5)
    window.concept = file
    settings = get("dreamcom").settings.model_validate({"prompt": prompt, "lora_scale": scale})
    values = []
    with filler(window, backbone, settings, Context()) as fill:
        text = fill.text
        for level in LEVELS:
            values.append(prediction_error(fill, fill.source(), text, levels=(level,)))
    return np.array(values)


def histogram(picture: np.ndarray) -> np.ndarray:
    return cv2.calcHist([np.ascontiguousarray(picture)], [0, 1, 2], None, [8] * 3, [0, 256] * 3)


def distance(picture: np.ndarray, known: list[np.ndarray]) -> float:
    here = histogram(picture)
    return float(np.mean([cv2.compareHist(here, one, cv2.HISTCMP_HELLINGER) for one in known]))


def references(subject: Subject, count: int) -> list[np.ndarray]:
    pairs = zip(subject.photos[:count], subject.boxes[:count], strict=True)
    return [np.asarray(Image.open(p).convert("RGB"))[box.slices] for p, box in pairs]


def places(folder: str, count: int, aspect: float) -> Iterator[tuple[np.ndarray, Box]]:
    photos = find_photos([folder], "all")
    for number in range(count):
        scene, _ = photos[number * len(photos) // count].read(SHORT_SIDE)
        side = SIZE * min(scene.shape[:2])
        wide, high = round(side * min(1, aspect)), round(side * min(1, 1 / aspect))
        x = (scene.shape[1] - wide) // 2
        yield scene, Box(x, round(0.9 * (scene.shape[0] - high)), wide, high)


def insert(
    composer: Composer, file: Path, scene: np.ndarray, box: Box, seed: int, **settings: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The picture's window, and its box; nothing outside the recorded region may have changed."""
    made = composer.compose(scene, file, box=box, method="dreamcom", seed=seed, **settings)
    picture, region = np.asarray(made.image.convert("RGB")), made.region
    outside = np.ones(scene.shape[:2], bool)
    outside[region.slices] = False
    if (picture[outside] != scene[outside]).any():
        raise SystemExit("a pixel outside of the region changed")
    return picture[made.window.slices], picture[box.slices]


def rows_of(subject: Subject) -> dict[str, tuple[int, dict[str, Any], dict[str, Any]]]:
    """By name: how many references, what it is learnt with, what it is put in with."""
    rows = {name: (subject.kept, *both) for name, both in ABLATIONS.items()}
    for count in range(1, min(subject.kept, 5) + 1):
        rows[f"{count} reference{'s' if count > 1 else ''}"] = (count, {}, {})
    return rows


def main(arguments: argparse.Namespace) -> None:
    method = get("dreamcom")
    put_in = parse_sets(arguments.set or [], method.settings)[0][1]
    with_ = dict(item.split("=", 1) for item in arguments.learn or [])
    chosen = list(subjects(arguments.subjects, arguments.boxes, arguments.only or []))
    composer, out = Composer("embedded", device="cpu"), arguments.output
    out.mkdir(parents=True, exist_ok=True)
    learning, inserted = [], []
    for subject in chosen:
        whole = learnt(subject, subject.kept, with_, out / "learned")
        falls = {}
        for other in chosen:
            before, after = (loss(composer, whole, other, scale) for scale in (0.0, 1.0))
            falls[other.name] = float(np.mean(1 - after / before))
        rest = [value for name, value in falls.items() if name != subject.name]
        learning.append({"subject": subject.name, "falls": falls})
        best = max(rest, default=float("nan"))
        print(
            f"{subject.name}: the loss falls by {falls[subject.name]:+.3f}, others' by "
            f"{np.mean(rest or [np.nan]):+.3f}, at most {best:+.3f}",
            flush=True,
        )
        refs = references(subject, subject.kept)
        known = [histogram(each) for each in refs]
        aspect = float(np.median([box.width / box.height for box in subject.boxes[:-1]]))
        rows = rows_of(subject) if not arguments.short else {"full": rows_of(subject)["full"]}
        shown = [strip(refs, arguments.backgrounds_count, subject.name)]
        for name, (count, trained, used) in {"before": (subject.kept, {}, {}), **rows}.items():
            kept = out / "rows" / f"{subject.name} {name}.json"
            if not kept.is_file():
                file = learnt(subject, count, {**with_, **trained}, out / "learned")
                scale = {"lora_scale": 0.0} if name == "before" else {}
                distances, windows = [], []
                for scene, box in places(
                    arguments.backgrounds, arguments.backgrounds_count, aspect
                ):
                    for seed in range(arguments.seeds):
                        settings = {**put_in, **used, **scale}
                        window, inside = insert(composer, file, scene, box, seed, **settings)
                        distances.append(distance(inside, known))
                        if seed == 0:
                            windows.append(window)
                kept.parent.mkdir(exist_ok=True)
                row = strip(windows, arguments.backgrounds_count, name)
                Image.fromarray(row).save(kept.with_suffix(".png"))
                kept.write_text(json.dumps(distances, default=float))
            distances = json.loads(kept.read_text())
            inserted.append({"subject": subject.name, "row": name, "distances": distances})
            print(f"  {name}: {np.mean(distances):.3f}", flush=True)
            shown.append(np.asarray(Image.open(kept.with_suffix(".png"))))
        Image.fromarray(np.vstack(shown)).save(out / f"{subject.name}.png")
    report(learning, inserted, out)


def strip(pictures: list[np.ndarray], columns: int, label: str) -> np.ndarray:
    """A label above a row of squares."""
    side, bar = 160, 16
    row = np.full((side + bar, side * columns, 3), 255, np.uint8)
    cv2.putText(row, label, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    for number, picture in enumerate(pictures[:columns]):
        scale = side / max(picture.shape[:2])
        size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        row[bar : bar + size[1], number * side : number * side + size[0]] = small
    return row


def report(learning: list[dict[str, Any]], inserted: list[dict[str, Any]], out: Path) -> None:
    lines = ["| subject | fall | others' mean | others' most | before | after |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    mean = {(r["subject"], r["row"]): float(np.mean(r["distances"])) for r in inserted}
    more, most, nearer = 0, 0, 0
    for row in learning:
        name, own = row["subject"], row["falls"][row["subject"]]
        rest = [v for other, v in row["falls"].items() if other != name] or [float("nan")]
        before, after = mean[name, "before"], mean[name, "full"]
        more, most = more + (own > np.mean(rest)), most + (own > max(rest))
        nearer += after < before
        lines.append(
            f"| {name} | {own:+.3f} | {np.mean(rest):+.3f} | {max(rest):+.3f} | {before:.3f} | "
            f"{after:.3f} |"
        )
    count = len(learning)
    lines += [
        "",
        f"The loss falls by more than others' in the mean: {more} of {count}; than any other's: "
        f"{most} of {count}. Colours nearer after learning: {nearer} of {count}.",
        "",
        "| row | subjects | distance | nearer than before |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in dict.fromkeys(r["row"] for r in inserted):
        those = [s for s, row in mean if row == name]
        wins = sum(mean[s, name] < mean[s, "before"] for s in those)
        lines.append(
            f"| {name} | {len(those)} | {np.mean([mean[s, name] for s in those]):.3f} | {wins} |"
        )
    (out / "dreamcom.md").write_text("\n".join(lines) + "\n")
    told = {"learning": learning, "insertion": inserted}
    (out / "dreamcom.json").write_text(json.dumps(told, indent=2, default=float) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects", metavar="SUBJECTS", type=Path)
    parser.add_argument("backgrounds", metavar="BACKGROUNDS", help="folder, or scikit-image")
    parser.add_argument("--boxes", type=Path, default=OWN_BOXES)
    parser.add_argument("--only", nargs="*", metavar="NAME")
    parser.add_argument("--backgrounds-count", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1, help="samples for each background")
    parser.add_argument("--short", action="store_true", help="no ablations, no fewer references")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="of dreamcom")
    parser.add_argument("--learn", action="append", metavar="KEY=VALUE", help="of the learning")
    parser.add_argument("-o", "--output", type=Path, default=Path("dreamcom"))
    main(parser.parse_args())
