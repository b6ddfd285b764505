"""The photographs that a benchmark runs on: folders of pictures, and the set that comes along."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from inlay.errors import InputError
from inlay.evaluation.pairs import MADE
from inlay.learning.folder import SUFFIXES, Row, image_rows, mask_file
from inlay.pictures.arrays import Box, bounds, shrink, to_uint8
from inlay.pictures.mask import read_mask
from inlay.pictures.read import read_picture

# The word that stands for the photographs inside scikit-image's wheel.
BUNDLED = "scikit-image"
SPLITS = ("held-out", "training", "all")

_BUNDLED_FILES = ["astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"]
# Of each: left, top, width and height, as shares of the photograph.
_CROPS = (
    (0.0, 0.0, 0.65, 0.65),
    (0.35, 0.0, 0.65, 0.65),
    (0.0, 0.35, 0.65, 0.65),
    (0.35, 0.35, 0.65, 0.65),
    (0.2, 0.2, 0.6, 0.6),
)

_log = logging.getLogger("inlay")


@dataclass(frozen=True)
class Photo:
    """A photograph that has not been read yet.

    name is how reports call it; mask is the file of its object's mask, where one is given; crop
    (left, top, width, height) the part of it that is meant, as shares of it.
    """

    name: str
    path: Path
    mask: Path | None = None
    crop: tuple[float, float, float, float] = (0, 0, 1, 1)

    def read(self, short_side: int) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        """The picture, uint8 (h, w, 3) sRGB, and its given mask, float32 (h, w) in [0, 1], or None.

        Both are reduced by area to at most `short_side` pixels. Raises InputError where one of
        them cannot be read or they differ in size.
        """
        whole = read_picture(self.path)
        rgb = np.asarray(whole.to_pil().convert("RGB"), np.uint8)
        given = None if self.mask is None else read_mask(self.mask, size=whole.size)
        shares = zip(self.crop, whole.size * 2, strict=True)
        part = Box(*(round(share * side) for share, side in shares)).slices
        if given is not None:
            # On the levels of 8 bits, so that methods see the very mask that the object has.
            levels = np.round(shrink(given[part], short_side) * 255)
            given = np.asarray(levels / 255, np.float32)
        return shrink(rgb[part], short_side), given


def find_photos(
    folders: Sequence[str], split: str | None = None, include: Sequence[str] = ()
) -> list[Photo]:
    """The photographs of one or more folders, in the order of the folders and of their names, see
    learning.folder; BUNDLED stands for scikit-image's own. What is called composite, truth or
    result (MADE) is none.

    `split` is one of SPLITS, as training goes by it; None is held-out where metadata.jsonl has such
    pictures, else all. `include` are patterns (fnmatch) of which a name, with or without its
    folder, must match one. Raises InputError for what is no folder, a malformed metadata.jsonl, or
    when no photograph is left.
    """
    photos: list[Photo] = []
    for folder in folders:
        if folder == BUNDLED:
            photos += _bundled_photos()
            continue
        root, rows = folder_rows(folder, split)
        rows = [row for row in rows if Path(row.file_name).stem not in MADE]
        photos += [Photo(row.file_name, root / row.file_name, mask_file(root, row)) for row in rows]
    photos = [photo for photo in photos if is_included(include, photo.name, photo.path.name)]
    if not photos:
        kept = " that --split and --include leave" if split or include else ""
        raise InputError(
            f"there are no photos{kept} in {', '.join(map(repr, folders)) or 'no folder'}; "
            f"give a folder of {', '.join(s[1:] for s in SUFFIXES[:4])} pictures."
        )
    return photos


def folder_rows(folder: str, split: str | None) -> tuple[Path, list[Row]]:
    """A folder, and the rows of its pictures that a split leaves; see find_photos()."""
    if split is not None and split not in SPLITS:
        raise InputError(f"split is {split!r}; expected one of {', '.join(SPLITS)}.")
    root = Path(folder)
    try:
        if "\0" in folder or not root.is_dir():
            raise InputError(
                f"{folder[:80]!r} is not a folder; give a folder of pictures or {BUNDLED}."
            )
        rows, listed = image_rows(root)
    except OSError as error:
        raise InputError(f"{folder[:80]!r} cannot be read ({type(error).__name__}).") from None
    held = [row for row in rows if row.is_held_out()]
    if split == "all" or (split is None and not (listed and held)):
        return root, rows
    return root, [row for row in rows if row.is_held_out() == (split != "training")]


def is_included(patterns: Sequence[str], *names: str) -> bool:
    """Whether one of the names matches one of the patterns (fnmatch), or there are none."""
    return not patterns or any(fnmatchcase(name, p) for p in patterns for name in names)


def _bundled_photos() -> list[Photo]:
    """Colour photographs of scikit-image's wheel, whole and in crops; nothing is downloaded."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    photos = []
    for file in _BUNDLED_FILES:
        path = folder / file
        if not path.is_file():
            _log.warning("this build of scikit-image comes without %s", file)
            continue
        photos.append(Photo(path.stem, path))
        photos += [Photo(f"{path.stem}#{n}", path, crop=crop) for n, crop in enumerate(_CROPS, 1)]
    return photos


