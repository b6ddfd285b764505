"""The whole objects in photographs, found without a trained model, and moved as pasting moves them.

A photograph is segmented by colour (Felzenszwalb and Huttenlocher 2004) at several scales. Each
segment is a candidate, as is what GrabCut (Rother et al. 2004) leaves when the picture's rim is
taken for background: that is how things of several colours come out whole. Candidates of a sensible
size, compact, and standing off from what lies round them along their whole outline, are kept, best
first, and GrabCut settles their outline.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import felzenszwalb

from inlay.pictures.arrays import blur, bounds, resize, shrink
from inlay.scene.cutout import grabcut

Image = NDArray[np.uint8]
Mask = NDArray[np.float32]
Flags = NDArray[np.bool_]

# Objects are searched for on a picture of this short side, and outlined on twice of it.
_SEARCH = 144
# From segments of one colour to those of several.
_SCALES = (30, 60, 120, 240, 480, 960)
# Short side at which the rim is taken for background; GrabCut there is the slowest step.
_RIM = 96
_RIM_MARGINS = (0.04, 0.14)
# Smallest and largest share of the picture that an object takes.
_AREA = (0.03, 0.45)
# Area over that of the convex hull.
_SOLIDITY = 0.6
# Share of a border that an object may cover, and from which on it counts as touched.
_COVERED, _TOUCHED = 0.6, 0.02
# CIELAB distance across an outline from which on it is surely an edge.
_STEP = 20.0
_CONTRAST = 0.25
# The share of the best candidate's score that the others need.
_RIVAL = 0.55
_OVERLAP = 0.4
# What is erased is grey: the middle of what networks read.
_ERASED = 128


def find_objects(picture: Image, limit: int = 3) -> list[Mask]:
    """Masks of up to `limit` whole things in a photograph, best first; none where none is found.

    picture is uint8 (h, w, 3), sRGB. Masks are float32 (h, w) in [0, 1] on the levels of 8 bits,
    with an antialiased edge; they take 3 to 45 percent of the picture before their outline is
    settled, touch at most one border, have no holes, and hardly overlap. The same picture gives
    the same masks.
    """
    if min(picture.shape[:2]) < 32:
        return []
    small = shrink(picture, _SEARCH)
    lab = np.asarray(cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)
    solids = [_solid(part) for part in (*_colour_parts(lab), *_rim_parts(picture, small.shape))]
    scored = [(_score(solid, lab), solid) for solid in solids if solid is not None]
    scored.sort(key=lambda item: -item[0])
    kept: list[Flags] = []
    for score, solid in scored:
        if len(kept) == limit or score <= 0 or score < _RIVAL * scored[0][0]:
            break
        # Of the smaller one, the share that lies in the other.
        smaller = [(solid & other).sum() / min(solid.sum(), other.sum()) for other in kept]
        if all(share <= _OVERLAP for share in smaller):
            kept.append(solid)
    return [_outline(picture, coarse) for coarse in kept]


def _colour_parts(lab: Mask) -> Iterator[Flags]:
    """Segments of like colour, from fine to coarse, of a sensible size."""
    smooth = np.asarray(cv2.bilateralFilter(lab, 5, 12, 3), np.float32)
    for scale in _SCALES:
        labels = felzenszwalb(smooth / 100, scale=scale, sigma=0.0, min_size=200, channel_axis=-1)
        shares = np.bincount(labels.ravel()) / labels.size
        # Filling holes and smoothing change the area a little: the bounds are checked again later.
        inside = (shares > 0.8 * _AREA[0]) & (shares < 1.2 * _AREA[1])
        yield from (labels == number for number in np.flatnonzero(inside))


def _rim_parts(picture: Image, shape: tuple[int, ...]) -> Iterator[Flags]:
    """What is unlike the picture's rim, at (height, width): the subject of a photo of one thing."""
    small = shrink(picture, _RIM)
    height, width = small.shape[:2]
    for margin in _RIM_MARGINS:
        x, y = max(2, round(width * margin)), max(2, round(height * margin))
        labels = np.full((height, width), cv2.GC_BGD, np.uint8)
        labels[y:-y, x:-x] = cv2.GC_PR_FGD
        found = _grabcut(small, labels, 3).astype(np.float32)
        yield cv2.resize(found, shape[1::-1], interpolation=cv2.INTER_LINEAR) > 0.5


def _grabcut(picture: Image, labels: Image, rounds: int) -> Flags:
    """GrabCut from OpenCV's labels, which stay where thing or background are missing."""
    found = grabcut(picture, labels, rounds)
    return (labels & 1).astype(bool) if found is None else found


