"""Small random checkpoints in the real formats, made by the libraries' own save_pretrained.

Their layers are wired as the real ones' are; only the widths differ. Nothing is downloaded.
"""

from __future__ import annotations

import atexit
import functools
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from inlay.checkpoints.load import load_backbone
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.conditions import Conditions
from inlay.diffusion.text import Embedding
from inlay.training.embedded import train_tokenizer

WIDTH = 32  # of a text encoder
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _autoencoder(scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=128,
        scaling_factor=scaling_factor,
    )


def _unet(in_channels: int, **changes: Any) -> UNet2DConditionModel:
    settings: dict[str, Any] = {
        "sample_size": 16,
        "in_channels": in_channels,
        "out_channels": 4,
        "block_out_channels": (16, 16, 32, 32),
        "layers_per_block": 1,
        "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**settings | changes)


@functools.cache
def clip_tokenizer() -> Any:
    return train_tokenizer(["a photo of a cat on a table", "two cups of coffee"], 560)


def text_config(projection: int, layers: int, activation: str) -> CLIPTextConfig:
    tokenizer = clip_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_act=activation,
        projection_dim=projection,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _build_sd(
    folder: Path, cls: Any, unet: UNet2DConditionModel, scheduler: Any, activation: str
) -> Path:
    pipe = cls(
        vae=_autoencoder(0.18215),
        text_encoder=CLIPTextModel(text_config(WIDTH, 2, activation)),
        tokenizer=clip_tokenizer(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def build_sd1(folder: Path) -> Path:
    """Stable Diffusion 1.x: predicts epsilon, PNDM scheduler, 128 px."""
    with seeded(1):
        scheduler = PNDMScheduler(**NOISE, skip_prk_steps=True, steps_offset=1)
        return _build_sd(folder, StableDiffusionPipeline, _unet(4), scheduler, "quick_gelu")


def build_sd1_inpaint(folder: Path) -> Path:
    """Stable Diffusion 1.x inpainting: nine input channels."""
    with seeded(2):
        scheduler = DDIMScheduler(
            **NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1
        )
        return _build_sd(folder, StableDiffusionInpaintPipeline, _unet(9), scheduler, "quick_gelu")


def build_sd2_v(folder: Path) -> Path:
    """Stable Diffusion 2.x: predicts v, linear projections, heads by level."""
    with seeded(3):
        scheduler = DDIMScheduler(
            **NOISE,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type="v_prediction",
        )
        unet = _unet(4, use_linear_projection=True, attention_head_dim=[1, 1, 2, 2])
        return _build_sd(folder, StableDiffusionPipeline, unet, scheduler, "gelu")


def _build_xl(folder: Path, cls: Any, in_channels: int, **options: Any) -> Path:
    projection, ids = 24, 8
    unet = _unet(
        in_channels,
        block_out_channels=(16, 16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 1, 2],
        attention_head_dim=[1, 1, 2],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=ids,
        projection_class_embeddings_input_dim=projection + 6 * ids,
        cross_attention_dim=2 * WIDTH,
    )
    pipe = cls(
        vae=_autoencoder(0.13025),
        text_encoder=CLIPTextModel(text_config(WIDTH, 2, "quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(text_config(projection, 3, "gelu")),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**NOISE, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
        **options,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def build_sdxl(folder: Path) -> Path:
    """Stable Diffusion XL: two text encoders, pooled text and sizes as added conditions."""
    with seeded(4):
        return _build_xl(folder, StableDiffusionXLPipeline, 4)


def build_sdxl_inpaint(folder: Path) -> Path:
    """Stable Diffusion XL inpainting: nine input channels."""
    with seeded(5):
        return _build_xl(folder, StableDiffusionXLInpaintPipeline, 9)


def build_lcm(folder: Path) -> Path:
    """A latent consistency model: it is told the guidance scale."""
    with seeded(6):
        cls, unet = LatentConsistencyModelPipeline, _unet(4, time_cond_proj_dim=32)
        return _build_sd(folder, cls, unet, LCMScheduler(**NOISE), "quick_gelu")


def build_turbo(folder: Path) -> Path:
    """Stable Diffusion 2.x distilled for few steps without guidance: trailing spacing."""
    with seeded(7):
        scheduler = EulerAncestralDiscreteScheduler(**NOISE, timestep_spacing="trailing")
        unet = _unet(4, use_linear_projection=True)
        return _build_sd(folder, StableDiffusionPipeline, unet, scheduler, "gelu")


FEW_STEPS = {"lcm": build_lcm, "turbo": build_turbo}
BUILDERS = {
    "sd1": build_sd1,
    "sd1_inpaint": build_sd1_inpaint,
    "sd2_v": build_sd2_v,
    "sdxl": build_sdxl,
    "sdxl_inpaint": build_sdxl_inpaint,
}


# Of an IP-Adapter: the encoder's widths, tokens of a picture, the width of a resampler's head.
_SEEN, _POOLED, _TOKENS, _INNER = 32, 24, 4, 64


def _image_proj(kind: str, wide: int) -> dict[str, tuple[int, ...]]:
    """The shapes of what makes tokens of a picture, under the names of released files."""
    norm = {"norm.weight": (wide,), "norm.bias": (wide,)}
    if kind == "plain":
        return {"proj.weight": (_TOKENS * wide, _POOLED), "proj.bias": (_TOKENS * wide,), **norm}
    if kind == "full":
        first = {"proj.0.weight": (_SEEN, _SEEN), "proj.0.bias": (_SEEN,)}
        last = {"proj.2.weight": (wide, _SEEN), "proj.2.bias": (wide,)}
        return first | last | {"proj.3.weight": (wide,), "proj.3.bias": (wide,)}
    shapes: dict[str, tuple[int, ...]] = {"latents": (1, _TOKENS, 16)}
    layers = [("proj_in", (16, _SEEN)), ("proj_out", (wide, 16)), ("norm_out", (wide,))]
    for number in range(4):
        start = f"layers.{number}"
        layers += [(f"{start}.{norm}", (16,)) for norm in ("0.norm1", "0.norm2", "1.0")]
        shapes |= {f"{start}.0.to_q.weight": (_INNER, 16), f"{start}.0.to_kv.weight": (128, 16)}
        shapes |= {f"{start}.0.to_out.weight": (16, _INNER)}
        shapes |= {f"{start}.1.1.weight": (64, 16), f"{start}.1.3.weight": (16, 64)}
    for name, shape in layers:
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def build_ip_adapter(folder: Path, backbone: Backbone, kind: str = "plain") -> Path:
    """An IP-Adapter as released, ip.safetensors and image_encoder: plain, plus or full."""
    unet, wide = backbone.unet, int(backbone.unet.config.cross_attention_dim)
    shapes = {f"image_proj.{name}": shape for name, shape in _image_proj(kind, wide).items()}
    cross = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(cross):
        width = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for x in "kv":
            shapes[f"ip_adapter.{2 * number + 1}.to_{x}_ip.weight"] = width, wide
    folder.mkdir(parents=True, exist_ok=True)
    with seeded(7):
        save_file(
            {k: torch.randn(shape) / 2 for k, shape in shapes.items()}, folder / "ip.safetensors"
        )
        vision = CLIPVisionConfig(
            hidden_size=_SEEN,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=32,
            patch_size=8,
            projection_dim=_POOLED,
        )
        CLIPVisionModelWithProjection(vision).save_pretrained(folder / "image_encoder")
    return folder


@functools.cache
def built(name: str) -> Path:
    """One of BUILDERS, made once a test run. Do not write into the folder: copy it."""
    root = Path(tempfile.mkdtemp(prefix="inlay-checkpoint-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return {**BUILDERS, **FEW_STEPS}[name](root / name)


@functools.cache
def loaded(name: str, dtype: str = "float32") -> Backbone:
    """built(name) through load_backbone(), once a test run: leave it as it is."""
    return load_backbone(built(name), device="cpu", dtype=dtype)


def predictions(
    backbone: Backbone,
    z: torch.Tensor,
    t: int,
    text: Embedding,
    negative: Embedding | None = None,
    guidance_scale: float = 1.0,
    mask: torch.Tensor | None = None,
    masked_latent: torch.Tensor | None = None,
    **more: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(eps, x0) of a backbone's denoiser at a training timestep; `more` are further conditions."""
    conditions = Conditions(
        text, negative, guidance_scale, mask=mask, masked_latent=masked_latent, **more
    )
    return backbone.denoiser(conditions)(z, backbone.levels[t])


def raw(
    backbone: Backbone,
    z: torch.Tensor,
    t: int | torch.Tensor,
    text: Embedding,
    mask: torch.Tensor | None = None,
    masked_latent: torch.Tensor | None = None,
    **more: Any,
) -> torch.Tensor:
    """The raw output of a backbone's network, without guidance; `more` are further conditions."""
    conditions = Conditions(text, mask=mask, masked_latent=masked_latent, **more)
    return backbone.predict(z, t, conditions)


def build_single_file(folder: Path, settings: bool = True) -> Path:
    """build_sd1() as one file in the layout of the original code; with `settings` its configs
    and tokenizer lie in a folder of the same name beside it, without weights.
    """
    source, path = built("sd1"), folder / "model.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    if settings:
        skip = shutil.ignore_patterns("*.safetensors")
        shutil.copytree(source, path.with_suffix(""), ignore=skip)
    unet = load_file(source / "unet" / "diffusion_pytorch_model.safetensors")
    vae = load_file(source / "vae" / "diffusion_pytorch_model.safetensors")
    text = load_file(source / "text_encoder" / "model.safetensors")
    tensors = {f"model.diffusion_model.{_ldm_unet_key(k, 1)}": v for k, v in unet.items()}
    for key, value in vae.items():
        # Linear layers of the autoencoder's attention are 1x1 convolutions in that layout.
        linear = re.search(r"attentions\.0\.to_.*weight", key) is not None
        value = value[:, :, None, None] if linear else value
        tensors[f"first_stage_model.{_ldm_vae_key(key, 4)}"] = value
    for key, value in text.items():
        inner = key.removeprefix("text_model.")
        tensors[f"cond_stage_model.transformer.text_model.{inner}"] = value
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def _swap(key: str, pairs: dict[str, str]) -> str:
    for new, old in pairs.items():
        key = key.replace(new, old)
    return key


def _ldm_unet_key(key: str, layers: int) -> str:
    """A U-Net's key in the original layout; `layers` is its layers_per_block."""
    key = _swap(
        key,
        {
            "time_embedding.linear_1": "time_embed.0",
            "time_embedding.linear_2": "time_embed.2",
            "conv_in.": "input_blocks.0.0.",
            "conv_norm_out.": "out.0.",
            "conv_out.": "out.2.",
            "mid_block.resnets.0": "middle_block.0",
            "mid_block.attentions.0": "middle_block.1",
            "mid_block.resnets.1": "middle_block.2",
        },
    )
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", key):
        side, block, sort, layer, rest = match.groups()
        down = side == "down"
        place = int(block) * (layers + 1) + int(layer) + down
        if sort == "downsamplers":
            place, slot, rest = (int(block) + 1) * (layers + 1), 0, rest.replace("conv.", "op.")
        elif sort == "upsamplers":
            # Behind the attention, which the first (coarsest) level of SD does not have.
            place = int(block) * (layers + 1) + layers
            slot = 1 if int(block) == 0 else 2
        else:
            slot = 0 if sort == "resnets" else 1
        key = f"{'input' if down else 'output'}_blocks.{place}.{slot}.{rest}"
    if "transformer_blocks" in key:
        return key
    return _swap(
        key,
        {
            "norm1.": "in_layers.0.",
            "conv1.": "in_layers.2.",
            "norm2.": "out_layers.0.",
            "conv2.": "out_layers.3.",
            "time_emb_proj.": "emb_layers.1.",
            "conv_shortcut.": "skip_connection.",
        },
    )


def _ldm_vae_key(key: str, levels: int) -> str:
    """An autoencoder's key in the original layout."""

    def up(match: re.Match[str]) -> str:
        return f"up.{levels - 1 - int(match[1])}."

    key = re.sub(r"up_blocks\.(\d+)\.", up, re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", key))
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    return _swap(
        key,
        {
            "mid_block.attentions.0": "mid.attn_1",
            "resnets.": "block.",
            "downsamplers.0.": "downsample.",
            "upsamplers.0.": "upsample.",
            "conv_shortcut.": "nin_shortcut.",
            "group_norm.": "norm.",
            "to_q.": "q.",
            "to_k.": "k.",
            "to_v.": "v.",
            "to_out.0.": "proj_out.",
            "conv_norm_out.": "norm_out.",
        },
    )
