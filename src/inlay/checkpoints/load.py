"""Opening a checkpoint and what works beside one: embedded, a folder, a hub id or a single file."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, TypeVar

import torch

from inlay.checkpoints.folder import (
    Loaded,
    assemble,
    check_safetensors,
    fingerprint,
    library_of,
    load_folder,
    load_network,
    pick_weights,
    read_index,
    read_json,
    read_scheduler,
)
from inlay.checkpoints.lora import load_lora, load_textual_inversion
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.branches import Branch
from inlay.diffusion.flow import FlowBackbone, FlowText
from inlay.diffusion.unet import UNetBackbone
from inlay.errors import InputError

B = TypeVar("B", bound=Branch)

_ASSETS = Path(str(package_files("inlay"))) / "assets"
# The folders of the branches that are embedded.
_BRANCHES = {"harmonizer": "harmonizer", "adapter": "adapter-canny"}
_DTYPES = ("float32", "bfloat16", "float16")
_FILES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
# Of a single file: what its tensors' names begin with, and what is fetched to go with it.
_SIGNATURE = "model.diffusion_model."
_SETTINGS = ("model_index.json", "*/*.json", "tokenizer*/*")


def load_backbone(
    name_or_path: str | os.PathLike[str] = "embedded",
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    loras: Sequence[tuple[str | os.PathLike[str], float]] = (),
    textual_inversions: Sequence[str | os.PathLike[str]] = (),
) -> Backbone:
    """Load a checkpoint, with LoRA files merged into it and textual inversions added.

    name_or_path is "embedded", a diffusers folder, a hub id (owner/name; the local cache first,
    then a download), or a single .safetensors file of SD 1.x, 2.x or XL, whose settings come from
    a folder of the same name beside it, its own folder, or the hub. loras are (path, scale).
    device "auto" is cuda, else mps, else cpu; dtype "auto" is float16 on cuda and float32
    elsewhere. Raises InputError, one sentence, for anything that cannot be loaded.
    """
    place = pick_device(device)
    kind = pick_dtype(dtype, place)
    name = os.fspath(name_or_path)
    with plain_errors(f"The model {name}"):
        loaded = _load(name, kind)
    flow = isinstance(loaded.text, FlowText)
    if flow and loras:
        raise InputError(f"The model {name} is a transformer, but a LoRA is merged into a U-Net.")
    beside: list[tuple[str, Path]] = []
    for number, (path, scale) in enumerate(loras):
        file = Path(path).expanduser()
        with plain_errors(f"The LoRA {file}"):
            load_lora(file, scale, loaded)
        beside.append((f"lora {number} at {scale:g}", file))
    for number, path in enumerate(textual_inversions):
        file = Path(path).expanduser()
        with plain_errors(f"The textual inversion {file}"):
            load_textual_inversion(file, loaded.text)
        beside.append((f"textual inversion {number}", file))
    # float32 for the autoencoder: it runs once, many overflow in float16, and bfloat16 is coarser
    # than eight bits. Those that say they are safe in float16 may have it.
    if kind == torch.float16 and getattr(loaded.vae.config, "force_upcast", True) is False:
        loaded.vae.half()
    for module in (loaded.vae, loaded.network, *loaded.text.encoders):
        own_weights(module.to(place))
    with plain_errors(f"The model {name}"):
        return (FlowBackbone if flow else UNetBackbone)(
            loaded.network,
            loaded.vae,
            loaded.text,
            loaded.scheduler_config,
            name=name,
            hasher=lambda: fingerprint([*loaded.files, *beside]),
        )


def load_branch(kind: type[B], name: str, backbone: Backbone) -> B:
    """The harmonizer or T2I-Adapter "embedded" (for the embedded checkpoint), of a folder in
    diffusers' layout, as save_pretrained() writes it, or of a hub id (the local cache first, then a
    download); frozen, on the backbone's device and in its dtype.

    Weights come from .safetensors files alone. Raises InputError, one sentence, for anything that
    cannot be loaded or does not fit the backbone.
    """
    import diffusers

    where, half = f"The {kind.what} {name}", backbone.dtype == torch.float16
    stem = "diffusion_pytorch_model"

    def wanted(names: Sequence[str]) -> list[str]:
        return ["config.json", *pick_weights(names, stem, half=half, where=where)[1]]

    def complete(folder: Path) -> bool:
        return set(wanted(names := os.listdir(folder))) <= set(names)

    def fetch() -> Path:
        from inlay.checkpoints.hub import hub_folder

        return hub_folder(name, complete, wanted, kind.what)

    with plain_errors(where):
        folder = _folder(name, _ASSETS / _BRANCHES[kind.what], kind.what, fetch)
        if not (folder / "config.json").is_file():
            raise InputError(
                f"{where} has no config.json, which a {kind.class_name} in diffusers' layout has."
            )
        found = read_json(folder / "config.json").get("_class_name")
        if found != kind.class_name:
            raise InputError(f"{where} is a {found}, but only a {kind.class_name} can be used.")
        cls = getattr(diffusers, kind.class_name)
        network, files = load_network(folder, cls, stem, where, dtype=backbone.dtype, half=half)
        network.requires_grad_(False).eval().to(backbone.device)
        own_weights(network)
    labelled = [(file.name, file) for file in files]
    return kind(network, backbone, name=name, hasher=lambda: fingerprint(labelled))


def _folder(name: str, own: Path, what: str, fetch: Callable[[], Path]) -> Path:
    """The folder of "embedded", which is `own`, of a path, or of a hub id, which fetch() gives."""
    if name == "embedded":
        if not own.is_dir():
            raise InputError(
                f"The embedded {what} is not in this installation: install inlay again, or name a "
                "folder or a hub id."
            )
        return own
    if name and os.path.isdir(path := os.path.expanduser(name)):
        return Path(path)
    from inlay.checkpoints.hub import is_hub_id

    if is_hub_id(name):
        return fetch()
    kinds = "a folder, a .safetensors file" if what == "model" else "a folder"
    raise InputError(
        f"The {what} {name!r} is neither 'embedded', {kinds} nor a hub id such as owner/name."
    )


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """A torch device from "auto", "cpu", "cuda", "cuda:1", "mps"; InputError if it is not there."""
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    present = {"cuda": cuda, "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if device == "auto":
        return torch.device(next(kind for kind, count in present.items() if count))
    try:
        chosen = torch.device(device)
        there = present[chosen.type]
    except (RuntimeError, KeyError) as error:
        raise InputError(f"The device {str(device)!r} is none of auto, cpu, cuda, mps.") from error
    if (chosen.index or 0) >= there:
        raise InputError(f"The device {str(device)!r} is not on this machine: use auto or cpu.")
    return chosen


def pick_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """A torch dtype from "auto" or its name; InputError for other names."""
    if dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise InputError(f"The dtype {name!r} is none of auto, {', '.join(_DTYPES)}.")
    kind: torch.dtype = getattr(torch, name)
    return kind


def own_weights(module: torch.nn.Module) -> None:
    """Copy weights that still lie in a mapped file into memory of our own.

    Kernels round differently on memory of another alignment, so the same weights in another file
    would give other bytes; and a mapped file that is cut short later kills the process.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def _load(name: str, dtype: torch.dtype) -> Loaded:
    path = Path(name).expanduser()
    file = path.is_file() or (path.suffix.lower() in _FILES and not path.is_dir())
    if file and name != "embedded":
        return _load_file(path, name, dtype)

    def fetch() -> Path:
        from inlay.checkpoints.hub import files_to_fetch, hub_folder, is_complete

        half = dtype == torch.float16
        return hub_folder(name, partial(is_complete, half=half), partial(files_to_fetch, half=half))

    return load_folder(_folder(name, _ASSETS / "embedded", "model", fetch), name, dtype)


