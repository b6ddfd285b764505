"""A checkpoint in diffusers' folder layout, read without running anything that comes with it.

model_index.json may name only the classes listed here, so it can import nothing else, and weights
come from .safetensors files alone.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from inlay.checkpoints.weights import load_network, pick_weights, read_json
from inlay.diffusion.flow import FlowText
from inlay.diffusion.text import TextStack
from inlay.errors import InputError

__all__ = ["Loaded", "is_complete", "load_folder", "read_index", "read_scheduler", "text_stack"]

_Classes = tuple[tuple[str, str], ...]

_TEXT = (("transformers", "CLIPTextModel"), ("transformers", "CLIPTextModelWithProjection"))
_TOKENIZERS = (("transformers", "CLIPTokenizer"), ("transformers", "CLIPTokenizerFast"))
# Every class that a checkpoint may ask for, by part.
_CLASSES: dict[str, _Classes] = {
    "unet": (("diffusers", "UNet2DConditionModel"),),
    "vae": (
        ("diffusers", "AutoencoderKL"),
        ("diffusers", "AutoencoderTiny"),
        ("inlay.diffusion.autoencoder", "PatchAutoencoder"),
    ),
    "text_encoder": _TEXT,
    "text_encoder_2": _TEXT,
    "tokenizer": _TOKENIZERS,
    "tokenizer_2": _TOKENIZERS,
}
_REQUIRED = ("unet", "vae", "text_encoder", "tokenizer")
_T5 = (("transformers", "T5EncoderModel"),)
_T5_TOKENIZERS = (("transformers", "T5Tokenizer"), ("transformers", "T5TokenizerFast"))
# The same for a flow-matching checkpoint, all of whose parts are required, by its transformer.
_FLOW_CLASSES: dict[str, dict[str, _Classes]] = {
    "SD3Transformer2DModel": {
        "transformer": (("diffusers", "SD3Transformer2DModel"),),
        "vae": _CLASSES["vae"][:1],
        "text_encoder": _TEXT[1:],
        "text_encoder_2": _TEXT[1:],
        "text_encoder_3": _T5,
        "tokenizer": _TOKENIZERS,
        "tokenizer_2": _TOKENIZERS,
        "tokenizer_3": _T5_TOKENIZERS,
    },
    "FluxTransformer2DModel": {
        "transformer": (("diffusers", "FluxTransformer2DModel"),),
        "vae": _CLASSES["vae"][:1],
        "text_encoder": _TEXT[:1],
        "text_encoder_2": _T5,
        "tokenizer": _TOKENIZERS,
        "tokenizer_2": _T5_TOKENIZERS,
    },
}
_STEMS = {
    "unet": "diffusion_pytorch_model",
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "text_encoder_3": "model",
}


@dataclass
class Loaded:
    """What a checkpoint consists of, on the CPU: files are its weights as (label, path).

    network is its U-Net, or the transformer of a flow-matching checkpoint.
    """

    network: Any
    vae: Any
    text: TextStack
    scheduler_config: dict[str, Any]
    files: list[tuple[str, Path]] = field(default_factory=list)


def read_index(folder: Path, name: str) -> dict[str, tuple[str, str]]:
    """{part: (library, class)} out of model_index.json, every class one that is allowed."""
    if not (folder / "model_index.json").is_file():
        raise InputError(
            f"The model {name} has no model_index.json, which a checkpoint folder in diffusers' "
            "layout has."
        )
    index = read_json(folder / "model_index.json")
    classes, required = _classes(index)
    parts = {}
    for part, allowed in classes.items():
        entry = index.get(part)
        if entry is None or entry == [None, None]:
            if part in required:
                raise InputError(
                    f"The model {name} has no {part}, but inlay runs Stable Diffusion 1.x, 2.x, "
                    "XL and 3 checkpoints and those of FLUX.1."
                )
            continue
        known = {list_name[1]: list_name for list_name in allowed if list(list_name) == entry}
        if not known:
            names = ", ".join(pair[1] for pair in allowed)
            raise InputError(
                f"The model {name} asks for {entry!r} as its {part}, but inlay knows {names} there."
            )
        parts[part] = next(iter(known.values()))
    if ("text_encoder_2" in parts) != ("tokenizer_2" in parts):
        raise InputError(f"The model {name} needs both text_encoder_2 and tokenizer_2, or neither.")
    return parts


def _classes(index: dict[str, Any]) -> tuple[dict[str, _Classes], Collection[str]]:
    """The parts that such an index may name, each with its classes, and those it must name."""
    transformer = index.get("transformer")
    if index.get("unet") is None and isinstance(transformer, list) and len(transformer) == 2:
        # An unknown transformer is refused by its name.
        flow = _FLOW_CLASSES.get(str(transformer[1])) or next(iter(_FLOW_CLASSES.values()))
        return flow, flow
    return _CLASSES, _REQUIRED


def load_folder(folder: Path, name: str, dtype: torch.dtype) -> Loaded:
    """Load every part; network and text encoders in `dtype`, the autoencoder in float32."""
    loaded: dict[str, Any] = {}
    used: list[tuple[str, Path]] = []
    parts = read_index(folder, name)
    flow = "transformer" in parts
    config = read_scheduler(folder, name, flow)
    for part, (library, class_name) in parts.items():
        home = folder / part
        if not home.is_dir():
            raise InputError(f"The model {name} has no folder {part}, which its index names.")
        cls = getattr(importlib.import_module(library), class_name)
        if part not in _STEMS:
            # Without these the library makes an empty tokenizer and says nothing.
            if not any((home / item).is_file() for item in ("tokenizer.json", "vocab.json")):
                raise InputError(f"The {part} of the model {name} has no vocabulary.")
            loaded[part] = cls.from_pretrained(str(home), local_files_only=True)
            continue
        loaded[part], files = load_network(
            home,
            cls,
            _STEMS[part],
            f"The {part} of the model {name}",
            dtype=torch.float32 if part == "vae" else dtype,
            half=dtype == torch.float16,
        )
        used += [(f"{part}/{file.name}", file) for file in files]
    if flow:
        encoders = [loaded[part] for part in parts if part.startswith("text_encoder")]
        tokenizers = [loaded[part] for part in parts if part.startswith("tokenizer")]
        text: TextStack = FlowText(tokenizers, encoders)
        return Loaded(loaded["transformer"], loaded["vae"], text, config, used)
    index = read_json(folder / "model_index.json")
    text = text_stack(loaded, bool(index.get("force_zeros_for_empty_prompt", True)))
    return Loaded(loaded["unet"], loaded["vae"], text, config, used)


def text_stack(parts: dict[str, Any], empty_is_zero: bool) -> TextStack:
    """The text side of loaded parts: one encoder, or SDXL's two."""
    two = "text_encoder_2" in parts
    names = ("", "_2") if two else ("",)
    return TextStack(
        [parts[f"tokenizer{suffix}"] for suffix in names],
        [parts[f"text_encoder{suffix}"] for suffix in names],
        penultimate=two,
        empty_is_zero=two and empty_is_zero,
    )


