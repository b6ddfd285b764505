"""Training of the shadow network (inlay.scene.network) on rendered triples: a place, and the same
with an object in it, as tools/render_pairs.py writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate, softplus

from inlay.errors import InputError
from inlay.learning.folder import image_rows
from inlay.learning.settings import Optimizer, Rate
from inlay.pictures.arrays import Box, bounds, from_levels, resize
from inlay.pictures.read import read_picture
from inlay.scene.network import CALM, shadow
from inlay.training.network import SupervisedConfig, SupervisedTrainer
from inlay.training.trainer import Batch, Sample

Rng = np.random.Generator
Floats = NDArray[np.float32]

# Share of triples that are seen from nearer, how much of the object's longer side beyond it, and
# how many pixels at least.
_NEARER, _BEYOND, _LEAST = 0.6, (0.15, 1.0), 48
# A camera's exposure, of each colour too, and its gamma: deviations in stops.
_EXPOSURE, _CAST, _GAMMA = 0.25, 0.12, 0.2
_NOISE = 0.03
# What an error in sRGB values weighs by its square and by itself, and whether the object touches.
_SQUARE, _PLAIN, _TOUCH = 100.0, 0.5, 0.05
# What floats is rarer, and counts so much more in the last.
_RARE = 3.0


@dataclass(frozen=True, eq=False)
class Triple:
    """place, truth and object, uint8 (h, w, 3) sRGB; alpha, uint8 (h, w), of the object; its box;
    and whether it touches anything.
    """

    place: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    object: NDArray[np.uint8]
    alpha: NDArray[np.uint8]
    box: Box
    contact: bool


def read_triples(folder: Path, held_out: bool) -> list[Triple]:
    """One split of the triples in a folder; raises InputError where there are none."""
    found = list[Triple]()
    for row in image_rows(folder)[0]:
        if row.place is None or row.other is None or row.is_held_out() != held_out:
            continue
        names = (row.place, row.file_name, row.other)
        place, truth, other = (read_picture(folder / name).to_pil() for name in names)
        alpha = np.asarray(truth.convert("RGBA").getchannel("A"), np.uint8)
        bare, full, own = (np.asarray(p.convert("RGB"), np.uint8) for p in (place, truth, other))
        if (box := bounds(alpha, 0)) is not None:
            found.append(Triple(bare, full, own, alpha, box, row.pose != "floating"))
    if not found and not held_out:
        raise InputError(f"{folder} holds no triples to learn from; render more of them.")
    return found


def draw_triple(triple: Triple, side: int, rng: Rng) -> tuple[Floats, Floats, Floats, Floats]:
    """place, truth, object (side, side, 3) in [0, 1] and alpha of a triple as cameras may see it.

    Most are seen from nearer. The object often has another camera's colours than place and truth.
    """
    box, (height, width) = triple.box, triple.alpha.shape
    flip, rows, columns = slice(None, None, int(rng.choice([-1, 1]))), slice(None), slice(None)
    if rng.random() < _NEARER:
        seen = round(max(box.width, box.height) * (1 + 2 * rng.uniform(*_BEYOND)))
        seen = min(max(seen, _LEAST), height, width)
        # It need not be in the middle, but is seen whole.
        parts = []
        for low, high, most in ((box.y, box.bottom, height), (box.x, box.right, width)):
            last = max(0, min(low, most - seen))
            start = int(rng.integers(min(last, max(0, high - seen)), last + 1))
            parts.append(slice(start, start + seen))
        rows, columns = parts
    four = (triple.place, triple.truth, triple.object, triple.alpha)
    place, truth, other, alpha = (
        from_levels(resize(each[rows, columns][:, flip], (side, side))) for each in four
    )
    own, foreign = _camera(rng), _camera(rng)
    if rng.random() < 0.5:
        foreign = own
    noise = rng.normal(0, rng.uniform(0, _NOISE), place.shape) * (rng.random() < 0.3)
    gains = ((place, own), (truth, own), (other, foreign))
    seen_by = (np.clip(x ** camera[0] * camera[1:] + noise, 0, 1) for x, camera in gains)
    place, truth, other = (x.astype(np.float32) for x in seen_by)
    return place, truth, other, alpha


def _camera(rng: Rng) -> Floats:
    """A gamma, and gains of red, green and blue."""
    gains = rng.normal(0, _EXPOSURE) + rng.normal(0, _CAST, 3)
    return np.exp2([rng.normal(0, _GAMMA), *gains]).astype(np.float32)


class ShadowConfig(SupervisedConfig):
    """The whole recipe; it is written next to the weights it made."""

    batch: int = Field(24, ge=1)
    learning_rate: Rate = 1.5e-3
    optimizer: Optimizer = "muon"
    side: int = Field(96, ge=32, le=512, multiple_of=16, description="of the pictures, in pixels")


class ShadowTrainer(SupervisedTrainer):
    """One run: triples, the network, its optimiser and average."""

    kind = "shadow"
    definition, shape = staticmethod(shadow), (4, 96, 96)
    config: ShadowConfig

    def read(self, folder: Path, held_out: bool) -> list[Triple]:
        return read_triples(folder, held_out)

    def sample(self, corpus: list[Triple], rng: Rng) -> Sample:
        """x (4, S, S) as the network reads it; place and truth (3, S, S), and whether it touches.

        The object has its own light or that of the place.
        """
        triple = corpus[int(rng.integers(len(corpus)))]
        place, truth, other, alpha = draw_triple(triple, self.config.side, rng)
        own = other if rng.random() < 0.5 else truth
        pasted = place + alpha[..., None] * (own - place)
        planes = (np.dstack([pasted, alpha]), place, truth)
        x, *both = (np.ascontiguousarray(p.transpose(2, 0, 1), np.float32) for p in planes)
        return dict(zip(("x", "place", "truth"), (x, *both), strict=True)) | {
            "contact": np.array(triple.contact, np.float32)
        }

    def loss(self, batch: Batch) -> Tensor:
        """Square and absolute error of the darkened place outside the object, in sRGB values, and
        the cross-entropy of whether the object touches. Light that is thrown back is no shadow.
        """
        error, touches = self._errors(batch)
        contact = batch["contact"]
        weight = contact + _RARE * (1 - contact)
        missed = binary_cross_entropy_with_logits(touches, contact, weight)
        return _SQUARE * (error**2).mean() + _PLAIN * error.abs().mean() + _TOUCH * missed

    def figures(self, batch: Batch) -> Mapping[str, Tensor]:
        """The squared error over that of no shadow; how often it is right that it touches."""
        error, touches = self._errors(batch)
        nothing = _darker(batch) - batch["place"]
        outside = batch["x"][:, 3:] < 0.5
        rest = ((nothing * outside) ** 2).mean((1, 2, 3))
        right = (touches > 0) == (batch["contact"] > 0.5)
        return {"shadow": (error**2).mean((1, 2, 3)) / (rest + 1e-4), "touches": right.float()}

    def _errors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        maps, touches = self.network(batch["x"].contiguous(memory_format=torch.channels_last))
        place, alpha = batch["place"], batch["x"][:, 3:]
        darker = encode(decode(place) * torch.exp2(-stops(maps, (place.shape[2], place.shape[3]))))
        weight = (1 - alpha) * (alpha < 0.5)
        return (darker - _darker(batch)) * weight, touches.float()


def stops(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """By how many stops (N, 3, height, width) linear light is darker, for maps (N, 3, h, w)."""
    return softplus(interpolate(maps.float(), size, mode="bilinear") - CALM)


def _darker(batch: Batch) -> Tensor:
    return torch.minimum(batch["truth"], batch["place"])


def decode(values: Tensor) -> Tensor:
    """sRGB values to linear light (IEC 61966-2-1)."""
    return torch.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encode(light: Tensor) -> Tensor:
    """Linear light to sRGB values; its slope stays finite at 0."""
    bent = 1.055 * light.clamp(min=0.003) ** (1 / 2.4) - 0.055
    return torch.where(light <= 0.0031308, light * 12.92, bent)
