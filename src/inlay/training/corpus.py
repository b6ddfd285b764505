"""Training data: an image folder with captions, random crops and random masks.

The folder follows the Hugging Face imagefolder convention: a `metadata.jsonl` at its root whose
lines hold `file_name` (relative to the folder) and `text`; an optional `weight` makes a picture
be drawn more often.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from inlay.errors import InputError
from inlay.pictures.arrays import bounds, resize, shrink
from inlay.pictures.files import is_held_out, picture_names
from inlay.pictures.read import read_picture
from inlay.scene.grabcut import grabcut

__all__ = [
    "Corpus",
    "draw_crop",
    "draw_light",
    "find_object",
    "is_held_out",
    "load_corpus",
    "object_mask",
    "random_crop",
    "random_mask",
    "recoloured",
    "with_rendered",
]

Image = NDArray[np.uint8]
Mask = NDArray[np.float32]

_log = logging.getLogger("inlay")


@dataclass
class Corpus:
    """Pictures held in memory, with caption and drawing weight (the weights sum to 1).

    Pictures are uint8 arrays (H, W, 3), or (H, W, 4) where the last channel is 255 on the object.
    """

    images: list[Image]
    captions: list[str]
    weights: NDArray[np.float64]
    _objects: dict[int, Image] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def with_object(self, index: int) -> Image:
        """A picture (H, W, 4) with its object in the last channel, looked for once (10 ms)."""
        picture = self.images[index]
        if picture.shape[2] == 4:
            return picture
        if index not in self._objects:
            self._objects[index] = find_object(picture)
        size = picture.shape[1], picture.shape[0]
        found = cv2.resize(self._objects[index], size, interpolation=cv2.INTER_LINEAR)
        return np.dstack([picture, np.asarray(found, np.uint8)])


def load_corpus(
    folder: Path, held_out: bool, short_side: int = 288, captioned: bool = True
) -> Corpus:
    """Read one split of an image folder; larger pictures are reduced to `short_side` pixels.

    Pictures that cannot be read are left out, and the log says so. The held-out split may be
    empty. Where captions are not needed (`captioned` False) a folder without metadata.jsonl will
    do: all pictures in it and below it, with empty captions. Raises InputError when metadata.jsonl
    is missing or malformed, or when the training split has no picture that can be read.
    """
    images: list[Image] = []
    captions: list[str] = []
    weights: list[float] = []
    for name, text, weight in _rows(folder, captioned):
        if is_held_out(name) != held_out:
            continue
        try:
            picture = read_picture(folder / name).to_pil().convert("RGB")
        except InputError as error:
            _log.warning("left out: %s", error)
            continue
        images.append(shrink(np.asarray(picture, np.uint8), short_side))
        captions.append(text)
        weights.append(weight)
    if not images and not held_out:
        raise InputError(f"{folder} holds no readable picture to train on; add pictures to it.")
    probabilities = np.asarray(weights, dtype=np.float64)
    return Corpus(images, captions, probabilities / max(probabilities.sum(), 1e-300))


def _rows(folder: Path, captioned: bool) -> list[tuple[str, str, float]]:
    """File name, caption and weight of each picture of a folder."""
    metadata = folder / "metadata.jsonl"
    if not metadata.is_file():
        if not captioned:
            return [(name, "", 1.0) for name in picture_names(folder)]
        raise InputError(
            f"{folder} has no metadata.jsonl; expected lines with file_name and text in it."
        )
    try:
        lines = metadata.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{metadata} cannot be read; expected lines of JSON in UTF-8.") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    return [_row(line, f"{metadata} line {number}") for number, line in numbered]


def _row(line: str, where: str) -> tuple[str, str, float]:
    """File name, caption and weight of one line of metadata.jsonl."""
    try:
        row = json.loads(line)
        name, text = str(row["file_name"]), str(row["text"])
        weight = float(row.get("weight", 1.0))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{where} is not a JSON object with file_name and text.") from None
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{where} names {name!r}; expected a file inside the folder.")
    if not 0 < weight < 1e6:
        raise InputError(f"{where} has weight {weight}; expected a number above 0.")
    return name, text, weight


def with_rendered(corpus: Corpus, count: int, share: float, cache: Path, size: int = 160) -> Corpus:
    """The corpus and `count` rendered pictures, which are drawn with probability `share`.

    They are kept in the file `cache` (safetensors), as rendering takes about a tenth of a second
    each. Seeds that the hash of their name holds out are passed over.
    """
    if count == 0 or share == 0:
        return corpus
    names = (f"rendered/{seed}" for seed in itertools.count())
    seeds = [int(n.split("/")[1]) for n in itertools.islice(_kept(names), count)]
    images, captions = _rendered(seeds, size, cache)
    weights = np.concatenate([corpus.weights * (1 - share), np.full(count, share / count)])
    return Corpus([*corpus.images, *images], [*corpus.captions, *captions], weights)


def _kept(names: Iterable[str]) -> Iterator[str]:
    return (name for name in names if not is_held_out(name))


def _rendered(seeds: list[int], size: int, cache: Path) -> tuple[list[Image], list[str]]:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    from rendered.render import render  # type: ignore[import-not-found, unused-ignore]

    made_of = json.dumps([seeds, size])
    if cache.is_file():
        with safe_open(cache, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("made_of") == made_of:
                return list(file.get_tensor("images")), json.loads(metadata["captions"])
    pictures = [render(seed, size) for seed in seeds]
    images = np.stack([np.dstack([p.image, p.mask]) for p in pictures])
    captions = [p.caption for p in pictures]
    temporary = cache.with_name(cache.name + ".tmp")
    save_file({"images": images}, temporary, {"made_of": made_of, "captions": json.dumps(captions)})
    temporary.replace(cache)
    return list(images), captions


def draw_light(rng: np.random.Generator) -> tuple[NDArray[np.float64], float]:
    """Gains (3,) of linear light, of about a sixth each, and a gamma: another light, at random."""
    return np.exp(rng.normal(0, 0.15, 3) + rng.normal(0, 0.15)), float(np.exp(rng.normal(0, 0.15)))


def recoloured(crop: Image, rng: np.random.Generator) -> Image:
    """The picture (H, W, 3) under a light of draw_light()."""
    gain, gamma = draw_light(rng)
    light = (np.arange(256)[:, None] / 255) ** (2.2 * gamma) * gain
    table = np.round(np.clip(light, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8)
    return np.asarray(cv2.LUT(crop, table[:, None]), np.uint8)


def find_object(picture: Image) -> Image:
    """Where the thing in the middle of a picture (H, W, 3) is: uint8 (h, w), 255 on it, reduced.

    The rim is taken for background and the very middle for the thing; GrabCut settles the rest
    (Rother et al. 2004). Shape and size of the answer are the picture's, at a short side of 64.
    """
    height, width = picture.shape[:2]
    ratio = min(1.0, 64 / min(height, width))
    size = max(12, round(width * ratio)), max(12, round(height * ratio))
    small = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    labels: NDArray[Any] = np.full(small.shape[:2], cv2.GC_BGD, np.uint8)
    labels[3:-3, 3:-3] = cv2.GC_PR_FGD
    middle = tuple(slice(int(0.42 * side), int(0.58 * side) + 1) for side in labels.shape)
    labels[middle] = cv2.GC_FGD
    inside = grabcut(small, labels, 3)
    if inside is None:
        inside = labels == cv2.GC_FGD
    return np.asarray(cv2.medianBlur(inside.astype(np.uint8) * 255, 3), np.uint8)


def object_mask(crop: Image, rng: np.random.Generator) -> Mask | None:
    """A hole that hides the object of a crop (H, W, 4), a little widened: its shape, or its box.

    None where less than 3% of the crop shows the object.
    """
    found = np.ascontiguousarray((crop[..., 3] > 127).astype(np.uint8))
    if found.mean() < 0.03:
        return None
    box = bounds(found)
    if rng.random() < 0.5 and box is not None:
        found[box.slices] = 1
    reach = int(rng.uniform(0, 0.06) * crop.shape[0])
    if reach:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1,) * 2)
        found = np.asarray(cv2.dilate(found, kernel), np.uint8)
    return found.astype(np.float32)


def draw_crop(
    height: int, width: int, size: int, rng: np.random.Generator
) -> tuple[int, int, int, bool]:
    """Top, left and side of a square crop, 55% to 100% of the short side, and whether to mirror.

    No crop is smaller than half of `size`, unless the picture is.
    """
    short = min(height, width)
    side = round(short * rng.uniform(0.55, 1.0))
    side = min(short, max(side, min(short, size // 2)))
    top = int(rng.integers(0, height - side + 1))
    left = int(rng.integers(0, width - side + 1))
    return top, left, side, bool(rng.random() < 0.5)


def random_crop(image: Image, size: int, rng: np.random.Generator) -> Image:
    """A crop of draw_crop() of a picture (H, W, C), resized to (size, size, C)."""
    top, left, side, mirrored = draw_crop(image.shape[0], image.shape[1], size, rng)
    crop = image[top : top + side, left : left + side]
    crop = resize(crop, (size, size))
    return np.ascontiguousarray(crop[:, ::-1] if mirrored else crop)


def random_mask(size: int, rng: np.random.Generator) -> Mask:
    """A hole (size, size), 1 = to be painted: a box, ellipses, strokes, a blob, or everything."""
    mask = np.zeros((size, size), np.float32)
    kind = rng.choice(5, p=[0.3, 0.2, 0.15, 0.2, 0.15])
    if kind == 0:
        w, h = rng.uniform(0.2, 0.85, 2) * size
        x, y = rng.uniform(0, size - w), rng.uniform(0, size - h)
        mask[int(y) : int(y + h), int(x) : int(x + w)] = 1
    elif kind == 1:
        for _ in range(int(rng.integers(1, 4))):
            center = tuple(int(v) for v in rng.uniform(0.2, 0.8, 2) * size)
            axes = tuple(int(v) for v in rng.uniform(0.08, 0.4, 2) * size)
            cv2.ellipse(mask, center, axes, float(rng.uniform(0, 180)), 0, 360, 1.0, -1)
    elif kind == 2:
        for _ in range(int(rng.integers(1, 4))):
            steps = rng.normal(0, 0.18, (int(rng.integers(3, 7)), 2)) * size
            points = (np.cumsum(steps, 0) + rng.uniform(0.2, 0.8, 2) * size).astype(np.int32)
            thickness = int(rng.uniform(0.06, 0.2) * size)
            cv2.polylines(mask, [points], False, 1.0, thickness)
    elif kind == 3:
        # Thresholded smooth noise: ragged outlines, like those of segmented objects.
        noise = rng.normal(size=(size, size)).astype(np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), float(rng.uniform(0.08, 0.2) * size))
        mask[smooth > np.quantile(smooth, rng.uniform(0.4, 0.85))] = 1
    else:
        mask[:] = 1
    return mask
