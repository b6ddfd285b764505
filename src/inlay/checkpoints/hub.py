"""Checkpoints by hub id: those that inlay knows by name, and how any is fetched.

What is on this machine is looked up in the hub's cache as files, without the network.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from inlay.checkpoints.folder import PARTS, pick_weights, read_index, weights_stem
from inlay.errors import InputError

_TIMEOUT = 10.0
_REASON = {
    "GatedRepoError": "asks you to accept its terms and log in on the Hugging Face hub first",
    "RepositoryNotFoundError": "is not on the Hugging Face hub, or not visible to you",
}


@dataclass(frozen=True)
class Checkpoint:
    """One known checkpoint: its name for --model, what it is, what it is for."""

    name: str
    family: str
    kind: str
    native_size: int
    purpose: str

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "cached": is_cached(self.name)}


_TABLE = resources.files("inlay").joinpath("assets/checkpoints.json")
KNOWN = tuple(Checkpoint(**row) for row in json.loads(_TABLE.read_text(encoding="utf-8")))


def hub_cache() -> Path:
    """The folder in which huggingface_hub keeps what it downloads (its own rules, in order)."""
    home = os.environ.get("HF_HOME")
    if not home:
        home = (os.environ.get("XDG_CACHE_HOME") or "~/.cache") + "/huggingface"
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(named or f"{home}/hub").expanduser()


def is_cached(name: str) -> bool:
    """Whether a checkpoint can be loaded without the network.

    For a hub id: a snapshot with a model_index.json and the network's weights is there.
    """
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

    A cached copy that is complete(folder) is used without asking the network. HF_HUB_OFFLINE is
    respected. `what` is what messages call it. Raises InputError where it cannot be had.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        with suppress(InputError, OSError, LocalEntryNotFoundError):
            # The index alone is asked for: whether the rest is there, complete() knows better.
            index = ["model_index.json"]
            cached = snapshot_download(repo_id, local_files_only=True, allow_patterns=index)
            if complete(Path(cached)):
                return Path(cached)
    except HFValidationError as error:
        raise InputError(f"The {what} {repo_id!r} is not a hub id, such as owner/name.") from error
    if constants.HF_HUB_OFFLINE:
        raise InputError(
            f"The {what} {repo_id} is not in the local cache and HF_HUB_OFFLINE forbids to "
            "fetch it: unset it or name a folder."
        )
    try:
        info = HfApi().model_info(repo_id, timeout=_TIMEOUT)
        names = wanted([file.rfilename for file in info.siblings or []])
        return Path(snapshot_download(repo_id, allow_patterns=names, etag_timeout=_TIMEOUT))
    except HfHubHTTPError as error:
        kinds = [_REASON[c.__name__] for c in type(error).__mro__ if c.__name__ in _REASON]
        reason = kinds[0] if kinds else "could not be fetched from the Hugging Face hub"
        raise InputError(f"The {what} {repo_id} {reason}.") from error
    except InputError:
        raise
    except Exception as error:
        # Whatever the network library of the day raises: there is nothing to be done about it here.
        raise InputError(
            f"The {what} {repo_id} is not in the local cache and the Hugging Face hub could not be "
            "reached: connect, or name a folder."
        ) from error
