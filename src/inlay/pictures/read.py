"""Files, PIL images and arrays to pictures whose samples are as they are stored.

libvips decodes PNG, JPEG, WebP, AVIF, TIFF and GIF, each by its own loader and no other; Pillow
decodes BMP and, where pillow-heif is installed, HEIC. The first bytes tell which, not the name.
Size and kind in the header are checked before anything is decoded. libvips waits for ever in
a process forked from one that has used it: spawn processes instead.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import BmpImagePlugin, ImageOps
from PIL import Image as PilImage

from inlay.errors import InputError
from inlay.pictures.arrays import samples_of
from inlay.pictures.colour import check_profile
from inlay.pictures.picture import Picture, Stored, name_of

DEFAULT_MAX_PIXELS = 100_000_000
MAX_FILE_BYTES = 1 << 30
MAX_JSON_BYTES = 1 << 20
Source: TypeAlias = str | os.PathLike[str] | PilImage.Image | NDArray[Any]

_NOT_WHOLE = (
    "is not a PNG, JPEG, WebP, AVIF, TIFF, BMP or GIF picture, or is damaged or cut short; "
    "expected a whole one"
)
_REASONS: dict[type[Exception], str] = {
    ImportError: "is a HEIC picture; install pillow-heif to read it, or convert it to JPEG",
    FileNotFoundError: "does not exist; expected a file",
    MemoryError: "does not fit into memory; expected a smaller picture",
}
_TIFF, _JPEG = (b"II*\0", b"MM\0*"), b"\xff\xd8"
_HEIC = rb"(?s)....ftyp(he|m[is]f1)"
# A second picture inside a JPEG; as a rule it says how much brighter than white screens may go.
_SECOND = (b"hdrgm:", b"HDRGainMap", b"urn:iso:std:iso:ts:21496", b"MPF\0II", b"MPF\0MM")
# From so many samples on they are left in the file, where libvips decodes it row by row.
_MANY, _STREAMS = 100_000_000, ("jpeg", "png", "tiff")
_FACTS = ("xres", "yres", "exif-data", "xmp-data", "iptc-data")
# What stands before Photoshop's blocks, IPTC's among them, in a JPEG but not in a TIFF.
PHOTOSHOP = b"Photoshop 3.0\0"
# libvips' interpretations, and Pillow's modes, as modes of Picture without alpha.
_MODES = {"b-w": "L", "grey16": "L", "srgb": "RGB", "rgb16": "RGB", "cmyk": "CMYK"}
_PIL_MODES = dict.fromkeys(("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr", "HSV"), "RGB")
_PIL_MODES |= dict.fromkeys(("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L"), "L")
_PIL_MODES["CMYK"] = "CMYK"

_log = logging.getLogger("inlay")
_LOCK = threading.Lock()
# What is wrong with a file is said by an error of ours, and nothing by the libraries.
logging.getLogger("pyvips").disabled = True
pyvips._remove_log_handler()
# Not of info and debug: what a signal's handler raises is lost while Python is called back.
for _domain in (b"GLib", b"GLib-GObject", b"VIPS"):
    pyvips._log_handler_id = pyvips.glib_lib.g_log_set_handler(
        _domain, 0x3F, pyvips._log_handler_cb, pyvips.ffi.NULL
    )
# One thread and nothing kept: a picture is decoded row by row and never asked for twice.
pyvips.concurrency_set(1)
pyvips.cache_set_max(0)
pyvips.operation_block_set("VipsForeignLoad", True)
for _loader in ("Png", "Jpeg", "Webp", "Heif", "Tiff", "Nsgif"):
    pyvips.operation_block_set(f"VipsForeignLoad{_loader}", False)


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
        name = f"{role} {name_of(source)}"
        data: Any = read_file(source, name)
        picture = replace(decode(data, name, max_pixels), path=os.fsdecode(source))
    else:
        name = f"the {role}"
        picture = _from_memory(source, name, max_pixels)
        data = picture.samples.data
    if isinstance(picture.base, np.ndarray):
        picture.base.setflags(write=False)
    icc = picture.icc
    try:
        if icc is not None and check_profile(icc, picture.kind) == "one-way":
            _log.info("%s: its colour profile goes one way; new colours only come close", name)
    except ValueError as error:
        _log.info("%s: its colour profile is passed over (%s)", name, error)
        icc = None
    return replace(picture, sha256=hashlib.sha256(data).hexdigest(), icc=icc)


def read_record(path: str | os.PathLike[str]) -> str | None:
    """The JSON text that `write_picture` put into a picture, or None; InputError for no picture."""
    name = name_of(path)
    data = read_file(path, name)
    with _one_sentence(name):
        image = _open(data)
    places = r"png-comment-\d+-inlay|exif-ifd2-UserComment|image-description"
    fields = image.get_fields() if isinstance(image, pyvips.Image) else ()
    for field in filter(re.compile(places).fullmatch, fields):
        text = str(image.get(field))
        # Cameras and other programs have comments of their own.
        if text.startswith("{") and not field.startswith("exif"):
            return text
        with suppress(ValueError, RecursionError):
            # libvips says more behind what EXIF holds.
            if text.startswith("{"):
                return text[: json.JSONDecoder().raw_decode(text)[1]]
    # Earlier builds put it into a TIFF's EXIF, which libvips does not read.
    with suppress(Exception):
        comment = bytes(_tiff_tags(data).get_ifd(0x8769)[0x9286])
        return str(comment[8:], "ascii") if comment.startswith(b"ASCII\0\0\0{") else None
    return None


def read_file(path: str | os.PathLike[str], name: str, most: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a regular file; InputError for all else, before a pipe or device is opened."""
    with _one_sentence(name, "cannot be read; expected a file"):
        size = os.stat(path).st_size
        if not os.path.isfile(path):
            raise InputError(f"{name} is a folder, pipe or device; expected a file.")
        if size > most:
            raise InputError(f"{name} has {size} bytes; expected a file of at most {most}.")
        # Files of no size in /proc may never end.
        if data := Path(path).read_bytes() if size else b"":
            return data
    raise InputError(f"{name} is empty; expected a file with something in it.")


