"""A subject: what of its picture it is, how large it becomes and where it goes; its cut-out."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image as PILImage
from pydantic import Field, InstanceOf, PlainSerializer, WithJsonSchema, model_validator

from inlay.errors import InputError, show, unsaved
from inlay.pictures.arrays import Box, Image, bounds, extend, from_levels
from inlay.pictures.mask import LEAST_SHARE
from inlay.pictures.picture import Picture
from inlay.pictures.read import DEFAULT_MAX_PIXELS, read_picture
from inlay.scene.fill import clean_rim
from inlay.settings import Form, as_flag, as_number, as_numbers, as_text, as_whole, checked

Size = tuple[int, int]
Seed = int | Sequence[int]

_CONCEPT = ".safetensors"
MOST_SUBJECTS = 1000
# Where no scale is asked for, the subject's longer side over the background's shorter side; the
# span of that share for a random scale.
_SHARE, _RANDOM_SHARE = 0.4, (0.25, 0.6)
# The most pixels of a placed subject before it is clipped, and OpenCV's longest side to turn.
LARGEST_AREA, _LONGEST_TURNED = 100_000_000, 32_000


def as_box(value: Any, name: str) -> Box | None:
    """A Box, or one from four numbers or a mapping; raises InputError for anything else."""
    if value is None or isinstance(value, Box):
        return value
    if isinstance(value, Mapping) and set(value) == {"x", "y", "width", "height"}:
        value = [value["x"], value["y"], value["width"], value["height"]]
    numbers = as_numbers(value, name, 4, "a Box or four numbers x, y, width, height")
    return Box(*numbers)  # type: ignore[arg-type]


def path_of(source: Any) -> str | None:
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else None


def as_source(value: Any, name: str) -> Any:
    """A path, a PIL picture, an array or None; raises InputError for anything else."""
    if value is None or isinstance(value, (str, os.PathLike, PILImage.Image, np.ndarray)):
        return value
    raise InputError(f"{name} is {show(value)}; expected a path, a PIL picture or a uint8 array.")


# A path, a PIL picture or a uint8 array. JSON holds paths alone: what was handed over in memory
# is null there.
Source = Annotated[
    Any,
    checked(as_source),
    PlainSerializer(path_of, return_type=str | None),
    WithJsonSchema({"type": "string", "description": "path of a picture"}),
]
BoxField = Annotated[
    InstanceOf[Box] | None,
    checked(as_box),
    PlainSerializer(lambda box: None if box is None else [box.x, box.y, box.width, box.height]),
    WithJsonSchema({"type": "array", "items": {"type": "number"}, "title": "x, y, width, height"}),
]
Flag = Annotated[bool, checked(as_flag)]
Text = Annotated[str | None, checked(as_text)]
PointField = Annotated[
    tuple[float, float], checked(partial(as_numbers, count=2, expected="two numbers x, y"))
]
# Of a scene, in pixels.
Side = Annotated[int, checked(partial(as_whole, least=64, most=8192, spelt="8192"))]
_Scale = Annotated[float, checked(partial(as_number, expected="a number above 0"))]
_Degrees = Annotated[float, checked(partial(as_number, expected="a finite number of degrees"))]


class Subject(Form):
    """What goes into a background: its picture, what it is in there, and where it goes.

    mask, cut ("auto", "alpha", "mask", "box", "grabcut", "rembg" or a segmentation model), cut_box
    and cut_points, (x, y) on it, say what of the picture it is. The picture may be a file that
    `inlay learn` wrote.

    One of box, at and random says where it goes, else it lies in the middle. box: background
    pixels; it keeps its aspect and is centred there. at: its centre, in background pixels; scale:
    its pixels are multiplied by it (None: its longer side becomes 40% of the background's shorter
    side). random: a place, and where scale is None a scale, drawn from the seed, wholly inside.
    rotate: degrees, counter-clockwise. flip: mirrored left to right, before it is turned.
    view: which photo of a concept is laid in, from 1; None is the one that fits the place best.
    Raises InputError.
    """

    picture: Source
    mask: Source = None
    box: BoxField = None
    at: PointField | None = None
    scale: _Scale | None = None
    random: Flag = False
    rotate: _Degrees = 0.0
    flip: Flag = False
    cut: Text = None
    cut_box: BoxField = None
    cut_points: tuple[PointField, ...] | None = None
    view: Annotated[int, checked(partial(as_whole, least=1, most=1000, spelt="1000"))] | None = None

    def __init__(self, picture: Any = None, /, **values: Any) -> None:
        super().__init__(**({} if picture is None else {"picture": picture}), **values)

    @model_validator(mode="after")
    def _fits(self) -> Subject:
        if (self.box is not None) + (self.at is not None) + self.random > 1:
            raise InputError("the place is given twice; use only one of box, at and random.")
        if self.box is not None and self.scale is not None:
            raise InputError("scale goes with at or random; a box already says how large.")
        if self.at is not None and not all(abs(v) <= 1e6 for v in self.at):
            raise InputError(f"at is {self.at}; expected X,Y in pixels of the background.")
        if self.scale is not None and not 0 < self.scale <= 1e6:
            raise InputError(f"scale is {self.scale}; expected a number above 0, at most 1e6.")
        if self.concept is not None:
            for name in ("mask", "cut", "cut_box", "cut_points"):
                if getattr(self, name) is not None:
                    raise InputError(
                        f"{name} does not go with {self.concept.name}, a concept, whose object is "
                        "cut out already; leave it out."
                    )
        elif self.view is not None:
            raise InputError("view goes with a concept, of whose photos it is one.")
        return self

    @property
    def path(self) -> str | None:
        """The picture's file, None where it was handed over in memory."""
        return path_of(self.picture)

    @property
    def concept(self) -> Path | None:
        """The file, if it is one that `inlay learn` wrote, told by its suffix."""
        path = self.path
        return Path(path) if path is not None and path.lower().endswith(_CONCEPT) else None

    def cutout(self, max_pixels: int, trust_remote_code: bool = False) -> Cutout:
        """A picture's subject without what is round it; raises InputError as `cut` does."""
        if self.picture is None:
            raise unsaved("subject")
        return cut(
            self.picture,
            by=self.cut,
            mask=self.mask,
            box=self.cut_box,
            points=self.cut_points or (),
            max_pixels=max_pixels,
            trust_remote_code=trust_remote_code,
        )

    def outline(self, shape: Size, background: Size, seed: Seed = 0) -> tuple[Size, Box]:
        """The (width, height) its cut-out is resampled to, and the box it covers once it is turned.

        shape is the cut-out's own size. The box may lie partly outside the background. Raises
        InputError where the subject would be smaller than one pixel or larger than reason.
        """
        # It takes a while to load, and few places are random.
        rng = np.random.default_rng(seed) if self.random else None
        width, height = shape
        turned = self.turned(*shape)
        fits = min(background[0] / turned[0], background[1] / turned[1])
        if self.box is not None:
            scale, option = min(self.box.width / turned[0], self.box.height / turned[1]), "box"
        elif self.scale is not None:
            scale, option = self.scale, f"scale {self.scale:g}"
            if self.random and scale > fits:
                raise InputError(
                    f"{option} makes the subject larger than the background; expected at most "
                    f"{fits:.3g} for a random place wholly inside."
                )
        else:
            share = _SHARE if rng is None else rng.uniform(*_RANDOM_SHARE)
            scale, option = min(share * min(background) / max(turned), fits), "the default scale"
        new = max(1, math.floor(width * scale + 0.5)), max(1, math.floor(height * scale + 0.5))
        if max(width, height) * scale < 0.5:
            raise InputError(
                f"{option} makes the subject smaller than one pixel; give a larger one."
            )
        straight = self.rotate % 90 == 0
        if new[0] * new[1] > LARGEST_AREA or (not straight and max(new) > _LONGEST_TURNED):
            raise InputError(
                f"{option} makes the subject {new[0]} x {new[1]} pixels; give a smaller one."
            )
        wide, high = (math.ceil(side - 1e-6) for side in self.turned(*new))
        return new, Box(*self._corner(wide, high, background, rng), wide, high)

    def turned(self, width: float, height: float) -> tuple[float, float]:
        """The (width, height) of the box round a rectangle that is turned as the subject is."""
        angle = math.radians(self.rotate)
        cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
        if self.rotate % 90 == 0:
            cos, sin = float(round(cos)), float(round(sin))
        return width * cos + height * sin, width * sin + height * cos

    def _corner(self, width: int, height: int, size: Size, rng: np.random.Generator | None) -> Size:
        """The top left pixel of the turned subject in a background."""
        if rng is not None:
            # Rounding may make it a pixel larger than what was fitted.
            x, y = (max(whole - own, 0) for whole, own in zip(size, (width, height), strict=True))
            return int(rng.integers(x + 1)), int(rng.integers(y + 1))
        if self.box is not None:
            spare = self.box.width - width, self.box.height - height
            return self.box.x + spare[0] // 2, self.box.y + spare[1] // 2
        centre = self.at or (size[0] / 2, size[1] / 2)
        return math.floor(centre[0] - width / 2 + 0.5), math.floor(centre[1] - height / 2 + 0.5)


