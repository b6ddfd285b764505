"""Image folders: their pictures, what metadata.jsonl says of each, and who is held out.

The layout is that of Hugging Face's imagefolder: a `metadata.jsonl` in the folder, whose lines are
JSON objects with the fields of Row.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, Field, ValidationError, field_validator

from inlay.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
# A folder of this name holds masks of the pictures beside it.
MASKS = "masks"
# Of metadata.jsonl, and of a line of it.
_MOST_BYTES, _MOST_LETTERS = 1 << 26, 1 << 16


class Row(BaseModel):
    """A picture of a folder: names relative to the folder, caption, and how often it is drawn.

    Of a rendered triple (tools/render_pairs.py) also: whether it is held out, the picture without
    the object, that with its object in other light, and its pose.
    """

    file_name: str
    text: str | None = None
    mask: str | None = None
    weight: float = Field(1.0, gt=0, lt=1e6)
    held_out: bool | None = None
    place: str | None = None
    other: str | None = None
    pose: str = ""

    @field_validator("file_name", "mask", "place", "other")
    @classmethod
    def _is_inside(cls, name: str | None) -> str | None:
        path = PurePosixPath(name or "")
        if path.is_absolute() or ".." in path.parts or "\0" in str(path):
            raise ValueError("not inside the folder")
        return name

    def is_held_out(self) -> bool:
        """Whether it stays out of training: as it says, else by the hash of its name."""
        return is_held_out(self.file_name) if self.held_out is None else self.held_out


def image_rows(folder: Path) -> tuple[list[Row], bool]:
    """The pictures of a folder, and whether its metadata.jsonl lists them.

    Without one they are all pictures in it and below it, by name. Raises InputError for a
    metadata.jsonl that cannot be read and for rows that are wrong.
    """
    metadata = folder / "metadata.jsonl"
    if not metadata.is_file():
        return [Row.model_construct(file_name=name) for name in picture_names(folder)], False
    try:
        if metadata.stat().st_size > _MOST_BYTES:
            raise InputError(f"{metadata} is too large; expected at most {_MOST_BYTES >> 20} MiB.")
        lines = metadata.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{metadata} cannot be read; expected lines of JSON in UTF-8.") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(Row.model_validate_json(line[:_MOST_LETTERS]))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            what = ": ".join([*map(str, first["loc"]), first["msg"]])
            raise InputError(
                f"{metadata} line {number} is wrong ({what}); expected a JSON object with "
                "file_name, a file inside the folder, and text, mask and weight where known."
            ) from None
    return rows, True


def mask_file(folder: Path, row: Row) -> Path | None:
    """The mask that metadata.jsonl names for a picture, or that lies in masks/ under its stem."""
    path = folder / (row.mask or f"{MASKS}/{PurePosixPath(row.file_name).stem}.png")
    return path if row.mask or path.is_file() else None


def is_held_out(file_name: str, share: int = 20) -> bool:
    """Whether a file belongs to the held-out split: one in `share`, by the hash of its name."""
    digest = hashlib.sha256(file_name.encode()).digest()
    return int.from_bytes(digest[:8], "big") % share == 0


def picture_names(root: Path) -> list[str]:
    """Names of the pictures below a folder, relative to it, sorted; masks/ holds none."""
    paths = (path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(
        path.as_posix()
        for path in paths
        if path.parts[0] != MASKS and not any(part.startswith(".") for part in path.parts)
    )
