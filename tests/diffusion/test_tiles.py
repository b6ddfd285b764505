"""Windows over a latent: where they lie, how they are averaged, what is not run."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from checkpoints import loaded
from inlay.diffusion.conditions import Conditions
from inlay.diffusion.sample import Denoise, Level
from inlay.diffusion.text import Embedding
from inlay.diffusion.tiles import TiledDenoiser, Tiling, in_tiles, starts


@pytest.mark.parametrize("tile", [1, 5, 32])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.9])
def test_windows_cover_a_side_evenly_and_overlap(tile: int, overlap: float) -> None:
    for length in range(1, 150):
        found = starts(length, tile, overlap)
        assert found[0] == 0 and found == sorted(set(found))
        if length <= tile:
            assert found == [0]
            continue
        assert found[-1] + tile == length
        steps = [b - a for a, b in pairwise(found)]
        assert max(steps) <= max(1, tile - round(overlap * tile))
        assert max(steps) - min(steps) <= 1


def test_weights_sum_to_one() -> None:
    tiling = Tiling.of((37, 50), 16, 0.3)
    assert len(tiling.corners) > 10 and tiling.tile == (16, 16)
    x = torch.rand(1, 3, 37, 50)
    assert torch.allclose(in_tiles(lambda part: part, x, tiling, 1, 1), x, atol=1e-5)
    assert (tiling.weight() > 0).all() and tiling.weight().max() <= 1


def test_an_autoencoder_in_windows_reads_and_makes_other_sizes() -> None:
    tiling = Tiling.of((12, 9), 4, 0.5)
    latent = torch.rand(1, 2, 12, 9)
    large = in_tiles(lambda z: z.repeat_interleave(3, -1).repeat_interleave(3, -2), latent, tiling,
                     1, 3)  # fmt: skip
    assert torch.allclose(large[..., 1::3, 1::3], latent, atol=1e-5)
    pool = torch.nn.AvgPool2d(3)
    assert torch.allclose(in_tiles(pool, large, tiling, 3, 1), pool(large), atol=1e-5)


LEVEL = Level(0.5, math.sqrt(0.75), 40)


def odd(conditions: Conditions) -> Denoise:
    """Predictions that hang on the whole of a window and on all that is shown to it."""
    mask, seen = conditions.mask, conditions.masked_latent
    assert mask is not None and seen is not None

    def denoiser(z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        eps = z - z.mean((-2, -1), keepdim=True) + mask * seen.amax((-2, -1), keepdim=True)
        return eps, eps * level.timestep / 100

    return denoiser


def test_predictions_are_the_weighted_mean_over_windows() -> None:
    torch.manual_seed(0)
    size, tile = (11, 14), 6
    z, kept, seen = (torch.randn(1, 2, *size) for _ in range(3))
    mask = torch.zeros(1, 1, *size)
    mask[..., :7, :6] = 1
    mask[..., 8, 13] = 1
    tiling = Tiling.of(size, tile, 0.5)
    whole = Conditions(Embedding(torch.zeros(1, 1, 1)), mask=mask, masked_latent=seen)
    eps, x0 = TiledDenoiser(odd, whole, tiling, kept)(z, LEVEL)

    total, weights = torch.zeros_like(z), torch.zeros(size)
    skipped = 0
    for top in starts(size[0], tile, 0.5):
        for left in starts(size[1], tile, 0.5):
            here = (slice(None), slice(None), slice(top, top + tile), slice(left, left + tile))
            if mask[here].sum() == 0:
                skipped += 1
                continue
            part = replace(whole, mask=mask[here], masked_latent=seen[here])
            said = odd(part)(z[here], LEVEL)[0]
            for y in range(tile):
                for x in range(tile):
                    weight = (
                        math.sin(math.pi * (y + 0.5) / tile) * math.sin(math.pi * (x + 0.5) / tile)
                    ) ** 2
                    total[0, :, top + y, left + x] += weight * said[0, :, y, x]
                    weights[top + y, left + x] += weight
    assert skipped > 0 and (weights == 0).any()
    told = weights > 0
    assert torch.allclose(eps[..., told], (total / weights)[..., told], atol=1e-5)
    assert torch.allclose(x0[..., told], eps[..., told] * 0.4, atol=1e-5)
    # Where no window was run, the picture is the kept one and its noise is what z says of it.
    assert torch.equal(x0[..., ~told], kept[..., ~told])
    again = 0.5 * x0 + math.sqrt(0.75) * eps
    assert torch.allclose(again[..., ~told], z[..., ~told], atol=1e-5)


@pytest.mark.parametrize("name", ["sd1", "sd1_inpaint"])
def test_one_window_over_all_predicts_as_without_windows(name: str) -> None:
    backbone = loaded(name)
    torch.manual_seed(0)
    side = backbone.native_size // backbone.factor
    z, seen = torch.randn(2, 1, 4, side, side).unbind()
    mask = torch.ones(1, 1, side, side)
    words, none = (backbone.embed([text], (64, 64)) for text in ("a cup", ""))
    conditions = Conditions(words, none, 4.0, mask=mask, masked_latent=seen)
    tiling = Tiling.of((side, side), side, 0.5)
    tiled = TiledDenoiser(backbone.denoiser, conditions, tiling, z)(z, backbone.levels[300])
    plain = backbone.denoiser(conditions)(z, backbone.levels[300])
    for a, b in zip(tiled, plain, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
