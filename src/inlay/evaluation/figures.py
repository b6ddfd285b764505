"""Figures of two pictures, pixel by pixel: errors, likeness."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab

from inlay.errors import InputError
from inlay.pictures.arrays import Box, Mask, luma

# In dB. Without a cap one faultless case would make every mean infinite.
MAX_PSNR = 60.0
# How far a window of SSIM's reaches, and how far beside a seam its surroundings lie, in pixels.
REACH, _BESIDE = 5, 2

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
    """SSIM (Wang et al. 2004, equation 13) of uint8 (h, w, 3) at each place whose window is inside:
    by their Gaussian of 1.5 pixels, or as skimage has it by a mean of 7 x 7 and sample covariance.
    """
    import cv2

    def mean(values: NDArray[Any]) -> NDArray[Any]:
        if gaussian:
            return np.asarray(cv2.GaussianBlur(values, (2 * REACH + 1,) * 2, 1.5))
        return np.asarray(cv2.blur(values, (7, 7)))

    x, y, bessel = one.astype(np.float64), two.astype(np.float64), 1.0 if gaussian else 49 / 48
    mean_x, mean_y = mean(x), mean(y)
    spread = bessel * (mean(x * x + y * y) - mean_x**2 - mean_y**2)
    joint = bessel * (mean(x * y) - mean_x * mean_y)
    first, second = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = (2 * mean_x * mean_y + first) * (2 * joint + second)
    found /= (mean_x**2 + mean_y**2 + first) * (spread + second)
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


def seam(image: Image, worked: Mask, box: Box) -> float | dict[str, float]:
    """How much larger the steps of luma across the edge of what was worked on, a mask inside a box,
    are than the steps beside it, up to 2 pixels away, on average; in levels of 8 bits. A flat
    square d brighter than what is round it has d, a photograph that nobody touched about 0.
    """
    near = box.grown(_BESIDE + 1).intersect(Box.of_size(image.shape[1::-1]))
    if near is None:
        return {}
    light, inside = luma(image[near.slices].astype(np.float32)), worked[near.slices]
    across, beside = [], []
    for values, marks in ((light, inside), (light.T, inside.T)):
        steps, crossed = np.abs(np.diff(values)), np.diff(marks)
        wide = np.pad(crossed, ((0, 0), (_BESIDE, _BESIDE)))
        shifts = range(2 * _BESIDE + 1)
        close = np.any([wide[:, n : n + crossed.shape[1]] for n in shifts], axis=0)
        across.append(steps[crossed])
        beside.append(steps[close & ~crossed])
    edge, rest = np.concatenate(across), np.concatenate(beside)
    return float(edge.mean() - rest.mean()) if edge.size and rest.size else {}


def bytes_changed(one: Image, two: Image, box: Box) -> int:
    """How many bytes of two RGB pictures differ outside a box."""
    differs, inside = one != two, box.intersect(Box.of_size(one.shape[1::-1]))
    within = np.count_nonzero(differs[inside.slices]) if inside else 0
    return int(np.count_nonzero(differs) - within)
