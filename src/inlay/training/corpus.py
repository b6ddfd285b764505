"""Training data: image folders with captions, and batches cut from them with OpenCV: masked and
recoloured, or with a disturbed object.

Every random number comes from the generator of a step or of its row, so that a resumed run sees
what an unbroken one would have seen.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
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
from inlay.training.disturb import Image, Mask, Policy, Rng, Sample, disturb, draw, draw_sample
from inlay.training.objects import ObjectCache, widen

T = TypeVar("T")

# How often a step's samples are square, upright and lying.
_SHAPES = (0.4, 0.35, 0.25)

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


@dataclass
class Batch:
    """Pictures (N, 3, S, S) in [-1, 1], holes (N, 1, S, S) of 0 and 1, and N captions."""

    x: Tensor
    mask: Tensor
    captions: list[str]


@dataclass(frozen=True)
class CorpusLoader:
    """Pictures of a corpus, cut at random with a random hole in each; the shares are of holes that
    hide one of the `objects`, and of recoloured pictures.
    """

    corpus: Corpus
    device: torch.device
    objects: ObjectCache | None = None
    object_mask_share: float = 0.0
    recolour_share: float = 0.0

    def batch(self, count: int, size: int, rng: Rng) -> Batch:
        """So many pictures, drawn by their weights."""
        return self.of(rng.choice(len(self.corpus), count, p=self.corpus.weights), size, rng)

    def of(self, indices: np.ndarray, size: int, rng: Rng) -> Batch:
        """The pictures of these indices."""
        images, masks = [], []
        for index in indices.tolist():
            picture, mask = self.corpus.images[index], None
            hides = rng.random() < self.object_mask_share
            known = self.objects.of(picture)[:1] if hides and self.objects else []
            crop = random_crop(np.dstack([picture[..., :3], *known]), size, rng)
            if known:
                mask = object_mask(crop, rng)
            masks.append(random_mask(size, rng) if mask is None else mask)
            crop = np.ascontiguousarray(crop[..., :3])
            images.append(recolour(crop, rng) if rng.random() < self.recolour_share else crop)
        hole = torch.from_numpy(np.stack(masks))[:, None].to(self.device)
        captions = [self.corpus.captions[index] for index in indices.tolist()]
        return Batch(_tensor(images, self.device), hole, captions)


def _tensor(pictures: Sequence[Image], device: torch.device) -> Tensor:
    """Pictures, uint8 (h, w, 3), as (N, 3, h, w) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(pictures)).to(device)
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


@dataclass(frozen=True, eq=False)
class Samples:
    """truth and pasted (N, 3, h, w) in [-1, 1], mask and region (N, 1, h, w) in [0, 1], captions.
    What is learnt is all in the region, which the mask of the object is at least.
    """

    truth: Tensor
    pasted: Tensor
    mask: Tensor
    region: Tensor
    captions: list[str]


def cover(mask: Tensor, factor: int) -> Tensor:
    """The latent pixels that a mask (N, 1, H, W) touches, (N, 1, H / factor, W / factor), 0 or 1.
    All that is disturbed lies in there, so that what a U-Net sees of the rest is the truth.
    """
    return functional.max_pool2d((mask > 0).float(), factor)


class Ahead(Generic[T]):
    """What make(step, row) gives, made in threads while the step before is learned from."""

    def __init__(self, make: Callable[[int, int], T], workers: int) -> None:
        """Without `workers` all is made when it is asked for."""
        self._make = make
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._coming: dict[tuple[int, int], Future[T]] = {}

    def get(self, step: int, rows: Sequence[int]) -> list[T]:
        """Those of these rows of a step."""
        if self._pool is None:
            return [self._make(step, row) for row in rows]
        for key in itertools.product((step, step + 1), rows):
            if key not in self._coming:
                self._coming[key] = self._pool.submit(self._make, *key)
        return [self._coming.pop((step, row)).result() for row in rows]


@dataclass
class DisturbedLoader:
    """Batches of samples on a device; sample `row` of step `step` hangs on the seed and these two.

    With `workers` threads the next step's samples are made while this one's are learned from. A
    step's samples are square, or 3 to 4 where `multiple`, of which sides must be, is given.
    """

    corpus: Corpus
    objects: ObjectCache
    policy: Policy
    size: int
    seed: int
    device: torch.device
    workers: int = 0
    multiple: int | None = None

    def __post_init__(self) -> None:
        size, multiple = self.size, self.multiple
        short = size if multiple is None else size * 3 // 4 // multiple * multiple or size
        self.shapes = [(size, size), (size, short), (short, size)]
        self._ahead = Ahead(self._draw, self.workers)

    def batch(self, step: int, rows: Sequence[int]) -> Samples:
        """The samples of these rows of a step, pictures drawn by their weights."""
        return self._stack(self._ahead.get(step, rows))

    def of(self, indices: Sequence[int]) -> Samples:
        """A sample of each of these pictures, the kinds in turn: the same in every call."""
        kinds, new = self.policy.kinds, np.random.default_rng
        made = [self._sample(i, new([self.seed, 3, i]), kinds[i % len(kinds)]) for i in indices]
        return self._stack(made)

    def _draw(self, step: int, row: int) -> Sample:
        rng = np.random.default_rng([self.seed, 2, step, row])
        shape = np.random.default_rng([self.seed, 7, step]).choice(3, p=_SHAPES)
        index = int(rng.choice(len(self.corpus), p=self.corpus.weights))
        return self._sample(index, rng, shape=int(shape))

    def _sample(self, index: int, rng: Rng, kind: str | None = None, shape: int = 0) -> Sample:
        picture, caption = self.corpus.images[index], self.corpus.captions[index]
        size = self.shapes[shape]
        return draw_sample(picture, caption, self.objects, size, self.policy, rng, kind)

    def _stack(self, samples: Sequence[Sample]) -> Samples:
        masks = np.stack([[sample.mask, sample.region] for sample in samples])
        mask, region = torch.from_numpy(masks).to(self.device).split(1, 1)
        truth = _tensor([sample.truth for sample in samples], self.device)
        pasted = _tensor([sample.pasted for sample in samples], self.device)
        return Samples(truth, pasted, mask, region, [sample.caption for sample in samples])
