"""Training data: an image folder with captions, random crops and random masks.

The folder follows the Hugging Face imagefolder convention: a `metadata.jsonl` at its root whose
lines hold `file_name` (relative to the folder) and `text`; an optional `weight` makes a picture
be drawn more often.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from inlay.errors import InputError
from inlay.learning.settings import TrainingConfig
from inlay.pictures.arrays import bounds, shrink
from inlay.pictures.files import is_held_out, picture_names
from inlay.pictures.read import read_picture
from inlay.scene.cutout import grabcut

Image = NDArray[np.uint8]
Mask = NDArray[np.float32]

_log = logging.getLogger("inlay")


class RenderedConfig(TrainingConfig):
    """What a run can be told of rendered pictures beside its photos."""

    rendered: str | None = Field(
        None,
        description="image folder of rendered pictures, as tools/render_scenes.py writes it, that "
        "is mixed in; their alpha is 255 on the object",
    )
    rendered_share: float = Field(0.1, ge=0, lt=1)
    """share of samples that are rendered pictures"""

    @field_validator("rendered", mode="before")
    @classmethod
    def _is_a_folder(cls, value: object) -> object:
        # Recipes of inlay 0.1 have a number here.
        if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()):
            raise ValueError(
                "pictures are no longer rendered in the run, so it is a folder now; expected one "
                f"that tools/render_scenes.py FOLDER --count {value} wrote, or none."
            )
        return value


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
    folder: Path,
    held_out: bool,
    short_side: int = 288,
    captioned: bool = True,
    alpha: bool = False,
) -> Corpus:
    """Read one split of an image folder; larger pictures are reduced to `short_side` pixels.

    Pictures that cannot be read are left out, and the log says so. The held-out split may be
    empty. Where captions are not needed (`captioned` False) a folder without metadata.jsonl will
    do: all pictures in it and below it, with empty captions. `alpha` keeps the alpha of pictures
    with some transparency, which is 255 on their one object and 0 elsewhere. Raises InputError when
    metadata.jsonl is missing or malformed, or when the training split has no picture that can be
    read.
    """
    read: list[tuple[Image, str, float]] = []
    for name, text, weight in _rows(folder, captioned):
        if is_held_out(name) != held_out:
            continue
        try:
            picture = read_picture(folder / name).to_pil()
        except InputError as error:
            _log.warning("left out: %s", error)
            continue
        known = alpha and picture.mode in ("LA", "RGBA") and picture.getextrema()[-1] != (255, 255)
        samples = np.asarray(picture.convert("RGBA" if known else "RGB"), np.uint8)
        read.append((shrink(samples, short_side), text, weight))
    if not read and not held_out:
        raise InputError(f"{folder} holds no readable picture to train on; add pictures to it.")
    weights = np.array([weight for _, _, weight in read], np.float64)
    images, captions = [image for image, _, _ in read], [text for _, text, _ in read]
    return Corpus(images, captions, weights / max(weights.sum(), 1e-300))


def metadata_rows(folder: Path) -> list[tuple[str, dict[str, Any]]] | None:
    """The rows of an image folder's metadata.jsonl, each with where it stands; None without one.

    Raises InputError for what cannot be read, rows without a file_name, and one or a mask that lies
    outside of the folder.
    """
    metadata = folder / "metadata.jsonl"
    if not metadata.is_file():
        return None
    try:
        lines = metadata.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{metadata} cannot be read; expected lines of JSON in UTF-8.") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{metadata} line {number}"
        try:
            row = json.loads(line)
            names = [row["file_name"], row.get("mask") or ""]
            paths = [PurePosixPath(name) for name in names]
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            raise InputError(
                f"{where} is not a JSON object with file_name, and mask if any, as text."
            ) from None
        for name, path in zip(names, paths, strict=True):
            if path.is_absolute() or ".." in path.parts or "\0" in name:
                raise InputError(f"{where} names {name!r}; expected a file inside the folder.")
        rows.append((where, row))
    return rows


def _rows(folder: Path, captioned: bool) -> list[tuple[str, str, float]]:
    """File name, caption and weight of each picture of a folder."""
    rows = metadata_rows(folder)
    if rows is None:
        if not captioned:
            return [(name, "", 1.0) for name in picture_names(folder)]
        raise InputError(
            f"{folder} has no metadata.jsonl; expected lines with file_name and text in it."
        )
    found = []
    for where, row in rows:
        try:
            text, weight = str(row["text"]), float(row.get("weight", 1.0))
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{where} is not a JSON object with file_name and text.") from None
        if not 0 < weight < 1e6:
            raise InputError(f"{where} has weight {weight}; expected a number above 0.")
        found.append((row["file_name"], text, weight))
    return found


def with_rendered(corpus: Corpus, config: RenderedConfig, short_side: int = 288) -> Corpus:
    """The corpus and the rendered pictures that a recipe asks for, drawn with their share.

    Those that the hash of their name holds out stay away.
    """
    if config.rendered is None or config.rendered_share == 0:
        return corpus
    other = load_corpus(Path(config.rendered), held_out=False, short_side=short_side, alpha=True)
    share = config.rendered_share
    weights = np.concatenate([corpus.weights * (1 - share), other.weights * share])
    return Corpus([*corpus.images, *other.images], [*corpus.captions, *other.captions], weights)


def recolour(crop: Image, rng: np.random.Generator) -> Image:
    """The picture (H, W, 3) under another light: gains of about a sixth each, and a gamma."""
    gain = np.exp(rng.normal(0, 0.15, 3) + rng.normal(0, 0.15))
    gamma = float(np.exp(rng.normal(0, 0.15)))
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
