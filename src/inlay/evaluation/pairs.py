"""A pair, and what the layouts of data sets have in common: photos, masks, boxes, requests.

What is missing or odd becomes a sentence in a list of problems, and never an exception.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from operator import methodcaller
from pathlib import Path
from typing import Annotated, Any

from PIL import Image as PILImage
from pydantic import BaseModel, Field, ValidationError

from inlay.errors import InputError, show
from inlay.learning.folder import SUFFIXES
from inlay.pictures.arrays import Box, bounds
from inlay.pictures.mask import read_mask
from inlay.pictures.write import replace_file
from inlay.request import Request

# What stands under these names beside photos was made, or is the truth: never a photo of its own.
MADE = ("composite", "composite_mask", "truth", "result")
_PHOTOS = tuple(suffix for suffix in SUFFIXES if suffix != ".png")
_ORIENTATION, _TURNED = 0x0112, range(5, 9)

Size = tuple[int, int]
Problems = list[str]


@dataclass(frozen=True)
class Pair:
    """What is asked of a method once, and what its result is judged by.

    name: unique in its data set, fit for a file. request: all but method, seed and model; its
    background, or the picture to harmonize, is a file. references: photos of the object;
    reference_masks, one each: white where it is, None where nobody says. box: where the object goes
    or is, in pixels of the background; its end is exclusive. truth: a photo of what ought to come
    out; truth_mask: white where the object is in it. prompt: what the authors write of the result.
    """

    name: str
    category: str
    request: Request
    references: tuple[Path, ...]
    reference_masks: tuple[Path | None, ...]
    box: Box
    truth: Path | None = None
    truth_mask: Path | None = None
    prompt: str = ""

    @property
    def background(self) -> Path:
        """The picture that is worked on: a background, or what is harmonized or rid of a thing."""
        given = self.request.inputs()
        return Path(given.get("background") or given["picture"])


class Beside(BaseModel, coerce_numbers_to_str=True):
    """What a manifest's row says beside its request."""

    category: str = "object"
    prompt: str = ""
    references: list[Annotated[str, Field(min_length=1)]] | None = None
    reference_masks: list[str | None] | None = None
    truth: str | None = None
    truth_mask: str | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Beside:
        try:
            return cls.model_validate(told)
        except ValidationError as error:
            key = error.errors()[0]["loc"][0]
            raise InputError(f"{key} is wrong; expected text, or a list of it.") from None


def compose_pair(
    labels: Sequence[str],
    place: Path,
    photos: Sequence[Path],
    box: Box,
    *,
    masks: Sequence[Path | None] | None = None,
    category: str = "",
    truth: Path | None = None,
    truth_mask: Path | None = None,
    prompt: str = "",
) -> Pair:
    """A pair that composes the object of the first photo into a box of `place`."""
    masks = [mask_beside(photo) for photo in photos] if masks is None else masks
    first = {"picture": str(photos[0]), "box": [box.x, box.y, box.width, box.height]}
    first |= {"mask": str(masks[0])} if masks[0] else {}
    request = Request.of({"verb": "compose", "background": str(place), "subjects": [first]})
    paths = tuple(photos), tuple(masks)
    category = category or labels[0]
    return Pair(slug(*labels), category, request, *paths, box, truth, truth_mask, prompt)


def harmonize_pair(
    labels: Sequence[str],
    composite: Path,
    mask: Path,
    truth: Path | None,
    background: Path | None,
    problems: Problems,
) -> Pair | None:
    """A pair that harmonizes what a mask marks in a composite."""
    if not (box := marked(mask, composite, problems)):
        return None
    told = {"verb": "harmonize", "picture": str(composite), "mask": str(mask)}
    told |= {"background": str(background)} if background else {}
    return Pair(slug(*labels), labels[0], Request.of(told), (), (), box, truth, mask)


def slug(*words: str, keep: str = "") -> str:
    """Words as one name of a file, of 150 bytes at most; `keep` are signs that stay."""
    name = re.sub(rf"[^\w.{keep}-]+", "_", "-".join(words)).strip(".")
    return name.encode("utf-8", "ignore")[:150].decode("utf-8", "ignore") or "_"


def folders(root: Path, pattern: str = "*") -> list[Path]:
    return sorted(path for path in root.glob(pattern) if path.is_dir() and path.name[0] != ".")


