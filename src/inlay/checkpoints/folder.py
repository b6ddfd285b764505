"""A checkpoint's files: a folder in diffusers' layout, read without running anything that comes
with it.

model_index.json may name only the classes listed here, so it can import nothing else; weights come
from .safetensors files alone, and no config may declare far more than they hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Any, Literal

from inlay.errors import InputError, show

if TYPE_CHECKING:
    import torch
    from torch import Tensor


_CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")
_KL, _T5 = ("AutoencoderKL",), ("T5EncoderModel",)
_QWEN = ("Qwen2_5_VLForConditionalGeneration",)
_TOKENIZERS = {_T5: "T5Tokenizer", _QWEN: "Qwen2Tokenizer"}


def _layout(network: str, cls: str, vae: Sequence[str], *texts: Any) -> dict[str, Any]:
    """Every class that a checkpoint may ask for, by part, in the order of loading."""
    ends = [(text, f"_{number}" if number > 1 else "") for number, text in enumerate(texts, 1)]
    names = {end: _TOKENIZERS.get(text, "CLIPTokenizer") for text, end in ends}
    return {
        network: (cls,),
        "vae": vae,
        **{f"text_encoder{end}": text for text, end in ends},
        **{f"tokenizer{end}": (name, f"{name}Fast") for end, name in names.items()},
    }


# What ends in _2 may be absent beside a U-Net, and what shows a picture to a text encoder.
_UNET = _layout(
    "unet", "UNet2DConditionModel", (*_KL, "AutoencoderTiny", "PatchAutoencoder"), _CLIP, _CLIP
)
_SD3 = _layout("transformer", "SD3Transformer2DModel", _KL, _CLIP[1:], _CLIP[1:], _T5)
_FLUX = _layout("transformer", "FluxTransformer2DModel", _KL, _CLIP[:1], _T5)
_QWEN_IMAGE = _layout(
    "transformer", "QwenImageTransformer2DModel", ("AutoencoderKLQwenImage",), _QWEN
) | {"processor": ("Qwen2VLProcessor",)}
_LAYOUTS = {"FluxTransformer2DModel": _FLUX, "QwenImageTransformer2DModel": _QWEN_IMAGE}
# The folders that a checkpoint may have, beside its scheduler's.
PARTS = tuple(_UNET | _SD3 | _QWEN_IMAGE)
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
# Of a JSON file, and of a .safetensors file's header.
_MOST_LETTERS, _LONGEST_HEADER, _MOST_TENSORS = 1 << 22, 1 << 24, 20_000
_CONVERT = (
    "which can run code when opened, so inlay reads .safetensors files alone: where you trust it, "
    "convert it with diffusers, by from_pretrained(FOLDER) or StableDiffusionPipeline."
    "from_single_file(FILE) and then save_pretrained(NEW_FOLDER)."
)
# What a config could choose code or weights by.
_FOREIGN = (
    "attn_implementation", "_attn_implementation", "quantization_config", "transformers_weights"
)  # fmt: skip
# What folders that version 0.1 trained say; it is never imported.
_EARLIER = {"PatchAutoencoder": ["inlay.diffusion.autoencoder", "PatchAutoencoder"]}


@dataclass(frozen=True)
class Parts:
    """What a checkpoint consists of, on the CPU: its folder, networks and tokenizers by their part,
    the scheduler's config, and its weights as (label, path).
    """

    folder: Path
    loaded: Mapping[str, Any]
    scheduler_config: dict[str, Any]
    files: list[tuple[str, Path]]


def read_index(folder: Path, name: str) -> dict[str, str]:
    """{part: class} out of model_index.json, every class one that is allowed."""
    index = read_json(folder / "model_index.json")
    layout, transformer = _UNET, index.get("transformer")
    if index.get("unet") is None and isinstance(transformer, list) and len(transformer) == 2:
        # An unknown transformer is refused by its name.
        layout = _LAYOUTS.get(str(transformer[1]), _SD3)
    parts = {}
    for part, allowed in layout.items():
        entry = index.get(part)
        if entry is None or entry == [None, None]:
            if part != "processor" and (layout is not _UNET or not part.endswith("_2")):
                raise InputError(
                    f"The model {name} has no {part}, but inlay runs Stable Diffusion 1.x, 2.x, "
                    "XL and 3 checkpoints and those of FLUX.1 and Qwen-Image."
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


def family_of(name: str) -> Literal["embedded"] | None:
    """Whether a model is the embedded checkpoint or a folder of its kind; loads nothing."""
    with suppress(InputError, OSError, ValueError, RuntimeError):
        path = Path(name).expanduser()
        if name == "embedded" or "PatchAutoencoder" in read_index(path, name).values():
            return "embedded"
    return None


def library_of(cls: str) -> str:
    """The module that a class is imported from."""
    if cls == "PatchAutoencoder":
        return "inlay.diffusion.unet"
    return "transformers" if cls.startswith(("CLIP", "T5", "Qwen2")) else "diffusers"


def weights_stem(part: str) -> str | None:
    """How the names of a part's weight files begin; None for one without weights."""
    if part.startswith("text_encoder"):
        return "model"
    return "diffusion_pytorch_model" if part in ("unet", "transformer", "vae") else None


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
    if not (isinstance(steps, int) and 1 <= steps <= 100_000):
        raise InputError(f"The model {name} states {steps!r} training timesteps, not 1 to 100000.")
    return config


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError for anything else."""
    if not path.is_file():
        raise InputError(f"The folder {path.parent} has no {path.name}.")
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        return parse_json(file.read(_MOST_LETTERS + 1), f"The file {path}")
    return parse_json("", f"The file {path}")


def parse_json(text: str, where: str, most: int = _MOST_LETTERS) -> dict[str, Any]:
    """A JSON object of at most so many letters; InputError for anything else."""
    with suppress(ValueError, RecursionError):
        if len(text) <= most and isinstance(value := json.loads(text), dict):
            return value
    raise InputError(f"{where} is not readable JSON: a JSON object is needed.")


def load_network(
    home: Path, cls: Any, stem: str, where: str, *, dtype: torch.dtype, half: bool
) -> tuple[Any, list[Path]]:
    """A network of diffusers' or transformers' class on the CPU, and the weight files it lay in.

    `stem` is their name's, `where` what messages call the network, half as for pick_weights().
    Raises InputError for weights that are not there, or not whole.
    """
    names, config = [path.name for path in home.iterdir()], read_json(home / "config.json")
    if "adapter_config.json" in names or any(config.get(key) for key in _FOREIGN):
        raise InputError(
            f"{where} comes with an adapter_config.json, or {', '.join(_FOREIGN)} in its "
            "config.json, which would change it unseen: take that out, or give an adapter as a "
            "LoRA."
        )
    # What transformers' networks are told stands in a class of its own.
    told = signature(getattr(cls, "config_class", cls).__init__).parameters
    for key, value in config.items():
        default = told[key].default if key in told else None
        none = value is None and isinstance(default, float)
        if none or (isinstance(default, int | float) and isinstance(value, str | dict)):
            raise InputError(f"{where} has {show(value)} as its {key}; expected a number.")
        if isinstance(default, str) and isinstance(value, int | float | dict | list):
            raise InputError(f"{where} has {show(value)} as its {key}; expected a word.")
    variant, chosen = pick_weights(names, stem, half=half, where=where)
    if not has_shards(home, chosen):
        raise InputError(f"{where} has an index of files that are not there: fetch it again.")
    files = [home / name for name in chosen if name.endswith(".safetensors")]
    for file in files:
        check_safetensors(file, "weight file")
    mapped = cls.__module__.startswith("transformers")
    key = "dtype" if mapped else "torch_dtype"
    with budget(files, where), _reading(dtype):
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
    for tensor in (*network.parameters(), *network.buffers()) if mapped else ():
        tensor.data = tensor.data.clone()
    return network, files


@contextmanager
def _reading(dtype: torch.dtype) -> Iterator[None]:
    """Inside, this thread's weight files are read by read_tensors(), which diffusers maps."""
    from safetensors import torch as library

    read, thread = library.load_file, get_ident()

    def load_file(path: Path, device: Any = "cpu") -> dict[str, Tensor]:
        return read_tensors(path, dtype) if get_ident() == thread else read(path, device)

    library.load_file = load_file
    try:
        yield
    finally:
        library.load_file = read


