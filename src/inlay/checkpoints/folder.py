"""A checkpoint's files: a folder in diffusers' layout, read without running anything that comes
with it; its weights, and their fingerprint.

model_index.json may name only the classes listed here, so it can import nothing else, and weights
come from .safetensors files alone.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError
from inlay.pictures.write import replace_file

if TYPE_CHECKING:
    import torch

    from inlay.diffusion.text import TextStack


_CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")
_CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_T5, _T5_TOKENIZERS = ("T5EncoderModel",), ("T5Tokenizer", "T5TokenizerFast")
# Every class that a checkpoint may ask for, by part, in the order of loading; what ends in _2 may
# be absent beside a U-Net.
_UNET: Mapping[str, Sequence[str]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny", "PatchAutoencoder"),
    "text_encoder": _CLIP,
    "text_encoder_2": _CLIP,
    "tokenizer": _CLIP_TOKENIZERS,
    "tokenizer_2": _CLIP_TOKENIZERS,
}
_SD3: Mapping[str, Sequence[str]] = {
    "transformer": ("SD3Transformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": _CLIP[1:],
    "text_encoder_2": _CLIP[1:],
    "text_encoder_3": _T5,
    "tokenizer": _CLIP_TOKENIZERS,
    "tokenizer_2": _CLIP_TOKENIZERS,
    "tokenizer_3": _T5_TOKENIZERS,
}
_FLUX: Mapping[str, Sequence[str]] = {
    "transformer": ("FluxTransformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": _CLIP[:1],
    "text_encoder_2": _T5,
    "tokenizer": _CLIP_TOKENIZERS,
    "tokenizer_2": _T5_TOKENIZERS,
}
# The folders that a checkpoint may have, beside its scheduler's.
PARTS = tuple(dict.fromkeys([*_UNET, *_SD3]))
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_REMEMBERED = 500

# What folders that version 0.1 trained say; it is never imported.
_EARLIER = {"PatchAutoencoder": ["inlay.diffusion.autoencoder", "PatchAutoencoder"]}


@dataclass
class Loaded:
    """What a checkpoint consists of, on the CPU: files are its weights as (label, path).

    network is its U-Net or transformer; name is what the user gave.
    """

    name: str
    network: Any
    vae: Any
    text: TextStack
    scheduler_config: dict[str, Any]
    files: list[tuple[str, Path]]

    @property
    def hash(self) -> str:
        return fingerprint(self.files)


def read_index(folder: Path, name: str) -> dict[str, str]:
    """{part: class} out of model_index.json, every class one that is allowed."""
    if not (folder / "model_index.json").is_file():
        raise InputError(
            f"The model {name} has no model_index.json, which a checkpoint folder in diffusers' "
            "layout has."
        )
    index = read_json(folder / "model_index.json")
    layout, transformer = _UNET, index.get("transformer")
    if index.get("unet") is None and isinstance(transformer, list) and len(transformer) == 2:
        # An unknown transformer is refused by its name.
        layout = _FLUX if transformer[1] == "FluxTransformer2DModel" else _SD3
    parts = {}
    for part, allowed in layout.items():
        entry = index.get(part)
        if entry is None or entry == [None, None]:
            if layout is not _UNET or not part.endswith("_2"):
                raise InputError(
                    f"The model {name} has no {part}, but inlay runs Stable Diffusion 1.x, 2.x, "
                    "XL and 3 checkpoints and those of FLUX.1."
                )
            continue
        known = [cls for cls in allowed if entry in ([library_of(cls), cls], _EARLIER.get(cls))]
        if not known:
            raise InputError(
                f"The model {name} asks for {entry!r} as its {part}, but inlay knows "
                f"{', '.join(allowed)} there."
            )
        parts[part] = known[0]
    if ("text_encoder_2" in parts) != ("tokenizer_2" in parts):
        raise InputError(f"The model {name} needs both text_encoder_2 and tokenizer_2, or neither.")
    return parts


def library_of(cls: str) -> str:
    """The module that a class is imported from."""
    if cls == "PatchAutoencoder":
        return "inlay.diffusion.unet"
    return "transformers" if cls.startswith(("CLIP", "T5")) else "diffusers"


def weights_stem(part: str) -> str | None:
    """How the names of a part's weight files begin; None for one without weights."""
    if part.startswith("text_encoder"):
        return "model"
    return "diffusion_pytorch_model" if part in ("unet", "transformer", "vae") else None


def load_folder(folder: Path, name: str, dtype: torch.dtype) -> Loaded:
    """Load every part; network and text encoders in `dtype`, the autoencoder in float32."""
    import torch

    loaded: dict[str, Any] = {}
    used: list[tuple[str, Path]] = []
    parts = read_index(folder, name)
    config = read_scheduler(folder, name, "transformer" in parts)
    for part, class_name in parts.items():
        home, stem = folder / part, weights_stem(part)
        if not home.is_dir():
            raise InputError(f"The model {name} has no folder {part}, which its index names.")
        cls = getattr(importlib.import_module(library_of(class_name)), class_name)
        if stem is None:
            # Without these the library makes an empty tokenizer and says nothing.
            if not any((home / item).is_file() for item in ("tokenizer.json", "vocab.json")):
                raise InputError(f"The {part} of the model {name} has no vocabulary.")
            loaded[part] = cls.from_pretrained(str(home), local_files_only=True)
            continue
        loaded[part], files = load_network(
            home,
            cls,
            stem,
            f"The {part} of the model {name}",
            dtype=torch.float32 if part == "vae" else dtype,
            half=dtype == torch.float16,
        )
        used += [(f"{part}/{file.name}", file) for file in files]
    return assemble(folder, name, loaded, config, used)