def file_sha256(path: Path) -> str:
    """SHA-256 of a regular file's bytes; raises OSError where it is none or cannot be read."""
    if not path.is_file() or not path.stat().st_size:
        raise OSError(f"{path} is no file with something in it")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def decode(data: bytes, name: str, max_pixels: int) -> Picture:
    """Decode a file's bytes; the first picture where there are several. Raises InputError."""
    with _one_sentence(name):
        image = _open(data)
        if isinstance(image, pyvips.Image):
            return _from_vips(image, data, name, max_pixels)
        return _from_pil(image, name, max_pixels)


def _open(data: bytes) -> Any:
    """A libvips or PIL image of which only the header is read."""
    if data[:2] == b"BM":
        return BmpImagePlugin.BmpImageFile(io.BytesIO(data))
    if re.match(_HEIC, data) and b"avif" not in data[:64]:
        from pillow_heif import HeifImageFile

        return HeifImageFile(io.BytesIO(data))
    return pyvips.Image.new_from_buffer(data, "", access="sequential", fail_on="error")


def _tiff_tags(data: bytes) -> PilImage.Exif:
    tags = PilImage.Exif()
    with suppress(Exception):
        tags.load(data)
    return tags


def _from_vips(image: pyvips.Image, data: bytes, name: str, max_pixels: int) -> Picture:
    """Decode what libvips has opened; raises whatever libvips raises."""
    if data[:4] in _TIFF:
        tags = _tiff_tags(data)
        # Cameras' raw files, whose first picture is a thumbnail or has no colours yet: a DNG's
        # version, Canon's mark, a picture that is a smaller version, samples of sensors.
        if 50706 in tags or data[8:10] == b"CR" or tags.get(254) == 1 or tags.get(262, 0) > 32800:
            raise InputError(
                f"{name} is a camera's raw file; expected a picture developed from it."
            )
        if tags.keys() & {271, 272, 315, 33432, 0x8769, 0x8825}:
            _log.info("%s: its EXIF is left out", name)
    weight = image.bands * (1 if image.format == "uchar" else 2)
    _check_size((image.width, image.height), name, max_pixels, weight)
    fields = {field: image.get(field) for field in image.get_fields()}
    mode = _MODES.get(image.interpretation, "")
    if mode in ("L", "RGB") and image.bands == len(mode) + 1:
        mode += "A"
    if image.bands != len(mode) or image.format not in ("uchar", "ushort"):
        kind = f"{image.bands} channels of kind {image.interpretation} ({image.format})"
        raise _unsupported(name, kind)
    start = data[: max(data.find(b"IDAT"), 0)]
    if fields.get("n-pages", 1) > 1 or b"acTL" in start:
        _log.info("%s holds several pictures; the first one is used", name)
    icc = fields.get("icc-profile-data")
    if icc is None and b"iCCP" in start:
        _log.info("%s: its colour profile is passed over (it is damaged or does not suit)", name)
    facts = {fact: fields[fact] for fact in _FACTS if fact in fields}
    if "photoshop-data" in fields:
        facts["iptc-data"] = PHOTOSHOP + fields["photoshop-data"]
    space = str(fields.get("exif-ifd2-ColorSpace", ""))
    index = str(fields.get("exif-ifd4-InteroperabilityIndex", ""))
    if icc is None and mode == "RGB" and space.startswith(("2 ", "65535 ")) and "R03" in index:
        _log.info("%s is in Adobe RGB, as its EXIF says", name)
        icc = Path(__file__).with_name("adobe-rgb.icc").read_bytes()
    if data[:2] == _JPEG and any(mark in data for mark in _SECOND):
        _log.info("%s holds a second picture, as for a gain map; it is left out", name)
    base, jpeg = _base(data, name, upright=fields.get("orientation", 1) == 1)
    return Picture(base, mode, icc, name, facts=facts, jpeg=jpeg)


