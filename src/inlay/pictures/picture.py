"""A picture in memory: native samples, with views of the colours of any part of them.

A picture's samples stay as the file stores them (8 or 16 bits; grey, RGB or CMYK; its own colour
profile). Methods see floats, and `Picture.native` turns what they made back into such samples;
whatever is not changed is never converted.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from inlay.errors import InputError
from inlay.pictures.arrays import Box, from_levels, row_bands, to_levels
from inlay.pictures.colour import check_profile, from_srgb, to_srgb

_log = logging.getLogger("inlay")


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture in memory.

    samples: uint8 or uint16, (height, width) for grey, else (height, width, channels). mode: L, LA,
    RGB, RGBA or CMYK. icc: the embedded colour profile as found, None where there is none (then
    grey and RGB are sRGB). name: what to call it in messages. sha256: of the file's bytes, or of
    the samples of a PIL image or array. path: the file it came from, if any. facts: what its file
    says besides, by libvips' names: xres, yres (pixels a mm), exif-data, xmp-data, iptc-data.
    """

    samples: NDArray[Any] = field(repr=False)
    mode: str
    icc: bytes | None = field(repr=False)
    name: str
    sha256: str = ""
    path: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)

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

    @property
    def space(self) -> bytes | None:
        """The profile of the space that `colours` is in; None is sRGB."""
        return None if self.mode == "CMYK" else self._profile

    def colours(self, box: Box | None = None) -> NDArray[np.float32]:
        """A box (all where None) as float32 (h, w, 3) in [0, 1], in the picture's own space.

        That is its own RGB, or grey three times, whatever the profile, and sRGB for CMYK. Raises
        InputError where the box leaves the picture.
        """
        part, _ = self._part(box)
        if part.shape[2] == 3:
            return from_levels(part)
        return to_srgb(part, self._profile if self.mode == "CMYK" else None)

    def rgb(self, box: Box | None = None) -> NDArray[np.float32]:
        """As `colours`, but sRGB always; colours that sRGB does not hold are clipped."""
        return to_srgb(self._part(box)[0], self._profile)

    def native(self, colours: NDArray[np.float32]) -> NDArray[Any]:
        """Samples of this picture's kind and depth for colours (h, w, 3): `colours` back, rounded.

        Alpha is left out: (h, w, 1) for L and LA, (h, w, 3) for RGB and RGBA, (h, w, 4) for CMYK.
        Values outside [0, 1] are clipped, NaN becomes 0.
        """
        if self.mode in ("RGB", "RGBA"):
            return to_levels(colours, self.depth)
        kind = self.mode.removesuffix("A")
        return from_srgb(colours, kind, self._profile if kind == "CMYK" else None, self.depth)

    def alpha(self, box: Box | None = None) -> NDArray[np.float32] | None:
        """The alpha of a box as float32 (h, w) in [0, 1]; None where the picture has none."""
        _, alpha = self._part(box)
        return None if alpha is None else from_levels(alpha)

    def with_samples(self, samples: NDArray[Any]) -> Picture:
        """The same picture with other samples of the same kind; name, path and hash stay."""
        if samples.dtype != self.samples.dtype or samples.shape[2:] != self.samples.shape[2:]:
            raise ValueError(f"samples {samples.dtype} {samples.shape} do not suit {self.mode}")
        return replace(self, samples=samples)

    def to_srgb(self) -> Picture:
        """The same in sRGB without a profile, RGB or RGBA, as deep as it is."""
        alpha = self._part(None)[1]
        samples = np.empty((self.height, self.width, 3 if alpha is None else 4), self.samples.dtype)
        for rows in self.bands():
            samples[rows.slices][..., :3] = to_levels(self.rgb(rows), self.depth)
        if alpha is not None:
            samples[..., 3] = alpha
        return replace(self, samples=samples, mode="RGB" if alpha is None else "RGBA", icc=None)

    def to_8_bits(self) -> Picture:
        """The same with 8 bits a sample, rounded."""
        if self.depth == 8:
            return self
        levels = np.empty(self.samples.shape, np.uint8)
        for rows in self.bands():
            part = self.samples[rows.slices].astype(np.uint32)
            levels[rows.slices] = (part + 128) // 257
        return replace(self, samples=levels)

    def to_pil(self) -> PilImage.Image:
        """A PIL image of the same mode with 8 bits and the colour profile in its info."""
        samples = np.ascontiguousarray(self.to_8_bits().samples)
        image = PilImage.frombytes(self.mode, self.size, samples.tobytes())
        if self.icc is not None:
            image.info["icc_profile"] = self.icc
        return image

    def with_usable_profile(self) -> Picture:
        """The same where its profile can be used; else without it, and the log says so."""
        if self.icc is None:
            return self
        try:
            kind = check_profile(self.icc, self.mode.removesuffix("A"))
        except ValueError as error:
            _log.info("%s: its colour profile is passed over (%s)", self.name, error)
            return replace(self, icc=None)
        if kind == "one-way":
            # Nothing could be written in a scanner's space: leave it at once.
            _log.info(
                "%s: its colour profile only goes one way; all of it is converted to sRGB",
                self.name,
            )
            return self.to_srgb()
        return self

    @property
    def _profile(self) -> bytes | None:
        """The profile; None where there is none or it is sRGB's."""
        kind = self.mode.removesuffix("A")
        return None if self.icc is None or check_profile(self.icc, kind) == "srgb" else self.icc

    def _part(self, box: Box | None) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """The samples of a box without alpha, (h, w, C), and that (h, w), if any."""
        box = box or Box.of_size(self.size)
        if box.x < 0 or box.y < 0 or box.right > self.width or box.bottom > self.height:
            raise InputError(
                f"box {box.x},{box.y},{box.width},{box.height} is not inside {self.name}, which is "
                f"{self.width} x {self.height} pixels."
            )
        part = self.samples[box.slices].reshape(box.height, box.width, -1)
        if self.mode not in ("LA", "RGBA"):
            return part, None
        return part[..., :-1], part[..., -1]


def name_of(path: str | os.PathLike[str]) -> str:
    """A path's last part as it stands in a message: printable, on one line, never long."""
    try:
        text = os.fsdecode(path)
    except (TypeError, ValueError):
        return "picture"
    name = os.path.basename(text.rstrip("/\\")) or text
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= 80 else name[:79] + "…"
