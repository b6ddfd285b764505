"""Training of a harmonizer (inlay.diffusion.branches) beside a frozen checkpoint.

Any folder of photos will do: an object of a photo is given another light or tone, and the branch
learns to give back the photo, after PhD (Zhang et al. 2023, arXiv 2306.07596).

On several GPUs: accelerate launch -m inlay train harmonizer ... Each process takes its share of
every batch, and the samples are those of a run with one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from inlay.checkpoints.load import load_branch
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.branches import Harmonizer, correct, few_levels, new_harmonizer
from inlay.diffusion.conditions import Conditions, Guide
from inlay.learning.loop import VALIDATED, Processes, inside
from inlay.learning.settings import Optimizer, Rate, Share, Steps, Warmup
from inlay.training.corpus import Corpus, RenderedConfig, cover, with_rendered
from inlay.training.disturb import Policy, draw_sample
from inlay.training.latent import (
    BranchConfig,
    BranchTrainer,
    as_plane,
    captions_of,
    favoured_timesteps,
)
from inlay.training.trainer import Batch, Sample

# How often a step's samples are square, upright and lying.
_SHAPES = (0.4, 0.35, 0.25)
# In squares of 8-bit levels: a change that cannot be seen can neither be undone nor made worse.
_SEEN = 0.5 * (2 / 255) ** 2


class HarmonizerConfig(BranchConfig, RenderedConfig, Policy):
    """The whole recipe; it is written next to the weights it made."""

    steps: Steps = 6000
    optimizer: Optimizer = "muon"
    learning_rate: Rate = 5e-4
    warmup_steps: Warmup = 50
    cooldown_share: Share = 0.4
    caption_dropout: float = Field(0.5, ge=0, le=1, description="share trained without caption")
    start: Literal["pasted", "noise"] = Field(
        "pasted",
        description="what the branch is asked to correct: the pasted picture under some noise, "
        "which the checkpoint by itself gives back, or, as in the paper, the truth under noise",
    )
    t_min: int = Field(200, ge=0, le=999, description="pasted: least noisy timestep")
    t_max: int = Field(800, ge=1, le=1000, description="pasted: end of the timesteps, exclusive")
    noisiest_share: float = Field(0.5, ge=0, le=1)
    """noise: share of timesteps from the noisiest tenth alone"""
    start_from: str | None = None
    """harmonizer whose weights are begun with, as for --model"""
    channel_weight_power: float = Field(2.0, ge=0, le=2)
    """latent channels weigh by their deviation to this power"""
    smooth_share: float = Field(0.8, ge=0, le=1)
    """loss share that is of the error's local mean, not of detail"""

    @model_validator(mode="after")
    def _ranges_hold_a_timestep(self) -> HarmonizerConfig:
        if self.t_max <= self.t_min:
            raise ValueError(f"t_min is {self.t_min}; expected less than t_max ({self.t_max}).")
        return self

    def timesteps(self, u: NDArray[np.float64], total: int) -> NDArray[np.int64]:
        """Numbers in [0, 1) to timesteps to learn at, of a schedule of `total`."""
        if self.start == "noise":
            return favoured_timesteps(u, self.noisiest_share, 0.9, total)
        low, high = (t * total / 1000 for t in (self.t_min, self.t_max))
        return np.clip((low + u * (high - low)).astype(np.int64), 0, total - 1)

    def learns_at(self, t: int) -> bool:
        """Whether a timestep of 1000 is one that it learns at."""
        return self.start == "noise" or self.t_min <= t < self.t_max

    def answers_from(self, total: int) -> int | None:
        """The timestep that a single step answers from; None is the last one, from pure noise."""
        if self.start == "noise":
            return None
        return round((self.t_min + self.t_max) / 2 * total / 1000)


