"""PhD: Paste, Inpaint and Harmonize via Denoising (Zhang et al. 2023, arXiv 2306.07596).

Paste: the subject lies in the background, its edge softened. Inpaint: the ring round it is painted
anew under the prompt. Harmonize: a second pass over the subject from a lower noise level gives it
the light and the colours of its surroundings, by the frozen model alone or with a trained module
beside it (inlay.diffusion.branches).
"""

from __future__ import annotations

import numpy as np
import torch

from inlay.diffusion.backbone import Backbone
from inlay.diffusion.branches import few_levels
from inlay.diffusion.sample import Level, step_count
from inlay.methods.base import Context
from inlay.methods.phd import PhdSettings
from inlay.methods.phd.scene import run_scene
from inlay.methods.phd.stages import harmonize, inpaint_ring, soften_paste
from inlay.methods.workspace import Workspace
from inlay.scene.stitch import Painted, Window


def run(window: Window, backbone: Backbone, settings: PhdSettings, context: Context) -> Painted:
    """Paste, inpaint the ring, harmonize; for harmonize the last stage alone.

    Raises InputError for a harmonizer or a scheduler that does not fit the model.
    """
    levels = _levels(settings, backbone, context)
    if context.verb == "scene":
        return run_scene(window, backbone, settings, context, levels)
    composes = context.verb == "compose"
    known = not np.array_equal(window.clean, window.pasted)
    canvas = soften_paste(window, settings.paste_blur if composes else 0.0)
    stages = [("paste", canvas)] if composes else []
    paints = composes and known and settings.inpaint and settings.grow > 0
    before = step_count(settings.num_inference_steps, settings.strength) if paints else 0
    context.total = before + len(levels)
    with torch.inference_mode():
        work = Workspace(canvas.window, backbone, settings, context)
        if before:
            canvas = inpaint_ring(work, canvas, settings)
            context.done = before
        if composes and settings.inpaint:
            stages.append(("inpaint", canvas))
        if levels:
            canvas = harmonize(work, canvas, settings, levels)
        if settings.harmonize:
            stages.append(("harmonize", canvas))
    if context.total == 0:
        context.progress(1, 1)
    kept = [(name, Painted(each.window.pasted, each.effect)) for name, each in stages]
    return Painted(canvas.window.pasted, canvas.effect, kept)


def _levels(settings: PhdSettings, backbone: Backbone, context: Context) -> list[Level]:
    """The levels of the harmonize stage, noisiest first; none where it changes nothing.

    They are the trained module's where there is one; it is opened here, unless it would not count.
    """
    if not settings.harmonize:
        return []
    if settings.harmonizer != "none" and settings.harmonizer_scale > 0:
        assert context.models is not None
        context.harmonizer = context.models.harmonizer(settings.harmonizer)
        if context.harmonizer is None:
            context.note(
                "phd: there is no harmonizer for this model, so the bare model relights the "
                "subject; `inlay train harmonizer` makes one"
            )
    if settings.correction == 0:
        return []
    if context.harmonizer is not None:
        return few_levels(backbone, settings.harmonizer_steps, settings.harmonizer_strength)
    steps = step_count(settings.harmonize_steps, settings.harmonize_strength)
    return few_levels(backbone, steps, settings.harmonize_strength)
