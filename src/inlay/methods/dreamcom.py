"""DreamCom: the box is filled with an object that was learnt (Lu et al. 2023, arXiv 2309.15508).

The checkpoint, with what `inlay learn` wrote attached, inpaints the box under the learnt prompt.
Nothing outside the box attends to the prompt (eq. 2), and in the layers of a preset box and
background do not see each other (section 4.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inlay.methods.base import Context, Method, Painted
from inlay.methods.concept.fill import LearntSettings, filler
from inlay.methods.concept.lay_in import painted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from inlay.diffusion.backbone import Backbone
    from inlay.methods.concept.details import Reference
    from inlay.methods.concept.fill import Filler
    from inlay.scene.window import Window

__all__ = ["METHOD", "DreamComSettings"]


class DreamComSettings(LearntSettings):
    best_of: int = Field(1, ge=1, le=64, description="samples made, of which the best is kept")
    best_by: Literal["histogram", "likelihood"] = Field(
        "histogram",
        description="which one is best: the box's colours are nearest to those of the learnt "
        "photos, or the learnt words explain it better than the class alone does",
    )


def run(
    window: Window, backbone: Backbone | None, settings: DreamComSettings, context: Context
) -> Painted:
    """Fill the window's box with its concept; of `best_of` samples the best.

    Raises InputError for an object that was learnt for another checkpoint, and a scheduler that
    does not sample the model.
    """
    with filler(window, backbone, settings, context) as fill:
        work = fill.work
        if settings.strength == 0:
            return Painted(window.clean, window.alpha > 1)
        photos = _photos(fill)
        picture = window.tensor("clean", work.size)
        source = work.encode(picture, "clean")
        hole = work.latent_mask(window.mask(work.size), cover=True)
        steps = fill.steps(settings.strength)
        total = settings.best_of * steps
        samples = [
            fill.fill(source, picture, hole, settings.strength, number * steps, total)
            for number in range(settings.best_of)
        ]
        chosen = _best(fill, samples, picture, hole, photos)
        return painted(fill, samples[chosen], photos)


def _photos(fill: Filler) -> list[Reference]:
    """The learnt photos, where the settings need them; without them nothing is sampled."""
    settings = fill.settings
    assert isinstance(settings, DreamComSettings)
    if settings.best_of > 1 and settings.best_by == "histogram":
        return fill.references("best_by=histogram", "best_by=likelihood")
    return fill.references("details", "details=0") if settings.details > 0 else []


def _best(
    fill: Filler,
    samples: list[Tensor],
    picture: Tensor,
    hole: Tensor,
    photos: Sequence[Reference],
) -> int:
    """Which sample is best, by the settings' score."""
    if len(samples) == 1:
        return 0
    settings = fill.settings
    assert isinstance(settings, DreamComSettings)
    if settings.best_by == "likelihood":
        scores = [
            fill.error(z, picture, hole, "class") - fill.error(z, picture, hole, "object")
            for z in samples
        ]
    else:
        scores = [-fill.colour_distance(z, photos) for z in samples]
    best = max(range(len(samples)), key=scores.__getitem__)
    told = ", ".join(f"{score:.3f}" for score in scores)
    fill.work.context.note(f"dreamcom: sample {best + 1} of {told} by {settings.best_by}")
    return best


METHOD = Method(
    name="dreamcom",
    summary="DreamCom: fills the box with an object that `inlay learn` has learnt from photos",
    source="Lu et al. 2023, arXiv 2309.15508",
    verbs=("compose",),
    settings=DreamComSettings,
    run=run,
    needs_model=True,
    concept=True,
)
