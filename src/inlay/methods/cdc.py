"""Cross-domain Compositing (Hachnochi et al. 2023, arXiv 2302.10167).

Training-free: during the first part of the sampling the sample is pulled toward the picture with
the object pasted, at low frequencies only, and differently inside and outside the object: a
localized form of ILVR (Choi et al. 2021, arXiv 2108.02938).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from inlay.errors import InputError
from inlay.methods.base import Context, DiffusionSettings, Method
from inlay.scene.stitch import Painted, Window
from inlay.settings import default, published

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.diffusion.attention import LocalizedPrompt
    from inlay.diffusion.backbone import Backbone
    from inlay.diffusion.sample import Step
    from inlay.methods.workspace import Workspace


class CdcSettings(DiffusionSettings):
    guidance_scale: float = Field(5.0, ge=0, le=50)
    """how strongly the prompt steers (classifier-free guidance); 1 is off"""
    decoding: Literal["residual", "plain"] = default("plain", embedded="residual")
    """residual adds the change to the picture's own detail; plain takes the decoder's output"""
    amount: float = Field(1.0, ge=0, le=1)
    """how much of its change is made; 0 is the paste"""
    T_in: float = Field(0.8, ge=0, le=1)
    """the first part of the steps, 0 to 1, that holds the object to the paste; 1: most faithful"""
    T_out: float = Field(1.0, ge=0, le=1)
    """the first part of the steps in which the surroundings are held to the background"""
    N_in: float = Field(1.0, ge=1, le=64)
    """low-pass factor inside the object: only shapes coarser than so many latent pixels are held"""
    N_out: float = Field(1.0, ge=1, le=64)
    """low-pass factor outside the object"""
    blend_pixels: int = Field(0, ge=0, le=32)
    """pixels of the latent in which inside passes into outside; 1 is a hard edge, as is 0"""
    repaint_start: float = Field(0.0, ge=0, le=1)
    """RePaint resampling: the last part of the steps, 0 to 1, in which it is used; 0 is off"""
    repaint_jump: int = Field(10, ge=1, le=100)
    """RePaint: by how many steps a jump goes back"""
    repaint_repeats: int = Field(10, ge=1, le=50)
    """RePaint: how often each stretch is run in all"""
    eta: float = Field(0.0, ge=0, le=1)
    """fresh noise in each step: 0 is DDIM, as published, 1 as much as ancestral sampling adds"""
    condition_on: Literal["z_t", "x0"] = "z_t"
    """what is pulled: the noisy sample (z_t), or the estimate of the clean one (x0)"""
    words_inside: str = Field("", max_length=200)
    """words of the prompt meant for the object (a, b, c)"""
    words_outside: str = Field("", max_length=200)
    """words of the prompt meant for its surroundings"""
    words_weight: float = default(1.0, embedded=0.4, ge=0, le=10)
    """how strongly those words are steered"""
    words_weight_inside: float | None = Field(None, ge=0, le=10)
    """how strongly the object's words are; none is words_weight"""
    words_weight_outside: float | None = Field(None, ge=0, le=10)
    """how strongly the surroundings' words are; none is words_weight"""
    temperature: float = default(1.0, embedded=0.9, ge=0, le=2)
    """factor on all noise that is added; a small network leaves some of it in"""
    rounds: int = Field(1, ge=1, le=10)
    """passes, each on a smaller mask and on the last one's output"""
    blend: float = Field(1.0, ge=0, le=1)
    """how much of a round's output goes into the next round's input"""
    erosion: float = Field(0.02, ge=0, le=0.2)
    """by how much the mask shrinks between rounds at most, in units of the crop's longer side"""
    smoothing: float = default(0.0, embedded=0.03, ge=0, le=0.5)
    """residual decoding: blur of the change in the object, in units of the crop's longer side"""
    region: Literal["object", "background", "both"] = "object"
    """what may change: the object, all round it (held by T_in), or both (by T_in and T_out)"""

    def works_on_background(self) -> bool:
        return self.region != "object"


_FREE = {"decoding": "plain", "smoothing": 0.0}
_PRESETS: dict[str, dict[str, Any]] = {
    "blend": {},
    "immerse": {"T_in": 0.6, "N_in": 2.0, "blend_pixels": 2, "decoding": "residual"},
    "texture": {"T_in": 0.4, "N_in": 2.0, **_FREE},
    "stylize": {"T_in": 0.5, "N_in": 1.0, **_FREE},
    "scribble": {"T_in": 0.4, "N_in": 4.0, "blend_pixels": 2, "guidance_scale": 5.0, **_FREE},
    "augment": {"T_in": 0.5, "T_out": 0.0, "region": "both", "feather": 0.0, **_FREE},
    "released": published(CdcSettings),
}


