"""Filling a hole from its rim: what the classical methods share.

Pictures are float32 (h, w, 3) sRGB in [0, 1]; holes are bool (h, w), True where there is nothing.
"""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from inlay.errors import InputError
from inlay.pictures.arrays import (
    FAINT,
    Box,
    Image,
    Mask,
    bounds,
    distance,
    extend,
    grow,
    masked_blur,
    resize,
    to_uint8,
)

_log = logging.getLogger("inlay")

# Working side of the fill where a method does not let the user choose.
WORKING_SIDE = 1024
# Below this alpha a pixel says too little about the subject to divide by it.
LEAST_ALPHA = 0.25
# From here on a pixel may pass for the subject's own.
SOLID_ALPHA = 0.75
# A cut-out's solid pixels; what paper differs from it by, as shading does not; the largest part of
# its rim's difference that may be left where the paper explains it.
_SOLID, _CONTRAST, _EXPLAINED = 0.95, 0.125, 0.5
# Where fewer of the pixels round a hole in an alpha are soft, its edge is sharp: so steep, a pixel.
_SOFT_RIM, _SHARP = 0.25, 16
# Steps between pieces up to this are evened out, in sRGB; larger ones are edges of things.
_STEP = 0.12
# A shadow: so much darker than the ground, in L or as a share of it, and no more off in colour.
_DARKER, _SHARE, _ALIKE = 3, 0.08, 7
# V-cycles of `membrane`.
CYCLES = 12
_NEIGHBOURS = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32) / 4


def hole_of(alpha: Image, dilate: int) -> tuple[Mask, Mask, int]:
    """What is to go of a mask (h, w), the same grown by `dilate` pixels, or by so many as leave
    something of the picture, and these; raises InputError where the mask leaves nothing.
    """
    region = alpha > FAINT
    if region.all():
        raise InputError("the mask covers the whole picture; leave some of the background out.")
    while (hole := grow(region, dilate)).all():
        dilate //= 2
    return region, hole, dilate


def fill_hole(
    rgb: Image,
    hole: Mask,
    *,
    radius: float = 5,
    algorithm: Literal["telea", "navier-stokes"] = "telea",
    max_side: int = WORKING_SIDE,
) -> Image:
    """Inpaint a hole from what is round it, with OpenCV.

    telea: A. Telea, An image inpainting technique based on the fast marching method, 2004.
    navier-stokes: Bertalmio et al., Navier-Stokes, fluid dynamics, and image and video
    inpainting, 2001. radius is in pixels of the picture. Where the longer side is above max_side
    a hole of many pixels is filled at that size and the fill enlarged, so the time is bounded.
    Pixels outside the hole come back as they are. A hole without a rim is filled with mean grey.
    """
    import cv2

    if not hole.any():
        return rgb
    if hole.all():
        return np.full_like(rgb, 0.5)
    height, width = hole.shape
    many = np.count_nonzero(hole) > max_side**2 / 4
    scale = min(1.0, max_side / max(height, width)) if many else 1.0
    source, gap = rgb, hole
    if scale < 1:
        size = max(1, round(height * scale)), max(1, round(width * scale))
        # The mean of known pixels only: nothing of the hole may leak into its rim.
        known = resize((~hole).astype(np.float32), size)
        colour = resize(rgb * ~hole[..., None], size)
        source = (colour / np.maximum(known, 1e-6)[..., None]).astype(np.float32)
        gap = known < min(0.25, float(known.max()))
    flag = cv2.INPAINT_TELEA if algorithm == "telea" else cv2.INPAINT_NS
    reach = max(1.0, radius * scale)
    filled = cv2.inpaint(to_uint8(source), gap.astype(np.uint8), reach, flag)
    filled = resize(np.asarray(filled, np.uint8), (height, width))
    result = rgb.copy()
    result[hole] = filled[hole].astype(np.float32) / 255
    return result


