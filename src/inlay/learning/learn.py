"""Learning one object from a few photos: DreamCom (Lu et al. 2023, arXiv 2309.15508, section 4).

A checkpoint is fine-tuned to fill the object's box under a prompt with a word for it. Nothing
outside the box attends to the prompt (eq. 2).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inlay import __version__
from inlay.checkpoints.concept import Base, Concept, write_concept
from inlay.checkpoints.folder import read_json
from inlay.checkpoints.load import load_backbone
from inlay.diffusion.attention_masked import released_tokens
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.conditions import Conditions
from inlay.diffusion.sample import Sampler
from inlay.diffusion.text import Embedding, embed_prompt
from inlay.errors import InputError
from inlay.learning.loop import (
    VALIDATED,
    Processes,
    Run,
    TrainState,
    check_side,
    check_state,
    inside,
    prediction_error,
    train,
)
from inlay.learning.lora import TrainingAttention, set_up
from inlay.learning.photos import Photo, find_views
from inlay.learning.samples import (
    Example,
    Pool,
    class_samples,
    crop_sample,
    draw_crop,
    encode,
    example,
    loss_weights,
)
from inlay.learning.settings import LearnConfig, pick_token, prompt_for
from inlay.pictures.read import DEFAULT_MAX_PIXELS, read_picture
from inlay.pictures.write import check_target, write_picture


def run_folder(out: Path) -> Path:
    """Where a run keeps its state, its log and its previews: beside the file, by its name."""
    return out.with_name(out.stem + "-learning")


def learn(
    photos: Sequence[Photo],
    class_name: str,
    output: str | Path,
    config: LearnConfig | None = None,
    *,
    cut: str | None = None,
    class_pictures: str | Path | None = None,
    device: str = "auto",
    resume: bool = False,
    trust_remote_code: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    log: Callable[[str], None] = lambda line: None,
) -> Concept:
    """Learn an object of a class from 1 to 10 photos and write it to OUTPUT, a .safetensors file.

    A photo's box or mask says where it is, else its alpha does, else a cutout by `cut`. State, log
    and previews go to run_folder(), from which `resume` goes on. Raises InputError, before anything
    is written, for what cannot be used, loaded or written. Where `accelerate launch` has started
    several processes, each has a device of its own, and the first one writes and logs.
    """
    config = config or LearnConfig()
    name = " ".join(class_name.split())
    if not 1 <= len(name) <= 200:
        raise InputError(f"the class name has {len(name)} letters; give a word for the object.")
    out = Path(output)
    if out.suffix.lower() != ".safetensors":
        raise InputError(f"{out.name} is no name for a concept; expected NAME.safetensors.")
    check_target(out)
    folder = run_folder(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is no folder, but the run's state would go there; move it.")
    if resume:
        check_state(folder)
    # Photos first: what is wrong with them is said before a checkpoint is loaded.
    views = find_views(photos, cut, trust_remote_code, max_pixels)
    shared = Processes()
    shared.rows(config.batch)
    backbone = load_backbone(config.model, device=shared.device or device, dtype="float32")
    side = config.resolution or backbone.native_size
    examples = [example(view, config, side) for view in views]
    prior = None if class_pictures is None else Path(class_pictures)
    run = Learning(
        examples, name, folder, backbone, config, prior=prior, resume=resume, processes=shared
    )
    if shared.first:
        log(f"{len(run.examples)} photos, prompt: {run.prompt}")
    train(run, log)
    return run.write(out)


class Learning(Run):
    """One run: the checkpoint, what of it or beside it learns, the encoded photos."""

    config: LearnConfig

    def __init__(
        self,
        examples: Sequence[Example],
        class_name: str,
        out: Path,
        backbone: Backbone,
        config: LearnConfig,
        *,
        prior: Path | None = None,
        resume: bool = False,
        processes: Processes | None = None,
    ) -> None:
        """`out` is the run's folder, `prior` one of class pictures; the backbone is the run's own.
        Raises InputError for another run's state, and settings that the photos or the checkpoint do
        not allow.
        """
        self.config, self.out, self.backbone = config, out, backbone
        self.processes = processes or Processes()
        self.mine = self.processes.rows(config.batch)
        self.class_name, self.device = class_name, backbone.device
        self.resolution = check_side(config.resolution or backbone.native_size, backbone)
        kept = len(examples) - config.held_out
        if kept < 1:
            raise InputError(
                f"held_out is {config.held_out} of {len(examples)} photos; at least one must be "
                "left to learn from."
            )
        self.examples, self.kept_out = list(examples[:kept]), list(examples[kept:])
        self.token = config.token or pick_token(backbone.text)
        self.prompt = prompt_for(config.prompt, self.token, class_name)
        self.class_prompt = prompt_for(config.prompt, "", class_name)
        backbone.text.learns = config.text_encoder
        with torch.no_grad():
            for prompt in (self.prompt, self.class_prompt):
                self.conditioning(prompt)
        others = prior and class_samples(prior, self.resolution, config.seed)
        recipe = self._recipe(prior is not None)
        if resume:
            _check_same(out, recipe)
        self.trained = set_up(backbone, config)
        self.state = TrainState(self.trained, config)
        self.pool = self._encode_crops()
        self.prior = encode(backbone, others) if others else None
        self.fixed = {
            name: encode(backbone, [crop_sample(one, one.frame, self.resolution) for one in those])
            for name, those in (("photos", self.examples), ("held_out", self.kept_out))
            if those
        }
        # Before anything is learnt, which is what reports compare with.
        self._before = self._errors() if self.processes.first else {}
        if resume:
            self.state.load(out, f"an object for the model {config.model}")
        if self.processes.first:
            out.mkdir(exist_ok=True)
            (out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")

    def _recipe(self, prior: bool) -> dict[str, Any]:
        """What must be the same for a run to go on; `prior` is whether it has class pictures."""
        examples = (*self.examples, *self.kept_out)
        return {
            "photos": [one.sight.sha256 for one in examples],
            "boxes": [one.box.as_dict() for one in examples],
            "class_name": self.class_name,
            "class_pictures": prior,
            "model": self.backbone.hash,
            "settings": self.config.identity(),
        }

    def conditioning(self, prompt: str) -> Embedding:
        """A prompt's one row as it is now: from a cache, but where the text encoder learns."""
        c, size, text = self.config, (self.resolution, self.resolution), self.backbone.text
        with torch.autocast(self.device.type, torch.bfloat16, enabled=text.learns):
            return embed_prompt(text, prompt, size, c.layout, c.background_prompt)

    def _encode_crops(self) -> Pool:
        """The pool of augmented crops, each drawn from (seed, photo, variant)."""
        samples = []
        for photo, one in enumerate(self.examples):
            for variant in range(self.config.variants):
                rng = np.random.default_rng([self.config.seed, 1, photo, variant])
                crop = draw_crop(one, self.config, rng)
                flip = self.config.flip and rng.random() < 0.5
                samples.append(crop_sample(one, crop, self.resolution, flip))
        return encode(self.backbone, samples)

    @contextmanager
    def masked(self, hole: Tensor) -> Iterator[None]:
        """Inside, attention is masked by latent holes (N, 1, h, w); backward passes belong here."""
        inside = released_tokens() if self.config.layout == "released" else None
        # Self-attention is masked when the object is put in, not before.
        rule = TrainingAttention(hole, "a", self.config.mask_cross_attention, inside)
        with self.backbone.attention(rule):
            yield

    def _error(self, pool: Pool, t: Tensor, noise: Tensor, prompt: str) -> Tensor:
        """Squared error (N, 1, h, w) of what the U-Net predicts, averaged over channels."""
        text = self.conditioning(prompt).rows(len(pool))
        conditions = Conditions(text, mask=pool.hole, masked_latent=pool.seen)
        error = prediction_error(self.backbone, pool.z, noise, t, conditions)
        return (error**2).mean(1, keepdim=True)

    def train_step(self) -> float:
        """One step, on this process's rows of the batch; returns the loss of all of them."""
        c = self.config
        parts = [(self.pool, self.prompt, 1.0)]
        if self.prior is not None:
            parts.append((self.prior, self.class_prompt, c.prior_weight))
        told = torch.zeros((), device=self.device)
        for number, (pool, prompt, share) in enumerate(parts):
            batch, t, noise, whole = self._draw(pool, number)
            weight = loss_weights(batch.hole, batch.valid, c.hole_weight)
            with self.masked(batch.hole):
                error = self._error(batch, t, noise, prompt)
                loss = share * (error * weight).sum() / max(whole, 1e-6)
                loss.backward()
            told += loss.detach()
        told = self.processes.add_up(self.trained.parameters(), told)
        self.state.update(self.learning_rate())
        if self.processes.first and c.preview_every and self.step % c.preview_every == 0:
            self._show(self.out / f"preview-{self.step:06d}.png")
        return float(told)

    def _draw(self, pool: Pool, number: int) -> tuple[Pool, Tensor, Tensor, float]:
        """This process's samples, timesteps and noise of a step; what the whole batch weighs."""
        c, count = self.config, len(self.backbone.levels)
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
                noise.append(rng.standard_normal(pool.z.shape[1:], dtype=np.float32))
        every = np.array(chosen)
        whole = loss_weights(pool.hole[every], pool.valid[every], c.hole_weight).sum()
        batch = pool.rows(every[self.mine], self.device)
        steps = torch.tensor(t, device=self.device)
        return batch, steps, torch.from_numpy(np.stack(noise)).to(self.device), float(whole)

    def _show(self, path: Path) -> None:
        """A preview with the averaged weights: the first photo, and beside it its box filled."""
        pool = self.fixed["photos"].rows(np.arange(1), self.device)
        sampler = Sampler(self.backbone.levels, self.config.preview_steps)
        # Sampling must not move the global generator that a run may lean on.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            with self.state.averaged(), self.masked(pool.hole):
                text = self.conditioning(self.prompt)
                conditions = Conditions(text, mask=pool.hole, masked_latent=pool.seen)
                denoiser = self.backbone.denoiser(conditions)
                filled = sampler(
                    denoiser,
                    pool.z,
                    strength=1.0,
                    generator=torch.Generator().manual_seed(0),
                    keep_outside=denoiser.keep_outside,
                )
            z = torch.cat([pool.z, filled * pool.hole + pool.z * (1 - pool.hole)])
            sides = [self.backbone.decode(each) for each in z.split(1)]
        image = torch.cat(sides, 3)[0].clamp(-1, 1).cpu().numpy().transpose(1, 2, 0)
        levels = np.round((image + 1) * 127.5).astype(np.uint8)
        write_picture(read_picture(np.ascontiguousarray(levels), role="preview"), path)

    @torch.no_grad()
    def error_in_hole(self, pool: Pool) -> dict[int, float]:
        """The mean squared error in a pool's holes by timestep, with the averaged weights."""
        rng = np.random.default_rng([self.config.seed, 3])
        rows = pool.rows(np.arange(len(pool)), self.device)
        drawn = rng.standard_normal(rows.z.shape, dtype=np.float32)
        noise = torch.from_numpy(drawn).to(self.device)

        # At first the average is what is there already.
        averaged = self.state.averaged() if self.step else nullcontext()
        curve, total = {}, len(self.backbone.levels)
        with averaged, self.masked(rows.hole):
            for t in (share * total // 1000 for share in VALIDATED):
                steps = torch.full((len(rows),), t, device=self.device)
                error = self._error(rows, steps, noise, self.prompt)
                curve[t] = float(inside(error, rows.hole * rows.valid).nanmean())
        return curve

    def _errors(self) -> dict[str, dict[int, float]]:
        """error_in_hole() of the photos as they are, and of those held out."""
        return {name: self.error_in_hole(pool) for name, pool in self.fixed.items()}

    def report(self) -> tuple[dict[str, Any], dict[str, float]]:
        """_errors() now and before anything was learnt."""
        row, curves = dict[str, Any](), dict[str, float]()
        for name, now in self._errors().items():
            for key, curve in ((name, now), (f"{name}_before", self._before[name])):
                row[f"loss_in_box_{key}"] = round(float(np.mean(list(curve.values()))), 5)
            curves |= {f"loss_in_box_{name}/{t}": value for t, value in now.items()}
        return row, curves

    def write(self, path: Path) -> Concept:
        """Write the averaged weights and what they were learnt from; returns the latter."""
        told = {"layout", "background_prompt", "mask_cross_attention", "context"}
        concept = Concept(
            kind=self.config.train,
            inlay=__version__,
            class_name=self.class_name,
            token=self.token,
            prompt=self.prompt,
            class_prompt=self.class_prompt,
            **self.config.model_dump(include=told),
            sights=tuple(one.sight for one in self.examples),
            base=Base.model_validate(self.backbone, from_attributes=True),
            steps=self.step,
            settings=self.config.model_dump(mode="json"),
        )
        if self.processes.first:
            with self.state.averaged():
                trained = self.trained.state_dict()
                tensors = {name.replace("/", "."): value for name, value in trained.items()}
                write_concept(path, concept, tensors, self.config.full_dtype)
        return concept


def _check_same(out: Path, recipe: dict[str, Any]) -> None:
    """Raises InputError where a run's folder holds another run's state."""
    before: dict[str, Any] = {}
    with suppress(InputError):
        before = read_json(out / "recipe.json")
    told = json.loads(json.dumps(recipe))
    other = [key for key in told if before.get(key) != told[key]]
    if other:
        raise InputError(
            f"the run in {out} had other {' and '.join(other).replace('_', ' ')}; expected the "
            "same as when it began, but for its steps, or leave out --resume."
        )
