"""Files, PIL images and arrays to pictures whose samples are as they are stored.

libvips decodes PNG, JPEG, WebP, AVIF and TIFF, each by its own loader and no other; Pillow decodes
BMP, which libvips lacks, and GIF, whose colours under transparency libvips leaves out. The first
bytes tell which, not the name. Size and kind in the header are checked before anything is decoded,
and whatever a decoder raises becomes one InputError.

libvips waits for ever in a process forked from one that has used it: spawn processes instead.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile

from inlay.errors import InputError
from inlay.pictures.arrays import from_levels, luma, samples_of, upright
from inlay.pictures.files import FORMATS, read_file, shown
from inlay.pictures.picture import Picture

DEFAULT_MAX_PIXELS = 100_000_000
Source: TypeAlias = str | os.PathLike[str] | PilImage.Image | NDArray[Any]

_ORIENTATION, _EXIF_IFD, _USER_COMMENT = 0x0112, 0x8769, 0x9286
_STARTS = {
    rb"\x89PNG\r\n\x1a\n": "png",
    rb"\xff\xd8\xff": "jpeg",
    rb"(?s)RIFF....WEBP": "webp",
    rb"(?s)....ftyp(avif|avis|mif1)": "heif",
    rb"II[*+]\0|MM\0[*+]": "tiff",
    rb"BM": "bmp",
    rb"GIF8[79]a": "gif",
}
_BY_PILLOW: dict[str, type[ImageFile]] = {"bmp": BmpImageFile, "gif": GifImageFile}
# What libvips calls the kinds of samples, by their number of channels.
_GREY, _COLOUR = {1: "L", 2: "LA"}, {3: "RGB", 4: "RGBA"}
_MODES = {
    "b-w": _GREY, "grey16": _GREY, "srgb": _COLOUR, "rgb16": _COLOUR, "cmyk": {4: "CMYK"},
}  # fmt: skip
# And what becomes of Pillow's modes, alpha aside.
_PIL_MODES = dict.fromkeys(("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr", "HSV"), "RGB")
_PIL_MODES |= {"1": "L", "L": "L", "LA": "L", "La": "L", "CMYK": "CMYK"}
_FORGIVEN_ROWS = 16
_KINDS = "grey, palette, RGB, RGBA or CMYK of 8 or 16 bits"

_log = logging.getLogger("inlay")


class _UnsupportedError(Exception):
    """A whole picture of a kind that inlay does not take; the text says which."""


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
    data = read_file(path, name)
    image = _header(data, name, 1 << 31)
    if isinstance(image, ImageFile):
        return None
    fields = image.get_fields()
    chunks = [field for field in fields if re.fullmatch(r"png-comment-\d+-inlay", field)]
    exif = image.get("exif-data") if "exif-data" in fields else data
    text = str(image.get(chunks[0])) if chunks else _user_comment(exif)
    # Cameras and other programs have comments of their own.
    return text if text.lstrip().startswith("{") else None


def _user_comment(block: bytes) -> str:
    """The UserComment of an EXIF block or a TIFF file; "" where there is none to be read."""
    exif = PilImage.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exif.load(block)
            # Some versions of inlay put it beside a TIFF's other tags.
            comment = exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT) or exif[_USER_COMMENT]
        if comment.startswith(b"UNICODE\0"):
            return str(comment[8:], "utf-16-le" if exif.endian == "<" else "utf-16-be")
        return str(comment[8:], "ascii") if comment.startswith(b"ASCII\0\0\0") else ""
    except Exception:
        # A damaged block holds nothing that we wrote.
        return ""


def decode(data: bytes, name: str, max_pixels: int) -> Picture:
    """Decode a file's bytes; the first picture where there are several. Raises InputError."""
    image = _header(data, name, max_pixels)
    damage = f"is damaged or cut short; expected a whole {FORMATS} picture"
    with _one_sentence(name, _KINDS, damage):
        if not isinstance(image, ImageFile):
            return _from_vips(image, data, name)
        picture = _from_pil(image, name)
    # What follows the first picture may be damaged, and is not used.
    with suppress(Exception):
        if getattr(image, "is_animated", False):
            _log.info("%s holds several pictures; the first one is used", name)
    return picture


