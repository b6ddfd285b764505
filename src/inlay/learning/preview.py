"""What a run has learnt so far, as a picture: a photo, and its box filled by the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inlay.diffusion.backbone import Conditions
from inlay.diffusion.sample import Step, sample
from inlay.pictures.read import read_picture
from inlay.pictures.write import write_picture

if TYPE_CHECKING:
    from inlay.diffusion.backbone import Backbone
    from inlay.diffusion.text import Conditioning
    from inlay.learning.samples import Pool

__all__ = ["filled", "preview"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Sampling must not move the global generator that a run may lean on."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        yield


def filled(backbone: Backbone, pool: Pool, text: Conditioning, steps: int, seed: int = 0) -> Tensor:
    """A pool's one frame (1, 3, S, S) in [-1, 1] with its box filled, by DDIM from noise.

    Without guidance. On a plain checkpoint the rest is replaced by the photo's noised latent after
    every step (blended latents, arXiv 2206.02779).
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    start = noise(pool.z)
    denoiser = backbone.denoiser(Conditions(text, mask=pool.hole, masked_latent=pool.seen))

    def outside(step: Step) -> Tensor:
        mask = denoiser.keep_outside
        if mask is None:
            return step.z
        return step.z * mask + step.to.add_noise(pool.z, start) * (1 - mask)

    with _quiet():
        levels = backbone.levels.run(steps)
        z = sample(denoiser, start, levels, noise=noise, on_step=outside)
        return backbone.decode(z * pool.hole + pool.z * (1 - pool.hole))


def preview(backbone: Backbone, pool: Pool, text: Conditioning, steps: int, path: Path) -> None:
    """Write a pool's one photo as the checkpoint gets to see it, and beside it the box filled."""
    made = filled(backbone, pool, text, steps)
    with _quiet():
        sides = torch.cat([backbone.decode(pool.z), made], 3)
    image = sides[0].clamp(-1, 1).cpu().numpy().transpose(1, 2, 0)
    levels = np.round((image + 1) * 127.5).astype(np.uint8)
    write_picture(read_picture(np.ascontiguousarray(levels), role="preview"), path)
