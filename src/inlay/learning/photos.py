"""Photos of one object, and where it is in each."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from inlay.errors import InputError
from inlay.pictures.arrays import FAINT, bounds, resize, to_uint8
from inlay.pictures.box import Box
from inlay.pictures.picture import Picture
from inlay.pictures.read import DEFAULT_MAX_PIXELS, Source, read_mask, read_picture

__all__ = ["MOST_PHOTOS", "Found", "find_objects", "portrait"]

Image = NDArray[np.float32]

MOST_PHOTOS = 10

# A side of an object below this has nothing to be learnt from.
_SMALLEST_SIDE = 8
# Objects are looked for in pictures of at most so many pixels on the longer side.
_SEARCHED_SIDE = 256
# The longer side and the quality of an object's picture in its file.
_PORTRAIT_SIDE = 512
_PORTRAIT_QUALITY = 90


@dataclass(frozen=True, eq=False)
class Found:
    """A photo, the object's box in it and, where it is known, its mask (h, w) of 0 and 1."""

    picture: Picture
    box: Box
    shape: Image | None


def find_objects(
    photos: Sequence[Source],
    *,
    boxes: Sequence[Box] = (),
    masks: Sequence[Source] = (),
    cut: str | None = None,
    shapes: bool = False,
    trust_remote_code: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> list[Found]:
    """Read 1 to 10 photos of one object and find it in each.

    Where it is comes from `boxes` or `masks`, one for each photo, else from a photo's alpha, else
    from a cutout (`cut` as inlay.cutout.cut's `by`). `shapes` asks for its shape in a box, too.
    Raises InputError for a number of photos, boxes or masks that is not right, a photo that cannot
    be read, and an object that is not there.
    """
    if not 1 <= len(photos) <= MOST_PHOTOS:
        raise InputError(f"there are {len(photos)} photos; expected 1 to {MOST_PHOTOS}.")
    if boxes and masks:
        raise InputError("boxes and masks are given; leave out one of the two.")
    for given, what in ((boxes, "boxes"), (masks, "masks")):
        if given and len(given) != len(photos):
            raise InputError(
                f"there are {len(given)} {what} for {len(photos)} photos; expected one for each, "
                "in their order."
            )
    objects = []
    for number, photo in enumerate(photos):
        picture = read_picture(photo, role="photo", max_pixels=max_pixels)
        box = boxes[number] if boxes else None
        mask = masks[number] if masks else None
        search = _Search(box, mask, cut, shapes, trust_remote_code, max_pixels)
        place, shape = search.find(picture)
        if min(place.width, place.height) < _SMALLEST_SIDE:
            raise InputError(
                f"the object in {picture.name} is {place.width} x {place.height} pixels; expected "
                f"at least {_SMALLEST_SIDE} x {_SMALLEST_SIDE}."
            )
        objects.append(Found(picture, place, shape))
    return objects


def portrait(found: Found) -> str:
    """The object's box as a small picture in base64: WebP, at most 512 pixels on the longer side.

    RGBA with the object's shape as alpha where that is known, else RGB.
    """
    box = found.box
    image = PILImage.fromarray(to_uint8(found.picture.rgb(box)))
    if found.shape is not None:
        image.putalpha(PILImage.fromarray(to_uint8(found.shape[box.slices])))
    image.thumbnail((_PORTRAIT_SIDE, _PORTRAIT_SIDE), PILImage.Resampling.LANCZOS)
    file = BytesIO()
    image.save(file, "WEBP", quality=_PORTRAIT_QUALITY)
    return base64.b64encode(file.getvalue()).decode("ascii")


@dataclass(frozen=True)
class _Search:
    """How the object of one photo is found."""

    box: Box | None
    mask: Source | None
    cut: str | None
    wants_shape: bool
    trust_remote_code: bool
    max_pixels: int

    def find(self, picture: Picture) -> tuple[Box, Image | None]:
        """The object's box in a photo and, where it is known, its mask (h, w) of 0 and 1."""
        inside = None
        if self.box is not None:
            inside = self.box.intersect(Box.of_size(picture.size))
            if inside is None:
                raise InputError(
                    f"the box {self.box.x},{self.box.y},{self.box.width},{self.box.height} lies "
                    f"outside {picture.name}, which is {picture.width} x {picture.height} pixels."
                )
            if not self.wants_shape:
                return inside, None
        alpha = self._mask(picture, inside)
        hard = (alpha > 0.5).astype(np.float32)
        if not hard.any():
            hard = (alpha > FAINT).astype(np.float32)
        place = bounds(hard)
        if place is None:
            raise InputError(f"no object was found in {picture.name}; give its box or its mask.")
        return inside or place, hard

    def _mask(self, picture: Picture, box: Box | None) -> Image:
        if self.mask is not None:
            return read_mask(self.mask, size=picture.size, max_pixels=self.max_pixels)
        opacity = picture.alpha()
        clear = opacity is not None and bool((opacity < 1).any())
        if box is None and opacity is not None and (clear or self.cut == "alpha"):
            return opacity
        if self.cut == "alpha":
            raise InputError(
                f"{picture.name} has no transparency to take the object from; give a mask or a box."
            )
        return self._cut(picture, box)

    def _cut(self, picture: Picture, box: Box | None) -> Image:
        """The mask of a cutout, looked for in a smaller picture where the photo is large."""
        from inlay.scene.cutout import cut_rgba

        scale = min(1.0, _SEARCHED_SIDE / max(picture.size))
        image = picture.to_pil().convert("RGB")
        small = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        near = None
        if box is not None:
            edges = (box.x, box.y, box.width, box.height)
            near = Box(*(max(round(edge * scale), int(i > 1)) for i, edge in enumerate(edges)))
        by = self.cut or ("box" if near is not None else "grabcut")
        try:
            found = cut_rgba(
                image.resize(small), by=by, box=near, trust_remote_code=self.trust_remote_code
            )
        except InputError:
            if by not in ("box", "grabcut"):
                raise
            raise InputError(
                f"no object stands out in {picture.name}; give its box or its mask."
            ) from None
        alpha = np.asarray(found, np.float32)[..., 3] / np.float32(255)
        return resize(alpha, (picture.height, picture.width))
