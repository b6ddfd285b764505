"""DreamEdit: a concept put in by rounds of inpainting (Li et al. 2023, arXiv 2306.12624).

From a first guess, a photo of the object or a sample, each round looks where the object is in the
box, and paints it anew with a little more round it, under the concept's prompt and less noise than
the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, model_validator

from inlay.methods.base import Context, Method, Settings
from inlay.methods.concept import ConceptSettings
from inlay.pictures.arrays import Image, distance, resize
from inlay.scene.stitch import Painted, Window, to_tensor

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.diffusion.backbone import Backbone
    from inlay.methods.concept.details import Reference
    from inlay.methods.concept.fill import Filler


class DreamEditSettings(ConceptSettings):
    start: Literal["paste", "inpaint"] = "paste"
    """first guess: the photo whose shape is nearest to the box's, or dreamcom's, at `strength`"""
    iterations: int = Field(5, ge=0, le=50)
    """rounds; 0 keeps the first guess"""
    strength_start: float = Field(0.6, ge=0, le=1)
    """how far the first round goes back to noise: 0 changes nothing, 1 forgets the first guess"""
    strength_end: float = Field(0.3, ge=0, le=1)
    """the same for the last round; the others lie evenly between"""
    grow: float = Field(0.05, ge=0, le=0.5)
    """how far round the object a round paints, in units of the crop's longer side"""

    @model_validator(mode="after")
    def _calms_down(self) -> DreamEditSettings:
        if self.strength_end > self.strength_start:
            raise ValueError(
                f"strength_end is {self.strength_end:g}; expected at most strength_start "
                f"({self.strength_start:g})."
            )
        return self

    def strengths(self) -> list[float]:
        """That of each round."""
        first, last, rounds = self.strength_start, self.strength_end, self.iterations
        steps = max(rounds - 1, 1)
        return [first + (last - first) * number / steps for number in range(rounds)]

    def needs_photos(self) -> tuple[str, str] | None:
        pastes = self.start == "paste"
        return ("start=paste", "start=inpaint") if pastes else super().needs_photos()

    def stages(self, verb: str) -> dict[str, Settings]:
        made: dict[str, Settings] = {"start": self.model_copy(update={"iterations": 0})}
        for number, strength in enumerate(self.strengths(), 1):
            rounds = {"iterations": number, "strength_end": strength}
            made[f"round{number}"] = self.model_copy(update=rounds)
        return made


def run(
    window: Window, backbone: Backbone, settings: DreamEditSettings, context: Context
) -> Painted:
    """Put the window's concept into its box, round by round; the stages are the rounds. Raises
    InputError as filler() does, and for a scheduler that does not sample the model.
    """
    from inlay.methods.concept.fill import blend, filler

    with filler(window, backbone, settings, context) as fill:
        inpaints = settings.start == "inpaint"
        first = [settings.strength] if inpaints else []
        context.total = sum(map(fill.steps, first + settings.strengths()))
        if inpaints:
            latent = _repaint(fill, fill.source(), fill.box, settings.strength)
        else:
            pasted = paste_photo(window, fill.photos)
            latent = backbone.encode(to_tensor(pasted, fill.size, window.space))
        notes = list(context.notes)
        result = blend(fill, latent)
        stages = [("start", result)]
        for number, strength in enumerate(settings.strengths(), 1):
            # What was noted of a picture that is not the last one would only confuse.
            context.notes[:] = notes
            latent = _repaint(fill, latent, _hole(fill, latent, settings.grow), strength)
            notes = list(context.notes)
            result = blend(fill, latent)
            stages.append((f"round{number}", result))
        return Painted(result.rgb, result.mask, stages)


def paste_photo(window: Window, photos: Sequence[Reference]) -> Image:
    """The window (h, w, 3) with the photo of the nearest aspect in its box, as large as fits."""
    box = window.region_box()
    aspect = math.log(box.width / box.height)
    shapes = [photo.alpha.shape for photo in photos]
    misfits = [abs(math.log(width / height) - aspect) for height, width in shapes]
    photo = photos[misfits.index(min(misfits))]
    height, width = photo.alpha.shape
    scale = min(box.width / width, box.height / height)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    cover = np.clip(resize(photo.alpha, size), 0, 1)[..., None]
    # Colours are multiplied with alpha, so that nothing of what is transparent bleeds in.
    paint = np.clip(resize(photo.rgb * photo.alpha[..., None], size), 0, 1)
    top = box.y + (box.height - size[0]) // 2
    left = box.x + (box.width - size[1]) // 2
    here = slice(top, top + size[0]), slice(left, left + size[1])
    result = window.clean.copy()
    result[here] = paint + result[here] * (1 - cover)
    return result


def _repaint(fill: Filler, latent: Tensor, hole: Tensor, strength: float) -> Tensor:
    """A latent whose hole is painted anew with the object; all else is the background."""
    outside = fill.source() * (1 - hole)
    return fill.fill(latent * hole + outside, hole, strength) * hole + outside


def _hole(fill: Filler, latent: Tensor, grow: float) -> Tensor:
    """The latent mask (1, 1, h, w) of the object as it is now, widened by `grow` within the box;
    where it does not stand out, the box.
    """
    import torch

    window = fill.window
    outline = fill.outline(resize(fill.image(latent), window.shape), "painted")
    if outline is None:
        return fill.box
    near = distance(outline) <= grow * max(window.shape)
    wide = np.asarray(near & (window.region() > 0), np.float32)
    mask = (resize(wide, fill.size) > 0.5).astype(np.float32)
    hole = fill.latent_mask(torch.from_numpy(mask)[None, None], cover=True) * fill.box
    return hole if hole.any() else fill.box


METHOD = Method(
    name="dreamedit",
    summary="DreamEdit: puts in an object that `inlay learn` has learnt, by rounds of inpainting",
    source="Li et al. 2023, arXiv 2306.12624",
    verbs=("compose",),
    settings=DreamEditSettings,
    concepts=True,
    paints_concepts=True,
    presets={
        # For checkpoints too small to draw the object: the photo stays, with the model's light.
        "faithful": {
            "iterations": 2,
            "strength_start": 0.3,
            "strength_end": 0.2,
            "region": "object",
            "details": 1.0,
        }
    },
)
