"""A subject: its picture, what of that it is, where it goes; and its cut-out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import InstanceOf, PlainSerializer, WithJsonSchema, model_validator

from inlay.errors import InputError, show
from inlay.pictures.box import Box
from inlay.scene.cutout import Cutout, cut
from inlay.scene.placement import LARGEST_AREA
from inlay.settings import Form, as_flag, as_number, as_numbers, as_text, checked

_CONCEPT = ".safetensors"
# Of a scene, in pixels.
LEAST_SIDE, LARGEST_SIDE = 64, 8192
# The longer side of what stands for a concept, where no box says it; a scale is a factor on it.
_STAND_IN = 512


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


def as_size(value: Any, name: str) -> tuple[int, int]:
    """A scene's (width, height); raises InputError."""
    expected = "two whole numbers, width and height"
    width, height = (int(side) for side in as_numbers(value, name, 2, expected))
    if not all(isinstance(side, Integral) for side in value):
        raise InputError(f"{name} is {show(value)}; expected {expected}.")
    if not all(LEAST_SIDE <= side <= LARGEST_SIDE for side in (width, height)):
        raise InputError(
            f"{name} is {show(f'{width}x{height}')}; expected sides of {LEAST_SIDE} to "
            f"{LARGEST_SIDE} pixels."
        )
    return width, height


def as_source(value: Any, name: str) -> Any:
    """A path, a PIL picture, an array or None; raises InputError for anything else."""
    from PIL.Image import Image

    if value is None or isinstance(value, (str, os.PathLike, Image, np.ndarray)):
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
_Point = Annotated[
    tuple[float, float], checked(partial(as_numbers, count=2, expected="two numbers x, y"))
]
_Scale = Annotated[float, checked(partial(as_number, expected="a number above 0"))]
_Degrees = Annotated[float, checked(partial(as_number, expected="a finite number of degrees"))]


class Subject(Form):
    """What goes into a background: its picture, what it is in there, and where it goes.

    mask, cut ("alpha", "mask", "box", "grabcut" or a segmentation model; None chooses) and cut_box
    say what of the picture it is. The picture may be a file that `inlay learn` wrote.

    One of box, at and random says where it goes, else it lies in the middle. box: background
    pixels; it keeps its aspect and is centred there. at: its centre, in background pixels; scale:
    its pixels are multiplied by it (None: its longer side becomes 40% of the background's shorter
    side). random: a place, and where scale is None a scale, drawn from the seed, wholly inside.
    rotate: degrees, counter-clockwise. flip: mirrored left to right, before it is turned.
    Raises InputError.
    """

    picture: Source
    mask: Source = None
    box: BoxField = None
    at: _Point | None = None
    scale: _Scale | None = None
    random: Flag = False
    rotate: _Degrees = 0.0
    flip: Flag = False
    cut: Text = None
    cut_box: BoxField = None

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
            for name in ("mask", "cut", "cut_box", "rotate", "flip"):
                value = getattr(self, name)
                if value is not None and not (isinstance(value, (bool, float)) and not value):
                    raise InputError(
                        f"{name} does not go with {self.concept.name}, a concept, which has no "
                        "picture of its own; leave it out."
                    )
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
        """The subject without its own picture; raises InputError as inlay.scene.cutout.cut does.

        A concept has no picture yet: grey of the box's size, or of the aspect that it was learnt
        with.
        """
        if self.picture is None:
            raise InputError(
                "the subject was handed over in memory, not as a file; the picture cannot be made "
                "again."
            )
        if self.concept is not None:
            return self._stand_in(self.concept)
        return cut(
            self.picture,
            by=self.cut,
            mask=self.mask,
            box=self.cut_box,
            max_pixels=max_pixels,
            trust_remote_code=trust_remote_code,
        )

    def _stand_in(self, path: Path) -> Cutout:
        from inlay.checkpoints.concept import read_concept
        from inlay.pictures.files import file_sha256

        aspect = read_concept(path).aspect
        width = round(_STAND_IN * min(1.0, aspect))
        height = round(_STAND_IN * min(1.0, 1 / aspect))
        if self.box is not None:
            width, height = self.box.width, self.box.height
            if width * height > LARGEST_AREA:
                raise InputError(
                    f"the box is {width} x {height} pixels, too large; give a smaller one."
                )
        grey = np.full((max(height, 1), max(width, 1), 3), 0.5, np.float32)
        alpha = np.ones(grey.shape[:2], np.float32)
        return Cutout(grey, alpha, path.name, file_sha256(path), path)


def as_subjects(value: Any) -> tuple[Subject, ...]:
    """Subjects from one or a list of them: a Subject, a picture, or a mapping of its fields."""
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    if not listed or value is None:
        raise InputError("there is no subject; give at least one picture.")
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
