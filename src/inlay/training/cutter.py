"""Training of the cutter (inlay.scene.network): pictures whose subject is known, and cut-outs of
these over other pictures, with a box or points, with both, or without a hint.

A folder needs pictures with a mask, or with an alpha that is one; all others are grounds to lay
cut-outs on. A picture that is transparent and has no colours round its subject is a cut-out alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, binary_cross_entropy_with_logits

from inlay.errors import InputError
from inlay.pictures.arrays import Box, blur, bounds, extend, from_levels, resize, to_uint8
from inlay.scene.cutter import SIDE, Point, as_square
from inlay.scene.network import cutter
from inlay.training.corpus import load_corpus
from inlay.training.disturb import disturb, draw
from inlay.training.network import SupervisedConfig, SupervisedTrainer
from inlay.training.trainer import Batch, Sample

Rng = np.random.Generator
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

# One subject in so many teaches the judge alone: what it expects is then of what was not learnt.
_JUDGED = 14
# Half of a mask's levels; the least share of a picture that a subject takes.
_HALF, _LEAST = 127, 0.003


class CutterConfig(SupervisedConfig):
    """The whole recipe; it is written next to the weights it made."""

    composite_share: float = Field(0.64, ge=0, le=1)
    """share of samples that are cut-outs over other pictures"""
    hinted_share: float = Field(0.45, ge=0, le=1)
    """share of these with other things in them, so that a hint has to name the subject"""


@dataclass(frozen=True, eq=False)
class Cuttings:
    """One split of a folder, uint8: grounds (H, W, 4), 255 in the last channel on their subject;
    which of them have one that is known; cut-outs (h, w, 4), of their own colour beyond their edge.
    """

    grounds: Sequence[Pixels]
    known: Sequence[int]
    cutouts: Sequence[Pixels]

    def __len__(self) -> int:
        return len(self.cutouts)


class CutterTrainer(SupervisedTrainer):
    """One run: pictures and cut-outs, the network, its optimiser and average."""

    kind = "cutter"
    definition, shape = staticmethod(cutter), (5, SIDE, SIDE)
    config: CutterConfig

    def read(self, folder: Path, held_out: bool) -> Cuttings:
        grounds, known, cutouts = list[Pixels](), list[int](), list[Pixels]()
        for picture in load_corpus(folder, held_out, captioned=False, alpha=True).images:
            if picture.shape[2] == 3:
                picture = np.dstack([picture, np.zeros(picture.shape[:2], np.uint8)])
            alpha, outside = picture[..., 3], picture[picture[..., 3] == 0]
            shows = (alpha > _HALF).mean() > _LEAST
            if shows and (place := bounds(alpha, 0)):
                part = np.pad(picture[place.slices], ((1, 1), (1, 1), (0, 0)))
                solid = part[..., 3] >= min(250, int(alpha.max()))
                own = extend(from_levels(part[..., :3]), solid)
                cutouts.append(np.dstack([to_uint8(own), part[..., 3]]))
            if len(outside) and outside[:, :3].std(0).max() > 2:
                known += [len(grounds)] if shows else []
                grounds.append(picture)
        if not held_out and not (cutouts and grounds):
            lacks = "picture to lay cut-outs on" if cutouts else "picture whose subject is known"
            raise InputError(
                f"{folder} holds no {lacks}; expected photos, and masks of some in masks/ under "
                "their names, or pictures whose alpha is the mask."
            )
        return Cuttings(grounds, known, cutouts if grounds else ())

    def sample(self, corpus: Cuttings, rng: Rng) -> Sample:
        """x (5, S, S) as the network reads it; alpha (1, S, S) in [0, 1]; weight, which is 0 where
        the judge alone learns from it.
        """
        composed = rng.random() < self.config.composite_share or not corpus.known
        hinted = composed and rng.random() < self.config.hinted_share
        number = int(rng.integers(len(corpus.cutouts) if composed else len(corpus.known)))
        if composed:
            rgb, alpha = compose(corpus, number, hinted, rng)
        else:
            rgb, alpha = view(corpus.grounds[corpus.known[number]], rng)
        box, points = hint(alpha, hinted, rng)
        # Which of several is meant nobody can know without a hint.
        lost = hinted and box is None and not points
        square = as_square(degrade(rgb, rng), Box.of_size((SIDE, SIDE)), box, points)
        weight = np.array(not lost and number % _JUDGED < _JUDGED - 1, np.float32)
        return {"x": square.transpose(2, 0, 1).copy(), "alpha": alpha[None], "weight": weight}

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy, most of it along the outline, and 0.7 of 1 - soft IoU; 0.15 of these at a
        16th, an 8th and a 4th of the side; 0.3 of the cross-entropy of the IoU that is expected.
        """
        alpha, x = batch["alpha"], batch["x"].contiguous(memory_format=torch.channels_last)
        logits, sides, expected = self.network(x)
        edge = 1 + 4 * (3 * (alpha - avg_pool2d(alpha, 15, 1, 7)).abs()).clamp(max=1)
        each = _error(logits.float(), alpha, edge)
        for side in sides:
            each = each + 0.15 * _error(side.float(), adaptive_avg_pool2d(alpha, side.shape[2:]))
        truth = _iou(logits, alpha)
        judged = binary_cross_entropy_with_logits(expected.float(), truth, reduction="none")
        return (batch["weight"] * each + 0.3 * judged).mean()

    def figures(self, batch: Batch) -> Mapping[str, Tensor]:
        """The IoU by what names the subject, and how far the one that was expected is off."""
        logits, _, expected = self.network(batch["x"])
        iou = _iou(logits, batch["alpha"])
        box, point = (batch["x"][:, channel].flatten(1).any(1) for channel in (3, 4))
        kinds = {"iou": ~box & ~point & (batch["weight"] > 0), "iou_box": box, "iou_points": point}
        known = {name: torch.where(rows, iou, torch.nan) for name, rows in kinds.items()}
        return {**known, "expected_error": (expected.sigmoid() - iou).abs()}


