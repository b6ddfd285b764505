"""From a hard outline to a soft alpha, and to the subject's own colours."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, Literal

import numpy as np

from inlay.pictures.arrays import FAINT, Box, Image, Mask, bounds, distance, resize

_log = logging.getLogger("inlay")

# The most pixels that the matting solver and the colour estimation work on.
_MATTE_PIXELS = 1_000_000
_COLOUR_PIXELS = 4_000_000
# The uncertain band's half width over the root of the subject's area, and its bounds in pixels
# of the working size: thin for an outline that somebody drew, wide for one that was guessed.
_BAND = {"thin": (0.01, 3.0, 8.0), "wide": (0.02, 3.0, 14.0)}
# Alpha below this, and above one less this, is the solver's haze.
_HAZE = 0.03
_LOCK = Lock()


def matte(
    rgb: Image, outline: Mask, band: Literal["thin", "wide"] = "thin", reach: float = 0.0
) -> Image:
    """Soften an outline by closed-form matting (Levin, Lischinski and Weiss 2008).

    rgb is float32 (h, w, 3) in [0, 1], outline bool (h, w), reach the pixels by which the
    outline may be off. Returns alpha, float32 (h, w) in [0, 1]; it differs from the outline only
    in a band along its edge. The picture's border is no edge. Works on at most a megapixel and
    enlarges the result.
    """
    alpha = outline.astype(np.float32)
    share, least, most = _BAND[band]
    tight = bounds(outline)
    if tight is None or outline.all():
        return alpha
    height, width = outline.shape
    scale = min(1.0, (_MATTE_PIXELS / tight.area) ** 0.5)
    half = float(np.clip(share * np.sqrt(outline.sum()) * scale, least, most))
    half = max(half, min(reach * scale, 4 * most))
    margin = int(np.ceil((2 * half + 2) / scale)) + 1
    crop = tight.grown(margin).intersect(Box.of_size((width, height))) or tight
    size = max(1, round(crop.height * scale)), max(1, round(crop.width * scale))
    part = resize(np.clip(rgb[crop.slices], 0, 1), size)
    solved = _closed_form(part, resize(alpha[crop.slices], size) > 0.5, half)
    if solved is not None:
        solved = resize(solved, (crop.height, crop.width))
        alpha[crop.slices] = np.clip((solved - _HAZE) / (1 - 2 * _HAZE), 0, 1)
    return alpha


def colours(rgb: Image, alpha: Image, place: Box) -> Image:
    """The subject's own colours inside a box, float32 (h, w, 3) in [0, 1].

    Multi-level foreground estimation (Germer et al. 2020), so that pixels of the edge lose the
    old background's share. Where alpha is 1, to 8 bits, the picture's pixels come back as they are.
    """
    import cv2

    height, width = alpha.shape
    # Some of the old background is needed to tell the two apart.
    margin = max(8, round(0.05 * max(place.width, place.height)))
    crop = place.grown(margin).intersect(Box.of_size((width, height))) or place
    part, cover = np.clip(rgb[crop.slices], 0, 1), alpha[crop.slices]
    inner = place.shifted(-crop.x, -crop.y).slices
    solid = cover[inner] > 1 - FAINT
    if solid.all() or max(crop.width, crop.height) < 2:
        return np.ascontiguousarray(part[inner], np.float32)
    scale = min(1.0, (_COLOUR_PIXELS / crop.area) ** 0.5)
    size = max(1, round(crop.height * scale)), max(1, round(crop.width * scale))
    with _matting() as (_, estimate):
        found = estimate(resize(part, size), np.clip(resize(cover, size), 0, 1))
    found = cv2.resize(found, (crop.width, crop.height), interpolation=cv2.INTER_LINEAR)
    own = np.where(solid[..., None], part[inner], np.clip(found[inner], 0, 1))
    return np.ascontiguousarray(own, np.float32)


def _closed_form(image: Image, outline: Mask, half: float) -> Image | None:
    """Alpha that is unknown within `half` pixels of an outline's edge.

    The band is narrowed until some of the subject and some of the background are sure. None where
    that cannot be, or the solver does not settle.
    """
    inward, outward = distance(~outline), distance(outline)
    half = min(half, 0.7 * float(inward.max()), 0.9 * float(outward.max()))
    if half < 0.5 or min(outline.shape) < 3:
        return None
    trimap = np.full(outline.shape, 0.5)
    trimap[inward > half] = 1
    trimap[outward > half] = 0
    try:
        # A right-hand side of zero makes its solver divide by zero.
        with _matting() as (estimate, _), np.errstate(divide="ignore", invalid="ignore"):
            alpha = estimate(
                image.astype(np.float64),
                trimap,
                laplacian_kwargs={"epsilon": 1e-6},
                cg_kwargs={"maxiter": 2000, "rtol": 1e-5},
            )
    except ValueError:
        return None
    return np.asarray(alpha, np.float32) if np.isfinite(alpha).all() else None


@contextmanager
def _matting() -> Iterator[tuple[Any, Any]]:
    """The matting library's functions. It starts as many threads as there are cores, and torch's
    number of threads becomes theirs: it is put back, or a model that runs beside others would be
    slowed down.
    """
    torch = sys.modules.get("torch")
    threads = None if torch is None else torch.get_num_threads()
    if torch is None and "OMP_NUM_THREADS" in os.environ:
        os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
    try:
        with _LOCK:
            functions = _functions()
        yield functions
    finally:
        if torch is not None and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@cache
def _functions() -> tuple[Any, Any]:
    """Closed-form matting and the estimate of colours, by the modules that they are in.

    Where a module of the library is imported it compiles itself, once after an install, and the
    library's packages import all modules, most of which are of no use here: so there are other
    packages meanwhile, which import none.
    """
    _log.info("estimating the matte (the first time after an install takes some seconds)")
    spec = find_spec("pymatting")
    assert spec is not None and spec.origin is not None
    home = Path(spec.origin).parent
    packages = {"pymatting": home}
    packages |= {f"pymatting.{folder.name}": folder for folder in home.iterdir() if folder.is_dir()}
    bare = {name: ModuleType(name) for name in packages if name not in sys.modules}
    for name, module in bare.items():
        module.__path__ = [str(packages[name])]
    sys.modules.update(bare)
    try:
        from pymatting.alpha.estimate_alpha_cf import estimate_alpha_cf
        from pymatting.foreground.estimate_foreground_ml import estimate_foreground_ml
    finally:
        for name in bare:
            del sys.modules[name]
    return estimate_alpha_cf, estimate_foreground_ml
