"""Opening a checkpoint and what works beside one: embedded, a folder, a hub id or a single file."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from diffusers.utils import logging as diffusers_log
from transformers.utils import logging as transformers_log

from inlay.checkpoints.concept import is_concept, read_concept
from inlay.checkpoints.folder import (
    Parts,
    check_safetensors,
    library_of,
    load_network,
    pick_weights,
    read_index,
    read_json,
    read_scheduler,
    read_tensors,
    weights_stem,
)
from inlay.checkpoints.hub import OneFile, files_to_fetch, hub_folder, is_complete, is_hub_id
from inlay.checkpoints.lora import load_lora, load_textual_inversion
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.branches import Branch
from inlay.diffusion.conditions import IpAdapter
from inlay.diffusion.flow import FlowBackbone, FlowText
from inlay.diffusion.qwen import QwenBackbone, QwenText
from inlay.diffusion.text import TextStack
from inlay.diffusion.unet import UNetBackbone
from inlay.errors import InputError, show
from inlay.pictures.write import replace_file

B = TypeVar("B", bound=Branch)

_ASSETS = Path(__file__).parents[1] / "assets"
# The folders of the branches that are embedded.
_BRANCHES = {"harmonizer": "harmonizer", "adapter": "adapter-canny"}
_DTYPES = ("float32", "bfloat16", "float16")
_MEMORIES = ("auto", "low", "balanced", "fast", "device")
_FILES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")
_REMEMBERED, _TICK_NS = 500, 50_000_000


def load_backbone(
    name_or_path: str | os.PathLike[str] = "embedded",
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    memory: str = "device",
    loras: Sequence[tuple[str | os.PathLike[str], float]] = (),
    textual_inversions: Sequence[str | os.PathLike[str]] = (),
) -> Backbone:
    """Load a checkpoint, with LoRA files merged into it and textual inversions added.

    name_or_path is "embedded", a diffusers folder, a hub id (owner/name; the local cache first,
    then a download), or a single .safetensors file, see hub.OneFile.
    loras are (path, scale); memory is for Backbone.place(). device "auto" is cuda, else mps, else
    cpu; dtype "auto" is float16 on cuda and float32 elsewhere. Raises InputError for anything that
    cannot be loaded.
    """
    place = pick_device(device)
    kind = pick_dtype(dtype, place)
    if memory not in _MEMORIES:
        raise InputError(f"memory is {show(memory)}; expected auto, low, balanced or fast.")
    name = os.fspath(name_or_path)
    with plain_errors(f"The model {name}"):
        parts = _load(name, kind)
        backbone = _assemble(parts, name, place, kind)
    beside: list[tuple[str, Path]] = []
    for number, (path, scale) in enumerate(loras):
        file = Path(path).expanduser()
        with plain_errors(f"The LoRA {file}"):
            if is_concept(file):
                read_concept(file, backbone)
            read = load_lora(file, scale, backbone)
        beside += zip((f"lora {number} at {scale:g}", f"lora {number} config"), read, strict=False)
    for number, path in enumerate(textual_inversions):
        file = Path(path).expanduser()
        with plain_errors(f"The textual inversion {file}"):
            load_textual_inversion(file, backbone.text)
        beside.append((f"textual inversion {number}", file))
    backbone.place(memory)
    # Concepts were learnt for a checkpoint without any of these.
    parts.files.extend(beside)
    vars(backbone).pop("hash", None)
    return backbone


def _assemble(parts: Parts, name: str, place: torch.device, dtype: torch.dtype) -> Backbone:
    """The checkpoint, its weights on the CPU still."""
    loaded, flow = parts.loaded, "transformer" in parts.loaded
    tokenizers, encoders = (
        [each for part, each in loaded.items() if part.startswith(kind)]
        for kind in ("tokenizer", "text_encoder")
    )
    vae, network = loaded["vae"], loaded["transformer" if flow else "unet"]
    # float32 for the autoencoder: it runs once, many overflow in float16, and bfloat16 is coarser
    # than eight bits. Those that say they are safe in float16 may have it.
    if dtype == torch.float16 and getattr(vae.config, "force_upcast", True) is False:
        vae.half()
    index = read_json(parts.folder / "model_index.json")
    pipeline = str(index.get("_class_name"))
    text: TextStack
    kind: type[Backbone]
    if type(network).__name__.startswith("Qwen"):
        text = QwenText(tokenizers, encoders, pipeline=pipeline, images=loaded.get("processor"))
        kind = QwenBackbone
    elif flow:
        text, kind = FlowText(tokenizers, encoders), FlowBackbone
    else:
        zeros = len(encoders) == 2 and bool(index.get("force_zeros_for_empty_prompt", True))
        text, kind = TextStack(tokenizers, encoders, empty_is_zero=zeros), UNetBackbone
    return kind(
        network,
        vae,
        text,
        parts.scheduler_config,
        name=name,
        hasher=partial(fingerprint, parts.files),
        device=place,
        edits=flow and re.search("Kontext|Edit", pipeline) is not None,
    )


def load_branch(kind: type[B], name: str, backbone: Backbone) -> B:
    """The harmonizer or T2I-Adapter "embedded" (for the embedded checkpoint), of a folder in
    diffusers' layout or of a hub id; frozen, on the backbone's device and in its dtype. Raises
    InputError for anything that cannot be loaded or does not fit the backbone.
    """
    where, half = f"The {kind.what} {name}", backbone.dtype == torch.float16
    stem = "diffusion_pytorch_model"

    def wanted(names: Sequence[str]) -> list[str]:
        return ["config.json", *pick_weights(names, stem, half=half, where=where)[1]]

    def complete(folder: Path) -> bool:
        return set(wanted(names := os.listdir(folder))) <= set(names)

    with plain_errors(where):
        fetch = partial(hub_folder, name, complete, wanted, kind.what)
        folder = _folder(name, _ASSETS / _BRANCHES[kind.what], kind.what, fetch)
        found = read_json(folder / "config.json").get("_class_name")
        if found != kind.class_name:
            raise InputError(f"{where} is a {found}, but only a {kind.class_name} can be used.")
        cls = getattr(diffusers, kind.class_name)
        network, files = load_network(folder, cls, stem, where, dtype=backbone.dtype, half=half)
        network.requires_grad_(False).eval().to(backbone.device)
    labelled = [(file.name, file) for file in files]
    return kind(network, backbone, name=name, hasher=lambda: fingerprint(labelled))


def load_ip_adapter(name: str, backbone: Backbone) -> IpAdapter:
    """The IP-Adapter of a .safetensors file with its image encoder, the folder image_encoder beside
    the file. Raises InputError as load_branch() does.
    """
    where, file = f"The IP-Adapter {name}", Path(name).expanduser()
    if backbone.family not in ("sd1", "sdxl"):
        raise InputError(
            f"{where} is for Stable Diffusion 1.x or XL, and {backbone.name} is not; leave it out."
        )
    with plain_errors(where):
        check_safetensors(file, "IP-Adapter")
        if not (home := file.parent / "image_encoder").is_dir():
            raise InputError(f"{where} needs its CLIP encoder in a folder image_encoder beside it.")
        half, cls = backbone.dtype == torch.float16, transformers.CLIPVisionModelWithProjection
        own = f"The image encoder of the IP-Adapter {name}"
        encoder, more = load_network(home, cls, "model", own, dtype=backbone.dtype, half=half)
        encoder.requires_grad_(False).eval()
        hash = fingerprint([(path.name, path) for path in (file, *more)])
        return IpAdapter(encoder, read_tensors(file, backbone.dtype), backbone, name, hash)


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


def _load(name: str, dtype: torch.dtype) -> Parts:
    path = Path(name).expanduser()
    file = path.is_file() or (path.suffix.lower() in _FILES and not path.is_dir())
    if file and name != "embedded":
        whole = OneFile(path)
        return _load_folder(whole.folder, name, dtype, whole)
    half = dtype == torch.float16
    complete, wanted = partial(is_complete, half=half), partial(files_to_fetch, half=half)
    fetch = partial(hub_folder, name, complete, wanted)
    return _load_folder(_folder(name, _ASSETS / "embedded", "model", fetch), name, dtype)


def _load_folder(
    folder: Path, name: str, dtype: torch.dtype, whole: OneFile | None = None
) -> Parts:
    """Load every part, those from one file that it holds; network and text encoders in `dtype`, the
    autoencoder in float32.
    """
    loaded: dict[str, Any] = {}
    used: list[tuple[str, Path]] = [] if whole is None else [(whole.path.name, whole.path)]
    parts = read_index(folder, name)
    config = read_scheduler(folder, name, "transformer" in parts)
    # The largest last: what libraries hold while they load the others is free again.
    for part, class_name in reversed(parts.items()):
        home, stem = folder / part, weights_stem(part)
        own = torch.float32 if part == "vae" else dtype
        if whole is not None and stem is not None and whole.holds(part):
            loaded[part] = whole.load(part, class_name, own)
            continue
        if not home.is_dir():
            raise InputError(f"The model {name} has no folder {part}, which its index names.")
        cls = getattr(import_module(library_of(class_name)), class_name)
        if part == "processor":
            # Of what it consists of, the part for pictures; that for videos needs torchvision.
            cls = import_module("transformers").Qwen2VLImageProcessorPil
            loaded[part] = cls.from_pretrained(str(home), local_files_only=True)
            continue
        if stem is None:
            # Without these the library makes an empty tokenizer and says nothing.
            if not any((home / item).is_file() for item in ("tokenizer.json", "vocab.json")):
                raise InputError(f"The {part} of the model {name} has no vocabulary.")
            loaded[part] = tokenizer = cls.from_pretrained(str(home), local_files_only=True)
            if not isinstance(length := tokenizer.model_max_length, int | float) or length < 1:
                raise InputError(
                    f"The {part} of the model {name} has {show(length)} as its model_max_length; "
                    "expected a number."
                )
            continue
        where, half = f"The {part} of the model {name}", dtype == torch.float16
        loaded[part], files = load_network(home, cls, stem, where, dtype=own, half=half)
        used += [(f"{part}/{file.name}", file) for file in files]
    return Parts(folder, {part: loaded[part] for part in parts}, config, used)


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Turn whatever a library says of a broken file into one sentence, and mute its chatter."""
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


