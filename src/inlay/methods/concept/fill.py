"""What the methods that put in a concept share: how a region is filled with it and blended in.

A concept is a file that `inlay learn` wrote (checkpoints/concept.py); the window has its path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from torch import Tensor

from inlay.checkpoints.concept import Concept, attach
from inlay.diffusion.attention_masked import MaskedAttention, released_tokens
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.sample import step_count
from inlay.diffusion.text import Embedding, embed_prompt
from inlay.errors import InputError
from inlay.methods.base import Context
from inlay.methods.concept import ConceptSettings
from inlay.methods.concept.details import Reference, add_details
from inlay.methods.workspace import Workspace
from inlay.pictures.arrays import Box, Image, Mask, blur, from_levels, resize, soft_rim, to_uint8
from inlay.pictures.colour import convert
from inlay.scene.cutout import grabcut, without_specks
from inlay.scene.matte import matte
from inlay.scene.stitch import Painted, Window

# What stands for the concept in a prompt.
_OBJECT = "{object}"
# GrabCut works on at most so many pixels, with so many rounds.
_PIXELS = 100_000
_ROUNDS = 5
# The blur of the distance from the old picture, in units of the box's longer side.
_BLUR = 0.02
# A difference in CIELAB that is too small to be seen as an object's.
_UNSEEN = 4.0
_LEAST, _MOST = 0.05, 0.95
# Pieces below this share of the largest, and gaps below this share of the object, are specks.
_SPECK = 0.1


@contextmanager
def filler(
    window: Window, backbone: Backbone, settings: ConceptSettings, context: Context
) -> Iterator[Filler]:
    """Inside, the window's concept is attached to the backbone, which can fill regions with it.
    Raises InputError for a file that was learnt for another checkpoint, and for one without photos
    where the settings need them.
    """
    assert window.concept is not None
    # Attached first: what is trained on later must not be an inference tensor.
    with attach(backbone, window.concept, settings.lora_scale) as concept, torch.inference_mode():
        photos = _photos(concept, window, settings.needs_photos())
        yield Filler(window, backbone, settings, context, concept, photos)


def _photos(concept: Concept, window: Window, need: tuple[str, str] | None) -> list[Reference]:
    """A concept file's photos, cropped to the object, in the window's space; if they are needed."""
    if need is None:
        return []
    photos = []
    for sight in concept.sights:
        if (photo := sight.image()) is not None:
            values = from_levels(np.asarray(photo.convert("RGBA")))
            rgb, alpha = (np.ascontiguousarray(v) for v in (values[..., :3], values[..., 3]))
            photos.append(Reference(sight.photo, convert(rgb, None, window.space), alpha))
    if not photos:
        assert window.concept is not None
        raise InputError(
            f"{window.concept.name} holds none of its photos, which {need[0]} needs; learn it with "
            f"keep_photos=true, or use {need[1]}."
        )
    return photos


@dataclass(eq=False)
class Filler(Workspace):
    """A checkpoint with a concept attached, at work on the background of a window."""

    view = "clean"

    settings: ConceptSettings
    concept: Concept
    photos: Sequence[Reference]

    @property
    def prompt(self) -> str:
        words = f"{self.concept.token} {self.concept.class_name}"
        return self.settings.prompt.replace(_OBJECT, words) or self.concept.prompt

    def embed(self, prompt: str) -> Embedding:
        super().embed(prompt)
        layout = self.concept.layout, self.concept.background_prompt
        return embed_prompt(self.backbone.text, prompt, self.size, *layout)

    @cached_property
    def box(self) -> Tensor:
        """The latent mask (1, 1, h, w) of the window's box."""
        return self.latent_mask(self.window.mask(self.size), cover=True)

    def fill(self, source: Tensor, hole: Tensor, strength: float) -> Tensor:
        """Latent (1, C, h, w) of the background whose hole (1, 1, h, w) is filled with the object,
        from the latent `source` noised to the level of `strength`.
        """
        if self.steps(strength) == 0:
            return source
        conditions, settings = self.conditions(hole, self.picture), self.settings
        solver = self.backbone.solver(settings.scheduler, settings.num_inference_steps)
        with self.backbone.attention(self.attention(hole)):
            latent = self.paint(solver, conditions, source, strength)
        self.context.done += self.steps(strength)
        return latent

    def attention(self, hole: Tensor) -> MaskedAttention:
        """The masked attention of the settings for a hole (1, 1, h, w)."""
        cross = self.settings.mask_cross_attention
        masks = self.concept.mask_cross_attention if cross == "learnt" else cross == "on"
        inside = released_tokens() if self.concept.layout == "released" else None
        return MaskedAttention(hole, self.settings.self_attention, masks, inside=inside)

    def outline(self, image: Image, otherwise: str) -> Mask | None:
        """find_object() in a picture of the window, or None and a note of what is done instead."""
        found = find_object(image, self.window.clean, self.window.region_box())
        if found is None and otherwise:
            told = "the object does not stand out from the background, so its whole box is"
            self.context.note(f"{told} {otherwise}")
        return found

    def steps(self, strength: float) -> int:
        return step_count(self.settings.num_inference_steps, strength)


