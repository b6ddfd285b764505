"""How each protocol looks at a result beside its pair: crops, sizes, fillings, averages.

Functions whose value says nothing of a pair give {}; those of networks get them as arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from inlay.errors import InputError
from inlay.evaluation.figures import (
    REACH,
    Image,
    bytes_changed,
    measure,
    psnr,
    seam,
    ssim,
    ssim_outside,
)
from inlay.evaluation.pairs import Pair
from inlay.pictures.arrays import Box, Mask, bounds, from_levels
from inlay.pictures.mask import read_mask
from inlay.pictures.read import read_picture

Value = float | dict[str, float]
_BICUBIC, _LANCZOS = PILImage.Resampling.BICUBIC, PILImage.Resampling.LANCZOS
# What a geometric mean takes for a cosine below 0, as DreamEdit's release does.
_LEAST = 0.001


class View:
    """A result beside what it was made of."""

    def __init__(self, pair: Pair, result: PILImage.Image) -> None:
        self.pair, self.result, self.place = pair, result.convert("RGB"), photo(pair.background)

    def box(self, size: tuple[int, int], whole: Callable[[float], int] = round) -> Box:
        """The pair's box in the picture squashed to (width, height); whole rounds its edges."""
        box, scales = self.pair.box, [a / b for a, b in zip(size, self.place.size, strict=True)]
        left, top = whole(box.x * scales[0]), whole(box.y * scales[1])
        right, bottom = whole(box.right * scales[0]), whole(box.bottom * scales[1])
        return Box(left, top, max(right - left, 1), max(bottom - top, 1))

    def crop(self) -> PILImage.Image:
        """What is in the box of the result."""
        return _part(self.result, self.box(self.result.size))

    def squashed(self, side: int, how: PILImage.Resampling) -> list[PILImage.Image]:
        """Result and background at side x side."""
        return [image.resize((side, side), how) for image in (self.result, self.place)]

    def own(self, other: PILImage.Image | None = None) -> tuple[Image, Image]:
        """Result and background, or another picture, pixel by pixel; raises InputError."""
        other = other or self.place
        if self.result.size != other.size:
            raise InputError(
                f"the result of {self.pair.name} has {self.result.size} pixels; expected "
                f"{other.size}, as the picture it is compared with."
            )
        return np.asarray(self.result), np.asarray(other)

    def outline(self) -> Mask:
        """The box as a mask."""
        mask = np.zeros(self.place.size[::-1], np.bool_)
        inside = self.pair.box.intersect(Box.of_size(self.place.size))
        if inside:
            mask[inside.slices] = True
        return mask


def photo(path: Path) -> PILImage.Image:
    """A picture of a pair as RGB; the last ones are kept while their files stay as they are."""
    return _photo(path, _stamp(path))


def _mask(path: Path) -> NDArray[np.float32]:
    return _levels(path, _stamp(path))


def _fitted(view: View, path: Path) -> NDArray[np.float32]:
    """A mask of the result; raises InputError where it has another size."""
    levels = _mask(path)
    if levels.shape[::-1] != view.result.size:
        raise InputError(
            f"{path.name} has {levels.shape[::-1]} pixels; expected {view.result.size}, as the "
            f"result of {view.pair.name}."
        )
    return levels


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@lru_cache(maxsize=8)
def _photo(path: Path, stamp: int) -> PILImage.Image:
    return read_picture(path).to_pil().convert("RGB")


@lru_cache(maxsize=4)
def _levels(path: Path, stamp: int) -> NDArray[np.float32]:
    return read_mask(path, size=None, notes=[])


def _part(image: PILImage.Image, box: Box) -> PILImage.Image:
    return image.crop((box.x, box.y, box.right, box.bottom))


def _cosine(one: Any, two: Any) -> float:
    return float((one @ two) / (one.norm() * two.norm()))


def _mean(values: list[float]) -> Value:
    return float(np.mean(values)) if values else {}


def _near(path: Path, mask: Path | None) -> PILImage.Image:
    """A reference: the box round its object."""
    box = bounds(_mask(mask), above=0.5) if mask else None
    return _part(photo(path), box) if box else photo(path)


