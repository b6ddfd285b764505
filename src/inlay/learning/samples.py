"""Photos of one object as samples to learn from: crops round its box, and what of them counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from inlay.checkpoints.concept import Sight
from inlay.diffusion.backbone import Backbone
from inlay.errors import InputError
from inlay.learning.folder import image_rows
from inlay.learning.photos import View, portrait
from inlay.learning.settings import LearnConfig
from inlay.pictures.arrays import Box, Image, blur, resize
from inlay.pictures.read import read_picture
from inlay.scene.stitch import crop_box

# Of a photo, no more is kept than so many times what the model sees of it.
_FINEST = 2
_MOST_CLASS_PICTURES = 200


@dataclass(frozen=True, eq=False)
class Example:
    """What crops can reach of one photo.

    rgb (h, w, 3) is sRGB in [0, 1]; known (h, w) is 1 where the photo has a colour, 0 where it is
    transparent; shape (h, w) is the object's mask, or its box filled. box is the object's, frame
    the square that the model sees of it before augmentation, both in rgb's pixels; the frame may
    leave them. sight is what the file says of the photo.
    """

    rgb: Image
    known: Image
    shape: Image
    box: Box
    frame: Box
    sight: Sight


@dataclass(frozen=True, eq=False)
class Sample:
    """A crop: x (3, S, S) in [-1, 1], hole and valid (1, S, S) of 0 and 1."""

    x: Tensor
    hole: Tensor
    valid: Tensor


@dataclass(frozen=True, eq=False)
class Pool:
    """Encoded samples, N of them, on the CPU.

    z and seen are (N, C, h, w), the latter the latent with the hole erased, None for a plain
    checkpoint; hole and valid are (N, 1, h, w) of 0 and 1.
    """

    z: Tensor
    seen: Tensor | None
    hole: Tensor
    valid: Tensor

    def __len__(self) -> int:
        return len(self.z)

    def rows(self, indices: NDArray[np.int64], device: torch.device) -> Pool:
        """Some of them, on a device."""
        at = torch.from_numpy(indices)
        parts = (self.z, self.seen, self.hole, self.valid)
        return Pool(*(None if part is None else part[at].to(device) for part in parts))  # type: ignore[arg-type]


def example(view: View, config: LearnConfig, resolution: int) -> Example:
    """The part of a photo that crops can reach, no finer than a model of that side needs it."""
    picture, box, shape = view.picture, view.box, view.shape
    whole = Box.of_size(picture.size)
    seen = crop_box(box, picture.size, config.context)
    side = max(seen.width, seen.height)
    frame = Box(seen.x + (seen.width - side) // 2, seen.y + (seen.height - side) // 2, side, side)
    widest = side / config.scale_min
    near = frame.grown(int((widest - side) + config.shift * widest) + 2).intersect(whole) or whole
    rgb, opacity = picture.rgb(near), picture.alpha(near)
    known = np.ones(rgb.shape[:2], np.float32) if opacity is None else np.minimum(opacity, 1)
    if shape is None:
        shape = np.zeros((picture.height, picture.width), np.float32)
        shape[box.slices] = 1
    shape = np.ascontiguousarray(shape[near.slices])
    shrink = min(1.0, _FINEST * resolution / side)
    height, width = (max(1, round(length * shrink)) for length in rgb.shape[:2])
    across, down = width / near.width, height / near.height

    def scale(place: Box, square: bool = False) -> Box:
        at = place.shifted(-near.x, -near.y)
        wide = max(1, round(at.width * across))
        high = wide if square else max(1, round(at.height * down))
        return Box(round(at.x * across), round(at.y * down), wide, high)

    return Example(
        np.clip(resize(rgb, (height, width)), 0, 1),
        (resize(known, (height, width)) > 0.5).astype(np.float32),
        (resize(shape, (height, width)) > 0.5).astype(np.float32),
        scale(box),
        scale(frame, square=True),
        Sight(
            photo=picture.name,
            sha256=picture.sha256,
            aspect=box.width / box.height,
            size=(box.area / whole.area) ** 0.5,
            whole=box.grown(1).intersect(whole) == box.grown(1),
            picture=portrait(view) if config.keep_photos else None,
        ),
    )


def draw_crop(example: Example, config: LearnConfig, rng: np.random.Generator) -> Box:
    """A square crop round the object, in the example's pixels; it may leave them.

    The frame is scaled by `scale_min` to `scale_max` (above 1 the object gets larger) and moved at
    random, and drawn anew until `least_inside` of the object's pixels are in it: the paper's rule,
    section 5.2. After a hundred draws the frame itself is taken.
    """
    total = float(example.shape.sum())
    frame = example.frame
    for _ in range(100):
        side = max(1, round(frame.width / rng.uniform(config.scale_min, config.scale_max)))
        slack = abs(frame.width - side) / 2 + config.shift * side
        middle = (frame.width - side) / 2
        dx, dy = middle + rng.uniform(-slack, slack, 2)
        crop = Box(frame.x + round(dx), frame.y + round(dy), side, side)
        inside = crop.intersect(Box.of_size((example.rgb.shape[1], example.rgb.shape[0])))
        held = 0.0 if inside is None else float(example.shape[inside.slices].sum())
        if held >= config.least_inside * total:
            return crop
    return frame


def crop_sample(example: Example, crop: Box, resolution: int, flip: bool = False) -> Sample:
    """A crop at the model's size, the object's box erased; what lies beyond the photo is grey, and
    not valid.
    """
    paper = np.zeros((crop.height, crop.width, 5), np.float32)
    paper[..., :3] = 0.5
    inside = crop.intersect(Box.of_size((example.rgb.shape[1], example.rgb.shape[0])))
    if inside is not None:
        region = np.zeros((inside.height, inside.width), np.float32)
        there = example.box.intersect(inside)
        if there is not None:
            region[there.shifted(-inside.x, -inside.y).slices] = 1
        known = example.known[inside.slices][..., None]
        rgb = example.rgb[inside.slices] * known + 0.5 * (1 - known)
        at = inside.shifted(-crop.x, -crop.y).slices
        paper[at] = np.dstack([rgb, region, known])
    paper = paper[:, ::-1] if flip else paper
    x, masks = (_planes(paper[..., part], resolution) for part in (slice(3), slice(3, 5)))
    erased = masks[:1] > 0.5
    if not erased.any():
        # An object thinner than half a model pixel is still to be learnt.
        erased = masks[:1] > 0
    return Sample(x.clamp(0, 1) * 2 - 1, erased.float(), (masks[1:] > 0.999).float())


def _planes(image: Image, side: int) -> Tensor:
    """An image (h, w, c) as (c, side, side)."""
    small = resize(np.ascontiguousarray(image), (side, side))
    return torch.from_numpy(np.ascontiguousarray(small.transpose(2, 0, 1)))


def class_samples(folder: Path, resolution: int, seed: int) -> list[Sample]:
    """Pictures of the class at large, for prior preservation: a random square crop and hole each.
    Raises InputError where the folder has no picture that can be read.
    """
    samples = []
    for number, row in enumerate(image_rows(folder)[0]):
        try:
            rgb = np.asarray(read_picture(folder / row.file_name).to_pil().convert("RGB"), np.uint8)
        except InputError:
            continue
        rng = np.random.default_rng([seed, 5, number])
        crop = random_crop(rgb, resolution, rng)
        x = torch.from_numpy(crop.astype(np.float32).transpose(2, 0, 1)) / 127.5 - 1
        mask = torch.from_numpy(random_mask(resolution, rng))[None]
        samples.append(Sample(x, mask, torch.ones_like(mask)))
        if len(samples) == _MOST_CLASS_PICTURES:
            break
    if not samples:
        raise InputError(f"{folder} holds no readable picture; give a folder of class pictures.")
    return samples


@torch.no_grad()
def encode(backbone: Backbone, samples: Sequence[Sample], rows: int = 8) -> Pool:
    """Encode samples, each once. A latent pixel is hole where the hole touches its patch, and valid
    where all of it is.
    """
    parts: list[tuple[Tensor, Tensor | None, Tensor, Tensor]] = []
    for first in range(0, len(samples), rows):
        some = samples[first : first + rows]
        x, hole, valid = (
            torch.stack([getattr(sample, name) for sample in some]).to(backbone.device)
            for name in ("x", "hole", "valid")
        )
        small = functional.max_pool2d(hole, backbone.factor)
        sound = -functional.max_pool2d(-valid, backbone.factor)
        parts.append((backbone.encode(x), backbone.encode_masked(x, small), small, sound))
    z, seen, holes, sounds = zip(*parts, strict=True)
    erased = torch.cat([s for s in seen if s is not None]).cpu() if seen[0] is not None else None
    return Pool(torch.cat(z).cpu(), erased, torch.cat(holes).cpu(), torch.cat(sounds).cpu())


def loss_weights(hole: Tensor, valid: Tensor, hole_weight: float) -> Tensor:
    """What each latent pixel (N, 1, h, w) weighs in the loss: what is not valid nothing.

    With a `hole_weight` of 0 all valid pixels alike, which is the paper's loss; with 1 those of the
    hole alone.
    """
    return valid * ((1 - hole_weight) + hole_weight * hole)


Pixels = NDArray[np.uint8]
Mask = NDArray[np.float32]


def random_crop(
    image: Pixels, size: int | tuple[int, int], rng: np.random.Generator, near: Box | None = None
) -> Pixels:
    """A crop of a picture (H, W, C), resized to (height, width, C) or a square, half of them
    mirrored.

    It is 55% to 100% of the largest that fits, or, as far as that goes, 1.5 to 2.5 times the longer
    side of a box that it is `near`; no less than half of `size`, unless the picture is.
    """
    height, width = image.shape[:2]
    h, w = (size, size) if isinstance(size, int) else size
    most = min(height / h, width / w)
    scale = most * rng.uniform(0.55, 1.0)
    if near is not None:
        scale = max(near.width, near.height) * rng.uniform(1.5, 2.5) / max(h, w)
    scale = min(most, max(scale, 0.5))
    tall, wide = max(1, round(scale * h)), max(1, round(scale * w))
    top, left = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
    if near is not None:
        middle = near.y + (near.height - tall) / 2, near.x + (near.width - wide) / 2
        off = rng.uniform(-0.1, 0.1, 2) * max(near.width, near.height)
        top, left = np.clip(off + middle, 0, (height - tall, width - wide)).astype(int)
    mirrored = bool(rng.random() < 0.5)
    crop = resize(image[top : top + tall, left : left + wide], (h, w))
    return np.ascontiguousarray(crop[:, ::-1] if mirrored else crop)


def random_mask(size: int, rng: np.random.Generator) -> Mask:
    """A hole (size, size), 1 = to be painted: a box, ellipses, strokes, a blob, or everything."""
    mask = np.zeros((size, size), np.float32)
    kind = rng.choice(5, p=[0.3, 0.2, 0.15, 0.2, 0.15])
    if kind == 0:
        w, h = rng.uniform(0.2, 0.85, 2) * size
        x, y = rng.uniform(0, size - w), rng.uniform(0, size - h)
        mask[int(y) : int(y + h), int(x) : int(x + w)] = 1
    elif kind == 1:
        for _ in range(int(rng.integers(1, 4))):
            center = tuple(int(v) for v in rng.uniform(0.2, 0.8, 2) * size)
            axes = tuple(int(v) for v in rng.uniform(0.08, 0.4, 2) * size)
            cv2.ellipse(mask, center, axes, float(rng.uniform(0, 180)), 0, 360, 1.0, -1)
    elif kind == 2:
        for _ in range(int(rng.integers(1, 4))):
            steps = rng.normal(0, 0.18, (int(rng.integers(3, 7)), 2)) * size
            points = (np.cumsum(steps, 0) + rng.uniform(0.2, 0.8, 2) * size).astype(np.int32)
            thickness = int(rng.uniform(0.06, 0.2) * size)
            cv2.polylines(mask, [points], False, 1.0, thickness)
    elif kind == 3:
        # Thresholded smooth noise: ragged outlines, like those of segmented objects.
        noise = rng.normal(size=(size, size)).astype(np.float32)
        smooth = blur(noise, float(rng.uniform(0.08, 0.2) * size), mirror=True)
        mask[smooth > np.quantile(smooth, rng.uniform(0.4, 0.85))] = 1
    else:
        mask[:] = 1
    return mask
