"""The only place where pixels are written into a background: subjects, a window's result.

Colours, in the background's space and never multiplied with alpha, alpha and masks are float32 in
[0, 1]. Outside the pixels that a method may change, the background's samples are copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inlay.errors import InputError
from inlay.pictures.arrays import (
    Box,
    Image,
    Mask,
    bounds,
    distance,
    extend,
    resize,
    rotate,
    row_bands,
    soft_rim,
    softness,
)
from inlay.pictures.colour import convert
from inlay.scene.subject import Cutout, Seed, Subject

if TYPE_CHECKING:
    from torch import Tensor

    from inlay.pictures.picture import Picture

# A mask whose edge is wider than so many pixels is soft.
_SOFT = 1.5
# The pixels of the picture that a removal changes beyond its mask: so many, and a rim.
GROWN, FADE = 3, 5


@dataclass(frozen=True, eq=False)
class Region:
    """What is to change: a box inside the background and a mask (h, w) over it."""

    box: Box
    mask: Image

    @classmethod
    def of(cls, mask: Image) -> Region:
        """The region of a whole picture's mask (height, width); raises InputError for none."""
        box = bounds(mask)
        if box is None:
            raise InputError("the mask is empty; paint what is to change in white.")
        return cls(box, np.clip(mask[box.slices], 0, 1))

    def rest(self, size: tuple[int, int]) -> Region:
        """The whole of a picture of (width, height) less the region."""
        mask = np.ones((size[1], size[0]), np.float32)
        mask[self.box.slices] -= self.mask
        if not (mask > 0.5).any():
            raise InputError(
                "the subject covers the whole picture; no background is left to change."
            )
        return Region(Box.of_size(size), np.clip(mask, 0, 1))


@dataclass(frozen=True, eq=False)
class Layer:
    """A cutout as it lies in a background: resampled, turned, clipped to the picture."""

    box: Box
    rgb: Image
    alpha: Image
    concept: Path | None = None

    @property
    def region(self) -> Region:
        return Region(self.box, self.alpha)


@dataclass(frozen=True, eq=False)
class Scene:
    """What is to happen in a background: where it may change, and what is laid over it.

    clean is the picture before something was pasted into it, where the user has it. inverted: all
    but the region is to change.
    """

    region: Region
    layer: Layer | None = None
    clean: Picture | None = None
    inverted: bool = False


def place(cutout: Cutout, size: tuple[int, int], subject: Subject, seed: Seed = 0) -> Layer:
    """Lay a subject's cut-out over a background of (width, height), cropped to what can be seen.

    Resampling is done on colours multiplied with alpha (Porter and Duff 1984), so no colour of
    transparent pixels bleeds in. Raises InputError where nothing of the subject lies inside, or
    where its size would be below one pixel or beyond reason.
    """
    new, box = subject.outline(cutout.size, size, seed)
    paint = np.dstack([cutout.rgb * cutout.alpha[..., None], cutout.alpha]).astype(np.float32)
    if subject.flip:
        paint = paint[:, ::-1]
    paint = rotate(resize(paint, new[::-1]), subject.rotate, (box.width, box.height))
    inside = box.intersect(Box.of_size(size))
    if inside is not None:
        paint = paint[inside.shifted(-box.x, -box.y).slices]
    seen = None if inside is None else bounds(paint[..., 3])
    if inside is None or seen is None:
        what = f"at {subject.at[0]:g},{subject.at[1]:g}" if subject.at else "the place"
        if subject.box is not None:
            what = "box " + ",".join(str(v) for v in subject.box.as_dict().values())
        raise InputError(
            f"{what} puts the subject wholly outside the background, "
            f"which is {size[0]} x {size[1]} pixels."
        )
    paint = paint[seen.slices]
    alpha = paint[..., 3]
    # Cubic resampling overshoots colour and alpha alike, so their ratio is taken first.
    rgb = np.clip(paint[..., :3] / np.maximum(alpha, 1e-4)[..., None], 0, 1)
    return Layer(
        seen.shifted(inside.x, inside.y),
        np.ascontiguousarray(rgb, np.float32),
        np.ascontiguousarray(np.clip(alpha, 0, 1), np.float32),
        cutout.concept,
    )


