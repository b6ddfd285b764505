"""JPEG to JPEG: blocks of 8 x 8 samples in which nothing changed keep their coefficients.

jpeglib (the extra `jpeg`) reads and writes them. What changed is transformed with the file's own
tables and chroma subsampling (ITU-T T.81: A.3.3 DCT, A.3.4 quantization, B.1.1 markers).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from inlay.pictures.arrays import Box
from inlay.pictures.picture import Picture

# Y, Cb and Cr of red, green and blue (JFIF 1.02); rows of cosines.
_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_DCT = np.cos(np.outer(np.arange(8), np.arange(8) + 0.5) * np.pi / 8) / 2
_DCT[0] /= np.sqrt(2)
# Codes of segments: Huffman-coded frames, a scan, what is said of the picture (APP but 14, COM).
_FRAMES, _SCAN, _SAID = {0xC0, 0xC1, 0xC2}, 0xDA, {*range(0xE0, 0xEE), 0xEF, 0xFE}


def keep_blocks(picture: Picture, said: bytes) -> bytes | None:
    """A picture that was a JPEG as one, which says of itself what the JPEG `said` does.

    None where that cannot be done: without jpeglib, and for inks, RGB or arithmetic coding.
    """
    segments = list(_segments(picture.jpeg))
    if picture.mode == "CMYK" or not any(kind in _FRAMES for kind, _ in segments):
        return None
    bare = [block for kind, block in segments if kind not in _SAID]
    facts = [block for kind, block in _segments(said) if kind in _SAID]
    with suppress(ImportError, OSError), TemporaryDirectory(prefix="inlay-") as folder, _silence():
        import jpeglib

        path, whole = Path(folder) / "a.jpg", b"".join([said[:2], *bare])
        # Of one scan what is said of the picture is known without its samples, which take a while.
        start = bare[-1][: 2 + int.from_bytes(bare[-1][2:4], "big")]
        head = b"".join([said[:2], *bare[:-1], start, b"\xff\xd9"])
        head = whole if bytes([0xFF, _SCAN]) in bare[-1][2:] else head
        path.write_bytes(head)
        jpeglib.version.set("turbo210")
        jpeg = jpeglib.read_dct(path)
        factors = jpeg.samp_factor
        known = jpeg.jpeg_color_space.name in ("JCS_YCbCr", "JCS_GRAYSCALE")
        jpeg.content = whole
        if not known or (factors[0] % factors).any() or not jpeg.qt.all():
            return None
        if picture.patches:
            _transform(picture, jpeg)
        jpeg.content, jpeg.qt = head, -1  # the file's own
        jpeg.write_dct(str(path))
        new = [block for kind, block in _segments(path.read_bytes()) if kind not in _SAID]
        return b"".join([said[:2], *facts, *new])
    return None


@contextmanager
def _silence() -> Iterator[None]:
    """libjpeg writes its warnings to standard error, jpeglib its failures to standard output."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        with redirect_stdout(None):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _transform(picture: Picture, jpeg: Any) -> None:
    """Put new coefficients where a patch changed something."""
    hull = reduce(Box.hull, (box for box, _ in picture.patches))
    high, wide = unit = 8 * jpeg.samp_factor[0]
    x, y = hull.x // wide * wide, hull.y // high * high
    area = Box(x, y, -(-hull.right // wide) * wide - x, -(-hull.bottom // high) * high - y)
    inside = picture.clip(area, "patch")
    # Beyond the picture its last row and column go on.
    beyond = [(0, area.height - inside.height), (0, area.width - inside.width), (0, 0)]
    pair = (each.crop(inside) for each in (replace(picture, patches=()), picture))
    old, new = (np.pad(np.atleast_3d(samples), beyond, "edge") for samples in pair)
    changed = (old != new).any(-1)
    for number, factor in enumerate(jpeg.samp_factor):
        # A block of chroma may stand for several of luma.
        high, wide = unit // factor
        split = -1, 8, high // 8, area.width // wide, 8, wide // 8
        plane = (jpeg.Y, jpeg.Cb, jpeg.Cr)[number][area.y // high :, area.x // wide :]
        there = changed.reshape(split).any((1, 2, 4, 5))[: len(plane), : plane.shape[1]]
        levels = new @ (_YCC[number] if new.shape[2] == 3 else np.ones(1)) - 128 * (number == 0)
        means = levels.reshape(split).mean((2, 5)).swapaxes(1, 2)[np.nonzero(there)]
        table = jpeg.get_component_qt(number)
        plane[np.nonzero(there)] = np.rint(_DCT @ means @ _DCT.T / table).clip(-1023, 1023)


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """A JPEG's segments and their codes; the last one is all from the first scan on."""
    start = 2
    while (kind := data[start + 1]) != _SCAN:
        # Bytes of 255 may stand before a code.
        length = int.from_bytes(data[start + 2 : start + 4], "big") + 1 if kind < 255 else 0
        yield kind, data[start : (start := start + 1 + length)]
    yield kind, data[start:]
