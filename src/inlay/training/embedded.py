"""Training of the checkpoint that ships inside the package.

A text-conditioned inpainting latent diffusion model at 128 px: a linear patch autoencoder, a
small CLIP text model trained jointly, and a UNet2DConditionModel that reads the noisy latent, the
mask and the masked picture's latent, in that order, and predicts v (Salimans and Ho 2022,
arXiv 2202.00512) under a zero-terminal-SNR schedule (Lin et al. 2024, arXiv 2305.08891).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from inlay.checkpoints.load import load_backbone
from inlay.diffusion.text import Embedding, TextStack
from inlay.diffusion.unet import UNetBackbone
from inlay.learning.loop import TrainState, check_state
from inlay.training.batches import Batch, CorpusLoader
from inlay.training.corpus import load_corpus, with_rendered
from inlay.training.networks import (
    EmbeddedConfig,
    Networks,
    copy_autoencoder,
    fit_autoencoder,
    noise_scheduler,
    read_tokenizer,
    train_tokenizer,
)
from inlay.training.objects import ObjectCache
from inlay.training.trainer import MaskedTrainer, favoured_timesteps

__all__ = ["EmbeddedConfig", "EmbeddedTrainer"]

# Words are told apart below this timestep, and by this share of an error.
_CONTRAST_BELOW = 700
_MARGIN = 0.02


def other_captions(
    captions: Sequence[str], pool: Sequence[str], rng: np.random.Generator
) -> list[str]:
    """For each caption one of `pool` that differs from it; itself where all are the same."""
    chosen = []
    for caption in captions:
        others = [pool[i] for i in rng.integers(0, len(pool), 8) if pool[i] != caption]
        chosen.append(others[0] if others else caption)
    return chosen


def contrast(own: Tensor, other: Tensor, hole: Tensor, margin: float = _MARGIN) -> Tensor:
    """A loss that makes the words matter: a picture's own caption has to explain it best.

    Mean over rows of max(0, margin - (other - own) / own), errors taken inside the hole. `own` and
    `other` are squared errors (N, C, h, w) under the two captions, `hole` (N, 1, h, w) holds 0 and
    1. Rows without a hole count as 0.

    The denoising error by caption is what a diffusion model classifies with (Li et al. 2023, "Your
    diffusion model is secretly a zero-shot classifier", arXiv 2303.16203). Where the outline and
    the surroundings tell what is missing, plain training has next to no reason to read the caption,
    and guidance has nothing to push with.
    """
    size = hole.sum((1, 2, 3)) * own.shape[1]
    first, second = ((error * hole).sum((1, 2, 3)) / size.clamp_min(1) for error in (own, other))
    gap = (second - first) / first.detach().clamp_min(1e-6)
    return (functional.relu(margin - gap) * (size > 0)).mean()


class EmbeddedTrainer(MaskedTrainer):
    """One run: networks, optimiser, average, and the step they share."""

    kind = "checkpoint"
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
        start = None
        if config.start_from is not None:
            start = load_backbone(config.start_from, device="cpu", dtype="float32")
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
        unet: Any = self.networks.unet
        self.learn_fast(unet)
        compiled = self.device.type == "cuda" if config.compile is None else config.compile
        self.scheduler = noise_scheduler()
        self.backbone = UNetBackbone(
            torch.compile(unet) if compiled else unet,
            vae.to(self.device),
            TextStack([self.tokenizer], [self.networks.text_encoder]),
            self.scheduler.config,
            name="to be trained",
        )
        # A backbone's weights are frozen otherwise.
        self.networks.requires_grad_(True).train()
        self.state = TrainState(
            self.networks, config.optimizer, config.learning_rate, config.ema_decay
        )
        self.objects = ObjectCache()
        shares = config.object_mask_share, config.recolour_share
        self.loader = CorpusLoader(self.corpus, self.device, self.objects, *shares)
        # Rendered captions are many and rare: the words to tell apart are those of the photos.
        self._words = photos.captions
        self.channel_weight = self.weigh_channels(config.channel_weight_power)
        if resume:
            self.state.load(out, "a checkpoint like this one")
        else:
            self.tokenizer.save_pretrained(out / "tokenizer")

    def shape(self, step: int) -> tuple[int, int]:
        c = self.config
        if step < c.low_resolution_steps:
            return c.low_resolution_batch, c.low_resolution
        return c.batch, c.resolution

    def timesteps(self, u: NDArray[np.float64]) -> NDArray[np.int64]:
        # A share is where the picture is undecided, so that the words have something to say.
        return favoured_timesteps(u, self.config.high_noise_share, 0.6)

    def embed(self, captions: Sequence[str]) -> Embedding:
        unique = sorted(set(captions))
        tokens = self.tokenizer(
            unique, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            hidden = self.networks.text_encoder(tokens).last_hidden_state
        return Embedding(hidden[[unique.index(caption) for caption in captions]])

    def penalty(
        self, batch: Batch, t: Tensor, noise: Tensor, error: Tensor, rng: np.random.Generator
    ) -> Tensor | float:
        """contrast() of every third row with a caption, but for the noisiest, where words cannot
        decide much and forcing them to would cost colour.
        """
        c = self.config
        rows = [i for i in range(0, len(t), 3) if batch.captions[i] and t[i] < _CONTRAST_BELOW]
        if not c.word_contrast or not rows:
            return 0.0
        others = other_captions([batch.captions[i] for i in rows], self._words, rng)
        again = Batch(batch.x[rows], batch.mask[rows], others)
        other, hole = self.errors(again, t[rows], noise[rows])
        own, other = error[rows] * self.channel_weight, other * self.channel_weight
        return c.word_contrast * contrast(own, other, hole)

    def write(self, network: Networks, folder: Path) -> None:
        # The autoencoder stays in float32: it is 6 kB, and residual decoding leans on it.
        parts: dict[str, tuple[Any, str]] = {
            "scheduler": (self.scheduler, "diffusers"),
            "text_encoder": (network.text_encoder, "transformers"),
            "tokenizer": (self.tokenizer, "transformers"),
            "unet": (network.unet, "diffusers"),
            "vae": (self.backbone.vae, "inlay.diffusion.unet"),
        }
        index: dict[str, Any] = {
            "_class_name": "StableDiffusionInpaintPipeline", "_diffusers_version": "0.30.0",
        }  # fmt: skip
        for name, (part, library) in parts.items():
            part.save_pretrained(folder / name)
            index[name] = [library, type(part).__name__]
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
