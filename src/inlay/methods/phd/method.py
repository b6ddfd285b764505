"""PhD: Paste, Inpaint and Harmonize via Denoising (Zhang et al. 2023, arXiv 2306.07596).

Paste: the subject lies in the background, its edge softened. Inpaint: the ring round it is painted
anew under the prompt. Harmonize: a second pass over the subject from a lower noise level gives it
the light and the colours of its surroundings, by the frozen model alone or with a trained module
beside it (inlay.diffusion.harmonizer).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inlay.methods.base import Context, Method, Painted
from inlay.methods.phd.settings import PhdSettings
from inlay.methods.phd.stages import Canvas, harmonize, inpaint_ring, soften_paste
from inlay.methods.workspace import Workspace

if TYPE_CHECKING:
    from inlay.diffusion.backbone import Backbone
    from inlay.diffusion.harmonizer import Harmonizer
    from inlay.diffusion.sample import Level
    from inlay.scene.window import Window

__all__ = ["METHOD", "PhdSettings"]


def _harmonizer(settings: PhdSettings, context: Context) -> Harmonizer | None:
    """The trained module, unless it would not count or nothing can open one."""
    if settings.harmonizer == "none" or settings.harmonizer_scale == 0:
        return None
    found = context.harmonizer(settings.harmonizer)
    if found is None:
        context.note(
            "phd: there is no harmonizer for this model, so the bare model relights the subject; "
            "`inlay train harmonizer` makes one"
        )
    return found


def run(
    window: Window, backbone: Backbone | None, settings: PhdSettings, context: Context
) -> Painted:
    """Paste, inpaint the ring, harmonize; for harmonize the last stage alone.

    Raises InputError for a harmonizer or a scheduler that does not fit the model.
    """
    import torch

    from inlay.diffusion.sample import step_count

    if backbone is None:
        raise ValueError("phd needs a backbone")
    settings.check_use(context.verb, context.control is not None)
    composes = context.verb == "compose"
    known = not np.array_equal(window.clean, window.pasted)
    canvas = soften_paste(window, settings.paste_blur if composes else 0.0)
    stages: list[tuple[str, Canvas]] = [("paste", canvas)] if composes else []
    harmonizer = _harmonizer(settings, context) if settings.harmonize else None
    levels = _levels(settings, backbone, harmonizer)
    if context.verb == "scene":
        from inlay.methods.phd.scene import run_scene

        return run_scene(window, backbone, settings, context, levels, harmonizer)
    paints = composes and known and settings.inpaint and settings.grow > 0
    before = step_count(settings.num_inference_steps, settings.strength) if paints else 0
    with torch.inference_mode():
        work = Workspace.of(canvas.window, backbone, settings, context)
        if before:
            canvas = inpaint_ring(work, canvas, settings, before + len(levels))
        if composes and settings.inpaint:
            stages.append(("inpaint", canvas))
        if levels:
            canvas = harmonize(work, canvas, settings, levels, harmonizer, before)
        if settings.harmonize:
            stages.append(("harmonize", canvas))
    if not before and not levels:
        context.progress(1, 1)
    kept = {name: Painted(each.window.pasted, each.effect) for name, each in stages}
    return Painted(canvas.window.pasted, canvas.effect, kept)


def _levels(
    settings: PhdSettings, backbone: Backbone, harmonizer: Harmonizer | None
) -> list[Level]:
    """The levels of the harmonize stage, noisiest first; none where it changes nothing."""
    from inlay.diffusion.harmonizer import few_levels
    from inlay.diffusion.sample import step_count

    if not settings.harmonize or settings.correction == 0:
        return []
    if harmonizer is not None:
        return few_levels(backbone, settings.harmonizer_steps, settings.harmonizer_strength)
    steps = step_count(settings.harmonize_steps, settings.harmonize_strength)
    return few_levels(backbone, steps, settings.harmonize_strength)


METHOD = Method(
    name="phd",
    summary="Paste, Inpaint and Harmonize: paints the ring round the subject, then relights it",
    source="Zhang et al. 2023, arXiv 2306.07596",
    verbs=("compose", "harmonize", "scene"),
    settings=PhdSettings,
    run=run,
    needs_model=True,
)
