"""Small files that change a checkpoint: LoRA and textual inversions, .safetensors alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inlay.checkpoints.concept import is_concept, read_concept
from inlay.checkpoints.folder import Loaded, check_safetensors
from inlay.diffusion.text import TextStack
from inlay.errors import InputError


def load_lora(path: Path, scale: float, loaded: Loaded) -> None:
    """Merge a LoRA (Hu et al. 2021, arXiv 2106.09685) into a checkpoint of the Stable Diffusion
    1.x, 2.x or XL kind, times scale.

    The file may be in kohya's or diffusers' format, with or without layers for the text encoders.
    Merged, it costs nothing at run time and leaves attention processors alone. loaded.files are
    those of the checkpoint without any LoRA: a file that `inlay learn` wrote is for one alone.
    Raises InputError for a file of another kind or for another model.
    """
    import diffusers

    if not math.isfinite(scale):
        raise InputError(f"The scale of the LoRA {path} must be a finite number, not {scale}.")
    keys = check_safetensors(path, "LoRA")
    if is_concept(path) and read_concept(path, loaded).kind == "full":
        raise InputError(
            f"{path.name} holds a whole U-Net, which cannot be merged like a LoRA; use it as a "
            "concept, or learn the object without --full."
        )
    if not all("lora" in key or key.endswith((".alpha", ".dora_scale")) for key in keys):
        raise InputError(f"The LoRA {path} holds tensors of other kinds, so it is no LoRA file.")
    # The pipeline is a shell round our modules: its loaders know every format of LoRA file.
    library: Any = diffusers
    text = loaded.text
    shell = {"vae": None, "unet": loaded.network}
    shell["scheduler"] = library.DDIMScheduler(steps_offset=1, clip_sample=False)
    for end, encoder, tokenizer in zip(("", "_2"), text.encoders, text.tokenizers, strict=False):
        shell |= {f"text_encoder{end}": encoder, f"tokenizer{end}": tokenizer}
    if len(text.encoders) == 2:
        pipe = library.StableDiffusionXLPipeline(**shell, add_watermarker=False)
    else:
        absent = {"safety_checker": None, "feature_extractor": None}
        pipe = library.StableDiffusionPipeline(**shell, **absent, requires_safety_checker=False)
    pipe.load_lora_weights(
        str(path.parent), weight_name=path.name, adapter_name="inlay", local_files_only=True
    )
    found = [part for part, names in pipe.get_list_adapters().items() if "inlay" in names]
    if not found:
        raise InputError(f"The LoRA {path} was made for another model: not one layer fits.")
    pipe.fuse_lora(components=found, lora_scale=scale, safe_fusing=True, adapter_names=["inlay"])
    pipe.unload_lora_weights()
    text.clear()


def load_textual_inversion(path: Path, text: TextStack) -> str:
    """Add the token that a textual inversion (arXiv 2208.01618) holds; returns the token.

    Formats: {token: (D,) or (n, D)} as diffusers writes it; {"emb_params": (n, D)} as WebUI
    does, and {"clip_l": (n, D1), "clip_g": (n, D2)} for SDXL, both named by their file. A prompt
    names the token once, whatever the number n of its vectors.
    """
    from safetensors.torch import load_file

    check_safetensors(path, "textual inversion")
    tensors = load_file(path)
    if set(tensors) == {"clip_l", "clip_g"}:
        token, vectors = path.stem, [tensors["clip_l"], tensors["clip_g"]]
    elif len(tensors) == 1:
        ((token, rows),) = tensors.items()
        token, vectors = path.stem if token == "emb_params" else token, [rows]
    else:
        raise InputError(
            f"The textual inversion {path} holds {len(tensors)} tensors, but should hold one, or "
            "clip_l and clip_g for SDXL."
        )
    if len(vectors) != len(text.encoders):
        raise InputError(
            f"The textual inversion {path} is for {len(vectors)} text encoder(s), but the model "
            f"has {len(text.encoders)}."
        )
    token = token.strip()
    vectors = [v[None] if v.ndim == 1 else v for v in vectors]
    for encoder, rows in zip(text.encoders, vectors, strict=True):
        width = int(encoder.config.hidden_size)
        if rows.ndim != 2 or not 1 <= len(rows) <= 75 or rows.shape[1] != width:
            raise InputError(
                f"The textual inversion {path} has the shape {tuple(rows.shape)}, but this model "
                f"takes 1 to 75 vectors of {width} numbers."
            )
        if not bool(torch.isfinite(rows.float()).all()):
            raise InputError(f"The textual inversion {path} holds numbers that are not finite.")
    for number, rows in enumerate(vectors):
        _add(path, token, rows, text, number)
    text.clear()
    return token


def _add(path: Path, token: str, rows: Tensor, text: TextStack, number: int) -> None:
    from transformers import AddedToken

    tokenizer, encoder = text.tokenizers[number], text.encoders[number]
    names = [token, *[f"{token}_{k}" for k in range(1, len(rows))]]
    known = tokenizer.get_vocab()
    if not token or any(name in known for name in names):
        raise InputError(
            f"The textual inversion {path} names its token {token!r}, which is empty or "
            "known to the model already: give it another name."
        )
    # A token that reads as a word must not be found inside of longer words.
    word = token[0].isalnum() and token[-1].isalnum()
    tokenizer.add_tokens([AddedToken(name, single_word=word) for name in names])
    ids = [int(i) for i in tokenizer.convert_tokens_to_ids(names)]
    table = encoder.get_input_embeddings()
    if max(ids) >= table.num_embeddings:
        encoder.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
        table = encoder.get_input_embeddings()
    with torch.no_grad():
        table.weight[ids] = rows.to(table.weight)
    text.expansions[number][ids[0]] = ids
    # Old configs say 2, and CLIP then takes the largest id for the end of the text, which is
    # no longer true with tokens added behind it.
    for module in encoder.modules():
        if getattr(module, "eos_token_id", None) is not None:
            module.eos_token_id = int(tokenizer.eos_token_id)
