"""Files, PIL images and arrays in, pictures out, and back: the bottom of everything else.

Reading is here, the picture itself in picture.py, writing in output.py.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from inlay.errors import InputError
from inlay.pictures.arrays import luma
from inlay.pictures.box import Box
from inlay.pictures.colour import conversion
from inlay.pictures.decode import (
    Decoded,
    UnsupportedError,
    check_size,
    decode,
    from_pil,
)
from inlay.pictures.files import read_file, shown
from inlay.pictures.picture import Picture, kind_of
from inlay.pictures.write import check_output, read_record, write_picture

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "Picture",
    "Source",
    "bands",
    "check_output",
    "read_mask",
    "read_picture",
    "read_record",
    "write_picture",
]

DEFAULT_MAX_PIXELS = 100_000_000
Source: TypeAlias = str | os.PathLike[str] | PilImage.Image | NDArray[Any]

# Pixels of such a band.
_BAND = 1 << 18

_log = logging.getLogger("inlay")


def read_picture(
    source: Source, *, role: str = "picture", max_pixels: int = DEFAULT_MAX_PIXELS
) -> Picture:
    """Read a file (told by its content, not its suffix), a PIL image or an array.

    Arrays are uint8 of shape H x W, H x W x 3 or H x W x 4 (with alpha). EXIF orientation is
    applied; palettes and 1-bit pictures are expanded; of several pictures the first one is taken.
    Files above 1 GiB and pictures above `max_pixels` are refused before anything is decoded.
    `role` is what messages call the picture. Raises InputError.
    """
    if isinstance(max_pixels, bool) or not isinstance(max_pixels, int) or max_pixels < 1:
        raise InputError(f"max_pixels is {max_pixels!r}; expected a whole number of at least 1.")
    path = None
    if isinstance(source, (str, os.PathLike)):
        name, path = f"{role} {shown(source)}", os.fsdecode(source)
        data = read_file(path, name)
        digest = hashlib.sha256(data).hexdigest()
        decoded = decode(data, name, max_pixels)
        del data
    elif isinstance(source, PilImage.Image):
        name = f"the {role}"
        decoded = _from_image(source, name, max_pixels)
        digest = _digest(decoded.samples)
    elif isinstance(source, np.ndarray):
        name = f"the {role}"
        decoded = _from_array(source, name, max_pixels)
        digest = _digest(decoded.samples)
    else:
        raise InputError(
            f"the {role} is of type {type(source).__name__}; expected a path, a PIL image or a "
            "uint8 array."
        )
    decoded = _with_usable_profile(decoded, name)
    decoded.samples.setflags(write=False)
    return Picture(decoded.samples, decoded.mode, decoded.icc, name, digest, path)


def read_mask(
    source: Source,
    *,
    size: tuple[int, int] | None,
    role: str = "mask",
    white: str = "where the object is",
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> NDArray[np.float32]:
    """Read a mask as float32 (h, w) in [0, 1]; white (or True) is 1, colours count by luma.

    Where the picture has an alpha that is not opaque all over, the alpha is the mask. `size` is the
    (width, height) that it must have, or None; `white` ends the message about one that is all 0.
    Raises InputError.
    """
    if isinstance(source, np.ndarray) and source.dtype == np.bool_:
        source = source.astype(np.uint8) * 255
    picture = read_picture(source, role=role, max_pixels=max_pixels)
    if size is not None and picture.size != tuple(size):
        raise InputError(
            f"{picture.name} is {picture.width} x {picture.height} pixels; expected "
            f"{size[0]} x {size[1]} as the picture."
        )
    # A mask's levels are data, not colours: its profile says nothing about them.
    picture = replace(picture, icc=None)
    mask = picture.alpha()
    if mask is None or not (mask < 1).any():
        if picture.mode in ("L", "LA"):
            levels = picture.samples if picture.mode == "L" else picture.samples[..., 0]
            mask = levels.astype(np.float32)
            mask /= np.float32(2**picture.depth - 1)
        else:
            mask = np.empty((picture.height, picture.width), np.float32)
            for rows in bands(picture):
                mask[rows.slices] = np.clip(luma(picture.rgb(rows)), 0, 1)
    if not (mask > 0).any():
        raise InputError(f"{picture.name} is empty; expected white {white}.")
    return mask


def bands(picture: Picture) -> Iterator[Box]:
    """The picture in bands of whole rows, so that floats of all of it are never needed at once."""
    step = max(1, _BAND // picture.width)
    for top in range(0, picture.height, step):
        yield Box(0, top, picture.width, min(step, picture.height - top))


def _digest(samples: NDArray[Any]) -> str:
    return hashlib.sha256(samples.data).hexdigest()


def _from_image(image: PilImage.Image, name: str, max_pixels: int) -> Decoded:
    """Samples of a PIL image, which may still be an unread file."""
    check_size(image.size, name, max_pixels)
    try:
        image.load()
        return from_pil(image)
    except UnsupportedError as error:
        raise InputError(
            f"{name} holds {error}; expected a PIL image of mode L, LA, P, RGB, RGBA or CMYK."
        ) from None
    except MemoryError:
        raise InputError(f"{name} does not fit into memory; expected a smaller picture.") from None
    except Exception:
        raise InputError(f"{name} cannot be decoded; expected a whole PIL image.") from None


def _from_array(array: NDArray[Any], name: str, max_pixels: int) -> Decoded:
    mode = {(2, 0): "L", (3, 3): "RGB", (3, 4): "RGBA"}.get(
        (array.ndim, array.shape[-1] if array.ndim == 3 else 0)
    )
    if array.dtype != np.uint8 or mode is None:
        raise InputError(
            f"{name} is an array of {array.dtype} with shape {array.shape}; expected uint8 of "
            "shape H x W, H x W x 3 or H x W x 4."
        )
    check_size((array.shape[1], array.shape[0]), name, max_pixels)
    return Decoded(np.array(array, order="C", subok=False), mode)


def _with_usable_profile(decoded: Decoded, name: str) -> Decoded:
    """The same where its profile can be used; else without it, and the log says so."""
    if decoded.icc is None:
        return decoded
    kind = kind_of(decoded.mode)
    try:
        found = conversion(decoded.icc, kind)
    except ValueError as error:
        _log.info("%s: its colour profile is passed over (%s)", name, error)
        return replace(decoded, icc=None)
    if found.two_way:
        return decoded
    # A scanner's profile has no way back, so nothing could be written in it: leave it at once.
    _log.info("%s: its colour profile only goes one way; it is converted to sRGB", name)
    alpha = decoded.samples[..., -1:] if decoded.mode in ("LA", "RGBA") else None
    colours = decoded.samples if alpha is None else decoded.samples[..., :-1]
    if kind == "L" and colours.ndim == 3:
        colours = colours[..., 0]
    plain = conversion(None, "RGB")
    rgb = plain.from_srgb(found.to_srgb(colours), 8 * decoded.samples.dtype.itemsize)
    if alpha is None:
        return Decoded(rgb, "RGB")
    return Decoded(np.concatenate([rgb, alpha], axis=-1), "RGBA")
