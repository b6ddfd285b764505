"""Finding a subject where no alpha says it: by our network, a mask, a box, or a segmenter.

A hard outline becomes a soft one with a closed-form matte.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inlay.errors import InputError
from inlay.pictures.arrays import FAINT, Box, Image, Mask, bounds, resize, softness, to_uint8
from inlay.pictures.mask import LEAST_SHARE, read_mask
from inlay.pictures.picture import Picture
from inlay.pictures.read import DEFAULT_MAX_PIXELS, read_record
from inlay.scene.matte import matte

if TYPE_CHECKING:
    from inlay.scene.cutter import Point
    from inlay.scene.subject import Cutout

_log = logging.getLogger("inlay")

# GrabCut works on a crop of at most so many pixels, with so many rounds.
_GRABCUT_PIXELS = 200_000
_GRABCUT_ROUNDS = 5
# Without a box, the outer part of each side that is taken to be background.
_INSET = 0.04
# Pieces below this share of the largest are taken to be noise; where no place is given, to be
# another thing.
_SMALLEST_PIECE, _ANOTHER = 0.05, 0.35
# Gaps wholly inside the subject, below this share of it, are reflections rather than openings.
_LARGEST_PINHOLE = 0.06
# What the network says from which on it is sure, and below which it is sure that it is not; what it
# flatly denies; and the IoU below which its answer is doubtful.
_SURE, _DENIED = (0.08, 0.9), 0.02
# An IoU that is expected below this is said, where the place was left to the network or not; as is
# a subject of which so much of the picture is.
_DOUBTFUL, _DOUBTFUL_AT, _ALL = 0.83, 0.75, 0.95
# What is expected is of all that was found: where so much lies beside what is kept, in areas of
# that, only how sure the network is of what is kept counts.
_BESIDE, _UNSURE = 0.15, 0.86
# From which alpha on a pixel shows the thing that is to go, and how far round the thing goes too,
# as a share of the root of its area.
_FRINGE, _MARGIN = 0.05, 0.015
# What is thinner than so many pixels is no subject.
_LEAST_SIDE = 4
# So many of a record's subjects are looked for.
_MOST_SUBJECTS = 64


def find_alpha(
    name: str,
    rgb: Image,
    by: str,
    mask: Any = None,
    box: Box | None = None,
    points: Sequence[Point] = (),
    max_pixels: int = DEFAULT_MAX_PIXELS,
    trust_remote_code: bool = False,
) -> Image:
    """The alpha (h, w) in [0, 1] of the subject in a picture (h, w, 3).

    by: "auto" asks the network of inlay.scene.cutter, whose answer GrabCut (Rother, Kolmogorov and
    Blake 2004) settles at the picture's own scale; so does the folder of one that `inlay train
    cutter` wrote; "mask" takes `mask` (white is the subject; a soft one is the alpha itself, a hard
    one gets a matte along its edge); "box" and "grabcut" are GrabCut alone, inside `box`, or
    without one inside the picture less a narrow rim; anything else is for inlay.scene.segment.
    `name` is what sentences call the picture. Raises InputError.
    """
    if by == "mask":
        if mask is None:
            raise InputError("the cut is by mask but there is no mask; give one.")
        size = rgb.shape[1], rgb.shape[0]
        white = read_mask(mask, size=size, role="mask", max_pixels=max_pixels)
        white = white if box is None else box.keep(white)
        hard = white > 0.5
        # A soft edge has many in-between values for its length, an antialiased one one a pixel;
        # a hard one that went through JPEG has values near 0 and 1 only.
        return white if not hard.any() or softness(white) > 0.25 else matte(rgb, hard, "thin")
    own = Path(by, "model.safetensors").is_file() and not Path(by, "config.json").exists()
    if by == "auto" or own:
        return _by_network(rgb, box, points, name, Path(by) if own else None)
    if by in ("box", "grabcut"):
        if by == "box" and box is None:
            raise InputError("the cut is by box but there is no box; give one as X,Y,W,H.")
        return matte(rgb, _grabcut(rgb, box, name), "wide")
    from inlay.scene.segment import segment

    found, reach = segment(rgb, by, box=box, points=points, trust_remote_code=trust_remote_code)
    return found if reach is None else matte(rgb, found > 0.5, "wide", reach)


def cleared(picture: Picture, cutout: Cutout) -> Picture:
    """A picture that is clear but for a cut-out of it; depth and profile stay, CMYK becomes sRGB.

    Where the cut-out is solid the samples are the picture's own.
    """
    assert cutout.place is not None
    if picture.mode == "CMYK":
        picture = picture.converted(srgb=True)
    own = picture.crop(cutout.place).reshape(*cutout.alpha.shape, -1)[..., : len(picture.kind)]
    samples = np.zeros((picture.height, picture.width, len(picture.kind) + 1), own.dtype)
    there, opacity = samples[cutout.place.slices], picture.levels(cutout.alpha)
    solid = (opacity == np.iinfo(own.dtype).max)[..., None]
    there[..., :-1] = np.where(solid, own, picture.native(cutout.rgb))
    there[..., -1] = opacity
    there[cutout.alpha <= FAINT] = 0
    return replace(picture, base=samples, mode=f"{picture.kind}A", patches=(), jpeg=b"")


def find_thing(
    picture: Picture,
    box: Box | None = None,
    point: tuple[float, float] | None = None,
    whole: bool = False,
) -> Image:
    """The mask (h, w) of the thing inside a box, or at a point (x, y), in pixels of a picture.

    With `whole` all of it is meant, its soft edge and what little lies round that. Raises
    InputError for a place outside, or where nothing stands out.
    """
    import cv2

    box = None if box is None else picture.clip(box, "box")
    points = on_thing(picture, () if point is None else (point,))
    alpha = find_alpha(picture.name, picture.rgb(), "auto", None, box, points)
    if not whole:
        return alpha
    there = alpha > _FRINGE
    reach = 2 * max(2, round(_MARGIN * there.sum() ** 0.5)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    return np.asarray(cv2.dilate(there.astype(np.float32), kernel), np.float32)


def on_thing(picture: Picture, points: Sequence[tuple[float, float]]) -> list[Point]:
    """Points (x, y) as ones on the thing that is meant; raises InputError for one outside."""
    for x, y in points:
        if not (0 <= x < picture.width and 0 <= y < picture.height):
            raise InputError(
                f"the point {x:g},{y:g} lies outside {picture.name}, which is {picture.width} x "
                f"{picture.height} pixels."
            )
    return [(x, y, True) for x, y in points]


def _by_network(
    rgb: Image, box: Box | None, points: Sequence[Point], name: str, folder: Path | None
) -> Image:
    """The alpha of what the network finds; the log says where it is unsure."""
    import cv2

    from inlay.scene.cutter import find_subject
    from inlay.scene.network import cutter, load_layers

    found, expected = find_subject(rgb, box, points, load_layers(cutter, folder))
    found = found if box is None else box.keep(found)
    seen = bounds(found > 0.5)
    flat = np.ptp(rgb if box is None else rgb[box.slices]) < FAINT
    nothing = InputError(f"no subject stands out in {name}; give a mask or another box.")
    if flat or seen is None or min(seen.width, seen.height) < _LEAST_SIDE:
        raise nothing
    crop, size = _surroundings(seen, rgb)
    soft = resize(found[crop.slices], size)
    labels = np.where(soft > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[soft < _SURE[0]], labels[soft > _SURE[1]] = cv2.GC_BGD, cv2.GC_FGD
    hard = grabcut(resize(to_uint8(rgb[crop.slices]), size), labels, 2)
    if hard is None or not hard.any():
        hard = soft > 0.5
    piece = _SMALLEST_PIECE if points or box is not None else _ANOTHER
    hard = _enlarged(without_specks(hard, piece, _LARGEST_PINHOLE), crop, rgb)
    beside = found[~hard].sum() / max(1, hard.sum())
    if box is not None:
        doubtful = expected < _DOUBTFUL_AT
    else:
        sure = found[hard].mean() >= _UNSURE and hard.mean() <= _ALL
        doubtful = not sure or (expected < _DOUBTFUL and beside < _BESIDE)
    if doubtful:
        _log.info("the cut-out of %s may be wrong: give its box or a mask", name)
    alpha = np.where(found < _DENIED, np.float32(0), matte(rgb, hard, "wide"))
    if bounds(alpha, _FRINGE) is None:
        raise nothing
    return alpha


def _surroundings(box: Box, rgb: Image) -> tuple[Box, tuple[int, int]]:
    """A box and what lies round it, and the (height, width) at which GrabCut looks at that."""
    whole = Box.of_size((rgb.shape[1], rgb.shape[0]))
    crop = box.grown(max(box.width, box.height) // 3 + 2).intersect(whole) or whole
    scale = min(1.0, (_GRABCUT_PIXELS / crop.area) ** 0.5)
    return crop, (max(1, round(crop.height * scale)), max(1, round(crop.width * scale)))


def _enlarged(mask: Mask, crop: Box, rgb: Image) -> Mask:
    """A mask of a crop, at any size, as one of the whole picture."""
    import cv2

    whole = np.zeros(rgb.shape[:2], np.bool_)
    large = cv2.resize(mask.astype(np.float32), (crop.width, crop.height))
    whole[crop.slices] = large > 0.5
    return whole


def _grabcut(rgb: Image, box: Box | None, name: str) -> Mask:
    """The subject inside a box (h, w), by GrabCut on a crop round it."""
    import cv2

    height, width = rgb.shape[:2]
    whole = Box.of_size((width, height))
    if box is None:
        _log.info("no box and no mask: looking for the subject in all of %s", name)
    if box is None or box == whole:
        inset = max(1, round(_INSET * min(width, height)))
        box = Box(inset, inset, max(width - 2 * inset, 1), max(height - 2 * inset, 1))
    # What lies outside the box is the sample of the background, so some of it must be seen.
    crop, size = _surroundings(box, rgb)
    scale = size[0] / crop.height
    labels = np.full(size, cv2.GC_BGD, np.uint8)
    left, top = (round(v * scale) for v in (box.x - crop.x, box.y - crop.y))
    right, bottom = (round(v * scale) for v in (box.right - crop.x, box.bottom - crop.y))
    labels[top : max(bottom, top + 1), left : max(right, left + 1)] = cv2.GC_PR_FGD
    found = None
    if min(box.width, box.height) >= _LEAST_SIDE:
        found = grabcut(resize(to_uint8(rgb[crop.slices]), size), labels, _GRABCUT_ROUNDS)
    if found is not None:
        found = without_specks(found, _SMALLEST_PIECE, _LARGEST_PINHOLE)
    if found is None or found.sum() < 0.005 * max((right - left) * (bottom - top), 1):
        raise InputError(f"no subject stands out inside the box in {name}; give a mask instead.")
    return _enlarged(found, crop, rgb)


def grabcut(picture: NDArray[np.uint8], labels: NDArray[np.uint8], rounds: int) -> Mask | None:
    """The thing in a picture (h, w, 3), bool (h, w) (Rother, Kolmogorov and Blake 2004).

    labels (h, w) are OpenCV's: GC_BGD and GC_FGD stay what they are, GC_PR_BGD and GC_PR_FGD are
    guesses, of which `rounds` of fitting colours and cutting make up their mind. The labels are
    not written to, and the same input gives the same mask. None where thing or background have
    too few pixels to fit colours to.
    """
    import cv2

    picture, labels = np.ascontiguousarray(picture), labels.copy(order="C")
    # The fit starts from k-means, which draws from OpenCV's own, global generator.
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    try:
        cv2.grabCut(picture, labels, (0, 0, 1, 1), *models, rounds, cv2.GC_INIT_WITH_MASK)
    except cv2.error:
        return None
    return np.asarray((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD))


def without_specks(mask: Mask, piece: float, gap: float) -> Mask:
    """A mask (h, w) without pieces below the share `piece` of the largest one's area, and with the
    gaps inside filled that are below the share `gap` of its whole area.
    """
    import cv2

    for keep in (True, False):
        _, labels, facts, _ = cv2.connectedComponentsWithStats(
            (mask == keep).astype(np.uint8), connectivity=8 if keep else 4
        )
        areas = facts[:, cv2.CC_STAT_AREA]
        small = areas < (piece * areas[1:].max(initial=0) if keep else gap * mask.sum())
        small[0] = False
        mask = mask ^ small[labels]
    return mask


def guess_mask(picture: Picture, notes: list[str]) -> Image:
    """The object's mask where none is given: the alpha channel, else what stands out in the boxes
    where the picture's record says that its subjects lie. Raises InputError where there is neither.
    """
    alpha = picture.alpha()
    if alpha is not None and alpha.min() < 1 and alpha.max() > 0:
        notes.append("no mask was given: the picture's alpha channel is used")
        there = alpha >= LEAST_SHARE * alpha.max()
        return np.where(there, alpha, np.float32(0))
    boxes = _subject_boxes(picture)
    if not boxes:
        raise InputError(
            f"there is no mask, and no record in {picture.name} says where the object is; give a "
            "mask."
        )
    notes.append("no mask was given: the object is looked for where the picture's record says")
    rgb, mask = picture.rgb(), np.zeros((picture.height, picture.width), np.float32)
    for box in boxes:
        mask = np.maximum(mask, find_alpha(picture.name, rgb, "auto", box=box))
    return mask


def _subject_boxes(picture: Picture) -> list[Box]:
    """Where a picture's record says that subjects lie in it; a stranger's may say anything."""
    text = None if picture.path is None else read_record(picture.path)
    whole, boxes = Box.of_size(picture.size), []
    try:
        for subject in json.loads(text or "{}")["subjects"]:
            boxes.append(Box(**subject["box"]).intersect(whole))
    except (ValueError, TypeError, LookupError, RecursionError, InputError):
        return []
    return [box for box in boxes if box is not None][:_MOST_SUBJECTS]