def merge(layers: Sequence[Layer]) -> Layer:
    """Several layers as one, later ones over earlier ones (Porter and Duff 1984, "over")."""
    whole = reduce(Box.hull, (layer.box for layer in layers))
    rgb = np.zeros((whole.height, whole.width, 3), np.float32)
    alpha = np.zeros((whole.height, whole.width), np.float32)
    for layer in layers:
        here = layer.box.shifted(-whole.x, -whole.y).slices
        over, below = layer.alpha, alpha[here]
        rest = below * (1 - over)
        total = over + rest
        mixed = layer.rgb * over[..., None] + rgb[here] * rest[..., None]
        mixed /= np.maximum(total, 1e-6)[..., None]
        # Where only one of the two is, its colour stays as it is to the last bit.
        mixed = np.where((rest == 0)[..., None], layer.rgb, mixed)
        rgb[here] = np.where((over == 0)[..., None], rgb[here], mixed)
        alpha[here] = total
    return Layer(whole, rgb, alpha)


@dataclass(frozen=True)
class Painted:
    """What a method made of its window, at the window's own resolution.

    rgb (h, w, 3) is in the window's space; mask is bool (h, w): the only pixels that are written
    into the background. stages are what it had made on the way, by name; they are read once.
    """

    rgb: Image
    mask: Mask
    stages: Iterable[tuple[str, Painted]] = ()


def crop_box(region: Box, size: tuple[int, int], context: float, at_least: int = 1) -> Box:
    """The box that a method gets to see round a region of a picture of (width, height).

    A square of the region's longer side and `context` times it on every side, at least `at_least`
    pixels wide, moved, and only then cut, to lie inside the picture.
    """
    side = max(region.width, region.height)
    side = max(math.ceil(side * (1 + 2 * context)), at_least)
    width, height = min(side, size[0]), min(side, size[1])
    x = region.x + region.width // 2 - width // 2
    y = region.y + region.height // 2 - height // 2
    return Box(min(max(x, 0), size[0] - width), min(max(y, 0), size[1] - height), width, height)


def to_tensor(image: Image, size: tuple[int, int], space: bytes | None = None) -> Tensor:
    """A picture (h, w, 3) in a profile's space as models see it: sRGB, (1, 3, H, W) in [-1, 1]."""
    import torch

    small = np.clip(resize(image, size), 0, 1)
    if space is not None:
        small = convert(small, space, None)
    return torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)))[None] * 2 - 1