def local_mean(x: Tensor, mask: Tensor) -> Tensor:
    """x (N, C, h, w) averaged inside a mask (N, 1, h, w) in [0, 1] about every pixel of it. A
    Gaussian of a sixteenth of the longer side, normalised by what of it is inside the mask.
    """
    deviation = max(x.shape[2:]) / 16
    reach = math.ceil(4 * deviation)
    bell = torch.exp(-(torch.arange(-reach, reach + 1, device=x.device) ** 2) / 2 / deviation**2)
    # Mask and picture in one: both are blurred alike.
    both = torch.cat([x * mask, mask], 1)
    count = both.shape[1]
    for shape, padding in (((-1, 1), (reach, 0)), ((1, -1), (0, reach))):
        kernel = bell.view(1, 1, *shape).expand(count, 1, -1, -1)
        both = functional.conv2d(both, kernel.to(both), padding=padding, groups=count)
    return both[:, :-1] / both[:, -1:].clamp_min(1e-6)


class HarmonizerTrainer(BranchTrainer):
    """One run: the frozen checkpoint, the branch that learns, and its samples."""

    kind = "harmonizer"
    config: HarmonizerConfig

    def __init__(
        self, folder: Path, out: Path, config: HarmonizerConfig, resume: bool = False
    ) -> None:
        self.processes = Processes()
        self.processes.rows(config.batch)
        super().__init__(folder, out, config, resume)

    def read(self, folder: Path, held_out: bool) -> Corpus:
        photos = super().read(folder, held_out)
        return photos if held_out else with_rendered(photos, self.config, self.short_side)

    def new_network(self) -> Any:
        return new_harmonizer(self.backbone)

    def begin(self) -> None:
        super().begin()
        if self.config.start_from is not None:
            begun = load_branch(Harmonizer, self.config.start_from, self.backbone)
            self.network.load_state_dict(begun.network.state_dict())

    def shape(self, step: int) -> tuple[int, int]:
        """Square, upright or lying: then 3 to 4, or what comes near it."""
        size, multiple = self.size, self.backbone.multiple
        short = size * 3 // 4 // multiple * multiple or size
        chosen = np.random.default_rng([self.config.seed, 7, step]).choice(3, p=_SHAPES)
        return ((size, size), (size, short), (short, size))[int(chosen)]

    def timesteps(self, u: NDArray[np.float64]) -> NDArray[np.int64]:
        return self.config.timesteps(u, len(self.backbone.levels))

    def sample(
        self, corpus: Corpus, rng: np.random.Generator, shape: tuple[int, int] | None = None
    ) -> Sample:
        """truth and pasted (3, h, w) in [-1, 1]; mask and region (1, h, w) in [0, 1].

        What is learnt is all in the region, which the mask of the object is at least. Of the
        held-out split objects are whole, all disturbed, and masks as they are.
        """
        size = shape or (self.size, self.size)
        policy = self.config if corpus is self.corpus else self.config.plain()
        made = draw_sample(*corpus.draw(rng), self.objects, size, policy, rng)
        pair = {"truth": as_plane(made.truth), "pasted": as_plane(made.pasted)}
        masks = {"mask": made.mask[None], "region": made.region[None]}
        return pair | masks | {"noise": self.noise(size, rng), "caption": made.caption}

    def _errors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Error (N, C, h, w) of what the U-Net predicts, with its sign, and the latent mask.

        Begun with noise it is the error of the raw output, as in any training; begun with the
        pasted picture that of x0, which is to be the truth although the latent holds the other.
        """
        backbone, kind, t = self.backbone, self.backbone.prediction_type, batch["t"]
        truth, pasted, noise = (batch[name] for name in ("truth", "pasted", "noise"))
        hole, from_noise = cover(batch["region"], backbone.factor), self.config.start == "noise"
        with torch.no_grad():
            z, seen = backbone.encode(truth), backbone.encode_masked(truth, hole)
            begun = z if from_noise else backbone.encode(pasted)
        text = backbone.embed(captions_of(batch), (truth.shape[2], truth.shape[3]))
        guide = Guide(self.network, torch.cat([pasted, batch["mask"]], 1))
        conditions = Conditions(text, mask=hole, masked_latent=seen, guide=guide)
        level = backbone.levels.rows(t)
        noisy = level.add_noise(begun, noise)
        with torch.autocast(self.device.type, torch.bfloat16):
            output = backbone.predict(noisy, t, conditions)
        if from_noise:
            return output - level.output(z, noise, kind), hole
        return level.estimates(output, noisy, kind)[1] - z, hole

    def loss(self, batch: Batch) -> Tensor:
        """v-error inside the masks, each sample alike: small objects count as much as large ones.
        A share of it is of the error's local mean, which is all that a smooth change shows.
        """
        share, (error, hole) = self.config.smooth_share, self._errors(batch)
        loss = (1 - share) * inside(error**2 * self.channel_weight, hole).mean()
        if share > 0:
            smooth = local_mean(error, hole) ** 2
            loss = loss + share * inside(smooth * self.channel_weight, hole).mean()
        return loss

    def figures(self, batch: Batch) -> Mapping[str, Tensor]:
        """Mean squared _errors() in the masks by timestep."""
        found = {}
        for t in filter(self.config.learns_at, VALIDATED):
            steps = torch.full((len(batch["mask"]),), t, device=self.device)
            error, hole = self._errors(batch | {"t": steps})
            found[f"validation_loss/{t}"] = inside(error**2, hole)
        return found

    def report(self) -> tuple[dict[str, Any], dict[str, float]]:
        """figures(), and restoration() of the same samples."""
        row, curves = super().report()
        start_at = self.config.answers_from(len(self.backbone.levels))
        with self.state.averaged():
            seed, shown = self.config.seed, self.shown()
            given = restoration(self.backbone, self.network, shown, seed, start_at)
        row["restored"] = {name: round(v, 5) for name, v in given.items()}
        return row, {**curves, **{f"restored/{name}": v for name, v in given.items()}}


@torch.no_grad()
def restoration(
    backbone: Backbone,
    network: Any,
    batches: Iterable[Batch],
    seed: int,
    timestep: int | None = None,
) -> dict[str, float]:
    """Errors of the one-step answer over those of the pasted picture, inside the masks.

    The answer is correct() of a single step without a prompt, from the pasted picture noised to
    `timestep`, or where that is None from pure noise. latent and picture are sums of squared errors
    over those of the pasted ones; in smooth the change is blurred inside the mask. improved is the
    share whose smooth picture came nearer to the truth; untouched the squared change where nothing
    was disturbed, in the unit of `picture`. Empty where no sample shows a change.
    """
    levels = few_levels(backbone, 1) if timestep is None else [backbone.levels[timestep]]
    names, rows = ("truth", "pasted", "mask"), list[list[float]]()
    each = (zip(*(batch[name].split(1) for name in names), strict=True) for batch in batches)
    for row, (truth, pasted, mask) in enumerate(itertools.chain.from_iterable(each)):
        cond = backbone.embed([""], (truth.shape[2], truth.shape[3]))
        given = _under(pasted - truth, mask)
        if given < _SEEN:
            continue
        hole = cover(mask, backbone.factor)
        seen, z = backbone.encode_masked(truth, hole), backbone.encode(truth)
        for start in (truth, pasted):
            before = backbone.encode(start)
            guide = Guide(network, torch.cat([start, mask], 1))
            after, _ = correct(
                backbone, Conditions(cond, mask=hole, masked_latent=seen, guide=guide), before,
                levels, generator=torch.Generator().manual_seed(seed + row),
                from_pasted=timestep is not None,
            )  # fmt: skip
            change = backbone.decode(after) - backbone.decode(before)
            picture, smooth = (
                _under((start + step).clamp(-1, 1) - truth, mask)
                for step in (change, local_mean(change, mask))
            )
            if start is truth:
                calm = picture
        latent = _under(after - z, hole), _under(before - z, hole)
        rows.append([*latent, given, picture, smooth, calm, smooth < given])
    if not rows:
        return {}
    after_z, before_z, whole, picture, smooth, calm, better = np.array(rows).sum(0).tolist()
    return {
        "latent": after_z / before_z,
        "picture": picture / whole,
        "smooth": smooth / whole,
        "improved": better / len(rows),
        "untouched": calm / whole,
    }


def _under(error: Tensor, mask: Tensor) -> float:
    """Mean square of (1, C, h, w) under a mask (1, 1, h, w)."""
    return float(((error**2).mean(1, keepdim=True) * mask).sum() / mask.sum())