def _header(data: bytes, name: str, max_pixels: int) -> pyvips.Image | ImageFile:
    """A file whose header is read and whose size is checked; nothing is decoded."""
    kind = next((kind for start, kind in _STARTS.items() if re.match(start, data)), None)
    if kind is None:
        raise InputError(f"{name} is not a {FORMATS} picture; convert it to one of these.")
    damage = f"is damaged or of a kind that cannot be read; expected a whole {FORMATS} picture"
    with _one_sentence(name, "", damage):
        if kind in _BY_PILLOW:
            image = _BY_PILLOW[kind](io.BytesIO(data))
        else:
            image = _loaded(data, kind, "warning" if kind == "jpeg" else "error")
    _check_size((image.width, image.height), name, max_pixels)
    return image


def _loaded(data: bytes, kind: str, fail_on: str) -> pyvips.Image:
    load = getattr(pyvips.Image, f"{kind}load_buffer")
    return load(data, access="sequential", fail_on=fail_on)


def _from_vips(image: pyvips.Image, data: bytes, name: str) -> Picture:
    """Decode. Raises _UnsupportedError, or pyvips.Error where the file is damaged."""
    mode = _MODES.get(image.interpretation, {}).get(image.bands)
    if mode is None or image.format not in ("uchar", "ushort"):
        raise _UnsupportedError(
            f"{image.bands} channels of kind {image.interpretation} ({image.format})"
        )
    fields = image.get_fields()
    start = data[: max(data.find(b"IDAT"), 0)]
    if ("n-pages" in fields and image.get("n-pages") > 1) or b"acTL" in start:
        _log.info("%s holds several pictures; the first one is used", name)
    icc = image.get("icc-profile-data") if "icc-profile-data" in fields else None
    if icc is None and b"iCCP" in start:
        _log.info("%s: its colour profile is passed over (it is damaged or does not suit)", name)
    try:
        samples = samples_of(image)
    except pyvips.Error as error:
        # libjpeg only warns: of stray bytes, which do no harm, as of data that end too early.
        if image.get("vips-loader") != "jpegload_buffer":
            raise
        if "remature end" in str(error):
            # Cameras are known to lose some bytes of the last blocks; what is above must be whole.
            above = max(image.height - _FORGIVEN_ROWS, 1)
            samples_of(_loaded(data, "jpeg", "warning").crop(0, 0, image.width, above))
        samples = samples_of(_loaded(data, "jpeg", "error"))
    orientation = image.get("orientation") if "orientation" in fields else 1
    return Picture(upright(samples, orientation), mode, icc, name)


@contextmanager
def _one_sentence(name: str, kinds: str, damage: str) -> Iterator[None]:
    """Whatever a decoder raises as an InputError: which kinds are expected, what damage means."""
    try:
        yield
    except InputError:
        raise
    except _UnsupportedError as error:
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
    """Decode what Pillow has opened. Raises _UnsupportedError, or what Pillow raises."""
    image.load()
    profile = image.info.get("icc_profile")
    icc = profile if isinstance(profile, bytes) and profile else None
    if image.mode.startswith("I"):
        samples = np.asarray(image)
        if samples.min() < 0 or samples.max() > 65535:
            raise _UnsupportedError("samples of 32 bits")
        mode, samples = "L", samples.astype(np.uint16)
        if isinstance(clear := image.info.get("transparency"), int):
            alpha = np.where(samples == clear, 0, 65535).astype(np.uint16)
            mode, samples = "LA", np.stack([samples, alpha], axis=-1)
    else:
        if image.mode not in _PIL_MODES:
            raise _UnsupportedError(f"samples of kind {image.mode!r}")
        mode = _PIL_MODES[image.mode]
        if mode != "CMYK" and image.has_transparency_data:
            mode += "A"
        if image.mode in ("YCbCr", "HSV"):
            icc = None
        samples = np.asarray(image if image.mode == mode else image.convert(mode))
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # A damaged EXIF block says nothing.
        orientation = 1
    return Picture(upright(samples, orientation), mode, icc, name)
