"""Small writers for what Pillow cannot write: 16-bit PNG, TIFF of any mode, an EXIF block.

Sources: PNG 3rd edition (W3C 2025), 5.3 chunks, 9.2 filter types; TIFF 6.0, sections 2, 14 and 16;
Exif 2.32, 4.6.5 UserComment.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["exif_block", "user_comment", "write_png16", "write_tiff"]

Samples = NDArray[Any]

_LEVEL = 4
_STRIP_BYTES = 1 << 20
_COLOUR_TYPES = {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}
_EXIF_IFD, _USER_COMMENT, _ICC = 34665, 37510, 34675
_SHORT, _LONG, _UNDEFINED = 3, 4, 7


def _bands(samples: Samples) -> Iterator[tuple[int, Samples]]:
    """Rows of about _STRIP_BYTES, each band with the number of its first row."""
    rows = max(1, _STRIP_BYTES // max(samples[0].nbytes, 1))
    for start in range(0, len(samples), rows):
        yield start, samples[start : start + rows]


def write_png16(
    file: IO[bytes], samples: Samples, mode: str, icc: bytes | None, text: str | None
) -> None:
    """A PNG of uint16 samples (h, w) or (h, w, C); `text` goes into a text chunk "inlay"."""
    height, width = samples.shape[:2]
    file.write(b"\x89PNG\r\n\x1a\n")
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[mode], 0, 0, 0)
    _chunk(file, b"IHDR", header)
    if icc is not None:
        _chunk(file, b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc))
    if text is not None and text.isascii():
        _chunk(file, b"tEXt", b"inlay\0" + text.encode("ascii"))
    elif text is not None:
        _chunk(file, b"iTXt", b"inlay\0\0\0\0\0" + text.encode("utf-8"))
    packer = zlib.compressobj(_LEVEL)
    pixel = samples[0, 0].nbytes
    above = np.zeros((1, width * pixel), np.int16)
    for _, band in _bands(samples):
        packed = packer.compress(_paeth(band, pixel, above))
        above = _row_bytes(band[-1:])
        if packed:
            _chunk(file, b"IDAT", packed)
    _chunk(file, b"IDAT", packer.flush())
    _chunk(file, b"IEND", b"")


def _chunk(file: IO[bytes], name: bytes, body: bytes) -> None:
    checksum = zlib.crc32(body, zlib.crc32(name))
    file.write(struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum))


def _row_bytes(rows: Samples) -> NDArray[np.int16]:
    """Rows as PNG stores them, most significant byte first: (h, bytes), widened to subtract."""
    stored = np.ascontiguousarray(rows.astype(">u2")).view(np.uint8)
    return stored.reshape(len(rows), -1).astype(np.int16)


def _paeth(rows: Samples, pixel: int, above: NDArray[np.int16]) -> bytes:
    """Rows after filter type 4 (PNG 9.4), each led by the filter's number."""
    here = _row_bytes(rows)
    up = np.concatenate([above, here[:-1]])
    left, corner = np.zeros_like(here), np.zeros_like(here)
    left[:, pixel:], corner[:, pixel:] = here[:, :-pixel], up[:, :-pixel]
    # Distances of left + up - corner from left, up and corner.
    to_left, to_up = np.abs(up - corner), np.abs(left - corner)
    to_corner = np.abs(left + up - 2 * corner)
    guess = np.where(to_up <= to_corner, up, corner)
    guess = np.where((to_left <= to_up) & (to_left <= to_corner), left, guess)
    out = np.empty((here.shape[0], here.shape[1] + 1), np.uint8)
    out[:, 0] = 4
    out[:, 1:] = (here - guess).astype(np.uint8)
    return out.tobytes()