def read_tensors(path: str | Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of a .safetensors file that was checked, in memory of their own, and of a dtype
    but for whole numbers.

    Kernels round differently on memory of another alignment, so the same weights in another file
    would give other bytes; a mapped file that is cut short later kills the process; and of a copy
    of one twice as much is held.
    """
    import torch
    from safetensors import torch as library

    tensors: dict[str, Tensor] = {}
    with Path(path).open("rb") as file:
        start = 8 + (length := int.from_bytes(file.read(8), "little"))
        header = parse_json(file.read(length).decode(), f"The header of {path}", _LONGEST_HEADER)
        header.pop("__metadata__", None)
        for name, told in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            tensor = torch.empty(told["shape"], dtype=library._TYPES[told["dtype"]])
            file.seek(start + told["data_offsets"][0])
            if tensor.numel():
                file.readinto(tensor.reshape(-1).view(torch.uint8).numpy())
            tensors[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return tensors


def budget(files: Sequence[Path], where: str) -> AbstractContextManager[Any]:
    """Inside, far more tensors than those of the files cannot be made: a config may declare any
    number of layers of any width. Then InputError is raised.
    """
    from torch import Tensor
    from torch.overrides import TorchFunctionMode

    # Each number is handled about 15 times while it is loaded, and has one byte at least.
    left = 32 * sum(path.stat().st_size for path in files) + (1 << 25)

    class Budget(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal left
            result = func(*args, **(kwargs or {}))
            left -= 4096 + result.numel() if isinstance(result, Tensor) else 0
            if left < 0:
                raise InputError(
                    f"{where} has a config.json that declares far more weights than its files "
                    "hold: fetch it again."
                )
            return result

    return Budget()


def has_shards(home: Path, names: Sequence[str]) -> bool:
    """Whether the files that an index among a folder's file names lists are all among them."""
    indices = [read_json(home / name) for name in names if name.endswith(".json")]
    return all(set(map(str, index["weight_map"].values())) <= set(names) for index in indices)


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
        if (whole := f"{stem}{mark}.safetensors") in names:
            return variant, [whole]
        index = f"{stem}.safetensors.index{mark}.json"
        shard = re.escape(stem + mark) + r"-\d+-of-\d+\.safetensors"
        shards = [name for name in names if re.fullmatch(shard, name)]
        if index in names and shards:
            return variant, [index, *shards]
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise InputError(f"{where} holds its weights only as a pickle ({pickles[0]}), {_CONVERT}")
    raise InputError(f"{where} holds no weights, but {stem}.safetensors should be there.")


def check_safetensors(path: Path, role: str) -> list[str]:
    """The tensors' names in a .safetensors file; InputError for anything that is not a whole one.
    Reads the header alone: it states the file's length, so a truncated file is found at once.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix.lower() in _PICKLES:
        raise InputError(f"The {role} {path} is a pickle, {_CONVERT}")
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"The {role} {path} must be a .safetensors file.")
    if not path.is_file():
        raise InputError(f"The {role} {path} does not exist.")
    try:
        with path.open("rb") as raw:
            if int.from_bytes(raw.read(8), "little") > _LONGEST_HEADER:
                raise ValueError(path)
        # Its keys need no torch.
        with safe_open(path, "np") as file:
            if len(names := list(file.keys())) <= _MOST_TENSORS:
                return names
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"The {role} {path} is not a whole .safetensors file (truncated, perhaps): fetch it "
            "again."
        ) from error
    raise InputError(f"The {role} {path} holds {len(names)} tensors, as no model does.")
