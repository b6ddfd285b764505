"""Training of the checkpoint that ships inside the package.

A text-conditioned inpainting latent diffusion model at 128 px: a linear patch autoencoder, a
small CLIP text model trained jointly, and a UNet2DConditionModel that reads the noisy latent, the
mask and the masked picture's latent, in that order, and predicts v (Salimans and Ho 2022,
arXiv 2202.00512) under a zero-terminal-SNR schedule (Lin et al. 2024, arXiv 2305.08891).
"""

from __future__ import annotations

import copy
import json
import shutil
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from inlay.learning.loop import (
    VALIDATION_TIMESTEPS,
    channel_weight,
    check_state,
    follow,
    noised,
    put_in_place,
    rate,
    read_state,
    train,
    whole_patches,
    write_state,
)
from inlay.learning.optim import JointOptimizer
from inlay.training.corpus import load_corpus, with_rendered
from inlay.training.feed import DeviceFeed, Feed, HostFeed, Policy
from inlay.training.networks import (
    EmbeddedConfig,
    Networks,
    earlier_words,
    earlier_words_and_latents,
    fit_autoencoder,
    noise_scheduler,
)
from inlay.training.tokenizer import train_tokenizer
from inlay.training.words import contrast, other_captions

__all__ = ["EmbeddedConfig", "train_embedded"]

_CONTRAST_BELOW = 700


