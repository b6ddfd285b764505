"""Batches of a corpus, cut with OpenCV: masked and recoloured, or with a disturbed object.

Every random number comes from the generator of a step or of its row, so that a resumed run sees
what an unbroken one would have seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from inlay.learning.samples import random_crop, random_mask
from inlay.training.corpus import Corpus, object_mask, recolour
from inlay.training.disturb import Image, Policy, Sample, draw_sample
from inlay.training.objects import ObjectCache

Rng = np.random.Generator
T = TypeVar("T")

# How often a step's samples are square, upright and lying.
_SHAPES = (0.4, 0.35, 0.25)


@dataclass
class Batch:
    """Pictures (N, 3, S, S) in [-1, 1], holes (N, 1, S, S) of 0 and 1, and N captions."""

    x: Tensor
    mask: Tensor
    captions: list[str]


class CorpusLoader:
    """Pictures of a corpus, cut at random with a random hole in each."""

    def __init__(
        self,
        corpus: Corpus,
        device: torch.device,
        objects: ObjectCache | None = None,
        object_mask_share: float = 0.0,
        recolour_share: float = 0.0,
    ) -> None:
        """The shares are of holes that hide one of the `objects`, and of recoloured pictures."""
        self.corpus, self.device, self.objects = corpus, device, objects
        self.object_mask_share, self.recolour_share = object_mask_share, recolour_share

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


class DisturbedLoader:
    """Batches of samples on a device; sample `row` of step `step` hangs on the seed and these two.

    With `workers` threads the next step's samples are made while this one's are learned from. A
    step's samples are square, or 3 to 4 where `multiple`, of which sides must be, is given.
    """

    def __init__(
        self,
        corpus: Corpus,
        objects: ObjectCache,
        policy: Policy,
        size: int,
        seed: int,
        device: torch.device,
        workers: int = 0,
        multiple: int | None = None,
    ) -> None:
        self.corpus, self.objects, self.policy = corpus, objects, policy
        self.seed, self.device = seed, device
        short = size if multiple is None else size * 3 // 4 // multiple * multiple or size
        self.shapes = [(size, size), (size, short), (short, size)]
        self._ahead = Ahead(self._draw, workers)

    def batch(self, step: int, rows: Sequence[int]) -> Samples:
        """The samples of these rows of a step, pictures drawn by their weights."""
        return self._stack(self._ahead.get(step, rows))

    def of(self, indices: Sequence[int]) -> Samples:
        """A sample of each of these pictures, the kinds in turn: the same in every call."""
        kinds = self.policy.kinds
        return self._stack(
            [
                self._sample(i, np.random.default_rng([self.seed, 3, i]), kinds[i % len(kinds)])
                for i in indices
            ]
        )

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
        return Samples(
            _tensor([sample.truth for sample in samples], self.device),
            _tensor([sample.pasted for sample in samples], self.device),
            mask,
            region,
            [sample.caption for sample in samples],
        )