def _error(logits: Tensor, alpha: Tensor, edge: Tensor | float = 1.0) -> Tensor:
    """Weighted cross-entropy and 0.7 of 1 - soft IoU, (N,)."""
    cross = binary_cross_entropy_with_logits(logits, alpha, reduction="none") * edge
    found, some = logits.sigmoid(), 3e-4 * alpha[0].numel()
    common, union = found * alpha, found + alpha - found * alpha
    iou = (common.sum((1, 2, 3)) + some) / (union.sum((1, 2, 3)) + some)
    return cross.mean((1, 2, 3)) + 0.7 * (1 - iou)


def _iou(logits: Tensor, alpha: Tensor) -> Tensor:
    """The hard IoU, (N,); to find nothing where nothing is counts as right."""
    found, truth = (logits.detach() > 0).flatten(1), (alpha > 0.5).flatten(1)
    return ((found & truth).sum(1) + 1e-6) / ((found | truth).sum(1) + 1e-6)


def view(picture: Pixels, rng: Rng) -> tuple[Pixels, Floats]:
    """A part of a picture that holds its subject, often close round it, and the alpha (S, S)."""
    (height, width), place = picture.shape[:2], bounds(picture[..., 3], _HALF)
    assert place is not None
    # What lies beyond the subject on the left, above, on the right and below, and what is seen.
    beyond = np.array([place.x, place.y, width - place.right, height - place.bottom])
    near = rng.uniform(0.03, 0.5, 4) * np.tile([place.width, place.height], 2)
    seen = near if rng.random() < 0.45 else beyond * (1 - rng.random(4) ** 2)
    left, up, right, down = np.minimum(beyond, seen).astype(int)
    part = picture[place.y - up : place.bottom + down, place.x - left : place.right + right]
    part = resize(part[:, :: rng.choice([-1, 1])], (SIDE, SIDE))
    return part[..., :3], from_levels(part[..., 3])


def compose(corpus: Cuttings, number: int, hinted: bool, rng: Rng) -> tuple[Pixels, Floats]:
    """A cut-out over a ground, (S, S, 3), and its alpha (S, S).

    `hinted` is with other things behind it and, at times, in front; without, what lies beside it is
    as much the subject.
    """
    canvas, count = _ground(corpus, not hinted, rng), len(corpus.cutouts)
    for which in rng.integers(count, size=rng.integers(4)) if hinted else ():
        canvas, _ = lay(canvas, corpus.cutouts[which], (0.2, 0.9), rng)
    canvas, alpha = lay(canvas, corpus.cutouts[number], (0.35 if hinted else 0.2, 1.0), rng)
    for which in rng.integers(count, size=rng.integers(3)) if rng.random() < 0.3 else ():
        canvas, more = lay(canvas, corpus.cutouts[which], (0.15, 0.5), rng)
        alpha = alpha * (1 - more) if hinted else 1 - (1 - alpha) * (1 - more)
    return to_uint8(canvas), alpha


def _ground(corpus: Cuttings, calm: bool, rng: Rng) -> Floats:
    """A part of a picture (S, S, 3), or a wall; a calm one shows hardly anything of a subject."""
    for _ in range(8 if rng.random() < 0.8 else 0):
        picture = corpus.grounds[int(rng.integers(len(corpus.grounds)))]
        sides = np.array(picture.shape[:2])
        tall, wide = np.maximum(8, sides * rng.uniform(0.25, 0.6 if calm else 1)).astype(int)
        top, left = rng.integers(0, sides - (tall, wide) + 1)
        part = picture[top : top + tall, left : left + wide]
        if not calm or (part[..., 3] > _HALF).mean() < 0.02:
            return _relit(resize(part[:, :: rng.choice([-1, 1]), :3], (SIDE, SIDE)), rng, 0.5)
    colour = np.clip(rng.uniform(0.1, 1) + rng.normal(0, 0.06, 3), 0, 1)
    slopes = np.linspace(-0.5, 0.5, SIDE)[:, None] * rng.uniform(-0.6, 0.6, 2)
    light = 1 + slopes[:, :1] + slopes[:, 1]
    return np.asarray(np.clip(light[..., None] * colour, 0, 1), np.float32)


