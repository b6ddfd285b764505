"""What composites are made of: photos with what COCO says of them, and objects, cut out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from inlay.batch.labels import Composite, Mask
from inlay.errors import InputError, show
from inlay.learning.folder import picture_names
from inlay.pictures.read import read_picture

# The least side of a cut-out, in pixels.
_LEAST_SIDE = 12


@dataclass(frozen=True)
class Photo:
    """A picture that comes in: its file, and COCO's annotations of it with their class's name."""

    path: str
    labels: Sequence[dict[str, Any]] = ()

    def masks(self, width: int, height: int) -> list[tuple[str, Mask]]:
        """The class and the mask (height, width) of each annotation; raises InputError."""
        from pycocotools import mask as coco

        found = []
        for label in self.labels:
            told = label.get("segmentation")
            try:
                if not told:
                    x, y, w, h = label["bbox"]
                    told = [[x, y, x + w, y, x + w, y + h, x, y + h]]
                if isinstance(told, list):
                    told = coco.merge(coco.frPyObjects(told, height, width))
                elif isinstance(told["counts"], list):
                    told = coco.frPyObjects(told, height, width)
                mask = coco.decode(told).astype(bool)
            except Exception:
                mask = np.zeros(0)
            if mask.shape != (height, width):
                raise InputError(
                    f"an annotation of {self.path} is damaged or of another size; expected "
                    f"polygons, RLE or a bbox for {width} x {height} pixels."
                )
            found.append((label["category"], mask))
        return found

    def composite(self, out: Path, row: Mapping[str, Any], classes: Sequence[str]) -> Composite:
        """What was made of it by a row of the manifest, for its labels."""
        path = out / row["name"]
        size = read_picture(path).size
        layers = str(out / "layers" / f"{row['name']}.npz")
        return Composite(path, size, layers, classes, self.masks(*size))


def read_photos(source: str) -> list[Photo]:
    """The pictures of a folder, or those of COCO's JSON, whose files lie beside it or in images/.

    Raises InputError for a source that is neither, or empty.
    """
    path = Path(source)
    if path.is_dir():
        photos = [Photo(str(path / name)) for name in picture_names(path)]
    else:
        photos = _read_coco(path)
    if not photos:
        raise InputError(f"{show(source)} has no pictures; expected a folder of some or COCO JSON.")
    return photos


def _read_coco(path: Path) -> list[Photo]:
    try:
        data = json.loads(path.read_bytes())
        names = {each["id"]: str(each["name"]) for each in data["categories"]}
        labels: dict[Any, list[dict[str, Any]]] = {}
        for each in data.get("annotations", ()):
            told = {**each, "category": names[each["category_id"]]}
            labels.setdefault(each["image_id"], []).append(told)
        found = []
        for image in data["images"]:
            file = path.parent / image["file_name"]
            file = file if file.exists() else path.parent / "images" / image["file_name"]
            found.append(Photo(str(file), labels.get(image["id"], ())))
        return found
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise InputError(
            f"{path} is no folder and no COCO JSON with images, annotations and categories."
        ) from None


@dataclass(frozen=True)
class Thing:
    """An object: the file of its cut-out or its concept, its class, its width over its height."""

    path: str
    category: str
    aspect: float


def read_things(source: str, out: Path) -> list[Thing]:
    """The objects of a folder of pictures and concepts, or of COCO's JSON, cut out into a folder.

    A class is the folder below the source that a file lies in, else the file's name. What cannot be
    cut is passed over. Raises InputError where nothing is left.
    """
    from inlay import cut
    from inlay.checkpoints.concept import read_concept

    root, things = Path(source), list[Thing]()

    def category(path: Path) -> str:
        parts = path.relative_to(root).parts
        return parts[0] if len(parts) > 1 else path.stem

    for path in sorted(root.rglob("*.safetensors")):
        aspect = read_concept(path).sights[0].aspect
        things.append(Thing(str(path.absolute()), category(path), aspect))
    photos = [] if things and not picture_names(root) else read_photos(source)
    for photo in photos:
        # The cut-outs of a file that has not changed are there already.
        digest = hashlib.sha256(Path(photo.path).read_bytes()).hexdigest()[:12]
        with suppress(InputError):
            whole = read_picture(photo.path).to_pil().convert("RGBA")
            masks = (
                photo.masks(*whole.size) if photo.labels else [(category(Path(photo.path)), None)]
            )
            for number, (name, mask) in enumerate(masks):
                path = out / _folder(name) / f"{Path(photo.path).stem}-{digest}-{number}.png"
                if not path.exists():
                    if mask is not None:
                        whole.putalpha(Image.fromarray(mask.astype(np.uint8) * 255))
                    image = cut(photo.path) if mask is None else whole
                    image = image.crop(image.getchannel("A").getbbox())
                    if min(image.size) < _LEAST_SIDE:
                        continue
                    path.parent.mkdir(parents=True, exist_ok=True)
                    image.save(path)
                with Image.open(path) as image:
                    things.append(Thing(str(path.absolute()), name, image.width / image.height))
    if not things:
        raise InputError(f"{show(source)} has no object that can be cut out; give cut-outs.")
    return things


def _folder(name: str) -> str:
    """A class as the name of a folder."""
    return "".join(sign if sign.isalnum() or sign in " -_" else "_" for sign in name)[:80]
