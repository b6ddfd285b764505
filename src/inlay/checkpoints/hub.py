"""Checkpoints by hub id, known and fetched; and those in one file, whose settings come from there.

What is on this machine is looked up in the hub's cache as files, without the network.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

from inlay.checkpoints.folder import (
    PARTS,
    budget,
    check_safetensors,
    has_shards,
    library_of,
    pick_weights,
    read_index,
    read_tensors,
    weights_stem,
)
from inlay.errors import InputError

_log = logging.getLogger("inlay")

_TIMEOUT = 10.0
# Of a single file: what its tensors' names begin with, and what is fetched to go with it.
_SIGNATURE = "model.diffusion_model."
_FLOW = re.compile(rf"({_SIGNATURE})?(double_blocks|joint_blocks|transformer_blocks)\.")
_VAE, _TEXTS = "first_stage_model.", ("text_encoders.", "conditioner.", "cond_stage_model.")
_SETTINGS = ("model_index.json", "*/*.json", "tokenizer*/*")
_REASON = {
    "GatedRepoError": "asks you to accept its terms and log in on the Hugging Face hub first",
    "RepositoryNotFoundError": "is not on the Hugging Face hub, or not visible to you",
    "HFValidationError": "is not a hub id, such as owner/name",
}
_UNREACHED = (
    "is not in the local cache and the Hugging Face hub could not be reached: connect, or name a "
    "folder"
)


_TABLE = resources.files("inlay").joinpath("assets/checkpoints.json")
# Of each known checkpoint its name for --model, family, kind, native_size and purpose.
KNOWN: list[dict[str, Any]] = json.loads(_TABLE.read_text(encoding="utf-8"))


def hub_cache() -> Path:
    """The folder in which huggingface_hub keeps what it downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def is_cached(name: str) -> bool:
    """Whether a checkpoint is embedded, or has a snapshot with a network's weights in the cache."""
    if name == "embedded":
        return resources.files("inlay").joinpath("assets/embedded/model_index.json").is_file()
    snapshots = hub_cache() / f"models--{name.replace('/', '--')}" / "snapshots"
    try:
        return any(
            (commit / "model_index.json").is_file() and any((commit / part).glob("*.safetensors"))
            for commit in snapshots.iterdir()
            for part in ("unet", "transformer")
        )
    except OSError:
        return False


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None


def is_complete(folder: Path, half: bool) -> bool:
    """Whether a folder has a file of weights or settings for each part it names."""
    try:
        for part in read_index(folder, str(folder)):
            names = [path.name for path in (folder / part).iterdir()]
            if stem := weights_stem(part):
                chosen = pick_weights(names, stem, half=half, where=part)[1]
                # A download that broke off leaves some of the shards.
                if not has_shards(folder / part, chosen):
                    return False
        return (folder / "scheduler" / "scheduler_config.json").is_file()
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def files_to_fetch(names: Sequence[str], half: bool) -> list[str]:
    """Of a repository's file names those to fetch: settings, tokenizers, one set of weights."""
    wanted = [name for name in names if name == "model_index.json"]
    if not wanted:
        raise InputError("The repository has no model_index.json: it is no diffusers checkpoint.")
    for part in (*PARTS, "scheduler"):
        inside = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        keep = [name for name in inside if name.endswith((".json", ".txt"))]
        if inside and (stem := weights_stem(part)):
            keep += pick_weights(inside, stem, half=half, where=f"Its {part}")[1]
        wanted += [f"{part}/{name}" for name in dict.fromkeys(keep)]
    return wanted


def hub_folder(
    repo_id: str,
    complete: Callable[[Path], bool],
    wanted: Callable[[Sequence[str]], list[str]],
    what: str = "model",
) -> Path:
    """The local folder of a hub repository, of the files wanted(all its file names) alone.

    A cached copy that is complete(folder) is used without asking the network. `what` is what
    messages call it. Raises InputError where it cannot be had.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    with suppress(OSError, ValueError):
        # The index alone is asked for: whether the rest is there, complete() knows better.
        index = "model_index.json"
        cached = Path(snapshot_download(repo_id, local_files_only=True, allow_patterns=index))
        if complete(cached):
            return cached
    if constants.HF_HUB_OFFLINE:
        raise InputError(
            f"The {what} {repo_id} is not in the local cache and HF_HUB_OFFLINE forbids to "
            "fetch it: unset it or name a folder."
        )
    try:
        info = HfApi().model_info(repo_id, timeout=_TIMEOUT)
        names = wanted([file.rfilename for file in info.siblings or []])
        _log.info("downloading %s", repo_id)
        return Path(snapshot_download(repo_id, allow_patterns=names, etag_timeout=_TIMEOUT))
    except InputError:
        raise
    except Exception as error:
        # Whatever the network library of the day raises.
        kinds = [_REASON[c.__name__] for c in type(error).__mro__ if c.__name__ in _REASON]
        raise InputError(f"The {what} {repo_id} {(kinds or [_UNREACHED])[0]}.") from error


class OneFile:
    """A model in one file, whose settings and tokenizer come from a diffusers folder: that of the
    file's name beside it, else the one it lies in, else the one that diffusers knows, from the hub.

    Of a U-Net's checkpoint it holds all weights, of a transformer's those of the transformer and
    perhaps more; what it lacks is the folder's. Raises InputError for a file of another kind.
    """

    def __init__(self, path: Path) -> None:
        keys = check_safetensors(path, "model")
        self.path, self.flow = path, any(_FLOW.match(key) for key in keys)
        if not self.flow and not any(key.startswith(_SIGNATURE) for key in keys):
            raise InputError(
                f"The model {path} is not Stable Diffusion, FLUX.1 or Qwen-Image in one file; a "
                "LoRA or a textual inversion goes in beside a model."
            )
        self.weights = read_tensors(path)
        self.folder = _settings(path, self.weights)
        parts = read_index(self.folder, str(self.folder))
        if ("transformer" in parts) != self.flow or parts["vae"] == "PatchAutoencoder":
            raise InputError(
                f"The folder {self.folder} does not describe the checkpoint that the model {path} "
                "is of; put one that does, named as the file, beside it."
            )

    def holds(self, part: str) -> bool:
        """Whether the weights of a part are those of the file."""
        if not self.flow or part == "transformer":
            return True
        starts = _VAE if part == "vae" else _TEXTS
        return part != "processor" and any(key.startswith(starts) for key in self.weights)

    def load(self, part: str, class_name: str, dtype: Any) -> Any:
        """A part in a dtype, on the CPU; InputError where the file lacks some of its weights."""
        from diffusers.loaders.single_file import load_single_file_sub_model

        weights = self.weights
        if class_name.startswith("QwenImage"):
            weights = {key.removeprefix(_SIGNATURE): x for key, x in weights.items()}
        with budget([self.path], f"The {part} of the model {self.path}"):
            loaded = load_single_file_sub_model(
                library_of(class_name),
                class_name,
                part,
                weights,
                pipelines=None,
                is_pipeline_module=False,
                cached_model_config_path=str(self.folder),
                local_files_only=True,
                torch_dtype=dtype,
            )
        if weights_stem(part) and any(weight.is_meta for weight in loaded.parameters()):
            raise InputError(f"The model {self.path} lacks some of the weights of its {part}.")
        return loaded


def _settings(path: Path, weights: dict[str, Any]) -> Path:
    for folder in (path.with_suffix(""), path.parent):
        if (folder / "model_index.json").is_file():
            return folder
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    fetch: Any = fetch_diffusers_config
    repo_id = str(fetch(weights)["pretrained_model_name_or_path"])

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
