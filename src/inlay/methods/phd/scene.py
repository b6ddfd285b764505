"""PhD without a background (arXiv 2306.07596): a scene of any size, made round the subject.

Coarse: at the model's size everything but the subject is sampled from noise under the prompt, the
subject shown. Up: the picture grows by a factor of at most 2, gets the subject pasted at its new
size, is noised to `refine_strength` and denoised again, in overlapping windows of the model's size
(diffusion/tiles.py). At the end the subject is laid over it with its own pixels, and PhD's last
stage gives it the light of what is round it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inlay.methods.base import Context, Painted
from inlay.methods.phd.stages import Canvas, harmonize
from inlay.methods.workspace import Workspace, to_image, to_pil
from inlay.pictures.arrays import bounds, resize
from inlay.pictures.box import Box
from inlay.scene.window import Window, crop_box

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.diffusion.backbone import Backbone, Embedding
    from inlay.diffusion.harmonizer import Harmonizer
    from inlay.diffusion.sample import Level, Step
    from inlay.diffusion.tiles import Resolution, Tiling
    from inlay.methods.phd.settings import PhdSettings

__all__ = ["run_scene"]

Image = NDArray[np.float32]

# A patch of the latent is shown to the network where this share of all its pixels is the subject's.
_SHOWN = 0.98
# The share in which guided predictions get the spread of unguided ones.
_RESCALE = 0.7


@dataclass
class _Scene:
    """A scene on its way through a backbone.

    paint (h, w, 3) is the subject's colour times its cover (h, w), both at the last level's size.
    """

    paint: Image
    cover: Image
    backbone: Backbone
    settings: PhdSettings
    context: Context
    conditional: Embedding
    unconditional: Embedding | None
    done: int = 0
    total: int = 0

    def paste(self, level: Resolution, made: Image | None) -> tuple[Tensor, Tensor]:
        """The subject over what was made, (1, 3, H, W) in [-1, 1], and its cover (1, 1, H, W).

        Both fill the level's whole patches: what is added to the right and below goes on as the
        picture ends, and is made like the rest. Without `made` the rest is grey.
        """
        import torch

        cover = np.clip(resize(self.cover, level.size), 0, 1)
        paint = resize(self.paint, level.size)
        below = np.full_like(paint, 0.5) if made is None else made
        image = np.clip(paint + below * (1 - cover[..., None]), 0, 1)
        rest = [(0, level.padded[i] - level.size[i]) for i in (0, 1)]
        image = np.pad(image, (*rest, (0, 0)), mode="edge")
        cover = np.pad(cover, rest)
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
        return tensor * 2 - 1, torch.from_numpy(cover)[None, None]

    def sample(self, level: Resolution, made: Image | None, steps: int, strength: float) -> Image:
        """What was made, (h, w, 3) of the level's size or None, noised and denoised."""
        from torch.nn import functional

        from inlay.diffusion.backbone import Conditions
        from inlay.diffusion.sample import step_count
        from inlay.diffusion.tiles import TiledDenoiser, Tiling, in_tiles

        backbone, factor, settings = self.backbone, self.backbone.factor, self.settings
        image, cover = self.paste(level, made)
        hidden = (functional.avg_pool2d(cover, factor) < _SHOWN).float()
        tiling = Tiling.of(
            (hidden.shape[-2], hidden.shape[-1]),
            backbone.native_size // factor,
            settings.outpaint_tile_overlap,
        )

        def encode(picture: Tensor) -> Tensor:
            return in_tiles(backbone.encode, picture, tiling, factor, 1)

        source = encode(image)
        conditions = Conditions(
            self.conditional,
            self.unconditional,
            settings.guidance_scale,
            _RESCALE,
            hidden.to(backbone.device),
            backbone.encode_masked(image, hidden, encode),
        )
        run = step_count(steps, strength)
        result = backbone.solver(settings.sampler(scene=True), steps)(
            TiledDenoiser(backbone.denoiser, conditions, tiling, source),
            source,
            strength=strength,
            generator=self.context.generator,
            keep_outside=backbone.denoiser(conditions).keep_outside,
            progress=lambda step: self._tell(step, run, tiling, level),
        )
        self.done += run
        return self._decode(result, tiling, level)

    def _decode(self, latent: Tensor, tiling: Tiling, level: Resolution) -> Image:
        from inlay.diffusion.tiles import in_tiles

        image = in_tiles(self.backbone.decode, latent, tiling, 1, self.backbone.factor)
        height, width = level.size
        return np.clip(to_image(image[..., :height, :width]), 0, 1)

    def _tell(self, step: Step, steps: int, tiling: Tiling, level: Resolution) -> None:
        preview: Any = None
        if self.context.previews:
            preview = to_pil(self._decode(step.x0, tiling, level))
        # Solvers of higher order call more than once a step.
        run = round(steps * (step.number + 1) / step.total)
        self.context.progress(self.done + run, self.total, preview)


