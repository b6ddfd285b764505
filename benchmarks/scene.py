"""Does a scene keep its subject, and is everything round it really made?

Each subject is cut out of its photo and gets a scene in a prompt. Told for each scene:

iou     place and shape. The photo itself is laid where its subject was placed; pixels of the scene
        that match it within 8/255 in every channel are the subject that is found. This is the
        intersection over union with the placed alpha above 0.5, within the subject's box. A
        subject that was moved, resized, recoloured or painted over does not match; surroundings
        that grew the photo's own background match too much. Measured without the harmonize stage,
        whose business is to change colours.
outside the largest change that the harmonize stage makes where the subject's alpha is 0; must be 0.
inside  the mean absolute change (of 255) that it makes where the alpha is above 0.5.
blank   share of the 16 x 16 blocks without any of the subject that hold nothing: a standard
        deviation below 0.5 of 255, or the empty canvas's grey.
energy  mean absolute difference of neighbouring pixels in the surroundings over that of the
        surroundings in the subjects' photos, all reduced to the scene's shorter side.
seams   the same differences across the edges of the last level's windows over those across all
        edges of latent patches.

    python benchmarks/scene.py FOLDER [--count 8] [--sizes 256x256,384x256] [-o DIR]

FOLDER holds photos, or a folder of photos for each subject, of which the first is taken; or it is
the word scikit-image. What is transparent in a photo is not its subject; else GrabCut finds it.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from skimage import data

from inlay import Box, Composer, InputError, cut
from inlay.diffusion.tiles import Tiling, resolutions
from inlay.methods.phd import PhdSettings
from inlay.pictures.arrays import bounds
from inlay.pictures.read import read_picture
from inlay.pictures.sheet import contact_sheet
from inlay.scene.subject import Subject

PROMPTS = ("a photo of a landscape", "a photo of a building")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
BLOCK = 16
# Boxes round a thing in scikit-image's photographs.
BUNDLED = {"coffee": Box(140, 10, 330, 240), "chelsea": Box(60, 10, 330, 285)}


def subjects(folder: str, count: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Name, cut-out (RGBA, of the photo's size) and photo of up to so many subjects."""
    found = []
    if folder == "scikit-image":
        for name, box in BUNDLED.items():
            photo = getattr(data, name)()
            found.append((name, np.asarray(cut(photo, box=box)), photo))
        return found[:count]
    root = Path(folder)
    places = [path for path in sorted(root.iterdir()) if path.is_dir()] or [root]
    for place in places:
        photos = [path for path in sorted(place.iterdir()) if path.suffix.lower() in SUFFIXES]
        for path in photos if places == [root] else photos[:1]:
            if len(found) == count:
                return found
            photo = np.asarray(read_picture(path).to_pil().convert("RGB"))
            try:
                cutout = np.asarray(cut(path))
            except InputError as error:
                print(error)
                continue
            found.append((place.name if place != root else path.stem, cutout, photo))
    return found


def placed(
    subject: np.ndarray, whole: np.ndarray, size: tuple[int, int], box: Box
) -> tuple[np.ndarray, np.ndarray]:
    """The photo behind the subject, and the subject's alpha, laid into a scene of (width, height).

    float32 (h, w, 3) and (h, w), NaN and 0 where nothing is laid.
    """
    alpha = subject[..., 3].astype(np.float32) / 255
    inner = bounds(alpha)
    assert inner is not None
    small, where = Subject("", box=box).outline((inner.width, inner.height), size)
    shrinks = small[0] <= inner.width and small[1] <= inner.height
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    photo = np.full((size[1], size[0], 3), np.nan, np.float32)
    cover = np.zeros((size[1], size[0]), np.float32)
    crop = whole[inner.slices].astype(np.float32)
    photo[where.slices] = cv2.resize(crop, small, interpolation=how)
    cover[where.slices] = cv2.resize(alpha[inner.slices], small, interpolation=how)
    return photo, cover