def read_scheduler(folder: Path, name: str, flow: bool = False) -> dict[str, Any]:
    """The scheduler's config; InputError for noise that is not of the DDPM kind, or with `flow`
    not that of flow matching.
    """
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    kind = str(config.get("_class_name", ""))
    if flow and kind != "FlowMatchEulerDiscreteScheduler":
        raise InputError(
            f"The model {name} has a transformer and the scheduler {kind!r}, but inlay runs those "
            "with a FlowMatchEulerDiscreteScheduler."
        )
    if not flow and ("FlowMatch" in kind or "EDM" in kind or config.get("use_flow_sigmas")):
        raise InputError(
            f"The model {name} has a U-Net that was trained for {kind}, but inlay runs U-Nets of "
            "the DDPM kind, such as those of Stable Diffusion 1.x, 2.x and XL."
        )
    steps = config.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or not 1 <= steps <= 100_000:
        raise InputError(f"The model {name} states {steps!r} training timesteps, not 1 to 100000.")
    return config


def is_complete(folder: Path, half: bool) -> bool:
    """Whether a folder has a file of weights or settings for each part it names."""
    try:
        for part in read_index(folder, str(folder)):
            names = [path.name for path in (folder / part).iterdir()]
            if part in _STEMS:
                chosen = pick_weights(names, _STEMS[part], half=half, where=part)[1]
                for index in (name for name in chosen if name.endswith(".json")):
                    # A download that broke off leaves some of the shards.
                    shards = json.loads((folder / part / index).read_text())["weight_map"]
                    if not set(shards.values()) <= set(names):
                        return False
        return (folder / "scheduler" / "scheduler_config.json").is_file()
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def files_to_fetch(names: Sequence[str], half: bool) -> list[str]:
    """Of a repository's file names those to fetch: settings, tokenizers, one set of weights."""
    wanted = [name for name in names if name == "model_index.json"]
    if not wanted:
        raise InputError("The repository has no model_index.json: it is no diffusers checkpoint.")
    for part in (*_STEMS, "tokenizer", "tokenizer_2", "tokenizer_3", "scheduler"):
        inside = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        keep = [name for name in inside if name.endswith((".json", ".txt"))]
        if part in _STEMS and inside:
            keep += pick_weights(inside, _STEMS[part], half=half, where=f"Its {part}")[1]
        wanted += [f"{part}/{name}" for name in dict.fromkeys(keep)]
    return wanted