def _steering(work: Workspace, mask: Tensor, settings: CdcSettings) -> LocalizedPrompt | None:
    """The words' attention rule, where there are words to steer."""
    from inlay.diffusion.attention import LocalizedPrompt, token_positions

    texts = settings.words_inside, settings.words_outside
    words = [[word.strip() for word in text.split(",") if word.strip()] for text in texts]
    if not any(words):
        return None
    text = work.backbone.text
    try:
        inside, outside = (token_positions(text, settings.prompt, each) for each in words)
    except LookupError as error:
        raise InputError(
            f"words_inside and words_outside name {str(error)!r}, which the prompt "
            f"{settings.prompt!r} does not contain; name words of the prompt."
        ) from None
    own = settings.words_weight_inside, settings.words_weight_outside
    weights = [settings.words_weight if weight is None else weight for weight in own]
    return LocalizedPrompt(mask, inside, outside, weights)


def next_input(image: Tensor, output: Tensor, mask: Tensor, blend: float) -> Tensor:
    """The next round's picture: blend * output + (1 - blend) * image inside M, `image` outside.

    M is the mask of the round that ends, so that what it made in the rim which the next round
    leaves alone is not lost.
    """
    return image + mask * blend * (output - image)


def erode(mask: Tensor, round_number: int, rounds: int, largest: float) -> Tensor:
    """M for the round after `round_number` (from 1): the kernel shrinks as the rounds go on."""
    import cv2
    import torch

    size = max(1, int(largest * max(mask.shape[-2:]) * (1 - (round_number - 1) / rounds)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * size + 1, 2 * size + 1))
    smaller = cv2.erode(mask[0, 0].numpy(), kernel)
    # A thin object would vanish: then the mask stays as it is.
    return torch.from_numpy(smaller)[None, None] if smaller.any() else mask


@lru_cache(maxsize=64)
def _resampling(source: int, target: int) -> Tensor:
    """Antialiased cubic (Keys, a = -1/2) resampling of one axis as a matrix (target, source).

    Our own matrix, not torch's interpolate: that one is wrong where an axis shrinks to one pixel,
    and its antialiased kernels are missing on some devices.
    """
    import torch

    stretch = max(source / target, 1.0)
    center = (torch.arange(target, dtype=torch.float64)[:, None] + 0.5) * source / target
    distance = (torch.arange(source, dtype=torch.float64) + 0.5 - center).abs() / stretch
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weight = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    return (weight / weight.sum(1, keepdim=True)).float()


def low_pass(x: Tensor, factor: float) -> Tensor:
    """phi_N: resample (N, C, h, w) down by `factor`, then up again, antialiased bicubic. A factor
    of 1 is the identity; the small size is rounded and at least one pixel.
    """
    if factor <= 1:
        return x
    height, width = x.shape[-2:]
    rows, columns = max(1, round(height / factor)), max(1, round(width / factor))
    vertical = _resampling(rows, height) @ _resampling(height, rows)
    horizontal = _resampling(columns, width) @ _resampling(width, columns)
    return vertical.to(x) @ x @ horizontal.T.to(x)


@dataclass(frozen=True)
class LocalizedPull:
    """Pull a sample toward a reference latent, differently inside and outside a mask.

    z <- z + A_i * (B * phi_in(d) + (1 - B) * phi_out(d)) with d = r - z, r the reference noised
    to the sample's level, B the mask's ramp and A_i the ramp of
    [i < S * ((T_in - T_out) * M + T_out)]. mask is (1, 1, h, w), 1 inside; reference
    (1, C, h, w). noise(like) draws n, already scaled by a temperature where there is one.
    """

    reference: Tensor
    mask: Tensor
    settings: CdcSettings
    noise: Callable[[Tensor], Tensor]

    def on_step(self, step: Step) -> Tensor:
        """The pull on z, at the level the step arrived at."""
        # Drawn whether or not it is used: the noise of later steps must not hang on T.
        target = step.to.add_noise(self.reference, self.noise(step.z))
        return self._pull(step.z, target, step)

    def on_x0(self, step: Step) -> Tensor:
        """The same pull on the x0 estimate; the DDIM step then re-noises it."""
        return self._pull(step.x0, self.reference, step)

    def _pull(self, z: Tensor, target: Tensor, step: Step) -> Tensor:
        from inlay.methods.workspace import ramp

        told = self.settings
        if step.number >= step.total * max(told.T_in, told.T_out):
            return z
        until = step.total * ((told.T_in - told.T_out) * self.mask + told.T_out)
        # Half a thousandth of a step: T = 0.28 of 25 steps must not gain a step by rounding.
        active = (step.number < until - 5e-4).to(self.mask.dtype)
        share, inside = (ramp(part, told.blend_pixels) for part in (active, self.mask))
        delta = target - z
        coarse = inside * low_pass(delta, told.N_in) + (1 - inside) * low_pass(delta, told.N_out)
        return z + share * coarse


