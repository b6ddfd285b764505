"""A picture file's bytes, or a PIL image, to samples as they are stored.

The size in the header is checked before anything is decoded, and whatever a decoder raises becomes
one InputError. PNG, JPEG, WebP, TIFF, BMP and GIF are told apart by their first bytes, not by name.
"""

from __future__ import annotations

import io
import logging
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

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
from inlay.pictures.files import FORMATS
from inlay.pictures.jpeg import is_whole

__all__ = ["Decoded", "UnsupportedError", "check_size", "decode", "from_pil", "open_header"]

_ORIENTATION, _BITS, _PHOTOMETRIC, _PLANES = 0x0112, 258, 262, 284
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N")

_log = logging.getLogger("inlay")
_limit_lock = threading.Lock()


@dataclass(frozen=True)
class Decoded:
    """samples: uint8 or uint16, (h, w) or (h, w, C), upright; mode: L, LA, RGB, RGBA or CMYK."""

    samples: NDArray[Any]
    mode: str
    icc: bytes | None = None


class UnsupportedError(Exception):
    """A whole file of a kind that inlay does not take; the text says which."""


def check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Refuse a picture of (width, height) without pixels or with more than the bound."""
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"{name} is {width} x {height} pixels; expected at least one pixel.")
    if width * height > max_pixels:
        raise InputError(
            f"{name} is {width} x {height} pixels ({width * height / 1e6:.1f} MP); expected at "
            f"most {max_pixels / 1e6:g} MP: give a smaller picture or raise max_pixels."
        )


def open_header(data: bytes, name: str, max_pixels: int) -> ImageFile:
    """Pillow's view of a file: the header is read and its size checked, nothing is decoded."""
    opener = _opener(data)
    if opener is None:
        raise InputError(f"{name} is not a {FORMATS} picture; convert it to one of these.")
    try:
        # Pillow's WebP reader makes its canvas on opening, so the size must be known before.
        size = _webp_size(data) if opener is WebPImageFile else (1, 1)
        check_size(size, name, max_pixels)
        with _pillow_limit(size):
            image = opener(io.BytesIO(data))
    except InputError:
        raise
    except Exception:
        raise InputError(
            f"{name} is damaged or of a kind that cannot be read; expected a whole {FORMATS} "
            "picture."
        ) from None
    check_size(image.size, name, max_pixels)
    return image


def decode(data: bytes, name: str, max_pixels: int) -> Decoded:
    """Decode a file's bytes; the first picture where there are several. Raises InputError."""
    image = open_header(data, name, max_pixels)
    try:
        with _pillow_limit(image.size):
            # TIFF is turned upright by Pillow itself and loses the tag on the way.
            tag = _orientation(image) if isinstance(image, TiffImageFile) else 1
            image.load()
        if isinstance(image, JpegImageFile) and not is_whole(data, np.asarray(image)):
            raise EOFError
        decoded = _deep_colour(data, image, tag, name) or from_pil(image)
        if not isinstance(image, JpegImageFile) and _animated(image):
            _log.info("%s holds several pictures; the first one is used", name)
    except UnsupportedError as error:
        raise InputError(
            f"{name} holds {error}; expected grey, palette, RGB, RGBA or CMYK of 8 or 16 bits."
        ) from None
    except MemoryError:
        raise InputError(f"{name} does not fit into memory; expected a smaller picture.") from None
    except Exception:
        raise InputError(
            f"{name} is damaged or cut short; expected a whole {FORMATS} picture."
        ) from None
    return decoded


def from_pil(image: PilImage.Image) -> Decoded:
    """Samples of a loaded image. Raises UnsupportedError, or what Pillow raises."""
    orientation = _orientation(image)
    profile = image.info.get("icc_profile")
    icc = profile if isinstance(profile, bytes) and profile else None
    transparent = image.has_transparency_data
    if image.mode in _DEEP_GREY:
        deep = _grey16(image)
        return replace(deep, samples=_upright(deep.samples, orientation), icc=icc)
    if image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UnsupportedError("samples of 32 bits")
        return Decoded(_upright(values.astype(np.uint16), orientation), "L", icc)
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
    return Decoded(_upright(samples, orientation), mode, icc)


