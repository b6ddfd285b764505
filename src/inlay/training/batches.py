"""Batches of a corpus: cut, masked and recoloured on the host, or on the device that trains.

Both loaders take every random number from the generator of the step, so that a resumed run sees
what an unbroken one would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from inlay.learning.crops import draw_square, random_crop, random_mask
from inlay.training.corpus import Corpus, draw_light, object_mask, recolour
from inlay.training.disturb import Image, Policy, Sample, draw_sample
from inlay.training.objects import ObjectCache

__all__ = [
    "Augmentation",
    "Batch",
    "DeviceLoader",
    "DisturbedLoader",
    "HostLoader",
    "Samples",
    "cover",
]

Rng = np.random.Generator


@dataclass(frozen=True)
class Augmentation:
    """How often a hole hides the picture's object, and how often a picture is recoloured."""

    object_mask_share: float = 0.0
    recolour_share: float = 0.0


@dataclass
class Batch:
    """Pictures (N, 3, S, S) in [-1, 1], holes (N, 1, S, S) of 0 and 1, and N captions."""

    x: Tensor
    mask: Tensor
    captions: list[str]


class HostLoader:
    """Cuts with OpenCV, picture by picture; the tensors are moved to the device whole."""

    def __init__(self, corpus: Corpus, augmentation: Augmentation, device: torch.device) -> None:
        self.corpus, self.augmentation, self.device = corpus, augmentation, device

    def batch(self, count: int, size: int, rng: Rng) -> Batch:
        return self.of(rng.choice(len(self.corpus), count, p=self.corpus.weights), size, rng)

    def of(self, indices: np.ndarray, size: int, rng: Rng) -> Batch:
        """The pictures of these indices, cut at random."""
        images, masks = [], []
        for index in indices.tolist():
            mask = None
            if rng.random() < self.augmentation.object_mask_share:
                crop = random_crop(self.corpus.with_object(index), size, rng)
                mask = object_mask(crop, rng)
            else:
                crop = random_crop(self.corpus.images[index], size, rng)
            masks.append(random_mask(size, rng) if mask is None else mask)
            crop = np.ascontiguousarray(crop[..., :3])
            if rng.random() < self.augmentation.recolour_share:
                crop = recolour(crop, rng)
            images.append(crop)
        x = torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2)
        hole = torch.from_numpy(np.stack(masks))[:, None].to(self.device)
        captions = [self.corpus.captions[index] for index in indices.tolist()]
        return Batch(x.float() / 127.5 - 1, hole, captions)


