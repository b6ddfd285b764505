"""Training data: image folders with captions, and crops of them with a hole, which may hide an
object.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from inlay.errors import InputError
from inlay.learning.folder import image_rows, mask_file
from inlay.learning.samples import random_crop, random_mask
from inlay.learning.settings import TrainingConfig
from inlay.pictures.arrays import bounds, shrink, to_uint8
from inlay.pictures.mask import read_mask
from inlay.pictures.read import read_picture
from inlay.training.disturb import Image, Mask, Rng, disturb, draw
from inlay.training.objects import ObjectCache, widen

_log = logging.getLogger("inlay")


class RenderedConfig(TrainingConfig):
    """What a run can be told of rendered pictures beside its photos."""

    rendered: str | None = Field(
        None,
        description="image folder of rendered pictures, as tools/render_pairs.py writes it, that "
        "is mixed in; their alpha is 255 on the object",
    )
    rendered_share: float = Field(0.1, ge=0, lt=1)
    """share of samples that are rendered pictures"""


@dataclass
class Corpus:
    """Pictures held in memory, with caption and drawing weight (the weights sum to 1). Pictures are
    uint8 arrays (H, W, 3), or (H, W, 4) where the last channel is 255 on the object.
    """

    images: list[Image]
    captions: list[str]
    weights: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, rng: Rng) -> tuple[Image, str]:
        """A picture by its weight, and its caption."""
        index = int(rng.choice(len(self), p=self.weights))
        return self.images[index], self.captions[index]


def load_corpus(
    folder: Path, held_out: bool, short_side: int = 288, captioned: bool = True, alpha: bool = False
) -> Corpus:
    """Read one split of an image folder; larger pictures are reduced to `short_side` pixels.

    Pictures that cannot be read are left out, and the log says so. The held-out split may be
    empty. Where captions are not needed (`captioned` False) a folder without metadata.jsonl will
    do: all pictures in it and below it, with empty captions. `alpha` keeps the mask of pictures
    that have one, or the alpha of those with some transparency, which is 255 on their one object
    and 0 elsewhere. Raises InputError when metadata.jsonl is missing or malformed, or when the
    training split has no picture that can be read.
    """
    rows, listed = image_rows(folder)
    if captioned and not (listed and all(row.text is not None for row in rows)):
        raise InputError(
            f"{folder} has no metadata.jsonl with lines of file_name and text; expected one."
        )
    images, captions, weights = list[Image](), list[str](), list[float]()
    for row in rows:
        if row.is_held_out() != held_out:
            continue
        try:
            picture = read_picture(folder / row.file_name).to_pil()
            mask = mask_file(folder, row) if alpha else None
            if mask is not None:
                picture = picture.convert("RGB")
                white = to_uint8(read_mask(mask, size=picture.size))
                picture.putalpha(PILImage.fromarray(white))
        except InputError as error:
            _log.warning("left out: %s", error)
            continue
        known = alpha and picture.mode in ("LA", "RGBA") and picture.getextrema()[-1] != (255, 255)
        samples = np.asarray(picture.convert("RGBA" if known else "RGB"), np.uint8)
        images.append(shrink(samples, short_side))
        captions.append(row.text or "")
        weights.append(row.weight)
    if not images and not held_out:
        raise InputError(f"{folder} holds no readable picture to train on; add pictures to it.")
    shares = np.array(weights, np.float64)
    return Corpus(images, captions, shares / max(shares.sum(), 1e-300))


def with_rendered(corpus: Corpus, config: RenderedConfig, short_side: int = 288) -> Corpus:
    """The corpus and the rendered pictures that a recipe asks for, drawn with their share. Those
    that are held out stay away.
    """
    if config.rendered is None or config.rendered_share == 0:
        return corpus
    other = load_corpus(Path(config.rendered), held_out=False, short_side=short_side, alpha=True)
    share = config.rendered_share
    weights = np.concatenate([corpus.weights * (1 - share), other.weights * share])
    return Corpus([*corpus.images, *other.images], [*corpus.captions, *other.captions], weights)


def recolour(crop: Image, rng: np.random.Generator) -> Image:
    """The picture (H, W, 3) under a little another light, with another tone."""
    changes = [*draw("gain", rng, 0.3), *draw("gamma", rng, 0.4)]
    return np.asarray(np.round(255 * disturb(crop, changes)), np.uint8)


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
    return widen(found, reach)


def masked_crop(
    picture: Image, side: int, rng: Rng, objects: ObjectCache, hide_share: float, relit_share: float
) -> tuple[Image, Mask]:
    """A square of a picture (H, W, 3 or 4), and a hole in it; the shares are of holes that hide one
    of the `objects`, and of pictures that are recoloured.
    """
    known = objects.of(picture)[:1] if rng.random() < hide_share else []
    crop = random_crop(np.dstack([picture[..., :3], *known]), side, rng)
    mask = object_mask(crop, rng) if known else None
    hole = random_mask(side, rng) if mask is None else mask
    crop = np.ascontiguousarray(crop[..., :3])
    return recolour(crop, rng) if rng.random() < relit_share else crop, hole


def cover(mask: Tensor, factor: int) -> Tensor:
    """The latent pixels that a mask (N, 1, H, W) touches, (N, 1, H / factor, W / factor), 0 or 1.
    All that is disturbed lies in there, so that what a U-Net sees of the rest is the truth.
    """
    return functional.max_pool2d((mask > 0).float(), factor)