def _load_file(path: Path, name: str, dtype: torch.dtype) -> Loaded:
    """Load one file whose settings and tokenizer come from a diffusers folder.

    That is the folder of the file's name beside it, else the folder it lies in, else the one
    that diffusers knows for the kind of checkpoint, from the hub or its local cache.
    """
    from diffusers.loaders.single_file import load_single_file_sub_model
    from safetensors.torch import load_file

    keys = check_safetensors(path, "model")
    if not any(key.startswith(_SIGNATURE) for key in keys):
        raise InputError(
            f"The model {path} has no tensor named {_SIGNATURE}*, as a Stable Diffusion checkpoint "
            "in one file has; a LoRA or a textual inversion goes in beside a model."
        )
    folder = _settings(path)
    parts = read_index(folder, str(folder))
    if parts["vae"] != "AutoencoderKL" or "unet" not in parts:
        raise InputError(
            f"The folder {folder} does not describe a Stable Diffusion 1.x, 2.x or XL checkpoint; "
            "those of Stable Diffusion 3 and FLUX.1 are opened by their folder."
        )
    config = read_scheduler(folder, str(folder))
    weights, loaded = load_file(path), dict[str, Any]()
    for part, class_name in parts.items():
        loaded[part] = load_single_file_sub_model(
            library_of(class_name),
            class_name,
            part,
            weights,
            pipelines=None,
            is_pipeline_module=False,
            cached_model_config_path=str(folder),
            local_files_only=True,
            torch_dtype=torch.float32 if part == "vae" else dtype,
        )
    for part in ("unet", "vae"):
        if any(weight.is_meta for weight in loaded[part].parameters()):
            raise InputError(f"The model {path} lacks some of the weights of its {part}.")
    return assemble(folder, name, loaded, config, [(path.name, path)])


def _settings(path: Path) -> Path:
    for folder in (path.with_suffix(""), path.parent):
        if (folder / "model_index.json").is_file():
            return folder
    from diffusers.loaders.single_file_utils import fetch_diffusers_config
    from safetensors.torch import load_file

    from inlay.checkpoints.hub import hub_folder

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


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Turn whatever a library says of a broken file into one sentence, and mute its chatter."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    logs = [
        (log, log.get_verbosity(), log.is_progress_bar_enabled())
        for log in (diffusers_log, transformers_log)
    ]
    for log, *_ in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # Loaders raise anything, from KeyError to their own kinds, for a file that is not right.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = re.split(r"(?<=[.!?])\s", lines[0])[0][:200].rstrip(" .:")
        raise InputError(f"{what} could not be loaded ({reason}).") from error
    finally:
        for log, level, bar in logs:
            log.set_verbosity(level)
            if bar:
                log.enable_progress_bar()
