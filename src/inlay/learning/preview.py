"""What a run has learnt so far, as a picture: a photo, and its box filled by the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inlay.diffusion.sample import Step, denoise
from inlay.diffusion.schedule import add_noise, ddim_schedule
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
    schedule = ddim_schedule(backbone.scheduler_config, steps)
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    start = noise(pool.z)
    inpaints = backbone.kind == "inpaint"

    def denoiser(z: Tensor, timestep: int, number: int, total: int) -> tuple[Tensor, Tensor]:
        masks = (pool.hole, pool.seen) if inpaints else (None, None)
        return backbone.predict_both(z, timestep, text, None, 1.0, *masks)

    def outside(step: Step) -> Tensor:
        known = add_noise(pool.z, start, step.alpha_next)
        return step.z * pool.hole + known * (1 - pool.hole)

    with _quiet():
        z = denoise(
            denoiser,
            start,
            schedule,
            indices=range(len(schedule) - 1, -2, -1),
            noise=noise,
            on_step=() if inpaints else (outside,),
        )
        return backbone.decode(z * pool.hole + pool.z * (1 - pool.hole))


def preview(backbone: Backbone, pool: Pool, text: Conditioning, steps: int, path: Path) -> None:
    """Write a pool's one photo as the checkpoint gets to see it, and beside it the box filled."""
    made = filled(backbone, pool, text, steps)
    with _quiet():
        sides = torch.cat([backbone.decode(pool.z), made], 3)
    image = sides[0].clamp(-1, 1).cpu().numpy().transpose(1, 2, 0)
    levels = np.round((image + 1) * 127.5).astype(np.uint8)
    write_picture(read_picture(np.ascontiguousarray(levels), role="preview"), path)
