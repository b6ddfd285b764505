"""What do the removal methods put where nothing but background was, and is an object really gone?

Background: in photos a round hole is put where there is no object, so the photo itself is the
truth. Told for each method: PSNR inside the hole; the gradient energy there (sum of absolute
differences) over the truth's, pooled; and the mean over photos of |log2| of that ratio, which a
method that is too smooth here and too rough there cannot average away.
Objects: what the mask covers is an object of the photo, so there is no truth: a grid is written.

    python benchmarks/removal.py FOLDER... [--methods telea,inpaint,freecompose] [-o DIR]

Pictures are reduced to a short side of 256 pixels; methods take name:key=value as `inlay bench`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from inlay import Composer
from inlay.evaluation.photos import Photo, find_photos
from inlay.methods.registry import get
from inlay.pictures.sheet import contact_sheet
from inlay.settings import parse_sets
from inlay.training.objects import find_objects

SHORT_SIDE = 256
# Radius of the hole in short sides: a little more than a twentieth of a square picture.
RADIUS = 0.13


def energy(picture: np.ndarray, inside: np.ndarray) -> float:
    """Sum of absolute differences to the right and down, between pixels that are both inside."""
    values = picture.astype(np.float64) / 255
    across = np.abs(np.diff(values, axis=1))[inside[:, 1:] & inside[:, :-1]]
    down = np.abs(np.diff(values, axis=0))[inside[1:] & inside[:-1]]
    return float(across.sum() + down.sum())


def background_hole(objects: np.ndarray) -> np.ndarray | None:
    """A disc (h, w), bool, in the widest place without objects; None where there is no room."""
    radius = RADIUS * min(objects.shape)
    free = cv2.copyMakeBorder((objects < 0.02).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    distance = cv2.distanceTransform(free, cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(np.argmax(distance)), distance.shape)
    if distance[y, x] < 1.15 * radius:
        return None
    rows, columns = np.mgrid[: objects.shape[0], : objects.shape[1]]
    return np.asarray(np.hypot(rows - y, columns - x) <= radius)


def cases(photos: list[Photo], count: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, picture and hole of up to `count` photos with room beside what they show."""
    found = 0
    for number in np.random.default_rng(0).permutation(len(photos)):
        photo = photos[number]
        picture, given = photo.read(SHORT_SIDE)
        masks = find_objects(picture) if given is None else [given]
        hole = background_hole(np.max([np.zeros(picture.shape[:2], np.float32), *masks], axis=0))
        # Without any object found, the hole could lie on one.
        if masks and hole is not None:
            yield photo.name, picture, hole
            found += 1
            if found == count:
                return


def with_objects(photos: list[Photo], count: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, picture and the mask of an object that leaves some background, a little grown."""
    found = 0
    for number in np.random.default_rng(1).permutation(len(photos)):
        photo = photos[number]
        picture, given = photo.read(SHORT_SIDE)
        masks = find_objects(picture, 1) if given is None else [given]
        if masks and 0.03 < masks[0].mean() < 0.3:
            kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))
            yield photo.name, picture, cv2.dilate(masks[0], kernel) > 0.1
            found += 1
            if found == count:
                return


def removed(
    composer: Composer, picture: np.ndarray, hole: np.ndarray, variant: tuple[str, Mapping]
) -> np.ndarray:
    name, settings = variant
    mask = hole.astype(np.uint8) * 255
    return np.asarray(composer.remove(picture, mask=mask, method=name, **settings).image)


def around(picture: np.ndarray, hole: np.ndarray) -> Image.Image:
    """The square round a hole, three of its sizes wide."""
    x, y, width, height = cv2.boundingRect(hole.astype(np.uint8))
    side = min(3 * max(width, height), *hole.shape)
    top = int(np.clip(y + height // 2 - side // 2, 0, hole.shape[0] - side))
    left = int(np.clip(x + width // 2 - side // 2, 0, hole.shape[1] - side))
    return Image.fromarray(picture[top : top + side, left : left + side]).resize((192, 192))


def figures(rows: list[dict[str, float]]) -> dict[str, float]:
    ratios = np.array([row["energy"] / row["truth"] for row in rows])
    return {
        "psnr": float(np.mean([row["psnr"] for row in rows])),
        "energy_ratio": sum(r["energy"] for r in rows) / sum(r["truth"] for r in rows),
        "energy_mismatch": float(np.mean(np.abs(np.log2(np.maximum(ratios, 1e-3))))),
    }


def main(arguments: argparse.Namespace) -> None:
    variants: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for label in arguments.methods.split(","):
        name, *sets = label.split(":")
        variants[label] = (name, parse_sets(sets, get(name, "remove").settings)[0][1])
    photos = find_photos(arguments.folders, arguments.split, arguments.include or [])
    composer, out = Composer("embedded", device="cpu"), arguments.output
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, float]]] = {label: [] for label in variants}
    pictures, names = [], []
    for name, picture, hole in cases(photos, arguments.count):
        shown = np.where(hole[..., None], 255, picture).astype(np.uint8)
        pictures += [around(picture, hole), around(shown, hole)]
        names += [Path(name).stem[:16], "hole"]
        truth = energy(picture, hole)
        for label, variant in variants.items():
            result = removed(composer, picture, hole, variant)
            error = ((result.astype(float) - picture) ** 2)[hole].mean()
            psnr = 10 * np.log10(255**2 / max(error, 0.1))
            # Below a grey level a pixel, the ratio would be that of the camera's noise.
            least = 0.2 / 255 * 6 * hole.sum()
            row = {"psnr": psnr, "energy": energy(result, hole), "truth": truth}
            rows[label].append({k: v if k == "psnr" else max(v, least) for k, v in row.items()})
            pictures.append(around(result, hole))
            names.append(f"{label.split(':')[0]} {psnr:.1f}")
    columns = 2 + len(variants)
    shown_rows = columns * arguments.rows
    contact_sheet(pictures[:shown_rows], names[:shown_rows], columns=columns, cell=192).save(
        out / "background.png"
    )
    report = {label: figures(found) for label, found in rows.items()}
    print(f"{len(next(iter(rows.values())))} photos      PSNR  energy  |log2 energy|")
    for label, row in report.items():
        print(
            f"{label:40s} {row['psnr']:6.2f} {row['energy_ratio']:6.2f} "
            f"{row['energy_mismatch']:6.2f}"
        )
    (out / "removal.json").write_text(json.dumps(report, indent=2) + "\n")
    pictures, names = [], []
    for name, picture, hole in with_objects(photos, arguments.objects):
        pictures += [around(picture, hole)]
        names += [Path(name).stem[:16]]
        for label, variant in variants.items():
            pictures.append(around(removed(composer, picture, hole, variant), hole))
            names.append(label.split(":")[0])
    if pictures:
        sheet = contact_sheet(pictures, names, columns=1 + len(variants), cell=192)
        sheet.save(out / "objects.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", help="folders of photos, or scikit-image")
    parser.add_argument("--methods", default="telea,inpaint,freecompose")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--objects", type=int, default=8)
    parser.add_argument("--rows", type=int, default=12, help="photos in the grid")
    parser.add_argument("--split", choices=("held-out", "training", "all"))
    parser.add_argument("--include", action="append")
    parser.add_argument("-o", "--output", type=Path, default=Path("removal"))
    main(parser.parse_args())
