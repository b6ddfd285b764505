"""Boxes, and what pictures and masks as arrays need everywhere: sizes, blurs, distances, luma.

A box is x, y, width, height in whole pixels, origin top left. Unless said otherwise images are
float32 (h, w) or (h, w, c) and masks bool or float32 (h, w).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from inlay.errors import InputError

if TYPE_CHECKING:
    import pyvips

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
T = TypeVar("T", np.uint8, np.float32)

# Half of the smallest step of an 8-bit mask: what is fainter than this is not there.
FAINT = 0.5 / 255
# The largest number of a box.
_LIMIT = 1_000_000
# Pixels of a band of rows.
_BAND = 1 << 18
# Weights of red, green and blue in luma (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Below this weight a masked mean says nothing.
_LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class Box:
    """An axis-aligned box of whole pixels; it may lie partly outside a picture.

    Numbers are rounded to the nearest pixel. Raises InputError for numbers that are not finite,
    beyond a million pixels, or for a width or height below one pixel.
    """

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            number = math.nan
            with suppress(TypeError, ValueError):
                number = float(value)
            if not abs(number) <= _LIMIT:
                raise InputError(
                    f"box {name} is {value!r}; expected a number of at most {_LIMIT} pixels."
                )
            object.__setattr__(self, name, math.floor(number + 0.5))
        if self.width < 1 or self.height < 1:
            raise InputError(
                f"box width and height are {self.width} and {self.height}; both must be at least 1."
            )

    @classmethod
    def of_size(cls, size: tuple[int, int]) -> Box:
        """The whole of a picture of (width, height)."""
        return cls(0, 0, size[0], size[1])

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def bottom(self) -> int:
        return self.y + self.height

    @property
    def area(self) -> int:
        return self.width * self.height

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices for an array whose origin is the box's origin."""
        return slice(self.y, self.bottom), slice(self.x, self.right)

    def intersect(self, other: Box) -> Box | None:
        """The common part, or None where there is none."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        return Box(x, y, right - x, bottom - y) if right > x and bottom > y else None

    def hull(self, other: Box) -> Box:
        """The smallest box that holds both."""
        x, y = min(self.x, other.x), min(self.y, other.y)
        right, bottom = max(self.right, other.right), max(self.bottom, other.bottom)
        return Box(x, y, right - x, bottom - y)

    def shifted(self, dx: int, dy: int) -> Box:
        return Box(self.x + dx, self.y + dy, self.width, self.height)

    def grown(self, margin: int) -> Box:
        """Larger by `margin` pixels on every side."""
        return Box(
            self.x - margin, self.y - margin, self.width + 2 * margin, self.height + 2 * margin
        )

    def keep(self, mask: Image) -> Image:
        """A mask (h, w) with nothing left outside the box."""
        kept = np.zeros_like(mask)
        kept[self.slices] = mask[self.slices]
        return kept

    def as_dict(self) -> dict[str, int]:
        return {"x": self.x, "y": self.y, "width": self.width, "height": self.height}


def bounds(mask: NDArray[Any], above: float = FAINT) -> Box | None:
    """The smallest box that holds all of a mask (h, w) above a value; None where nothing is."""
    there = mask if mask.dtype == np.bool_ else mask > above
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    if rows.size == 0:
        return None
    x, y = int(columns[0]), int(rows[0])
    return Box(x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1)


def to_uint8(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Values in [0, 1], of any shape, as 8-bit levels, rounded; what lies outside is clipped."""
    return np.asarray(np.round(np.clip(image, 0, 1) * 255), np.uint8)


def row_bands(height: int, width: int) -> Iterator[slice]:
    """The rows of a picture in bands, so that floats of all of it are never needed at once."""
    step = max(1, _BAND // max(width, 1))
    return (slice(start, min(start + step, height)) for start in range(0, height, step))


def from_levels(samples: NDArray[Any]) -> Image:
    """Levels of uint8 or uint16, of any shape, as values in [0, 1]."""
    return np.asarray(samples / np.float32(np.iinfo(samples.dtype).max), np.float32)


def to_levels(values: NDArray[Any], depth: int) -> NDArray[Any]:
    """Values (h, ...) in [0, 1] as levels of 8 or 16 bits, halves rounded up; NaN becomes 0."""
    dtype, top = (np.uint8, 255) if depth == 8 else (np.uint16, 65535)
    levels = np.empty(values.shape, dtype)
    for rows in row_bands(len(values), values[:1].size):
        known = np.nan_to_num(values[rows].astype(np.float64))
        levels[rows] = np.floor(np.clip(known, 0, 1) * top + 0.5)
    return levels


def luma(rgb: Image) -> Image:
    """The brightness (ITU-R BT.601) of sRGB values (..., 3), in their own range."""
    return rgb @ _LUMA


def srgb_encode(linear: NDArray[Any]) -> NDArray[Any]:
    """Linear light in [0, 1] to sRGB values (IEC 61966-2-1), of any shape; floats stay as deep."""
    curved = 1.055 * np.power(linear, 1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, linear * 12.92, curved)


def srgb_decode(values: NDArray[Any]) -> NDArray[Any]:
    """Inverse of srgb_encode(): sRGB values in [0, 1] to linear light; floats stay as deep."""
    curved = np.power((values + 0.055) / 1.055, 2.4)
    return np.where(values <= 0.04045, values / 12.92, curved)


def resize(image: NDArray[T], size: tuple[int, int]) -> NDArray[T]:
    """Resample (h, w) or (h, w, c) to (height, width): area down, cubic up.

    float32 and uint8 stay what they are. Cubic weights overshoot: the values may leave their range.
    """
    import cv2

    height, width = size
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    resized = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=method)
    kind: Any = np.uint8 if image.dtype == np.uint8 else np.float32
    return np.asarray(resized, kind)