def assemble(
    folder: Path,
    name: str,
    parts: Mapping[str, Any],
    config: dict[str, Any],
    files: list[tuple[str, Path]],
) -> Loaded:
    """A checkpoint of loaded parts and the scheduler's config, as its folder describes it."""
    from inlay.diffusion.flow import FlowText
    from inlay.diffusion.text import TextStack

    tokenizers, encoders = (
        [each for part, each in parts.items() if part.startswith(kind)]
        for kind in ("tokenizer", "text_encoder")
    )
    if "transformer" in parts:
        text: TextStack = FlowText(tokenizers, encoders)
    else:
        zeros = read_json(folder / "model_index.json").get("force_zeros_for_empty_prompt", True)
        text = TextStack(tokenizers, encoders, empty_is_zero=len(encoders) == 2 and bool(zeros))
    network = parts["transformer" if "transformer" in parts else "unet"]
    return Loaded(name, network, parts["vae"], text, config, files)


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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"The file {path} is missing.") from error
    except (ValueError, OSError) as error:
        raise InputError(f"The file {path} is not readable JSON.") from error
    if not isinstance(value, dict):
        raise InputError(f"The file {path} must hold a JSON object.")
    return value


def load_network(
    home: Path, cls: Any, stem: str, where: str, *, dtype: torch.dtype, half: bool
) -> tuple[Any, list[Path]]:
    """A network of diffusers' or transformers' class on the CPU, and the weight files it lay in.

    `stem` is their name's, `where` what messages call the network, half as for pick_weights().
    Raises InputError for weights that are not there, or not whole.
    """
    names = [path.name for path in home.iterdir()]
    variant, chosen = pick_weights(names, stem, half=half, where=where)
    files = [home / name for name in chosen if name.endswith(".safetensors")]
    for file in files:
        check_safetensors(file, "weight file")
    key = "dtype" if cls.__module__.startswith("transformers") else "torch_dtype"
    network, report = cls.from_pretrained(
        str(home),
        local_files_only=True,
        use_safetensors=True,
        variant=variant,
        output_loading_info=True,
        **{key: dtype},
    )
    # A library would fill in what is missing with random numbers and only warn.
    missing = sorted(name for name in report["missing_keys"] if "position_ids" not in name)
    if missing:
        raise InputError(f"{where} lacks {missing[0]}: fetch it again.")
    return network, files


def pick_weights(
    names: Iterable[str], stem: str, *, half: bool, where: str
) -> tuple[str | None, list[str]]:
    """(variant, file names) of the weights to load among a folder's file names.

    Of the plain files and the "fp16" variant the one that fits `half` is taken, else the other;
    shards and their index count as one. Raises InputError where there are only pickles, or none.
    """
    names = sorted(names)
    for variant in ("fp16", None) if half else (None, "fp16"):
        mark = f".{variant}" if variant else ""
        whole = f"{stem}{mark}.safetensors"
        if whole in names:
            return variant, [whole]
        index = f"{stem}.safetensors.index{mark}.json"
        shard = re.compile(re.escape(stem + mark) + r"-\d+-of-\d+\.safetensors")
        shards = [name for name in names if shard.fullmatch(name)]
        if index in names and shards:
            return variant, [index, *shards]
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise InputError(
            f"{where} holds its weights only as a pickle ({pickles[0]}), which can run code when "
            "opened, so inlay reads .safetensors files alone."
        )
    raise InputError(f"{where} holds no weights, but {stem}.safetensors should be there.")


def check_safetensors(path: Path, role: str) -> list[str]:
    """The tensors' names in a .safetensors file; InputError for anything that is not a whole one.

    Reads the header alone: it states the file's length, so a truncated file is found at once.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix.lower() in _PICKLES:
        raise InputError(
            f"The {role} {path} is a pickle, which can run code when opened, so inlay reads "
            ".safetensors files alone."
        )
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"The {role} {path} must be a .safetensors file.")
    if not path.is_file():
        raise InputError(f"The {role} {path} does not exist.")
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"The {role} {path} is not a whole .safetensors file (truncated, perhaps): fetch it "
            "again."
        ) from error


def fingerprint(files: Sequence[tuple[str, Path]]) -> str:
    """SHA-256 over files given as (label, path), whatever the order.

    One file: the digest of its bytes. More: the digest of the lines "DIGEST  LABEL" sorted by
    label, as sha256sum prints them. Digests are remembered by path, size and time of change, in
    INLAY_CACHE or a folder in the user's caches.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    home = os.environ.get("INLAY_CACHE") or f"{caches or Path.home() / '.cache'}/inlay"
    memory = Path(home) / "hashes.json"
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError, TypeError):
        known = dict(json.loads(memory.read_text()))
    before, lines = dict(known), []
    for label, path in sorted(files):
        stat = path.stat()
        key, mark = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
        entry = known.pop(key, None)
        if not isinstance(entry, list) or entry[:2] != mark or len(entry) != 3:
            with path.open("rb") as file:
                entry = [*mark, hashlib.file_digest(file, "sha256").hexdigest()]
        known[key] = entry
        lines.append(f"{entry[2]}  {label}\n")
    if known != before:
        text = json.dumps(dict(list(known.items())[-_REMEMBERED:]))
        # A cache that cannot be written costs time, not results.
        with suppress(OSError, InputError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            replace_file(memory, lambda file: file.writelines([text.encode()]))
    if len(lines) == 1:
        return lines[0].split()[0]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
