"""Fine detail of a photo of the object, carried over to a sample of it.

A model that works at a small size garbles text and pattern (DreamCom's own stated limitation, arXiv
2309.15508). Where the two show the same, what is coarse is the sample's and what is finer than the
model's pixels the photo's. It takes the place of the sample's: added, it would be there twice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inlay.pictures.arrays import Image, blur, distance, luma, resize, smoothstep

Matrix = NDArray[np.float64]

# How far a photo may be turned, scaled and moved to fit, in degrees, as a factor and in box sizes.
_MOST_TURNED = 20.0
_MOST_SCALED = 1.3
_MOST_MOVED = 0.25
# Alignment begins with the box at most so many pixels wide, from each of these turns and scales.
_COARSE_SIDE = 48
_TURNS = (-13.0, 0.0, 13.0)
_SCALES = (0.87, 1.0, 1.15)
# Blur of the luminance that is compared, in the pixels it is compared at.
_BLUR = 1.0
_ROUNDS, _ENOUGH = 60, 1e-4
# The share of the object that a photo must show for the two to be compared.
_LEAST_SHARED = 0.3
# A box thinner than this in the model's picture has nothing to be aligned by.
_LEAST_SIDE = 8
# Above so many pixels of the box the photo is not resampled at twice its size.
_LARGE = 1_000_000


@dataclass(frozen=True, eq=False)
class Reference:
    """A photo's crop to the object's box: rgb (h, w, 3) and alpha (h, w), both in [0, 1]."""

    name: str
    rgb: Image
    alpha: Image


def align(sample: Image, inside: Image, reference: Reference) -> tuple[float, Matrix] | None:
    """How a photo lies over a sample of its object; None where it does not fit.

    sample (h, w, 3) in [0, 1] is the box at the model's size, inside (h, w) where the object is in
    it. Returns the normalised cross-correlation of the two's luminance inside the object, and the
    affine map (2, 3) of a pixel of the sample to one of the photo stretched over it that maximises
    the enhanced correlation coefficient (Evangelidis and Psarakis 2008), from several starts. One
    that turns, scales or moves by much does not count, nor one that shows little of the object.
    """
    size: tuple[int, int] = inside.shape[0], inside.shape[1]
    if min(size) < _LEAST_SIDE:
        return None
    scale = min(1.0, _COARSE_SIDE / max(size))
    small = max(_LEAST_SIDE, round(size[0] * scale)), max(_LEAST_SIDE, round(size[1] * scale))
    coarse, fine = (_Pair(sample, inside, reference, each) for each in (small, size))
    middle = (small[1] - 1) / 2, (small[0] - 1) / 2
    tries = itertools.product(_TURNS, _SCALES)
    starts = [np.asarray(cv2.getRotationMatrix2D(middle, *each), np.float64) for each in tries]
    fits = [fit for start in starts if (fit := coarse.refine(start)) is not None]
    # What shows little of the object can correlate well by chance.
    fits = [fit for fit in fits if _is_modest(fit[1], small)]
    if not fits:
        return None
    start = scale_map(max(fits, key=lambda fit: fit[0])[1], small, size)
    _, matrix = fine.refine(start) or (0, start)
    agreement = fine.agreement(matrix) if _is_modest(matrix, size) else None
    return None if agreement is None else (agreement, matrix)


def add_details(
    image: Image,
    inside: Image,
    model_pixel: tuple[float, float],
    references: Sequence[Reference],
    amount: float,
    least: float,
    feather: float,
) -> tuple[Image, str]:
    """A sample with the fine detail of the photo that agrees with it best, and what was done.

    image (h, w, 3) is the object's box at full resolution, not clipped, inside (h, w) the object's
    alpha in it. model_pixel is (height, width) of one of the model's pixels in pixels of `image`.
    With b the band finer than one of the model's pixels it is image + w (b(photo) - b(image)); w
    is `amount` inside the object and falls to 0 over `feather` pixels towards its edge. A photo
    whose agreement is below `least` is not used.
    """
    shape = image.shape[:2]
    size = max(1, round(shape[0] / model_pixel[0])), max(1, round(shape[1] / model_pixel[1]))
    sample, mask = np.clip(resize(image, size), 0, 1), resize(inside, size)
    matches = [(align(sample, mask, one), one) for one in references]
    fits = [(*match, one) for match, one in matches if match is not None]
    if not fits:
        return image, "no photo of the object fits the sample, so none lends its details"
    agreement, matrix, chosen = max(fits, key=lambda fit: fit[0])
    told = f"{chosen.name} (agreement {agreement:.2f})"
    if agreement < least:
        return image, f"no photo agrees with the sample enough to lend its details; best: {told}"
    sigma = math.sqrt(model_pixel[0] * model_pixel[1])
    band, shown = fine_band(chosen, scale_map(matrix, size, shape), shape, sigma)
    alpha = np.minimum(inside, shown)
    # Towards the object's edge, and the picture's border is one too.
    away = distance(np.pad(alpha <= 0.5, 1, constant_values=True))[1:-1, 1:-1]
    weight = amount * (alpha * smoothstep(away / max(feather, 1.0)))
    made = image + weight[..., None] * (band - (image - blur(image, sigma)))
    return np.asarray(made, np.float32), f"details of {told}"


def fine_band(
    reference: Reference, matrix: Matrix, shape: tuple[int, int], sigma: float
) -> tuple[Image, Image]:
    """What of a photo is finer than a Gaussian of `sigma` pixels (h, w, 3), and its alpha (h, w),
    whose edge does not count as detail.

    matrix (2, 3) takes a pixel of (height, width) to one of the photo stretched over it.
    """
    # Twice as many pixels keep what two resamplings would blur.
    factor = 2 if shape[0] * shape[1] <= _LARGE else 1
    large = factor * shape[0], factor * shape[1]
    paint = np.dstack([reference.rgb * reference.alpha[..., None], reference.alpha])
    paint = resize(np.ascontiguousarray(paint, np.float32), large)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(paint, scale_map(matrix, shape, large), large[::-1], flags=flags)
    moved = resize(np.asarray(moved, np.float32), shape)
    alpha = np.clip(moved[..., 3], 0, 1)
    # Blurred with alpha as weights, so that nothing of the photo's background gets in.
    low = blur(moved, sigma)
    own = moved[..., :3] / np.maximum(moved[..., 3:], 0.5)
    band = own - low[..., :3] / np.maximum(low[..., 3:], 1e-3)
    return np.asarray(np.where(alpha[..., None] > 0.5, band, 0), np.float32), alpha


def scale_map(matrix: Matrix, size: tuple[int, int], new: tuple[int, int]) -> Matrix:
    """A map (2, 3) between pictures of `size` (height, width) as one between those of `new`."""
    # The middle of the first pixel is at 0, so a picture begins at -0.5.
    sx, sy = size[1] / new[1], size[0] / new[0]
    into = np.array([[sx, 0, sx / 2 - 0.5], [0, sy, sy / 2 - 0.5], [0, 0, 1]])
    whole = np.linalg.inv(into) @ np.vstack([matrix, [0, 0, 1]]) @ into
    return np.asarray(whole[:2])


class _Pair:
    """A sample and a photo stretched over it, at one size: blurred luminance and masks (h, w)."""

    def __init__(
        self, sample: Image, inside: Image, reference: Reference, size: tuple[int, int]
    ) -> None:
        self.sample, self.photo = (
            blur(resize(luma(rgb), size), _BLUR) for rgb in (sample, reference.rgb)
        )
        self.inside, self.shown = resize(inside, size), resize(reference.alpha, size)

    def refine(self, start: Matrix) -> tuple[float, Matrix] | None:
        """The correlation and the map from a start; None where that leads nowhere."""
        # Of a photo whose shape is not known only what lies near the object counts.
        reach = max(1, round(0.1 * max(self.inside.shape)))
        kernel = np.ones((2 * reach + 1,) * 2, np.uint8)
        near = cv2.dilate((self.inside > 0.5).astype(np.uint8), kernel)
        counts = near * (self.shown > 0.5).astype(np.uint8)
        stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, _ROUNDS, _ENOUGH)
        told = start.astype(np.float32), cv2.MOTION_AFFINE, stop, counts, 1
        try:
            score, matrix = cv2.findTransformECC(self.sample, self.photo, *told)
        except cv2.error:
            # It gives up where nothing overlaps or nothing varies.
            return None
        if not np.isfinite(score) or not np.isfinite(matrix).all():
            return None
        return float(score), np.asarray(matrix, np.float64)

    def agreement(self, matrix: Matrix) -> float | None:
        """Normalised cross-correlation inside the object; None where too little is shown."""
        size = self.inside.shape[::-1]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        photo, shown = (
            cv2.warpAffine(one, matrix, size, flags=flags) for one in (self.photo, self.shown)
        )
        covered = self.inside > 0.5
        both = covered & (shown > 0.5)
        if not both.any() or both.sum() < _LEAST_SHARED * covered.sum():
            return None
        one, other = (image[both] - image[both].mean() for image in (self.sample, photo))
        length = float(np.sqrt((one**2).sum() * (other**2).sum()))
        return float((one * other).sum()) / length if length > 1e-6 else None


def _is_modest(matrix: Matrix, size: tuple[int, int]) -> bool:
    """Whether a map turns, scales and moves a picture of (height, width) by little."""
    linear, sides = matrix[:, :2], np.array([size[1], size[0]])
    left, scales, right = np.linalg.svd(linear)
    turn, middle = left @ right, (sides - 1) / 2
    moved = np.abs(linear @ middle + matrix[:, 2] - middle) / sides
    return bool(
        np.linalg.det(linear) > 0
        and abs(math.degrees(math.atan2(turn[1, 0], turn[0, 0]))) <= _MOST_TURNED
        and scales.max() <= _MOST_SCALED
        and scales.min() >= 1 / _MOST_SCALED
        and moved.max() <= _MOST_MOVED
    )