@dataclass(eq=False)
class Window:
    """What a method receives.

    clean and pasted are float32 (h, w, 3) in [0, 1] at the background's own resolution and in its
    space, whose profile is `space` (None is sRGB): the picture as it was, and with the subject over
    it (the same where nothing is pasted by us).
    alpha is float32 (h, w): the subject's alpha, or the mask of what is to change.
    `was` is the background's crop before anything, which `stitch` compares with; where nothing is
    seen of it, its colour is that of the nearest pixel that is. under is the alpha that a
    see-through background is to have. concept is the file of a concept that is to fill the alpha;
    there `pasted` is grey.
    """

    box: Box
    clean: Image
    pasted: Image
    alpha: Image
    was: Image
    under: Image | None = None
    concept: Path | None = None
    space: bytes | None = field(default=None, repr=False)
    cache: dict[tuple[str, int, int], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, picture: Picture, scene: Scene, context: float, at_least: int = 1) -> Window:
        """Cut the window round a scene's region out of its background."""
        region = scene.region.rest(picture.size) if scene.inverted else scene.region
        box = crop_box(region.box, picture.size, context, at_least)
        was, under = picture.colours(box), picture.alpha(box)
        alpha = np.zeros(was.shape[:2], np.float32)
        alpha[region.box.shifted(-box.x, -box.y).slices] = region.mask
        layer = scene.layer
        if under is not None:
            # What is to go lends its colour only where there is no other.
            rest = (under > 0) & (alpha == 0) if layer is None else under > 0
            shown = extend(was, rest if rest.any() else under > 0)
            was[under == 0] = shown[under == 0]
        clean = was
        if (before := scene.clean) is not None:
            clean = convert(before.colours(box), before.space, picture.space)
            if (opacity := before.alpha(box)) is not None:
                clean = extend(clean, opacity > 0)
        if layer is None:
            return cls(box, clean, was, alpha, was, under, space=picture.space)
        pasted, cover = was.copy(), layer.alpha[..., None]
        place = layer.box.shifted(-box.x, -box.y).slices
        # Porter and Duff's "over", not premultiplied.
        rest = 1 - cover if under is None else under[place][..., None] * (1 - cover)
        pasted[place] = layer.rgb * cover + was[place] * rest
        if under is not None:
            under[place] = (cover + rest)[..., 0]
            pasted[place] /= np.maximum(cover + rest, 1e-6)
        return cls(box, clean, pasted, alpha, was, under, layer.concept, picture.space)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in background pixels."""
        return self.box.height, self.box.width

    @cached_property
    def soft(self) -> bool:
        """Whether alpha has levels of its own, in whose measure things change."""
        return softness(self.alpha) > _SOFT

    def soften(self, rgb: Image) -> Image:
        """A result (h, w, 3) as far as a soft mask lets it through; a subject's alpha, in `pasted`
        already, lets through all.
        """
        through = self.soft and self.pasted is self.was
        return self.was + self.alpha[..., None] * (rgb - self.was) if through else rgb

    def paste_mask(self) -> Mask:
        """Where the subject was laid over the background: bool (h, w)."""
        changed: Mask = (self.pasted != self.was).any(-1)
        return changed if self.under is None else changed | (self.alpha > 0)

    def tensor(self, name: str, size: tuple[int, int]) -> Tensor:
        """`clean` or `pasted` for the model: (1, 3, height, width) in [-1, 1], cached."""
        key = (name, *size)
        if key not in self.cache:
            self.cache[key] = to_tensor(getattr(self, name), size, self.space)
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
        """alpha > 0.5, or all of a soft mask, dilated by `grow` window sizes: (h, w), 0 or 1."""
        hard = (self.alpha > 0.5).astype(np.float32)
        if not hard.any() or (self.soft and self.pasted is self.was):
            hard = (self.alpha > 0).astype(np.float32)
        radius = round(grow * max(self.shape))
        return hard if radius < 1 else (distance(hard > 0) <= radius).astype(np.float32)

    def region_box(self) -> Box:
        """The smallest box round the region, in the window's pixels."""
        box = bounds(self.region())
        assert box is not None
        return box

    def rim(self, share: float, start: float = 0.0) -> Image:
        """A weight (h, w): 1 on the region grown by `start`, falling to 0 over `share` beyond."""
        return soft_rim(self.region(start) > 0, share * max(self.shape))


def stitch(picture: Picture, window: Window, painted: Painted) -> tuple[Picture, Box, Image]:
    """Write a method's result into a copy of the background.

    Returns the picture, the mask's bounding box and the mask (h, w) inside it; where nothing
    changed, a box of the region's first pixel with an empty mask. Raises InputError as `write`.
    """
    inner = bounds(painted.mask)
    if inner is None:
        return picture, Box(window.box.x, window.box.y, 1, 1), np.zeros((1, 1), np.float32)
    box, mask = inner.shifted(window.box.x, window.box.y), painted.mask[inner.slices]
    samples, under = picture.crop(box).copy(), window.under
    rgb, was = painted.rgb[inner.slices], window.was[inner.slices]
    for rows in row_bands(*mask.shape):
        seen = None if under is None else under[inner.slices][rows]
        write(picture, samples[rows], rgb[rows], was[rows], mask[rows], seen)
    return picture.patched(box, samples), box, mask.astype(np.float32)


def write(
    picture: Picture, samples: NDArray[Any], rgb: Image, was: Image, mask: Mask, under: Image | None
) -> None:
    """Write colours (h, w, 3) into samples (h, w, ...) of a picture, where a mask (h, w) lets them
    and they differ from what `was`; `under` is the alpha there that a see-through picture is to
    have. Raises InputError for colours that are not finite.
    """
    # Quicker: where a sum is finite, all of its numbers are.
    if not np.isfinite(rgb.sum()) and not np.isfinite(rgb[mask]).all():
        raise InputError("the method made colours that are no numbers; use milder settings.")
    rgb = np.clip(rgb, 0, 1)
    changed = mask & (np.abs(rgb - was) @ np.ones(3, np.float32) > 1e-6)
    own = samples.reshape(*mask.shape, -1)
    if under is not None:
        opacity = picture.levels(under)
        # What nobody could see is written where it is to be seen now, and nowhere else.
        changed = (changed | (mask & (own[..., -1] == 0))) & (opacity > 0)
        np.copyto(own[..., -1], opacity, where=mask)
        own = own[..., :-1]
    np.copyto(own, picture.native(rgb), where=changed[..., None])
