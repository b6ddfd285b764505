"""Labels of composites, as their layers say them: to the pixel, in six formats."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Mask = NDArray[np.bool_]
# Pictures in a shard of a WebDataset; how far, in pixels, a polygon may be off its mask.
_SHARD, _TOLERANCE = 1000, 0.2


@dataclass(frozen=True, eq=False)
class Instance:
    """One thing in a picture: its class, the alpha (height, width) of what is seen of it, uint8,
    and what share of it that is.
    """

    category: str
    alpha: NDArray[np.uint8]
    share: float

    @property
    def mask(self) -> Mask:
        """Where at least half of a pixel is it."""
        return self.alpha > 127

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x, y, width and height of the mask."""
        x, y, width, height = cv2.boundingRect(self.mask.astype(np.uint8))
        return x, y, width, height


@dataclass(frozen=True, eq=False)
class Composite:
    """A picture of (width, height), the file of its subjects' layers (see Job), their classes, and
    class and mask of each thing that was in its background.
    """

    path: Path
    size: tuple[int, int]
    layers: str
    classes: Sequence[str]
    own: Sequence[tuple[str, Mask]]


def instances(composite: Composite) -> list[Instance]:
    """What is seen in a composite: the background's things, less what lies over them, then its
    subjects, each less those after it.
    """
    width, height = composite.size
    seen, found = np.ones((height, width), np.float32), list[Instance]()

    def add(category: str, alpha: NDArray[np.float32]) -> None:
        left = alpha * seen
        share = float(left.sum() / max(alpha.sum(), 1e-6))
        found.append(Instance(category, np.floor(left * 255 + 0.5).astype(np.uint8), share))

    with np.load(composite.layers, allow_pickle=False) as arrays:
        boxes = arrays["boxes"].tolist()
        for number in reversed(range(len(boxes))):
            x, y, w, h = boxes[number]
            alpha = np.zeros_like(seen)
            alpha[y : y + h, x : x + w] = arrays[f"alpha_{number}"] / np.float32(255)
            add(composite.classes[number], alpha)
            seen *= 1 - alpha
    for category, mask in composite.own[::-1]:
        add(category, mask.astype(np.float32))
    return found[::-1]


def polygons(mask: Mask) -> list[NDArray[np.float64]]:
    """A ring (n, 2) of x, y for each piece of a mask, in pixels from its top left corner; a ring
    runs into its holes and back on one line.
    """
    from skimage.measure import approximate_polygon, find_contours

    rings = []
    count, pieces = cv2.connectedComponents(np.pad(mask, 1).astype(np.uint8), connectivity=4)
    for number in range(1, count):
        lines = find_contours((pieces == number).astype(np.float32), 0.5)
        # Of the padding and of the samples' middles.
        own = [approximate_polygon(line, _TOLERANCE)[:-1, ::-1] - 0.5 for line in lines]
        rings.append(joined(sorted(own, key=_spread, reverse=True)))
    return rings


def _spread(ring: NDArray[np.float64]) -> float:
    return float(np.prod(np.ptp(ring, axis=0)))


