"""Training of the checkpoint that ships inside the package.

A text-conditioned inpainting latent diffusion model at 128 px: a linear patch autoencoder, a
small CLIP text model trained jointly, and a UNet2DConditionModel that reads the noisy latent, the
mask and the masked picture's latent, in that order, and predicts v (Salimans and Ho 2022,
arXiv 2202.00512) under a zero-terminal-SNR schedule (Lin et al. 2024, arXiv 2305.08891).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inlay.checkpoints.load import load_backbone
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.unet import DdpmLevels
from inlay.errors import InputError
from inlay.learning.loop import Run, train, validation_curve
from inlay.learning.state import TrainState, check_state
from inlay.training.batches import Augmentation, DeviceLoader, HostLoader
from inlay.training.corpus import load_corpus, with_rendered
from inlay.training.losses import channel_weight, contrast, erase, latent_mask, other_captions
from inlay.training.networks import (
    EmbeddedConfig,
    Networks,
    copy_autoencoder,
    fit_autoencoder,
    noise_scheduler,
    read_tokenizer,
    train_tokenizer,
)

__all__ = ["EmbeddedConfig", "EmbeddedTrainer", "train_embedded"]

_CONTRAST_BELOW = 700


class EmbeddedTrainer(Run):
    """One run: networks, optimiser, average, and the step they share."""

    config: EmbeddedConfig

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
        self.corpus = with_rendered(photos, config)
        if resume:
            check_state(out)
        start = _start(config.start_from)
        if start is not None:
            self.tokenizer = start.text.tokenizers[0]
        elif resume:
            # Words that are as frequent as each other may be numbered otherwise another time.
            self.tokenizer = read_tokenizer(out / "tokenizer")
        else:
            self.tokenizer = train_tokenizer(sorted(set(self.corpus.captions)))
        end = int(self.tokenizer.eos_token_id)
        self.networks = Networks(config, len(self.tokenizer), end).to(self.device)
        if start is not None:
            self.networks.load(start)
        vae = fit_autoencoder(photos, config.seed) if start is None else copy_autoencoder(start.vae)
        self.vae = vae.to(self.device)
        self.state = TrainState(
            self.networks, config.optimizer, config.learning_rate, config.ema_decay
        )
        augmentation = Augmentation(config.object_mask_share, config.recolour_share)
        on_gpu = self.device.type == "cuda"
        place = self.corpus, augmentation, self.device
        self.loader = DeviceLoader(*place, config.seed) if on_gpu else HostLoader(*place)
        compiled = on_gpu if config.compile is None else config.compile
        unet: Any = self.networks.unet
        self._unet = torch.compile(unet) if compiled else unet
        self.scheduler = noise_scheduler()
        self.levels = DdpmLevels(self.scheduler.config)
        # Rendered captions are many and rare: the words to tell apart are those of the photos.
        self._words = photos.captions
        self.channel_weight = channel_weight(self._some_latents(), config.channel_weight_power)
        self.told = deque[float](maxlen=50)
        if resume:
            self.state.load(out, "a checkpoint like this one")
        else:
            self.tokenizer.save_pretrained(out / "tokenizer")

    @torch.no_grad()
    def _some_latents(self) -> Tensor:
        rng = np.random.default_rng([self.config.seed, 4])
        plain = HostLoader(self.corpus, Augmentation(), self.device)
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
        hole = latent_mask(mask, 4)
        with torch.no_grad():
            z = self.vae.encode(x).latent_dist.mode() * scale
            masked = self.vae.encode(erase(x, hole)).latent_dist.mode() * scale
        level = self.levels.rows(t)
        inputs = torch.cat([level.add_noise(z, noise), hole, masked], 1)
        with torch.autocast(self.device.type, torch.bfloat16):
            v = self._unet(inputs, t, self._embed(captions)).sample
        return (v.float() - level.output(z, noise, "v_prediction")) ** 2, hole

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
        level = self.levels.rows(t)
        # min(SNR, gamma) / (SNR + 1) with SNR = (signal / noise)^2, where signal^2 + noise^2 = 1:
        # no division where SNR is infinite.
        signal, noise = (torch.as_tensor(x) ** 2 for x in (level.signal, level.noise))
        return torch.minimum(signal, gamma * noise)

    def curves(self) -> dict[str, float]:
        return {"loss/words": float(np.mean(self.told))} if self.config.word_contrast else {}

    def train_step(self) -> float:
        c = self.config
        low = self.step < c.low_resolution_steps
        # Everything random in a step comes from (seed, step): a resumed run repeats nothing.
        rng = np.random.default_rng([c.seed, 2, self.step])
        size = c.low_resolution if low else c.resolution
        count = c.low_resolution_batch if low else c.batch
        batch = self.loader.batch(count, size, rng)
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
        self.state.update(self.learning_rate())
        self.told.append(float(told.detach()))
        return float(loss.detach())

    def validate(self, pictures: int = 64) -> dict[int, float]:
        """Hole v-loss of the averaged weights on the held-out split, by timestep.

        Empty where nothing is held out, as may be with a handful of photos.
        """
        if len(self.held_out) == 0:
            return {}
        rng = np.random.default_rng([self.config.seed, 3])
        indices = np.arange(min(pictures, len(self.held_out)))
        loader = HostLoader(self.held_out, Augmentation(), self.device)
        batch = loader.of(indices, self.config.resolution, rng)
        noise = rng.standard_normal((len(indices), 16, *(n // 4 for n in batch.x.shape[2:])))
        eps = torch.from_numpy(noise).float().to(self.device)

        def errors(t: Tensor) -> tuple[Tensor, Tensor]:
            return self._losses(batch.x, batch.mask, batch.captions, t, eps)

        with self.state.averaged():
            return validation_curve(errors, len(indices), self.device)

    def report(self) -> tuple[dict[str, Any], dict[str, float]]:
        validation = self.validate()
        row = {"validation_v_loss": {str(k): round(v, 5) for k, v in validation.items()}}
        return row, {f"v_loss_in_hole/{t}": v for t, v in validation.items()}

    def export(self, figures: dict[str, Any]) -> None:
        """Write the averaged weights in float16 as a diffusers folder OUT/checkpoint."""
        recipe = {"config": self.config.model_dump(mode="json"), **figures}
        self.state.export(self.out / "checkpoint", recipe, self._write)

    def _write(self, networks: Networks, folder: Path) -> None:
        networks.unet.save_pretrained(folder / "unet")
        networks.text_encoder.save_pretrained(folder / "text_encoder")
        # The autoencoder stays in float32: it is 6 kB, and residual decoding leans on it.
        self.vae.save_pretrained(folder / "vae")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.scheduler.save_pretrained(folder / "scheduler")
        index = {
            "_class_name": "StableDiffusionInpaintPipeline",
            "_diffusers_version": "0.30.0",
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["inlay.diffusion.autoencoder", "PatchAutoencoder"],
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def _start(name: str | None) -> Backbone | None:
    """The checkpoint that a run begins with; raises InputError when it cannot be read."""
    if name is None:
        return None
    try:
        return load_backbone(name, device="cpu", dtype="float32")
    except InputError as error:
        raise InputError(f"start_from is {name!r}, which cannot be read. {error}") from None


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
    trainer = EmbeddedTrainer(folder, out, config, resume)
    log(f"{len(trainer.corpus)} pictures to train on, {len(trainer.held_out)} held out")
    train(trainer, log)
    return out / "checkpoint"
