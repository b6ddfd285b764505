"""The checkpoint that ships inside the package: its recipe, its networks, and their training.

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
from diffusers import DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from inlay.checkpoints.load import load_backbone
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.text import Embedding, TextStack
from inlay.diffusion.unet import PatchAutoencoder, UNetBackbone
from inlay.errors import InputError
from inlay.learning.samples import random_crop
from inlay.learning.settings import Decay, Optimizer, Steps, Warmup
from inlay.training.corpus import Corpus, RenderedConfig, load_corpus, masked_crop, with_rendered
from inlay.training.latent import MaskedConfig, MaskedTrainer, captions_of, favoured_timesteps
from inlay.training.objects import Image, Mask
from inlay.training.trainer import Batch

_START, _END = "<|startoftext|>", "<|endoftext|>"
# Words are told apart below this timestep, and by this share of an error.
_CONTRAST_BELOW = 700
_MARGIN = 0.02


class EmbeddedConfig(RenderedConfig, MaskedConfig):
    """The whole recipe; it is written next to the weights it made."""

    steps: Steps = 8000
    optimizer: Optimizer = "muon"
    warmup_steps: Warmup = 200
    ema_decay: Decay = 0.9995
    block_out_channels: tuple[int, ...] = Field((64, 128, 256), description="U-Net widths")
    layers_per_block: int = Field(1, ge=1, le=4, description="ResNet blocks a level")
    attention_heads: int = Field(4, ge=1, description="heads of each attention layer")
    text_width: int = Field(192, ge=32, multiple_of=4, description="width of the text model")
    text_layers: int = Field(3, ge=1, description="layers of the text model")
    resolution: int = Field(128, ge=32, description="picture side in pixels")
    low_resolution: int = Field(64, ge=32, description="picture side of the first phase")
    low_resolution_steps: int = Field(4000, ge=0, description="steps of the first phase")
    low_resolution_batch: int = Field(32, ge=1, description="batch size of the first phase")
    high_noise_share: float = Field(0.0, ge=0, lt=1)
    """share of timesteps drawn from 600 to 999 alone"""
    caption_dropout: float = Field(0.15, ge=0, le=1, description="share trained without caption")
    object_mask_share: float = Field(0.35, ge=0, le=1)
    """share of holes that hide the thing in the picture"""
    recolour_share: float = Field(0.15, ge=0, le=1, description="share put under another light")
    start_from: str | None = None
    """checkpoint folder, or embedded, whose weights are begun with"""
    word_contrast: float = Field(0.0, ge=0, le=10)
    """weight of the loss that tells captions apart; 0 is without"""
    compile: bool | None = Field(None, description="compile the U-Net first; None does so on a GPU")

    @field_validator("block_out_channels")
    @classmethod
    def _widths(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if not 2 <= len(widths) <= 5 or any(width < 16 or width % 16 for width in widths):
            raise ValueError("expected 2 to 5 widths that are multiples of 16")
        return widths


class Networks(nn.Module):
    """What is trained, as one module, so that one optimiser and one EMA serve."""

    def __init__(self, config: EmbeddedConfig, vocabulary: int, end_token: int) -> None:
        super().__init__()
        coarser = len(config.block_out_channels) - 1
        self.unet = UNet2DConditionModel(
            sample_size=config.resolution // 4,
            in_channels=33,
            out_channels=16,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            # Attention on the finest level costs more than it gives.
            down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * coarser),
            up_block_types=(*["CrossAttnUpBlock2D"] * coarser, "UpBlock2D"),
            cross_attention_dim=config.text_width,
            attention_head_dim=config.attention_heads,
            norm_num_groups=16,
        )
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=config.text_width,
                intermediate_size=4 * config.text_width,
                num_hidden_layers=config.text_layers,
                num_attention_heads=4,
                max_position_embeddings=77,
                projection_dim=config.text_width,
                bos_token_id=end_token - 1,
                eos_token_id=end_token,
                pad_token_id=end_token,
            )
        )

    def load(self, start: Backbone) -> None:
        """Begin with the weights of a checkpoint; InputError when it is not of this shape."""
        try:
            self.unet.load_state_dict(start.network.state_dict())
            self.text_encoder.load_state_dict(start.text.encoders[0].state_dict())
        except RuntimeError:
            raise InputError(
                f"start_from is {start.name!r}, whose weights do not fit; expected a checkpoint "
                "that this command wrote, with the same widths, layers and vocabulary."
            ) from None


def read_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer that an earlier run wrote to a folder; raises InputError if it is not there."""
    try:
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError):
        raise InputError(
            f"the tokenizer in {folder} cannot be read; expected one that this command wrote."
        ) from None
    return tokenizer