def _on_black(path: Path, mask: Path | None) -> PILImage.Image:
    """A reference with black round its object."""
    return _masked(np.asarray(photo(path)), _mask(mask)) if mask else photo(path)


def likeness(view: View, net: Any) -> Value:
    """The cosine of the crop's vector and a reference's, averaged over references."""
    own, form = net.look(view.crop(), "crop"), "crop"
    seen = (net.kept(each, partial(_near, *each), form) for each in _references(view.pair))
    return _mean([_cosine(own, vector) for vector in seen])


def _references(pair: Pair) -> list[tuple[Path, Path | None]]:
    return list(zip(pair.references, pair.reference_masks, strict=True))


def _black(images: list[PILImage.Image], box: Box, more: int = 0) -> list[PILImage.Image]:
    """Pictures with a box black in each; `more` pixels to the right and below it, too."""
    found = [image.copy() for image in images]
    for image in found:
        image.paste((0, 0, 0), (box.x, box.y, box.right + more, box.bottom + more))
    return found


def _background(view: View) -> tuple[list[PILImage.Image], Box]:
    return view.squashed(512, _BICUBIC), view.box((512, 512))


def dreamcom_ssim(view: View) -> Value:
    images, box = _background(view)
    return ssim_outside(box, *(np.asarray(image) for image in images))


def dreamcom_lpips(view: View, net: Any) -> Value:
    (result, place), box = _background(view)
    result.paste(_part(place, box), (box.x, box.y))
    outside = np.ones((512, 512), np.bool_)
    outside[box.slices] = False
    return float(net(result, place, outside)) if outside.any() else {}


def bcmi_ssim(view: View) -> Value:
    edges = ((REACH, REACH), (REACH, REACH), (0, 0))
    # torchmetrics takes the mean over all places; beyond the edge lies what a mirror there shows.
    one, two = (np.pad(np.asarray(i), edges, "reflect") for i in _black(*_background(view)))
    return float(ssim(one, two).mean())


def bcmi_lpips(view: View, net: Any) -> Value:
    return float(net(*_black(*_background(view))))


def bcmi_likeness(view: View, net: Any, sam: str) -> Value:
    """Result: the crop times SAM's mask of what is in the box. Reference: resampled to the crop,
    times its mask, resampled too.
    """
    from inlay.scene.segment import segment

    box = view.box(view.result.size)
    rgb, crop = from_levels(np.asarray(view.result)), np.asarray(_part(view.result, box))
    mask = segment(rgb, sam, box=box)[0][box.slices]
    own = net.look(_masked(crop, mask), "squash")
    cosines = []
    for path, drawn in _references(view.pair):
        image = np.asarray(photo(path).resize((box.width, box.height), _BICUBIC))
        levels = np.ones(image.shape[:2], np.float32)
        if drawn is not None:
            whole = PILImage.fromarray((_mask(drawn) * 255).astype(np.uint8))
            levels = from_levels(np.asarray(whole.resize((box.width, box.height), _BICUBIC)))
        cosines.append(_cosine(own, net.look(_masked(image, levels), "squash")))
    return _mean(cosines)


def _masked(image: Image, mask: NDArray[Any]) -> PILImage.Image:
    return PILImage.fromarray((image * mask[..., None]).astype(np.uint8))


def _shine(view: View) -> tuple[PILImage.Image, list[PILImage.Image]]:
    """The crop at 512 x 512, Lanczos, and both pictures with the box black in them: the crop ends
    before the box's last row and column, what is black with them.
    """
    images, box = view.squashed(512, _LANCZOS), view.box((512, 512), math.floor)
    return _part(images[0], box), _black(images, box, more=1)


def shine_likeness(form: str, slope: float, offset: float, view: View, net: Any) -> Value:
    """Of the first reference alone, its object on black: slope times the cosine, and offset."""
    if not view.pair.references:
        return {}
    first = _references(view.pair)[0]
    reference = net.kept((*first, "black"), partial(_on_black, *first), form)
    return slope * _cosine(net.look(_shine(view)[0], form), reference) + offset


