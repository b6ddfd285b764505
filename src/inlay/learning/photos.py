"""Photos of one object, and where it is in each."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import starmap, zip_longest

import numpy as np
from PIL import Image as PILImage

from inlay.errors import InputError
from inlay.pictures.arrays import FAINT, Box, Image, bounds, resize, to_uint8
from inlay.pictures.mask import read_mask
from inlay.pictures.picture import Picture
from inlay.pictures.read import DEFAULT_MAX_PIXELS, Source, read_picture
from inlay.scene.subject import cut

MOST_PHOTOS = 10

# A side of an object below this has nothing to be learnt from.
_SMALLEST_SIDE = 8
# Objects are looked for in pictures of at most so many pixels on the longer side.
_SEARCHED_SIDE = 256
# The longer side and the quality of an object's picture in its file.
_PORTRAIT_SIDE = 512
_PORTRAIT_QUALITY = 90


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo of an object and, where that is known, the object's box or its mask."""

    picture: Source
    box: Box | None = None
    mask: Source | None = None


@dataclass(frozen=True, eq=False)
class View:
    """A photo, the object's box in it and, where it is known, its mask (h, w) of 0 and 1."""

    picture: Picture
    box: Box
    shape: Image | None


def with_places(
    pictures: Sequence[Source], boxes: Sequence[Box] = (), masks: Sequence[Source] = ()
) -> list[Photo]:
    """Photos with boxes or masks in the same order, one for each, or with neither. Raises
    InputError for both, and for another number of them.
    """
    if {len(boxes), len(masks)} not in ({0}, {0, len(pictures)}):
        raise InputError(
            f"there are {len(boxes)} boxes and {len(masks)} masks for {len(pictures)} photos; "
            "expected one for each, in their order, or none, and not both kinds."
        )
    return list(starmap(Photo, zip_longest(pictures, boxes, masks)))


def find_views(
    photos: Sequence[Photo],
    by: str | None = None,
    trust_remote_code: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> list[View]:
    """Read 1 to 10 photos of one object and find it in each.

    Where it is comes from the photo's box or mask, else from its alpha, else from a cutout (`by`
    as of scene.subject.cut). Raises InputError for a number of photos that is not right, a
    photo that cannot be read, and an object that is not there.
    """
    if not 1 <= len(photos) <= MOST_PHOTOS:
        raise InputError(f"there are {len(photos)} photos; expected 1 to {MOST_PHOTOS}.")
    return [_find(photo, by, trust_remote_code, max_pixels) for photo in photos]


def portrait(view: View) -> str:
    """The object's box as a small picture in base64: WebP, at most 512 pixels on the longer side.
    RGBA with the object's own colours and a matte of its shape where that is known, else RGB.
    """
    box, picture, side = view.box, view.picture, max(view.box.width, view.box.height)
    scale = min(1.0, _PORTRAIT_SIDE / side)
    # A matte needs some of what is round the object.
    near = box.grown(side // 8 + 1).intersect(Box.of_size(picture.size)) or box
    size = max(1, round(near.width * scale)), max(1, round(near.height * scale))
    image = PILImage.fromarray(to_uint8(resize(picture.rgb(near), size[::-1])))
    if view.shape is not None:
        hard = resize(view.shape[near.slices], size[::-1]) > 0.5
        cutout = cut(image, mask=PILImage.fromarray(to_uint8(hard.astype(np.float32))))
        image.putalpha(0)
        levels = to_uint8(np.dstack([cutout.rgb, cutout.alpha]))
        assert cutout.place is not None
        image.paste(PILImage.fromarray(levels), (cutout.place.x, cutout.place.y))
    at = box.shifted(-near.x, -near.y)
    left, top, right, bottom = (round(scale * v) for v in (at.x, at.y, at.right, at.bottom))
    image = image.crop((left, top, right, bottom))
    file = BytesIO()
    image.save(file, "WEBP", quality=_PORTRAIT_QUALITY)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _find(photo: Photo, by: str | None, trust_remote_code: bool, max_pixels: int) -> View:
    """One photo's view, see find_views(); what of it is more than half the object is its shape."""
    picture, shape = read_picture(photo.picture, role="photo", max_pixels=max_pixels), None
    if photo.box is not None:
        place = picture.clip(photo.box, "box")
    else:
        if photo.mask is not None:
            alpha = read_mask(photo.mask, size=picture.size, max_pixels=max_pixels)
        elif (opacity := picture.alpha()) is not None and (opacity < 1).any():
            alpha = opacity
        elif by == "alpha":
            raise InputError(
                f"{picture.name} has no transparency to cut by; give its box or its mask."
            )
        else:
            alpha = _cutout(picture, by or "auto", trust_remote_code)
        hard = (alpha > 0.5).astype(np.float32)
        shape = hard if hard.any() else (alpha > FAINT).astype(np.float32)
        inside = bounds(shape)
        if inside is None:
            raise InputError(f"no object was found in {picture.name}; give its box or its mask.")
        place = inside
    if min(place.width, place.height) < _SMALLEST_SIDE:
        raise InputError(
            f"the object in {picture.name} is {place.width} x {place.height} pixels; expected "
            f"at least {_SMALLEST_SIDE} x {_SMALLEST_SIDE}."
        )
    return View(picture, place, shape)


def _cutout(picture: Picture, by: str, trust_remote_code: bool) -> Image:
    """The mask of a cutout, looked for in a smaller picture where the photo is large."""
    from inlay.scene.cutout import find_alpha

    scale = min(1.0, _SEARCHED_SIDE / max(picture.size))
    small = max(1, round(picture.height * scale)), max(1, round(picture.width * scale))
    rgb = np.clip(resize(picture.rgb(), small), 0, 1)
    found = find_alpha(picture.name, rgb, by, trust_remote_code=trust_remote_code)
    return resize(found, (picture.height, picture.width))
