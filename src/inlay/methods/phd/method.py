"""PhD: Paste, Inpaint and Harmonize via Denoising (Zhang et al. 2023, arXiv 2306.07596).

Paste: the subject lies in the background, its edge softened. Inpaint: the ring round it is painted
anew under the prompt. Harmonize: a second pass over the subject from a lower noise level gives it
the light and the colours of its surroundings, by the frozen model alone or with a trained module
beside it (inlay.diffusion.branches).

Without a background a scene of any size is made round the subject. Coarse: at the model's size all
but the subject is sampled from noise under the prompt, the subject shown. Up: the picture grows by
a factor of at most 2, gets the subject pasted at its new size, and is noised to `refine_strength`
and denoised again, in overlapping windows of the model's size (diffusion/tiles.py). At the end the
subject is laid over it with its own pixels, and harmonized.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from inlay.diffusion.backbone import Backbone
from inlay.diffusion.branches import few_levels
from inlay.diffusion.sample import Level, Step, step_count
from inlay.diffusion.tiles import TiledDenoiser, Tiling, in_tiles, resolutions
from inlay.methods.base import Context
from inlay.methods.phd import PhdSettings
from inlay.methods.phd.stages import Canvas, harmonize, image_prompt, inpaint_ring, soften_paste
from inlay.methods.workspace import Workspace, to_image
from inlay.pictures.arrays import Image, bounds, resize
from inlay.scene.stitch import Painted, Window, crop_box, to_tensor

# A patch of the latent is shown to the network where this share of all its pixels is the subject's.
_SHOWN = 0.98
# The share in which guided predictions get the spread of unguided ones.
_RESCALE = 0.7


def run(window: Window, backbone: Backbone, settings: PhdSettings, context: Context) -> Painted:
    """Paste, inpaint the ring, harmonize; for harmonize the last stage alone. Raises InputError for
    a harmonizer or a scheduler that does not fit the model.
    """
    levels = _levels(settings, backbone, context)
    if context.verb == "scene":
        return run_scene(Workspace(window, backbone, settings, context), settings, levels)
    composes = context.verb == "compose"
    known = not np.array_equal(window.clean, window.pasted)
    canvas = soften_paste(window, settings.paste_blur if composes else 0.0)
    stages = [("paste", canvas)] if composes else []
    paints = composes and known and settings.inpaint and settings.grow > 0
    before = step_count(settings.num_inference_steps, settings.strength) if paints else 0
    context.total = before + len(levels)
    if not before and settings.ip_adapter != "none":
        context.note("phd: nothing is painted round the subject, so ip_adapter is not used")
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
    """The levels of the harmonize stage, noisiest first; none where it changes nothing. They are
    the trained module's where there is one; it is opened here, unless it would not count.
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
    if settings.amount == 0:
        return []
    if context.harmonizer is not None:
        return few_levels(backbone, settings.harmonizer_steps, settings.harmonizer_strength)
    steps = step_count(settings.harmonize_steps, settings.harmonize_strength)
    return few_levels(backbone, steps, settings.harmonize_strength)


