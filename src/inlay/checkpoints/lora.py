"""Small files that change a checkpoint: LoRA and its kin, and textual inversions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import (
    FluxLoraLoaderMixin,
    QwenImageLoraLoaderMixin,
    StableDiffusionLoraLoaderMixin,
)
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AddedToken

from inlay.checkpoints.folder import check_safetensors, parse_json, read_json
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.text import TextStack
from inlay.errors import InputError, plain, show

# A tensor's name: its layer in the words of any format, and what it is of that layer's update.
_NAME = re.compile(
    r"(?P<layer>.+?)(?:[._]lora(?:_linear_layer)?[._](?P<half>A|B|down|up|mid)(?:\.\w+)?\.weight"
    r"|\.(?P<kind>alpha|dora_scale|lora_magnitude_vector|diff|w_norm|diff_b|b_norm"
    r"|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t[12]))(?:\.\w+){0,2})"
)
# Who knows what a transformer's layers are called elsewhere.
_TRANSFORMERS: dict[str, Any] = {"Flux": FluxLoraLoaderMixin, "Qwen": QwenImageLoraLoaderMixin}
_SAME = {"A": "down", "B": "up", "lora_magnitude_vector": "dora_scale"}
_SAME |= dict.fromkeys(("w_norm", "diff_b", "b_norm"), "diff")
# How a layer's name begins, with _ for every dot: of the network, the first text encoder, the
# second, or of the first that has it.
_START = re.compile(
    r"(?:base_model_model_)?"
    r"(?:(lora_unet_|unet_|transformer_(?!blocks)|diffusion_model_)|(lora_te1?_|text_encoder_(?!2_)"
    r"|clip_l_)|(lora_te2_|text_encoder_2_|clip_g_)|lycoris_)?(?:text_model_)?"
)


@dataclass(frozen=True)
class Update:
    """What a file adds to a parameter (None: the model has no such): a product of tensors, by the
    ends of their names, times alpha over its rank (times 1 where alpha is None).
    """

    parameter: Tensor | None
    tensors: Mapping[str, Tensor]
    alpha: float | None

    def merge(self, scale: float) -> Tensor:
        """The parameter with the update, times scale, in it, of its shape and dtype.

        LoRA (Hu et al. 2021, arXiv 2106.09685), LoHa (Hyeon-Woo et al. 2021, arXiv 2108.06098),
        LoKr (Yeh et al. 2023, arXiv 2309.14859), or a plain difference; and DoRA (Liu et al. 2024,
        arXiv 2402.09353, equation 5) of any of them, where scale is how far to go. Raises KeyError
        for a tensor that is not there, and other errors for shapes that do not fit.
        """
        assert self.parameter is not None
        before = self.parameter.detach().float()
        t = {name: tensor.to(before) for name, tensor in self.tensors.items()}
        product, rank = _product(t)
        rows = product.reshape(len(product), -1)
        magnitude = t.get("dora_scale")
        fits = magnitude is None or magnitude.numel() in before.shape[:2]
        if rank == 0 or rows.shape != before.reshape(len(before), -1).shape or not fits:
            raise ValueError(rank, product.shape)
        factor = 1.0 if rank is None or self.alpha is None else self.alpha / rank
        factor *= scale if magnitude is None else 1
        whole = before + product.reshape(before.shape) * factor
        if magnitude is not None:
            # There is one for each output in most files, for each input in some.
            magnitude = magnitude.reshape(*magnitude.shape, *[1] * (before.ndim - magnitude.ndim))
            axes = [axis for axis, size in enumerate(magnitude.shape) if size == 1]
            norm = torch.linalg.vector_norm(whole, dim=axes, keepdim=True)
            whole = before.lerp((magnitude / norm * whole).reshape(before.shape), scale)
        return whole.to(self.parameter.dtype)

    def misfit(self) -> str:
        """Why it cannot be merged, in words; empty where it can. It is tried without memory."""
        if self.parameter is None:
            return "no such layer"
        try:
            replace(self, parameter=self.parameter.detach().to("meta")).merge(1.0)
        except KeyError as error:
            return f"lacks {error.args[0]}"
        except (RuntimeError, IndexError, ValueError, ZeroDivisionError, TypeError):
            return "of another shape"
        return ""


def _product(t: Mapping[str, Tensor]) -> tuple[Tensor, int | None]:
    """An update without its factor, and its rank where it has one."""
    if "diff" in t:
        return t["diff"], None
    if "hada_w1_a" in t:
        return _matrix(t, "hada_w1") * _matrix(t, "hada_w2"), len(t["hada_w1_b"])
    if "lokr_w1" in t or "lokr_w1_a" in t:
        one, two = _matrix(t, "lokr_w1"), _matrix(t, "lokr_w2")
        pair = t.get("lokr_w2_b", t.get("lokr_w1_b"))
        one = one.reshape(*one.shape, *[1] * (two.ndim - one.ndim))
        return torch.kron(one, two), None if pair is None else len(pair)
    up, down = t["up"].flatten(1), t["down"].flatten(1)
    if "mid" in t:
        return torch.einsum("pi,ij...,jr->pr...", up, t["mid"], down), len(down)
    return up @ down, len(down)


def _matrix(t: Mapping[str, Tensor], name: str) -> Tensor:
    """A factor of a product: whole, or of two of low rank, or of two round a core (Tucker)."""
    if name in t:
        return t[name]
    a, b, core = t[f"{name}_a"], t[f"{name}_b"], t.get(name.replace("_w", "_t"))
    return a @ b if core is None else torch.einsum("ij...,ip,jr->pr...", core, a, b)


def read_updates(path: Path, backbone: Backbone) -> tuple[dict[str, Update], list[Path]]:
    """A file's updates of a network and its text encoders, by its own names, in any format; and
    the files that were read.

    Of what PEFT writes of a LoRA, in its header or beside it, the numbers weigh those layers that
    have no alpha of their own; nothing else is read. Raises InputError for tensors of other kinds.
    """
    keys, network = check_safetensors(path, "LoRA"), backbone.network
    layers = _layers(network, backbone.text.encoders)
    (config, files), parts = _config(path, keys), dict[tuple[str, str], dict[str, Tensor]]()
    for name, tensor in _split(path, load_file(path), network).items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise InputError(
                f"The LoRA {path} holds {name}, which cannot be merged: it is no part of a LoRA, "
                "DoRA, LoHa or LoKr."
            )
        kind = match["kind"] or match["half"]
        if kind == "lora_magnitude_vector":
            tensor = tensor.reshape(-1, 1)
        parameter = "bias" if kind in ("diff_b", "b_norm") else "weight"
        parts.setdefault((match["layer"], parameter), {})[_SAME.get(kind, kind)] = tensor
    updates = {}
    for (name, parameter), tensors in parts.items():
        try:
            own = tensors.pop("alpha", None)
            alpha = _alpha(config, name, tensors) if own is None else float(own)
        except (TypeError, ValueError, RuntimeError, AttributeError):
            raise InputError(
                f"The LoRA {path} weighs {name} by what is no number or no name."
            ) from None
        if tensors:
            layer = _find(name, layers) or _find(_renamed(name, network.config), layers)
            known = getattr(layer, parameter, None)
            updates[f"{name}.{parameter}"] = Update(known, tensors, alpha)
    return updates, files


def _split(path: Path, tensors: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    """A transformer's LoRA in diffusers' names, where kohya's, or those of the code that the model
    was released with, join layers that are several there; others as they are.
    """
    kind = type(network).__name__
    foreign = re.compile(
        r"lora_unet_|lora_te|diffusion_model|base_model|double_blocks|single_blocks"
    )
    loader = next((cls for start, cls in _TRANSFORMERS.items() if kind.startswith(start)), None)
    if loader is None or not any(foreign.match(name) for name in tensors):
        return tensors
    if any("dora_scale" in name for name in tensors):
        raise InputError(
            f"The LoRA {path} is a DoRA for a transformer in names but diffusers' own."
        )
    split: dict[str, Tensor] = loader.lora_state_dict(dict(tensors))
    return split


def _layers(network: Any, encoders: Sequence[nn.Module]) -> dict[tuple[int, str], nn.Module]:
    """The layers of a U-Net, 0, and its text encoders, by their names with _ for every dot."""
    layers: dict[tuple[int, str], nn.Module] = {}
    for part, module in enumerate((network, *encoders)):
        for name, layer in module.named_modules():
            flat = name.replace(".", "_").removeprefix("text_model_")
            # diffusers' first files have other names for some.
            older = re.sub(r"_(q|k|v|out)_proj$", r"_to_\1", flat.removesuffix("_0"))
            layers[part, flat] = layers[part, older] = layer
    return layers


def _find(name: str, layers: Mapping[tuple[int, str], nn.Module]) -> nn.Module | None:
    flat = name.replace(".", "_").replace("_processor_", "_")
    start = _START.match(flat)
    assert start is not None
    parts = (start.lastindex - 1,) if start.lastindex else (0, 1, 2)
    known = ((part, flat[start.end() :]) for part in parts)
    return next((layers[key] for key in known if key in layers), None)


def _renamed(name: str, config: Any) -> str:
    """A layer of SDXL in diffusers' words, by what the code that it was released with, and so
    kohya, calls it; empty for others.
    """
    loader: Any = StableDiffusionLoraLoaderMixin
    flat = re.sub(r"^(lora_)?(unet|diffusion_model)_", "lora_unet_", name.replace(".", "_"))
    halves = {f"{flat}.lora_{half}.weight": None for half in ("down", "up")}
    with suppress(ValueError, LookupError):
        renamed, _ = loader.lora_state_dict(halves, unet_config=config)
        match = _NAME.fullmatch(next(iter(renamed)))
        return match["layer"] if match else ""
    return ""


def _config(path: Path, keys: Sequence[str]) -> tuple[dict[str, Any], list[Path]]:
    """What PEFT says of a LoRA in its header, or beside one with its own names; the files read."""
    beside = path.with_name("adapter_config.json")
    if any(key.startswith("base_model.") for key in keys) and beside.is_file():
        config = read_json(beside)
        if (kind := config.get("peft_type", "LORA")) != "LORA":
            raise InputError(f"The LoRA {path} is PEFT's {show(kind)}, but inlay merges its LORA.")
        return config, [path, beside]
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("lora_adapter_metadata", "{}")
    return parse_json(text, f"The header of the LoRA {path}"), [path]


def _alpha(config: Mapping[str, Any], name: str, tensors: Mapping[str, Tensor]) -> float | None:
    """A layer's alpha by PEFT's config. Its patterns must be names: no stranger's expression is
    run. Raises ValueError, TypeError or AttributeError for what is no number, or no name.
    """
    part = name.partition(".")[0]
    known = ("unet", "transformer", "text_encoder", "text_encoder_2")
    prefix = f"{part}." if part in known else ""
    patterns = dict(config.get(f"{prefix}alpha_pattern") or {})
    ends = {key.strip("^$").replace("\\.", "."): value for key, value in patterns.items()}
    if not all(re.fullmatch(r"[\w.]+", end) for end in ends):
        raise ValueError(ends)
    own = [value for end, value in ends.items() if f".{name}".endswith(f".{end}")]
    alpha = own[0] if own else config.get(f"{prefix}lora_alpha")
    if alpha is None:
        return None
    rank = len(tensors["down"]) if config.get(f"{prefix}use_rslora") is True else 1
    return float(alpha) * math.sqrt(rank)


def load_lora(path: Path, scale: float, backbone: Backbone) -> list[Path]:
    """Merge a LoRA or one of its kin, see Update, into a checkpoint, times scale; returns the files
    that were read.

    Merged, it costs nothing at run time and leaves attention processors alone. Layers that do not
    fit are left out, and the checkpoint's notes name them. Raises InputError for a file of another
    kind, and where not one layer fits.
    """
    if not math.isfinite(scale):
        raise InputError(f"The scale of the LoRA {path} must be a finite number, not {scale}.")
    updates, files = read_updates(path, backbone)
    unfit = {name: why for name, update in updates.items() if (why := update.misfit())}
    few = ", ".join(f"{name} ({why})" for name, why in list(unfit.items())[:5]) or "it has none"
    if len(unfit) == len(updates):
        raise InputError(f"The LoRA {path} was made for another model: no layer fits ({few}).")
    for name, update in updates.items():
        if name not in unfit and update.parameter is not None:
            value = update.merge(scale)
            if not bool(value.isfinite().all()):
                raise InputError(f"The LoRA {path} makes {name} infinite or no number.")
            update.parameter.data = value
    if unfit:
        many = f"{len(unfit)} of {len(updates)} layers do not fit the model and are left out"
        backbone.notes.append(plain(f"of the LoRA {path.name} {many}: {few}"))
    backbone.text.clear()
    return files


def load_textual_inversion(path: Path, text: TextStack) -> str:
    """Add the token that a textual inversion (arXiv 2208.01618) holds; returns the token.

    Formats: {token: (D,) or (n, D)} as diffusers writes it; {"emb_params": (n, D)} as WebUI
    does, and {"clip_l": (n, D1), "clip_g": (n, D2)} for SDXL, both named by their file. A prompt
    names the token once, whatever the number n of its vectors.
    """
    check_safetensors(path, "textual inversion")
    tensors = load_file(path)
    names = list(tensors) if len(tensors) == 1 else ["clip_l", "clip_g"]
    token = path.stem if names[0] in ("clip_l", "emb_params") else names[0].strip()
    vectors = [tensors[name].float() for name in names if name in tensors]
    vectors = [rows[None] if rows.ndim == 1 else rows for rows in vectors]
    widths = [int(encoder.config.hidden_size) for encoder in text.encoders]
    fits = [
        1 <= len(rows) <= 75 and rows.shape[1:] == (width,) and bool(rows.isfinite().all())
        for rows, width in zip(vectors, widths, strict=False)
    ]
    if len(vectors) != len(widths) or not all(fits):
        raise InputError(
            f"The textual inversion {path} is for {len(vectors)} text encoder(s), of the shapes "
            f"{[tuple(rows.shape) for rows in vectors]}, but this model takes 1 to 75 vectors of "
            f"{widths} finite numbers."
        )
    for number, rows in enumerate(vectors):
        _add(path, token, rows, text, number)
    text.clear()
    return token


def _add(path: Path, token: str, rows: Tensor, text: TextStack, number: int) -> None:
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
        table = encoder.get_input_embeddings().requires_grad_(False)
    with torch.no_grad():
        table.weight[ids] = rows.to(table.weight)
    text.expansions[number][ids[0]] = ids
    # Old configs say 2, and CLIP then takes the largest id for the end of the text, which is
    # no longer true with tokens added behind it.
    for module in encoder.modules():
        if getattr(module, "eos_token_id", None) is not None:
            module.eos_token_id = int(tokenizer.eos_token_id)
