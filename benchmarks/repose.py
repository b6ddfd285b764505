"""Does semantic composition keep a subject's colours while its lines follow a drawing?

Each pair is a photo and a drawing: the subject is cut out of the photo, the hole filled (Telea),
and the drawing is the Canny lines of the same subject turned and stretched on that background. The
subject is composed where it was, once with the source's keys and values and once without. Told for
each pair: the Hellinger distance of colour histograms (8x8x8, RGB), result inside the drawn shape
against the subject inside its own; and the share of drawn and found lines that lie within 2% of
the picture of each other (F1), for the result and for the source.

    python benchmarks/repose.py FOLDER... [--pairs 12] [-o DIR] [--set KEY=VALUE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from inlay import Box, Composer
from inlay.evaluation.photos import Photo, find_photos
from inlay.methods.registry import get
from inlay.pictures.sheet import contact_sheet
from inlay.settings import parse_sets
from inlay.training.objects import find_objects

# The shipped checkpoint's own: finer lines than its pixels cannot be asked of a model.
SHORT_SIDE = 128
# Degrees, width and height of the drawn shape over the subject's.
POSES = ((20, 1.0, 1.0), (-20, 1.0, 1.0), (0, 0.75, 1.0), (0, 1.0, 0.75), (12, 0.85, 1.0))


@dataclass
class Pair:
    name: str
    background: np.ndarray
    subject: np.ndarray
    box: Box
    mask: np.ndarray
    source: np.ndarray
    drawn_mask: np.ndarray
    control: np.ndarray


def lines(picture: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.Canny(np.ascontiguousarray(picture), 100, 200))


def pair(name: str, picture: np.ndarray, mask: np.ndarray, number: int) -> Pair:
    hole = cv2.dilate((mask > 0.02).astype(np.uint8), np.ones((7, 7)))
    background = cv2.inpaint(np.ascontiguousarray(picture), hole, 5, cv2.INPAINT_TELEA)
    x, y, width, height = cv2.boundingRect((mask > 0.02).astype(np.uint8))
    part = np.s_[y : y + height, x : x + width]
    alpha = np.round(mask * 255).astype(np.uint8)
    subject = np.dstack([picture[part], alpha[part]])
    turn, wide, high = POSES[number % len(POSES)]
    centre = (x + width / 2, y + height / 2)
    matrix = cv2.getRotationMatrix2D(centre, turn, 1.0)
    stretch = np.array([[wide, 0, (1 - wide) * centre[0]], [0, high, (1 - high) * centre[1]]])
    whole = np.vstack([matrix, [0, 0, 1]]) @ np.vstack([stretch, [0, 0, 1]])
    size = picture.shape[1], picture.shape[0]
    moved = cv2.warpAffine(picture, whole[:2], size, flags=cv2.INTER_CUBIC)
    drawn_mask = cv2.warpAffine(mask, whole[:2], size)
    cover = drawn_mask[..., None]
    posed = np.round(moved * cover + background * (1 - cover)).astype(np.uint8)
    # The background's own lines stay; the subject's are those of the new pose.
    return Pair(
        name,
        background,
        subject,
        Box(x, y, width, height),
        mask,
        picture,
        drawn_mask,
        lines(posed),
    )


def pairs(photos: list[Photo], count: int) -> Iterator[Pair]:
    found = 0
    for number in np.random.default_rng(5).permutation(len(photos)):
        picture, given = photos[number].read(SHORT_SIDE)
        masks = find_objects(picture, 1) if given is None else [given]
        if not masks or not 0.08 < masks[0].mean() < 0.35:
            continue
        mask = np.asarray(masks[0], np.float32)
        rim = max(mask[[0, -1]].max(), mask[:, [0, -1]].max())
        if rim < 0.02:
            yield pair(photos[number].name, picture, mask, found)
            found += 1
            if found == count:
                return


def histogram(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    inside = (mask > 0.5).astype(np.uint8)
    return cv2.calcHist([picture], [0, 1, 2], inside, [8, 8, 8], [0, 256] * 3)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(cv2.compareHist(a, b, cv2.HISTCMP_HELLINGER))


def agreement(found: np.ndarray, drawn: np.ndarray, where: np.ndarray) -> float:
    """F1 of two sets of lines inside `where`, with a tolerance of 2% of the short side."""
    reach = 2 * round(0.02 * min(where.shape)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    a, b = (found > 0) & where, (drawn > 0) & where
    if not a.any() or not b.any():
        return 0.0
    near_a, near_b = (cv2.dilate(x.astype(np.uint8), kernel) > 0 for x in (a, b))
    precision, recall = near_b[a].mean(), near_a[b].mean()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def main(arguments: argparse.Namespace) -> None:
    settings = parse_sets(arguments.set or [], get("freecompose", "compose").settings)[0][1]
    photos = find_photos(arguments.folders, arguments.split, arguments.include or [])
    composer, out = Composer("embedded", device="cpu"), arguments.output
    out.mkdir(parents=True, exist_ok=True)
    rows, pictures, names = [], [], []
    for item in pairs(photos, arguments.pairs):
        made = {}
        for share in (True, False):
            made[share] = np.asarray(
                composer.compose(
                    item.background,
                    item.subject,
                    box=item.box,
                    control=item.control,
                    method="freecompose",
                    preset="semantic",
                    share=share,
                    **settings,
                ).image
            )
        reference = histogram(item.source, item.mask)
        kernel = np.ones((15, 15))
        either = np.maximum(item.mask, item.drawn_mask)
        where = cv2.dilate(either, kernel) > 0.5
        row = {
            "name": item.name,
            "with": distance(histogram(made[True], item.drawn_mask), reference),
            "without": distance(histogram(made[False], item.drawn_mask), reference),
            "result_lines": agreement(lines(made[True]), item.control, where),
            "source_lines": agreement(lines(item.source), item.control, where),
        }
        rows.append(row)
        print(" ".join(v if isinstance(v, str) else f"{v:.3f}" for v in row.values()), flush=True)
        control = np.repeat(item.control[..., None], 3, axis=2)
        pictures += [Image.fromarray(p) for p in (item.source, control, made[True], made[False])]
        names += ["source", "drawing", f"shared {row['with']:.2f}", f"not {row['without']:.2f}"]
    closer = sum(row["with"] < row["without"] for row in rows)
    follow = sum(row["result_lines"] > row["source_lines"] for row in rows)
    print(f"colours nearer with the source's keys and values: {closer} of {len(rows)}")
    print(f"lines nearer to the drawing than the source's: {follow} of {len(rows)}")
    (out / "repose.json").write_text(json.dumps(rows, indent=2) + "\n")
    contact_sheet(pictures, names, columns=4, cell=192).save(out / "repose.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", help="folders of photos, or scikit-image")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--split", choices=("held-out", "training", "all"))
    parser.add_argument("--include", action="append")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE")
    parser.add_argument("-o", "--output", type=Path, default=Path("repose"))
    main(parser.parse_args())