@dataclass
class _Scene:
    """A scene on its way through a backbone.

    paint (h, w, 3) is the subject's colour times its cover (h, w), both at the last level's size;
    the size of `work` is a tile's.
    """

    work: Workspace
    settings: PhdSettings
    paint: Image
    cover: Image

    def paste(self, size: tuple[int, int], made: Image | None) -> tuple[Tensor, Tensor]:
        """The subject over what was made, (1, 3, H, W) in [-1, 1], and its cover (1, 1, H, W).

        Both fill whole patches: what is added to the right and below goes on as the picture ends,
        and is made like the rest. Without `made` the rest is grey.
        """
        cover, paint = np.clip(resize(self.cover, size), 0, 1), resize(self.paint, size)
        below = np.full_like(paint, 0.5) if made is None else made
        image = np.clip(paint + below * (1 - cover[..., None]), 0, 1)
        rest = [(0, -side % self.work.backbone.multiple) for side in size]
        image, cover = np.pad(image, (*rest, (0, 0)), mode="edge"), np.pad(cover, rest)
        return to_tensor(image, (len(cover), len(cover[0]))), torch.from_numpy(cover)[None, None]

    def sample(
        self, size: tuple[int, int], made: Image | None, steps: int, strength: float
    ) -> Image:
        """What was made, (h, w, 3) of a size or None, noised and denoised."""
        work, settings = self.work, self.settings
        backbone, factor = work.backbone, work.backbone.factor
        image, cover = self.paste(size, made)
        hidden = (functional.avg_pool2d(cover, factor) < _SHOWN).float()
        grid = hidden.shape[-2], hidden.shape[-1]
        tiling = Tiling.of(grid, backbone.native_size // factor, settings.outpaint_tile_overlap)

        def encode(picture: Tensor) -> Tensor:
            return in_tiles(backbone.encode, picture, tiling, factor, 1)

        source = encode(image)
        conditions = replace(
            work.conditions(),
            guidance_rescale=_RESCALE,
            mask=hidden.to(backbone.device),
            masked_latent=backbone.encode_masked(image, hidden, encode),
            reference=source if backbone.edits else None,
        )
        run = step_count(steps, strength)

        def tell(step: Step) -> None:
            # Solvers of higher order call more than once a step.
            made = round(run * (step.number + 1) / step.total)
            work.tell(made, run, lambda: self._decode(step.x0, tiling, size))

        solver = backbone.solver(settings.sampler(scene=True), steps)
        denoise = TiledDenoiser(backbone.denoiser, conditions, tiling, source)
        result = work.paint(solver, conditions, source, strength, tell, denoise)
        work.context.done += run
        return self._decode(result, tiling, size)

    def _decode(self, latent: Tensor, tiling: Tiling, size: tuple[int, int]) -> Image:
        backbone = self.work.backbone
        image = in_tiles(backbone.decode, latent, tiling, 1, backbone.factor)
        return np.clip(to_image(image[..., : size[0], : size[1]]), 0, 1)


@torch.inference_mode()
def run_scene(work: Workspace, settings: PhdSettings, levels: list[Level]) -> Painted:
    """The window as a scene round the subject, whose region is all but the subject.

    window.alpha is 1 less the subject's alpha, window.pasted the subject over any canvas. levels
    are those of the harmonize stage, which is left out where there are none. Raises InputError for
    a scheduler that does not sample the checkpoint.
    """
    window, backbone, context = work.window, work.backbone, work.context
    for count in (settings.num_inference_steps, settings.refine_steps):
        backbone.solver(settings.sampler(scene=True), count)
    native = backbone.native_size
    sizes = resolutions(window.shape, native)
    steps = step_count(settings.refine_steps, settings.refine_strength)
    context.total = settings.num_inference_steps + (len(sizes) - 1) * steps + len(levels)
    last, alpha = sizes[-1], 1 - window.alpha
    work.size = native, native
    paint = resize(window.pasted - window.was * window.alpha[..., None], last)
    scene = _Scene(work, settings, paint, resize(alpha, last))
    with backbone.attention(image_prompt(work, settings, paint, scene.cover)):
        coarse = made = scene.sample(sizes[0], None, settings.num_inference_steps, 1.0)
        for size in sizes[1:] if steps else ():
            made = resize(made, size)
            made = scene.sample(size, made, settings.refine_steps, settings.refine_strength)
    if last != window.shape and min(last) < min(window.shape):
        context.note(f"the surroundings were made at {last[1]} x {last[0]} pixels and enlarged")
    rgb = _lay_over(window, made)
    box, before = window.box, rgb
    if levels:
        # The part of the scene that the model sees round the subject.
        whole = window.box.width, window.box.height
        least = backbone.least_window
        box = crop_box(bounds(alpha) or window.box, whole, settings.context, least)
        before, alpha = rgb[box.slices].copy(), alpha[box.slices]
        close = Window(box, before, before, alpha, before)
        near = Workspace(close, backbone, settings, context)
        canvas = harmonize(near, Canvas(close, alpha, alpha > 0), settings, levels)
        rgb[box.slices] = canvas.window.pasted
    effect = np.ones(window.shape, bool)

    def stages() -> Iterator[tuple[str, Painted]]:
        # One after the other, as a scene may be large.
        yield "coarse", Painted(_lay_over(window, coarse), effect)
        refined = rgb.copy()
        refined[box.slices] = before
        yield "refine", Painted(refined, effect)
        if settings.harmonize:
            yield "harmonize", Painted(rgb, effect)

    return Painted(rgb, effect, stages())


def _lay_over(window: Window, made: Image) -> Image:
    """The subject over what was made, with its own pixels."""
    rgb = resize(made, window.shape)
    rgb = rgb.copy() if rgb is made else rgb
    # In place, as a scene may be large: made * (1 - a) + F * a.
    rgb -= window.was
    rgb *= window.alpha[..., None]
    rgb += window.pasted
    return rgb