class Trainer:
    """One run: networks, optimiser, average, and the step they share."""

    def __init__(
        self, folder: Path, out: Path, config: EmbeddedConfig, resume: bool = False
    ) -> None:
        self.config, self.out = config, out
        out.mkdir(parents=True, exist_ok=True)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.corpus = load_corpus(folder, held_out=False)
        self.held_out = load_corpus(folder, held_out=True)
        torch.manual_seed(config.seed)
        # The autoencoder is fitted to photos alone.
        photos = self.corpus
        self.corpus = with_rendered(
            photos, config.rendered, config.rendered_share, out / "rendered.safetensors"
        )
        if resume:
            check_state(out)
        if resume and config.start_from is None:
            # Words that are as frequent as each other may be numbered otherwise another time.
            self.tokenizer = earlier_words(out / "tokenizer")
            vae = fit_autoencoder(photos, config.seed)
        elif config.start_from is None:
            self.tokenizer = train_tokenizer(sorted(set(self.corpus.captions)))
            vae = fit_autoencoder(photos, config.seed)
        else:
            self.tokenizer, vae = earlier_words_and_latents(config.start_from)
        self.vae = vae.to(self.device)
        end = int(self.tokenizer.eos_token_id)
        self.networks = Networks(config, len(self.tokenizer), end).to(self.device)
        if config.start_from is not None:
            self.networks.take_up(config.start_from)
        self.average = {k: v.detach().clone() for k, v in self.networks.state_dict().items()}
        self.optimizer = JointOptimizer(self.networks, config.optimizer, config.learning_rate)
        policy = Policy(config.object_mask_share, config.recolour_share)
        on_gpu = self.device.type == "cuda"
        self.feed: Feed = (
            DeviceFeed(self.corpus, policy, self.device, config.seed)
            if on_gpu
            else HostFeed(self.corpus, policy, self.device)
        )
        compiled = on_gpu if config.compile is None else config.compile
        unet: Any = self.networks.unet
        self._unet = torch.compile(unet) if compiled else unet
        self.scheduler = noise_scheduler()
        self.alphas = self.scheduler.alphas_cumprod.to(self.device)
        # Rendered captions are many and rare: the words to tell apart are those of the photos.
        self._words = photos.captions
        self.channel_weight = channel_weight(self._some_latents(), config.channel_weight_power)
        self.step, self.told = 0, deque[float](maxlen=50)
        if resume:
            self.load_state()
        else:
            self.tokenizer.save_pretrained(out / "tokenizer")

    @torch.no_grad()
    def _some_latents(self) -> Tensor:
        rng = np.random.default_rng([self.config.seed, 4])
        plain = HostFeed(self.corpus, Policy(), self.device)
        x = plain.batch(64, self.config.resolution, rng).x
        latents: Tensor = self.vae.encode(x).latent_dist.mode()
        return latents

    def _embed(self, captions: list[str]) -> Tensor:
        unique = sorted(set(captions))
        tokens = self.tokenizer(
            unique, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids.to(self.device)
        hidden = self.networks.text_encoder(tokens).last_hidden_state
        rows: Tensor = hidden[[unique.index(c) for c in captions]]
        return rows

    def _losses(
        self, x: Tensor, mask: Tensor, captions: list[str], t: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Squared v-error (N, C, h, w) and the latent mask (N, 1, h, w)."""
        scale = self.vae.config.scaling_factor
        latent_mask, mask = whole_patches(mask, 4)
        with torch.no_grad():
            z = self.vae.encode(x).latent_dist.mode() * scale
            masked = self.vae.encode(x * (1 - mask)).latent_dist.mode() * scale
        noisy, target = noised(z, noise, self.alphas[t])
        inputs = torch.cat([noisy, latent_mask, masked], 1)
        with torch.autocast(self.device.type, torch.bfloat16):
            v = self._unet(inputs, t, self._embed(captions)).sample
        return (v.float() - target) ** 2, latent_mask

    def _timesteps(self, u: NDArray[np.float64]) -> NDArray[np.int64]:
        """Numbers in [0, 1) to timesteps: uniform, but for a share that is above 600 alone.

        There the picture is undecided, so that the words have something to say.
        """
        low = 0.6 * (1 - self.config.high_noise_share)
        bounds = np.interp(u, [0.0, low, 1.0], [0.0, 600.0, 1000.0])
        return np.clip(bounds.astype(np.int64), 0, 999)

    def _time_weight(self, t: Tensor) -> Tensor:
        """Min-SNR weights of a v-loss (Hang et al. 2023, arXiv 2303.09556, section 3.4)."""
        gamma = self.config.min_snr_gamma
        if gamma is None:
            return torch.ones(len(t), 1, 1, 1, device=t.device)
        a = self.alphas[t]
        # min(SNR, gamma) / (SNR + 1), with SNR = a / (1 - a): no division where SNR is infinite.
        return torch.minimum(a, gamma * (1 - a)).view(-1, 1, 1, 1)

    def learning_rate(self) -> float:
        c = self.config
        return rate(self.step, c.steps, c.learning_rate, c.warmup_steps, c.cooldown_share)

    def curves(self) -> dict[str, float]:
        return {"loss/words": float(np.mean(self.told))} if self.config.word_contrast else {}

    def train_step(self) -> float:
        c = self.config
        low = self.step < c.low_resolution_steps
        # Everything random in a step comes from (seed, step): a resumed run repeats nothing.
        rng = np.random.default_rng([c.seed, 2, self.step])
        size = c.low_resolution if low else c.resolution
        count = c.low_resolution_batch if low else c.batch
        batch = self.feed.batch(count, size, rng)
        captions = ["" if rng.random() < c.caption_dropout else text for text in batch.captions]
        # Stratified timesteps: the same loss, less variance.
        t = self._timesteps((np.arange(count) + rng.random(count)) / count)
        noise = rng.standard_normal((count, 16, size // 4, size // 4), dtype=np.float32)
        d = self.device
        steps = torch.from_numpy(t).to(d)
        # Every third row is seen again under another picture's caption, but for the noisiest, where
        # words cannot decide much and forcing them to would cost colour.
        again = [i for i in range(0, count, 3) if c.word_contrast and t[i] < _CONTRAST_BELOW]
        own = [batch.captions[i] for i in again]
        for i, caption in zip(again, own, strict=True):
            captions[i] = caption
        others = other_captions(own, self._words, rng)
        seen = (batch.x, batch.mask, steps, torch.from_numpy(noise).to(d))
        x, mask, t_seen, noise_seen = (torch.cat([s, s[again]]) for s in seen)
        error, hole = self._losses(x, mask, captions + others, t_seen, noise_seen)
        weight = (1 - c.hole_weight) + c.hole_weight * hole[:count]
        weight = weight * self._time_weight(steps)
        weighted = error * self.channel_weight
        loss = (weighted[:count] * weight).mean() / weight.mean()
        told = contrast(weighted[again], weighted[count:], hole[again]) if again else loss * 0
        (loss + c.word_contrast * told).backward()
        nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
        self.optimizer.step(self.learning_rate())
        self.networks.zero_grad(set_to_none=True)
        self.told.append(float(told.detach()))
        self.step += 1
        follow(self.average, self.networks, self.step, c.ema_decay)
        return float(loss.detach())

    @torch.no_grad()
    def validate(self, pictures: int = 64) -> dict[int, float]:
        """Hole v-loss of the averaged weights on the held-out split, by timestep.

        Empty where nothing is held out, as may be with a handful of photos.
        """
        if len(self.held_out) == 0:
            return {}
        rng = np.random.default_rng([self.config.seed, 3])
        indices = np.arange(min(pictures, len(self.held_out)))
        plain = HostFeed(self.held_out, Policy(), self.device)
        batch = plain.of(indices, self.config.resolution, rng)
        x, mask, captions = batch.x, batch.mask, batch.captions
        noise = rng.standard_normal((len(x), 16, x.shape[2] // 4, x.shape[3] // 4))
        noise_tensor = torch.from_numpy(noise).float().to(self.device)
        kept = {k: v.clone() for k, v in self.networks.state_dict().items()}
        self.networks.load_state_dict(self.average)
        result = {}
        for t in VALIDATION_TIMESTEPS:
            steps = torch.full((len(x),), t, device=self.device)
            error, hole = self._losses(x, mask, captions, steps, noise_tensor)
            result[t] = float((error.mean(1, keepdim=True) * hole).sum() / hole.sum())
        self.networks.load_state_dict(kept)
        return result

    def report(self) -> tuple[dict[str, Any], dict[str, float]]:
        validation = self.validate()
        row = {"validation_v_loss": {str(k): round(v, 5) for k, v in validation.items()}}
        return row, {f"v_loss_in_hole/{t}": v for t, v in validation.items()}

    def save_state(self) -> None:
        """Write a resumable state (safetensors, renamed into place)."""
        groups = {
            "net": self.networks.state_dict(),
            "ema": self.average,
            "opt": self.optimizer.state(),
        }
        write_state(self.out, self.step, groups)

    def load_state(self) -> None:
        """Continue from save_state(); raises InputError when there is nothing to continue."""
        self.step, groups = read_state(self.out)
        self.networks.load_state_dict(groups["net"])
        self.average = {key: value.to(self.device) for key, value in groups["ema"].items()}
        self.optimizer.load(groups.get("opt", {}))

    def export(self, figures: dict[str, Any]) -> Path:
        """Write the averaged weights in float16 as a diffusers folder OUT/checkpoint."""
        target, temporary = self.out / "checkpoint", self.out / "checkpoint.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        networks = copy.deepcopy(self.networks)
        networks.load_state_dict(self.average)
        networks.half()
        networks.unet.save_pretrained(temporary / "unet")
        networks.text_encoder.save_pretrained(temporary / "text_encoder")
        # The autoencoder stays in float32: it is 6 kB, and residual decoding leans on it.
        self.vae.save_pretrained(temporary / "vae")
        self.tokenizer.save_pretrained(temporary / "tokenizer")
        self.scheduler.save_pretrained(temporary / "scheduler")
        index = {
            "_class_name": "StableDiffusionInpaintPipeline",
            "_diffusers_version": "0.30.0",
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["inlay.diffusion.autoencoder", "PatchAutoencoder"],
        }
        (temporary / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        recipe = {"config": self.config.model_dump(mode="json"), "step": self.step, **figures}
        (temporary / "training.json").write_text(json.dumps(recipe, indent=2) + "\n")
        return put_in_place(temporary, target)


def train_embedded(
    folder: Path,
    out: Path,
    config: EmbeddedConfig | None = None,
    resume: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train on an image folder and return the diffusers folder OUT/checkpoint.

    Every `save_every` steps a resumable state, a report (OUT/log.jsonl, and OUT/events for
    TensorBoard) and the checkpoint so far are written. Raises InputError for an unusable folder
    or nothing to resume.
    """
    config = config or EmbeddedConfig()
    trainer = Trainer(folder, out, config, resume)
    log(f"{len(trainer.corpus)} pictures to train on, {len(trainer.held_out)} held out")
    train(trainer, log)
    return out / "checkpoint"