def pictures_of(folder: Path) -> list[Path]:
    """The pictures of a folder in the order of the numbers in their names, then of these."""

    def order(path: Path) -> tuple[list[int], str]:
        return [int(number) for number in re.findall(r"\d+", path.stem)], path.name

    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((p for p in found if p.suffix.lower() in SUFFIXES and p.is_file()), key=order)


def photos_of(folder: Path, problems: Problems, masks: bool = True) -> list[Path]:
    """Those that are photos: no masks, nothing made; with `masks` each ought to have one."""
    found = {path.stem: path for path in pictures_of(folder) if path.suffix.lower() in _PHOTOS}
    # MureCom names what was made of 0.jpg 0_bbox and 0_rmobj.
    derived = {stem for stem in found if stem.rpartition("_")[0] in found}
    photos = [path for stem, path in found.items() if stem not in {*derived, *MADE}]
    where = f"{folder.parent.name}/{folder.name}"
    numbers = [int(path.stem) for path in photos if path.stem.isdigit()]
    if lost := sorted(set(range(min(numbers, default=0), max(numbers, default=0))) - set(numbers)):
        problems.append(f"{where} lacks the photos {', '.join(map(str, lost))}.")
    for photo in photos if masks else ():
        if mask_beside(photo) is None:
            problems.append(f"{where}/{photo.name} has no mask {photo.stem}.png.")
    return photos


def mask_beside(photo: Path) -> Path | None:
    """The mask of a JPEG's object: the PNG of its name."""
    mask = photo.with_suffix(".png")
    return mask if mask != photo and mask.is_file() else None


def listed_boxes(file: Path, problems: Problems) -> dict[str, list[int]]:
    """By a file's stem x1, y1, x2, y2, their end exclusive: of lines CLASS FILE x1 y1 x2 y2, where
    a class may be several words and corners are inclusive.
    """
    boxes = {}
    for line in file.read_text("utf-8", "replace").splitlines() if file.is_file() else ():
        words = line.split()
        with suppress(ValueError, IndexError):
            x1, y1, x2, y2 = (int(word) for word in words[-4:])
            boxes[Path(words[-5]).stem] = [x1, y1, x2 + 1, y2 + 1]
            continue
        if words:
            problems.append(f"{file.parent.parent.name}/bg/bbox.txt: {show(line)} names no box.")
    return boxes


def drawn_box(photo: Path, problems: Problems) -> Box | None:
    """The box that {i}_bbox.png shows, else that of the object's mask."""
    drawn = photo.with_name(f"{photo.stem}_bbox.png")
    if mask := drawn if drawn.is_file() else mask_beside(photo):
        return marked(mask, photo, problems)
    problems.append(f"{_place(photo)} has no line in bbox.txt and no {drawn.name}.")
    return None


def scaled(told: Any, size: Size | None, photo: Path, problems: Problems) -> Box | None:
    """x1, y1, x2, y2, their end exclusive, of a picture squashed to a size (None: of its own), in a
    photo's pixels and clamped to it.
    """
    if (own := size_of(photo, problems)) is None:
        return None
    try:
        x1, y1, x2, y2 = (float(number) for number in told)
        wide, high = (a / b for a, b in zip(own, size or own, strict=True))
        left, top, right, bottom = (round(n) for n in (x1 * wide, y1 * high, x2 * wide, y2 * high))
        box = Box(left, top, right - left, bottom - top)
    except (TypeError, ValueError, OverflowError):
        problems.append(f"{_place(photo)} has no box x1, y1, x2, y2.")
        return None
    inside = box.intersect(Box.of_size(own))
    if inside != box:
        how = "goes beyond the photo; it is clamped" if inside else "lies outside the photo"
        problems.append(f"{_place(photo)}: the box {told} {how}.")
    return inside


def _place(photo: Path) -> str:
    return "/".join(photo.parts[-3:])


def marked(mask: Path, photo: Path, problems: Problems) -> Box | None:
    """The box of what a mask, drawn at a size of its own, marks in a photo."""
    try:
        levels = read_mask(mask, size=None, notes=[])
    except InputError as error:
        problems.append(str(error))
        return None
    size = levels.shape[1], levels.shape[0]
    box = bounds(levels, above=0.5)
    corners = box and (box.x, box.y, box.right, box.bottom)
    return scaled(corners, size, photo, problems)


