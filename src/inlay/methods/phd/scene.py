"""PhD without a background (arXiv 2306.07596): a scene of any size, made round the subject.

Coarse: at the model's size everything but the subject is sampled from noise under the prompt, the
subject shown. Up: the picture grows by a factor of at most 2, gets the subject pasted at its new
size, is noised to `refine_strength` and denoised again, in overlapping windows of the model's size
(diffusion/tiles.py). At the end the subject is laid over it with its own pixels, and PhD's last
stage gives it the light of what is round it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from inlay.diffusion.backbone import Backbone
from inlay.diffusion.sample import Level, Step, step_count
from inlay.diffusion.tiles import Resolution, TiledDenoiser, Tiling, in_tiles, resolutions
from inlay.methods.base import Context
from inlay.methods.phd import PhdSettings
from inlay.methods.phd.stages import Canvas, harmonize
from inlay.methods.workspace import Workspace, to_image
from inlay.pictures.arrays import Image, bounds, resize
from inlay.scene.stitch import Painted, Window, crop_box, to_tensor

# A patch of the latent is shown to the network where this share of all its pixels is the subject's.
_SHOWN = 0.98
# The share in which guided predictions get the spread of unguided ones.
_RESCALE = 0.7


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

    def paste(self, level: Resolution, made: Image | None) -> tuple[Tensor, Tensor]:
        """The subject over what was made, (1, 3, H, W) in [-1, 1], and its cover (1, 1, H, W).

        Both fill the level's whole patches: what is added to the right and below goes on as the
        picture ends, and is made like the rest. Without `made` the rest is grey.
        """
        cover = np.clip(resize(self.cover, level.size), 0, 1)
        paint = resize(self.paint, level.size)
        below = np.full_like(paint, 0.5) if made is None else made
        image = np.clip(paint + below * (1 - cover[..., None]), 0, 1)
        rest = [(0, level.padded[i] - level.size[i]) for i in (0, 1)]
        image = np.pad(image, (*rest, (0, 0)), mode="edge")
        return to_tensor(image, level.padded), torch.from_numpy(np.pad(cover, rest))[None, None]

    def sample(self, level: Resolution, made: Image | None, steps: int, strength: float) -> Image:
        """What was made, (h, w, 3) of the level's size or None, noised and denoised."""
        work, settings = self.work, self.settings
        backbone, factor = work.backbone, work.backbone.factor
        image, cover = self.paste(level, made)
        hidden = (functional.avg_pool2d(cover, factor) < _SHOWN).float()
        size = hidden.shape[-2], hidden.shape[-1]
        tiling = Tiling.of(size, backbone.native_size // factor, settings.outpaint_tile_overlap)

        def encode(picture: Tensor) -> Tensor:
            return in_tiles(backbone.encode, picture, tiling, factor, 1)

        source = encode(image)
        conditions = replace(
            work.conditions(),
            guidance_rescale=_RESCALE,
            mask=hidden.to(backbone.device),
            masked_latent=backbone.encode_masked(image, hidden, encode),
        )
        run = step_count(steps, strength)

        def tell(step: Step) -> None:
            # Solvers of higher order call more than once a step.
            made = round(run * (step.number + 1) / step.total)
            work.tell(made, run, lambda: self._decode(step.x0, tiling, level))

        result = work.paint(
            backbone.solver(settings.sampler(scene=True), steps),
            conditions,
            source,
            strength,
            tell,
            TiledDenoiser(backbone.denoiser, conditions, tiling, source),
        )
        work.context.done += run
        return self._decode(result, tiling, level)

    def _decode(self, latent: Tensor, tiling: Tiling, level: Resolution) -> Image:
        backbone = self.work.backbone
        image = in_tiles(backbone.decode, latent, tiling, 1, backbone.factor)
        height, width = level.size
        return np.clip(to_image(image[..., :height, :width]), 0, 1)


@torch.inference_mode()
def run_scene(
    window: Window,
    backbone: Backbone,
    settings: PhdSettings,
    context: Context,
    levels: list[Level],
) -> Painted:
    """The window as a scene round the subject, whose region is all but the subject.

    window.alpha is 1 less the subject's alpha, window.pasted the subject over any canvas. levels
    are those of the harmonize stage, which is left out where there are none. Raises InputError for
    a scheduler that does not sample the checkpoint.
    """
    for count in (settings.num_inference_steps, settings.refine_steps):
        backbone.solver(settings.sampler(scene=True), count)
    native = backbone.native_size
    plan = resolutions(window.shape, native, backbone.multiple)
    steps = step_count(settings.refine_steps, settings.refine_strength)
    context.total = settings.num_inference_steps + (len(plan) - 1) * steps + len(levels)
    size, alpha = plan[-1].size, 1 - window.alpha
    work = Workspace(window, backbone, settings, context)
    work.size = native, native
    scene = _Scene(
        work,
        settings,
        resize(window.pasted - window.was * window.alpha[..., None], size),
        resize(alpha, size),
    )
    coarse = made = scene.sample(plan[0], None, settings.num_inference_steps, 1.0)
    for level in plan[1:] if steps else ():
        made = resize(made, level.size)
        made = scene.sample(level, made, settings.refine_steps, settings.refine_strength)
    if size != window.shape and min(size) < min(window.shape):
        context.note(f"the surroundings were made at {size[1]} x {size[0]} pixels and enlarged")
    rgb = _lay_over(window, made)
    box, before = window.box, rgb
    if levels:
        # The part of the scene that the model sees round the subject.
        least = backbone.least_window
        whole = window.box.width, window.box.height
        box = crop_box(bounds(alpha) or window.box, whole, settings.context, least)
        before, alpha = rgb[box.slices].copy(), alpha[box.slices]
        close = Window(box, before, before, alpha, before)
        work = Workspace(close, backbone, settings, context)
        canvas = Canvas(close, alpha, alpha > 0)
        canvas = harmonize(work, canvas, settings, levels)
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
