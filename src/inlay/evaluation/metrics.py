"""How far an object lies from the truth: error, PSNR and colour difference inside its mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inlay.errors import InputError

__all__ = ["MAX_PSNR", "Figures", "delta_e", "fmse", "measure", "psnr"]

Image = NDArray[np.uint8]

# In dB. Without a cap one faultless case would make every mean infinite.
MAX_PSNR = 60.0


@dataclass(frozen=True)
class Figures:
    """fmse in squared 8-bit levels, fpsnr in dB, delta_e in units of CIEDE2000."""

    fmse: float
    fpsnr: float
    delta_e: float


def measure(result: Image, truth: Image, mask: NDArray[np.float32]) -> Figures:
    """All figures of a result; pictures are uint8 (h, w, 3) sRGB, the mask float32 (h, w).

    Pixels count where the mask is above 0.5. Raises InputError where no pixel counts or the sizes
    differ.
    """
    one, two = _inside(result, truth, mask)
    error = _mean_square(one, two)
    return Figures(error, psnr(error), _difference(one, two))


def fmse(result: Image, truth: Image, mask: NDArray[np.float32]) -> float:
    """Mean squared error over the pixels and channels inside the mask, in 8-bit levels."""
    return _mean_square(*_inside(result, truth, mask))


def psnr(mean_square: float) -> float:
    """Peak signal-to-noise ratio in dB of an error in squared 8-bit levels, at most MAX_PSNR."""
    floor = 255.0**2 / 10 ** (MAX_PSNR / 10)
    return float(10 * np.log10(255.0**2 / max(mean_square, floor)))


def delta_e(result: Image, truth: Image, mask: NDArray[np.float32]) -> float:
    """Mean CIEDE2000 colour difference inside the mask (Sharma, Wu and Dalal 2005), under D65."""
    return _difference(*_inside(result, truth, mask))


def _inside(result: Image, truth: Image, mask: NDArray[np.float32]) -> tuple[Image, Image]:
    """The pixels (n, 3) of both pictures that count."""
    if result.shape != truth.shape or result.shape != (*mask.shape, 3):
        raise InputError(
            f"the result is {result.shape}, the truth {truth.shape} and the mask {mask.shape}; "
            "expected arrays of one height and width."
        )
    chosen = mask > 0.5
    if not chosen.any():
        raise InputError("the mask is nowhere above 0.5; expected white where the object is.")
    return result[chosen], truth[chosen]


def _mean_square(one: Image, two: Image) -> float:
    return float(np.mean((one.astype(np.float64) - two) ** 2))


def _difference(one: Image, two: Image) -> float:
    from skimage.color import deltaE_ciede2000, rgb2lab

    return float(np.mean(deltaE_ciede2000(rgb2lab(one[:, None]), rgb2lab(two[:, None]))))
