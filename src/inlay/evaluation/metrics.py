"""How far an object lies from the truth: error, PSNR and colour difference inside its mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab

from inlay.errors import InputError

Image = NDArray[np.uint8]

# In dB. Without a cap one faultless case would make every mean infinite.
MAX_PSNR = 60.0


def measure(result: Image, truth: Image, mask: NDArray[np.float32]) -> dict[str, float]:
    """All figures of a result; pictures are uint8 (h, w, 3) sRGB, the mask float32 (h, w).

    Pixels count where the mask is above 0.5. fmse is in squared 8-bit levels, fpsnr in dB, delta_e
    the mean CIEDE2000 (Sharma, Wu and Dalal 2005) under D65. Raises InputError where no pixel
    counts or the sizes differ.
    """
    error = fmse(result, truth, mask)
    one, two = (rgb2lab(picture[mask > 0.5][:, None]) for picture in (result, truth))
    delta_e = float(np.mean(deltaE_ciede2000(one, two)))
    return {"fmse": error, "fpsnr": psnr(error), "delta_e": delta_e}


def fmse(result: Image, truth: Image, mask: NDArray[np.float32]) -> float:
    """Mean squared error over the pixels and channels inside the mask, in 8-bit levels."""
    if result.shape != truth.shape or result.shape != (*mask.shape, 3):
        raise InputError(
            f"the result is {result.shape}, the truth {truth.shape} and the mask {mask.shape}; "
            "expected arrays of one height and width."
        )
    chosen = mask > 0.5
    if not chosen.any():
        raise InputError("the mask is nowhere above 0.5; expected white where the object is.")
    return float(np.mean((result[chosen].astype(np.float64) - truth[chosen]) ** 2))


def psnr(mean_square: float) -> float:
    """Peak signal-to-noise ratio in dB of an error in squared 8-bit levels, at most MAX_PSNR."""
    floor = 255.0**2 / 10 ** (MAX_PSNR / 10)
    return float(10 * np.log10(255.0**2 / max(mean_square, floor)))