def box_of(request: Request) -> Box | None:
    """Where a request's objects go or are, in the background's pixels; None where it says none."""
    box, mask = getattr(request, "box", None), getattr(request, "mask", None)
    if mask is not None:
        box = bounds(read_mask(mask, size=None, notes=[]), above=0.5)
    boxes = [each.box for each in request.subjects_of()] or [box]
    given = [each for each in boxes if each]
    return reduce(Box.hull, given) if len(given) == len(boxes) else None


def below(folder: Path, value: Any) -> Any:
    """Paths of a row as those from its folder."""
    if isinstance(value, list):
        return [below(folder, each) for each in value]
    return folder / value if isinstance(value, str) and value else None


def read_words(path: Path) -> list[str]:
    """The words of a text, whatever its encoding."""
    return path.read_text("utf-8", "replace").split()


def read_items(path: Path, problems: Problems) -> dict[str, Any]:
    """What a JSON file holds by its keys, or of a list by 0, 1, 2, …; nothing where it has none."""
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        problems.append(f"{path.parent.parent.name}/{path.parent.name} has no {path.name} to read.")
        return {}
    return told if isinstance(told, dict) else {str(n): each for n, each in enumerate(told)}


def rows_of(table: Path, columns: set[str], problems: Problems) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file that has some columns, few at a time as they hold pictures."""
    from pyarrow import ArrowException, parquet

    try:
        file = parquet.ParquetFile(table)
        if lost := columns - set(file.schema_arrow.names):
            problems.append(f"{table.name} has no column {', '.join(sorted(lost))}.")
            return
        for batch in file.iter_batches(batch_size=4):
            yield from batch.to_pylist()
    except (ArrowException, OSError):
        problems.append(f"{table.name} is no Parquet file, or is damaged.")


def kept_images(root: Path, images: Any, prefix: str, problems: Problems) -> list[Path]:
    """Pictures of a table's cell as files; one that is there already stays as it is."""
    paths = []
    for number, image in enumerate(images if isinstance(images, list) else [images]):
        data = image.get("bytes") if isinstance(image, Mapping) else None
        if not isinstance(data, bytes) or not data:
            problems.append(f"{prefix}{number}: a picture of this row holds no bytes.")
            continue
        suffix = ".png" if data.startswith(b"\x89PNG") else ".jpg"
        path = root / "pictures" / f"{slug(prefix)}{number}{suffix}"
        if not path.exists():
            # Where that cannot be, the file's own error says so.
            with suppress(OSError):
                path.parent.mkdir(exist_ok=True)
            replace_file(path, methodcaller("write", data))
        paths.append(path)
    return paths


def files_of(pair: Pair) -> list[Path]:
    masks = (*pair.reference_masks, pair.truth, pair.truth_mask)
    return [pair.background, *pair.references, *(path for path in masks if path)]


def size_of(path: Path, problems: Problems) -> Size | None:
    """A picture's (width, height) as its header says, upright; or None, and a problem more."""
    try:
        with PILImage.open(path) as image:
            # To look for EXIF behind a PNG's pixels Pillow would decode them.
            bare = image.format == "PNG" and "exif" not in image.info
            turned = not bare and image.getexif().get(_ORIENTATION) in _TURNED
            return image.size[::-1] if turned else image.size
    except (OSError, ValueError, SyntaxError, PILImage.DecompressionBombError):
        problems.append(f"{path} is not there or is no picture.")
        return None


def results_of(names: Container[str], folder: Path) -> tuple[dict[str, dict[int, str]], int]:
    """The pictures of a folder that are called by pairs: the file of each sample's number, -1 where
    there is none, by the pair's name; and how many are called by none. Raises InputError.
    """
    if not folder.is_dir():
        raise InputError(f"--results {show(str(folder))} is no folder; give one a method.")
    found, odd = dict[str, dict[int, str]](), 0
    paths = (p for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES)
    for path in (p for p in paths if p.is_file()):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        numbered = re.fullmatch(r"(.+?)[-_/](?:seed=)?(\d+)", stem)
        if stem in names:
            found.setdefault(stem, {})[-1] = str(path)
        elif numbered and numbered[1] in names:
            found.setdefault(numbered[1], {})[int(numbered[2])] = str(path)
        else:
            odd += 1
    return found, odd