def rotate(image: Image, degrees: float, size: tuple[int, int]) -> Image:
    """An image (h, w, c) turned counter-clockwise round its centre, on a canvas of (width, height)
    that holds it; what lies beyond its edge is 0.
    """
    import cv2

    if degrees % 90 == 0:
        return np.rot90(image, int(degrees // 90) % 4)
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    matrix[:, 2] += (size[0] - width) / 2, (size[1] - height) / 2
    # What lies beyond it softens a straight cut.
    turned = cv2.warpAffine(np.ascontiguousarray(image), matrix, size, flags=cv2.INTER_CUBIC)
    return np.asarray(turned, np.float32)


def shrink(image: NDArray[T], short_side: int) -> NDArray[T]:
    """An image (h, w) or (h, w, c) whose shorter side is at most so long; aspect and type stay."""
    height, width = image.shape[:2]
    scale = min(1.0, short_side / min(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return np.ascontiguousarray(resize(image, size))


def vips_image(samples: NDArray[Any], kind: str) -> pyvips.Image:
    """Samples of L, RGB or CMYK, with alpha or without, as libvips sees them."""
    import pyvips

    shades, colours = ("b-w", "srgb") if samples.dtype == np.uint8 else ("grey16", "rgb16")
    names = {"L": shades, "RGB": colours, "CMYK": "cmyk"}
    return pyvips.Image.new_from_array(samples, interpretation=names[kind])


def samples_of(image: pyvips.Image) -> NDArray[Any]:
    """The samples of a libvips image: (h, w), or (h, w, C) where it has several bands."""
    shape = (image.height, image.width, image.bands)
    return np.asarray(image.numpy()).reshape(shape[:2] if image.bands == 1 else shape)


def blur(image: Image, sigma: float, *, down: float = 0, mirror: bool = False) -> Image:
    """A Gaussian of `sigma` pixels, of `down` pixels along columns if given, for each channel.

    Beyond the border the outermost pixels go on, or, with `mirror`, the image in a mirror.
    """
    import cv2

    border = cv2.BORDER_REFLECT_101 if mirror else cv2.BORDER_REPLICATE
    blurred = cv2.GaussianBlur(image, (0, 0), sigma, sigmaY=down, borderType=border)
    return np.asarray(blurred, np.float32)


def masked_blur(image: Image, mask: Image, sigma: float, *, mirror: bool = False) -> Image:
    """As `blur`, but the mean of what lies inside a mask (h, w) in [0, 1] only.

    Normalised convolution (Knutsson and Westin 1993). Where no weight is near, it falls to 0.
    """
    weight = blur(mask, sigma, mirror=mirror)
    if image.ndim == 3:
        mask, weight = mask[..., None], weight[..., None]
    total = blur(image * mask, sigma, mirror=mirror)
    return np.asarray(total / np.maximum(weight, _LEAST_WEIGHT), np.float32)


def distance(mask: Mask, *, exact: bool = False) -> Image:
    """How far each pixel lies from the nearest one of a mask (h, w), in pixels; 0 inside.

    Chamfer distance over 5 x 5 pixels (off by up to 2%), or the exact Euclidean one. Where
    the mask is empty it is very large.
    """
    import cv2

    size = cv2.DIST_MASK_PRECISE if exact else 5
    return np.asarray(cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, size))


def softness(mask: Image) -> float:
    """How many pixels wide the edge of a mask (h, w) is, about: none of a drawn outline, about one
    of an antialiased one, many of a feathered one.
    """
    near = bounds(mask)
    part = mask if near is None else mask[near.slices]
    hard = part > 0.5
    edge = np.count_nonzero(hard[:, 1:] != hard[:, :-1]) + np.count_nonzero(hard[1:] != hard[:-1])
    return int(np.count_nonzero((part > 0.1) & (part < 0.9))) / max(int(edge), 1)


def grow(mask: Mask, pixels: float) -> Mask:
    """The mask (h, w) and every pixel within an exact distance of it."""
    if pixels < 1 or not mask.any():
        return mask
    return np.asarray(distance(mask, exact=True) <= pixels)


def smoothstep(values: Image) -> Image:
    """3 t^2 - 2 t^3 for values clipped to [0, 1]: from 0 to 1 without a corner at either end."""
    t = np.clip(values, 0, 1)
    return t * t * (3 - 2 * t)


def soft_rim(mask: Mask, radius: float) -> Image:
    """A weight (h, w): 1 inside the mask, falling to 0 over `radius` pixels (at least 1) beyond."""
    return smoothstep(1 - distance(mask) / max(radius, 1.0))


def extend(colour: Image, known: Mask) -> Image:
    """Colours (h, w, 3) that are known in a mask; elsewhere the nearest of them, else grey."""
    import cv2

    if known.all() or not known.any():
        return colour if known.any() else np.full_like(colour, 0.5)
    _, labels = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    nearest = np.zeros(int(labels.max()) + 1, np.int64)
    nearest[labels[known]] = np.flatnonzero(known)
    continued: Image = colour.reshape(-1, 3)[nearest[labels]]
    return continued
