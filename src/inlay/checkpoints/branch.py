"""Networks that work beside a frozen U-Net: harmonizers and T2I-Adapters, out of folders.

They lie in folders of diffusers' layout, a config.json and .safetensors weights, as what
save_pretrained() writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

import torch

from inlay.checkpoints.hub import hub_folder, is_hub_id
from inlay.checkpoints.load import own_weights, plain_errors
from inlay.checkpoints.weights import fingerprint, load_network, pick_weights, read_json
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.control import ControlAdapter
from inlay.diffusion.harmonizer import Harmonizer
from inlay.errors import InputError

__all__ = ["load_adapter", "load_harmonizer"]

_STEM = "diffusion_pytorch_model"


@dataclass(frozen=True)
class _Sort:
    """A sort of such networks: how messages call it, diffusers' class, the embedded one's folder.

    `long` ends "which ... in diffusers' layout has".
    """

    what: str
    long: str
    class_name: str
    asset: str


_HARMONIZER = _Sort("harmonizer", "a harmonizer", "ControlNetModel", "harmonizer")
_ADAPTER = _Sort("adapter", "a T2I-Adapter", "T2IAdapter", "adapter-canny")


def load_harmonizer(name: str, backbone: Backbone) -> Harmonizer:
    """The harmonizer "embedded" (for the embedded checkpoint), of a folder in diffusers' layout,
    or of a hub id (the local cache first, then a download); frozen, in the backbone's dtype.

    Weights come from .safetensors files alone. Raises InputError, one sentence, for anything that
    cannot be loaded or does not fit the backbone.
    """
    network, hasher = _open(name, _HARMONIZER, backbone)
    return Harmonizer(network, backbone, name=name, hasher=hasher)


def load_adapter(name: str, backbone: Backbone) -> ControlAdapter:
    """The T2I-Adapter of a name, as load_harmonizer() loads harmonizers."""
    network, hasher = _open(name, _ADAPTER, backbone)
    return ControlAdapter(network, backbone, name=name, hasher=hasher)


def _open(name: str, sort: _Sort, backbone: Backbone) -> tuple[Any, Callable[[], str]]:
    """The network on the backbone's device and in its dtype, and its hasher; whether it fits the
    backbone is not looked at.
    """
    with plain_errors(f"The {sort.what} {name}"):
        folder = _folder(name, sort, backbone.dtype == torch.float16)
        network, files = _read(folder, name, sort, backbone.dtype)
        network.requires_grad_(False).eval().to(backbone.device)
        own_weights(network)
    return network, lambda: fingerprint(files)


def _folder(name: str, sort: _Sort, half: bool) -> Path:
    if name == "embedded":
        folder = Path(str(package_files("inlay"))) / "assets" / sort.asset
        if not (folder / "config.json").is_file():
            raise InputError(
                f"The embedded {sort.what} is not in this installation: name the folder or the "
                f"hub id of {sort.long}."
            )
        return folder
    path = Path(name).expanduser()
    try:
        if name and path.is_dir():
            return path
    except (OSError, ValueError):
        pass
    if is_hub_id(name):
        return hub_folder(
            name,
            lambda found: _is_complete(found, half),
            lambda names: [
                "config.json",
                *pick_weights(names, _STEM, half=half, where=f"The {sort.what} {name}")[1],
            ],
            what=sort.what,
        )
    raise InputError(
        f"The {sort.what} {name!r} is neither 'embedded', a folder nor a hub id such as owner/name."
    )


def _is_complete(folder: Path, half: bool) -> bool:
    try:
        pick_weights([path.name for path in folder.iterdir()], _STEM, half=half, where="")
    except (InputError, OSError):
        return False
    return (folder / "config.json").is_file()


def _read(
    folder: Path, name: str, sort: _Sort, dtype: torch.dtype
) -> tuple[Any, list[tuple[str, Path]]]:
    """The network on the CPU, and its weight files by label."""
    import diffusers

    if not (folder / "config.json").is_file():
        raise InputError(
            f"The {sort.what} {name} has no config.json, which {sort.long} in diffusers' layout "
            "has."
        )
    kind = read_json(folder / "config.json").get("_class_name")
    if kind != sort.class_name:
        raise InputError(
            f"The {sort.what} {name} is a {kind}, but only a {sort.class_name} can be used."
        )
    cls, where = getattr(diffusers, sort.class_name), f"The {sort.what} {name}"
    half = dtype == torch.float16
    network, files = load_network(folder, cls, _STEM, where, dtype=dtype, half=half)
    return network, [(file.name, file) for file in files]