def _base(data: bytes, name: str, upright: bool) -> tuple[NDArray[Any] | Stored, bytes]:
    """A file's samples, decoded once in any case; many are left in the file where they may. And the
    file where it is a JPEG without a flaw. Of one that is not upright all samples are turned.

    Raises an error where the file is damaged: ValueError where of a JPEG data lack, of which
    libjpeg only warns.
    """
    for end in (b"", b"\xff\xd9") if data[:2] == _JPEG else (b"",):
        with _LOCK, suppress(pyvips.Error):
            # Away with what libvips still has to say of other files.
            pyvips.Error("")
            image = _open(data + end)
            streams = str(image.get("vips-loader")).startswith(_STREAMS)
            if upright and streams and image.width * image.height * image.bands > _MANY:
                image(0, image.height - 1)
                base: NDArray[Any] | Stored = Stored(partial(_open, data + end))
            else:
                base = samples_of(image if upright else image.copy_memory().autorot())
            flaws = pyvips.Error("").detail
            # Stray bytes do no harm.
            if not re.search(r"Corrupt JPEG data: (?!\d+ extraneous)", flaws):
                if end:
                    _log.info("%s lacks its end marker; every pixel is there", name)
                whole = upright and not flaws and data[:2] == _JPEG
                return base, data + end if whole else b""
    raise ValueError(name)


@contextmanager
def _one_sentence(name: str, problem: str = _NOT_WHOLE) -> Iterator[None]:
    """Whatever a system or a decoder raises as an InputError, and no word besides."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    except Exception as error:
        known = (reason for kind, reason in _REASONS.items() if isinstance(error, kind))
        raise InputError(f"{name} {next(known, problem)}.") from None


def _unsupported(name: str, kind: str) -> InputError:
    return InputError(f"{name} holds {kind}; expected grey, RGB or CMYK of 8 or 16 bits.")


def _check_size(size: Sequence[int], name: str, max_pixels: int, weight: int) -> None:
    """Refuse no pixels, or too many or of too many bytes in all; `weight` is those of a pixel."""
    width, height = size
    # The bound of bytes is that of so many pixels of 16-bit RGB.
    most = max_pixels * min(1, 6 / max(weight, 1))
    if width < 1 or height < 1:
        raise InputError(f"{name} is {width} x {height} pixels; expected at least one pixel.")
    if width * height > most:
        raise InputError(
            f"{name} is {width} x {height} pixels ({width * height / 1e6:.1f} MP) of {weight} "
            f"bytes; expected at most {most / 1e6:g} MP: give a smaller one or raise max_pixels."
        )


def _from_memory(source: Any, name: str, max_pixels: int) -> Picture:
    """The picture of a PIL image or an array; raises InputError."""
    if isinstance(source, PilImage.Image):
        with _one_sentence(name, "cannot be decoded; expected a whole PIL image"):
            return _from_pil(source, name, max_pixels)
    if not isinstance(source, np.ndarray):
        kind = type(source).__name__
        raise InputError(f"{name} is of type {kind}; expected a path, PIL image or uint8 array.")
    mode = {(): "L", (3,): "RGB", (4,): "RGBA"}.get(source.shape[2:])
    if source.dtype != np.uint8 or source.ndim < 2 or mode is None:
        kind = f"{source.dtype} of shape {source.shape}"
        raise InputError(f"{name} is {kind}; expected uint8, H x W, H x W x 3 or H x W x 4.")
    _check_size(source.shape[1::-1], name, max_pixels, source[:1, :1].size)
    return Picture(np.array(source, order="C", subok=False), mode, None, name)


def _from_pil(image: PilImage.Image, name: str, max_pixels: int) -> Picture:
    """Decode what Pillow has opened; raises whatever Pillow raises."""
    _check_size(image.size, name, max_pixels, len(image.getbands()))
    image.load()
    info = image.info
    with suppress(Exception):
        image = ImageOps.exif_transpose(image)
    if (mode := _PIL_MODES.get(image.mode, "")) == "":
        raise _unsupported(name, f"samples of kind {image.mode!r}")
    if image.mode.startswith("I"):
        samples = np.asarray(image)
        if samples.min() < 0 or samples.max() > 65535:
            raise _unsupported(name, "samples of 32 bits")
        samples = samples.astype(np.uint16)
    else:
        if mode != "CMYK" and image.has_transparency_data:
            mode += "A"
        samples = np.asarray(image if image.mode == mode else image.convert(mode))
    icc = info.get("icc_profile")
    known = {"exif-data": info.get("exif"), "xmp-data": info.get("xmp")}
    facts = {fact: block for fact, block in known.items() if isinstance(block, bytes)}
    return Picture(samples, mode, icc or None, name, facts=facts)