def fingerprint(files: Sequence[tuple[str, Path]]) -> str:
    """SHA-256 over files given as (label, path), whatever the order.

    One file: the digest of its bytes. More: the digest of the lines "DIGEST  LABEL" sorted by
    label, as sha256sum prints them. Digests are remembered in INLAY_CACHE, or among the user's
    caches, until a file's inode, size or times are others: no program sets its change time back.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    home = os.environ.get("INLAY_CACHE") or f"{caches or Path.home() / '.cache'}/inlay"
    memory = Path(home) / "hashes.json"
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError, TypeError):
        known = dict(json.loads(memory.read_text()))
    before, lines = dict(known), []
    for label, path in sorted(files):
        stat, now = path.stat(), time.time_ns()
        mark = (
            f"{stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {path.resolve()}"
        )
        digest = str(known.pop(mark, ""))
        if not digest:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        # One that was written just now could be written again within a tick of its clock.
        if abs(now - stat.st_ctime_ns) > _TICK_NS:
            known[mark] = digest
        lines.append(f"{digest}  {label}\n")
    if known != before:
        text = json.dumps(dict(list(known.items())[-_REMEMBERED:]))
        # A cache that cannot be written costs time, not results.
        with suppress(OSError, InputError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            replace_file(memory, lambda file: file.writelines([text.encode()]))
    if len(lines) == 1:
        return lines[0].split()[0]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
