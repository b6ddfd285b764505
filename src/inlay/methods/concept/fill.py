"""What the methods that put in a concept share: their settings, and how a region is filled.

A concept is a file that `inlay learn` wrote (checkpoints/concept.py); the window has its path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from inlay.errors import InputError
from inlay.methods.base import Context, DiffusionSettings
from inlay.methods.concept.details import Reference
from inlay.methods.workspace import Workspace
from inlay.scene.window import Window, model_size

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.checkpoints.concept import Concept
    from inlay.diffusion.attention_masked import MaskedAttention
    from inlay.diffusion.backbone import Backbone
    from inlay.diffusion.text import Embedding

__all__ = ["ConceptSettings", "Filler", "filler"]

# What stands for the concept in a prompt.
_OBJECT = "{object}"


class ConceptSettings(DiffusionSettings):
    """What every method for a concept has."""

    prompt: str = Field("", max_length=2000)
    """what the box should show; {object} in it stands for the words of the concept; empty is the
    prompt it was learnt under
    """
    guidance_scale: float = Field(3.0, ge=0, le=50)
    """how strongly the prompt steers (classifier-free guidance); 1 is off"""
    lora_scale: float = Field(1.0, ge=0, le=2)
    """how strongly what was learnt acts; 0 is not at all"""
    mask_cross_attention: Literal["learnt", "on", "off"] = "learnt"
    """masked cross-attention: nothing outside the box attends to the prompt; learnt: as it was
    while the concept was learnt
    """
    self_attention: Literal["paper", "released", "a", "b", "c", "d"] = "paper"
    """masked self-attention: the layers in which box and background do not see each other; a is
    none, b all, c the decoder's outer layers, d and paper all but these, released the last 5 of the
    decoder
    """
    scheduler: str = Field(
        "EulerAncestralDiscreteScheduler", pattern=r"^[A-Z][A-Za-z0-9]{2,60}Scheduler$"
    )
    """which of diffusers' schedulers samples, by class name"""
    region: Literal["box", "object"] = "box"
    """what is laid into the picture: the whole box, or the object alone, cut out where it stands
    out from the background
    """
    details: float = Field(0.0, ge=0, le=1)
    """how much of its fine detail (text, pattern) the best fitting photo of the object lends it; 0
    is none
    """
    details_agreement: float = Field(0.7, ge=0, le=1)
    """details: how well a photo must fit, as its least correlation with what was painted; 1 is the
    same picture
    """


@contextmanager
def filler(
    window: Window, backbone: Backbone | None, settings: ConceptSettings, context: Context
) -> Iterator[Filler]:
    """Inside, the window's concept is attached to the backbone, which can fill regions with it.

    Raises InputError for a file that was learnt for another checkpoint.
    """
    import torch

    from inlay.checkpoints.concept import attach
    from inlay.diffusion.text import embed_prompt

    if backbone is None:
        raise ValueError("a concept needs a backbone")
    if window.concept is None:
        raise ValueError("the window has no concept")
    files = [(window.concept, settings.lora_scale)]
    # Attached first: what is trained on later must not be an inference tensor.
    with attach(backbone, files) as (concept,), torch.inference_mode():
        size = model_size(window.box, backbone.native_size, backbone.multiple)
        words = f"{concept.token} {concept.class_name}"
        prompt = settings.prompt.replace(_OBJECT, words) or concept.prompt
        layout = concept.layout, concept.background_prompt
        text, class_text, negative = (
            embed_prompt(backbone.text, each, size, *layout)
            for each in (prompt, concept.class_prompt, settings.negative_prompt)
        )
        guided = settings.guidance_scale != 1 and prompt != settings.negative_prompt
        unconditional = negative if guided else None
        work = Workspace(window, backbone, settings, context, size, text, unconditional)
        yield Filler(work, concept, settings, class_text)


@dataclass(eq=False)
class Filler:
    """A checkpoint with a concept attached, at work on a window.

    class_text is the prompt with the class in place of the concept. done of `total` sampling steps
    are made; expect() sets the total.
    """

    work: Workspace
    concept: Concept
    settings: ConceptSettings
    class_text: Embedding
    done: int = 0
    total: int = 0

    @property
    def picture(self) -> Tensor:
        """The background, (1, 3, H, W) in [-1, 1]."""
        return self.work.window.tensor("clean", self.work.size)

    @property
    def background(self) -> Tensor:
        """Its latent (1, C, h, w)."""
        return self.work.encode(self.picture, "clean")

    @cached_property
    def box(self) -> Tensor:
        """The latent mask (1, 1, h, w) of the window's box."""
        work = self.work
        return work.latent_mask(work.window.mask(work.size), cover=True)

    def expect(self, strengths: Sequence[float]) -> None:
        """Say with which strengths fill() will be called, for the progress."""
        self.total = sum(self._steps(strength) for strength in strengths)

    def fill(self, source: Tensor, hole: Tensor, strength: float) -> Tensor:
        """Latent (1, C, h, w) of the background with a hole (1, 1, h, w) filled with the object.

        source, a latent of the picture, is noised to the level of `strength` first.
        """
        work, settings = self.work, self.settings
        if self._steps(strength) == 0:
            return source
        conditions = work.conditions(hole, self.picture)
        solver = work.backbone.solver(settings.scheduler, settings.num_inference_steps)
        with work.backbone.attention(self.attention(hole)):
            latent = work.paint(solver, conditions, source, strength, self.done, self.total)
        self.done += self._steps(strength)
        return latent

    def inside(self, latent: Tensor, hole: Tensor) -> Tensor:
        """A latent (1, C, h, w) inside the hole (1, 1, h, w), the background's outside."""
        return latent * hole + self.background * (1 - hole)

    def attention(self, hole: Tensor) -> MaskedAttention:
        """The masked attention of the settings for a hole (1, 1, h, w)."""
        from inlay.diffusion.attention_masked import MaskedAttention, released_tokens

        cross = self.settings.mask_cross_attention
        masks = self.concept.mask_cross_attention if cross == "learnt" else cross == "on"
        inside = released_tokens() if self.concept.layout == "released" else None
        return MaskedAttention(hole, self.settings.self_attention, masks, inside=inside)

    def references(self, use: str, instead: str) -> list[Reference]:
        """The photos that the file holds, cropped to the object.

        Raises InputError where there are none, saying what would `use` them and what to say
        `instead`.
        """
        photos = []
        for sight in self.concept.sights:
            photo = sight.image()
            if photo is not None:
                values = np.asarray(photo.convert("RGBA"), np.float32) / np.float32(255)
                rgb, alpha = (np.ascontiguousarray(v) for v in (values[..., :3], values[..., 3]))
                photos.append(Reference(sight.photo, rgb, alpha))
        if not photos:
            path = self.work.window.concept
            raise InputError(
                f"{'the file' if path is None else path.name} holds none of its photos, which "
                f"{use} needs; learn it with keep_photos=true, or use {instead}."
            )
        return photos

    def note(self, line: str) -> None:
        """Say something a user should know, once a run."""
        if line not in self.work.context.notes:
            self.work.context.note(line)

    def _steps(self, strength: float) -> int:
        from inlay.diffusion.sample import step_count

        return step_count(self.settings.num_inference_steps, strength)