def write_tiff(
    file: IO[bytes], samples: Samples, mode: str, icc: bytes | None, text: str | None
) -> None:
    """A deflated TIFF of uint8 or uint16 samples; `text` goes into the EXIF UserComment.

    The samples must be below 4 GiB, which is what TIFF's offsets reach.
    """
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    little = samples.astype(samples.dtype.newbyteorder("<"), copy=False)
    file.write(b"II*\0\0\0\0\0")
    position = 8

    def put(body: bytes) -> int:
        nonlocal position
        start = position
        # Offsets in a TIFF are even.
        body += b"\0" * (len(body) % 2)
        file.write(body)
        position += len(body)
        return start

    offsets, sizes, rows = [], [], height
    for start, band in _bands(little):
        rows = len(band) if start == 0 else rows
        steps = band.copy()
        # Horizontal differencing (TIFF 6.0, section 14): unsigned samples wrap.
        steps[:, 1:] -= band[:, :-1]
        packed = zlib.compress(steps.tobytes(), _LEVEL)
        sizes.append(len(packed))
        offsets.append(put(packed))
    photometric = {"L": 1, "LA": 1, "RGB": 2, "RGBA": 2, "CMYK": 5}[mode]
    tags: list[tuple[int, int, list[int] | bytes]] = [
        (256, _LONG, [width]), (257, _LONG, [height]),
        (258, _SHORT, [samples.dtype.itemsize * 8] * channels),
        (259, _SHORT, [8]), (262, _SHORT, [photometric]), (273, _LONG, offsets),
        (277, _SHORT, [channels]), (278, _LONG, [rows]), (279, _LONG, sizes),
        (284, _SHORT, [1]), (317, _SHORT, [2]),
    ]  # fmt: skip
    if mode in ("LA", "RGBA"):
        tags.append((338, _SHORT, [2]))
    if text is not None:
        # An IFD's values are laid out before it, so its own place is known only after them.
        comment = [(_USER_COMMENT, _UNDEFINED, _comment(text))]
        body, at = _directory(comment, position)
        tags.append((_EXIF_IFD, _LONG, [put(body) + at]))
    if icc is not None:
        tags.append((_ICC, _UNDEFINED, icc))
    body, at = _directory(tags, position)
    first = put(body) + at
    file.seek(4)
    file.write(struct.pack("<I", first))
    file.seek(0, 2)


def _directory(
    tags: Sequence[tuple[int, int, list[int] | bytes]], position: int
) -> tuple[bytes, int]:
    """An IFD led by its long values, to stand at `position`; and where in it the IFD begins."""
    values, entries = b"", b""
    for tag, kind, value in tags:
        count = len(value)
        if isinstance(value, bytes):
            body = value
        else:
            body = struct.pack(f"<{count}{'H' if kind == _SHORT else 'I'}", *value)
        if len(body) > 4:
            place = position + len(values)
            values += body + b"\0" * (len(body) % 2)
            body = struct.pack("<I", place)
        entries += struct.pack("<HHI4s", tag, kind, count, body)
    return values + struct.pack("<H", len(tags)) + entries + bytes(4), len(values)


def _comment(text: str) -> bytes:
    if text.isascii():
        return b"ASCII\0\0\0" + text.encode("ascii")
    return b"UNICODE\0" + text.encode("utf-16-le")


def user_comment(value: object, byte_order: str) -> str | None:
    """The text of a UserComment ("<" or ">" as its EXIF block); None where it cannot be read."""
    if not isinstance(value, bytes):
        return None
    try:
        if value.startswith(b"UNICODE\0"):
            return value[8:].decode("utf-16-le" if byte_order == "<" else "utf-16-be")
        return value[8:].decode("ascii") if value.startswith(b"ASCII\0\0\0") else None
    except UnicodeDecodeError:
        return None


def exif_block(text: str) -> bytes:
    """An EXIF block ("Exif", then a little-endian TIFF) that holds one UserComment."""
    # Header, IFD0 with one entry (2 + 12 + 4 bytes) that points to the next byte after it.
    inner, at = _directory([(_USER_COMMENT, _UNDEFINED, _comment(text))], 26)
    outer, _ = _directory([(_EXIF_IFD, _LONG, [26 + at])], 8)
    return b"Exif\0\0II*\0\x08\0\0\0" + outer + inner
