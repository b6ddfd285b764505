"""Weight files: which of a folder's are wanted, what they hold, and their fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inlay.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["check_safetensors", "fingerprint", "load_network", "pick_weights", "read_json"]

_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_REMEMBERED = 500


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
    label, as sha256sum prints them. Digests are remembered by path, size and time of change.
    """
    memory = _cache_folder() / "hashes.json"
    known: dict[str, list[object]] = {}
    with suppress(OSError, ValueError, TypeError):
        known = dict(json.loads(memory.read_text()))
    before = dict(known)
    lines = []
    for label, path in sorted(files):
        stat = path.stat()
        key, mark = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
        entry = known.pop(key, None)
        if not isinstance(entry, list) or entry[:2] != mark or len(entry) != 3:
            entry = [*mark, _digest(path)]
        known[key] = entry
        lines.append((str(entry[2]), label))
    if known != before:
        _remember(memory, dict(list(known.items())[-_REMEMBERED:]))
    if len(lines) == 1:
        return lines[0][0]
    text = "".join(f"{digest}  {label}\n" for digest, label in lines)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            state.update(chunk)
    return state.hexdigest()


def _remember(memory: Path, known: dict[str, list[object]]) -> None:
    # A cache that cannot be written costs time, not results.
    with suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=memory.parent, suffix=".tmp", delete=False
        ) as file:
            json.dump(known, file)
        os.replace(file.name, memory)


def _cache_folder() -> Path:
    """Where inlay keeps what it can make again: INLAY_CACHE, or the system's cache folder."""
    if named := os.environ.get("INLAY_CACHE"):
        return Path(named)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "inlay"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "inlay"
    if local := os.environ.get("LOCALAPPDATA"):
        return Path(local) / "inlay" / "cache"
    return Path.home() / ".cache" / "inlay"
