"""A picture in memory: native samples, with sRGB views of any part of them.

A picture's samples stay as the file stores them (8 or 16 bits; grey, RGB or CMYK; its own colour
profile). Methods see float sRGB through `Picture.rgb`, and `Picture.native` turns what they made
back into such samples; whatever is not changed is never converted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from inlay.errors import InputError
from inlay.pictures.arrays import from_levels, row_bands, to_levels
from inlay.pictures.box import Box
from inlay.pictures.colour import Conversion, conversion

_log = logging.getLogger("inlay")


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture in memory.

    samples: uint8 or uint16, (height, width) for grey, else (height, width, channels). mode: L, LA,
    RGB, RGBA or CMYK. icc: the embedded colour profile as found, None where there is none (then
    grey and RGB are sRGB). name: what to call it in messages. sha256: of the file's bytes, or of
    the samples of a PIL image or array. path: the file it came from, if any.
    """

    samples: NDArray[Any] = field(repr=False)
    mode: str
    icc: bytes | None = field(repr=False)
    name: str
    sha256: str = ""
    path: str | None = None

    @property
    def width(self) -> int:
        return int(self.samples.shape[1])

    @property
    def height(self) -> int:
        return int(self.samples.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height

    @property
    def depth(self) -> int:
        """Bits of a sample: 8 or 16."""
        return 8 * int(self.samples.dtype.itemsize)

    def bands(self) -> Iterator[Box]:
        """It in bands of whole rows, so that floats of all of it are never needed at once."""
        for rows in row_bands(self.height, self.width):
            yield Box(0, rows.start, self.width, rows.stop - rows.start)

    def clip(self, box: Box, what: str) -> Box:
        """The part of a box inside the picture; raises InputError where there is none."""
        inside = box.intersect(Box.of_size(self.size))
        if inside is None:
            raise InputError(
                f"the {what} {box.x},{box.y},{box.width},{box.height} lies outside {self.name}, "
                f"which is {self.width} x {self.height} pixels."
            )
        return inside

    def rgb(self, box: Box | None = None) -> NDArray[np.float32]:
        """A box (all where None) as float32 (h, w, 3), sRGB in [0, 1]; only the box is converted.

        Colours that sRGB does not hold are clipped. Raises InputError where the box leaves the
        picture.
        """
        part = self._part(box)
        if self.mode in ("LA", "RGBA"):
            part = part[..., 0] if self.mode == "LA" else part[..., :3]
        return from_levels(part) if self._is_plain else self._conversion.to_srgb(part)

    def alpha(self, box: Box | None = None) -> NDArray[np.float32] | None:
        """The alpha of a box as float32 (h, w) in [0, 1]; None where the picture has none."""
        if self.mode not in ("LA", "RGBA"):
            return None
        return from_levels(self._part(box)[..., -1])

    def native(self, rgb: NDArray[np.float32]) -> NDArray[Any]:
        """Samples of this picture's kind, depth and profile for float sRGB (h, w, 3).

        The inverse of `rgb`, rounded; alpha is left out: (h, w) for L and LA, (h, w, 3) for RGB and
        RGBA, (h, w, 4) for CMYK. Values outside [0, 1] are clipped, NaN becomes 0.
        """
        if self._is_plain:
            return to_levels(rgb, self.depth)
        return self._conversion.from_srgb(rgb, self.depth)

    def with_samples(self, samples: NDArray[Any]) -> Picture:
        """The same picture with other samples of the same kind; name, path and hash stay."""
        if samples.dtype != self.samples.dtype or samples.shape[2:] != self.samples.shape[2:]:
            raise ValueError(f"samples {samples.dtype} {samples.shape} do not suit {self.mode}")
        return replace(self, samples=samples)

    def to_pil(self) -> PilImage.Image:
        """A PIL image of the same mode with 8 bits and the colour profile in its info."""
        samples = np.ascontiguousarray(to_8_bits(self.samples))
        image = PilImage.frombytes(self.mode, self.size, samples.tobytes())
        if self.icc is not None:
            image.info["icc_profile"] = self.icc
        return image

    def with_usable_profile(self) -> Picture:
        """The same where its profile can be used; else without it, and the log says so."""
        if self.icc is None:
            return self
        try:
            two_way = self._conversion.two_way
        except ValueError as error:
            _log.info("%s: its colour profile is passed over (%s)", self.name, error)
            return replace(self, icc=None)
        if two_way:
            return self
        # A scanner's profile has no way back, so nothing could be written in it: leave it at once.
        _log.info("%s: its colour profile only goes one way; it is converted to sRGB", self.name)
        samples = to_levels(self.rgb(), self.depth)
        if self.mode not in ("LA", "RGBA"):
            return replace(self, samples=samples, mode="RGB", icc=None)
        samples = np.concatenate([samples, self.samples[..., -1:]], axis=-1)
        return replace(self, samples=samples, mode="RGBA", icc=None)

    @property
    def _is_plain(self) -> bool:
        """Whether the samples are sRGB as they are."""
        return self.icc is None and self.mode in ("RGB", "RGBA")

    @property
    def _conversion(self) -> Conversion:
        return conversion(self.icc, {"LA": "L", "RGBA": "RGB"}.get(self.mode, self.mode))

    def _part(self, box: Box | None) -> NDArray[Any]:
        if box is None:
            return self.samples
        if box.x < 0 or box.y < 0 or box.right > self.width or box.bottom > self.height:
            raise InputError(
                f"box {box.x},{box.y},{box.width},{box.height} is not inside {self.name}, which is "
                f"{self.width} x {self.height} pixels."
            )
        return self.samples[box.slices]


def to_8_bits(samples: NDArray[Any]) -> NDArray[np.uint8]:
    """uint16 samples rounded to uint8; uint8 ones as they are."""
    if samples.dtype == np.uint8:
        return samples
    levels = np.empty(samples.shape, np.uint8)
    for rows in row_bands(*samples.shape[:2]):
        levels[rows] = (samples[rows].astype(np.uint32) + 128) // 257
    return levels
