"""Writing pictures: the suffix names the format, what the format can hold is kept as it is.

PNG and TIFF keep every sample; JPEG is written at quality 95 without chroma subsampling, WebP at
quality 95, AVIF at 90. What a format cannot hold is reduced, and the log says so: JPEG has no alpha
and 8 bits, WebP and AVIF neither grey nor CMYK, PNG no CMYK (it becomes sRGB), BMP neither alpha
nor profile nor record.

libvips encodes all but BMP; the record's place in PNG and TIFF, which it does not write as we need
it, is added here. Sources: PNG 3rd edition (W3C 2025), 5.3 chunks; TIFF 6.0, section 2; Exif 2.32,
4.6.5 UserComment.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyvips
from PIL import Image as PilImage

from inlay.errors import InputError
from inlay.pictures.arrays import to_levels, vips_image
from inlay.pictures.files import check_target, replace_file, shown
from inlay.pictures.picture import Picture, to_8_bits

_log = logging.getLogger("inlay")


@dataclass(frozen=True)
class _Format:
    """What a format holds, and how libvips writes it."""

    name: str
    modes: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    deep: bool = False
    profile: bool = True
    record: bool = True
    longest: int = 1 << 31


_PNG = _Format("PNG", ("L", "LA", "RGB", "RGBA"), {"compression": 3, "filter": "up"}, deep=True)
_JPEG = _Format("JPEG", ("L", "RGB", "CMYK"), {"Q": 95, "subsample_mode": "off"}, longest=65500)
_WEBP = _Format("WebP", ("RGB", "RGBA"), {"Q": 95}, longest=16383)
_AVIF = _Format("AVIF", ("RGB", "RGBA"), {"Q": 90, "subsample_mode": "off"}, longest=16384)
_TIFF = _Format(
    "TIFF",
    ("L", "LA", "RGB", "RGBA", "CMYK"),
    {"compression": "deflate", "predictor": "horizontal", "level": 4},
    deep=True,
)
_BMP = _Format("BMP", ("L", "RGB"), profile=False, record=False)
_SUFFIXES = {
    ".png": _PNG, ".jpg": _JPEG, ".jpeg": _JPEG, ".webp": _WEBP, ".avif": _AVIF,
    ".tif": _TIFF, ".tiff": _TIFF, ".bmp": _BMP,
}  # fmt: skip
# The longest EXIF block of a JPEG: a segment of 65535 bytes, in which libvips adds some fields.
_JPEG_EXIF = 65000
_MAX_TIFF = 4_000_000_000
_EXIF_IFD, _USER_COMMENT = 34665, 37510
_LONG, _UNDEFINED = 4, 7
# Length of a PNG's signature and header.
_PNG_HEADER = 33
# 72 dots an inch, in pixels a millimetre: what files say that say nothing.
_DENSITY = 72 / 25.4


def check_output(path: str | os.PathLike[str]) -> None:
    """Whether a picture can be written to `path`; InputError where not. Leaves nothing behind."""
    _format(path)
    check_target(path)


def write_picture(
    picture: Picture,
    path: str | os.PathLike[str],
    *,
    record: str | None = None,
    overwrite: bool = True,
) -> None:
    """Write a picture; size, mode, depth and profile stay as far as the format holds them.

    The format follows the suffix: png, jpg, jpeg, webp, avif, tif, tiff, bmp. `record` (JSON text)
    goes into a PNG text chunk "inlay", else into the EXIF UserComment. The file is put in place in
    one step, so a failure leaves nothing. Raises InputError for an unknown suffix, a missing
    folder, a place that cannot be written, or a picture that the format cannot hold.
    """
    form = _format(path)
    name = shown(path)
    if not overwrite and os.path.lexists(path):
        raise InputError(f"{name} exists already; give another output file.")
    if max(picture.size) > form.longest:
        raise InputError(
            f"{name} would be {picture.width} x {picture.height} pixels but {form.name} holds at "
            f"most {form.longest} a side; write a png or tif."
        )
    if form is _TIFF and picture.samples.nbytes > _MAX_TIFF:
        raise InputError(f"{name} would be larger than TIFF can be (4 GB); write a png.")
    fitted = _fit(picture, form, name)
    if record is not None and not form.record:
        _log.info("%s is a BMP file, which holds no record; it is left out", name)
        record = None
    replace_file(path, lambda file: _encode(file, fitted, form, record, name))


def _format(path: str | os.PathLike[str]) -> _Format:
    try:
        suffix = Path(os.fsdecode(path)).suffix.lower()
    except (TypeError, ValueError):
        raise InputError(f"the output is {path!r}; expected a path.") from None
    if suffix not in _SUFFIXES:
        known = ", ".join(known[1:] for known in _SUFFIXES)
        raise InputError(f"{shown(path)} has the suffix {suffix[:20]!r}; expected one of {known}.")
    return _SUFFIXES[suffix]


def _fit(picture: Picture, form: _Format, name: str) -> Picture:
    """The picture as the format can hold it."""
    alpha = picture.mode in ("LA", "RGBA")
    if alpha and "RGBA" not in form.modes:
        _log.info("%s is written as %s, which has no alpha; it is dropped", name, form.name)
        colours = picture.samples[..., :-1]
        mode, alpha = picture.mode[:-1], False
        picture = replace(picture, samples=colours[..., 0] if mode == "L" else colours, mode=mode)
    if picture.depth == 16 and not form.deep:
        _log.info("%s is written as %s, which has 8 bits", name, form.name)
        picture = replace(picture, samples=to_8_bits(picture.samples))
    # Few programs read TIFF's 16-bit grey with alpha.
    rare = form is _TIFF and picture.mode == "LA" and picture.depth == 16
    if picture.mode in form.modes and not rare and (form.profile or picture.icc is None):
        return picture
    if picture.mode == "CMYK" or picture.icc is not None:
        _log.info("%s is written as %s in sRGB", name, form.name)
    samples = np.empty((*picture.samples.shape[:2], 4 if alpha else 3), picture.samples.dtype)
    for rows in picture.bands():
        samples[rows.slices][..., :3] = to_levels(picture.rgb(rows), picture.depth)
    if alpha:
        samples[..., 3] = picture.samples[..., -1]
    return replace(picture, samples=samples, mode="RGBA" if alpha else "RGB", icc=None)


def _encode(
    file: IO[bytes], picture: Picture, form: _Format, record: str | None, name: str
) -> None:
    if form is _BMP:
        buffer = io.BytesIO()
        PilImage.fromarray(picture.samples).save(buffer, form.name)
        file.write(buffer.getbuffer())
        return
    image = vips_image(picture.samples, picture.mode, picture.icc)
    image, keep = image.copy(xres=_DENSITY, yres=_DENSITY), "icc"
    if record is not None and form not in (_PNG, _TIFF):
        block = exif_block(record)
        if form is _JPEG and len(block) > _JPEG_EXIF:
            _log.info("%s: the record is too long for a JPEG; it is left out", name)
        else:
            image.set_type(pyvips.GValue.blob_type, "exif-data", block)
            keep = "exif:icc"
    try:
        data = image.write_to_buffer(f".{form.name.lower()}", keep=keep, **form.options)
    except pyvips.Error:
        raise InputError(f"{name} cannot be written as {form.name}; write a png or tif.") from None
    parts = [data]
    if record is not None and form is _PNG:
        parts = _with_text(data, record)
    elif record is not None and form is _TIFF:
        parts = _with_exif(data, record)
    for part in parts:
        file.write(part)


def _with_text(png: bytes, text: str) -> list[bytes]:
    """The parts of a PNG with a text chunk "inlay" more, behind its signature and header."""
    kind, body = b"tEXt", b"inlay\0" + text.encode()
    if not text.isascii():
        kind, body = b"iTXt", b"inlay\0\0\0\0\0" + text.encode()
    checksum = zlib.crc32(kind + body)
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)
    return [png[:_PNG_HEADER], chunk, png[_PNG_HEADER:]]


def _with_exif(tiff: bytes, text: str) -> list[bytes]:
    """The parts of a little-endian TIFF with an EXIF directory more and its own directory last."""
    (at,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, at)
    entries = [tiff[at + 2 + 12 * i : at + 14 + 12 * i] for i in range(count)]
    # Directories begin at even places, and the entries of one are sorted by their tags.
    end = len(tiff) + len(tiff) % 2
    exif = _directory(text, end)
    entries.append(struct.pack("<HHII", _EXIF_IFD, _LONG, 1, end))
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
    directory = struct.pack("<H", count + 1) + b"".join(entries) + bytes(4)
    first = struct.pack("<I", end + len(exif))
    return [tiff[:4], first, tiff[8:], bytes(end - len(tiff)), exif, directory]


def _directory(text: str, at: int) -> bytes:
    """An EXIF directory, to stand at a place in a file, of one UserComment; its length is even."""
    comment = b"UNICODE\0" + text.encode("utf-16-le")
    if text.isascii():
        comment = b"ASCII\0\0\0" + text.encode("ascii")
    entry = struct.pack("<HHHIII", 1, _USER_COMMENT, _UNDEFINED, len(comment), at + 18, 0)
    return entry + comment + bytes(len(comment) % 2)


def exif_block(text: str) -> bytes:
    """An EXIF block ("Exif", then a little-endian TIFF) that holds one UserComment."""
    # The first directory, of 18 bytes at 8, points to EXIF's own.
    first = struct.pack("<HHHIII", 1, _EXIF_IFD, _LONG, 1, 26, 0)
    return b"Exif\0\0II*\0\x08\0\0\0" + first + _directory(text, 26)
