"""What the embedded checkpoint is made of: recipe, networks, schedule, latents and words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import nn

from inlay.diffusion.backbone import Backbone
from inlay.diffusion.unet import PatchAutoencoder
from inlay.errors import InputError
from inlay.learning.samples import random_crop
from inlay.learning.settings import Decay, Optimizer, Steps, Warmup
from inlay.training.corpus import Corpus, RenderedConfig
from inlay.training.trainer import MaskedConfig

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


_START, _END = "<|startoftext|>", "<|endoftext|>"


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
    channel_weight_power: float = Field(1.0, ge=0, le=2)
    """latent channels weigh by their deviation to this power"""
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
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextConfig, CLIPTextModel

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
    from transformers import CLIPTokenizer

    try:
        tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError):
        raise InputError(
            f"the tokenizer in {folder} cannot be read; expected one that this command wrote."
        ) from None
    return tokenizer


def copy_autoencoder(vae: Any) -> PatchAutoencoder:
    """A new one: diffusers notes in the config where a model was read from."""
    c = vae.config
    copied: PatchAutoencoder = PatchAutoencoder(c.patch_size, c.latent_channels, c.scaling_factor)
    copied.load_state_dict(vae.state_dict())
    return copied


def noise_scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )


def fit_autoencoder(corpus: Corpus, seed: int, patch: int = 4) -> PatchAutoencoder:
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
    from transformers import CLIPTokenizer

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