def _grey16(image: PilImage.Image) -> Decoded:
    """16-bit grey, with alpha where one level is declared to be clear."""
    values = np.asarray(image).astype(np.uint16)
    if isinstance(image, TiffImageFile):
        if image.tag_v2.get(_BITS) == (12,):
            values = np.round(values * (65535 / 4095)).astype(np.uint16)
        if image.tag_v2.get(_PHOTOMETRIC) == 0:
            values = ~values
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return Decoded(values, "L")
    alpha = np.where(values == clear, 0, 65535).astype(np.uint16)
    return Decoded(np.stack([values, alpha], axis=-1), "LA")


def _deep_colour(data: bytes, image: ImageFile, orientation: int, name: str) -> Decoded | None:
    """16-bit colour, which Pillow halves, by OpenCV; None for any other picture.

    Pillow's 8-bit decoding stands beside it: it notices damage, and OpenCV's samples are taken
    only where their upper bytes are the same, so that no reader's quirk passes unseen.
    """
    grey_alpha = False
    if isinstance(image, PngImageFile):
        if data[24] != 16 or image.mode not in ("RGB", "RGBA"):
            return None
        grey_alpha = data[25] == 4
        orientation = _orientation(image)
    elif not isinstance(image, TiffImageFile) or set(_bits(image)) != {16}:
        return None
    if image.mode == "CMYK":
        _log.info("%s has 16-bit CMYK samples; they are read as 8 bits", name)
        return None
    if image.mode not in ("RGB", "RGBA"):
        return None
    if isinstance(image, TiffImageFile) and image.tag_v2.get(_PLANES) == 2:
        # Neither Pillow nor OpenCV notices that it reads these wrongly.
        raise UnsupportedError("16-bit samples in separate planes")
    import cv2

    try:
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        found = None
    known = np.asarray(image)
    if isinstance(image, PngImageFile):
        known = _upright(known, orientation)
    samples = None if found is None else _agreeing(found, orientation, known)
    if samples is None:
        _log.info("%s has 16-bit samples in a rare layout; they are read as 8 bits", name)
        return None
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and samples.shape[-1] == 3:
        alpha = np.where((samples == np.array(clear)).all(-1), 0, 65535).astype(np.uint16)
        samples = np.dstack([samples, alpha])
    icc = image.info.get("icc_profile")
    if grey_alpha:
        return Decoded(np.ascontiguousarray(samples[..., ::3]), "LA", icc)
    return Decoded(samples, "RGB" if samples.shape[-1] == 3 else "RGBA", icc)


def _agreeing(
    found: NDArray[Any], orientation: int, known: NDArray[np.uint8]
) -> NDArray[np.uint16] | None:
    """OpenCV's BGR(A), turned or not, as RGB(A) where its upper bytes are the known ones."""
    channels = known.shape[-1]
    if found.dtype != np.uint16 or found.ndim != 3 or found.shape[-1] < channels:
        return None
    order = [2, 1, 0, 3][:channels]
    for turned in (1, orientation):
        samples = np.ascontiguousarray(_upright(found, turned)[..., order])
        if samples.shape == known.shape and np.array_equal(samples >> 8, known):
            return samples
    return None


def _upright(samples: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo an EXIF orientation of 1 to 8 (Exif 2.32, 4.6.4.A)."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return np.ascontiguousarray(samples)


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


def _bits(image: TiffImageFile) -> tuple[int, ...]:
    bits = image.tag_v2.get(_BITS, (1,))
    return bits if isinstance(bits, tuple) else (bits,)


def _opener(data: bytes) -> type[ImageFile] | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return TiffImageFile
    if data.startswith(b"BM"):
        return BmpImageFile
    return GifImageFile if data[:6] in (b"GIF87a", b"GIF89a") else None


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