def _one_round(
    work: Workspace, settings: CdcSettings, image: Tensor, mask: Tensor, z_source: Tensor
) -> Tensor:
    """One pass over a picture (1, 3, H, W) in [-1, 1]: the latent that comes out."""
    from inlay.diffusion.sample import descents, draw_noise, repaint, sample, start

    backbone, context = work.backbone, work.context
    levels = backbone.levels.run(settings.num_inference_steps, settings.strength)
    if not levels:
        return z_source
    walk = repaint(levels, settings.repaint_start, settings.repaint_jump, settings.repaint_repeats)
    steps, latent_mask = descents(walk), work.latent_mask(mask)
    initial = settings.initial_latent

    def noise(like: Tensor) -> Tensor:
        return draw_noise(like, context.generator) * settings.temperature

    pull = LocalizedPull(z_source, latent_mask, settings, noise)
    on_x0 = settings.condition_on == "x0"
    # From this step on nothing is held, and the network is shown nothing.
    free = math.ceil(max(settings.T_in, settings.T_out) * steps - 1e-6)
    # Where all is to change the network paints what is held less.
    swaps = settings.region == "both" and settings.T_in > settings.T_out
    hole = 1 - latent_mask if swaps else latent_mask
    shown = work.conditions(hole, image) if free else work.blank(hole)
    denoiser = backbone.denoiser(shown)
    context.total = settings.rounds * steps

    def on_step(step: Step) -> Tensor:
        if step.number + 1 == free < steps:
            denoiser.conditions = work.blank(latent_mask)
        return step.z if on_x0 else pull.on_step(step)

    with backbone.attention(_steering(work, latent_mask, settings)):
        return sample(
            denoiser,
            start(levels[0].add_noise, z_source, noise(z_source), settings.strength, initial),
            walk,
            noise=noise,
            eta=settings.eta,
            on_x0=pull.on_x0 if on_x0 else lambda step: step.x0,
            on_step=on_step,
            progress=work.on_step,
        )


def run(window: Window, backbone: Backbone, settings: CdcSettings, context: Context) -> Painted:
    """Cross-domain Compositing of one window; see METHOD.settings for every knob."""
    import torch

    from inlay.methods.workspace import Workspace

    if window.clean is not window.was:
        context.note("cdc does not use the background before pasting; poisson and reinhard do")
    with torch.inference_mode():
        work = Workspace(window, backbone, settings, context)
        image, mask = work.picture, window.mask(work.size)
        if settings.region == "both":
            mask = 1 - mask
            work.window = replace(window, alpha=0 * window.alpha + 1)
        first = z_source = result = work.source()
        for number in range(1, settings.rounds + 1):
            result = _one_round(work, settings, image, mask, z_source)
            context.done = context.total * number // settings.rounds
            if number == settings.rounds:
                break
            change = backbone.decode(result) - backbone.decode(z_source)
            output = (image + change.cpu().float()).clamp(-1, 1)
            image = next_input(image, output, mask, settings.blend)
            mask = erode(mask, number, settings.rounds, settings.erosion)
            z_source = backbone.encode(image)
        if settings.decoding == "plain" and settings.strength > 0:
            return work.replace_region(work.image(result))
        return work.add_change(first, result, settings.smoothing)


METHOD = Method(
    name="cdc",
    summary="Cross-domain Compositing: pulls the sampling toward the pasted picture, by region",
    source="Hachnochi et al. 2023, arXiv 2302.10167",
    verbs=("compose", "harmonize"),
    settings=CdcSettings,
    presets=_PRESETS,
    invents=("augment", "scribble", "stylize", "texture"),
)
