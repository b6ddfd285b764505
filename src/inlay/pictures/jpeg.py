"""Whether a JPEG holds as many blocks as its header says.

libjpeg fills what is missing before the end marker with grey and only counts a warning, so a file
that was cut and closed again, or whose header claims a larger picture, decodes without an error.
Here it is decoded once more with other bytes before the end marker: a whole picture never looks at
them, a picture that lacks blocks shows them. A progressive file that was cut between two scans is
a whole picture of lower quality, and passes.

Source: ITU-T T.81, annex B (markers), F.2.2.5 (padding of the last byte).
"""

from __future__ import annotations

import io
import re
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

__all__ = ["is_whole"]

# Cameras are known to lose some bytes of the last row of blocks; nobody sees it.
_FORGIVEN_ROWS = 16
_STRANGE_BYTES = bytes(np.random.default_rng(0).integers(1, 255, 512, dtype=np.uint8))
# Within coded data only a stuffed zero, a restart marker or a fill byte follows 0xFF.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_END_OF_IMAGE = 0xD9
# All frames but baseline, extended and progressive Huffman ones.
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)


def is_whole(data: bytes, known: NDArray[Any]) -> bool:
    """Whether the coded data reach to the last row of blocks; `known` are the decoded samples.

    True also where this cannot be told: arithmetic coding, or no end marker.
    """
    end = _end(data)
    if end is None:
        return True
    image = JpegImageFile(io.BytesIO(data[:end] + _STRANGE_BYTES + b"\xff\xd9"))
    image.load()
    again = np.asarray(image)
    if again.shape != known.shape:
        return False
    return np.array_equal(again[:-_FORGIVEN_ROWS], known[:-_FORGIVEN_ROWS])


def _end(data: bytes) -> int | None:
    """Where the end marker of the (first) picture stands; None where there is none to be found."""
    found = _MARKER.search(data, 2)
    while found is not None:
        at, kind = found.start(), data[found.end() - 1]
        if kind == _END_OF_IMAGE:
            return at
        if kind in _OTHER_FRAMES or at + 4 > len(data):
            return None
        (length,) = struct.unpack_from(">H", data, at + 2)
        # Behind a scan's header its coded data follow, behind any other segment the next marker.
        found = _MARKER.search(data, at + 2 + length)
    return None
