"""Pictures whose object was given another light or tone on purpose, to learn to undo it.

The changes are those of disturb.py, in linear light, as the benchmark of harmonization deals them.
Every number of a sample comes from a generator of its own, so that a batch may be made by several
threads or processes and is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from inlay.pictures.arrays import blur
from inlay.pictures.colour import srgb_decode, srgb_encode
from inlay.training.corpus import Corpus, random_crop, random_mask
from inlay.training.disturb import (
    KINDS,
    disturb,
    draw,
    pasted,
)
from inlay.training.wholes import Wholes

__all__ = ["DisturbedFeed", "Policy", "Sample", "Samples", "covered", "disturbed", "jittered"]

Rng = np.random.Generator
Image = NDArray[np.uint8]
Mask = NDArray[np.float32]

# Least and largest share of a crop that an object takes, and how often another crop is tried.
_SHARE = (0.03, 0.6)
_TRIES = 4


@dataclass(frozen=True)
class Policy:
    """How samples are made.

    kinds: of disturb.KINDS. strength: the range that a change's strength is drawn from.
    undisturbed_share: share left as it was. restyled_share: share whose truth is recoloured as a
    whole first. blob_share: share of random shapes instead of objects. mask_jitter: the most that
    a mask is widened or narrowed by, in picture sizes.
    """

    kinds: tuple[str, ...] = KINDS
    strength: tuple[float, float] = (0.3, 1.0)
    undisturbed_share: float = 0.0
    restyled_share: float = 0.0
    blob_share: float = 0.0
    mask_jitter: float = 0.0


@dataclass(frozen=True, eq=False)
class Sample:
    """truth and pasted, uint8 (S, S, 3) sRGB; mask, float32 (S, S) in [0, 1]; the caption.

    pasted differs from truth only where the mask is above 0. The caption is empty where the truth
    was recoloured, as it may name a colour.
    """

    truth: Image
    mask: Mask
    pasted: Image
    caption: str


@dataclass(frozen=True, eq=False)
class Samples:
    """truth and pasted (N, 3, S, S) in [-1, 1], mask (N, 1, S, S) in [0, 1], N captions."""

    truth: Tensor
    pasted: Tensor
    mask: Tensor
    captions: list[str]


def disturbed(
    picture: Image,
    caption: str,
    wholes: Wholes,
    size: int,
    policy: Policy,
    rng: Rng,
    kind: str | None = None,
) -> Sample:
    """A sample at `size` pixels, cut from a picture (H, W, 3 or 4); `kind` instead of a drawn one.

    A fourth channel is the picture's object, else `wholes` knows where objects are.
    """
    truth, shape = _cut(picture, wholes, size, policy, rng)
    if rng.random() < policy.restyled_share:
        truth, caption = _restyled(truth, rng), ""
    mask = jittered(shape, policy.mask_jitter, rng)
    if rng.random() < policy.undisturbed_share:
        return Sample(truth, mask, truth, caption)
    dealt = kind or str(rng.choice(policy.kinds))
    changes = draw(dealt, rng, float(rng.uniform(*policy.strength)))
    return Sample(truth, mask, pasted(truth, mask, changes), caption)


def _cut(
    picture: Image, wholes: Wholes, size: int, policy: Policy, rng: Rng
) -> tuple[Image, NDArray[np.bool_]]:
    """A crop and what of it is the object; a random shape where crops show none."""
    objects = [] if rng.random() < policy.blob_share else wholes.of(picture)
    picture = np.ascontiguousarray(picture[..., :3])
    for _ in range(_TRIES if objects else 0):
        chosen = objects[int(rng.integers(len(objects)))]
        both = random_crop(np.dstack([picture, chosen]), size, rng)
        shape = both[..., 3] > 127
        if _SHARE[0] <= shape.mean() <= _SHARE[1]:
            return np.ascontiguousarray(both[..., :3]), shape
    crop = random_crop(picture, size, rng)
    while True:
        shape = random_mask(size, rng) > 0.5
        if _SHARE[0] <= shape.mean() <= _SHARE[1]:
            return crop, shape


def _restyled(picture: Image, rng: Rng) -> Image:
    """A picture (H, W, 3) under another light, in other colours and with another tone, as a whole.

    What is usual for an object then says nothing about its light: its surroundings have to.
    """
    lit = srgb_decode(disturb(picture, draw("mixed", rng)))
    recoloured = np.clip(lit @ _palette(rng).T, 0, 1)
    return np.asarray(np.floor(255 * srgb_encode(recoloured) + 0.5), np.uint8)


def _palette(rng: Rng) -> NDArray[np.float64]:
    """A matrix on linear sRGB that turns hues and mixes channels a little; greys stay as they are.

    The hue is turned about the grey axis (Rodrigues), half of the time by a little, else by any
    angle.
    """
    angle = rng.normal(0, 0.3) if rng.random() < 0.5 else rng.uniform(-np.pi, np.pi)
    axis = np.full(3, 3**-0.5)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    mix = np.eye(3) + rng.normal(0, 0.08, (3, 3))
    mix /= mix.sum(axis=1, keepdims=True)
    return np.asarray(mix @ turn, np.float64)


def jittered(shape: NDArray[np.bool_], jitter: float, rng: Rng) -> Mask:
    """A mask (S, S) of a shape widened or narrowed by up to `jitter` sizes, its edge softened.

    As masks come from people and from segmentation: not to the pixel. On the levels of 8 bits.
    """
    mask = shape.astype(np.float32)
    side = max(shape.shape)
    reach = round(float(rng.uniform(-jitter, jitter)) * side)
    sigma = float(rng.uniform(0, jitter / 2)) * side
    if reach:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * abs(reach) + 1,) * 2)
        changed = cv2.dilate(mask, kernel) if reach > 0 else cv2.erode(mask, kernel)
        # A thin thing does not vanish.
        mask = np.asarray(changed if changed.sum() > mask.sum() / 2 else mask, np.float32)
    if sigma > 0.3:
        mask = blur(mask, sigma, mirror=True)
    return np.asarray(np.round(mask * 255) / 255, np.float32)


def covered(mask: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The latent pixels that a mask (N, 1, H, W) touches, (N, 1, H / factor, W / factor), and the
    picture's pixels that they stand for; both 0 or 1.

    All that is disturbed lies in there, so that what a U-Net sees of the rest is the truth.
    """
    latent = functional.max_pool2d((mask > 0).float(), factor)
    return latent, latent.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


