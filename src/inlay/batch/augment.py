"""Training data: objects set into photos where things can stand, and the labels of what was made.

All randomness comes from generators that the seed starts, one for each picture.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from inlay.batch.labels import FORMATS, Mask, write_labels
from inlay.batch.order import Batch
from inlay.batch.sources import Photo, Thing, read_photos, read_things
from inlay.errors import InputError, show
from inlay.methods.base import Checkpoint
from inlay.methods.registry import MethodChoice
from inlay.pictures.mask import read_mask
from inlay.pictures.read import read_picture
from inlay.pictures.sheet import contact_sheet
from inlay.request import Request
from inlay.run import Options, run
from inlay.scene.subject import Subject

if TYPE_CHECKING:
    from inlay.batch.command import Augmenting

# The side at which ground is looked for, and how many places are tried.
_SIDE, _TRIES = 160, 80
# So much of a picture is ground at least, where there is any, and so far up things may stand.
_LEAST_GROUND, _HIGHEST = 0.12, 0.6
# Neighbours in Lab that differ less are smooth, as the sky is. It is blue, or as clouds: b* below,
# lightness above; lightness above, chroma below.
_SMOOTH, _BLUE, _PALE = 2.2, (-6, 30), (70, 15)
# An object's least side in a composite, in pixels; its turn, in degrees; a single view's share of
# its picture; what a method makes of its change.
_LEAST_SIDE, _TURN, _LARGE, _LIGHT = 12, 6.0, (0.6, 0.85), (0.1, 0.4)
_KERNEL = np.ones((5, 5), np.uint8)
# Pictures of the preview, and their side.
_SHOWN, _CELL = 24, 320


@dataclass(frozen=True, eq=False)
class Ground:
    """Where feet may be, (h, w) of a small picture, and the row above it, in it, that is infinitely
    far: what stands there has no size.
    """

    feet: Mask
    horizon: float


def find_ground(picture: NDArray[np.uint8]) -> Ground | None:
    """The ground in a photograph (H, W, 3), sRGB; None where it shows none.

    It is what a watershed from the lowest rows keeps of the picture against one from its upper
    third, less the sky: what is smooth, blue or pale all the way from the upper edge. Things stand
    in its lower part only. The horizon is where it ends.
    """
    small = _small(picture)
    height, width = small.shape[:2]
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab = cv2.bilateralFilter(lab, 7, 12, 5)
    steps = [np.abs(np.diff(lab, axis=axis, append=lab.take([-1], axis))) for axis in (0, 1)]
    smooth = cv2.blur(np.maximum(*steps).max(2), (3, 3)) < _SMOOTH
    light, chroma = lab[..., 0], np.hypot(lab[..., 1], lab[..., 2])
    airy = (lab[..., 2] < _BLUE[0]) & (light > _BLUE[1]) | (light > _PALE[0]) & (chroma < _PALE[1])
    _, pieces = cv2.connectedComponents((smooth | airy).astype(np.uint8), connectivity=4)
    sky = np.isin(pieces, np.setdiff1d(pieces[0], 0))
    seeds = np.zeros((height, width), np.int32)
    seeds[: height // 3], seeds[-max(2, height // 16) :] = 2, 1
    levels = np.clip(lab / (1, 1.5, 1.5) + (0, 85, 85), 0, 255).astype(np.uint8)
    ground = (cv2.watershed(levels, seeds) == 1) & ~cv2.dilate(
        sky.astype(np.uint8), _KERNEL
    ).astype(bool)
    ground = cv2.morphologyEx(ground.astype(np.uint8), cv2.MORPH_OPEN, _KERNEL)
    _, pieces = cv2.connectedComponents(ground)
    ground = np.isin(pieces, np.setdiff1d(pieces[-2:], 0))
    return ground_of(ground)


def ground_of(ground: Mask) -> Ground | None:
    """The ground of a mask (h, w) of it; None where that is too little."""
    height = len(ground)
    if ground.mean() < _LEAST_GROUND:
        return None
    top = float(np.percentile(np.nonzero(ground)[0], 2))
    feet = ground.copy()
    feet[: int(_HIGHEST * height)] = False
    horizon = min(max(top, 0.2 * height), 0.6 * height)
    feet[: int(horizon + 0.12 * (height - horizon))] = False
    return Ground(feet, horizon) if feet.any() else None


def ground_in(photo: Photo, places: str | None, picture: NDArray[np.uint8]) -> Ground | None:
    """Where things may stand in a photo: as masks in a folder or a box in shares of the picture
    say, else what find_ground() finds. Raises InputError.
    """
    if places is None:
        return find_ground(picture)
    height, width = _small(picture).shape[:2]
    if Path(places).is_dir():
        file = Path(places, f"{Path(photo.path).stem}.png")
        mask = cv2.resize(read_mask(file, size=None), (width, height)) > 0.5
    else:
        x, y, w, h = numbers(places, "places", 4, most=1)
        mask = np.zeros((height, width), bool)
        mask[int(y * height) : int((y + h) * height), int(x * width) : int((x + w) * width)] = True
    rows = np.nonzero(mask)[0]
    return Ground(mask, max(0.0, rows.min() - 0.15 * height)) if len(rows) else None


def _small(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = _SIDE / max(picture.shape[:2])
    size = [max(8, round(side * scale)) for side in picture.shape[1::-1]]
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


class Places:
    """Where things go in one photo: on its ground, clear of what its labels say is there."""

    def __init__(
        self, photo: Photo, given: Augmenting, count: Sequence[float], share: Sequence[float]
    ) -> None:
        picture = np.asarray(read_picture(photo.path).to_pil().convert("RGB"))
        self.given, self.size = given, picture.shape[1::-1]
        self.count, self.share = count, share
        self.ground = None
        if given.preset == "scene":
            self.ground = ground_in(photo, given.places, picture)
        small = _small(picture).shape[1::-1]
        # What is known to be there, as it is in the small picture.
        self.taken = [
            cv2.resize(mask.astype(np.float32), small, interpolation=cv2.INTER_AREA)
            for _, mask in photo.masks(*self.size)
        ]

    def draw(self, things: Sequence[Thing], rng: np.random.Generator) -> list[dict[str, Any]]:
        """Subjects for one picture, those that stand further away first."""
        if self.given.preset == "single-view":
            return [self._large(things[int(rng.integers(len(things)))], rng)]
        drawn = list[dict[str, Any]]()
        for _ in range(rng.integers(int(self.count[0]), int(self.count[1]) + 1)):
            thing, turn = (
                things[int(rng.integers(len(things)))],
                round(rng.uniform(-_TURN, _TURN), 1),
            )
            box = self._box(thing, turn, [each["box"] for each in drawn], rng)
            if box is not None:
                own = {"picture": thing.path, "box": box, "rotate": turn}
                drawn.append({**own, "flip": bool(rng.random() < 0.5)})
        return sorted(drawn, key=lambda each: each["box"][1] + each["box"][3])

    def _box(
        self, thing: Thing, turn: float, boxes: list[list[int]], rng: np.random.Generator
    ) -> list[int] | None:
        """A place of a thing: the first that lies clear of what was there, else the one that hides
        least of it; None where all hide too much, of it or of what was drawn before.
        """
        ground = self.ground
        assert ground is not None
        (width, height), (high, wide) = self.size, ground.feet.shape
        rows, columns = np.nonzero(ground.feet)
        best, least = None, self.given.overlap
        for _ in range(_TRIES):
            at, share = rng.integers(len(rows)), rng.uniform(self.share[0], self.share[1])
            x, y = (columns[at] + rng.random()) / wide, (rows[at] + rng.random()) / high
            side = share * height * (y * high - ground.horizon) / (high - ground.horizon)
            scale = side / max(thing.aspect, 1)
            w, h = Subject(thing.path, rotate=turn).turned(thing.aspect * scale, scale)
            box = [round(x * width - w / 2), round(y * height - h), round(w), round(h)]
            fits = box[0] >= 0 <= box[1] and box[0] + box[2] <= width
            if not fits or min(box[2:]) < _LEAST_SIDE:
                continue
            left, right = (int((x * width + s * w) / width * wide) for s in (-0.35, 0.35))
            if not ground.feet[rows[at], left : right + 1].all():
                continue
            if max((_common(box, other) for other in boxes), default=0) > self.given.overlap:
                continue
            if (hidden := self._hidden(box)) <= least:
                best, least = box, hidden
            if hidden == 0:
                break
        return best

    def _hidden(self, box: list[int]) -> float:
        """The largest share that a box hides of a thing that was there."""
        scale = _SIDE / max(self.size)
        left, top, right, low = (
            round(side * scale) for side in (*box[:2], box[0] + box[2], box[1] + box[3])
        )
        shares = (mask[top:low, left:right].sum() / max(mask.sum(), 1e-6) for mask in self.taken)
        return float(max(shares, default=0.0))

    def _large(self, thing: Thing, rng: np.random.Generator) -> dict[str, Any]:
        """A thing amid the picture, whole and large."""
        side = rng.uniform(*_LARGE) * min(self.size) / max(thing.aspect, 1)
        w, h = round(thing.aspect * side), round(side)
        x, y = (
            round((whole - own) * rng.uniform(0.35, 0.65))
            for whole, own in zip(self.size, (w, h), strict=True)
        )
        return {"picture": thing.path, "box": [x, y, w, h], "flip": bool(rng.random() < 0.5)}


def _common(one: list[int], other: list[int]) -> float:
    """How much of the smaller of two boxes lies in the other."""
    (x, y, w, h), (left, top, wide, high) = one, other
    across = max(0, min(x + w, left + wide) - max(x, left))
    return across * max(0, min(y + h, top + high) - max(y, top)) / min(w * h, wide * high)


def planned(
    photos: Sequence[Photo], things: Sequence[Thing], given: Augmenting
) -> tuple[list[tuple[dict[str, Any], Photo]], list[str]]:
    """The rows of a manifest, each with the photo behind it; and the photos that show no ground."""
    name, _, preset = given.method.partition(":")
    method: dict[str, Any] = {"name": name, **({"preset": preset} if preset else {})}
    settings = MethodChoice.of(method, "compose").settings
    known = type(settings).model_fields
    if given.prompt and "prompt" in known:
        method["prompt"] = given.prompt
    spans = numbers(given.count, "count", 2, most=100), numbers(given.size, "size", 2, most=4)
    rows, bare = [], []
    for number, photo in enumerate(photos):
        if settings.works_on_background():
            # It is painted anew; nothing of what was there stays.
            photo = replace(photo, labels=())
        places = Places(photo, given, *spans)
        if places.ground is None and given.preset == "scene":
            bare.append(photo.path)
            continue
        for copy in range(given.copies):
            rng = np.random.default_rng([given.seed, number, copy])
            own = {**method}
            if "amount" in known and not preset:
                # How much of the light there an object takes.
                own["amount"] = round(rng.uniform(*_LIGHT), 3)
            row = {
                "name": f"images/{number:05d}-{copy:03d}.png",
                "verb": "compose",
                "method": own,
                "background": os.path.abspath(photo.path),
                "seed": int(rng.integers(2**31)),
                "shadow": "auto" if given.preset == "scene" else "none",
            }
            if subjects := places.draw(things, rng):
                together = settings.works_on_background() and len(subjects) > 1
                rows.append(({**row, "subjects": subjects, "together": together}, photo))
    return rows, bare


def numbers(text: str, name: str, count: int, most: float) -> list[float]:
    """Numbers from 0 to `most` with commas, in order where they are two; raises InputError."""
    with suppress(ValueError):
        found = [float(part) for part in text.split(",")]
        ordered = count != 2 or found == sorted(found)
        if len(found) == count and all(0 <= each <= most for each in found) and ordered:
            return found
    raise InputError(
        f"--{name} is {show(text)}; expected {count} numbers from 0 to {most:g}, the lesser first."
    )


class Augmentation(Batch):
    """What was ordered: composites of backgrounds and objects, and their labels."""

    given: Augmenting

    def __init__(self, backgrounds: str, objects: str, output: str, given: Augmenting) -> None:
        super().__init__(os.path.join(output, "manifest.jsonl"), output, given, "layers")
        self.sources = backgrounds, objects

    def write(self, check: Callable[[], None]) -> int:
        """Write manifest.jsonl and preview.png, make the pictures, then their labels."""
        given, out = self.given, Path(self.output)
        if "://" in self.output or out.is_file():
            raise InputError(f"{self.output} is no folder; augment writes to one.")
        formats = [name.strip() for name in given.labels.split(",")]
        if unknown := [name for name in formats if name not in FORMATS]:
            raise InputError(f"--labels has {unknown[0]!r}; expected {', '.join(FORMATS)}.")
        out.mkdir(parents=True, exist_ok=True)
        photos = read_photos(self.sources[0])
        things = read_things(self.sources[1], out / "objects")
        rows, bare = planned(photos, things, given)
        says = not (given.quiet or given.json)
        if bare and says:
            print(f"{len(bare)} backgrounds show no ground and are left out, like {bare[0]}")
        if not rows:
            raise InputError(f"{self.sources[0]} has no place for an object; give --places.")
        text = "".join(json.dumps(row) + "\n" for row, _ in rows)
        Path(self.manifest).write_text(text)
        _preview([row for row, _ in rows[:_SHOWN]], out)
        if given.preview:
            return 0
        status = super().write(check)
        names = {thing.path: thing.category for thing in things}
        classes = {
            *names.values(),
            *(each["category"] for photo in photos for each in photo.labels),
        }
        told = (out / "failed.jsonl").read_text().splitlines()
        # Of those that were refused before they were made the line comes first.
        failed = {json.loads(line)["name"].rpartition(": ")[2] for line in told}
        made = (
            photo.composite(out, row, [names[each["picture"]] for each in row["subjects"]])
            for row, photo in rows
            if row["name"] not in failed
        )
        kept, dropped = write_labels(out, formats, sorted(classes), made, given.visible)
        if says:
            print(f"{kept} labels; {dropped} things are too hidden to have one")
        return status


def _preview(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """preview.png: where things go, pasted as they are."""
    pictures = []
    for row in rows:
        told = {key: row[key] for key in ("verb", "background", "subjects", "seed")}
        request = Request.of({**told, "method": "paste", "shadow": "none"})
        pictures.append(run(request, Checkpoint(), Options()).image)
        pictures[-1].thumbnail((_CELL, _CELL))
    labels = [Path(row["name"]).stem for row in rows]
    contact_sheet(pictures, labels, cell=_CELL).save(out / "preview.png")
