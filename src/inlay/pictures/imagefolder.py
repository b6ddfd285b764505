"""What training and benchmarks agree on about a folder of pictures: names, and who is held out."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

__all__ = ["MASKS", "SUFFIXES", "is_held_out", "picture_names"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
# A folder of this name holds masks of the pictures beside it.
MASKS = "masks"


def is_held_out(file_name: str, share: int = 20) -> bool:
    """Whether a file belongs to the held-out split: one in `share`, by the hash of its name."""
    digest = hashlib.sha256(file_name.encode()).digest()
    return int.from_bytes(digest[:8], "big") % share == 0


def picture_names(root: Path) -> list[str]:
    """Names of the pictures below a folder, relative to it, sorted; masks/ holds none."""
    names = []
    for here, folders, files in os.walk(root):
        if Path(here) == root and MASKS in folders:
            folders.remove(MASKS)
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [
            (Path(here) / file).relative_to(root).as_posix()
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        ]
    return sorted(names)