class DeviceLoader:
    """Holds all pictures on the device and cuts them there: for a GPU that a host cannot feed.

    Holes of random shape come from a pool that is drawn once; every picture's object is looked for
    at the start, on all cores.
    """

    def __init__(
        self,
        corpus: Corpus,
        augmentation: Augmentation,
        device: torch.device,
        seed: int,
        pool: int = 4096,
    ) -> None:
        self.corpus, self.augmentation, self.device = corpus, augmentation, device
        self.seed, self.pool = seed, pool
        with ThreadPoolExecutor() as executor:
            pictures = executor.map(corpus.with_object, range(len(corpus)))
            self.pictures = [
                torch.from_numpy(picture).to(device).permute(2, 0, 1) for picture in pictures
            ]
        self._holes: dict[int, Tensor] = {}

    def batch(self, count: int, size: int, rng: Rng) -> Batch:
        indices = rng.choice(len(self.corpus), count, p=self.corpus.weights).tolist()
        crops = torch.stack([self._crop(index, size, rng) for index in indices])
        x = crops[:, :3]
        recolour = rng.random(count) < self.augmentation.recolour_share
        lights = [draw_light(rng) for _ in range(count)]
        gain = self._column(np.stack([gain for gain, _ in lights]))
        gamma = self._column(np.array([[gamma] * 3 for _, gamma in lights]))
        light = ((x / 255).clamp(0, 1) ** (2.2 * gamma) * gain).clamp(0, 1) ** (1 / 2.2) * 255
        chosen = torch.from_numpy(recolour).to(self.device).view(-1, 1, 1, 1)
        x = torch.where(chosen, light, x)
        mask = self._pool(size)[torch.from_numpy(rng.integers(0, self.pool, count))]
        hide = torch.from_numpy(rng.random(count) < self.augmentation.object_mask_share)
        mask = self._hidden(mask.float(), crops[:, 3:], hide.to(self.device), rng)
        return Batch(x / 127.5 - 1, mask, [self.corpus.captions[index] for index in indices])

    def _crop(self, index: int, size: int, rng: Rng) -> Tensor:
        picture = self.pictures[index]
        top, left, side, mirrored = draw_square(picture.shape[1], picture.shape[2], size, rng)
        crop = picture[None, :, top : top + side, left : left + side].float()
        mode = "bilinear" if side > size else "bicubic"
        # Antialiased bilinear over a whole ratio is OpenCV's INTER_AREA, near enough between.
        small = functional.interpolate(crop, (size, size), mode=mode, antialias=side > size)[0]
        return (small.flip(-1) if mirrored else small).clamp(0, 255)

    def _column(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).float().to(self.device)[:, :, None, None]

    def _pool(self, size: int) -> Tensor:
        if size not in self._holes:
            rng = np.random.default_rng([self.seed, 5, size])
            holes = np.stack([random_mask(size, rng) for _ in range(self.pool)])
            self._holes[size] = torch.from_numpy(holes).to(torch.uint8).to(self.device)[:, None]
        return self._holes[size]

    def _hidden(self, mask: Tensor, objects: Tensor, hide: Tensor, rng: Rng) -> Tensor:
        """The holes, those in `hide` replaced by the object's shape or box, a little widened."""
        found = (objects > 127).float()
        across, down = found.amax(2, keepdim=True), found.amax(3, keepdim=True)
        box = _fill_line(across, 3) * _fill_line(down, 2)
        boxed = torch.from_numpy(rng.random(len(mask)) < 0.5).to(self.device).view(-1, 1, 1, 1)
        hole = torch.where(boxed, box, found)
        reach = int(rng.uniform(0, 0.06) * mask.shape[-1])
        if reach:
            hole = functional.max_pool2d(hole, 2 * reach + 1, 1, reach)
        shown = found.mean((1, 2, 3)) >= 0.03
        return torch.where((hide & shown).view(-1, 1, 1, 1), hole, mask)


def _fill_line(line: Tensor, dim: int) -> Tensor:
    """1 between the first and the last 1 along a dimension."""
    before = line.cummax(dim).values
    after = line.flip(dim).cummax(dim).values.flip(dim)
    return before * after


@dataclass(frozen=True, eq=False)
class Samples:
    """truth and pasted (N, 3, S, S) in [-1, 1], mask (N, 1, S, S) in [0, 1], N captions."""

    truth: Tensor
    pasted: Tensor
    mask: Tensor
    captions: list[str]


def cover(mask: Tensor, factor: int) -> Tensor:
    """The latent pixels that a mask (N, 1, H, W) touches, (N, 1, H / factor, W / factor), 0 or 1.

    All that is disturbed lies in there, so that what a U-Net sees of the rest is the truth.
    """
    return functional.max_pool2d((mask > 0).float(), factor)


class DisturbedLoader:
    """Batches of samples on a device; sample `row` of step `step` hangs on the seed and these two.

    With `workers` threads the next step's samples are made while this one's are learned from.
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
    ) -> None:
        self.corpus, self.objects, self.policy = corpus, objects, policy
        self.size, self.seed, self.device = size, seed, device
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._coming: dict[tuple[int, int], Future[Sample]] = {}

    def batch(self, step: int, rows: Sequence[int]) -> Samples:
        """The samples of these rows of a step, pictures drawn by their weights."""
        if self._pool is None:
            return self._stack([self._draw(step, row) for row in rows])
        for number in (step, step + 1):
            for row in rows:
                if (number, row) not in self._coming:
                    self._coming[number, row] = self._pool.submit(self._draw, number, row)
        return self._stack([self._coming.pop((step, row)).result() for row in rows])

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
        return self._sample(int(rng.choice(len(self.corpus), p=self.corpus.weights)), rng)

    def _sample(self, index: int, rng: Rng, kind: str | None = None) -> Sample:
        picture, caption = self.corpus.images[index], self.corpus.captions[index]
        return draw_sample(picture, caption, self.objects, self.size, self.policy, rng, kind)

    def _stack(self, samples: Sequence[Sample]) -> Samples:
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