def shine_lpips(view: View, net: Any) -> Value:
    how = PILImage.Resampling.BILINEAR
    return float(net(*(image.resize((256, 256), how) for image in _shine(view)[1])))


def shine_ssim(view: View) -> Value:
    one, two = (np.asarray(image) for image in _shine(view)[1])
    return float(ssim(one, two, gaussian=False).mean())


def dreamedit(view: View, dino: Any, clip: Any) -> Value:
    """The whole result against each whole reference, and against the background, all squashed to
    512 x 512; overall has DINO's likeness of the background twice, as released.
    """
    found: dict[str, float] = {}
    result, place = view.squashed(512, _BICUBIC)
    for name, net in (("dino", dino), ("clip", clip)):
        own = net.look(result, "crop")

        def squash(path: Path) -> PILImage.Image:
            return photo(path).resize((512, 512), _BICUBIC)

        seen = [
            net.kept((path, 512), partial(squash, path), "crop") for path in view.pair.references
        ]
        if not seen:
            return {}
        found[f"{name}_sub"] = float(np.mean([_cosine(own, each) for each in seen]))
        found[f"{name}_back"] = _cosine(own, net.look(place, "crop"))
    parts = [found[name] for name in ("dino_sub", "clip_sub", "dino_back", "dino_back")]
    product = math.prod(part if part >= 0 else _LEAST for part in parts)
    return found | {"overall": product**0.25}


def iharmony4(figure: str, view: View) -> Value:
    """At 256 x 256, bicubic; the mask is made black and white, then resampled as such pictures are,
    by the nearest pixel.
    """
    if view.pair.truth is None or view.pair.truth_mask is None:
        return {}
    images = (view.result, photo(view.pair.truth))
    one, two = (np.asarray(i.resize((256, 256), _BICUBIC), np.float32) for i in images)
    error = float(np.mean((one - two) ** 2, dtype=np.float64))
    if figure == "mse":
        return error
    if figure == "psnr":
        span = float(one.max() - one.min())
        return 10 * math.log10(span**2 / error) if error and span else {}
    levels = PILImage.fromarray((_mask(view.pair.truth_mask) * 255).astype(np.uint8))
    mask = np.asarray(levels.convert("1").resize((256, 256), _BICUBIC))
    inside = float(np.mean(((one - two) * mask[..., None]) ** 2, dtype=np.float64))
    return inside * mask.size / int(mask.sum()) if mask.any() else {}


def edge(view: View) -> Value:
    """Of the box, or of the object that was harmonized."""
    worked, mask = view.outline(), view.pair.truth_mask
    if view.pair.request.verb == "harmonize" and mask:
        worked = _fitted(view, mask) > 0.5
    return seam(view.own()[0], worked, view.pair.box)


def changed_outside(view: View) -> Value:
    return float(bytes_changed(*view.own(), view.pair.box))


def own_ssim(view: View) -> Value:
    return ssim_outside(view.pair.box, *view.own())


def against_truth(figure: str, view: View, *nets: Any) -> Value:
    """fmse, fpsnr and delta_e of benchmark.measure(); psnr, ssim and lpips of the whole picture."""
    if view.pair.truth is None:
        return {}
    truth = photo(view.pair.truth)
    one, two = view.own(truth)
    if figure == "lpips":
        return float(nets[0](view.result, truth))
    if figure == "ssim":
        return float(ssim(one, two).mean())
    if figure == "psnr":
        return psnr(float(np.mean((one.astype(np.float64) - two) ** 2)))
    mask = view.pair.truth_mask
    where = view.outline().astype(np.float32) if mask is None else _fitted(view, mask)
    return measure(one, two, where)[figure]


def clip_t(view: View, clip: Any) -> Value:
    """The whole result against what its authors write of it, else "a photo of a CATEGORY"."""
    category = view.pair.category.replace("_", " ").lower()
    prompt = view.pair.prompt or f"a photo of a {category}"
    return _cosine(clip.look(view.result, "crop"), clip.read(prompt))
