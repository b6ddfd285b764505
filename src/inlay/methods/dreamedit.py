"""DreamEdit: a concept put in by rounds of inpainting (Li et al. 2023, arXiv 2306.12624).

From a first guess, a photo of the object or a sample, each round finds the object in the box, and
paints it anew with a little more around it, under the learnt prompt and less noise than the last.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from inlay.methods.base import Context, Method, Painted, Settings
from inlay.methods.concept.fill import LearntSettings, filler
from inlay.methods.concept.found import found_object
from inlay.methods.concept.lay_in import box_of, painted
from inlay.methods.workspace import to_image
from inlay.pictures.arrays import distance, resize
from inlay.scene.window import Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from inlay.diffusion.backbone import Backbone
    from inlay.methods.concept.details import Reference
    from inlay.methods.concept.fill import Filler

__all__ = ["METHOD", "DreamEditSettings", "pasted_photo"]

Image = NDArray[np.float32]


class DreamEditSettings(LearntSettings):
    start: Literal["paste", "inpaint"] = Field(
        "paste",
        description="what it begins with: the learnt photo whose aspect is nearest to the box's, "
        "or the object inpainted as dreamcom does, at `strength`",
    )
    iterations: int = Field(5, ge=0, le=50, description="rounds; 0 is what it begins with")
    strength_start: float = Field(
        0.6, ge=0, le=1, description="share of the noise schedule that the first round runs"
    )
    strength_end: float = Field(0.3, ge=0, le=1, description="and the last; linear in between")
    grow: float = Field(
        0.05, ge=0, le=0.5, description="how far the object is widened in a round, in window sizes"
    )

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

    def stages(self, verb: str) -> dict[str, Settings]:
        made: dict[str, Settings] = {"start": self.model_copy(update={"iterations": 0})}
        for number, strength in enumerate(self.strengths(), 1):
            rounds = {"iterations": number, "strength_end": strength}
            made[f"round{number}"] = self.model_copy(update=rounds)
        return made


def run(
    window: Window, backbone: Backbone | None, settings: DreamEditSettings, context: Context
) -> Painted:
    """Put the window's concept into its box, round by round; the stages are the rounds.

    Raises InputError for an object that was learnt for another checkpoint, a scheduler that does
    not sample the model, and a file without photos where they are needed.
    """
    with filler(window, backbone, settings, context) as fill:
        photos: Sequence[Reference] = []
        if settings.start == "paste":
            photos = fill.references("start=paste", "start=inpaint")
        elif settings.details > 0:
            photos = fill.references("details", "details=0")
        rounds = _Rounds(fill, settings)
        latent = rounds.begun(photos)
        said = list(context.notes)
        result = painted(fill, latent, photos)
        stages = {"start": result}
        for number, strength in enumerate(settings.strengths(), 1):
            # What was noted of a picture that is not the last one would only confuse.
            context.notes[:] = said
            latent = rounds.edited(latent, strength)
            said = list(context.notes)
            result = stages[f"round{number}"] = painted(fill, latent, photos)
        return Painted(result.rgb, result.effect, stages)


def pasted_photo(window: Window, photos: Sequence[Reference]) -> Image:
    """The window (h, w, 3) with the photo in the box whose aspect is nearest to the box's.

    As large as fits, in the middle.
    """
    box = box_of(window)

    def distance(photo: Reference) -> float:
        height, width = photo.alpha.shape
        return abs(math.log(width / height) - math.log(box.width / box.height))

    photo = min(photos, key=distance)
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


class _Rounds:
    """What the rounds share: the background's latent and the box in it."""

    def __init__(self, fill: Filler, settings: DreamEditSettings) -> None:
        work = fill.work
        self.fill, self.settings = fill, settings
        self.picture = work.window.tensor("clean", work.size)
        self.background = work.encode(self.picture, "clean")
        self.box = work.latent_mask(work.window.mask(work.size), cover=True)
        self.done = 0
        inpaints = [settings.strength] if settings.start == "inpaint" else []
        self.total = sum(fill.steps(one) for one in [*inpaints, *settings.strengths()])

    def begun(self, photos: Sequence[Reference]) -> Tensor:
        """The latent of the first guess."""
        import torch

        work = self.fill.work
        if self.settings.start == "inpaint":
            latent = self._filled(self.background, self.picture, self.box, self.settings.strength)
            return self._inside(latent, self.box)
        image = np.clip(resize(pasted_photo(work.window, photos), work.size), 0, 1)
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None] * 2 - 1
        return work.encode(tensor)

    def edited(self, latent: Tensor, strength: float) -> Tensor:
        """The latent after a round: the object in it painted anew, all else the background."""
        hole = self._hole(latent)
        source = self._inside(latent, hole)
        return self._inside(self._filled(source, self.picture, hole, strength), hole)

    def _filled(self, source: Tensor, picture: Tensor, hole: Tensor, strength: float) -> Tensor:
        steps = self.fill.steps(strength)
        if steps == 0:
            return source
        done, self.done = self.done, self.done + steps
        return self.fill.fill(source, picture, hole, strength, done, self.total)

    def _inside(self, latent: Tensor, hole: Tensor) -> Tensor:
        return latent * hole + self.background * (1 - hole)

    def _hole(self, latent: Tensor) -> Tensor:
        """The object as it is now, widened by `grow` within the box; where it does not stand out,
        the box.
        """
        import torch

        work = self.fill.work
        window = work.window
        now = resize(to_image(work.backbone.decode(latent)), window.shape)
        outline = found_object(now, window.clean, box_of(window))
        if outline is None:
            self.fill.note(
                "the object does not stand out from the background, so its whole box is painted"
            )
            return self.box
        reach = self.settings.grow * max(window.shape)
        wide = np.asarray((distance(outline) <= reach) & (window.grown(0) > 0), np.float32)
        mask = (resize(wide, work.size) > 0.5).astype(np.float32)
        hole = work.latent_mask(torch.from_numpy(mask)[None, None], cover=True) * self.box
        return hole if hole.any() else self.box


METHOD = Method(
    name="dreamedit",
    summary="DreamEdit: puts in an object that `inlay learn` has learnt, by rounds of inpainting",
    source="Li et al. 2023, arXiv 2306.12624",
    verbs=("compose",),
    settings=DreamEditSettings,
    run=run,
    needs_model=True,
    concept=True,
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