def bundled_set(home: Path, short_side: int = 384) -> Path:
    """The photographs of scikit-image's wheel in MureCom's layout, written once into a new folder.

    An object is what the cutter finds in a photograph, and the photograph without it what `patches`
    leaves, so the same version of inlay writes the same set. The motorcycle's other photo is its
    stereo partner; the others' are the photograph itself in another light. Backgrounds of a
    category are the photographs of the others without their objects, in whose boxes it goes.
    """
    from inlay.composer import Composer
    from inlay.training.disturb import disturb_object, draw
    from inlay.training.objects import find_objects

    if home.is_dir():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=home.parent))
    composer, places = Composer(), dict[str, tuple[PILImage.Image, Box]]()
    for photo in (each for each in _bundled_photos() if each.crop == (0, 0, 1, 1)):
        name, fg = (
            photo.name.removesuffix("_left"),
            draft / photo.name.removesuffix("_left") / "fg1",
        )
        other = photo.path.with_name(f"{name}_right.png")
        reads = [
            Photo("", path).read(short_side)[0] for path in (photo.path, other) if path.exists()
        ]
        shown = [(picture, found[0]) for picture in reads if (found := find_objects(picture))]
        if not shown:
            continue
        real, (truth, mask), rng = len(shown), shown[0], np.random.default_rng(0)
        kinds = ("exposure", "temperature", "gamma") if real == 1 else ()
        shown += [(disturb_object(truth, mask, draw(kind, rng)), mask) for kind in kinds]
        fg.mkdir(parents=True)
        for number, (picture, where) in enumerate(shown):
            drawn = PILImage.fromarray(to_uint8(where))
            drawn.save(fg / f"{number}.png")
            PILImage.fromarray(picture).save(fg / f"{number}.jpg", quality=95)
            if number < real:
                bare = composer.remove(picture, mask=drawn, method="patches").image
                bare.convert("RGB").save(fg / f"{number}_rmobj.jpg", quality=95)
                places.setdefault(
                    name, (bare.convert("RGB"), bounds(where, 0.5) or Box(0, 0, 1, 1))
                )
    for name in places:
        bg, lines = draft / name / "bg", []
        bg.mkdir()
        for number, (place, box) in enumerate(places[other] for other in places if other != name):
            place.save(bg / f"{number}.jpg", quality=95)
            corners = f"{box.x} {box.y} {box.right - 1} {box.bottom - 1}"
            lines.append(f"{name} {number}.jpg {corners}\n")
        (bg / "bbox.txt").write_text("".join(lines))
    return draft.rename(home)
