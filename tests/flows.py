"""Small random flow-matching checkpoints in the real formats, made by the libraries' own
save_pretrained: Stable Diffusion 3, FLUX with embedded guidance, FLUX Fill and Kontext, Qwen-Image
and Qwen-Image-Edit.

As in checkpoints.py the layers are wired as the real ones' are, only the widths differ, and
nothing is downloaded.
"""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import string
import tempfile
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
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


def build_flux_kontext(folder: Path) -> Path:
    """FLUX.1 Kontext: [dev]'s transformer, which reads a picture behind its own tokens."""
    return _build_flux(folder, 14, FluxKontextPipeline, 4 * LATENT)


@functools.cache
def _qwen_tokenizer() -> Any:
    """Single bytes, with the words that the sentences are marked by."""
    from tokenizers.pre_tokenizers import ByteLevel

    marks = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    letters = ["<|endoftext|>", *sorted(ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return tokenizer


def build_qwen(folder: Path) -> Path:
    """Qwen-Image: a transformer that Qwen2.5-VL reads prompts for, an autoencoder for films."""
    tokenizer = _qwen_tokenizer()
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{mark}|>")
        for name, mark in (
            ("image", "image_pad"), ("vision_start", "vision_start"), ("vision_end", "vision_end")
        )
    }  # fmt: skip
    sizes = {"hidden_size": 32, "intermediate_size": 48}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    text = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    text |= {"vocab_size": len(tokenizer), "rope_parameters": rope, "max_position_embeddings": 4096}
    text |= {"bos_token_id": 0, "eos_token_id": 0, **sizes}
    vision = {"depth": 2, "num_heads": 2, "out_hidden_size": 32, "fullatt_block_indexes": [1]}
    config = Qwen2_5_VLConfig(text_config=text, vision_config={**vision, **sizes}, **ids)
    with seeded(15):
        pipe = QwenImagePipeline(
            transformer=QwenImageTransformer2DModel(
                in_channels=4 * LATENT,
                out_channels=LATENT,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                axes_dims_rope=(4, 6, 6),
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True, base_image_seq_len=16, max_image_seq_len=64,
                max_shift=0.9, shift_terminal=0.02,
            ),
            vae=AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1),
            text_encoder=Qwen2_5_VLForConditionalGeneration(config).eval(),
            tokenizer=tokenizer,
        )  # fmt: skip
        pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def build_qwen_edit(folder: Path) -> Path:
    """Qwen-Image-Edit: Qwen-Image's parts, and what makes patches of a picture."""
    shutil.copytree(built("qwen"), folder)
    Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 16).save_pretrained(
        folder / "processor"
    )
    _qwen_tokenizer().save_pretrained(folder / "processor")
    index = folder / "model_index.json"
    parts = json.loads(index.read_text()) | {"_class_name": "QwenImageEditPipeline"}
    parts |= {"processor": ["transformers", "Qwen2VLProcessor"]}
    index.write_text(json.dumps(parts))
    return folder


BUILDERS = {
    "sd3": build_sd3,
    "flux": build_flux,
    "flux_fill": build_flux_fill,
    "flux_kontext": build_flux_kontext,
    "qwen": build_qwen,
    "qwen_edit": build_qwen_edit,
}


def one_file(folder: Path) -> Path:
    """The transformer of built("qwen") in one file, by ComfyUI's names; the folder of the file's
    name beside it has the rest.
    """
    path, source = folder / "model.safetensors", built("qwen")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, path.with_suffix(""))
    (file,) = (path.with_suffix("") / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    file.unlink()
    save_file({f"model.diffusion_model.{key}": x for key, x in tensors.items()}, path)
    return path


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
