"""Single-file checkpoints (.safetensors in the layout of the original Stable Diffusion code)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from inlay.checkpoints.folder import (
    Loaded,
    read_index,
    read_json,
    read_scheduler,
    text_stack,
)
from inlay.checkpoints.hub import hub_folder
from inlay.checkpoints.weights import check_safetensors
from inlay.errors import InputError

__all__ = ["load_single_file"]

_SIGNATURE = "model.diffusion_model."
_SETTINGS = ("model_index.json", "*/*.json", "tokenizer*/*")


def load_single_file(path: Path, dtype: torch.dtype) -> Loaded:
    """Load one file whose settings and tokenizer come from a diffusers folder.

    That is the folder of the file's name beside it, else the folder it lies in, else the one
    that diffusers knows for the kind of checkpoint, from the hub or its local cache.
    """
    keys = check_safetensors(path, "model")
    if not any(key.startswith(_SIGNATURE) for key in keys):
        raise InputError(
            f"The model {path} has no tensor named {_SIGNATURE}*, as a Stable Diffusion checkpoint "
            "in one file has; a LoRA or a textual inversion goes in beside a model."
        )
    folder = _settings(path)
    parts = read_index(folder, str(folder))
    if parts["vae"] != ("diffusers", "AutoencoderKL") or "unet" not in parts:
        raise InputError(f"The folder {folder} does not describe a Stable Diffusion checkpoint.")
    config = read_scheduler(folder, str(folder))
    index = read_json(folder / "model_index.json")
    # Loading by index imports the libraries it names, so only those of the parts checked above
    # may stand there; the rest is passed as absent.
    strange = [
        name
        for name, entry in index.items()
        if isinstance(entry, list)
        and name not in (*parts, "scheduler", *_ABSENT)
        and entry != [None, None]
    ]
    if strange:
        raise InputError(f"The folder {folder} names a part that inlay cannot use: {strange[0]!r}.")
    pipe = _pipeline(path, folder, dtype, "text_encoder_2" in parts)
    loaded: dict[str, Any] = {part: getattr(pipe, part) for part in parts}
    for part in ("unet", "vae"):
        if any(weight.is_meta for weight in loaded[part].parameters()):
            raise InputError(f"The model {path} lacks some of the weights of its {part}.")
    text = text_stack(loaded, bool(index.get("force_zeros_for_empty_prompt", True)))
    return Loaded(loaded["unet"], loaded["vae"], text, config, [(path.name, path)])


_ABSENT = ("safety_checker", "feature_extractor", "image_encoder")


def _pipeline(path: Path, folder: Path, dtype: torch.dtype, xl: bool) -> Any:
    import diffusers

    library: Any = diffusers
    cls = library.StableDiffusionXLPipeline if xl else library.StableDiffusionPipeline
    absent: dict[str, Any] = dict.fromkeys(_ABSENT[1:] if xl else _ABSENT)
    options: dict[str, Any] = {"config": str(folder), "local_files_only": True}
    vae = library.AutoencoderKL.from_single_file(
        str(path), subfolder="vae", torch_dtype=torch.float32, **options
    )
    return cls.from_single_file(
        str(path),
        vae=vae,
        torch_dtype=dtype,
        # A stand-in: the schedule is read from the folder, whatever sampler it names.
        scheduler=library.DDIMScheduler(steps_offset=1, clip_sample=False),
        **options,
        **absent,
    )


def _settings(path: Path) -> Path:
    for folder in (path.with_suffix(""), path.parent):
        if (folder / "model_index.json").is_file():
            return folder
    from diffusers.loaders.single_file_utils import fetch_diffusers_config
    from safetensors.torch import load_file

    fetch: Any = fetch_diffusers_config
    repo_id = str(fetch(load_file(path))["pretrained_model_name_or_path"])

    def complete(folder: Path) -> bool:
        parts = read_index(folder, repo_id)
        return all(any((folder / part).iterdir()) for part in (*parts, "scheduler"))

    try:
        return hub_folder(repo_id, complete, lambda names: list(_SETTINGS))
    except (InputError, OSError) as error:
        raise InputError(
            f"The model {path} needs the settings and tokenizer of {repo_id}, which are neither in "
            f"the local cache nor to be fetched: put such a folder, named {path.stem}, beside it."
        ) from error