def _relit(picture: Pixels, rng: Rng, strength: float) -> Floats:
    """A picture, in four of five cases under another light."""
    changes = draw("mixed", rng, strength) if rng.random() < 0.8 else ()
    return np.asarray(disturb(picture, changes), np.float32)


def lay(
    canvas: Floats, cutout: Pixels, sizes: tuple[float, float], rng: Rng
) -> tuple[Floats, Floats]:
    """A canvas (S, S, 3) with a cut-out on it, of such sizes over its own, and perhaps with its
    shadow; and the alpha (S, S).
    """
    stretch = np.exp(rng.normal(0, 0.1, 2)) * SIDE * rng.uniform(*sizes) / max(cutout.shape[:2])
    height, width = np.maximum(3, cutout.shape[:2] * stretch).astype(int).tolist()
    small = resize(cutout[:, :: rng.choice([-1, 1])], (height, width))
    own = np.dstack([_relit(small[..., :3], rng, 0.7), from_levels(small[..., 3])])
    angle = rng.normal(0, 9) if rng.random() < 0.75 else rng.uniform(-180, 180)
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
    turn[:, 2] += SIDE * (0.5 + np.clip(rng.normal(0, 0.2, 2), -0.5, 0.5)) - (width / 2, height / 2)
    placed = np.asarray(cv2.warpAffine(own, turn, (SIDE, SIDE)), np.float32)
    rgb, alpha = placed[..., :3], placed[..., 3]
    place = bounds(alpha, 0.3)
    if place is not None and rng.random() < 0.55:
        # A shadow is ground: thrown flat from where the thing stands, or right beside it.
        flat, slant = (rng.uniform(0.08, 0.5), 0.8) if rng.random() < 0.6 else (1.0, 0.05)
        slant *= rng.normal()
        cast = np.array([[1, slant, -slant * place.bottom], [0, flat, (1 - flat) * place.bottom]])
        shade = np.asarray(cv2.warpAffine(alpha, cast, (SIDE, SIDE)), np.float32)
        shade = blur(shade, rng.uniform(0.01, 0.08) * place.height + 0.6)
        canvas = canvas * (1 - np.float32(rng.uniform(0.15, 0.75)) * shade[..., None])
    if place is not None and rng.random() < 0.15:
        # Little contrast.
        mean = (rgb * alpha[..., None]).sum((0, 1)) / alpha.sum()
        rgb = np.clip(rgb + rng.uniform(0.4, 0.95) * (canvas.mean((0, 1)) - mean), 0, 1)
    return np.asarray(canvas + alpha[..., None] * (rgb - canvas), np.float32), alpha


def degrade(picture: Pixels, rng: Rng) -> Floats:
    """A picture (S, S, 3) as cameras and the web leave it: relit, soft, noisy, compressed."""
    rgb = _relit(picture, rng, 0.4)
    if rng.random() < 0.3:
        rgb = blur(rgb, rng.uniform(0.3, 1.8))
    if rng.random() < 0.2:
        rgb = rgb + rng.normal(0, rng.uniform(0.008, 0.055), (SIDE, SIDE, 1)).astype(np.float32)
    if rng.random() < 0.35:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 95))]
        file = cv2.imencode(".jpg", to_uint8(rgb), quality)[1]
        rgb = from_levels(np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR), np.uint8))
    return rgb


def hint(alpha: Floats, needed: bool, rng: Rng) -> tuple[Box | None, list[Point]]:
    """What names the subject of an alpha (S, S): its box, points or both; as a rule nothing where
    none is `needed`.
    """
    (place, kind), box, points = (bounds(alpha, 0.5), rng.random()), None, list[Point]()
    if place is None or kind < (0.07 if needed else 0.56):
        return None, []
    if kind < (0.74 if needed else 0.84):
        # People draw boxes a little off, some of them far off.
        far = 0.12 if rng.random() < 0.15 else 0.035
        corners = np.array([(place.x, place.y), (place.right, place.bottom)], np.float64)
        corners += far * np.clip(rng.normal(0, 1, (2, 2)), -2, 2) * (place.width, place.height)
        (x, y), (right, bottom) = np.clip(np.round(corners), 0, SIDE).astype(int).tolist()
        box = Box(x, y, max(2, right - x), max(2, bottom - y))
    if box is None or rng.random() < 0.12:
        depth = cv2.distanceTransform((alpha > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
        inner, outer = np.flatnonzero(depth > 0.35 * depth.max()), np.flatnonzero(alpha < 0.02)
        drawn = [(i, True) for i in rng.choice(inner, rng.integers(1, 4)).tolist()]
        if rng.random() < 0.3 and len(outer):
            drawn += [(i, False) for i in rng.choice(outer, rng.integers(1, 3)).tolist()]
        points = [(i % SIDE, i // SIDE, on) for i, on in drawn]
    return box, points
