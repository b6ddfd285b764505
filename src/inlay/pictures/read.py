"""Files, PIL images and arrays to pictures whose samples are as they are stored.

The size in the header is checked before anything is decoded, and whatever a decoder raises becomes
one InputError. PNG, JPEG, WebP, TIFF, BMP and GIF are told apart by their first bytes, not by name.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from inlay.errors import InputError
from inlay.pictures.arrays import from_levels, luma, upright
from inlay.pictures.decode import (
    UnsupportedError,
    deep_colour,
    deep_grey,
    is_whole,
)
from inlay.pictures.files import FORMATS, read_file, shown
from inlay.pictures.picture import Picture

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "Source",
    "decode",
    "read_mask",
    "read_picture",
    "read_record",
]

DEFAULT_MAX_PIXELS = 100_000_000
Source: TypeAlias = str | os.PathLike[str] | PilImage.Image | NDArray[Any]

_BITS, _ORIENTATION, _EXIF_IFD, _USER_COMMENT = 0x0102, 0x0112, 0x8769, 0x9286
_OPENERS: dict[bytes, type[ImageFile]] = {
    rb"\x89PNG\r\n\x1a\n": PngImageFile,
    rb"\xff\xd8\xff": JpegImageFile,
    rb"(?s)RIFF....WEBP": WebPImageFile,
    rb"II[*+]\0|MM\0[*+]": TiffImageFile,
    rb"BM": BmpImageFile,
    rb"GIF8[79]a": GifImageFile,
}

_log = logging.getLogger("inlay")
_limit_lock = threading.Lock()


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
    if isinstance(source, (str, os.PathLike)):
        name = f"{role} {shown(source)}"
        data = read_file(source, name)
        picture = decode(data, name, max_pixels)
        digest, path = hashlib.sha256(data).hexdigest(), os.fsdecode(source)
        del data
    elif isinstance(source, (PilImage.Image, np.ndarray)):
        load = _from_array if isinstance(source, np.ndarray) else _from_image
        picture = load(source, f"the {role}", max_pixels)  # type: ignore[arg-type]
        digest, path = hashlib.sha256(picture.samples.data).hexdigest(), None
    else:
        raise InputError(
            f"the {role} is of type {type(source).__name__}; expected a path, a PIL image or a "
            "uint8 array."
        )
    picture = replace(picture.with_usable_profile(), sha256=digest, path=path)
    picture.samples.setflags(write=False)
    return picture


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
            mask = from_levels(levels)
        else:
            mask = np.empty((picture.height, picture.width), np.float32)
            for rows in picture.bands():
                mask[rows.slices] = np.clip(luma(picture.rgb(rows)), 0, 1)
    if not (mask > 0).any():
        raise InputError(f"{picture.name} is empty; expected white {white}.")
    return mask


def read_record(path: str | os.PathLike[str]) -> str | None:
    """The JSON text that `write_picture` put into a picture, or None.

    Raises InputError where the file is no picture or cannot be read.
    """
    name = shown(path)
    image = _open_header(read_file(path, name), name, 1 << 31)
    text = image.info.get("inlay")
    if not isinstance(text, str):
        try:
            exif = image.getexif()
            # In TIFF it stands beside the other tags, where programs look as well.
            comment = exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT) or exif.get(_USER_COMMENT)
            text = _user_comment(comment, getattr(exif, "endian", None) or "<")
        except Exception:
            # A damaged EXIF block holds nothing that we wrote.
            return None
    # Cameras and other programs have comments of their own.
    return str(text) if text is not None and text.lstrip().startswith("{") else None


def _user_comment(value: object, byte_order: str) -> str | None:
    """The text of a UserComment ("<" or ">" as its EXIF block); None where it cannot be read."""
    if not isinstance(value, bytes):
        return None
    try:
        if value.startswith(b"UNICODE\0"):
            return value[8:].decode("utf-16-le" if byte_order == "<" else "utf-16-be")
        return value[8:].decode("ascii") if value.startswith(b"ASCII\0\0\0") else None
    except UnicodeDecodeError:
        return None


def decode(data: bytes, name: str, max_pixels: int) -> Picture:
    """Decode a file's bytes; the first picture where there are several. Raises InputError."""
    image = _open_header(data, name, max_pixels)
    kinds = "grey, palette, RGB, RGBA or CMYK of 8 or 16 bits"
    damage = f"is damaged or cut short; expected a whole {FORMATS} picture"
    with _one_sentence(name, kinds, damage):
        with _pillow_limit(image.size):
            # TIFF is turned upright by Pillow itself and loses the tag on the way; of the others
            # Pillow decodes all, and forgives damage, when asked for the tag before.
            tiff = _orientation(image) if isinstance(image, TiffImageFile) else None
            image.load()
        orientation = _orientation(image) if tiff is None else tiff
        if isinstance(image, JpegImageFile) and not is_whole(data, np.asarray(image)):
            raise EOFError
        if not isinstance(image, JpegImageFile) and _animated(image):
            _log.info("%s holds several pictures; the first one is used", name)
        deep = deep_colour(data, image, orientation, name) if _is_deep(data, image) else None
        return deep or _from_pil(image, name)


