"""Writing pictures: the suffix names the format, what the format can hold is kept as it is.

PNG and TIFF keep every sample; JPEG is written at quality 95 without chroma subsampling, WebP at
quality 95. What a format cannot hold is reduced, and the log says so: JPEG has no alpha and 8 bits,
WebP neither grey nor CMYK, PNG no CMYK (it becomes sRGB), BMP neither alpha nor profile nor record.

16-bit PNG, which Pillow cannot write, is written here. Sources: PNG 3rd edition (W3C 2025), 5.3
chunks, 9.2 filter types; Exif 2.32, 4.6.5 UserComment.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image as PilImage

from inlay.errors import InputError
from inlay.pictures.arrays import to_levels
from inlay.pictures.files import check_target, replace_file, shown
from inlay.pictures.picture import Picture, to_8_bits

__all__ = ["check_output", "exif_block", "write_picture"]

_log = logging.getLogger("inlay")


@dataclass(frozen=True)
class _Format:
    name: str
    modes: tuple[str, ...]
    deep: bool = False
    profile: bool = True
    record: bool = True
    longest: int = 1 << 31


_PNG = _Format("PNG", ("L", "LA", "RGB", "RGBA"), deep=True)
_JPEG = _Format("JPEG", ("L", "RGB", "CMYK"), longest=65500)
_WEBP = _Format("WEBP", ("RGB", "RGBA"), longest=16383)
_TIFF = _Format("TIFF", ("L", "LA", "RGB", "RGBA", "CMYK"), deep=True)
_BMP = _Format("BMP", ("L", "RGB"), profile=False, record=False)
_SUFFIXES = {
    ".png": _PNG, ".jpg": _JPEG, ".jpeg": _JPEG, ".webp": _WEBP,
    ".tif": _TIFF, ".tiff": _TIFF, ".bmp": _BMP,
}  # fmt: skip
_QUALITY = 95
_PNG_LEVEL, _DEEP_LEVEL = 3, 4
# The longest EXIF block of a JPEG: one segment of 65535 bytes with its own length.
_JPEG_EXIF = 65533
_MAX_TIFF = 4_000_000_000
_EXIF_IFD, _USER_COMMENT = 34665, 37510
_LONG, _UNDEFINED = 4, 7


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

    The format follows the suffix: png, jpg, jpeg, webp, tif, tiff, bmp. `record` (JSON text) goes
    into a PNG text chunk "inlay", else into the EXIF UserComment. The file is put in place in one
    step, so a failure leaves nothing. Raises InputError for an unknown suffix, a missing folder, a
    place that cannot be written, or a picture that the format cannot hold.
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
    if form is _TIFF:
        return _write_tiff(file, picture, record)
    if picture.depth == 16:
        return _write_png16(file, picture, record)
    samples = np.ascontiguousarray(picture.samples)
    image = PilImage.frombuffer(picture.mode, picture.size, samples, "raw", picture.mode, 0, 1)
    options: dict[str, Any] = {}
    if form.profile:
        options["icc_profile"] = picture.icc
    if form is _PNG:
        from PIL.PngImagePlugin import PngInfo

        options["compress_level"] = _PNG_LEVEL
        if record is not None:
            options["pnginfo"] = info = PngInfo()
            (info.add_text if record.isascii() else info.add_itxt)("inlay", record)
    elif record is not None:
        block = exif_block(record)
        if form is _JPEG and len(block) > _JPEG_EXIF:
            _log.info("%s: the record is too long for a JPEG; it is left out", name)
        else:
            options["exif"] = block
    if form is _JPEG:
        options |= {"quality": _QUALITY, "subsampling": 0}
    elif form is _WEBP:
        options |= {"quality": _QUALITY}
    # Given a real file, Pillow writes past Python and takes no notice of a disk that fills up.
    buffer = io.BytesIO()
    image.save(buffer, format=form.name, **options)
    file.write(buffer.getbuffer())


def _write_png16(file: IO[bytes], picture: Picture, text: str | None) -> None:
    """A PNG of uint16 samples; `text` goes into a text chunk "inlay"."""

    def chunk(name: bytes, body: bytes) -> None:
        checksum = zlib.crc32(body, zlib.crc32(name))
        file.write(struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum))

    colour_type = {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}[picture.mode]
    file.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">IIBBBBB", *picture.size, 16, colour_type, 0, 0, 0))
    if picture.icc is not None:
        chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc))
    if text is not None and text.isascii():
        chunk(b"tEXt", b"inlay\0" + text.encode("ascii"))
    elif text is not None:
        chunk(b"iTXt", b"inlay\0\0\0\0\0" + text.encode("utf-8"))
    packer = zlib.compressobj(_DEEP_LEVEL)
    above = np.uint8(0)
    for rows in picture.bands():
        stored = np.ascontiguousarray(picture.samples[rows.slices].astype(">u2")).view(np.uint8)
        stored = stored.reshape(rows.height, -1)
        # Filter type 2: what differs from the row above, modulo 256.
        filtered = np.full((rows.height, stored.shape[1] + 1), 2, np.uint8)
        filtered[0, 1:] = stored[0] - above
        filtered[1:, 1:] = stored[1:] - stored[:-1]
        above = stored[-1]
        if packed := packer.compress(filtered.tobytes()):
            chunk(b"IDAT", packed)
    chunk(b"IDAT", packer.flush())
    chunk(b"IEND", b"")


def _write_tiff(file: IO[bytes], picture: Picture, text: str | None) -> None:
    """A deflated TIFF of any mode; `text` goes into a tag as EXIF's UserComment."""
    import tifffile

    photometric = {"L": "minisblack", "LA": "minisblack", "CMYK": "separated"}
    comment = b"" if text is None else _comment(text)
    tifffile.imwrite(
        file,
        picture.samples,
        photometric=photometric.get(picture.mode, "rgb"),
        planarconfig=None if picture.samples.ndim == 2 else "contig",
        extrasamples=["unassalpha"] if picture.mode in ("LA", "RGBA") else None,
        compression="zlib",
        predictor=True,
        rowsperstrip=next(picture.bands()).height,
        iccprofile=picture.icc,
        extratags=[(_USER_COMMENT, _UNDEFINED, len(comment), comment, True)] if comment else [],
        metadata=None,
        software=False,
    )


def _comment(text: str) -> bytes:
    """A text as EXIF's UserComment holds it."""
    if text.isascii():
        return b"ASCII\0\0\0" + text.encode("ascii")
    return b"UNICODE\0" + text.encode("utf-16-le")


def exif_block(text: str) -> bytes:
    """An EXIF block ("Exif", then a little-endian TIFF) that holds one UserComment."""
    comment = _comment(text)
    # Two directories of one entry, 18 bytes each: IFD0 at 8 points to the EXIF IFD at 26.
    first = struct.pack("<HHHIII", 1, _EXIF_IFD, _LONG, 1, 26, 0)
    second = struct.pack("<HHHIII", 1, _USER_COMMENT, _UNDEFINED, len(comment), 44, 0)
    return b"Exif\0\0II*\0\x08\0\0\0" + first + second + comment