def run_scene(
    window: Window,
    backbone: Backbone,
    settings: PhdSettings,
    context: Context,
    levels: list[Level],
    harmonizer: Harmonizer | None,
) -> Painted:
    """The window as a scene round the subject, whose region is all but the subject.

    window.alpha is 1 less the subject's alpha, window.pasted the subject over any canvas. levels
    and harmonizer are those of the harmonize stage, which is left out where there are no levels.
    The result's effect is the whole window. Raises InputError for a scheduler that does not sample
    the checkpoint.
    """
    import torch

    from inlay.diffusion.sample import step_count
    from inlay.diffusion.tiles import resolutions

    _check_scheduler(settings, backbone)
    plan = resolutions(window.shape, backbone.native_size, backbone.multiple)
    steps = step_count(settings.refine_steps, settings.refine_strength)
    sampling = settings.num_inference_steps + (len(plan) - 1) * steps
    with torch.inference_mode():
        scene = _Scene(
            resize(window.pasted - window.was * window.alpha[..., None], plan[-1].size),
            resize(1 - window.alpha, plan[-1].size),
            backbone,
            settings,
            context,
            *_prompts(backbone, settings),
            total=sampling + len(levels),
        )
        coarse = made = scene.sample(plan[0], None, settings.num_inference_steps, 1.0)
        for level in plan[1:] if steps else ():
            made = resize(made, level.size)
            made = scene.sample(level, made, settings.refine_steps, settings.refine_strength)
        if plan[-1].size != window.shape and min(plan[-1].size) < min(window.shape):
            height, width = plan[-1].size
            context.note(f"the surroundings were made at {width} x {height} pixels and enlarged")
        rgb = _lay_over(window, made)
        box, before = window.box, rgb
        if levels:
            box = _close(window, settings, backbone)
            before = rgb[box.slices].copy()
            rgb[box.slices] = _harmonize_part(
                window, before, box, backbone, settings, context, levels, harmonizer, sampling
            )
    effect = np.ones(window.shape, bool)

    def refined() -> Painted:
        picture = rgb.copy()
        picture[box.slices] = before
        return Painted(picture, effect)

    stages: dict[str, Callable[[], Painted]] = {
        "coarse": lambda: Painted(_lay_over(window, coarse), effect),
        "refine": refined,
    }
    if settings.harmonize:
        stages["harmonize"] = lambda: Painted(rgb, effect)
    return Painted(rgb, effect, _Stages(stages))


class _Stages(Mapping[str, Painted]):
    """Stages that are put together when they are asked for: a scene may be large."""

    def __init__(self, makers: Mapping[str, Callable[[], Painted]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Painted:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _lay_over(window: Window, made: Image) -> Image:
    """The subject over what was made, with its own pixels."""
    rgb = resize(made, window.shape)
    rgb = rgb.copy() if rgb is made else rgb
    # In place, as a scene may be large: made * (1 - a) + F * a.
    rgb -= window.was
    rgb *= window.alpha[..., None]
    rgb += window.pasted
    return rgb


def _close(window: Window, settings: PhdSettings, backbone: Backbone) -> Box:
    """The part of the scene that the model sees round the subject."""
    around = bounds(1 - window.alpha) or window.box
    size = window.box.width, window.box.height
    return crop_box(around, size, settings.context, backbone.native_size)


def _harmonize_part(
    window: Window,
    part: Image,
    box: Box,
    backbone: Backbone,
    settings: PhdSettings,
    context: Context,
    levels: list[Level],
    harmonizer: Harmonizer | None,
    done: int,
) -> Image:
    """PhD's last stage on a part (h, w, 3) of the scene, which is what `box` holds of it."""
    alpha = 1 - window.alpha[box.slices]
    close = Window(box, part, part, alpha, part)
    work = Workspace.of(close, backbone, settings, context)
    canvas = Canvas(close, alpha, alpha > 0)
    return harmonize(work, canvas, settings, levels, harmonizer, done).window.pasted


def _check_scheduler(settings: PhdSettings, backbone: Backbone) -> None:
    for steps in (settings.num_inference_steps, settings.refine_steps):
        backbone.solver(settings.sampler(scene=True), steps)


def _prompts(backbone: Backbone, settings: PhdSettings) -> tuple[Embedding, Embedding | None]:
    """The prompts, the second None where guidance is off; windows are of the model's own size."""
    size = backbone.native_size, backbone.native_size
    conditional = backbone.embed([settings.prompt], size)
    if settings.guidance_scale == 1 or settings.prompt == settings.negative_prompt:
        return conditional, None
    return conditional, backbone.embed([settings.negative_prompt], size)
