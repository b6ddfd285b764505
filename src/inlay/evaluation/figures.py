"""Figures of two pictures, pixel by pixel: errors, likeness."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity

from inlay.errors import InputError
from inlay.pictures.arrays import Box

# In dB. Without a cap one faultless case would make every mean infinite.
MAX_PSNR = 60.0
# How far a window of SSIM's reaches, in pixels.
REACH = 5

Image = NDArray[np.uint8]


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


def ssim(one: Image, two: Image, gaussian: bool = True) -> NDArray[np.float64]:
    """SSIM (Wang et al. 2004) of uint8 (h, w, 3) at each place whose window is inside: with their
    Gaussian of 1.5 pixels, or as skimage has it with a mean of 7 x 7.
    """
    more = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    rule: dict[str, Any] = {"channel_axis": -1, "data_range": 255, "full": True}
    found = structural_similarity(one, two, **rule, **(more if gaussian else {}))[1]
    edge = REACH if gaussian else 3
    return np.asarray(found[edge:-edge, edge:-edge].mean(-1), np.float64)


def ssim_outside(box: Box, one: Image, two: Image) -> float | dict[str, float]:
    """Its mean over the places whose window does not touch the box."""
    found = ssim(one, two)
    near = box.grown(REACH).intersect(Box.of_size(one.shape[1::-1]))
    touched = near and near.shifted(-REACH, -REACH).intersect(Box.of_size(found.shape[::-1]))
    left, count = found.sum(), found.size
    if touched:
        part = found[touched.slices]
        left, count = left - part.sum(), count - part.size
    return float(left / count) if count else {}
