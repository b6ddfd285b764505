"""What a mask says: files, PIL images and arrays as levels between 0 and 1, by one rule."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from inlay.errors import InputError
from inlay.pictures.arrays import Image, Mask, resize, to_levels
from inlay.pictures.read import DEFAULT_MAX_PIXELS, Source, read_picture

# Levels below this share of a mask's largest are nothing.
LEAST_SHARE = 0.05
# Grey levels up to here, more than one, and so few colours of several hues are labels.
_LARGEST_LABEL, _MOST_COLOURS = 50, 64
# From this share of opaque pixels along the border on, what is clear inside is a hole.
_OPAQUE = 0.5

_log = logging.getLogger("inlay")


def read_mask(
    source: Source,
    *,
    size: tuple[int, int] | None,
    role: str = "mask",
    white: str = "where the object is",
    hole: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    notes: list[str] | None = None,
) -> Image:
    """Read a mask as float32 (h, w) in [0, 1], as `mask_levels` says; True is 1.

    `size` is the picture's (width, height), to which a mask of the same aspect is resampled, or
    None; `white` ends the message about a mask that is all 0; `hole` is mask_levels'. `notes`,
    or the log, hear how a mask was read where that is a guess. Raises InputError.
    """
    if isinstance(source, np.ndarray) and source.dtype == np.bool_:
        source = source.astype(np.uint8) * 255
    picture = read_picture(source, role=role, max_pixels=max_pixels)
    (width, height), (wide, high) = picture.size, size or picture.size
    # Two sides were rounded to whole pixels.
    if abs(width * high - height * wide) >= max(wide, high):
        raise InputError(
            f"{picture.name} is {width} x {height} pixels; expected {wide} x {high} as the "
            "picture, or its aspect."
        )
    samples = picture.samples
    if picture.mode == "CMYK":
        # A mask's levels are data, not colours: its profile says nothing about them.
        samples = to_levels(replace(picture, icc=None).rgb(), picture.depth)
    mask, note = mask_levels(samples, hole)
    if not mask.any():
        raise InputError(f"{picture.name} is empty; expected white {white}.")
    said = [note] if note else []
    if (width, height) != (wide, high):
        hard = ((mask == 0) | (mask == 1)).all()
        mask = np.clip(resize(mask, (high, wide)), 0, 1)
        mask = (mask > 0.5).astype(np.float32) if hard else mask * (mask >= LEAST_SHARE)
        said.append(f"is {width} x {height} pixels; it is resampled to the picture's size")
    for line in (f"{picture.name} {how}" for how in said):
        _log.info(line) if notes is None else notes.append(line)
    return mask


def mask_levels(samples: NDArray[Any], hole: bool = False) -> tuple[Image, str]:
    """The levels (h, w) in [0, 1] of samples, and how they were read where that is a guess.

    samples are uint8 or uint16: (h, w) or (h, w, C) for grey, grey and alpha, RGB or RGBA. Alpha
    counts where it says more than the colours, and with `hole` that which is clear in a picture
    whose border is opaque. Else the brightest channel does: as it is where it has soft levels, by
    its largest where it has but one, or mostly one, and as 0 and 1 where its levels or colours are
    labels. What is below a twentieth of the largest is 0.
    """
    samples = samples.reshape(*samples.shape[:2], -1)
    colours = samples[..., :-1] if samples.shape[2] in (2, 4) else samples
    if colours is not samples:
        alpha, level = samples[..., -1], colours.max(-1)
        seen = alpha > alpha.max() // 2
        if not seen.any():
            return np.zeros(alpha.shape, np.float32), ""
        if alpha.min() < (1 - LEAST_SHARE) * alpha.max():
            shown, drawn = colours[seen], level[seen] / max(level[seen].max(), 1)
            flat = np.ptp(shown, axis=0).max() <= LEAST_SHARE * np.iinfo(samples.dtype).max
            toned = ((drawn < LEAST_SHARE) | (drawn > 1 - LEAST_SHARE)).mean()
            if flat or toned < 1 - LEAST_SHARE:
                edge = np.concatenate([seen[0], seen[-1], seen[:, 0], seen[:, -1]])
                if hole and edge.mean() > _OPAQUE:
                    return _scaled(alpha.max() - alpha)[0], "is opaque: the hole in it is the mask"
                return _scaled(alpha)[0], "" if flat else "is read by its alpha"
            colours = np.where(seen[..., None], colours, 0)
    if colours.shape[2] == 3 and (labels := _labels(colours)) is not None:
        return labels, "is read as labels: every colour but the background's counts"
    level = colours.max(-1)
    if (labels := _grey_labels(level)) is not None:
        return labels, "is read as labels: every level but 0 counts"
    return _scaled(level)


def _grey_labels(level: NDArray[Any]) -> Image | None:
    """What is not 0 in levels (h, w) that are labels, as 0 and 1: flat areas, and dark or faint."""
    found, counts = np.unique(level[level > 0], return_counts=True)
    # A few stray pixels are no label.
    known: list[int] = found[counts > 1e-3 * np.sum(counts)].tolist()
    if len(known) < 2:
        return None
    if known[-1] > _LARGEST_LABEL:
        if known[-1] >= 0.95 * np.iinfo(level.dtype).max and known[0] >= LEAST_SHARE * known[-1]:
            return None
        # By a table: isin() would make indices of all.
        part, table = level[:-1, :-1], np.zeros(np.iinfo(level.dtype).max + 1, np.bool_)
        table[known[:-1]] = True
        inner = np.asarray(table[part])
        flat = inner & (part == level[1:, :-1]) & (part == level[:-1, 1:])
        if flat.sum() < 0.8 * inner.sum():
            return None
    return np.asarray(level >= known[0], np.float32)


def _scaled(level: NDArray[Any]) -> tuple[Image, str]:
    """Levels (h, w) as they are, or over their largest where most of them are that or they are
    those of 8 bits in a file of 16; and what to say then.
    """
    largest, top = int(level.max()), int(np.iinfo(level.dtype).max)
    there = level >= max(LEAST_SHARE * largest, 1)
    # JPEG spreads one level to several.
    most = int(np.median(level[level > largest // 2])) if largest else 0
    near = there & (level >= 0.95 * most) & (level <= 1.05 * most)
    one = most > 0.8 * largest and np.count_nonzero(near) > 0.5 * np.count_nonzero(there)
    full = most if one else 255 if largest <= 255 else top
    mask = level.astype(np.float32)
    mask /= np.float32(max(full, 1))
    np.minimum(mask, 1, out=mask)
    mask *= there
    note = f"has no white: {full} of {top} counts as white" if full < 0.95 * top else ""
    return mask, note if there.any() else ""


def _labels(colours: NDArray[Any]) -> Image | None:
    """What differs from the background in colours (h, w, 3) that stand for labels: 0 or 1 (h, w).

    None where they have one hue, or are more than labels would be. The background is black, where
    there is none the commonest colour.
    """
    levels = (colours >> 8 * (colours.dtype.itemsize - 1)).astype(np.uint8)
    found = PilImage.fromarray(levels).getcolors(_MOST_COLOURS)
    if found is None:
        return None
    known = np.array([colour for _, colour in found])
    bright = known[known.max(-1) > 0.25 * known.max()]
    hues = bright / np.maximum(bright.max(-1, keepdims=True), 1)
    if not bright.size or np.ptp(hues, axis=0).max() < 0.2:
        return None
    commonest = min(found, key=lambda each: (-each[0], each[1]))[1]
    differs: Mask = (levels != (commonest if known.any(-1).all() else 0)).any(-1)
    return differs.astype(np.float32)