def _open_header(data: bytes, name: str, max_pixels: int) -> ImageFile:
    """Pillow's view of a file: the header is read and its size checked, nothing is decoded."""
    opener = next((kind for start, kind in _OPENERS.items() if re.match(start, data)), None)
    if opener is None:
        raise InputError(f"{name} is not a {FORMATS} picture; convert it to one of these.")
    damage = f"is damaged or of a kind that cannot be read; expected a whole {FORMATS} picture"
    with _one_sentence(name, "", damage):
        # Pillow's WebP reader makes its canvas on opening, so the size must be known before.
        size = _webp_size(data) if opener is WebPImageFile else (1, 1)
        _check_size(size, name, max_pixels)
        with _pillow_limit(size):
            image = opener(io.BytesIO(data))
    _check_size(image.size, name, max_pixels)
    return image


@contextmanager
def _one_sentence(name: str, kinds: str, damage: str) -> Iterator[None]:
    """Whatever Pillow raises as an InputError: which kinds are expected, what damage means."""
    try:
        yield
    except InputError:
        raise
    except UnsupportedError as error:
        raise InputError(f"{name} holds {error}; expected {kinds}.") from None
    except MemoryError:
        raise InputError(f"{name} does not fit into memory; expected a smaller picture.") from None
    except Exception:
        raise InputError(f"{name} {damage}.") from None


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Refuse a picture of (width, height) without pixels or with more than the bound."""
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"{name} is {width} x {height} pixels; expected at least one pixel.")
    if width * height > max_pixels:
        raise InputError(
            f"{name} is {width} x {height} pixels ({width * height / 1e6:.1f} MP); expected at "
            f"most {max_pixels / 1e6:g} MP: give a smaller picture or raise max_pixels."
        )


def _from_image(image: PilImage.Image, name: str, max_pixels: int) -> Picture:
    """A PIL image, which may still be an unread file."""
    _check_size(image.size, name, max_pixels)
    kinds = "a PIL image of mode L, LA, P, RGB, RGBA or CMYK"
    with _one_sentence(name, kinds, "cannot be decoded; expected a whole PIL image"):
        image.load()
        return _from_pil(image, name)


def _from_array(array: NDArray[Any], name: str, max_pixels: int) -> Picture:
    mode = {(2, 0): "L", (3, 3): "RGB", (3, 4): "RGBA"}.get(
        (array.ndim, array.shape[-1] if array.ndim == 3 else 0)
    )
    if array.dtype != np.uint8 or mode is None:
        raise InputError(
            f"{name} is an array of {array.dtype} with shape {array.shape}; expected uint8 of "
            "shape H x W, H x W x 3 or H x W x 4."
        )
    _check_size((array.shape[1], array.shape[0]), name, max_pixels)
    return Picture(np.array(array, order="C", subok=False), mode, None, name)


def _from_pil(image: PilImage.Image, name: str) -> Picture:
    """Samples of a loaded image. Raises UnsupportedError, or what Pillow raises."""
    orientation = _orientation(image)
    profile = image.info.get("icc_profile")
    icc = profile if isinstance(profile, bytes) and profile else None
    transparent = image.has_transparency_data
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N"):
        samples = deep_grey(image)
        mode = "L" if samples.ndim == 2 else "LA"
        return Picture(upright(samples, orientation), mode, icc, name)
    if image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UnsupportedError("samples of 32 bits")
        return Picture(upright(values.astype(np.uint16), orientation), "L", icc, name)
    if image.mode in ("1", "L", "LA", "La"):
        mode = "LA" if transparent else "L"
    elif image.mode in ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr", "HSV"):
        mode = "RGBA" if transparent else "RGB"
    elif image.mode == "CMYK":
        mode = "CMYK"
    else:
        raise UnsupportedError(f"samples of kind {image.mode!r}")
    if image.mode in ("YCbCr", "HSV"):
        icc = None
    samples = np.asarray(image if image.mode == mode else image.convert(mode))
    return Picture(upright(samples, orientation), mode, icc, name)


def _is_deep(data: bytes, image: ImageFile) -> bool:
    """Whether a file is a PNG of 16-bit colour or a TIFF of 16 bits."""
    if isinstance(image, PngImageFile):
        return data[24] == 16 and image.mode in ("RGB", "RGBA")
    return isinstance(image, TiffImageFile) and bool(np.equal(image.tag_v2.get(_BITS, 1), 16).all())


def _orientation(image: PilImage.Image) -> int:
    """The EXIF orientation; 1 where there is none or the EXIF block is damaged."""
    try:
        tag = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return tag if isinstance(tag, int) and 1 <= tag <= 8 else 1


def _animated(image: ImageFile) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:
        # What follows the first picture is damaged, and is not used.
        return False


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas (WebP container specification; RFC 6386, 9.1)."""
    if data[12:16] == b"VP8X":
        width, height = data[24:27], data[27:30]
        return int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


@contextmanager
def _pillow_limit(size: tuple[int, int]) -> Iterator[None]:
    """Let Pillow pass a picture that our own bound has passed; its own bound is global."""
    pixels = size[0] * size[1]
    if PilImage.MAX_IMAGE_PIXELS is None or pixels <= PilImage.MAX_IMAGE_PIXELS:
        yield
        return
    with _limit_lock:
        before = PilImage.MAX_IMAGE_PIXELS
        PilImage.MAX_IMAGE_PIXELS = pixels
        try:
            yield
        finally:
            PilImage.MAX_IMAGE_PIXELS = before
