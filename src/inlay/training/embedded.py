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
from torch import Tensor

from inlay.checkpoints.load import load_backbone
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.unet import DdpmLevels
from inlay.errors import InputError
from inlay.learning.loop import train
from inlay.learning.state import TrainState, check_state
from inlay.training.batches import Ahead, Batch, CorpusLoader
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
from inlay.training.trainer import Trainer, favoured_timesteps

__all__ = ["EmbeddedConfig", "EmbeddedTrainer", "train_embedded"]

_CONTRAST_BELOW = 700


class EmbeddedTrainer(Trainer):
    """One run: networks, optimiser, average, and the step they share."""

    kind = "checkpoint"
    latent = (16, 4)
    config: EmbeddedConfig

    def __init__(
        self, folder: Path, out: Path, config: EmbeddedConfig, resume: bool = False
    ) -> None:
        self.config, self.out, self.size = config, out, config.resolution
        out.mkdir(parents=True, exist_ok=True)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # The autoencoder is fitted to photos alone.
        photos = load_corpus(folder, held_out=False)
        self.held_out = load_corpus(folder, held_out=True)
        torch.manual_seed(config.seed)
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
        self.loader = CorpusLoader(
            self.corpus, self.device, config.object_mask_share, config.recolour_share
        )
        on_gpu = self.device.type == "cuda"
        self._ahead = Ahead(self._draw, workers=int(on_gpu))
        compiled = on_gpu if config.compile is None else config.compile
        unet: Any = self.networks.unet
        self._unet = torch.compile(unet) if compiled else unet
        self.scheduler = noise_scheduler()
        self.levels = DdpmLevels(self.scheduler.config)
        # Rendered captions are many and rare: the words to tell apart are those of the photos.
        self._words = photos.captions
        with torch.no_grad():
            latents = self.vae.encode(self.some_pictures(self.corpus)).latent_dist.mode()
        self.channel_weight = channel_weight(latents, config.channel_weight_power)
        self.told = deque[float](maxlen=50)
        if resume:
            self.state.load(out, "a checkpoint like this one")
        else:
            self.tokenizer.save_pretrained(out / "tokenizer")

    def _embed(self, captions: list[str]) -> Tensor:
        unique = sorted(set(captions))
        tokens = self.tokenizer(
            unique, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids.to(self.device)
        hidden = self.networks.text_encoder(tokens).last_hidden_state
        rows: Tensor = hidden[[unique.index(c) for c in captions]]
        return rows

    def errors(self, batch: Batch, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.vae.config.scaling_factor
        hole = latent_mask(batch.mask, 4)
        with torch.no_grad():
            z = self.vae.encode(batch.x).latent_dist.mode() * scale
            masked = self.vae.encode(erase(batch.x, hole)).latent_dist.mode() * scale
        level = self.levels.rows(t)
        inputs = torch.cat([level.add_noise(z, noise), hole, masked], 1)
        with torch.autocast(self.device.type, torch.bfloat16):
            v = self._unet(inputs, t, self._embed(batch.captions)).sample
        return (v.float() - level.output(z, noise, "v_prediction")) ** 2, hole

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

    def _draw(self, step: int, _: int) -> tuple[Batch, np.random.Generator]:
        """The pictures of a step, and the generator that all else of it comes from."""
        c = self.config
        low = step < c.low_resolution_steps
        # Everything random in a step comes from (seed, step): a resumed run repeats nothing.
        rng = np.random.default_rng([c.seed, 2, step])
        size = c.low_resolution if low else c.resolution
        return self.loader.batch(c.low_resolution_batch if low else c.batch, size, rng), rng

    def train_step(self) -> float:
        c, d = self.config, self.device
        ((batch, rng),) = self._ahead.get(self.step, [0])
        count = len(batch.x)
        captions = ["" if rng.random() < c.caption_dropout else text for text in batch.captions]
        # Stratified timesteps: the same loss, less variance; there is a share where the picture is
        # undecided, so that the words have something to say.
        u = (np.arange(count) + rng.random(count)) / count
        t = favoured_timesteps(u, c.high_noise_share, 0.6)
        noise = self.noise(rng, count, size=batch.x.shape[-1])
        # Every third row is seen again under another picture's caption, but for the noisiest, where
        # words cannot decide much and forcing them to would cost colour.
        again = [i for i in range(0, count, 3) if c.word_contrast and t[i] < _CONTRAST_BELOW]
        own = [batch.captions[i] for i in again]
        for i, caption in zip(again, own, strict=True):
            captions[i] = caption
        others = other_captions(own, self._words, rng)
        steps = torch.from_numpy(t).to(d)
        x, mask, t_seen, noise_seen = (
            torch.cat([s, s[again]]) for s in (batch.x, batch.mask, steps, noise)
        )
        error, hole = self.errors(Batch(x, mask, captions + others), t_seen, noise_seen)
        weight = (1 - c.hole_weight) + c.hole_weight * hole[:count]
        weight = weight * self._time_weight(steps)
        weighted = error * self.channel_weight
        loss = (weighted[:count] * weight).mean() / weight.mean()
        told = contrast(weighted[again], weighted[count:], hole[again]) if again else loss * 0
        (loss + c.word_contrast * told).backward()
        self.state.update(self.learning_rate())
        self.told.append(float(told.detach()))
        return float(loss.detach())

    def write(self, network: Networks, folder: Path) -> None:
        # The autoencoder stays in float32: it is 6 kB, and residual decoding leans on it.
        parts: dict[str, tuple[Any, str]] = {
            "scheduler": (self.scheduler, "diffusers"),
            "text_encoder": (network.text_encoder, "transformers"),
            "tokenizer": (self.tokenizer, "transformers"),
            "unet": (network.unet, "diffusers"),
            "vae": (self.vae, "inlay.diffusion.autoencoder"),
        }
        index: dict[str, Any] = {
            "_class_name": "StableDiffusionInpaintPipeline", "_diffusers_version": "0.30.0",
        }  # fmt: skip
        for name, (part, library) in parts.items():
            part.save_pretrained(folder / name)
            index[name] = [library, type(part).__name__]
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
