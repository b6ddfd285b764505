"""Learning one object from a few photos: DreamCom (Lu et al. 2023, arXiv 2309.15508, section 4).

A checkpoint is fine-tuned to fill the object's box under a prompt with a word for it. Nothing
outside the box attends to the prompt (eq. 2). The paper tunes the whole U-Net; here a LoRA (Hu et
al. 2021, arXiv 2106.09685) is trained beside it, and the checkpoint stays as it is. Photos and
prompts are encoded once, before the first step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inlay.diffusion.attention import swapped_processors
from inlay.diffusion.attention_masked import MaskedAttention, masked_layers, released_tokens
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.checkpoints import load_backbone
from inlay.diffusion.conditioning import Conditioning
from inlay.errors import InputError
from inlay.files import check_target
from inlay.geometry import Box
from inlay.learned import Base, Learned, Sight, write_learned
from inlay.pixels import DEFAULT_MAX_PIXELS, Source
from inlay.training.learn_lora import ADAPTER, LoraWeights, lora_layers
from inlay.training.learn_photos import find_objects
from inlay.training.learn_preview import preview
from inlay.training.learn_samples import (
    Example,
    Pool,
    Sample,
    class_samples,
    cropped,
    draw_crop,
    encoded,
    example,
    loss_weights,
)
from inlay.training.learn_settings import LearnConfig, embedded_prompt, pick_token, spelled
from inlay.training.learner import Learner
from inlay.training.steps import VALIDATION_TIMESTEPS, check_state, noised, rate, train

__all__ = ["Learning", "learn", "run_folder"]


def run_folder(out: Path) -> Path:
    """Where a run keeps its state, its log and its previews: beside the file, by its name."""
    return out.with_name(out.stem + "-learning")


class Learning:
    """One run: the frozen checkpoint, the LoRA beside it, the encoded photos."""

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
    ) -> None:
        """`out` is the run's folder, see run_folder(). Raises InputError for nothing to resume."""
        self.config, self.out, self.backbone = config, out, backbone
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
        self.prompts = {text: self._embed(text) for text in (self.prompt, self.class_prompt)}
        prior = (
            None
            if class_pictures is None
            else class_samples(class_pictures, self.resolution, config.seed)
        )
        recipe = self._recipe(prior is not None)
        if resume:
            _check_resumable(out, recipe)
        self._prepare_unet()
        self.pool = self._encode(self.examples)
        self.prior = None if prior is None else encoded(backbone, prior)
        self.fixed = {
            name: encoded(backbone, [self._sample(one, one.frame) for one in those])
            for name, those in (("photos", self.examples), ("held_out", self.kept_out))
            if those
        }
        self._before: dict[str, dict[int, float]] | None = None
        if resume:
            self.learner.load(out, f"an object for the model {config.model}")
        out.mkdir(exist_ok=True)
        (out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")

    def _embed(self, prompt: str) -> Conditioning:
        c, size = self.config, (self.resolution, self.resolution)
        return embedded_prompt(self.backbone.text, prompt, size, c.layout, c.background_prompt)

    def _recipe(self, prior: bool) -> dict[str, Any]:
        return {
            "photos": [one.sha256 for one in (*self.examples, *self.kept_out)],
            "boxes": [one.box.as_dict() for one in (*self.examples, *self.kept_out)],
            "class_name": self.class_name,
            "class_pictures": prior,
            "model": self.backbone.hash,
            "settings": self.config.identity(),
        }

    def _prepare_unet(self) -> None:
        """Put the LoRA into the U-Net, and the attention that it is trained with."""
        from peft import LoraConfig

        c, unet = self.config, self.backbone.unet
        names = lora_layers(unet, c.layers)
        if not names:
            raise InputError(
                f"the U-Net of the model {c.model} has no layers of layers={c.layers} to train."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(c.seed)
            unet.add_adapter(LoraConfig(r=c.rank, lora_alpha=c.rank, target_modules=names), ADAPTER)
        if self.device.type == "cpu":
            from diffusers.models.attention_processor import AttnProcessor

            # Explicit attention: the fused kernel's backward is slow on CPUs.
            unet.set_attn_processor(AttnProcessor())
        if c.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.lora = LoraWeights(unet)
        self.learner = Learner(self.lora, "adamw", c.learning_rate, c.ema_decay)
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
        with swapped_processors(self.backbone.unet, self.rule.processor):
            yield

    def _error(self, pool: Pool, t: Tensor, noise: Tensor, prompt: str) -> Tensor:
        """Squared error (N, 1, h, w) of what the U-Net predicts, averaged over channels."""
        backbone = self.backbone
        noisy, v = noised(pool.z, noise, backbone.alphas_cumprod.to(self.device)[t])
        target = {"v_prediction": v, "epsilon": noise, "sample": pool.z}[backbone.prediction_type]
        hole = pool.hole if backbone.kind == "inpaint" else None
        with torch.autocast(self.device.type, torch.bfloat16):
            text = self.prompts[prompt].rows(len(pool))
            output = backbone.predict(noisy, t, text, hole, pool.seen)
        return ((output - target) ** 2).mean(1, keepdim=True)

    def _noise(self, like: Tensor, rng: np.random.Generator) -> Tensor:
        return torch.from_numpy(rng.standard_normal(like.shape, dtype=np.float32)).to(self.device)

    def train_step(self) -> float:
        c = self.config
        # Everything random in a step comes from (seed, step): a resumed run repeats nothing.
        rng = np.random.default_rng([c.seed, 2, self.step])
        parts = [(self.pool, self.prompt, 1.0)]
        if self.prior is not None:
            parts.append((self.prior, self.class_prompt, c.prior_weight))
        told = 0.0
        for pool, prompt, share in parts:
            batch = pool.rows(rng.integers(0, len(pool), c.batch), self.device)
            # Stratified timesteps: the same loss, less variance.
            u = (np.arange(c.batch) + rng.random(c.batch)) / c.batch
            t = torch.from_numpy((u * len(self.backbone.alphas_cumprod)).astype(np.int64))
            noise = self._noise(batch.z, rng)
            weight = loss_weights(batch.hole, batch.valid, c.hole_weight)
            with self.masked(batch.hole):
                error = self._error(batch, t.to(self.device), noise, prompt)
                loss = share * (error * weight).sum() / weight.sum().clamp_min(1e-6)
                loss.backward()
            told += float(loss.detach())
        self.learner.update(self.learning_rate())
        if c.preview_every and self.step % c.preview_every == 0:
            self._show(self.out / f"preview-{self.step:06d}.png")
        return told

    def _show(self, path: Path) -> None:
        """A preview of the first photo, with the averaged weights."""
        pool = self.fixed["photos"].rows(np.arange(1), self.device)
        text = self.prompts[self.prompt]
        with self.learner.averaged(), self.masked(pool.hole):
            preview(self.backbone, pool, text, self.config.preview_steps, path)

    @torch.no_grad()
    def error_in_hole(self, pool: Pool, learned: bool = True) -> dict[int, float]:
        """The mean squared error inside the holes of a pool by timestep, always with the same
        noise; without the LoRA where not `learned`.
        """
        rng = np.random.default_rng([self.config.seed, 3])
        rows = pool.rows(np.arange(len(pool)), self.device)
        where = rows.hole * rows.valid
        noise = self._noise(rows.z, rng)
        result = {}
        unet = self.backbone.unet
        with self.learner.averaged() if learned else nullcontext(), self.masked(rows.hole):
            if not learned:
                unet.disable_adapters()
            try:
                for share in VALIDATION_TIMESTEPS:
                    t = share * len(self.backbone.alphas_cumprod) // 1000
                    steps = torch.full((len(rows),), t, device=self.device)
                    error = self._error(rows, steps, noise, self.prompt)
                    result[t] = float((error * where).sum() / where.sum().clamp_min(1e-6))
            finally:
                if not learned:
                    unet.enable_adapters()
        return result

    def report(self) -> tuple[dict[str, Any], dict[str, float]]:
        """The error in the box of the photos as they are, and of those held out, with the LoRA and
        without.
        """
        if self._before is None:
            self._before = {
                name: self.error_in_hole(pool, learned=False) for name, pool in self.fixed.items()
            }
        row: dict[str, Any] = {}
        curves: dict[str, float] = {}
        for name, pool in self.fixed.items():
            now, before = self.error_in_hole(pool), self._before[name]
            for key, found in ((name, now), (f"{name}_before", before)):
                row[f"loss_in_box_{key}"] = round(float(np.mean(list(found.values()))), 5)
            curves |= {f"loss_in_box_{name}/{t}": value for t, value in now.items()}
        return row, curves

    def save_state(self) -> None:
        """Write a resumable state into the run's folder."""
        self.learner.save(self.out)

    def export(self, figures: dict[str, Any]) -> Path:
        """The file is written once, by learn(), when the run is over."""
        return self.out

    def write(self, path: Path) -> Learned:
        """Write the averaged LoRA and what it was learnt from; returns the latter."""
        backbone = self.backbone
        sights = [
            Sight(photo=e.name, sha256=e.sha256, aspect=e.aspect, size=e.size)
            for e in self.examples
        ]
        learned = Learned(
            class_name=self.class_name,
            token=self.token,
            prompt=self.prompt,
            class_prompt=self.class_prompt,
            layout=self.config.layout,
            background_prompt=self.config.background_prompt,
            mask_cross_attention=self.config.mask_cross_attention,
            context=self.config.context,
            sights=tuple(sights),
            base=Base(
                name=backbone.name, hash=backbone.hash, kind=backbone.kind, family=backbone.family
            ),
            steps=self.step,
            settings=self.config.model_dump(mode="json"),
        )
        with self.learner.averaged():
            write_learned(path, learned, self.lora.layers, self.config.rank)
        return learned


def _check_resumable(out: Path, recipe: dict[str, Any]) -> None:
    """Raises InputError where a run's folder holds no state, or that of another run."""
    check_state(out)
    try:
        before = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    told = json.loads(json.dumps(recipe))
    other = [key for key in told if before.get(key) != told[key]]
    if other:
        raise InputError(
            f"the run in {out} had other {' and '.join(other).replace('_', ' ')}; expected the "
            "same as when it began, but for its steps, or leave out --resume."
        )


def learn(
    photos: Sequence[Source],
    class_name: str,
    output: str | Path,
    config: LearnConfig | None = None,
    *,
    boxes: Sequence[Box] = (),
    masks: Sequence[Source] = (),
    cut: str | None = None,
    class_pictures: str | Path | None = None,
    device: str = "auto",
    resume: bool = False,
    trust_remote_code: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    log: Callable[[str], None] = lambda line: None,
) -> Learned:
    """Learn an object of a class from 1 to 10 photos and write it to OUTPUT, a .safetensors file.

    boxes or masks say where it is, one for each photo; else a photo's alpha does, else a cutout.
    State, log and previews go to a folder beside the file, see run_folder(), from which `resume`
    goes on. Raises InputError for photos, boxes, masks or settings that cannot be used, an output
    that cannot be written and a checkpoint that cannot be loaded, before anything is written.
    """
    config = config or LearnConfig()
    name = " ".join(class_name.split())
    if not name:
        raise InputError("the class name is empty; give a word for what the object is.")
    out = Path(output)
    if out.suffix.lower() != ".safetensors":
        raise InputError(f"{out.name} is no name for a learnt object; expected NAME.safetensors.")
    check_target(out)
    folder = run_folder(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is no folder, but the run's state would go there; move it.")
    if resume:
        check_state(folder)
    # Photos first: what is wrong with them is said before a checkpoint is loaded.
    objects = find_objects(
        photos,
        boxes=boxes,
        masks=masks,
        cut=cut,
        shapes=config.hole == "shape",
        trust_remote_code=trust_remote_code,
        max_pixels=max_pixels,
    )
    backbone = load_backbone(config.model, device=device, dtype="float32")
    side = config.resolution or backbone.native_size
    examples = [example(found, config, side) for found in objects]
    run = Learning(
        examples,
        name,
        folder,
        backbone,
        config,
        class_pictures=None if class_pictures is None else Path(class_pictures),
        resume=resume,
    )
    log(f"{len(run.examples)} photos, prompt: {run.prompt}")
    train(run, log)
    return run.write(out)