def copy_pieces(rgb: Image, hole: Mask, sources: NDArray[np.int32]) -> Image:
    """A picture (h, w, 3) with its hole copied from the sources (h, w, 2), rows and columns.

    The steps where pieces meet are evened out: the gradient there is the mean of what both pieces
    say of it (Darabi et al. 2012, "Image melding", section 3.3), the rest as Poisson's equation
    has it.
    """
    box = bounds(hole)
    assert box is not None
    box = box.grown(1).intersect(Box.of_size(hole.shape[::-1])) or box
    result, load = rgb.copy(), np.zeros((box.height, box.width, 3), np.float32)
    result[hole] = rgb[tuple(sources[hole].T)]
    y, x = np.nonzero(hole)
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        inside = (y + dy >= 0) & (y + dy < len(rgb)) & (x + dx >= 0) & (x + dx < rgb.shape[1])
        ay, ax = y[inside], x[inside]
        by, bx = ay + dy, ax + dx
        near = sources[ay, ax] + (dy, dx)
        # What lies at the neighbour, less what goes on there from the pixel's own source.
        step = result[by, bx] - rgb[tuple(near.T)]
        both = hole[by, bx]
        back = sources[by[both], bx[both]] - (dy, dx)
        step[both] += rgb[tuple(back.T)] - result[ay[both], ax[both]]
        step[both] /= 2
        size = np.abs(step).max(-1, keepdims=True)
        load[ay - box.y, ax - box.x] += step / 4 * np.minimum(1, (_STEP / (size + 1e-6)) ** 2)
    # The border of the picture holds as what is known does: without it nothing would.
    load, inside = np.pad(load, ((1, 1), (1, 1), (0, 0))), np.pad(hole[box.slices], 1)
    result[box.slices] += membrane(np.zeros_like(load), inside, load)[1:-1, 1:-1]
    return np.where(hole[..., None], np.clip(result, 0, 1), rgb)


