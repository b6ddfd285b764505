"""Training of a harmonizer (inlay.diffusion.branches) beside a frozen checkpoint.

Any folder of photos will do: an object of a photo is given another light or tone, and the branch
learns to give back the photo, after PhD (Zhang et al. 2023, arXiv 2306.07596).

On several GPUs: accelerate launch -m inlay train harmonizer ... Each process takes its share of
every batch, and the samples are those of a run with one.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from inlay.checkpoints.load import load_branch
from inlay.diffusion.backbone import Backbone, Conditions, Guide
from inlay.diffusion.branches import Harmonizer, correct, few_levels, new_harmonizer
from inlay.learning.loop import Processes, validation_curve
from inlay.learning.settings import Optimizer, Rate, Share, Steps, Warmup
from inlay.training.corpus import DisturbedLoader, RenderedConfig, Samples, cover, with_rendered
from inlay.training.disturb import Policy
from inlay.training.trainer import BranchConfig, BranchTrainer, favoured_timesteps

_VALIDATED = 64
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
        self.mine = self.processes.rows(config.batch)
        super().__init__(folder, out, config, resume)
        self.corpus = with_rendered(self.corpus, config, self.short_side)
        workers = min(8, os.cpu_count() or 1) if self.device.type == "cuda" else 0
        place = config.seed, self.device
        self.loader = DisturbedLoader(
            self.corpus, self.objects, config, self.size, *place, workers, self.backbone.multiple
        )
        self.shown = DisturbedLoader(self.held_out, self.objects, config.plain(), self.size, *place)

    def new_network(self) -> Any:
        network = new_harmonizer(self.backbone)
        if self.config.start_from is not None:
            begun = load_branch(Harmonizer, self.config.start_from, self.backbone)
            network.load_state_dict(begun.network.state_dict())
        return network

    def _errors(self, samples: Samples, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Error (N, C, h, w) of what the U-Net predicts, with its sign, and the latent mask.

        Begun with noise it is the error of the raw output, as in any training; begun with the
        pasted picture that of x0, which is to be the truth although the latent holds the other.
        """
        backbone, kind = self.backbone, self.backbone.prediction_type
        hole, from_noise = cover(samples.region, backbone.factor), self.config.start == "noise"
        with torch.no_grad():
            z, seen = backbone.encode(samples.truth), backbone.encode_masked(samples.truth, hole)
            begun = z if from_noise else backbone.encode(samples.pasted)
        text = backbone.embed(samples.captions, (samples.mask.shape[2], samples.mask.shape[3]))
        guide = Guide(self.network, torch.cat([samples.pasted, samples.mask], 1))
        conditions = Conditions(text, mask=hole, masked_latent=seen, guide=guide)
        level = backbone.levels.rows(t)
        noisy = level.add_noise(begun, noise)
        with torch.autocast(self.device.type, torch.bfloat16):
            output = backbone.predict(noisy, t, conditions)
        if from_noise:
            return output - level.output(z, noise, kind), hole
        return level.estimates(output, noisy, kind)[1] - z, hole

    def train_step(self) -> float:
        """One step on this process's rows of the batch; their loss.

        v-error inside the masks, each sample alike: small objects count as much as large ones.
        A share of it is of the error's local mean, which is all that a smooth change shows.
        """
        c, rows = self.config, self.mine
        samples = self.loader.batch(self.step, rows)
        # Everything random in a step comes from (seed, step, row): a resumed run repeats nothing,
        # and it does not matter how many processes there are.
        u, noise = np.empty((len(rows), 2)), []
        for i, row in enumerate(rows):
            rng = np.random.default_rng([c.seed, 5, self.step, row])
            u[i] = rng.random(2)
            noise.append(self.noise(rng, samples.truth[:1]))
            if u[i, 1] < c.caption_dropout:
                samples.captions[i] = ""
        # Stratified timesteps: the same loss, less variance.
        u[:, 0] = (np.array(rows) + u[:, 0]) / c.batch
        t = torch.from_numpy(c.timesteps(u[:, 0], len(self.backbone.levels)))
        error, hole = self._errors(samples, t.to(self.device), torch.cat(noise))
        loss = (1 - c.smooth_share) * self._inside(error, hole)
        if c.smooth_share > 0:
            loss = loss + c.smooth_share * self._inside(local_mean(error, hole), hole)
        loss = loss / self.processes.count
        loss.backward()
        total = self.processes.add_up(self.network.parameters(), loss.detach())
        self.state.update(self.learning_rate())
        return float(total)

    def _inside(self, error: Tensor, hole: Tensor) -> Tensor:
        """Mean square of an error (N, C, h, w) inside the holes, weighted by channel."""
        weighted = (error**2 * self.channel_weight).mean(1, keepdim=True) * hole
        return (weighted.sum((1, 2, 3)) / hole.sum((1, 2, 3))).mean()

    @torch.no_grad()
    def report(self) -> tuple[dict[str, Any], dict[str, float]]:
        """With the averaged weights on the held-out split: mean squared _errors() in the masks by
        timestep, and restoration(). Empty where nothing is held out.
        """
        count = min(_VALIDATED, len(self.held_out))
        if not count:
            return {"validation_loss": {}, "restored": {}}, {}
        samples, seed = self.shown.of(range(count)), self.config.seed
        noise = self.noise(np.random.default_rng([seed, 6]), samples.truth)
        size = self.config.batch
        batches = [range(count)[start : start + size] for start in range(0, count, size)]

        def errors(t: Tensor) -> tuple[Tensor, Tensor]:
            parts = [self._errors(self.shown.of(b), t[list(b)], noise[list(b)]) for b in batches]
            error, hole = zip(*parts, strict=True)
            return torch.cat(error) ** 2, torch.cat(hole)

        start_at = self.config.answers_from(len(self.backbone.levels))
        with self.state.averaged():
            means = validation_curve(errors, count, self.device, learnt=self.config.learns_at)
            given = restoration(self.backbone, self.network, samples, seed, start_at)
        row = {
            "validation_loss": {str(t): round(v, 5) for t, v in means.items()},
            "restored": {name: round(v, 5) for name, v in given.items()},
        }
        curves = {f"loss_in_mask/{t}": v for t, v in means.items()}
        return row, {**curves, **{f"restored/{name}": v for name, v in given.items()}}


@torch.no_grad()
def restoration(
    backbone: Backbone, network: Any, samples: Samples, seed: int, timestep: int | None = None
) -> dict[str, float]:
    """Errors of the one-step answer over those of the pasted picture, inside the masks.

    The answer is correct() of a single step without a prompt, from the pasted picture noised to
    `timestep`, or where that is None from pure noise. latent and picture are sums of squared errors
    over those of the pasted ones; in smooth the change is blurred inside the mask. improved is the
    share whose smooth picture came nearer to the truth; untouched the squared change where nothing
    was disturbed, in the unit of `picture`. Empty where no sample shows a change.
    """
    cond = backbone.embed([""], (samples.truth.shape[2], samples.truth.shape[3]))
    levels = few_levels(backbone, 1) if timestep is None else [backbone.levels[timestep]]
    parts = (x.split(1) for x in (samples.truth, samples.pasted, samples.mask))
    rows: list[list[float]] = []
    for row, (truth, pasted, mask) in enumerate(zip(*parts, strict=True)):
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
                _under((start + each).clamp(-1, 1) - truth, mask)
                for each in (change, local_mean(change, mask))
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