def joined(rings: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Rings as one, which goes to the nearest point of the next and back on the same line."""
    whole = rings[0]
    for ring in rings[1:]:
        distances = np.square(whole[:, None] - ring).sum(-1)
        here, there = np.unravel_index(distances.argmin(), distances.shape)
        tour = np.concatenate([ring[there:], ring[: there + 1]])
        whole = np.concatenate([whole[: here + 1], tour, whole[here:]])
    return whole


class Format:
    """Labels of one kind, picture after picture, in a folder; classes have numbers from 1."""

    def __init__(self, out: Path, classes: Sequence[str]) -> None:
        self.out, self.ids = out, {name: number for number, name in enumerate(classes, 1)}

    def add(self, path: Path, size: tuple[int, int], things: Sequence[Instance]) -> None:
        """The labels of a picture of (width, height)."""

    def close(self) -> None:
        """Write what is said of all pictures at once."""


class Coco(Format):
    """coco.json with RLE, which is exact, and coco_polygons.json, for those who read no RLE."""

    def __init__(self, out: Path, classes: Sequence[str]) -> None:
        super().__init__(out, classes)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.rings: list[list[list[float]]] = []

    def add(self, path: Path, size: tuple[int, int], things: Sequence[Instance]) -> None:
        from pycocotools import mask as coco

        image = len(self.images) + 1
        name = path.relative_to(self.out).as_posix()
        self.images.append({"id": image, "file_name": name, "width": size[0], "height": size[1]})
        for thing in things:
            code = coco.encode(np.asfortranarray(thing.mask.astype(np.uint8)))
            told: dict[str, Any] = {"id": len(self.annotations) + 1, "image_id": image}
            told |= {"category_id": self.ids[thing.category], "bbox": [*thing.box], "iscrowd": 0}
            told |= {"area": int(thing.mask.sum()), "visible": round(thing.share, 4)}
            code["counts"] = code["counts"].decode()
            self.annotations.append({**told, "segmentation": code})
            self.rings.append([ring.round(2).ravel().tolist() for ring in polygons(thing.mask)])

    def close(self) -> None:
        classes = [{"id": number, "name": name} for name, number in self.ids.items()]
        told = {"images": self.images, "categories": classes}
        ringed = [
            {**each, "segmentation": rings}
            for each, rings in zip(self.annotations, self.rings, strict=True)
        ]
        for name, listed in (("coco", self.annotations), ("coco_polygons", ringed)):
            _text(self.out / f"{name}.json", json.dumps({**told, "annotations": listed}))


class Yolo(Format):
    """labels/NAME.txt, a line for each thing: its class, and x, y of its outline in shares of the
    picture; and data.yaml.
    """

    def add(self, path: Path, size: tuple[int, int], things: Sequence[Instance]) -> None:
        lines = []
        for thing in things:
            shares = (joined(polygons(thing.mask)) / size).clip(0, 1).ravel()
            numbers = " ".join(f"{share:.6f}" for share in shares)
            lines.append(f"{self.ids[thing.category] - 1} {numbers}\n")
        _text(self.out / "labels" / f"{path.stem}.txt", "".join(lines))

    def close(self) -> None:
        names = "".join(
            f"  {number - 1}: {json.dumps(name)}\n" for name, number in self.ids.items()
        )
        _text(self.out / "data.yaml", f"path: .\ntrain: images\nval: images\nnames:\n{names}")


class Voc(Format):
    """Pascal VOC: Annotations/NAME.xml, and in SegmentationObject and SegmentationClass the number
    of the thing and of its class, from 1, at each pixel; 0 is none.
    """

    def add(self, path: Path, size: tuple[int, int], things: Sequence[Instance]) -> None:
        top = ElementTree.Element("annotation")
        told = {"folder": "images", "filename": path.name, "segmented": "1"}
        _elements(top, told)
        sizes = {"width": size[0], "height": size[1], "depth": 3}
        _elements(ElementTree.SubElement(top, "size"), sizes)
        for thing in things:
            x, y, width, height = thing.box
            one = ElementTree.SubElement(top, "object")
            _elements(one, {"name": thing.category, "truncated": int(thing.share < 0.99)})
            _elements(one, {"pose": "Unspecified", "difficult": 0, "occluded": 0})
            corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
            _elements(ElementTree.SubElement(one, "bndbox"), corners)
        _text(self.out / "Annotations" / f"{path.stem}.xml", ElementTree.tostring(top, "unicode"))
        numbers = _numbers(size, things)
        classes = np.array([0, *(self.ids[thing.category] for thing in things)], np.uint8)
        for folder, levels in (("Object", numbers), ("Class", classes[numbers])):
            _picture(self.out / f"Segmentation{folder}" / f"{path.stem}.png", levels)

    def close(self) -> None:
        names = sorted(path.stem for path in (self.out / "Annotations").glob("*.xml"))
        _text(self.out / "ImageSets" / "Segmentation" / "train.txt", "\n".join(names))


class Masks(Format):
    """masks/NAME-N.png: the alpha of what is seen of each thing, white where it covers all."""

    def add(self, path: Path, size: tuple[int, int], things: Sequence[Instance]) -> None:
        for number, thing in enumerate(things, 1):
            _picture(self.out / "masks" / f"{path.stem}-{number}.png", thing.alpha)


class ImageFolder(Format):
    """images/metadata.jsonl, by which Hugging Face's datasets load the folder images."""

    def __init__(self, out: Path, classes: Sequence[str]) -> None:
        super().__init__(out, classes)
        _text(out / "images" / "metadata.jsonl", "")

    def add(self, path: Path, size: tuple[int, int], things: Sequence[Instance]) -> None:
        told = {"file_name": path.name, "objects": _objects(things)}
        with (self.out / "images" / "metadata.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")


class WebDataset(Format):
    """webdataset/000000.tar and so on: NAME.png, NAME.json with bbox and category of each thing,
    and NAME.mask.png, the number of the thing at each pixel, from 1.
    """

    count = 0

    def add(self, path: Path, size: tuple[int, int], things: Sequence[Instance]) -> None:
        buffer = io.BytesIO()
        Image.fromarray(_numbers(size, things)).save(buffer, "PNG")
        files = {path.suffix[1:]: path.read_bytes(), "mask.png": buffer.getvalue()}
        files["json"] = json.dumps(_objects(things)).encode()
        shard = self.out / "webdataset" / f"{self.count // _SHARD:06d}.tar"
        shard.parent.mkdir(exist_ok=True)
        with tarfile.open(shard, "a" if self.count % _SHARD else "w") as tar:
            for suffix, data in files.items():
                entry = tarfile.TarInfo(f"{path.stem}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        self.count += 1


FORMATS: dict[str, type[Format]] = {
    "coco": Coco, "yolo": Yolo, "voc": Voc, "masks": Masks, "imagefolder": ImageFolder,
    "webdataset": WebDataset,
}  # fmt: skip


def write_labels(
    out: Path,
    formats: Sequence[str],
    classes: Sequence[str],
    composites: Iterable[Composite],
    least: float,
) -> tuple[int, int]:
    """Write the labels of composites below a folder; the numbers of those written, and of those in
    dropped.jsonl, of which less than the share `least` is seen.
    """
    counts = [0, 0]
    writers = [FORMATS[name](out, classes) for name in formats]
    with (out / "dropped.jsonl").open("w", encoding="utf-8") as dropped:
        for each in composites:
            kept = []
            for thing in instances(each):
                if thing.share >= least and thing.mask.any():
                    kept.append(thing)
                    continue
                told = {"file_name": each.path.name, "category": thing.category}
                dropped.write(json.dumps({**told, "visible": round(thing.share, 4)}) + "\n")
                counts[1] += 1
            for writer in writers:
                writer.add(each.path, each.size, kept)
            counts[0] += len(kept)
    for writer in writers:
        writer.close()
    return counts[0], counts[1]


def _objects(things: Sequence[Instance]) -> dict[str, Any]:
    return {
        "bbox": [[*thing.box] for thing in things],
        "category": [thing.category for thing in things],
        "visible": [round(thing.share, 4) for thing in things],
    }


def _numbers(size: tuple[int, int], things: Sequence[Instance]) -> NDArray[np.uint8]:
    """The number of the thing at each pixel, from 1; at most 254 things have one."""
    numbers = np.zeros(size[::-1], np.uint8)
    for number, thing in enumerate(things[:254], 1):
        numbers[thing.mask] = number
    return numbers


def _elements(above: ElementTree.Element, texts: dict[str, Any]) -> None:
    for name, text in texts.items():
        ElementTree.SubElement(above, name).text = str(text)


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _picture(path: Path, levels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)