Subjects = Annotated[
    tuple[Subject, ...], Field(json_schema_extra={"minItems": 1, "maxItems": MOST_SUBJECTS})
]


def as_subjects(value: Any) -> tuple[Subject, ...]:
    """Subjects from one or a list of them: a Subject, a picture, or a mapping of its fields."""
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    if value is None or not 0 < len(listed) <= MOST_SUBJECTS:
        raise InputError(f"there is no subject, or too many; give 1 to {MOST_SUBJECTS} pictures.")
    subjects = []
    for number, item in enumerate(listed, 1):
        try:
            made = Subject(**item) if isinstance(item, Mapping) else item
            subjects.append(made if isinstance(made, Subject) else Subject(made))
        except InputError as error:
            where = f"subject {number}: " if len(listed) > 1 else ""
            raise InputError(f"{where}{error}") from None
    lost = sum(not (each.box or each.at or each.random) for each in subjects)
    if lost > 1:
        raise InputError(
            f"{lost} subjects would all lie in the middle; give each a box or a point, or random "
            "places."
        )
    return tuple(subjects)


@dataclass(frozen=True, eq=False)
class Cutout:
    """A subject without its background, cropped to where it is not transparent.

    rgb (h, w, 3) is its own colour even where the old background shone through, in the space of a
    profile (None is sRGB). concept is the file of a concept, whose picture is yet to be made: then
    all of it is grey. place is where it lay in its picture.
    """

    rgb: Image
    alpha: Image
    name: str
    sha256: str
    concept: Path | None = None
    place: Box | None = None
    space: bytes | None = field(default=None, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.alpha.shape[1], self.alpha.shape[0]


def cut(
    source: Any,
    *,
    by: str | None = None,
    mask: Any = None,
    box: Box | None = None,
    points: Sequence[tuple[float, float]] = (),
    max_pixels: int = DEFAULT_MAX_PIXELS,
    trust_remote_code: bool = False,
) -> Cutout:
    """Cut a subject out of its picture: a path, a PIL picture, a uint8 array or a Picture.

    by: "alpha" takes the picture's transparency, `box` what of it counts; "auto" or None the mask
    where one is given, alpha where the picture has some and no points are given, else our own
    network, in the box and at the points, which lie on the subject, where some are given; anything
    else is one of the ways of inlay.scene.cutout.find_alpha. Colours are
    multi-level foreground estimation (Germer et al. 2020). Raises InputError where nothing is found
    or inputs do not fit.
    """
    picture = source
    if not isinstance(source, Picture):
        picture = read_picture(source, role="subject", max_pixels=max_pixels)
    # Levels, and no floats of all of a large picture.
    opacity = picture.samples[..., -1] if picture.mode in ("LA", "RGBA") else None
    if by in (None, "auto"):
        clear = opacity is not None and opacity.min() < np.iinfo(opacity.dtype).max
        by = "mask" if mask is not None else "alpha" if clear and not points else "auto"
    if mask is not None and by != "mask":
        raise InputError(f"a mask is given but the cut is by {by}; leave out one of the two.")
    if points and by in ("alpha", "mask", "box", "grabcut"):
        raise InputError(f"points are given but the cut is by {by}; leave out one of the two.")
    box = None if box is None else picture.clip(box, "cut box")
    if by == "alpha":
        if opacity is None:
            raise InputError(f"{picture.name} has no transparency to cut by; give a mask or a box.")
        view = box or Box.of_size(picture.size)
        there = opacity[view.slices] >= max(LEAST_SHARE * opacity.max(), 1)
        seen = bounds(there)
        if seen is None:
            raise InputError(f"{picture.name} is fully transparent; give a subject with opacity.")
        place = seen.shifted(view.x, view.y)
        alpha = from_levels(opacity[place.slices]) * there[seen.slices]
        own = picture.colours(place)
        if ((alpha > 0) & (alpha < 1)).any():
            own = clean_rim(own, alpha, picture.name)
    else:
        from inlay.scene.cutout import find_alpha, on_thing
        from inlay.scene.matte import colours

        rgb, own = picture.rgb(), picture.colours()
        if opacity is not None:
            rgb, own = extend(rgb, opacity > 0), extend(own, opacity > 0)
        on = on_thing(picture, points)
        alpha = find_alpha(picture.name, rgb, by, mask, box, on, max_pixels, trust_remote_code)
        if opacity is not None:
            alpha = alpha * from_levels(opacity)
        seen = bounds(alpha)
        if seen is None:
            raise InputError(f"{picture.name} shows no subject; give a mask.")
        place, own = seen, colours(own, alpha, seen)
        alpha = np.ascontiguousarray(alpha[seen.slices])
    return Cutout(own, alpha, picture.name, picture.sha256, None, place, picture.space)
