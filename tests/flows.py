"""Small random flow-matching checkpoints in the real formats, made by the libraries' own
save_pretrained: Stable Diffusion 3, FLUX with embedded guidance, and FLUX Fill.

As in checkpoints.py the layers are wired as the real ones' are, only the widths differ, and
nothing is downloaded.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import string
import tempfile
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from checkpoints import WIDTH, clip_tokenizer, seeded, text_config
from inlay.checkpoints.load import load_backbone

LATENT = 16  # channels
T5_WIDTH = 80


def _autoencoder(scaling_factor: float, shift_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=LATENT,
        norm_num_groups=4,
        sample_size=128,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


@functools.cache
def _t5_tokenizer() -> Any:
    """Pieces of one character each, and a few words."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_letters, *string.digits, *".,'-"]
    words = ["▁a", "▁photo", "▁of", "▁cat", "▁on", "▁table", "▁the"]
    vocab = [(piece, -9.0) for piece in pieces] + [(word, -2.0) for word in words]
    return T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=512)


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(_t5_tokenizer()),
            d_model=T5_WIDTH,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
        )
    ).eval()


def build_sd3(folder: Path) -> Path:
    """Stable Diffusion 3: joint attention, two CLIP encoders and T5, 128 px."""
    with seeded(11):
        pipe = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=16,
                patch_size=2,
                in_channels=LATENT,
                out_channels=LATENT,
                num_layers=3,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=T5_WIDTH,
                caption_projection_dim=32,
                pooled_projection_dim=16 + 24,
                pos_embed_max_size=24,
                qk_norm="rms_norm",
                dual_attention_layers=(0,),
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_autoencoder(1.5305, 0.0609),
            text_encoder=CLIPTextModelWithProjection(text_config(16, 2, "quick_gelu")),
            tokenizer=clip_tokenizer(),
            text_encoder_2=CLIPTextModelWithProjection(text_config(24, 3, "gelu")),
            tokenizer_2=clip_tokenizer(),
            text_encoder_3=_t5(),
            tokenizer_3=_t5_tokenizer(),
        )
        pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def _build_flux(folder: Path, seed: int, cls: Any, in_channels: int) -> Path:
    with seeded(seed):
        pipe = cls(
            transformer=FluxTransformer2DModel(
                in_channels=in_channels,
                out_channels=4 * LATENT,
                num_layers=2,
                num_single_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=T5_WIDTH,
                pooled_projection_dim=WIDTH,
                guidance_embeds=True,
                axes_dims_rope=(4, 6, 6),
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(
                shift=3.0, use_dynamic_shifting=True, base_image_seq_len=16, max_image_seq_len=64
            ),
            vae=_autoencoder(0.3611, 0.1159),
            text_encoder=CLIPTextModel(text_config(WIDTH, 2, "quick_gelu")),
            tokenizer=clip_tokenizer(),
            text_encoder_2=_t5(),
            tokenizer_2=_t5_tokenizer(),
        )
        pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def build_flux(folder: Path) -> Path:
    """FLUX.1 [dev]: packed latents, guidance told to the network, 128 px."""
    return _build_flux(folder, 12, FluxPipeline, 4 * LATENT)


def build_flux_fill(folder: Path) -> Path:
    """FLUX.1 Fill: latent, latent of what is to stay, and the mask of each of its 8 x 8 pixels."""
    return _build_flux(folder, 13, FluxFillPipeline, 4 * (LATENT + LATENT + 64))


BUILDERS = {"sd3": build_sd3, "flux": build_flux, "flux_fill": build_flux_fill}


@functools.cache
def built(name: str) -> Path:
    """One of BUILDERS, made once a test run. Do not write into the folder: copy it."""
    root = Path(tempfile.mkdtemp(prefix="inlay-flow-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return BUILDERS[name](root / name)


@functools.cache
def loaded(name: str) -> Any:
    """built(name) through load_backbone(), once a test run: leave it as it is."""
    return load_backbone(built(name), device="cpu", dtype="float32")