def fit_autoencoder(corpus: Corpus, seed: int, patch: int = 4) -> PatchAutoencoder:
    """An autoencoder of what 12,000 patches of a corpus have in common."""
    rng = np.random.default_rng([seed, 1])
    rows = []
    for _ in range(3000):
        image = corpus.images[int(rng.choice(len(corpus), p=corpus.weights))]
        crop = random_crop(image, 128, rng)
        top, left = rng.integers(0, 32, 2) * patch
        for dy in range(0, 128, 32):
            y, x = (int(top) + dy) % 128, (int(left) + dy) % 128
            rows.append(crop[y : y + patch, x : x + patch].transpose(2, 0, 1).reshape(-1))
    patches = torch.from_numpy(np.stack(rows)).float() / 127.5 - 1
    fitted: PatchAutoencoder = PatchAutoencoder.fit(patches, patch)
    return fitted


def train_tokenizer(captions: Sequence[str], vocab_size: int = 1200) -> CLIPTokenizer:
    """Learn a vocabulary from captions; bytes are its base, so any text can be encoded."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    # CLIP's own way to lower the case and to split into words.
    clip = CLIPTokenizer().backend_tokenizer
    raw = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    raw.normalizer, raw.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(alphabet),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    raw.train_from_iterator(captions, trainer)
    learned = json.loads(raw.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    # CLIP's order: the bytes, the bytes that end a word, the merges, the two special tokens.
    base = sorted(alphabet)
    words = [*base, *[b + "</w>" for b in base], *["".join(m) for m in merges], _START, _END]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


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
    whose = "a checkpoint like this one"
    config: EmbeddedConfig
    network: Networks

    def read(self, folder: Path, held_out: bool) -> Corpus:
        corpus = load_corpus(folder, held_out)
        if held_out:
            return corpus
        self.size, self.photos = self.config.resolution, corpus
        return with_rendered(corpus, self.config)

    def new_network(self) -> Networks:
        config, start = self.config, None
        if config.start_from is not None:
            start = load_backbone(config.start_from, device="cpu", dtype="float32")
        if start is not None:
            self.tokenizer = start.text.tokenizers[0]
        elif self.resumed:
            # Words that are as frequent as each other may be numbered otherwise another time.
            self.tokenizer = read_tokenizer(self.out / "tokenizer")
        else:
            self.tokenizer = train_tokenizer(sorted(set(self.corpus.captions)))
        network = Networks(config, len(self.tokenizer), int(self.tokenizer.eos_token_id))
        network.to(self.device)
        if start is None:
            # The autoencoder is fitted to photos alone.
            vae = fit_autoencoder(self.photos, config.seed)
        else:
            network.load(start)
            # A new one: diffusers notes in the config where a model was read from.
            c = start.vae.config
            vae = PatchAutoencoder(c.patch_size, c.latent_channels, c.scaling_factor)
            vae.load_state_dict(start.vae.state_dict())
        if not self.resumed:
            self.tokenizer.save_pretrained(self.out / "tokenizer")
        unet: Any = network.unet
        self.learn_fast(unet)
        compiled = self.device.type == "cuda" if config.compile is None else config.compile
        self.scheduler: Any = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
        )
        self.backbone = UNetBackbone(
            torch.compile(unet) if compiled else unet,
            vae.to(self.device),
            TextStack([self.tokenizer], [network.text_encoder]),
            self.scheduler.config,
            name="to be trained",
        )
        # A backbone's weights are frozen otherwise.
        return network.requires_grad_(True)

    def count(self, step: int) -> int:
        c = self.config
        return c.low_resolution_batch if step < c.low_resolution_steps else c.batch

    def shape(self, step: int) -> tuple[int, int]:
        c = self.config
        side = c.low_resolution if step < c.low_resolution_steps else c.resolution
        return side, side

    def crop(self, picture: Image, side: int, rng: np.random.Generator) -> tuple[Image, Mask]:
        shares = self.config.object_mask_share, self.config.recolour_share
        return masked_crop(picture, side, rng, self.objects, *shares)

    def timesteps(self, u: NDArray[np.float64]) -> NDArray[np.int64]:
        # A share is where the picture is undecided, so that the words have something to say.
        return favoured_timesteps(u, self.config.high_noise_share, 0.6)

    def embed(self, captions: Sequence[str]) -> Embedding:
        unique = sorted(set(captions))
        tokens = self.tokenizer(
            unique, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            hidden = self.network.text_encoder(tokens).last_hidden_state
        return Embedding(hidden[[unique.index(caption) for caption in captions]])

    def penalty(self, batch: Batch, error: Tensor) -> Tensor | float:
        """contrast() of every third row with a caption, but for the noisiest, where words cannot
        decide much and forcing them to would cost colour.
        """
        c, captions, t = self.config, captions_of(batch), batch["t"]
        rows = [i for i in range(0, len(t), 3) if captions[i] and t[i] < _CONTRAST_BELOW]
        if not c.word_contrast or not rows:
            return 0.0
        # Rendered captions are many and rare: the words to tell apart are those of the photos.
        rng = np.random.default_rng([c.seed, 5, self.step])
        others = other_captions([captions[i] for i in rows], self.photos.captions, rng)
        again = {name: batch[name][rows] for name in ("x", "mask", "noise", "t")}
        other, hole = self.errors(again, others)
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