class DisturbedFeed:
    """Batches of samples on a device; sample `row` of step `step` hangs on the seed and these two.

    With `workers` threads the next step's samples are made while this one's are learned from.
    """

    def __init__(
        self,
        corpus: Corpus,
        wholes: Wholes,
        policy: Policy,
        size: int,
        seed: int,
        device: torch.device,
        workers: int = 0,
    ) -> None:
        self.corpus, self.wholes, self.policy = corpus, wholes, policy
        self.size, self.seed, self.device = size, seed, device
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._coming: dict[tuple[int, int], Future[Sample]] = {}

    def batch(self, step: int, rows: Sequence[int]) -> Samples:
        """The samples of these rows of a step, pictures drawn by their weights."""
        if self._pool is None:
            return self._stacked([self._drawn(step, row) for row in rows])
        for number in (step, step + 1):
            for row in rows:
                if (number, row) not in self._coming:
                    self._coming[number, row] = self._pool.submit(self._drawn, number, row)
        return self._stacked([self._coming.pop((step, row)).result() for row in rows])

    def of(self, indices: Sequence[int]) -> Samples:
        """A sample of each of these pictures, the kinds in turn: the same in every call."""
        kinds = self.policy.kinds
        return self._stacked(
            [
                self._made(i, np.random.default_rng([self.seed, 3, i]), kinds[i % len(kinds)])
                for i in indices
            ]
        )

    def _drawn(self, step: int, row: int) -> Sample:
        rng = np.random.default_rng([self.seed, 2, step, row])
        return self._made(int(rng.choice(len(self.corpus), p=self.corpus.weights)), rng)

    def _made(self, index: int, rng: Rng, kind: str | None = None) -> Sample:
        picture, caption = self.corpus.images[index], self.corpus.captions[index]
        return disturbed(picture, caption, self.wholes, self.size, self.policy, rng, kind)

    def _stacked(self, samples: Sequence[Sample]) -> Samples:
        mask = torch.from_numpy(np.stack([sample.mask for sample in samples]))
        return Samples(
            self._tensor([sample.truth for sample in samples]),
            self._tensor([sample.pasted for sample in samples]),
            mask[:, None].to(self.device),
            [sample.caption for sample in samples],
        )

    def _tensor(self, pictures: Sequence[Image]) -> Tensor:
        stacked = torch.from_numpy(np.stack(pictures)).to(self.device)
        return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1
