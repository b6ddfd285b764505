"""The crop that a method works on, and the only code that writes into a background.

Outside the pixels that a method may change, the background's samples are copied, never re-encoded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inlay.pictures.arrays import bounds, distance, resize, soft_rim
from inlay.pictures.box import Box

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.pictures.picture import Picture
    from inlay.scene.scene import Scene

__all__ = ["Painted", "Window", "crop_box", "model_size", "stitch"]

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Painted:
    """What a method made of its window, at the window's own resolution.

    rgb is float32 (height, width, 3), sRGB in [0, 1]; mask is bool (height, width): the pixels that
    may change, and the only ones that are written into the background. stages are what it had made
    on the way, by name.
    """

    rgb: NDArray[np.float32]
    mask: NDArray[np.bool_]
    stages: Mapping[str, Painted] = field(default_factory=dict)


def crop_box(region: Box, size: tuple[int, int], context: float, at_least: int = 1) -> Box:
    """The box that a method gets to see round a region of a picture of (width, height).

    A square of the region's longer side plus `context` times it on every side, at least
    `at_least` pixels wide, moved (and only then cut) to lie inside the picture.
    """
    side = max(region.width, region.height)
    side = max(math.ceil(side * (1 + 2 * context)), at_least)
    width, height = min(side, size[0]), min(side, size[1])
    x = region.x + region.width // 2 - width // 2
    y = region.y + region.height // 2 - height // 2
    return Box(min(max(x, 0), size[0] - width), min(max(y, 0), size[1] - height), width, height)


def model_size(box: Box, native: int, multiple: int) -> tuple[int, int]:
    """(height, width) the model works at: the longer side is `native`, both are multiples."""
    scale = native / max(box.width, box.height)

    def rounded(length: int) -> int:
        return max(multiple, round(length * scale / multiple) * multiple)

    return rounded(box.height), rounded(box.width)


@dataclass(eq=False)
class Window:
    """What a method receives.

    clean and pasted are float32 (h, w, 3) sRGB in [0, 1] at the background's own resolution: the
    picture as it was, and with the subject over it (the same where nothing is pasted by us).
    alpha is float32 (h, w): the subject's alpha, or the mask of what is to change.
    `was` is the background's crop before anything, which `stitch` compares with. concept is the
    file of a concept that is to fill the alpha; there `pasted` is grey.
    """

    box: Box
    clean: Image
    pasted: Image
    alpha: Image
    was: Image
    under: Image | None = None
    concept: Path | None = None
    cache: dict[tuple[str, int, int], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, scene: Scene, context: float, at_least: int = 1) -> Window:
        """Cut the window round a scene's region."""
        picture = scene.background
        box = crop_box(scene.region.box, picture.size, context, at_least)
        was = picture.rgb(box)
        alpha = np.zeros(was.shape[:2], np.float32)
        inner = scene.region.box.shifted(-box.x, -box.y)
        alpha[inner.slices] = scene.region.mask
        clean = was if scene.clean is None else scene.clean.rgb(box)
        pasted, under = was, None
        if scene.layer is not None:
            pasted = was.copy()
            place = scene.layer.box.shifted(-box.x, -box.y).slices
            cover = scene.layer.alpha[..., None]
            below = picture.alpha(box)
            if below is None:
                pasted[place] = scene.layer.rgb * cover + was[place] * (1 - cover)
            else:
                # Over a see-through background: Porter and Duff's "over", not premultiplied.
                rest = below[place][..., None] * (1 - cover)
                total = np.maximum(cover + rest, 1e-6)
                pasted[place] = (scene.layer.rgb * cover + was[place] * rest) / total
                under = below.copy()
                under[place] = (cover + rest)[..., 0]
        concept = None if scene.layer is None else scene.layer.concept
        return cls(box, clean, pasted, alpha, was, under, concept)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in background pixels."""
        return self.box.height, self.box.width

    def paste_mask(self) -> NDArray[np.bool_]:
        """Where the subject was laid over the background: bool (h, w)."""
        changed: NDArray[np.bool_] = (self.pasted != self.was).any(-1)
        return changed if self.under is None else changed | (self.alpha > 0)

    def tensor(self, name: str, size: tuple[int, int]) -> Tensor:
        """`clean` or `pasted` for the model: (1, 3, height, width) in [-1, 1], cached."""
        import torch

        key = (name, *size)
        if key not in self.cache:
            image = np.clip(resize(getattr(self, name), size), 0, 1)
            tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
            self.cache[key] = tensor * 2 - 1
        return self.cache[key]

    def mask(self, size: tuple[int, int], grow: float = 0.0) -> Tensor:
        """The binary region mask (1, 1, height, width); `grow` dilates it, in window sizes."""
        import torch

        hard = (resize(self.region(grow), size) > 0.5).astype(np.float32)
        if not hard.any():
            # A region thinner than half a model pixel is still to be worked on.
            hard = (resize(self.alpha, size) > 0).astype(np.float32)
        return torch.from_numpy(hard)[None, None]

    def region(self, grow: float = 0.0) -> Image:
        """alpha > 0.5, dilated by `grow` of the window's longer side: float32 (h, w), 0 or 1."""
        hard = (self.alpha > 0.5).astype(np.float32)
        if not hard.any():
            hard = (self.alpha > 0).astype(np.float32)
        radius = round(grow * max(self.shape))
        if radius < 1:
            return hard
        return (distance(hard > 0) <= radius).astype(np.float32)

    def rim(self, share: float, start: float = 0.0) -> Image:
        """A weight (h, w): 1 on the region grown by `start`, falling to 0 over `share` beyond."""
        return soft_rim(self.region(start) > 0, share * max(self.shape))


def stitch(picture: Picture, window: Window, painted: Painted) -> tuple[Picture, Box, Image]:
    """Write a method's result into a copy of the background.

    Only pixels inside the method's mask whose colour it changed are written. Returns the new
    picture, the mask's bounding box and the mask (h, w) inside that box, both in
    background pixels; where nothing changed, a box of the region's first pixel with an empty mask.
    """
    inner = bounds(painted.mask)
    if inner is None:
        box = Box(window.box.x, window.box.y, 1, 1)
        return picture, box, np.zeros((1, 1), np.float32)
    box = inner.shifted(window.box.x, window.box.y)
    rgb = np.clip(painted.rgb[inner.slices], 0, 1)
    mask = painted.mask[inner.slices]
    changed = mask & (np.abs(rgb - window.was[inner.slices]) > 1e-6).any(-1)
    samples = picture.samples.copy()
    target = samples[box.slices]
    new = picture.native(np.ascontiguousarray(rgb))
    if picture.mode in ("LA", "RGBA"):
        colours = target[..., :-1]
        colours[changed] = new.reshape(*changed.shape, -1)[changed]
        if window.under is not None:
            top = float(np.iinfo(samples.dtype).max)
            opacity = np.round(window.under[inner.slices] * top).astype(samples.dtype)
            target[..., -1][mask] = np.maximum(target[..., -1], opacity)[mask]
    else:
        target[changed] = new[changed]
    return picture.with_samples(samples), box, mask.astype(np.float32)
