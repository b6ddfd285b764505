"""A picture: native samples with patches over them, and the colours of any part of it.

Samples stay as the file stores them (8 or 16 bits; grey, RGB or CMYK; its own colour profile).
Methods see floats, and `Picture.native` turns what they made back into such samples, which lie over
the old ones as a patch; whatever is not changed is never converted nor copied.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from inlay.errors import InputError
from inlay.pictures.arrays import Box, from_levels, row_bands, samples_of, to_levels, vips_image
from inlay.pictures.colour import check_profile, from_srgb, to_srgb

if TYPE_CHECKING:
    import pyvips


class Stored:
    """The samples of a file, decoded anew for each box of them: too many to be held in memory."""

    def __init__(self, open_image: Callable[[], pyvips.Image]) -> None:
        self.open, image = open_image, open_image()
        self.shape = (image.height, image.width, image.bands)[: 3 if image.bands > 1 else 2]
        self.dtype = np.dtype(np.uint8 if image.format == "uchar" else np.uint16)

    def __getitem__(self, slices: tuple[slice, slice]) -> NDArray[Any]:
        (top, bottom), (left, right) = ((part.start, part.stop) for part in slices)
        return samples_of(self.open().crop(left, top, right - left, bottom - top))


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture, read-only.

    base: its samples, uint8 or uint16, (height, width) for grey, else (height, width, channels).
    mode: L, LA, RGB, RGBA or CMYK. icc: the embedded colour profile as found, None where there is
    none (then grey and RGB are sRGB). name: what to call it in messages. sha256: of the file's
    bytes, or of the samples of a PIL image or array. path: the file it came from, if any. facts:
    what its file says besides, by libvips' names: xres, yres (pixels a mm), exif-data, xmp-data,
    iptc-data. patches: samples that lie over the base, later ones over earlier ones. jpeg: the
    bytes of a JPEG file whose blocks are the base's.
    """

    base: NDArray[Any] | Stored = field(repr=False)
    mode: str
    icc: bytes | None = field(repr=False)
    name: str
    sha256: str = ""
    path: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    patches: tuple[tuple[Box, NDArray[Any]], ...] = field(default=(), repr=False)
    jpeg: bytes = field(default=b"", repr=False)

    @property
    def width(self) -> int:
        return int(self.base.shape[1])

    @property
    def height(self) -> int:
        return int(self.base.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height

    @property
    def depth(self) -> int:
        """Bits of a sample: 8 or 16."""
        return 8 * int(self.base.dtype.itemsize)

    @property
    def kind(self) -> str:
        """The mode without alpha: L, RGB or CMYK."""
        return self.mode.removesuffix("A")

    @property
    def samples(self) -> NDArray[Any]:
        """All samples, patches included."""
        return self.crop()

    def crop(self, box: Box | None = None) -> NDArray[Any]:
        """The samples of a box inside (all where None); they may be the picture's own."""
        box = box or Box.of_size(self.size)
        if box.x < 0 or box.y < 0 or box.right > self.width or box.bottom > self.height:
            raise InputError(f"{box} is not inside {self.name}, whose size is {self.size}.")
        part = self.base[box.slices]
        covers = [(common, *patch) for patch in self.patches if (common := box.intersect(patch[0]))]
        if covers:
            part = part.copy()
        for common, place, samples in covers:
            own = samples[common.shifted(-place.x, -place.y).slices]
            part[common.shifted(-box.x, -box.y).slices] = own
        return part

    def image(self) -> pyvips.Image:
        """It as libvips sees it, without anything that is said of it."""
        if isinstance(self.base, Stored):
            image = self.base.open()
            for said in image.get_fields():
                image.remove(said)
        else:
            image = vips_image(self.base, self.kind)
        for box, samples in self.patches:
            image = image.insert(vips_image(samples, self.kind), box.x, box.y)
        return image

    def patched(self, box: Box, samples: NDArray[Any]) -> Picture:
        """The same picture with other samples of the same kind in a box."""
        if samples.dtype != self.base.dtype or samples.shape[2:] != self.base.shape[2:]:
            raise ValueError(f"samples {samples.dtype} {samples.shape} do not suit {self.mode}")
        seen = [patch for patch in self.patches if patch[0].hull(box) != box]
        return replace(self, patches=(*seen, (box, samples)))

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
        part = self._split(self.crop(box))[0]
        return from_levels(part) if self.kind == "RGB" else to_srgb(part, self._inks)

    def rgb(self, box: Box | None = None) -> NDArray[np.float32]:
        """As `colours`, but sRGB always; colours that sRGB does not hold are clipped."""
        return to_srgb(self._split(self.crop(box))[0], self._profile)

    def levels(self, values: NDArray[np.float32]) -> NDArray[Any]:
        """Values in [0, 1] as samples of this picture's depth."""
        return to_levels(values, self.depth)

    def native(self, colours: NDArray[np.float32]) -> NDArray[Any]:
        """Samples of this picture's kind and depth for colours (h, w, 3): `colours` back, rounded.

        Alpha is left out: (h, w, 1) for L and LA, (h, w, 3) for RGB and RGBA, (h, w, 4) for CMYK.
        Values outside [0, 1] are clipped, NaN becomes 0.
        """
        if self.kind == "RGB":
            return self.levels(colours)
        return from_srgb(colours, self.kind, self._inks, self.depth)

    def alpha(self, box: Box | None = None) -> NDArray[np.float32] | None:
        """The alpha of a box as float32 (h, w) in [0, 1]; None where the picture has none."""
        alpha = self._split(self.crop(box))[1]
        return None if alpha is None else from_levels(alpha)

    def converted(
        self, *, opaque: bool = False, shallow: bool = False, srgb: bool = False
    ) -> Picture:
        """It laid over white, with 8 bits a sample and in sRGB without a profile, in this order."""
        whole, kind = self.samples, "RGB" if srgb else self.kind
        mode = kind if opaque else self.mode.replace(self.kind, kind)
        parts = []
        # In bands: floats of all of it are never needed at once.
        for rows in row_bands(self.height, self.width):
            colours, alpha = self._split(whole[rows])
            if opaque and alpha is not None:
                share = from_levels(alpha)[..., None]
                colours = to_levels(from_levels(colours) * share + 1 - share, self.depth)
            layers = [colours] if opaque or alpha is None else [colours, alpha[..., None]]
            if shallow and self.depth == 16:
                layers = [((levels + np.uint32(128)) // 257).astype(np.uint8) for levels in layers]
            if srgb:
                depth = 8 * layers[0].itemsize
                layers[0] = to_levels(to_srgb(layers[0], self._profile), depth)
            samples = np.concatenate(layers, axis=-1)
            parts.append(samples[..., 0] if mode == "L" else samples)
        base, icc = np.concatenate(parts), None if srgb else self.icc
        return replace(self, base=base, mode=mode, icc=icc, patches=(), jpeg=b"")

    def to_pil(self) -> PilImage.Image:
        """A PIL image of the same mode with 8 bits and the colour profile in its info."""
        samples = self.samples if self.depth == 8 else self.converted(shallow=True).samples
        image = PilImage.frombytes(self.mode, self.size, samples.tobytes())
        if self.icc is not None:
            image.info["icc_profile"] = self.icc
        return image

    @property
    def _profile(self) -> bytes | None:
        """The profile; None where there is none or it is sRGB's."""
        return None if not self.icc or check_profile(self.icc, self.kind) == "srgb" else self.icc

    @property
    def _inks(self) -> bytes | None:
        """The profile where `colours` are not in its space."""
        return self._profile if self.mode == "CMYK" else None

    def _split(self, samples: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Samples without alpha, (h, w, C), and that (h, w), if any."""
        samples = samples.reshape(*samples.shape[:2], -1)
        clear = self.mode.endswith("A")
        return (samples[..., :-1], samples[..., -1]) if clear else (samples, None)


def name_of(path: str | os.PathLike[str]) -> str:
    """A path's last part as it stands in a message: printable, on one line, never long."""
    text = os.fsdecode(path)
    name = os.path.basename(text.rstrip("/\\")) or text
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= 80 else name[:79] + "…"