def shadow_of(rgb: Image, region: Mask, reach: float) -> Mask:
    """What looks like the shadow of a thing (h, w): beside its lower half, joined to it and within
    `reach` of its longer side, the pixels that are darker than the ground and of its colour.

    The ground is the mean, in CIELAB, of what lies a little away.
    """
    import cv2

    lab = np.asarray(cv2.cvtColor(np.clip(rgb, 0, 1), cv2.COLOR_RGB2LAB), np.float32)
    box, off = bounds(region), distance(region)
    assert box is not None
    side = max(box.width, box.height)
    here = masked_blur(lab, (off > 3).astype(np.float32), max(0.012 * side, 0.5))
    away = (off > 0.06 * side) & (off < 0.6 * side)
    ground = masked_blur(lab, away.astype(np.float32), max(0.12 * side, 1))
    dark = ground[..., 0] - here[..., 0] > np.maximum(_DARKER, _SHARE * ground[..., 0])
    alike = np.abs(here[..., 1:] - ground[..., 1:]).max(-1) < _ALIKE
    low = np.arange(len(rgb))[:, None] > box.y + box.height / 2
    shadow = (dark & alike & low & (off < reach * side)).astype(np.uint8)
    shadow = cv2.morphologyEx(shadow, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, labels = cv2.connectedComponents(np.asarray((shadow > 0) | region, np.uint8))
    return np.isin(labels, np.unique(labels[region])) & ~region


def backdrop(clean: Image, pasted: Image, alpha: Image) -> Image:
    """The picture (h, w, 3) without its subject.

    That is `clean` where it differs from `pasted`; where it does not, nobody has the picture as
    it was, and the region of alpha (h, w) is inpainted.
    """
    if not np.array_equal(clean, pasted):
        return clean
    region = alpha > FAINT
    # A mask seldom holds the object's last soft pixel, so the fill starts a little further out.
    filled = fill_hole(pasted, grow(region, 3))
    return np.where(region[..., None], filled, pasted)


def foreground(pasted: Image, clean: Image, alpha: Image) -> Image:
    """The subject's own colour (h, w, 3), continued beyond its edge with the nearest colour.

    Solves pasted = alpha F + (1 - alpha) clean for F where alpha is large enough. Where the two
    pictures are the same, nobody knows what lay behind, and the nearly solid part is taken as
    it is.
    """
    least = SOLID_ALPHA if np.array_equal(clean, pasted) else LEAST_ALPHA
    solid = alpha >= min(least, float(alpha.max()))
    share = np.maximum(alpha, 1e-6)[..., None]
    colour = np.clip(clean + (pasted - clean) / share, 0, 1).astype(np.float32)
    return extend(colour, solid)


def mend_alpha(alpha: Image, hole: Mask) -> Image:
    """An alpha (h, w) with a hole filled smoothly from its rim; with a sharp edge where alpha has
    no other there.
    """
    filled = membrane(alpha[..., None], hole)[..., 0]
    rim = alpha[grow(hole, 3) & ~hole]
    if ((rim > FAINT) & (rim < 1 - FAINT)).mean() < _SOFT_RIM:
        filled[hole] = np.clip((filled[hole] - 0.5) * _SHARP + 0.5, 0, 1)
    return filled


def clean_rim(rgb: Image, alpha: Image, name: str) -> Image:
    """A cut-out's own colours (h, w, 3) where those of its rim hold some of a one-coloured paper,
    which the log hears of; else the colours as they are.

    A rim that was never cleaned has C = a F + (1 - a) P for alpha a, the paper P and the subject's
    colour F, about that of the nearest solid pixel. That must explain C far better than F does
    alone, or F and one difference. Then F = P + (C - P) / a, where that is the nearer to the solid
    pixel: few alphas are exact.
    """
    rim, solid = (alpha > FAINT) & (alpha < _SOLID), alpha >= _SOLID
    if not (rim.any() and solid.any()):
        return rgb
    own = extend(rgb, solid)[rim]
    mixed, cover = rgb[rim], alpha[rim][:, None]
    change, share = mixed - own, 1 - cover
    thin = cover[:, 0] <= np.quantile(cover, 0.25)
    paper = np.clip(np.median((change / share + own)[thin], axis=0), 0, 1)
    # The thinner, the more paper: there alphas that are not exact say least.
    left, bare, even = (
        float((share * np.abs(error)).mean())
        for error in (change - share * (paper - own), change, change - np.median(change, axis=0))
    )
    if np.abs(paper - own).mean() < _CONTRAST or left > _EXPLAINED * min(bare, even):
        return rgb
    told = ",".join(str(level) for level in to_uint8(paper))
    _log.info("%s: its rim is cleaned of the colour %s of its old background", name, told)
    clean = np.clip(paper + (mixed - paper) / cover, 0, 1)
    off = np.abs(clean - own).sum(-1, keepdims=True)
    # What is paper alone says nothing of the subject.
    clean = np.where(off > np.abs(clean - paper).sum(-1, keepdims=True), own, clean)
    rgb = rgb.copy()
    rgb[rim] = np.where(off > np.abs(change).sum(-1, keepdims=True), mixed, clean)
    return rgb


def membrane(values: Image, inside: Mask, load: Image | None = None) -> Image:
    """Values (h, w, c) with the inside replaced by the solution of Laplace's equation, or of
    Poisson's u - mean of u's four neighbours = `load`.

    The rest is its boundary condition; at the edge of the array the slope is zero. Solved by
    multigrid V-cycles (Briggs, Henson and McCormick, A multigrid tutorial, chapter 3) from the
    mean of the rim; the error left is below a hundredth of the values' span.
    """
    if not inside.any():
        return values
    if inside.all():
        return np.zeros_like(values)
    rim = grow(inside, 1) & ~inside
    result = np.where(inside[..., None], values[rim].mean(0), values).astype(np.float32)
    for _ in range(CYCLES):
        result = _cycle(result, np.zeros_like(result) if load is None else load, inside)
    return result


def _cycle(guess: Image, rest: Image, inside: Mask) -> Image:
    """One V-cycle for u - mean of u's four neighbours = rest, inside the mask."""
    import cv2

    where = inside[..., None]
    shape = guess.shape

    def defect(u: Image) -> Image:
        mean = cv2.filter2D(u, -1, _NEIGHBOURS, borderType=cv2.BORDER_REPLICATE)
        return np.asarray((rest - u + mean.reshape(shape)) * where, np.float32)

    def smooth(u: Image, sweeps: int) -> Image:
        for _ in range(sweeps):
            u = u + np.float32(0.8) * defect(u)
        return u

    guess = smooth(guess, 2)
    if min(shape[:2]) < 4:
        return smooth(guess, 20)
    odd = ((0, shape[0] % 2), (0, shape[1] % 2))
    room = np.pad(inside, odd, mode="edge")
    half = room.shape[0] // 2, room.shape[1] // 2
    solid = resize(room.astype(np.float32), half) > 0.99
    if solid.any():
        left = np.pad(defect(guess), (*odd, (0, 0)), mode="edge")
        # Twice the spacing makes the same curvature four times the difference.
        coarse = 4 * resize(left, half).reshape(*solid.shape, -1)
        found = _cycle(np.zeros_like(coarse), coarse, solid)
        size = room.shape[1], room.shape[0]
        up = cv2.resize(found, size, interpolation=cv2.INTER_LINEAR).reshape(*room.shape, -1)
        guess = guess + up[: shape[0], : shape[1]] * where
    return smooth(guess, 2)
