"""What the embedded checkpoint is made of: its recipe, networks, schedule and autoencoder."""

from __future__ import annotations

from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from safetensors.torch import load_file
from torch import nn

from inlay.diffusion.autoencoder import PatchAutoencoder
from inlay.errors import InputError
from inlay.training.corpus import Corpus, random_crop

__all__ = ["EmbeddedConfig", "Networks", "fit_autoencoder", "noise_scheduler"]


class EmbeddedConfig(BaseModel):
    """The whole recipe; it is written next to the weights it made."""

    model_config = ConfigDict(extra="forbid")

    block_out_channels: tuple[int, ...] = Field((64, 128, 256), description="U-Net widths")

    @field_validator("block_out_channels")
    @classmethod
    def _widths(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if not 2 <= len(widths) <= 5 or any(width < 16 or width % 16 for width in widths):
            raise ValueError("expected 2 to 5 widths that are multiples of 16")
        return widths

    @field_validator("text_width")
    @classmethod
    def _heads(cls, width: int) -> int:
        if width % 4:
            raise ValueError("expected a multiple of 4")
        return width

    layers_per_block: int = Field(1, ge=1, le=4, description="ResNet blocks a level")
    finest_attention: bool = Field(False, description="attention on the finest level, too")
    attention_heads: int = Field(4, ge=1, description="heads of each attention layer")
    text_width: int = Field(192, ge=32, description="width of the text model")
    text_layers: int = Field(3, ge=1, description="layers of the text model")
    resolution: int = Field(128, ge=32, description="picture side in pixels")
    low_resolution: int = Field(64, ge=32, description="picture side of the first phase")
    low_resolution_steps: int = Field(4000, ge=0, description="steps of the first phase")
    low_resolution_batch: int = Field(32, ge=1, description="batch size of the first phase")
    steps: int = Field(8000, ge=1, description="steps in all")
    batch: int = Field(16, ge=1, description="batch size at full resolution")
    optimizer: Literal["adamw", "muon"] = Field("muon", description="of the weight matrices")
    min_snr_gamma: float | None = Field(
        None, gt=0, description="weigh timesteps by min-SNR; None weighs all alike"
    )
    high_noise_share: float = Field(
        0.0, ge=0, lt=1, description="share of timesteps drawn from 600 to 999 alone"
    )
    learning_rate: float = Field(3e-4, gt=0, description="after warm-up")
    warmup_steps: int = Field(200, ge=1, description="linear warm-up")
    cooldown_share: float = Field(0.25, ge=0, le=1, description="share of steps of linear decay")
    caption_dropout: float = Field(0.15, ge=0, le=1, description="share trained without caption")
    object_mask_share: float = Field(
        0.35, ge=0, le=1, description="share of holes that hide the thing in the picture"
    )
    recolour_share: float = Field(0.15, ge=0, le=1, description="share put under another light")
    rendered: int = Field(1500, ge=0, le=20000, description="how many pictures are rendered")
    rendered_share: float = Field(
        0.1, ge=0, lt=1, description="share of samples that are rendered pictures"
    )
    start_from: str | None = Field(
        None, description="checkpoint folder, or embedded, whose weights are begun with"
    )
    word_contrast: float = Field(
        0.0, ge=0, le=10, description="weight of the loss that tells captions apart; 0 is without"
    )
    hole_weight: float = Field(0.75, ge=0, le=1, description="loss share that counts in the hole")
    channel_weight_power: float = Field(
        1.0, ge=0, le=2, description="latent channels weigh by their deviation to this power"
    )
    compile: bool | None = Field(None, description="compile the U-Net first; None does so on a GPU")
    ema_decay: float = Field(0.9995, ge=0, lt=1, description="exponential moving average")
    max_minutes: float | None = Field(None, gt=0, description="stop (resumable) after this time")
    save_every: int = Field(500, ge=1, description="steps between resumable states")
    seed: int = Field(0, description="of weights, data order, masks and noise")


class Networks(nn.Module):
    """What is trained, as one module, so that one optimiser and one EMA serve."""

    def __init__(self, config: EmbeddedConfig, vocabulary: int, end_token: int) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel
        from diffusers.models.attention_processor import AttnProcessor
        from transformers import CLIPTextConfig, CLIPTextModel

        coarser = len(config.block_out_channels) - 1
        self.unet = UNet2DConditionModel(
            sample_size=config.resolution // 4,
            in_channels=33,
            out_channels=16,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            down_block_types=(
                "CrossAttnDownBlock2D" if config.finest_attention else "DownBlock2D",
                *["CrossAttnDownBlock2D"] * coarser,
            ),
            up_block_types=(
                *["CrossAttnUpBlock2D"] * coarser,
                "CrossAttnUpBlock2D" if config.finest_attention else "UpBlock2D",
            ),
            cross_attention_dim=config.text_width,
            attention_head_dim=config.attention_heads,
            norm_num_groups=16,
        )
        if not torch.cuda.is_available():
            # Explicit attention: the fused kernel's backward is slow on CPUs.
            self.unet.set_attn_processor(AttnProcessor())
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

    def take_up(self, checkpoint: str) -> None:
        """Begin with the weights of a checkpoint folder, or of "embedded", the shipped one.

        Raises InputError when its networks are not of this shape.
        """
        folder = _folder(checkpoint)
        for part, network in (("unet", self.unet), ("text_encoder", self.text_encoder)):
            name = "diffusion_pytorch_model" if part == "unet" else "model"
            try:
                network.load_state_dict(load_file(folder / part / f"{name}.safetensors"))
            except (OSError, RuntimeError):
                raise InputError(
                    f"the {part} of {checkpoint!r} cannot be begun with; expected a checkpoint "
                    "that this command wrote, with the same widths, layers and vocabulary."
                ) from None


def _folder(checkpoint: str) -> Path:
    if checkpoint == "embedded":
        return Path(str(package_files("inlay"))) / "assets" / "embedded"
    return Path(checkpoint)


def earlier_words(folder: Path) -> Any:
    """The tokenizer that an earlier run wrote to a folder; raises InputError if it is not there."""
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError):
        raise InputError(
            f"the tokenizer in {folder} cannot be read; expected one that this command wrote."
        ) from None


def earlier_words_and_latents(checkpoint: str) -> tuple[Any, PatchAutoencoder]:
    """Tokenizer and autoencoder of a checkpoint folder, or of "embedded", the shipped one.

    Raises InputError when they cannot be read.
    """
    folder = _folder(checkpoint)
    if not (folder / "vae" / "config.json").is_file():
        raise InputError(
            f"start_from is {checkpoint!r}; expected 'embedded' or a folder with a vae."
        )
    try:
        read = PatchAutoencoder.from_pretrained(folder / "vae", local_files_only=True)
    except (OSError, ValueError, TypeError):
        raise InputError(
            f"the vae of {checkpoint!r} cannot be read; expected a checkpoint that this command "
            "wrote."
        ) from None
    c = read.config
    # A new one: diffusers notes in the config where a model was read from.
    vae = PatchAutoencoder(c.patch_size, c.latent_channels, c.scaling_factor)
    vae.load_state_dict(read.state_dict())
    return earlier_words(folder / "tokenizer"), vae


def noise_scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
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
