"""Training of a harmonizer (inlay.diffusion.harmonizer) beside a frozen checkpoint.

Any folder of photos will do: an object of a photo is given another light or tone, and the branch
learns to give back the photo. Source: the Inpainting and Harmonizing Module of PhD (Zhang et al.
2023, arXiv 2306.07596), as a ControlNet (Zhang et al. 2023, arXiv 2302.05543).

On several GPUs: accelerate launch -m inlay train harmonizer ... Each process takes its share of
every batch, and the samples are those of a run with one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inlay.checkpoints.load import load_backbone
from inlay.diffusion.harmonizer import Guide, load_harmonizer, new_harmonizer
from inlay.errors import InputError
from inlay.learning.learner import Learner
from inlay.learning.loop import (
    VALIDATION_TIMESTEPS,
    channel_weight,
    check_state,
    locally_averaged,
    noised,
    rate,
    train,
    x0_of,
)
from inlay.training import feed
from inlay.training.corpus import load_corpus, with_rendered
from inlay.training.disturbed import DisturbedFeed, Policy, Samples, covered
from inlay.training.harmonizer_settings import HarmonizerConfig
from inlay.training.restored import restored
from inlay.training.wholes import Wholes

__all__ = ["HarmonizerConfig", "HarmonizerTrainer", "train_harmonizer"]

# Captions come again: as many stay embedded, a few tens of kilobytes each.
_CAPTIONS = 1024
_VALIDATED = 64


class HarmonizerTrainer:
    """One run: the frozen checkpoint, the branch that learns, and its samples."""

    def __init__(
        self, folder: Path, out: Path, config: HarmonizerConfig, resume: bool = False
    ) -> None:
        from accelerate import Accelerator

        self.config, self.out = config, out
        if resume:
            check_state(out)
        # Precision is set below: the frozen U-Net, too, has to run under autocast.
        self.accelerator = Accelerator(mixed_precision="no")
        self.device = self.accelerator.device
        self.backbone = load_backbone(config.model, device=self.device, dtype="float32")
        self.size = config.resolution or self._half_size()
        self._check()
        # Crops go down to about half of a picture.
        short_side = max(288, self.size * 5 // 4)
        self.photos, self.held_out = (
            load_corpus(folder, held_out, short_side, captioned=False) for held_out in (False, True)
        )
        self.learner = Learner(
            self._branch(), config.optimizer, config.learning_rate, config.ema_decay
        )
        if resume:
            self.learner.load(out, f"a harmonizer for the model {config.model}")
        out.mkdir(parents=True, exist_ok=True)
        with self.accelerator.main_process_first():
            self.corpus = with_rendered(
                self.photos,
                config.rendered,
                config.rendered_share,
                out / "rendered.safetensors",
                max(160, self.size),
            )
        self.wholes = Wholes(out / "objects.safetensors")
        workers = min(8, os.cpu_count() or 1) if self.device.type == "cuda" else 0
        place = config.seed, self.device
        self.feed = DisturbedFeed(
            self.corpus, self.wholes, config.policy(), self.size, *place, workers
        )
        given = Policy(kinds=config.kinds, strength=(config.least_strength, 1.0))
        self.shown = DisturbedFeed(self.held_out, self.wholes, given, self.size, *place)
        # What gradients go through; on one process the very same network.
        self.branch = self.accelerator.prepare(self.learner.network)
        self.alphas = self.backbone.alphas_cumprod.to(self.device)
        plain = feed.HostFeed(self.photos, feed.Policy(), self.device)
        some = plain.batch(64, self.size, np.random.default_rng([config.seed, 4])).x
        with torch.no_grad():
            latents = torch.cat([self.backbone.encode(x) for x in some.split(8)])
        self.channel_weight = channel_weight(latents, config.channel_weight_power)

    def _check(self) -> None:
        count = self.accelerator.num_processes
        if self.config.batch % count:
            raise InputError(
                f"batch is {self.config.batch}; expected a multiple of the {count} processes."
            )
        if self.size % self.backbone.multiple:
            raise InputError(
                f"resolution is {self.size}; expected a multiple of {self.backbone.multiple} for "
                f"the model {self.config.model}."
            )

    def _half_size(self) -> int:
        """Half of the checkpoint's own side, to the next multiple that it takes."""
        multiple = self.backbone.multiple
        return int(-(-self.backbone.native_size // 2 // multiple) * multiple)

    def _branch(self) -> Any:
        config, backbone = self.config, self.backbone
        backbone.text.cache_size = _CAPTIONS
        torch.manual_seed(config.seed)
        network = new_harmonizer(backbone).to(self.device).train()
        if config.start_from is not None:
            begun = load_harmonizer(config.start_from, backbone)
            network.load_state_dict(begun.network.state_dict())
        if self.device.type == "cpu":
            from diffusers.models.attention_processor import AttnProcessor

            # Explicit attention: the fused kernel's backward is slow on CPUs.
            backbone.unet.set_attn_processor(AttnProcessor())
            network.set_attn_processor(AttnProcessor())
        return network

    @property
    def step(self) -> int:
        return self.learner.step

    def _errors(self, samples: Samples, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Error (N, C, h, w) of what the U-Net predicts, with its sign, and the latent mask.

        Begun with noise it is the error of the raw output, as in any training; begun with the
        pasted picture that of x0, which is to be the truth although the latent holds the other.
        """
        backbone, kind = self.backbone, self.backbone.prediction_type
        inpaints, alphas = backbone.kind == "inpaint", self.alphas[t]
        hole, erased = covered(samples.mask, backbone.factor)
        from_noise = self.config.start == "noise"
        with torch.no_grad():
            z = backbone.encode(samples.truth)
            begun = z if from_noise else backbone.encode(samples.pasted)
            seen = backbone.encode(samples.truth * (1 - erased)) if inpaints else None
        noisy, v = noised(begun, noise, alphas)
        text = backbone.embed(samples.captions, (self.size, self.size))
        guide = Guide(self.branch, torch.cat([samples.pasted, samples.mask], 1))
        with torch.autocast(self.device.type, torch.bfloat16):
            output = backbone.predict(
                noisy, t, text, hole if inpaints else None, seen, harmonizer=guide
            )
        if from_noise:
            return output - {"v_prediction": v, "epsilon": noise, "sample": z}[kind], hole
        return x0_of(output, noisy, alphas, kind) - z, hole

    def learning_rate(self) -> float:
        c = self.config
        return rate(self.step, c.steps, c.learning_rate, c.warmup_steps, c.cooldown_share)

    def curves(self) -> dict[str, float]:
        return {}

    def train_step(self) -> float:
        self.goes_on()
        return self.learn()

    def goes_on(self, say: bool = True) -> bool:
        """Whether another step is made: what the first process says goes for all."""
        from accelerate.utils import broadcast

        return bool(broadcast(torch.tensor([float(say)], device=self.device)).item())

    def learn(self) -> float:
        """One step on this process's rows of the batch; their loss.

        v-error inside the masks, each sample alike: small objects count as much as large ones.
        A share of it is of the error's local mean, which is all that a smooth change shows.
        """
        c, count = self.config, self.accelerator.num_processes
        rows = range(self.accelerator.process_index, c.batch, count)
        samples = self.feed.batch(self.step, rows)
        # Everything random in a step comes from (seed, step, row): a resumed run repeats nothing,
        # and it does not matter how many processes there are.
        u, noise = np.empty((len(rows), 2)), []
        for i, row in enumerate(rows):
            rng = np.random.default_rng([c.seed, 5, self.step, row])
            u[i] = rng.random(2)
            noise.append(self._noise(rng))
            if u[i, 1] < c.caption_dropout:
                samples.captions[i] = ""
        # Stratified timesteps: the same loss, less variance.
        u[:, 0] = (np.array(rows) + u[:, 0]) / c.batch
        t = torch.from_numpy(c.timesteps(u[:, 0], len(self.alphas)))
        error, hole = self._errors(samples, t.to(self.device), torch.stack(noise))
        loss = (1 - c.smooth_share) * self._inside(error, hole)
        if c.smooth_share > 0:
            loss = loss + c.smooth_share * self._inside(locally_averaged(error, hole), hole)
        self.accelerator.backward(loss)
        self.learner.update(self.learning_rate())
        return float(loss.detach())

    def _inside(self, error: Tensor, hole: Tensor) -> Tensor:
        """Mean square of an error (N, C, h, w) inside the holes, weighted by channel."""
        weighted = (error**2 * self.channel_weight).mean(1, keepdim=True) * hole
        return (weighted.sum((1, 2, 3)) / hole.sum((1, 2, 3))).mean()

    def _noise(self, rng: np.random.Generator) -> Tensor:
        side = self.size // self.backbone.factor
        shape = (self.backbone.latent_channels, side, side)
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)).to(self.device)

    @torch.no_grad()
    def validate(self) -> tuple[dict[int, float], dict[str, float]]:
        """With the averaged weights on the held-out split: mean squared _errors() in the masks by
        timestep, and restored().

        Empty where nothing is held out, as may be with a handful of photos.
        """
        if len(self.held_out) == 0:
            return {}, {}
        everything = range(min(_VALIDATED, len(self.held_out)))
        seen = [t for t in VALIDATION_TIMESTEPS if self.config.learns_at(t)]
        losses: dict[int, list[float]] = {t: [] for t in seen}
        with self.learner.averaged():
            for start in range(0, len(everything), self.config.batch):
                indices = everything[start : start + self.config.batch]
                samples = self.shown.of(indices)
                rngs = [np.random.default_rng([self.config.seed, 6, i]) for i in indices]
                noise = torch.stack([self._noise(rng) for rng in rngs])
                for t, told in losses.items():
                    steps = torch.full((len(indices),), t, device=self.device)
                    error, hole = self._errors(samples, steps, noise)
                    inside = ((error**2).mean(1, keepdim=True) * hole).sum((1, 2, 3))
                    told += (inside / hole.sum((1, 2, 3))).tolist()
            network = self.learner.network
            given = restored(
                self.backbone,
                network,
                self.shown.of(everything),
                self.config.seed,
                self.config.answers_from(len(self.alphas)),
            )
        return {t: float(np.mean(told)) for t, told in losses.items()}, given

    def report(self) -> tuple[dict[str, Any], dict[str, float]]:
        losses, given = self.validate()
        row = {
            "validation_loss": {str(t): round(v, 5) for t, v in losses.items()},
            "restored": {name: round(v, 5) for name, v in given.items()},
        }
        curves = {f"loss_in_mask/{t}": v for t, v in losses.items()}
        return row, {**curves, **{f"restored/{name}": v for name, v in given.items()}}

    def save_state(self) -> None:
        """Write a resumable state, and the objects found so far."""
        self.learner.save(self.out)
        self.wholes.save()

    def export(self, figures: dict[str, Any]) -> Path:
        """Write the averaged weights in float16 as a ControlNetModel folder OUT/harmonizer."""
        recipe = {"config": self.config.model_dump(mode="json"), **figures}
        return self.learner.export(self.out / "harmonizer", recipe)


def train_harmonizer(
    folder: Path,
    out: Path,
    config: HarmonizerConfig | None = None,
    resume: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train on an image folder and return the ControlNetModel folder OUT/harmonizer.

    Raises InputError for an unusable folder or checkpoint, or nothing to resume.
    """
    trainer = HarmonizerTrainer(folder, out, config or HarmonizerConfig(), resume)
    if trainer.accelerator.is_main_process:
        log(f"{len(trainer.photos)} photos to train on, {len(trainer.held_out)} held out")
        train(trainer, log)
        if trainer.step < trainer.config.steps:
            trainer.goes_on(False)
    else:
        while trainer.step < trainer.config.steps and trainer.goes_on():
            trainer.learn()
    return out / "harmonizer"
