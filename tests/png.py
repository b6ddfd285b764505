"""16-bit PNG files made by code (PNG 3rd edition, W3C 2025), with what Pillow cannot write."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def png(
    samples: np.ndarray, colour_type: int, clear: bytes | None, exif: bytes | None = None
) -> bytes:
    """A 16-bit PNG, literally as the standard has it, without filters."""

    def chunk(name: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header)]
    if clear is not None:
        parts.append(chunk(b"tRNS", clear))
    if exif is not None:
        parts.append(chunk(b"eXIf", exif))
    return b"".join([*parts, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])
