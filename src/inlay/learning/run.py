"""One run of learning an object: what it is made of, its steps, reports and file.

DreamCom (Lu et al. 2023, arXiv 2309.15508, section 4), see learn.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inlay.checkpoints.concept import Concept, write_concept
from inlay.diffusion.attention import swapped_processors
from inlay.diffusion.attention_masked import MaskedAttention, masked_layers, released_tokens
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.prompts import embedded_prompt
from inlay.diffusion.text import Conditioning
from inlay.errors import InputError
from inlay.learning.attention import TrainedAttention
from inlay.learning.learner import Learner
from inlay.learning.loop import VALIDATION_TIMESTEPS, noised, rate
from inlay.learning.lora import LiveText, set_up
from inlay.learning.preview import preview
from inlay.learning.processes import Processes
from inlay.learning.recipe import check_resumable, description, recipe_of
from inlay.learning.samples import (
    Example,
    Pool,
    Sample,
    class_samples,
    cropped,
    draw_crop,
    encoded,
    loss_weights,
)
from inlay.learning.settings import LearnConfig, pick_token, spelled
from inlay.pictures.box import Box

__all__ = ["Learning"]


class Learning:
    """One run: the checkpoint, what of it or beside it learns, the encoded photos."""

    def __init__(
        self,
        examples: Sequence[Example],
        class_name: str,
        out: Path,
        backbone: Backbone,
        config: LearnConfig,
        *,
        class_pictures: Path | None = None,
        resume: bool = False,
        processes: Processes | None = None,
    ) -> None:
        """`out` is the run's folder, see run_folder(). The backbone is the run's own from now on.

        Raises InputError for nothing to resume, and settings that the photos or the checkpoint do
        not allow.
        """
        self.config, self.out, self.backbone = config, out, backbone
        self.processes = processes or Processes()
        self.mine = self.processes.rows(config.batch)
        self.class_name, self.device = class_name, backbone.device
        self.resolution = config.resolution or backbone.native_size
        kept = len(examples) - config.held_out
        if kept < 1:
            raise InputError(
                f"held_out is {config.held_out} of {len(examples)} photos; at least one must be "
                "left to learn from."
            )
        if self.resolution % backbone.multiple:
            raise InputError(
                f"resolution is {self.resolution}; expected a multiple of {backbone.multiple} for "
                f"the model {config.model}."
            )
        self.examples, self.kept_out = list(examples[:kept]), list(examples[kept:])
        self.token = config.token or pick_token(backbone.text)
        self.prompt = spelled(config.prompt, self.token, class_name)
        self.class_prompt = spelled(config.prompt, "", class_name)
        self._text = LiveText(backbone.text) if config.text_encoder else backbone.text
        with torch.no_grad():
            for prompt in (self.prompt, self.class_prompt):
                self.conditioning(prompt)
        prior = (
            None
            if class_pictures is None
            else class_samples(class_pictures, self.resolution, config.seed)
        )
        recipe = recipe_of(self, prior is not None)
        if resume:
            check_resumable(out, recipe)
        self._set_up()
        self.pool = self._encode(self.examples)
        self.prior = None if prior is None else encoded(backbone, prior)
        self.fixed = {
            name: encoded(backbone, [self._sample(one, one.frame) for one in those])
            for name, those in (("photos", self.examples), ("held_out", self.kept_out))
            if those
        }
        # Before anything is learnt, which is what reports compare with.
        self._before = self._errors() if self.processes.first else {}
        if resume:
            self.learner.load(out, f"an object for the model {config.model}")
        if self.processes.first:
            out.mkdir(exist_ok=True)
            (out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")

    def conditioning(self, prompt: str) -> Conditioning:
        """A prompt's one row as it is now: from a cache, but where the text encoder learns."""
        c, size = self.config, (self.resolution, self.resolution)
        return embedded_prompt(self._text, prompt, size, c.layout, c.background_prompt)

    def _set_up(self) -> None:
        """What learns, and the attention that it learns with."""
        c, unet = self.config, self.backbone.unet
        self.trained = set_up(self.backbone, c)
        self.learner = Learner(self.trained, "adamw", c.learning_rate, c.ema_decay)
        inside = released_tokens() if c.layout == "released" else None
        layers = masked_layers(unet, c.self_attention, cross=c.mask_cross_attention)
        self.rule = MaskedAttention(None, layers, inside=inside)

    def _sample(self, one: Example, crop: Box, flip: bool = False) -> Sample:
        return cropped(one, crop, self.resolution, self.config.hole, flip)

    def _encode(self, examples: Sequence[Example]) -> Pool:
        """The pool of augmented crops, each drawn from (seed, photo, variant)."""
        samples = []
        for photo, one in enumerate(examples):
            for variant in range(self.config.variants):
                rng = np.random.default_rng([self.config.seed, 1, photo, variant])
                crop = draw_crop(one, self.config, rng)
                flip = self.config.flip and rng.random() < 0.5
                samples.append(self._sample(one, crop, flip))
        return encoded(self.backbone, samples)

    @property
    def step(self) -> int:
        return self.learner.step

    def learning_rate(self) -> float:
        c = self.config
        return rate(self.step, c.steps, c.learning_rate, c.warmup_steps, c.cooldown_share)

    def curves(self) -> dict[str, float]:
        return {}

    @contextmanager
    def masked(self, hole: Tensor) -> Iterator[None]:
        """Inside, attention is masked by latent holes (N, 1, h, w); backward passes belong here."""
        self.rule.mask = hole
        with swapped_processors(self.backbone.unet, TrainedAttention(self.rule).processor):
            yield

    def _error(self, pool: Pool, t: Tensor, noise: Tensor, prompt: str) -> Tensor:
        """Squared error (N, 1, h, w) of what the U-Net predicts, averaged over channels."""
        backbone = self.backbone
        noisy, v = noised(pool.z, noise, backbone.alphas_cumprod.to(self.device)[t])
        target = {"v_prediction": v, "epsilon": noise, "sample": pool.z}[backbone.prediction_type]
        hole = pool.hole if backbone.kind == "inpaint" else None
        text = self.conditioning(prompt).rows(len(pool))
        output = backbone.predict(noisy, t, text, hole, pool.seen)
        return ((output - target) ** 2).mean(1, keepdim=True)

    def _noise(self, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))

    def goes_on(self, say: bool = True) -> bool:
        """Whether another step is made: what the first process says goes for all."""
        return self.processes.goes_on(say, self.device)

    def train_step(self) -> float:
        self.goes_on()
        return self.learn()

    def learn(self) -> float:
        """One step, on this process's rows of the batch; returns the loss of all of them."""
        c = self.config
        parts = [(self.pool, self.prompt, 1.0)]
        if self.prior is not None:
            parts.append((self.prior, self.class_prompt, c.prior_weight))
        told = torch.zeros((), device=self.device)
        for number, (pool, prompt, share) in enumerate(parts):
            batch, t, noise, whole = self._drawn(pool, number)
            weight = loss_weights(batch.hole, batch.valid, c.hole_weight)
            with self.masked(batch.hole):
                error = self._error(batch, t, noise, prompt)
                loss = share * (error * weight).sum() / max(whole, 1e-6)
                loss.backward()
            told += loss.detach()
        told = self.processes.add_up(self.trained.parameters(), told)
        self.learner.update(self.learning_rate())
        if self.processes.first and c.preview_every and self.step % c.preview_every == 0:
            self._show(self.out / f"preview-{self.step:06d}.png")
        return float(told)

    def _drawn(self, pool: Pool, number: int) -> tuple[Pool, Tensor, Tensor, float]:
        """This process's rows of a step's batch: samples, timesteps and noise; and what all pixels
        of the whole batch weigh.
        """
        c, count = self.config, len(self.backbone.alphas_cumprod)
        chosen, t, noise = [], [], []
        for row in range(c.batch):
            # Everything random in a step comes from (seed, step, row): a resumed run repeats
            # nothing, and it does not matter how many processes there are.
            rng = np.random.default_rng([c.seed, 2, self.step, number, row])
            chosen.append(int(rng.integers(len(pool))))
            # Stratified timesteps: the same loss, less variance.
            u = (row + rng.random()) / c.batch
            if row in self.mine:
                t.append(int(u * count))
                noise.append(self._noise(tuple(pool.z.shape[1:]), rng))
        every = np.array(chosen)
        whole = loss_weights(pool.hole[every], pool.valid[every], c.hole_weight).sum()
        batch = pool.rows(every[self.mine], self.device)
        steps = torch.tensor(t, device=self.device)
        return batch, steps, torch.stack(noise).to(self.device), float(whole)

    def _show(self, path: Path) -> None:
        """A preview of the first photo, with the averaged weights."""
        pool = self.fixed["photos"].rows(np.arange(1), self.device)
        with torch.no_grad(), self.learner.averaged(), self.masked(pool.hole):
            text = self.conditioning(self.prompt)
            preview(self.backbone, pool, text, self.config.preview_steps, path)

    @torch.no_grad()
    def error_in_hole(self, pool: Pool) -> dict[int, float]:
        """The mean squared error inside the holes of a pool by timestep, always with the same
        noise and with the averaged weights.
        """
        rng = np.random.default_rng([self.config.seed, 3])
        rows = pool.rows(np.arange(len(pool)), self.device)
        where = rows.hole * rows.valid
        noise = self._noise(tuple(rows.z.shape), rng).to(self.device)
        result = {}
        # At first the average is what is there already.
        averaged = self.learner.averaged() if self.step else nullcontext()
        with averaged, self.masked(rows.hole):
            for share in VALIDATION_TIMESTEPS:
                t = share * len(self.backbone.alphas_cumprod) // 1000
                steps = torch.full((len(rows),), t, device=self.device)
                error = self._error(rows, steps, noise, self.prompt)
                result[t] = float((error * where).sum() / where.sum().clamp_min(1e-6))
        return result

    def _errors(self) -> dict[str, dict[int, float]]:
        """error_in_hole() of the photos as they are, and of those held out."""
        return {name: self.error_in_hole(pool) for name, pool in self.fixed.items()}

    def report(self) -> tuple[dict[str, Any], dict[str, float]]:
        """The error in the box of the photos as they are, and of those held out, now and before
        anything was learnt.
        """
        row: dict[str, Any] = {}
        curves: dict[str, float] = {}
        for name, now in self._errors().items():
            for key, found in ((name, now), (f"{name}_before", self._before[name])):
                row[f"loss_in_box_{key}"] = round(float(np.mean(list(found.values()))), 5)
            curves |= {f"loss_in_box_{name}/{t}": value for t, value in now.items()}
        return row, curves

    def save_state(self) -> None:
        """Write a resumable state into the run's folder."""
        self.learner.save(self.out)

    def export(self, figures: dict[str, Any]) -> Path:
        """The file is written once, by learn(), when the run is over."""
        return self.out

    def write(self, path: Path) -> Concept:
        """Write the averaged weights and what they were learnt from; returns the latter."""
        concept = description(self)
        if self.processes.first:
            c = self.config
            with self.learner.averaged():
                write_concept(path, concept, self.trained.tensors(), c.rank, c.full_dtype)
        return concept
