"""Batches of a corpus: cut, masked and recoloured on the host, or on the device that trains.

Both take every random number from the generator of the step, so that a resumed run sees what an
unbroken one would have seen.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from inlay.training.corpus import (
    Corpus,
    draw_crop,
    draw_light,
    object_mask,
    random_crop,
    random_mask,
    recoloured,
)

__all__ = ["Batch", "DeviceFeed", "Feed", "HostFeed", "Policy"]

Rng = np.random.Generator


@dataclass(frozen=True)
class Policy:
    """How often a hole hides the picture's object, and how often a picture is recoloured."""

    object_mask_share: float = 0.0
    recolour_share: float = 0.0


@dataclass
class Batch:
    """Pictures (N, 3, S, S) in [-1, 1], holes (N, 1, S, S) of 0 and 1, and N captions."""

    x: Tensor
    mask: Tensor
    captions: list[str]


class Feed(Protocol):
    def batch(self, count: int, size: int, rng: Rng) -> Batch:
        """`count` pictures drawn by their weights, at `size` pixels."""
        ...


class HostFeed:
    """Cuts with OpenCV, picture by picture; the tensors are moved to the device whole."""

    def __init__(self, corpus: Corpus, policy: Policy, device: torch.device) -> None:
        self.corpus, self.policy, self.device = corpus, policy, device

    def batch(self, count: int, size: int, rng: Rng) -> Batch:
        return self.of(rng.choice(len(self.corpus), count, p=self.corpus.weights), size, rng)

    def of(self, indices: np.ndarray, size: int, rng: Rng) -> Batch:
        """The pictures of these indices, cut at random."""
        images, masks = [], []
        for index in indices.tolist():
            mask = None
            if rng.random() < self.policy.object_mask_share:
                crop = random_crop(self.corpus.with_object(index), size, rng)
                mask = object_mask(crop, rng)
            else:
                crop = random_crop(self.corpus.images[index], size, rng)
            masks.append(random_mask(size, rng) if mask is None else mask)
            crop = np.ascontiguousarray(crop[..., :3])
            if rng.random() < self.policy.recolour_share:
                crop = recoloured(crop, rng)
            images.append(crop)
        x = torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2)
        hole = torch.from_numpy(np.stack(masks))[:, None].to(self.device)
        captions = [self.corpus.captions[index] for index in indices.tolist()]
        return Batch(x.float() / 127.5 - 1, hole, captions)


class DeviceFeed:
    """Holds all pictures on the device and cuts them there: for a GPU that a host cannot feed.

    Holes of random shape come from a pool that is drawn once; every picture's object is looked for
    at the start, on all cores.
    """

    def __init__(
        self, corpus: Corpus, policy: Policy, device: torch.device, seed: int, pool: int = 4096
    ) -> None:
        self.corpus, self.policy, self.device = corpus, policy, device
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
        recolour = rng.random(count) < self.policy.recolour_share
        lights = [draw_light(rng) for _ in range(count)]
        gain = self._column(np.stack([gain for gain, _ in lights]))
        gamma = self._column(np.array([[gamma] * 3 for _, gamma in lights]))
        light = ((x / 255).clamp(0, 1) ** (2.2 * gamma) * gain).clamp(0, 1) ** (1 / 2.2) * 255
        chosen = torch.from_numpy(recolour).to(self.device).view(-1, 1, 1, 1)
        x = torch.where(chosen, light, x)
        mask = self._pool(size)[torch.from_numpy(rng.integers(0, self.pool, count))]
        hide = torch.from_numpy(rng.random(count) < self.policy.object_mask_share)
        mask = self._hidden(mask.float(), crops[:, 3:], hide.to(self.device), rng)
        return Batch(x / 127.5 - 1, mask, [self.corpus.captions[index] for index in indices])

    def _crop(self, index: int, size: int, rng: Rng) -> Tensor:
        picture = self.pictures[index]
        top, left, side, mirrored = draw_crop(picture.shape[1], picture.shape[2], size, rng)
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
        box = _filled(across, 3) * _filled(down, 2)
        boxed = torch.from_numpy(rng.random(len(mask)) < 0.5).to(self.device).view(-1, 1, 1, 1)
        hole = torch.where(boxed, box, found)
        reach = int(rng.uniform(0, 0.06) * mask.shape[-1])
        if reach:
            hole = functional.max_pool2d(hole, 2 * reach + 1, 1, reach)
        shown = found.mean((1, 2, 3)) >= 0.03
        return torch.where((hide & shown).view(-1, 1, 1, 1), hole, mask)


def _filled(line: Tensor, dim: int) -> Tensor:
    """1 between the first and the last 1 along a dimension."""
    before = line.cummax(dim).values
    after = line.flip(dim).cummax(dim).values.flip(dim)
    return before * after