def find_object(new: Image, old: Image, box: Box) -> Mask | None:
    """The object in the box of a picture, bool (h, w); None where nothing sensible is there.

    new and old, float32 (h, w, 3) sRGB in [0, 1], are the picture with the box filled and the
    background as it was. GrabCut looks for it inside the box: what is probably the object is far
    from the old background in CIELAB. What covers next to nothing or all of the box is not
    sensible.
    """
    height, width = new.shape[:2]
    scale = min(1.0, (_PIXELS / (height * width)) ** 0.5)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    inside = np.zeros((height, width), np.float32)
    inside[box.slices] = 1
    hole = resize(inside, size) > 0.5
    if not hole.any() or hole.all():
        return None
    small, was = (np.clip(resize(image, size), 0, 1) for image in (new, old))
    small = np.where(hole[..., None], small, was)
    labels = np.full(size, cv2.GC_BGD, np.uint8)
    labels[hole] = cv2.GC_PR_BGD
    # Where the pictures differ most, by Otsu's threshold on their distance.
    one, other = (
        cv2.cvtColor(np.ascontiguousarray(each), cv2.COLOR_RGB2Lab) for each in (small, was)
    )
    sigma = max(_BLUR * max(box.width, box.height) * scale, 0.5)
    away = blur(np.sqrt(((one - other) ** 2).sum(-1)), sigma)
    levels = np.clip(away[hole] * 2, 0, 255).astype(np.uint8)[None]
    level, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    labels[hole & (away > max(level / 2, _UNSEEN))] = cv2.GC_PR_FGD
    cut = grabcut(to_uint8(small), labels, _ROUNDS)
    if cut is None:
        return None
    cut = without_specks(cut, _SPECK, _SPECK)
    if not _LEAST <= cut.sum() / hole.sum() <= _MOST:
        return None
    large = cv2.resize(cut.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray((large > 0.5) & (inside > 0))


def blend(fill: Filler, latent: Tensor) -> Painted:
    """The window with its box, or the object in it where it stands out, as a latent (1, C, h, w)
    says, and with details of the photos, as the settings want it.
    """
    window, settings, longer = fill.window, fill.settings, max(fill.window.shape)
    new = resize(fill.image(latent), window.shape)
    weight = window.rim(settings.feather)
    inside = window.region()
    if settings.region == "object" or settings.details > 0:
        outline = fill.outline(new, "laid in" if settings.region == "object" else "")
        if outline is not None:
            # The sample's outline is no sharper than the model's pixels.
            reach = longer / max(fill.size)
            inside = np.minimum(matte(np.clip(new, 0, 1), outline, "wide", reach), weight)
            if settings.region == "object":
                rim = soft_rim(outline, settings.feather * longer)
                weight = np.minimum(np.maximum(inside, rim), weight)
    if settings.details > 0:
        part = window.region_box().slices
        pixel = window.shape[0] / fill.size[0], window.shape[1] / fill.size[1]
        how = settings.details, settings.details_agreement, settings.feather * longer
        new[part], told = add_details(new[part], inside[part], pixel, fill.photos, *how)
        fill.context.note(told)
    cover = weight[..., None]
    # What the decoder gives beyond white and black is no colour to blend with.
    rgb = window.clean * (1 - cover) + np.clip(new, 0, 1) * cover
    return Painted(rgb.astype(np.float32), weight > 0)
