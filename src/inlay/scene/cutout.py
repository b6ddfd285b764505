"""Cutting a subject out of its picture: by alpha, by mask, by a box, or by a segmenter.

A hard outline becomes a soft one with a closed-form matte, and the subject's own colour is
estimated where the old background shines through, so that no halo of it comes along.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from inlay.errors import InputError
from inlay.pictures.arrays import FAINT, bounds, resize, to_uint8
from inlay.pictures.box import Box
from inlay.pictures.picture import Picture
from inlay.pictures.read import DEFAULT_MAX_PIXELS, Source, read_mask, read_picture
from inlay.scene.grabcut import grabcut, without_specks
from inlay.scene.matte import colours, matte

if TYPE_CHECKING:
    from PIL import Image as PILImage

__all__ = ["Cutout", "cut", "cut_rgba"]

Image = NDArray[np.float32]

_log = logging.getLogger("inlay")

# GrabCut works on a crop of at most so many pixels, with so many rounds.
_GRABCUT_PIXELS = 200_000
_GRABCUT_ROUNDS = 5
# Without a box, the outer part of each side that is taken to be background.
_INSET = 0.04
# Pieces below this share of the largest are taken to be noise.
_SMALLEST_PIECE = 0.05
# Gaps wholly inside the subject, below this share of it, are reflections rather than openings.
_LARGEST_PINHOLE = 0.06


@dataclass(frozen=True, eq=False)
class Cutout:
    """A subject without its background, cropped to where it is not transparent.

    rgb (h, w, 3) is the subject's own colour even where the old background shone through. concept
    is the file of a concept, whose picture is yet to be made: then all of it is grey.
    """

    rgb: Image
    alpha: Image
    name: str
    sha256: str
    concept: Path | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.alpha.shape[1], self.alpha.shape[0]


def cut(
    source: Source,
    *,
    by: str | None = None,
    mask: Source | None = None,
    box: Box | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    trust_remote_code: bool = False,
) -> Cutout:
    """Cut a subject out of its picture.

    by: "alpha" takes the picture's transparency; "mask" takes `mask` (white is the subject; a
    soft one is the alpha itself, a hard one gets a matte along its edge); "box" and "grabcut"
    look for the subject inside `box`, or without one inside the picture less a narrow rim
    (Rother, Kolmogorov and Blake, GrabCut, 2004); anything else is the hub id or folder of a
    segmentation model. Left out: mask where one is given, alpha where the picture has some, box
    where one is given, else grabcut. The alpha of a matte is closed-form matting (Levin,
    Lischinski and Weiss 2008), colours are multi-level foreground estimation (Germer et al.
    2020). Raises InputError where nothing is found or the inputs do not fit.
    """
    rgb, alpha, _, picture = _cut(source, by, mask, box, max_pixels, trust_remote_code)
    return Cutout(rgb, alpha, picture.name, picture.sha256)


def cut_rgba(
    source: Source,
    *,
    by: str | None = None,
    mask: Source | None = None,
    box: Box | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    trust_remote_code: bool = False,
) -> PILImage.Image:
    """As `cut`, but an 8-bit RGBA picture of the source's own size, clear round the subject."""
    from PIL import Image as PILImage

    rgb, alpha, place, picture = _cut(source, by, mask, box, max_pixels, trust_remote_code)
    whole = np.zeros((picture.height, picture.width, 4), np.uint8)
    levels = to_uint8(np.dstack([rgb, alpha]))
    levels[alpha <= FAINT] = 0
    whole[place.slices] = levels
    return PILImage.fromarray(whole, "RGBA")