def differences(picture: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean absolute differences to the right and down, NaN where a pixel is not inside."""
    values = np.where(inside[..., None], picture.astype(np.float64), np.nan)
    return np.abs(np.diff(values, axis=1)).mean(-1), np.abs(np.diff(values, axis=0)).mean(-1)


def energy(picture: np.ndarray, inside: np.ndarray) -> float:
    return float(np.nanmean(np.concatenate([x.ravel() for x in differences(picture, inside)])))


def seams(picture: np.ndarray, inside: np.ndarray, overlap: float, backbone: Any) -> float:
    """Differences across window edges over those across all edges of latent patches, which the
    autoencoder may show everywhere; 1 where there is but one window."""
    if resolutions(picture.shape[:2], backbone.native_size)[-1] != picture.shape[:2]:
        return float("nan")
    factor = backbone.factor
    padded = [side + -side % backbone.multiple for side in picture.shape[:2]]
    patches = padded[0] // factor, padded[1] // factor
    tiling = Tiling.of(patches, backbone.native_size // factor, overlap)
    across, down = differences(picture, inside)
    edges, others = [], []
    for axis, values in ((1, across.T), (0, down)):
        others.append(values[factor - 1 :: factor].ravel())
        for corner in {corner[axis] for corner in tiling.corners}:
            for edge in (corner, corner + tiling.tile[axis]):
                if 0 < edge * factor <= len(values):
                    edges.append(values[edge * factor - 1])
    if not edges:
        return 1.0
    return float(np.nanmean(np.concatenate(edges)) / np.nanmean(np.concatenate(others)))


def blank(picture: np.ndarray, inside: np.ndarray) -> float:
    """Share of the blocks wholly inside that hold nothing."""
    empty, number = 0, 0
    height, width = inside.shape
    for y, x in itertools.product(range(0, height, BLOCK), range(0, width, BLOCK)):
        here = (slice(y, y + BLOCK), slice(x, x + BLOCK))
        if inside[here].all():
            block = picture[here].astype(np.float64)
            empty += bool(block.std((0, 1)).max() < 0.5 or (block == 128).all())
            number += 1
    return empty / max(number, 1)


def of_photo(subject: np.ndarray, photo: np.ndarray, shorter: int) -> float:
    """The energy round the subject in its own photo, reduced to a shorter side."""
    scale = min(1.0, shorter / min(subject.shape[:2]))
    both = np.dstack([photo, subject[..., 3]])
    small = cv2.resize(both, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return energy(small[..., :3], small[..., 3] == 0)


def main(arguments: argparse.Namespace) -> None:
    composer, settings = Composer(arguments.model, device="cpu"), PhdSettings()
    found = subjects(arguments.folder, arguments.count)
    sizes = []
    for text in arguments.sizes.split(","):
        width, height = text.split("x")
        sizes.append((int(width), int(height)))
    rows: list[dict[str, Any]] = []
    pictures, labels = [], []
    print(f"{'subject':20s} {'size':>9s}   iou outside inside blank energy seams")
    for number, (name, subject, whole) in enumerate(found):
        for size in sizes:
            prompt = PROMPTS[number % len(PROMPTS)]
            side = min(size) // 2
            box = Box((size[0] - side) // 2, size[1] - side - size[1] // 10, side, side)
            more = {"prompt": prompt, "size": size, "box": box, "seed": number}
            result = composer.scene(subject, keep_phases=True, **more)
            plain, last = result.phases["refine"].samples, result.picture.samples
            photo, alpha = placed(subject, whole, size, box)
            there = ~np.isnan(photo[..., 0])
            matches = there & (np.abs(plain - np.nan_to_num(photo, nan=1e3)).max(-1) <= 8)
            wanted, rest = alpha > 0.5, alpha == 0
            change = np.abs(last.astype(float) - plain)
            usual = np.mean([of_photo(own, seen, min(size)) for _, own, seen in found])
            row = {
                "subject": name,
                "size": f"{size[0]}x{size[1]}",
                "iou": float((matches & wanted).sum() / (matches | wanted).sum()),
                "outside": float(change[rest].max()),
                "inside": float(change[wanted].mean()),
                "blank": blank(last, rest),
                "energy": energy(last, rest) / float(usual),
                "seams": seams(last, rest, settings.outpaint_tile_overlap, composer.backbone),
            }
            rows.append(row)
            print(
                f"{name:20s} {row['size']:>9s} {row['iou']:5.3f} {row['outside']:7.1f} "
                f"{row['inside']:6.1f} {row['blank']:5.3f} {row['energy']:6.2f} "
                f"{row['seams']:5.2f}",
                flush=True,
            )
            pictures.append(Image.fromarray(last))
            labels.append(f"{name}, {prompt.removeprefix('a photo of ')}")
    means = {key: float(np.nanmean([row[key] for row in rows])) for key in list(rows[0])[2:]}
    print(f"{'mean':30s} {means['iou']:5.3f} {means['outside']:7.1f} {means['inside']:6.1f} "
          f"{means['blank']:5.3f} {means['energy']:6.2f} {means['seams']:5.2f}")  # fmt: skip
    print(f"least iou {min(row['iou'] for row in rows):.3f}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "scene.json").write_text(json.dumps(rows, indent=2) + "\n")
    sheet = contact_sheet(pictures, labels, columns=4, cell=320)
    sheet.save(arguments.output / "scene.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder of subjects' photos, or scikit-image")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--sizes", default="256x256")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("-o", "--output", type=Path, default=Path("scene"))
    main(parser.parse_args())
