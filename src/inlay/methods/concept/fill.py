"""What the methods that put in a concept share: their settings, and how a region is filled.

A concept is a file that `inlay learn` wrote (inlay.checkpoints.concept); the window has its
path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from inlay.errors import InputError
from inlay.methods.base import Context, DiffusionSettings
from inlay.methods.workspace import Workspace, sampler, to_image
from inlay.pictures.arrays import resize
from inlay.scene.window import Window, model_size

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.checkpoints.concept import Concept
    from inlay.diffusion.attention_masked import MaskedAttention
    from inlay.diffusion.backbone import Backbone
    from inlay.diffusion.text import Conditioning
    from inlay.methods.concept.details import Reference

__all__ = ["Filler", "LearntSettings", "filler", "histogram"]

# What stands for the concept in a prompt.
_OBJECT = "{object}"


class LearntSettings(DiffusionSettings):
    """What every method for a concept has."""

    prompt: str = Field(
        "",
        max_length=2000,
        description="what the box should show; {object} in it stands for the learnt words; empty "
        "is the prompt of the learning",
    )
    guidance_scale: float = Field(
        3.0, ge=0, le=50, description="classifier-free guidance; 1 is off"
    )
    lora_scale: float = Field(
        1.0, ge=0, le=2, description="how much of what was learnt is in force"
    )
    mask_cross_attention: Literal["learnt", "on", "off"] = Field(
        "learnt",
        description="masked cross-attention: nothing outside the box attends to the prompt; "
        "learnt is as in the learning",
    )
    self_attention: Literal["paper", "released", "a", "b", "c", "d"] = Field(
        "paper",
        description="masked self-attention, by preset: in which layers box and background do not "
        "see each other; a is none, b all, c the decoder's outer layers, d and paper all others, "
        "released the last 5 of the decoder",
    )
    scheduler: str = Field(
        "EulerAncestralDiscreteScheduler",
        pattern=r"^[A-Z][A-Za-z0-9]{2,60}Scheduler$",
        description="which of diffusers' schedulers samples, by class name",
    )
    region: Literal["box", "object"] = Field(
        "box",
        description="what is laid into the picture: the whole box, or the object alone as it "
        "stands out from the background",
    )
    details: float = Field(
        0.0,
        ge=0,
        le=1,
        description="how much of its fine detail, text and pattern, the learnt photo that fits "
        "best lends the object; 0 is none",
    )
    details_agreement: float = Field(
        0.7,
        ge=0,
        le=1,
        description="details: least correlation with the sample that a photo must have",
    )


def histogram(image: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Joint RGB histogram, 8 bins each, of the flagged pixels of an image (h, w, 3) in [0, 1]."""
    import cv2

    levels = np.ascontiguousarray(np.clip(image * 255, 0, 255).astype(np.uint8))
    return np.asarray(
        cv2.calcHist([levels], [0, 1, 2], inside.astype(np.uint8), [8] * 3, [0, 256] * 3)
    )


@contextmanager
def filler(
    window: Window, backbone: Backbone | None, settings: LearntSettings, context: Context
) -> Iterator[Filler]:
    """Inside, the window's object is attached to the backbone, which can fill regions with it.

    Raises InputError for a file that was learnt for another checkpoint.
    """
    import torch

    from inlay.checkpoints.concept import attached
    from inlay.diffusion.prompts import embedded_prompt

    if backbone is None:
        raise ValueError("a concept needs a backbone")
    if window.concept is None:
        raise ValueError("the window has no concept")
    files = [(window.concept, settings.lora_scale)]
    # Attached first: what is trained on later must not be an inference tensor.
    with attached(backbone, files) as (concept,), torch.inference_mode():
        size = model_size(window.box, backbone.native_size, backbone.multiple)
        words = f"{concept.token} {concept.class_name}"
        wanted = settings.prompt.replace(_OBJECT, words) or concept.prompt
        laid = concept.layout, concept.background_prompt
        text = {
            name: embedded_prompt(backbone.text, prompt, size, *laid)
            for name, prompt in (
                ("object", wanted),
                ("class", concept.class_prompt),
                ("negative", settings.negative_prompt),
            )
        }
        guided = settings.guidance_scale != 1 and wanted != settings.negative_prompt
        unconditional = text["negative"] if guided else None
        work = Workspace(window, backbone, settings, context, size, text["object"], unconditional)
        yield Filler(work, concept, settings, text)


