"""DreamCom: the box is filled with a concept (Lu et al. 2023, arXiv 2309.15508).

The checkpoint, with what `inlay learn` wrote attached, inpaints the box under the concept's prompt.
Nothing outside the box attends to the prompt (eq. 2), and in the layers of a preset box and
background do not see each other (section 4.3): the masks are diffusion/attention_masked.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from inlay.methods.base import Context, Method
from inlay.methods.concept import ConceptSettings
from inlay.pictures.arrays import Image, resize
from inlay.scene.stitch import Painted, Window
from inlay.settings import published

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.diffusion.backbone import Backbone
    from inlay.diffusion.text import Embedding
    from inlay.methods.concept.fill import Filler


class DreamComSettings(ConceptSettings):
    best_of: int = Field(1, ge=1, le=64)
    """samples made, of which the best is kept"""
    best_by: Literal["histogram", "likelihood"] = "histogram"
    """which one is best: the one whose colours in the box are nearest to those of the concept's
    photos, or the one that the concept's prompt explains better than the class alone does
    """

    def needs_photos(self) -> tuple[str, str] | None:
        if self.best_of > 1 and self.best_by == "histogram":
            return "best_by=histogram", "best_by=likelihood"
        return super().needs_photos()


def run(
    window: Window, backbone: Backbone, settings: DreamComSettings, context: Context
) -> Painted:
    """Fill the window's box with its concept; of `best_of` samples the best. Raises InputError as
    filler() does, and for a scheduler that does not sample the model.
    """
    from inlay.methods.concept.fill import blend, filler

    with filler(window, backbone, settings, context) as fill:
        if settings.strength == 0:
            return Painted(window.clean, window.alpha > 1)
        strengths = [settings.strength] * settings.best_of
        context.total = sum(map(fill.steps, strengths))
        samples = [fill.fill(fill.source(), fill.box, strength) for strength in strengths]
        return blend(fill, _best(fill, settings, samples))


def _best(fill: Filler, settings: DreamComSettings, samples: list[Tensor]) -> Tensor:
    """The sample that is best by the settings' score."""
    if len(samples) == 1:
        return samples[0]
    if settings.best_by == "likelihood":
        plain = fill.embed(fill.concept.class_prompt)
        scores = [
            prediction_error(fill, z, plain) - prediction_error(fill, z, fill.text) for z in samples
        ]
    else:
        scores = [-_colour_distance(fill, z) for z in samples]
    best = max(range(len(samples)), key=scores.__getitem__)
    told = ", ".join(f"{score:.3f}" for score in scores)
    fill.context.note(f"dreamcom: sample {best + 1} of {told} by {settings.best_by}")
    return samples[best]


def prediction_error(
    fill: Filler, latent: Tensor, text: Embedding, levels: Sequence[float] = (0.3, 0.5, 0.7)
) -> float:
    """The mean squared error in the box of what is predicted for a noised latent (1, C, h, w): how
    badly the checkpoint, with the concept attached, explains a sample under a prompt.

    Always under the same noise, at timesteps that are these parts of all (0: clean, 1: noise).
    """
    import torch

    backbone, hole = fill.backbone, fill.box
    conditions = fill.conditions(hole, fill.picture)
    denoiser = backbone.denoiser(replace(conditions, text=text, negative=None))
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    with backbone.attention(fill.attention(hole)):
        for place in levels:
            level = backbone.levels[int(place * len(backbone.levels))]
            noise = torch.randn(latent.shape, generator=generator).to(latent)
            eps, _ = denoiser(level.add_noise(latent, noise), level)
            total += float((((eps - noise) ** 2) * hole).mean() / hole.mean())
    return total / len(levels)


def _colour_distance(fill: Filler, latent: Tensor) -> float:
    """The mean Hellinger distance, 0 to 1, of RGB histograms (8 x 8 x 8 bins) of box and photos."""
    import cv2

    def histogram(rgb: Image, alpha: Image) -> Any:
        levels = np.ascontiguousarray(np.clip(rgb * 255, 0, 255).astype(np.uint8))
        inside = (alpha > 0.5).astype(np.uint8)
        return cv2.calcHist([levels], [0, 1, 2], inside, [8] * 3, [0, 256] * 3)

    image = np.clip(resize(fill.image(latent), fill.window.shape), 0, 1)
    here = histogram(image, fill.window.alpha)
    known = (histogram(photo.rgb, photo.alpha) for photo in fill.photos)
    return float(np.mean([cv2.compareHist(here, one, cv2.HISTCMP_HELLINGER) for one in known]))


_PAPER = published(DreamComSettings, mask_cross_attention="on")
METHOD = Method(
    name="dreamcom",
    summary="DreamCom: fills the box with an object that `inlay learn` has learnt from photos",
    source="Lu et al. 2023, arXiv 2309.15508",
    verbs=("compose",),
    settings=DreamComSettings,
    concepts=True,
    paints_concepts=True,
    invents=("dreamcom",),
    presets={"paper": _PAPER, "released": {**_PAPER, "self_attention": "released"}},
)
