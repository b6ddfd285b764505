"""What Pillow's decoders leave out: samples of 16 bits, and whether a JPEG is whole.

libjpeg fills what is missing before the end marker with grey and only counts a warning, so a file
that was cut and closed again, or whose header claims a larger picture, decodes without an error.
Here it is decoded once more with other bytes before the end marker: a whole picture never looks at
them, a picture that lacks blocks shows them. A progressive file that was cut between two scans is
a whole picture of lower quality, and passes.

Source: ITU-T T.81, annex B (markers), F.2.2.5 (padding of the last byte).
"""

from __future__ import annotations

import io
import logging
import re
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from inlay.pictures.arrays import upright
from inlay.pictures.picture import Picture

__all__ = ["UnsupportedError", "deep_colour", "deep_grey", "is_whole"]

_BITS, _PHOTOMETRIC, _PLANES = 258, 262, 284
# Cameras are known to lose some bytes of the last row of blocks; nobody sees it.
_FORGIVEN_ROWS = 16
_STRANGE_BYTES = bytes(np.random.default_rng(0).integers(1, 255, 512, dtype=np.uint8))
# Within coded data only a stuffed zero, a restart marker or a fill byte follows 0xFF.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_END_OF_IMAGE = 0xD9
# All frames but baseline, extended and progressive Huffman ones.
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)

_log = logging.getLogger("inlay")


class UnsupportedError(Exception):
    """A whole file of a kind that inlay does not take; the text says which."""


def deep_colour(data: bytes, image: ImageFile, orientation: int, name: str) -> Picture | None:
    """16-bit colour of a PNG or TIFF, which Pillow halves, by OpenCV; None where that fails.

    Pillow's 8-bit decoding stands beside it: it notices damage, and OpenCV's samples are taken
    only where their upper bytes are the same, so that no reader's quirk passes unseen.
    """
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
        known = upright(known, orientation)
    samples = None if found is None else _agreeing(found, orientation, known)
    if samples is None:
        _log.info("%s has 16-bit samples in a rare layout; they are read as 8 bits", name)
        return None
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and samples.shape[-1] == 3:
        alpha = np.where((samples == np.array(clear)).all(-1), 0, 65535).astype(np.uint16)
        samples = np.dstack([samples, alpha])
    icc = image.info.get("icc_profile")
    if isinstance(image, PngImageFile) and data[25] == 4:
        # Grey with alpha, which both of them spread over three channels.
        return Picture(np.ascontiguousarray(samples[..., ::3]), "LA", icc, name)
    return Picture(samples, "RGB" if samples.shape[-1] == 3 else "RGBA", icc, name)


def _agreeing(
    found: NDArray[Any], orientation: int, known: NDArray[np.uint8]
) -> NDArray[np.uint16] | None:
    """OpenCV's BGR(A), turned or not, as RGB(A) where its upper bytes are the known ones."""
    channels = known.shape[-1]
    if found.dtype != np.uint16 or found.ndim != 3 or found.shape[-1] < channels:
        return None
    order = [2, 1, 0, 3][:channels]
    for turned in (1, orientation):
        samples = np.ascontiguousarray(upright(found, turned)[..., order])
        if samples.shape == known.shape and np.array_equal(samples >> 8, known):
            return samples
    return None


def deep_grey(image: PilImage.Image) -> NDArray[np.uint16]:
    """16-bit grey, with alpha where one level is declared to be clear."""
    values = np.asarray(image).astype(np.uint16)
    if isinstance(image, TiffImageFile):
        if image.tag_v2.get(_BITS) == (12,):
            values = np.round(values * (65535 / 4095)).astype(np.uint16)
        if image.tag_v2.get(_PHOTOMETRIC) == 0:
            values = ~values
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return values
    alpha = np.where(values == clear, 0, 65535).astype(np.uint16)
    return np.stack([values, alpha], axis=-1)


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
