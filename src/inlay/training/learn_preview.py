"""What a run has learnt so far, as a picture: a photo, and its box filled by the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inlay.diffusion.denoise import Step, denoise
from inlay.diffusion.schedule import add_noise, ddim_schedule
from inlay.pixels import read_picture, write_picture

if TYPE_CHECKING:
    from inlay.training.learn import Learning

__all__ = ["filled", "preview"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Sampling must not move the global generator that a run may lean on."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        yield


def filled(run: Learning, steps: int, seed: int = 0) -> Tensor:
    """The first photo's frame (1, 3, S, S) in [-1, 1] with its box filled, by DDIM from noise.

    With the averaged weights and without guidance. On a plain checkpoint the rest is replaced by
    the photo's noised latent after every step (blended latents, arXiv 2206.02779).
    """
    backbone = run.backbone
    pool = run.fixed["photos"].rows(np.arange(1), run.device)
    schedule = ddim_schedule(backbone.scheduler_config, steps)
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    start = noise(pool.z)
    inpaints = backbone.kind == "inpaint"

    def denoiser(z: Tensor, timestep: int, number: int, total: int) -> tuple[Tensor, Tensor]:
        text = run.prompts[run.prompt]
        masks = (pool.hole, pool.seen) if inpaints else (None, None)
        return backbone.predict_both(z, timestep, text, None, 1.0, *masks)

    def outside(step: Step) -> Tensor:
        known = add_noise(pool.z, start, step.alpha_next)
        return step.z * pool.hole + known * (1 - pool.hole)

    with _quiet(), run.learner.averaged(), run.masked(pool.hole):
        z = denoise(
            denoiser,
            start,
            schedule,
            indices=range(len(schedule) - 1, -2, -1),
            noise=noise,
            on_step=() if inpaints else (outside,),
        )
        return backbone.decode(z * pool.hole + pool.z * (1 - pool.hole))


def preview(run: Learning, path: Path) -> None:
    """Write the photo as the checkpoint gets to see it, and beside it the box filled."""
    pool = run.fixed["photos"].rows(np.arange(1), run.device)
    made = filled(run, run.config.preview_steps)
    with _quiet():
        sides = torch.cat([run.backbone.decode(pool.z), made], 3)
    image = sides[0].clamp(-1, 1).cpu().numpy().transpose(1, 2, 0)
    levels = np.round((image + 1) * 127.5).astype(np.uint8)
    write_picture(read_picture(np.ascontiguousarray(levels), role="preview"), path)