@dataclass(eq=False)
class Filler:
    """A checkpoint with an object attached, at work on a window.

    text holds the prompts by name: "object", the class alone ("class") and the negative one.
    """

    work: Workspace
    concept: Concept
    settings: LearntSettings
    text: dict[str, Conditioning]

    def fill(
        self, source: Tensor, picture: Tensor, hole: Tensor, strength: float, done: int, total: int
    ) -> Tensor:
        """Latent (1, C, h, w) of `picture` with the hole (1, 1, h, w) filled with the object.

        source, the latent of the picture (1, 3, H, W), is noised to the level of `strength` first.
        done is the number of steps before these of the `total` of the run, for the progress.
        """
        from inlay.diffusion.attention import swapped_processors
        from inlay.diffusion.solvers import solve

        work, settings = self.work, self.settings
        masked = None
        if work.backbone.kind == "inpaint":
            masked = work.encode(picture * (1 - work.whole(hole)))
        with swapped_processors(work.backbone.unet, self._rule(hole).processor):
            return solve(
                sampler(settings.scheduler, work.backbone, settings.num_inference_steps),
                work.denoiser(hole, masked),
                source,
                steps=settings.num_inference_steps,
                strength=strength,
                noise=work.context.noise,
                generator=work.context.generator,
                keep_outside=hole if masked is None else None,
                progress=work.progress(done, total),
            )

    def note(self, line: str) -> None:
        """Say something a user should know, once a run."""
        if line not in self.work.context.notes:
            self.work.context.note(line)

    def steps(self, strength: float) -> int:
        """How many steps fill() takes at a strength."""
        return int(self.settings.num_inference_steps * strength + 1e-9)

    def error(
        self,
        latent: Tensor,
        picture: Tensor,
        hole: Tensor,
        prompt: str,
        levels: Sequence[float] = (0.3, 0.5, 0.7),
    ) -> float:
        """The mean squared error in the hole of what is predicted for a noised latent: how badly
        the checkpoint, as it is now, explains a sample under one of the prompts.

        Always under the same noise, at some shares of the noise schedule.
        """
        import torch

        from inlay.diffusion.attention import swapped_processors
        from inlay.diffusion.schedule import add_noise

        work = self.work
        backbone, inpaints = work.backbone, work.backbone.kind == "inpaint"
        masks = (hole, work.encode(picture * (1 - work.whole(hole)))) if inpaints else (None, None)
        generator = torch.Generator().manual_seed(0)
        total = 0.0
        with swapped_processors(backbone.unet, self._rule(hole).processor):
            for share in levels:
                t = int(share * len(backbone.alphas_cumprod))
                noise = torch.randn(latent.shape, generator=generator).to(latent)
                noisy = add_noise(latent, noise, float(backbone.alphas_cumprod[t]))
                eps, _ = backbone.predict_both(noisy, t, self.text[prompt], None, 1.0, *masks)
                total += float((((eps - noise) ** 2) * hole).mean() / hole.mean())
        return total / len(levels)

    def references(self, use: str, instead: str) -> list[Reference]:
        """The photos that the file holds, cropped to the object.

        Raises InputError where there are none, saying what would `use` them and what to say
        `instead`.
        """
        from inlay.methods.concept.details import Reference

        found = []
        for sight in self.concept.sights:
            photo = sight.image()
            if photo is not None:
                values = np.asarray(photo.convert("RGBA"), np.float32) / np.float32(255)
                rgb, alpha = (np.ascontiguousarray(v) for v in (values[..., :3], values[..., 3]))
                found.append(Reference(sight.photo, rgb, alpha))
        if not found:
            path = self.work.window.concept
            raise InputError(
                f"{'the file' if path is None else path.name} holds none of its photos, which "
                f"{use} needs; learn it with keep_photos=true, or use {instead}."
            )
        return found

    def colour_distance(self, latent: Tensor, photos: Sequence[Reference]) -> float:
        """How far the box's colours are from those of the learnt photos, 0 to 1.

        The mean Hellinger distance of joint RGB histograms of 8 x 8 x 8 bins.
        """
        import cv2

        window = self.work.window
        image = np.clip(resize(to_image(self.work.backbone.decode(latent)), window.shape), 0, 1)
        here = histogram(image, window.alpha > 0.5)
        known = [histogram(one.rgb, one.alpha > 0.5) for one in photos]
        return float(np.mean([cv2.compareHist(here, one, cv2.HISTCMP_HELLINGER) for one in known]))

    def _rule(self, hole: Tensor) -> MaskedAttention:
        from inlay.diffusion.attention_masked import (
            MaskedAttention,
            masked_layers,
            released_tokens,
        )

        said, concept = self.settings.mask_cross_attention, self.concept
        cross = concept.mask_cross_attention if said == "learnt" else said == "on"
        layers = masked_layers(self.work.backbone.unet, self.settings.self_attention, cross)
        inside = released_tokens() if concept.layout == "released" else None
        return MaskedAttention(hole, layers, inside=inside)