def _solid(part: Flags) -> Flags | None:
    """The largest piece of a part, its outline smoothed and its holes filled."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    opened = cv2.morphologyEx(part.astype(np.uint8), cv2.MORPH_OPEN, kernel)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    if count < 2:
        return None
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    piece = cv2.morphologyEx((labels == largest).astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    outlines, _ = cv2.findContours(piece, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(piece, outlines, -1, 1, cv2.FILLED)
    return piece.astype(bool)


def _score(mask: Flags, lab: Mask) -> float:
    """How much a part looks like a whole thing; 0 where it does not."""
    share = float(mask.mean())
    touched = [float(rim.mean()) for rim in (mask[0], mask[-1], mask[:, 0], mask[:, -1])]
    if not _AREA[0] <= share <= _AREA[1] or max(touched) > _COVERED:
        return 0.0
    if sum(t > _TOUCHED for t in touched) > 1:
        return 0.0
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = max(outlines, key=cv2.contourArea)
    area = float(mask.sum())
    solidity = min(1.0, area / max(cv2.contourArea(cv2.convexHull(outline)), 1.0))
    contrast = _contrast(mask, lab)
    if solidity < _SOLIDITY or contrast < _CONTRAST:
        return 0.0
    roundness = min(1.0, 4 * np.pi * area / max(cv2.arcLength(outline, True), 1.0) ** 2)
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    off_centre = max(abs(rows.mean() / height - 0.5), abs(columns.mean() / width - 0.5))
    # Weights by eye, on photographs of things on a floor and of scenes.
    shape = solidity * (0.6 + 0.4 * roundness**0.5)
    place = (1 - 0.6 * off_centre) * (1 - 0.7 * max(touched))
    return float(contrast * shape * place * min(1.0, share / 0.2) ** 0.3)


def _contrast(mask: Flags, lab: Mask) -> float:
    """How surely a mask's outline is an edge, 0 to 1: how far colours differ across it.

    Half of it is the mean, half the weakest stretches: a patch of floor beside a dark shirt has an
    edge on one side only.
    """
    kernel = np.ones((3, 3), np.uint8)
    flags = mask.astype(np.uint8)
    edge = mask & (cv2.erode(flags, kernel) == 0)
    edge[[0, -1]] = edge[:, [0, -1]] = False
    if not edge.any():
        return 0.0
    inside = _nearby(lab, cv2.erode(flags, kernel, iterations=2))
    outside = _nearby(lab, 1 - cv2.dilate(flags, kernel, iterations=2))
    step = np.sqrt(((inside - outside)[edge] ** 2).sum(axis=-1))
    sure = np.minimum(step, _STEP) / _STEP
    return float(sure.mean() + np.quantile(sure, 0.15)) / 2


def _nearby(lab: Mask, flags: NDArray[np.generic]) -> Mask:
    """The mean colour of the flagged pixels in a small window round each pixel."""
    weight = flags.astype(np.float32)
    total = cv2.boxFilter(lab * weight[..., None], -1, (9, 9))
    share = cv2.boxFilter(weight, -1, (9, 9))
    return np.asarray(total / np.maximum(share, 1e-6)[..., None], np.float32)


def _outline(picture: Image, coarse: Flags) -> Mask:
    """The coarse mask at the picture's size, its outline settled by GrabCut in a wide band."""
    middle = shrink(picture, 2 * _SEARCH)
    size = middle.shape[1], middle.shape[0]
    rough = cv2.resize(coarse.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.5
    flags = rough.astype(np.uint8)
    inner, outer, view = (
        cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)) for side in (9, 41, 61)
    )
    labels = np.where(rough, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[cv2.erode(flags, inner) > 0] = cv2.GC_FGD
    # Wider outside than inside: what the search cut off, such as a sleeve, may come back.
    labels[cv2.dilate(flags, outer) == 0] = cv2.GC_BGD
    # Only what lies near is looked at: far colours say nothing about this outline.
    box = bounds(cv2.dilate(flags, view))
    near = np.zeros_like(rough)
    if box is not None:
        near[box.slices] = _grabcut(middle[box.slices], labels[box.slices], 2)
    solid = _solid(near)
    if solid is None or not 0.7 < solid.sum() / rough.sum() < 1.7:
        solid = rough
    height, width = picture.shape[:2]
    soft = resize(blur(solid.astype(np.float32), 1.5, mirror=True), (height, width))
    # A ramp of one pixel where the smoothed outline crosses a half.
    across, down = (cv2.Sobel(soft, cv2.CV_32F, *d, scale=1 / 8) for d in ((1, 0), (0, 1)))
    slope = np.maximum(cv2.magnitude(across, down), 1e-3)
    return np.asarray(np.round(np.clip((soft - 0.5) / slope + 0.5, 0, 1) * 255) / 255, np.float32)


class ObjectCache:
    """The objects of pictures: those that find_objects() finds, or the one that came along.

    Looking costs more than a tenth of a second a picture, so it happens when a picture is first
    drawn, at half size, the one that masks are kept at (a bit a pixel): outlines come out alike, in
    two thirds of the time.
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
        half = (height + 1) // 2, (width + 1) // 2
        name = height, hashlib.blake2b(picture.tobytes(), digest_size=16).digest()
        if name not in self._packed:
            reduced = cv2.resize(picture, half[::-1], interpolation=cv2.INTER_AREA)
            small = [mask > 0.5 for mask in find_objects(np.asarray(reduced, np.uint8))]
            self._packed[name] = np.packbits(np.array(small, bool).reshape(-1, *half), axis=2)
        bits = np.unpackbits(self._packed[name], axis=2, count=half[1]) * np.uint8(255)
        found = [cv2.resize(m, (width, height), interpolation=cv2.INTER_LINEAR) for m in bits]
        return [np.asarray(mask, np.uint8) for mask in found]


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
