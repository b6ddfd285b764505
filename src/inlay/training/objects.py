"""The whole objects in photographs, as the cutter finds them, and moved as pasting moves them."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
from numpy.typing import NDArray

from inlay.pictures.arrays import blur, from_levels
from inlay.scene.cutter import find_subject

Image = NDArray[np.uint8]
Mask = NDArray[np.float32]

# Smallest and largest share of the picture that an object takes.
_AREA = (0.03, 0.7)
# The IoU that the cutter expects of its answer, below which that is no object.
_EXPECTED = 0.3
# What is erased is grey: the middle of what networks read.
_ERASED = 128


def find_objects(picture: Image, limit: int = 3) -> list[Mask]:
    """Masks of up to `limit` whole things in a photograph, the largest first; perhaps none.

    They are the pieces of what the cutter that ships with inlay takes for the subject. picture is
    uint8 (h, w, 3), sRGB. Masks are float32 (h, w) in [0, 1] on the levels of 8 bits, with an
    antialiased edge; each takes 3 to 70 percent of the picture and has no holes. The same picture
    gives the same masks.
    """
    if min(picture.shape[:2]) < 32:
        return []
    found, expected = find_subject(from_levels(picture))
    inside = (found > 0.5).astype(np.uint8)
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    masks: list[Mask] = []
    for outline in sorted(outlines, key=cv2.contourArea, reverse=True)[:limit]:
        filled = cv2.drawContours(inside * 0, [outline], -1, 255, cv2.FILLED, cv2.LINE_AA)
        mask = from_levels(np.asarray(filled))
        if _AREA[0] <= mask.mean() <= _AREA[1] and expected >= _EXPECTED:
            masks.append(mask)
    return masks


class ObjectCache:
    """The objects of pictures: those that find_objects() finds, or the one that came along.

    Looking costs more than a tenth of a second a picture, so it happens when a picture is first
    drawn; masks are kept, a bit a pixel.
    """

    def __init__(self) -> None:
        self._packed: dict[tuple[int, bytes], Image] = {}

    def of(self, picture: Image) -> list[Image]:
        """Masks (H, W), uint8, 255 on the object, of a picture (H, W, 3); perhaps none. A picture
        (H, W, 4) brings its one object in the last channel.
        """
        if picture.shape[2] == 4:
            return [np.ascontiguousarray(picture[..., 3])]
        height, width = picture.shape[:2]
        name = height, hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
        if name not in self._packed:
            masks = [mask > 0.5 for mask in find_objects(picture)]
            self._packed[name] = np.packbits(
                np.array(masks, bool).reshape(-1, height, width), axis=2
            )
        return [*(np.unpackbits(self._packed[name], axis=2, count=width) * np.uint8(255))]


def widen(mask: NDArray[np.generic], reach: int) -> Mask:
    """A mask (h, w) made wider by `reach` pixels, or narrower by minus that; float32."""
    flags = mask.astype(np.float32)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * abs(reach) + 1,) * 2)
    return np.asarray(cv2.dilate(flags, kernel) if reach > 0 else cv2.erode(flags, kernel))


def move_object(
    truth: Image, pasted: Image, mask: Mask, rng: np.random.Generator
) -> tuple[Image, Mask, Mask]:
    """The pasted picture with its object moved, the object's alpha, and the region of both.

    What pasting does to an object besides its light, after PhD's training (Zhang et al. 2023, arXiv
    2306.07596). In units of the longer side: its edge is eroded by up to 0.016 and softened, it is
    turned by up to 8 degrees, scaled by up to 2^0.1, shifted by up to 0.015, bent, and half of the
    time blurred. The region, 1 on all that it covers or covered and 0.02 to 0.08 round that, is
    erased but for it. Pictures are uint8 (h, w, 3), masks float32 (h, w) in [0, 1].
    """
    height, width = mask.shape
    side = max(mask.shape)
    alpha = widen(mask > 0.5, -round(rng.uniform(0, 0.016) * side))
    alpha = np.minimum(blur(alpha, rng.uniform(0.0025, 0.008) * side, mirror=True), mask)
    place = np.indices(mask.shape, np.float32)[::-1].transpose(1, 2, 0)
    middle = (place * alpha[..., None]).sum((0, 1)) / max(float(alpha.sum()), 1.0)
    turn = cv2.getRotationMatrix2D(middle.tolist(), rng.uniform(-8, 8), 2 ** rng.uniform(-0.1, 0.1))
    turn[:, 2] += rng.uniform(-0.015, 0.015, 2) * side
    bend = rng.normal(0, rng.uniform(0, 0.01) * side, (6, 6, 2)).astype(np.float32)
    bend = np.asarray(cv2.resize(bend, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
    x, y = np.moveaxis(np.asarray(cv2.transform(place, turn), np.float32) + bend, 2, 0)
    both = np.dstack([pasted, 255 * alpha]).astype(np.float32)
    both = np.asarray(np.round(cv2.remap(both, x, y, cv2.INTER_LINEAR)), np.float32)
    colour, cover = both[..., :3], both[..., 3:] / np.float32(255)
    if rng.random() < 0.5:
        colour = blur(colour, rng.uniform(0.0025, 0.0095) * side, mirror=True)
    ring = max(1, round(rng.uniform(0.02, 0.08) * side))
    region = widen(np.maximum(cover[..., 0], mask) > 0, ring)
    made = np.where(region[..., None] > 0, cover * colour + (1 - cover) * _ERASED, truth)
    return np.asarray(np.floor(made + 0.5), np.uint8), cover[..., 0], region