def _cut(
    source: Source,
    by: str | None,
    mask: Source | None,
    box: Box | None,
    max_pixels: int,
    trust_remote_code: bool,
) -> tuple[Image, Image, Box, Picture]:
    """Colours and alpha cropped to the subject, where that is, and the picture."""
    picture = read_picture(source, role="subject", max_pixels=max_pixels)
    opacity = picture.alpha()
    if by is None:
        clear = opacity is not None and bool((opacity < 1).any())
        by = "mask" if mask is not None else "alpha" if clear else "box" if box else "grabcut"
    if mask is not None and by != "mask":
        raise InputError(f"a mask is given but the cut is by {by}; leave out one of the two.")
    box = None if box is None else picture.clip(box, "cut box")
    if by == "alpha":
        return _by_alpha(picture, opacity, box)
    rgb = picture.rgb()
    if by == "mask":
        if mask is None:
            raise InputError("the cut is by mask but there is no mask; give one.")
        outline = read_mask(mask, size=picture.size, role="mask", max_pixels=max_pixels)
        if box is not None:
            outline = _inside(outline, box)
        if bounds(outline) is None:
            raise InputError("the mask is empty; paint the subject in white.")
        alpha = outline if _is_soft(outline) else matte(rgb, outline > 0.5, "thin")
    elif by in ("box", "grabcut"):
        if by == "box" and box is None:
            raise InputError("the cut is by box but there is no box; give one as X,Y,W,H.")
        alpha = matte(rgb, _grabcut(rgb, box, picture.name), "wide")
    else:
        from inlay.scene.segment import segment

        found = segment(rgb, by, box=box, trust_remote_code=trust_remote_code)
        alpha = found.mask if found.soft else matte(rgb, found.mask > 0.5, "wide", found.reach)
    if opacity is not None:
        alpha = alpha * opacity
    place = bounds(alpha)
    if place is None:
        raise InputError(f"no subject was found in {picture.name}; give a mask.")
    return colours(rgb, alpha, place), np.ascontiguousarray(alpha[place.slices]), place, picture


def _by_alpha(
    picture: Picture, opacity: Image | None, box: Box | None
) -> tuple[Image, Image, Box, Picture]:
    """The picture's own transparency; its colours are the subject's already."""
    if opacity is None:
        raise InputError(f"{picture.name} has no transparency to cut by; give a mask or a box.")
    alpha = opacity if box is None else _inside(opacity, box)
    place = bounds(alpha)
    if place is None:
        raise InputError(
            f"{picture.name} is fully transparent; expected a subject with some opacity."
        )
    return picture.rgb(place), np.ascontiguousarray(alpha[place.slices]), place, picture


def _inside(mask: Image, box: Box) -> Image:
    """The mask with nothing left outside a box."""
    kept = np.zeros_like(mask)
    kept[box.slices] = mask[box.slices]
    return kept


def _is_soft(mask: Image) -> bool:
    """Whether a mask has an edge of its own: many in-between values for the edge's length.

    An antialiased edge has about one a pixel of length; a hard one that went through JPEG has
    values near 0 and 1 only.
    """
    hard = mask > 0.5
    edge = np.count_nonzero(hard[:, 1:] != hard[:, :-1]) + np.count_nonzero(hard[1:] != hard[:-1])
    between = np.count_nonzero((mask > 0.1) & (mask < 0.9))
    return not hard.any() or bool(between > 0.25 * edge)


def _grabcut(rgb: Image, box: Box | None, name: str) -> NDArray[np.bool_]:
    """The subject inside a box (h, w), by GrabCut on a crop round it."""
    import cv2

    height, width = rgb.shape[:2]
    whole = Box.of_size((width, height))
    inset = max(1, round(_INSET * min(width, height)))
    room = Box(inset, inset, max(width - 2 * inset, 1), max(height - 2 * inset, 1))
    if box is None:
        box = room
        _log.info("no box and no mask: looking for the subject in all of %s", name)
    elif box == whole:
        box = room
    # What lies outside the box is the sample of the background, so some of it must be seen.
    crop = box.grown(max(box.width, box.height) // 3 + 2).intersect(whole) or whole
    scale = min(1.0, (_GRABCUT_PIXELS / crop.area) ** 0.5)
    size = max(1, round(crop.height * scale)), max(1, round(crop.width * scale))
    labels = np.full(size, cv2.GC_BGD, np.uint8)
    left, top = (round(v * scale) for v in (box.x - crop.x, box.y - crop.y))
    right, bottom = (round(v * scale) for v in (box.right - crop.x, box.bottom - crop.y))
    labels[top : max(bottom, top + 1), left : max(right, left + 1)] = cv2.GC_PR_FGD
    nothing = InputError(f"no subject stands out inside the box in {name}; give a mask instead.")
    if not (labels == cv2.GC_BGD).any() or min(box.width, box.height) < 4:
        raise nothing
    found = grabcut(resize(to_uint8(rgb[crop.slices]), size), labels, _GRABCUT_ROUNDS)
    if found is None:
        raise nothing
    found = without_specks(found, _SMALLEST_PIECE, _LARGEST_PINHOLE)
    if found.sum() < 0.005 * max((right - left) * (bottom - top), 1):
        raise nothing
    shape = crop.width, crop.height
    large = cv2.resize(found.astype(np.float32), shape, interpolation=cv2.INTER_LINEAR) > 0.5
    mask = np.zeros((height, width), np.bool_)
    mask[crop.slices] = large
    return mask
