"""What the diffusion methods share between a window of pixels and a latent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import cv2
import numpy as np
import torch
from PIL import Image as PilImage
from torch import Tensor
from torch.nn import functional

from inlay.diffusion.backbone import Backbone
from inlay.diffusion.conditions import Conditions
from inlay.diffusion.sample import Denoise, Sampler, Step
from inlay.diffusion.text import Embedding
from inlay.methods.base import Context, ModelSettings
from inlay.pictures.arrays import Box, Image, Mask, blur, luma, masked_blur, resize, to_uint8
from inlay.pictures.colour import convert
from inlay.scene.fill import membrane
from inlay.scene.stitch import FADE, GROWN, Painted, Window

# Detail that is next to nothing is not blown up to a texture: it is the sampler's noise.
_LARGEST_GAIN = 1.5


def model_size(box: Box, native: int, multiple: int) -> tuple[int, int]:
    """(height, width) the model works at: the longer side is `native`, both are multiples."""
    scale = native / max(box.width, box.height)
    height, width = (max(1, round(v * scale / multiple)) for v in (box.height, box.width))
    return height * multiple, width * multiple


@dataclass(eq=False)
class Workspace:
    """A window on its way through a backbone; `view` is which of its pictures is worked on."""

    view: ClassVar[str] = "pasted"

    window: Window
    backbone: Backbone
    settings: ModelSettings
    context: Context

    def __post_init__(self) -> None:
        told, backbone = self.settings, self.backbone
        steps = getattr(told, "num_inference_steps", 0)
        guided = told.guidance_scale != 1 and not backbone.told_scale
        if backbone.few_steps and (steps > 8 or guided):
            without = "" if backbone.told_scale else " without guidance"
            self.context.note(
                f"the model {backbone.name} was distilled for 1 to 8 steps{without}; give it few"
                f"{without and ', and guidance scales of 1'}"
            )

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) of the model's picture."""
        return model_size(self.window.box, self.backbone.native_size, self.backbone.multiple)

    @property
    def prompt(self) -> str:
        return self.settings.prompt

    def embed(self, prompt: str) -> Embedding:
        """A prompt's one row; of one that is not read to its end a note tells."""
        if told := self.backbone.text.unread(prompt):
            self.context.note(told)
        picture = self.reference() if self.backbone.edits else None
        return self.backbone.embed([prompt], self.size, self.settings.clip_skip, picture)

    @cached_property
    def text(self) -> Embedding:
        return self.embed(self.prompt)

    @cached_property
    def negative(self) -> Embedding | None:
        """The negative prompt, embedded; None where guidance is off, or the identity."""
        told = self.settings
        guided = told.guidance_scale != 1 and self.prompt != told.negative_prompt
        return self.embed(told.negative_prompt) if guided else None

    @property
    def picture(self) -> Tensor:
        """The window's picture at the model's size, (1, 3, H, W) in [-1, 1]."""
        return self.window.tensor(self.view, self.size)

    def source(self, view: str | None = None) -> Tensor:
        """Latent (1, C, h, w) of the picture, or of another `view`; kept with the window."""
        view = view or self.view
        cache, key = self.window.cache, (f"latent {view} {id(self.backbone.vae)}", *self.size)
        if key not in cache:
            cache[key] = self.backbone.encode(self.window.tensor(view, self.size))
        return cache[key]

    def image(self, latent: Tensor) -> Image:
        """A latent (1, C, h, w) decoded: float32 (H, W, 3) in the window's space, not clipped."""
        image, space = to_image(self.backbone.decode(latent)), self.window.space
        return image if space is None else convert(image, None, space)

    def latent_mask(self, mask: Tensor, cover: bool = False) -> Tensor:
        """A picture mask (1, 1, H, W) in latent pixels: nearest, or with `cover` any it touches."""
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
        seen, reference, scale = None, None, self.settings.guidance_scale
        if mask is not None and picture is not None:
            seen = self.backbone.encode_masked(picture, mask)
        if self.backbone.edits:
            reference = self.backbone.encode(self.reference(picture))
        told = Conditions(self.text, self.negative, scale, mask=mask, masked_latent=seen)
        return replace(told, reference=reference)

    def reference(self, picture: Tensor | None = None) -> Tensor:
        """The picture (1, 3, H, W) that a checkpoint for editing is to change, by default the
        workspace's own; without what is to go, as it would keep it.
        """
        x = self.picture if picture is None else picture
        if self.context.verb != "remove":
            return x
        return x * (1 - self.window.mask(self.size, getattr(self.settings, "grow", 0.0)))

    def blank(self, mask: Tensor) -> Conditions:
        """The conditions of a picture that is to be painted as a whole: what training shows then is
        grey, whose latent need not be 0. `mask` is any of the latent's size.
        """
        told = self.conditions(torch.ones_like(mask), torch.zeros(1, 3, *self.size))
        return replace(told, reference=self.conditions().reference) if self.backbone.edits else told

    def paint(
        self,
        solver: Sampler,
        conditions: Conditions,
        source: Tensor,
        strength: float,
        progress: Callable[[Step], None] | None = None,
        denoise: Denoise | None = None,
    ) -> Tensor:
        """`source` (1, C, h, w) with the conditions' mask painted by a solver, from the noise of
        `strength` on. `progress` and `denoise` stand in for on_step() and the backbone's denoiser.
        """
        denoiser = self.backbone.denoiser(conditions)
        return solver(
            denoise or denoiser,
            source,
            strength=strength,
            initial=self.settings.initial_latent,
            generator=self.context.generator,
            keep_outside=denoiser.keep_outside,
            progress=progress or self.on_step,
        )

    def on_step(self, step: Step) -> None:
        """For samplers: tells the context of a step."""
        self.tell(step.number + 1, step.total, lambda: self.image(step.x0[:1]))

    def tell(self, number: int, total: int, preview: Callable[[], Image]) -> None:
        """Tell of the steps made, with a picture (h, w, 3) in [0, 1] where one is wanted; `number`
        and `total` are the sampling's own.
        """
        context = self.context
        shown = PilImage.fromarray(to_uint8(preview())) if context.previews else None
        context.progress(context.done + number, context.total or total, shown)

    def smooth_fill(self, region: Tensor) -> tuple[Tensor, Tensor]:
        """A latent and its picture (1, 3, H, W): the region is the membrane over its rim."""
        hole = self.whole(region)[0, 0].numpy() > 0.5
        values = np.ascontiguousarray(self.picture[0].permute(1, 2, 0).numpy())
        smooth = torch.from_numpy(np.ascontiguousarray(membrane(values, hole)))
        picture = smooth.permute(2, 0, 1)[None]
        return self.backbone.encode(picture), picture

    def add_texture(self, fill: Image, sample: Image, region: Tensor) -> Image:
        """`fill` with the fine detail of `sample`, as strong as it is round the region.

        Both are float32 (H, W, 3) in [0, 1] of the model's size, region is a latent mask. Only what
        is finer than a twentieth of the window is taken: what a sample says of colour and of light
        is noise beside the fill. Strength is the median of luminance's gradients.
        """
        change = sample - fill
        detail = change - blur(change, 0.025 * max(self.size))
        hole = np.ascontiguousarray(self.whole(region)[0, 0].numpy())
        kernel, inside = np.ones((2 * round(0.06 * max(self.size)) + 1,) * 2, np.uint8), hole > 0
        ring = (cv2.dilate(hole, kernel) > 0) & ~inside
        if not ring.any():
            return fill
        around = _strength(to_image(self.picture), ring)
        missing = max(around**2 - _strength(fill, inside) ** 2, 0.0) ** 0.5
        gain = min(missing / max(_strength(detail, inside), 1e-6), _LARGEST_GAIN)
        return np.asarray(fill + gain * detail, np.float32)

    @property
    def amount(self) -> np.float32:
        """How much of a change is made, 0 to 1: of methods that let it be set."""
        return np.float32(getattr(self.settings, "amount", 1))

    def weight(self, feather: float, grow: float = 0.0) -> Image:
        """How much of a change is written, (h, w): a soft mask's level, else 1 on the region grown
        by `grow`, falling to 0 over `feather`: window sizes, but few pixels for a removal.
        """
        window, side = self.window, max(self.window.shape)
        if window.soft:
            return window.alpha
        if self.context.verb == "remove":
            grow, feather = min(grow, GROWN / side), min(feather, FADE / side)
        return window.rim(feather, grow)

    def add_change(
        self, before: Tensor, after: Tensor, smoothing: float, feather: float | None = None
    ) -> Painted:
        """Residual decoding: y = x + w * U(D(after) - D(before)), for latents (1, C, h, w).

        The autoencoder's own error cancels and detail finer than the model's pixels stays.
        `smoothing` (window sizes) is the sigma of a blur of the change inside the region, which
        holds back invented texture. w is weight() over `feather`, by default the settings'.
        """
        window = self.window
        change = self.image(after) - self.image(before)
        if smoothing > 0:
            mask = resize(window.region(), self.size)
            # Without mixing the two sides.
            inside, mask = masked_blur(change, mask, smoothing * max(self.size)), mask[..., None]
            change = inside * mask + change * (1 - mask)
        weight = self.weight(self.settings.feather if feather is None else feather) * self.amount
        rgb = window.pasted + resize(change, window.shape) * weight[..., None]
        return Painted(rgb, (weight > 0) | window.paste_mask())

    def replace_region(self, image: Image, grow: float = 0.0) -> Painted:
        """A picture of the model's size (h, w, 3) on the region grown by `grow`, blended over
        `feather`; with a decoded latent this is plain decoding.
        """
        window = self.window
        weight = self.weight(self.settings.feather, grow)
        if self.context.verb == "remove":
            # So short a rim hides no fill that is a little off: it is moved to meet the picture.
            off = resize(window.pasted, self.size) - image
            image = image + membrane(off, resize(weight, self.size) > 0)
        new, weight = resize(image, window.shape), weight * self.amount
        rgb = window.pasted * (1 - weight[..., None]) + new * weight[..., None]
        return Painted(rgb.astype(np.float32), (weight > 0) | window.paste_mask())


def to_image(tensor: Tensor) -> Image:
    """(1, 3, H, W) in [-1, 1] -> float32 (H, W, 3) in [0, 1], not clipped."""
    array: Image = tensor[0].float().cpu().numpy().transpose(1, 2, 0)
    return np.asarray(array * 0.5 + 0.5, np.float32)


def _strength(image: Image, where: Mask) -> float:
    """The median length of luminance's gradient in part of a picture (h, w, 3)."""
    down, across = np.gradient(luma(image))
    return float(np.median(np.hypot(down, across)[where]))


def ramp(mask: Tensor, pixels: int) -> Tensor:
    """A mask (1, 1, h, w) that falls off outward over `pixels` - 1 pixels, as cdc's authors' does:
    the mean of it and its repeated 3x3 dilations, `pixels` in all. 0 and 1 are the identity.
    """
    total = mask
    for _ in range(pixels - 1):
        mask = dilate(mask)
        total = total + mask
    return total / max(pixels, 1)


def dilate(mask: Tensor) -> Tensor:
    """A mask (1, 1, h, w) grown by one pixel on every side."""
    return functional.max_pool2d(mask, 3, stride=1, padding=1)
