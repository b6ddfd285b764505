"""Several subjects in one call: what is said once for all, and what once for each.

With one subject every argument is as `Place` takes it; with several, arguments that are lists
hold one value a subject.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from inlay.errors import InputError
from inlay.pictures.box import Box
from inlay.pictures.picture import Picture
from inlay.pictures.read import Source, read_mask
from inlay.request import Place, Request
from inlay.scene.cutout import Cutout
from inlay.scene.placement import LARGEST_AREA, choose_seeds, place
from inlay.scene.scene import Layer, Region, region_scene
from inlay.sweep import show

__all__ = [
    "Each",
    "Subject",
    "check_kind",
    "hole",
    "is_concept",
    "laid",
    "listed",
    "named_inputs",
    "where",
]

T = TypeVar("T")
# A value for one subject, or a list with one for each of several.
Each: TypeAlias = T | Sequence[T | None] | None

# The longer side of what stands for a concept, where no box says it; see --scale.
_STAND_IN = 512

# With several subjects these are lists, as one value for all would lay them over each other.
_EACH = ("box", "at", "mask", "cut_box")
# These may be lists; one value is for all.
_EITHER = ("scale", "random", "rotate", "flip", "cut")


@dataclass(frozen=True, eq=False)
class Subject:
    """A subject's picture, the mask of what it is there, and where it goes."""

    source: Any
    mask: Any
    place: Place

    @property
    def concept(self) -> bool:
        """Whether it is a file that `inlay learn` wrote, by its suffix."""
        return is_concept(self.source)

    def cut(self, max_pixels: int) -> Cutout:
        """The subject without its own picture; raises InputError as inlay.scene.cutout.cut does.

        A concept has no picture yet: grey of the box's size, or of the aspect that it was
        learnt with.
        """
        if self.concept:
            return self._stand_in()
        from inlay.scene.cutout import cut

        return cut(
            self.source,
            by=self.place.cut,
            mask=self.mask,
            box=self.place.cut_box,
            max_pixels=max_pixels,
            trust_remote_code=self.place.trust_remote_code,
        )

    def _stand_in(self) -> Cutout:
        from inlay.checkpoints.concept import read_concept
        from inlay.record import file_sha256

        path, place = Path(self.source), self.place.placement
        for name, given in (
            ("mask", self.mask),
            ("cut", self.place.cut),
            ("cut_box", self.place.cut_box),
            ("rotate", place.rotate or None),
            ("flip", place.flip or None),
        ):
            if given is not None:
                raise InputError(
                    f"{name} does not go with {path.name}, a concept, which has no picture "
                    "of its own; leave it out."
                )
        aspect = read_concept(path).aspect
        width = round(_STAND_IN * min(1.0, aspect))
        height = round(_STAND_IN * min(1.0, 1 / aspect))
        if place.box is not None:
            width, height = place.box.width, place.box.height
            if width * height > LARGEST_AREA:
                raise InputError(
                    f"the box is {width} x {height} pixels, too large; give a smaller one."
                )
        grey = np.full((max(height, 1), max(width, 1), 3), 0.5, np.float32)
        alpha = np.ones(grey.shape[:2], np.float32)
        return Cutout(grey, alpha, path.name, file_sha256(path), path)


def is_concept(source: Any) -> bool:
    """Whether a subject is the file of a concept, by its suffix; it may not be there."""
    return isinstance(source, (str, os.PathLike)) and str(source).lower().endswith(".safetensors")


def check_kind(subjects: Sequence[Subject], requests: Mapping[str, Request], joint: bool) -> None:
    """Raises InputError where the subjects are not of the kind that a method takes."""
    learnt = [each for each in subjects if each.concept]
    for name, request in requests.items():
        method = request.method
        if method.concept and len(learnt) < len(subjects):
            raise InputError(
                f"{method.name} puts in objects that `inlay learn` has learnt, and one of the "
                "subjects is a picture; learn it first, or use another method."
            )
        if learnt and not method.concept:
            where = f"the phase {name}" if name else f"the method {method.name}"
            raise InputError(
                f"{Path(learnt[0].source).name} is a concept, and {where} needs a picture "
                "of the subject; use dreamcom without phases, or a picture."
            )
    if learnt and joint:
        raise InputError("concepts are put in one after the other; leave out together.")


