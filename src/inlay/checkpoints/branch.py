"""Networks that work beside a frozen U-Net: harmonizers and T2I-Adapters, out of folders.

They lie in folders of diffusers' layout, a config.json and .safetensors weights, as what
save_pretrained() writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, TypeVar

import torch

from inlay.checkpoints.folder import fingerprint, load_network, pick_weights, read_json
from inlay.checkpoints.hub import hub_folder, is_hub_id
from inlay.checkpoints.load import own_weights, plain_errors
from inlay.diffusion.backbone import Backbone, Branch
from inlay.errors import InputError

B = TypeVar("B", bound=Branch)

_STEM = "diffusion_pytorch_model"
# The folders of the embedded ones.
_ASSETS = {"harmonizer": "harmonizer", "adapter": "adapter-canny"}


def load_branch(kind: type[B], name: str, backbone: Backbone) -> B:
    """The harmonizer or T2I-Adapter "embedded" (for the embedded checkpoint), of a folder in
    diffusers' layout, or of a hub id (the local cache first, then a download); frozen, on the
    backbone's device and in its dtype.

    Weights come from .safetensors files alone. Raises InputError, one sentence, for anything that
    cannot be loaded or does not fit the backbone.
    """
    where, half = f"The {kind.what} {name}", backbone.dtype == torch.float16
    with plain_errors(where):
        folder = _folder(name, kind, where, half)
        network, files = _read(folder, kind, where, backbone.dtype)
        network.requires_grad_(False).eval().to(backbone.device)
        own_weights(network)
    labelled = [(file.name, file) for file in files]
    return kind(network, backbone, name=name, hasher=lambda: fingerprint(labelled))


def _folder(name: str, kind: type[Branch], where: str, half: bool) -> Path:
    if name == "embedded":
        folder = Path(str(package_files("inlay"))) / "assets" / _ASSETS[kind.what]
        if not (folder / "config.json").is_file():
            raise InputError(
                f"The embedded {kind.what} is not in this installation: name the folder or the "
                f"hub id of {kind.article}."
            )
        return folder
    try:
        if name and (path := Path(name).expanduser()).is_dir():
            return path
    except (OSError, ValueError):
        pass
    if not is_hub_id(name):
        raise InputError(
            f"The {kind.what} {name!r} is neither 'embedded', a folder nor a hub id such as "
            "owner/name."
        )

    def wanted(names: Sequence[str]) -> list[str]:
        return ["config.json", *pick_weights(names, _STEM, half=half, where=where)[1]]

    def complete(folder: Path) -> bool:
        try:
            return set(wanted(names := [path.name for path in folder.iterdir()])) <= set(names)
        except (InputError, OSError):
            return False

    return hub_folder(name, complete, wanted, what=kind.what)


def _read(
    folder: Path, kind: type[Branch], where: str, dtype: torch.dtype
) -> tuple[Any, list[Path]]:
    """The network on the CPU, and its weight files."""
    import diffusers

    if not (folder / "config.json").is_file():
        raise InputError(
            f"{where} has no config.json, which {kind.article} in diffusers' layout has."
        )
    found = read_json(folder / "config.json").get("_class_name")
    if found != kind.class_name:
        raise InputError(f"{where} is a {found}, but only a {kind.class_name} can be used.")
    cls, half = getattr(diffusers, kind.class_name), dtype == torch.float16
    return load_network(folder, cls, _STEM, where, dtype=dtype, half=half)
