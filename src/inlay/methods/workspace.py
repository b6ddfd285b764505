"""What the diffusion methods share between a window of pixels and a latent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image as PilImage
from torch import Tensor
from torch.nn import functional

from inlay.diffusion.backbone import Backbone, Conditions
from inlay.diffusion.sample import Denoise, Sampler, Step
from inlay.diffusion.text import Embedding
from inlay.methods.base import Context, ModelSettings
from inlay.pictures.arrays import Image, Mask, blur, luma, masked_blur, resize
from inlay.pictures.colour import convert
from inlay.scene.fill import membrane
from inlay.scene.window import Painted, Window, model_size

# Detail that is next to nothing is not blown up to a texture: it is the sampler's noise.
_LARGEST_GAIN = 1.5


@dataclass
class Workspace:
    """A window on its way through a backbone.

    size is (height, width) of the model's picture; text and negative are the embedded prompts, the
    latter None where guidance is off.
    """

    window: Window
    backbone: Backbone
    settings: ModelSettings
    context: Context
    size: tuple[int, int]
    text: Embedding
    negative: Embedding | None

    @classmethod
    def of(
        cls,
        window: Window,
        backbone: Backbone,
        settings: ModelSettings,
        context: Context,
        size: tuple[int, int] | None = None,
    ) -> Workspace:
        """The workspace of a window under the settings' prompts."""
        size = size or model_size(window.box, backbone.native_size, backbone.multiple)
        text = backbone.embed([settings.prompt], size)
        negative = None
        # With the same text on both rows guidance is the identity: save the second row.
        if settings.guidance_scale != 1 and settings.prompt != settings.negative_prompt:
            negative = backbone.embed([settings.negative_prompt], size)
        return cls(window, backbone, settings, context, size, text, negative)

    @property
    def picture(self) -> Tensor:
        """The pasted window at the model's size, (1, 3, H, W) in [-1, 1]."""
        return self.window.tensor("pasted", self.size)

    def encode(self, image: Tensor, key: str | None = None) -> Tensor:
        """Latent (1, C, h, w) of (1, 3, H, W); kept with the window under `key`."""
        if key is None:
            return self.backbone.encode(image)
        cache, name = self.window.cache, (f"latent {key} {id(self.backbone)}", *self.size)
        if name not in cache:
            cache[name] = self.backbone.encode(image)
        return cache[name]

    def source(self) -> Tensor:
        """Latent of the pasted window."""
        return self.encode(self.picture, "pasted")

    def image(self, latent: Tensor) -> Image:
        """A latent (1, C, h, w) decoded: float32 (H, W, 3) in the window's space, not clipped."""
        image, space = to_image(self.backbone.decode(latent)), self.window.space
        return image if space is None else convert(image, None, space)

    def latent_mask(self, mask: Tensor, cover: bool = False) -> Tensor:
        """A picture mask (1, 1, H, W) at latent resolution.

        By nearest neighbour, or with `cover` every latent pixel that the mask touches.
        """
        height, width = (side // self.backbone.factor for side in self.size)
        small = functional.interpolate(mask, (height, width), mode="nearest")
        # Nearest neighbour can miss a thin region altogether.
        if cover or not small.any():
            small = functional.adaptive_max_pool2d(mask, (height, width))
        return small.to(self.backbone.device)

    def whole(self, latent_mask: Tensor) -> Tensor:
        """A latent mask as a mask of the model's picture, on the CPU."""
        return functional.interpolate(latent_mask, self.size, mode="nearest").cpu()

    def conditions(self, mask: Tensor | None = None, picture: Tensor | None = None) -> Conditions:
        """The prompts with guidance; and a mask (1, 1, h, w) to be painted with the picture
        (1, 3, H, W) round it, of which the network is shown what the mask leaves.
        """
        seen = None
        if mask is not None and picture is not None:
            seen = self.backbone.encode_masked(picture, mask)
        scale = self.settings.guidance_scale
        return Conditions(self.text, self.negative, scale, mask=mask, masked_latent=seen)

    def blank(self, mask: Tensor) -> Conditions:
        """The conditions of a picture that is to be painted as a whole: what training shows then is
        grey, whose latent need not be 0. `mask` is any of the latent's size.
        """
        return self.conditions(torch.ones_like(mask), torch.zeros(1, 3, *self.size))

    def paint(
        self,
        solver: Sampler,
        conditions: Conditions,
        source: Tensor,
        strength: float,
        progress: Callable[[Step], None] | None = None,
        denoise: Denoise | None = None,
    ) -> Tensor:
        """`source` (1, C, h, w) with the conditions' mask painted by a backbone's solver, from the
        noise of `strength`. `progress` and `denoise` stand in for on_step() and the backbone's
        denoiser.
        """
        denoiser = self.backbone.denoiser(conditions)
        return solver(
            denoise or denoiser,
            source,
            strength=strength,
            generator=self.context.generator,
            keep_outside=denoiser.keep_outside,
            progress=progress or self.on_step,
        )

    def on_step(self, step: Step) -> None:
        """For samplers: tells the context of a step."""
        self.tell(step.number + 1, step.total, step.x0[:1])

    def tell(self, number: int, total: int, latent: Tensor) -> None:
        """Tell of the steps made, with a preview of a latent where one is wanted; `number` and
        `total` are the sampling's own.
        """
        context = self.context
        preview = to_pil(self.image(latent)) if context.previews else None
        context.progress(context.done + number, context.total or total, preview)


def to_image(tensor: Tensor) -> Image:
    """(1, 3, H, W) in [-1, 1] -> float32 (H, W, 3) in [0, 1], not clipped."""
    array: Image = tensor[0].float().cpu().numpy().transpose(1, 2, 0)
    return np.asarray(array * 0.5 + 0.5, np.float32)


def to_pil(image: Image) -> PilImage.Image:
    """A picture (H, W, 3) in [0, 1] as PIL's."""
    return PilImage.fromarray((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8))


def fill_smoothly(picture: Tensor, hole: Tensor) -> Tensor:
    """A picture (1, 3, H, W) on the CPU whose hole (1, 1, H, W) is the membrane over its rim."""
    values = np.ascontiguousarray(picture[0].permute(1, 2, 0).numpy())
    smooth = np.ascontiguousarray(membrane(values, hole[0, 0].numpy() > 0.5))
    return torch.from_numpy(smooth).permute(2, 0, 1)[None]


def add_texture(work: Workspace, fill: Image, sample: Image, region: Tensor) -> Image:
    """`fill` with the fine detail of `sample`, as strong as it is round the region.

    fill and sample are float32 (H, W, 3) in [0, 1] of the model's size, region is a latent mask
    (1, 1, h, w). Only what is finer than a twentieth of the window is taken: what a sample says of
    colour and of light is noise beside the fill. Strength is the median of luminance's gradients,
    which an edge in the surroundings does not sway.
    """
    change = sample - fill
    detail = change - blur(change, 0.025 * max(work.size))
    hole = np.ascontiguousarray(work.whole(region)[0, 0].numpy())
    kernel, inside = np.ones((2 * round(0.06 * max(work.size)) + 1,) * 2, np.uint8), hole > 0
    ring = (cv2.dilate(hole, kernel) > 0) & ~inside
    if not ring.any():
        return fill
    around = _strength(to_image(work.picture), ring)
    missing = max(around**2 - _strength(fill, inside) ** 2, 0.0) ** 0.5
    gain = min(missing / max(_strength(detail, inside), 1e-6), _LARGEST_GAIN)
    return np.asarray(fill + gain * detail, np.float32)


def _strength(image: Image, where: Mask) -> float:
    """The median length of luminance's gradient in part of a picture (h, w, 3)."""
    down, across = np.gradient(luma(image))
    return float(np.median(np.hypot(down, across)[where]))


def add_change(
    work: Workspace,
    before: Tensor,
    after: Tensor,
    smoothing: float = 0.0,
    feather: float | None = None,
) -> Painted:
    """Residual decoding: y = x + w * U(D(after) - D(before)).

    before and after are latents (1, C, h, w). The autoencoder's own error cancels and detail finer
    than the model's pixels stays. `smoothing` (window sizes) is the sigma of a blur of the
    change inside the region, which holds back invented texture. w is 1 on the region and falls
    to 0 over `feather` (window sizes; by default the settings').
    """
    window, settings = work.window, work.settings
    change = work.image(after) - work.image(before)
    if smoothing > 0:
        mask = resize(window.region(), work.size)
        # Without mixing the two sides.
        inside = masked_blur(change, mask, smoothing * max(work.size))
        change = inside * mask[..., None] + change * (1 - mask[..., None])
    weight = window.rim(settings.feather if feather is None else feather)
    rgb = window.pasted + resize(change, window.shape) * weight[..., None]
    return Painted(rgb, (weight > 0) | window.paste_mask())


def replace_region(work: Workspace, image: Image, grow: float = 0.0) -> Painted:
    """A picture of the model's size (h, w, 3) on the region grown by `grow`, blended over
    `feather`; with a decoded latent this is plain decoding.
    """
    window = work.window
    weight = window.rim(work.settings.feather, grow)
    new = resize(image, window.shape)
    rgb = window.pasted * (1 - weight[..., None]) + new * weight[..., None]
    return Painted(rgb.astype(np.float32), (weight > 0) | window.paste_mask())


def ramp(mask: Tensor, pixels: int) -> Tensor:
    """Grow a mask (1, 1, h, w) outward by `pixels` with a linear ramp.

    The mean of its 1st to `pixels`-th repeated 3x3 dilation: each dilation adds 1 / pixels. 0 is
    the identity.
    """
    if pixels <= 0:
        return mask
    grown, total = mask, torch.zeros_like(mask)
    for _ in range(pixels):
        grown = functional.max_pool2d(grown, 3, stride=1, padding=1)
        total = total + grown
    return total / pixels
