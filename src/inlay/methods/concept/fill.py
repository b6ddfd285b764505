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
from inlay.pictures.arrays import Image, Mask, blur, from_levels, resize, soft_rim, to_uint8
from inlay.pictures.box import Box
from inlay.pictures.colour import convert
from inlay.scene.cutout import grabcut, without_specks
from inlay.scene.matte import matte
from inlay.scene.window import Painted, Window, model_size

# What stands for the concept in a prompt.
_OBJECT = "{object}"
# GrabCut works on at most so many pixels, with so many rounds.
_PIXELS = 100_000
_ROUNDS = 5
# The blur of the distance from the old picture, in units of the box's longer side.
_BLUR = 0.02
# A difference in CIELAB that is too small to be seen as an object's.
_UNSEEN = 4.0
# The object must cover more of the box than the one and less than the other.
_LEAST, _MOST = 0.05, 0.95
# Pieces below this share of the largest, and gaps below this share of the object, are specks.
_SPECK = 0.1


@contextmanager
def filler(
    window: Window, backbone: Backbone, settings: ConceptSettings, context: Context
) -> Iterator[Filler]:
    """Inside, the window's concept is attached to the backbone, which can fill regions with it.

    Raises InputError for a file that was learnt for another checkpoint.
    """
    assert window.concept is not None
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
        yield Filler(
            window, backbone, settings, context, size, text, unconditional, concept, class_text
        )


@dataclass(eq=False)
class Filler(Workspace):
    """A checkpoint with a concept attached, at work on a window, whose picture is the background.

    class_text is the prompt with the class in place of the concept.
    """

    settings: ConceptSettings
    concept: Concept
    class_text: Embedding

    @property
    def picture(self) -> Tensor:
        """The background, (1, 3, H, W) in [-1, 1]."""
        return self.window.tensor("clean", self.size)

    def source(self) -> Tensor:
        """Its latent (1, C, h, w)."""
        return self.encode(self.picture, "clean")

    @cached_property
    def box(self) -> Tensor:
        """The latent mask (1, 1, h, w) of the window's box."""
        return self.latent_mask(self.window.mask(self.size), cover=True)

    def fill(self, source: Tensor, hole: Tensor, strength: float) -> Tensor:
        """Latent (1, C, h, w) of the background with a hole (1, 1, h, w) filled with the object.

        source, a latent of the picture, is noised to the level of `strength` first.
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

    def references(self, use: str, instead: str) -> list[Reference]:
        """The photos that the file holds, cropped to the object.

        Raises InputError where there are none, saying what would `use` them and what to say
        `instead`.
        """
        photos = []
        for sight in self.concept.sights:
            if (photo := sight.image()) is not None:
                values = from_levels(np.asarray(photo.convert("RGBA")))
                rgb, alpha = (np.ascontiguousarray(v) for v in (values[..., :3], values[..., 3]))
                rgb = convert(rgb, None, self.window.space)
                photos.append(Reference(sight.photo, rgb, alpha))
        if not photos:
            assert self.window.concept is not None
            raise InputError(
                f"{self.window.concept.name} holds none of its photos, which {use} needs; "
                f"learn it with keep_photos=true, or use {instead}."
            )
        return photos

    def steps(self, strength: float) -> int:
        """How many steps fill() takes."""
        return step_count(self.settings.num_inference_steps, strength)


def find_object(new: Image, old: Image, box: Box) -> Mask | None:
    """The object in the box of a picture, bool (h, w); None where nothing sensible is there.

    new and old, float32 (h, w, 3) sRGB in [0, 1], are the picture with the box filled and the
    background as it was. GrabCut looks for it inside the box: what is probably the object is far
    from the old background in CIELAB, and all outside the box is surely background. What covers
    less than 5% or more than 95% of the box is not sensible.
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
    labels[_likely(small, was, hole, _BLUR * max(box.width, box.height) * scale)] = cv2.GC_PR_FGD
    cut = grabcut(to_uint8(small), labels, _ROUNDS)
    if cut is None:
        return None
    cut = without_specks(cut, _SPECK, _SPECK)
    if not _LEAST <= cut.sum() / hole.sum() <= _MOST:
        return None
    large = cv2.resize(cut.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray((large > 0.5) & (inside > 0))


def _likely(new: Image, old: Image, hole: Mask, sigma: float) -> Mask:
    """Where in the hole the pictures differ most, by Otsu's threshold on their distance."""
    one, other = (
        cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2Lab) for image in (new, old)
    )
    away = blur(np.sqrt(((one - other) ** 2).sum(-1)), max(sigma, 0.5))
    levels = np.clip(away[hole] * 2, 0, 255).astype(np.uint8)[None]
    level, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return np.asarray(hole & (away > max(level / 2, _UNSEEN)))


def blend(fill: Filler, latent: Tensor, photos: Sequence[Reference] = ()) -> Painted:
    """The window with its box, or the object in it, as a latent (1, C, h, w) says.

    It fades into the background over `feather`. Detail comes from the photos, where the settings
    want it. Where the object does not stand out in its box, the box is laid in.
    """
    window, settings, longer = fill.window, fill.settings, max(fill.window.shape)
    new = resize(fill.image(latent), window.shape)
    weight = window.rim(settings.feather)
    inside = window.region()
    if settings.region == "object" or settings.details > 0:
        outline = find_object(new, window.clean, window.region_box())
        if outline is not None:
            # The sample's outline is no sharper than the model's pixels.
            reach = longer / max(fill.size)
            inside = np.minimum(matte(np.clip(new, 0, 1), outline, "wide", reach), weight)
            if settings.region == "object":
                rim = soft_rim(outline, settings.feather * longer)
                weight = np.minimum(np.maximum(inside, rim), weight)
        elif settings.region == "object":
            fill.context.note(
                "the object does not stand out from the background, so its whole box is laid in"
            )
    if settings.details > 0:
        part = window.region_box().slices
        pixel = window.shape[0] / fill.size[0], window.shape[1] / fill.size[1]
        new[part], told = add_details(
            new[part],
            inside[part],
            pixel,
            photos,
            amount=settings.details,
            least=settings.details_agreement,
            feather=settings.feather * longer,
        )
        fill.context.note(told)
    cover = weight[..., None]
    # What the decoder gives beyond white and black is no colour to blend with.
    rgb = window.clean * (1 - cover) + np.clip(new, 0, 1) * cover
    return Painted(rgb.astype(np.float32), weight > 0)