def listed(subject: Any, values: Mapping[str, Any]) -> list[Subject]:
    """The subjects with the arguments for each; raises InputError where they do not match.

    subject is a picture or a list of them; values are Place's arguments and `mask`. One subject in
    a list is as one without.
    """
    sources = list(subject) if isinstance(subject, (list, tuple)) else [subject]
    if not sources:
        raise InputError("there is no subject; give at least one picture.")
    if len(sources) == 1:
        split = {name: [value] for name, value in values.items()}
        if sources[0] is not subject:
            split = {name: _of_one(value) for name, value in values.items()}
    else:
        split = {name: _split(name, value, len(sources)) for name, value in values.items()}
    made = []
    for number, source in enumerate(sources):
        own = {name: each[number] for name, each in split.items()}
        made.append(Subject(source, own.pop("mask"), Place.of(**own)))
    places = [each.place.placement for each in made]
    lost = sum(not (each.box or each.at or each.random) for each in places)
    if lost > 1:
        raise InputError(
            f"{lost} subjects would all lie in the middle; give each a box or a point, or random "
            "places."
        )
    return made


def _of_one(value: Any) -> list[Any]:
    """The only subject's value, in a list of its own or not."""
    return list(value) if isinstance(value, (list, tuple)) and len(value) == 1 else [value]


def _split(name: str, value: Any, count: int) -> list[Any]:
    """One value for each of several subjects."""
    if value is None or name not in (*_EACH, *_EITHER):
        return [value] * count
    # An array is a picture where a mask is asked for, and numbers everywhere else.
    listed = isinstance(value, (list, tuple)) or (name != "mask" and isinstance(value, np.ndarray))
    if not listed and name in _EITHER:
        return [value] * count
    if not listed or len(value) != count:
        for_all = ", or one value for all" if name in _EITHER else ""
        raise InputError(
            f"{name} is {' '.join(show(value).split())}; expected a list of {count}, one for each "
            f"subject{for_all}."
        )
    return list(value)


def named_inputs(subjects: Sequence[Subject], cutouts: Sequence[Cutout]) -> dict[str, Any]:
    """What the record names: "subject" and "mask", of several "subject_1", "mask_1" and so on."""
    named: dict[str, Any] = {}
    for number, (subject, cutout) in enumerate(zip(subjects, cutouts, strict=True), 1):
        end = f"_{number}" if len(subjects) > 1 else ""
        # A file is recorded by its path, so that the picture can be made again.
        is_file = isinstance(subject.source, (str, os.PathLike))
        named["subject" + end] = subject.source if is_file else cutout
        named["mask" + end] = subject.mask
    return named


def where(subjects: Sequence[Subject], together: bool) -> dict[str, Any]:
    """Where the subjects go, for the record; one subject's is its place alone."""
    if len(subjects) == 1:
        return subjects[0].place.as_dict()
    places = [subject.place.as_dict() for subject in subjects]
    return {"subjects": places, "together": together}


def laid(
    subjects: Sequence[Subject], cutouts: Sequence[Cutout], size: tuple[int, int], seed: int
) -> list[Layer]:
    """The subjects as they lie in a background of (width, height); random places keep apart."""
    placements = [subject.place.placement for subject in subjects]
    seeds = choose_seeds([cutout.size for cutout in cutouts], size, placements, seed)
    return [
        place(cutout, size, placement, own)
        for cutout, placement, own in zip(cutouts, placements, seeds, strict=True)
    ]


def hole(
    subjects: Sequence[Subject], mask: Source | None, picture: Picture, max_pixels: int
) -> Region:
    """What is to go before the subjects come: under the mask, else in their boxes.

    Raises InputError where there is neither, or nothing of it lies in the picture.
    """
    if mask is not None:
        white = read_mask(mask, size=picture.size, role="remove mask", max_pixels=max_pixels)
        return region_scene(picture, white).region
    whole: Box | None = None
    inside = []
    for subject in subjects:
        box = subject.place.placement.box
        if box is None:
            raise InputError(
                "the phase remove takes out what is in the box; give each subject a box, or a "
                "mask of what is to go."
            )
        if (part := box.intersect(Box.of_size(picture.size))) is not None:
            inside.append(part)
            whole = part if whole is None else whole.hull(part)
    if whole is None:
        raise InputError(
            f"the box lies wholly outside the background, which is {picture.width} x "
            f"{picture.height} pixels."
        )
    white = np.zeros((whole.height, whole.width), np.float32)
    for part in inside:
        white[part.shifted(-whole.x, -whole.y).slices] = 1
    return Region(whole, white)
