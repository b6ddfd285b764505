"""Denoising pictures larger than the model: windows whose predictions are averaged.

MultiDiffusion (Bar-Tal et al. 2023, arXiv 2302.08113), eq. 5: at every noise level the network sees
windows of its own size, and what it says of a pixel is the weighted mean over the windows that hold
it. Noise and clean picture are both linear in what it says, so the mean of one fits that of the
other. A large picture is made at several sizes, one after the other, each from the one before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inlay.diffusion.conditions import Conditions
from inlay.diffusion.sample import Denoise, Level

# Beyond this many times the model's size a scene grows by plain resampling.
_LARGEST = 8
# The scene's shorter side at the coarse level, in the model's sizes, where the longer is larger.
_NARROWEST = 0.5
# What is enlarged by less is not worth another pass.
_LEAST_GROWTH = 1.1
# Latent pixels of the windows that go through a network in one batch: 16 windows of 32 x 32.
_BATCH_PIXELS = 1 << 14


def starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where the windows of a side begin: evenly spread, overlapping by at least a share of a tile.
    The first begins at 0, the last ends at `length`; one window where the side fits in it.
    """
    if length <= tile:
        return [0]
    step = max(1, tile - round(overlap * tile))
    gaps = math.ceil((length - tile) / step)
    return [round(number * (length - tile) / gaps) for number in range(gaps + 1)]


def resolutions(size: tuple[int, int], native: int) -> list[tuple[int, int]]:
    """The sizes that a scene of (height, width) is made at, the coarse one first.

    The coarse one's longer side is `native`, but where the shorter one would be less than half
    of it, that is half of it. Each further one is larger by one factor of at most 2; the last
    is the scene's own size, or has a longer side of 8 times `native`.
    """
    longer, shorter = max(size), min(size)
    last = min(1.0, _LARGEST * native / longer)
    first = min(max(native / longer, _NARROWEST * native / shorter), _LARGEST * native / longer)
    growth = last / first
    steps = math.ceil(math.log2(growth) - 1e-9) if growth >= _LEAST_GROWTH else 0
    factors = [first * growth ** (number / max(steps, 1)) for number in range(steps + 1)]
    height, width = size
    return [(max(1, round(height * f)), max(1, round(width * f))) for f in factors]


@dataclass(frozen=True)
class Tiling:
    """Windows of one size over a latent. size and tile are (height, width) in latent pixels,
    corners the windows' (top, left).
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    corners: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, size: tuple[int, int], native: int, overlap: float) -> Tiling:
        """Windows of `native` a side, less where the latent is smaller; overlap in [0, 1)."""
        tile = min(native, size[0]), min(native, size[1])
        rows, columns = (starts(size[i], tile[i], overlap) for i in (0, 1))
        return cls(size, tile, tuple((top, left) for top in rows for left in columns))

    def weight(self, scale: int = 1) -> Tensor:
        """How much each pixel of a window counts, (h * scale, w * scale): a squared sine. It falls
        to almost nothing at the rim, so no seam is seen where a window ends.
        """
        sides = [
            torch.sin((torch.arange(n * scale) + 0.5) * (math.pi / (n * scale))).square()
            for n in self.tile
        ]
        return sides[0][:, None] * sides[1][None, :]

    def crop(self, x: Tensor, number: int, scale: int = 1) -> Tensor:
        """One window of (..., H * scale, W * scale); a view."""
        top, left = (scale * corner for corner in self.corners[number])
        return x[..., top : top + scale * self.tile[0], left : left + scale * self.tile[1]]

    def batches(self, numbers: Sequence[int]) -> Iterator[Sequence[int]]:
        """The windows in batches of bounded size."""
        size = max(1, _BATCH_PIXELS // (self.tile[0] * self.tile[1]))
        for first in range(0, len(numbers), size):
            yield numbers[first : first + size]

    def stack(self, x: Tensor, numbers: Sequence[int], scale: int = 1) -> Tensor:
        """Windows of (1, C, H * scale, W * scale) as rows (n, C, h * scale, w * scale)."""
        return torch.cat([self.crop(x, number, scale) for number in numbers])

    def mean(
        self, numbers: Sequence[int], say: Callable[[Sequence[int]], Tensor], scale: int = 1
    ) -> tuple[Tensor, Tensor]:
        """What is said of windows, by batches (k, n, C, h * scale, w * scale), as weighted means
        (k, C, H * scale, W * scale); and the weights (H * scale, W * scale), 0 where no window was.
        """
        total: Tensor | None = None
        weight, weights = self.weight(scale), torch.zeros([side * scale for side in self.size])
        for some in self.batches(numbers):
            rows = say(some).float()
            if total is None:
                total = rows.new_zeros(len(rows), rows.shape[2], *weights.shape)
                weight, weights = weight.to(rows.device), weights.to(rows.device)
            for number, row in zip(some, rows.unbind(1), strict=True):
                self.crop(total, number, scale).add_(row * weight)
                self.crop(weights, number, scale).add_(weight)
        assert total is not None
        return total / torch.where(weights > 0, weights, 1), weights


def in_tiles(
    call: Callable[[Tensor], Tensor], x: Tensor, tiling: Tiling, reads: int, makes: int
) -> Tensor:
    """`call` on windows of x (1, C, H * reads, W * reads): their mean (1, D, H * makes, W * makes).

    For an autoencoder, whose memory grows with the picture: reads and makes are its pixels per
    latent pixel and 1, or the other way round. One window is handed through as it is.
    """
    everything = range(len(tiling.corners))
    if len(everything) == 1:
        return call(x).float()
    return tiling.mean(everything, lambda n: call(tiling.stack(x, n, reads))[None], makes)[0]


@dataclass
class TiledDenoiser:
    """A denoiser over a latent of any size, made of one for windows.

    The conditions' mask (1, 1, H, W), 1 where content is made, masked_latent and reference
    (1, C, H, W) are those of the whole; `denoiser` makes a denoiser of the conditions of some
    windows, such as Backbone.denoiser. Where a window holds nothing to be made it is not run; what
    no window tells of is `kept` (1, C, H, W), whose noise follows from the level.
    """

    denoiser: Callable[[Conditions], Denoise]
    conditions: Conditions
    tiling: Tiling
    kept: Tensor

    def __post_init__(self) -> None:
        mask = self.conditions.mask
        everything = range(len(self.tiling.corners))
        self.used = [n for n in everything if mask is None or bool(self.tiling.crop(mask, n).any())]

    def __call__(self, z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """(eps, x0), both (1, C, H, W) in float32."""
        tiling, whole = self.tiling, self.conditions
        noise = (z - level.signal * self.kept) / max(float(level.noise), 1e-4)
        if not self.used:
            return noise, self.kept

        def say(numbers: Sequence[int]) -> Tensor:
            mask, masked, reference = (
                None if x is None else tiling.stack(x, numbers)
                for x in (whole.mask, whole.masked_latent, whole.reference)
            )
            told = replace(whole, mask=mask, masked_latent=masked, reference=reference)
            denoise = self.denoiser(told)
            return torch.stack(denoise(tiling.stack(z, numbers), level))

        (eps, x0), weights = tiling.mean(self.used, say)
        known = weights > 0
        return torch.where(known, eps[None], noise), torch.where(known, x0[None], self.kept)
