"""A request as passes: which method runs on which scene, on whose picture, in which order.

Several subjects are passes one after the other, each on what the last one made; phases are steps
of their own, harmonize begins anew from what remove left, so that its method knows both pictures
and pasted colours are never rounded twice. No model is needed to plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inlay.errors import InputError
from inlay.methods.registry import Step
from inlay.pictures.box import Box
from inlay.pictures.picture import Picture
from inlay.pictures.read import Source, read_mask, read_picture
from inlay.request import (
    ComposeRequest,
    HarmonizeRequest,
    RemoveRequest,
    Request,
    SceneRequest,
)
from inlay.scene.cutout import Cutout, guess_mask
from inlay.scene.placement import bounding_size, place_all
from inlay.scene.subject import Subject
from inlay.scene.window import Layer, Region, Scene, merge

# All pictures of a call are held in memory until it returns: so many pixels.
_MAX_TOGETHER = 2_000_000_000
# Without a place the subject of a scene has this share of its shorter side, and its lower edge
# lies at this share of the height.
_SHARE = 0.5
_GROUND = 0.9
_GREY = 128


@dataclass(frozen=True, eq=False)
class PlannedStep:
    """A step of a request with the scenes that its method works on, one after the other.

    on and before are numbers of earlier steps, None for the picture that was handed in: on whose
    picture the first scene lies, and which one has no subjects yet; it is the scenes' clean picture
    where the step redraws what lies in the picture already.
    """

    step: Step
    scenes: Sequence[Scene]
    on: int | None = None
    before: int | None = None
    redraws: bool = False


@dataclass(frozen=True, eq=False)
class Plan:
    """All steps for one seed, and the subjects as they are laid into the picture."""

    steps: Sequence[PlannedStep]
    layers: Sequence[Layer] = ()


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a request's pictures hold, read once for all seeds.

    picture is what is worked on; cutouts are the subjects; region is what harmonize, remove and
    the phase remove work on; clean is the picture before pasting; drawing (height, width) the
    control picture in [0, 1]. read holds what the record names the hash of, by dotted place.
    """

    picture: Picture
    cutouts: Sequence[Cutout] = ()
    region: Region | None = None
    clean: Picture | None = None
    drawing: NDArray[np.float32] | None = None
    read: dict[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def read_inputs(request: Request, max_pixels: int, trust_remote_code: bool = False) -> Inputs:
    """Read every picture of a request.

    Pictures above max_pixels are refused; trust_remote_code lets a segmentation model run code of
    its own. Raises InputError.
    """
    if isinstance(request, ComposeRequest):
        return _compose_inputs(request, max_pixels, trust_remote_code)
    if isinstance(request, SceneRequest):
        width, height = request.size
        if width * height > max_pixels:
            raise InputError(
                f"size is {width}x{height}, {width * height} pixels in all; expected at most "
                f"{max_pixels}."
            )
        stages = len(request.method.settings.stages("scene")) if request.keep_phases else 1
        _check_memory(request, request.size, stages)
        cutouts = [each.cutout(max_pixels, trust_remote_code) for each in request.subjects]
        return Inputs(_canvas(request.size), cutouts, read=_handed_in(request, cutouts))
    if isinstance(request, HarmonizeRequest):
        return _harmonize_inputs(request, max_pixels)
    assert isinstance(request, RemoveRequest)
    picture = _picture(request, request.picture, "picture", max_pixels)
    mask = read_mask(request.mask, size=picture.size, role="mask", max_pixels=max_pixels)
    read = {"picture": picture, "mask": request.mask}
    return Inputs(picture, region=Region.of(mask), read=read)


def _compose_inputs(request: ComposeRequest, max_pixels: int, trust: bool) -> Inputs:
    notes = []
    phases = max(len(request.phases), len(request.method.settings.stages("compose")))
    held = max(phases, 1) if request.keep_phases else 1
    picture = _picture(request, request.background, "background", max_pixels, held)
    cutouts = [each.cutout(max_pixels, trust) for each in request.subjects]
    drawing = None
    if request.control is not None:
        drawing = read_mask(
            request.control,
            size=picture.size,
            role="control",
            white="lines on black",
            max_pixels=max_pixels,
        )
        steps = request.steps()
        if not any(step.choice.settings.follows_control() for step in steps):
            names = ", ".join(step.choice.name for step in steps)
            notes.append(f"{names}: the control picture is not used")
    region = None
    if "remove" in request.phases:
        region = _hole(request, picture, max_pixels)
    read = {"background": picture, **_handed_in(request, cutouts)}
    return Inputs(picture, cutouts, region, None, drawing, read, notes)


def _harmonize_inputs(request: HarmonizeRequest, max_pixels: int) -> Inputs:
    picture = _picture(request, request.picture, "picture", max_pixels)
    notes: list[str] = []
    if request.mask is None:
        mask = guess_mask(picture, notes)
    else:
        mask = read_mask(request.mask, size=picture.size, role="mask", max_pixels=max_pixels)
    clean = None
    if request.background is not None:
        clean = _picture(request, request.background, "background", max_pixels)
        if clean.size != picture.size:
            raise InputError(
                f"the background is {clean.width}x{clean.height} pixels and the picture "
                f"{picture.width}x{picture.height}; they must be of one size."
            )
    read = {"picture": picture, "mask": request.mask, "background": clean}
    return Inputs(picture, region=Region.of(mask), clean=clean, read=read, notes=notes)


def _picture(
    request: Request, source: Source, role: str, max_pixels: int, held: int = 1
) -> Picture:
    if source is None:
        raise InputError(
            f"the {role} was handed over in memory, not as a file; the picture cannot be made "
            "again."
        )
    picture = read_picture(source, role=role, max_pixels=max_pixels)
    _check_memory(request, picture.size, held)
    return picture


def _check_memory(request: Request, size: tuple[int, int], held: int) -> None:
    """Raises InputError where so many pictures of (width, height) are too much to hold.

    held: how many are kept for one that was asked for.
    """
    count = request.num_images
    if count > 1 and count * held * size[0] * size[1] > _MAX_TOGETHER:
        most = max(1, _MAX_TOGETHER // (held * size[0] * size[1]))
        raise InputError(
            f"num_images is {count}, too many at once for a picture of {size[0]} x {size[1]} "
            f"pixels; expected at most {most}."
        )


def _handed_in(request: ComposeRequest | SceneRequest, cutouts: Sequence[Cutout]) -> dict[str, Any]:
    """What the record hashes: files by their bytes, a subject in memory by its cut-out."""
    found = request.inputs()
    for number, (subject, cutout) in enumerate(zip(request.subjects, cutouts, strict=True)):
        if not isinstance(subject.picture, str):
            found[f"subjects.{number}.picture"] = subject.path or cutout
    return found


def _canvas(size: tuple[int, int]) -> Picture:
    """A grey picture: 8-bit RGB, sRGB."""
    samples = np.full((size[1], size[0], 3), _GREY, np.uint8)
    samples.setflags(write=False)
    digest = hashlib.sha256(samples.data).hexdigest()
    return Picture(samples, "RGB", None, "the scene", digest, None)


def _hole(request: ComposeRequest, picture: Picture, max_pixels: int) -> Region:
    """What goes before the subjects come: under the mask, else in their boxes.

    Raises InputError where there is neither, or nothing of it lies in the picture.
    """
    if request.remove_mask is not None:
        white = read_mask(
            request.remove_mask, size=picture.size, role="remove mask", max_pixels=max_pixels
        )
        return Region.of(white)
    inside = []
    for subject in request.subjects:
        if subject.box is None:
            raise InputError(
                "the phase remove takes out what is in the box; give each subject a box, or a "
                "mask of what is to go."
            )
        if (part := subject.box.intersect(Box.of_size(picture.size))) is not None:
            inside.append(part)
    if not inside:
        raise InputError(
            f"the box lies wholly outside the background, which is {picture.width} x "
            f"{picture.height} pixels."
        )
    whole = inside[0]
    for part in inside:
        whole = whole.hull(part)
    white = np.zeros((whole.height, whole.width), np.float32)
    for part in inside:
        white[part.shifted(-whole.x, -whole.y).slices] = 1
    return Region(whole, white)


def plan_of(request: Request, inputs: Inputs, seed: int) -> Plan:
    """The passes for one seed, from which random places are drawn; raises InputError."""
    steps = request.steps()
    if not isinstance(request, (ComposeRequest, SceneRequest)):
        assert inputs.region is not None
        return Plan([PlannedStep(steps[0], [Scene(inputs.region, clean=inputs.clean)])])
    size = inputs.picture.size
    subjects = list(request.subjects)
    if isinstance(request, SceneRequest):
        sizes = [cutout.size for cutout in inputs.cutouts]
        subjects = [_grounded(*pair, size) for pair in zip(subjects, sizes, strict=True)]
    layers = place_all(inputs.cutouts, size, subjects, seed)
    if isinstance(request, SceneRequest):
        whole = merge(layers)
        return Plan([PlannedStep(steps[0], [Scene(whole.region, whole, inverted=True)])], layers)
    laid = [merge(layers)] if request.together and len(layers) > 1 else layers
    below = 0 if "remove" in request.phases else None
    planned: list[PlannedStep] = []
    for number, step in enumerate(steps):
        if step.phase == "remove":
            assert inputs.region is not None
            planned.append(PlannedStep(step, [Scene(inputs.region)]))
        elif step.phase == "repose":
            scenes = [Scene(layer.region) for layer in laid]
            planned.append(PlannedStep(step, scenes, number - 1, below, redraws=True))
        else:
            scenes = [Scene(layer.region, layer) for layer in laid]
            planned.append(PlannedStep(step, scenes, below))
    return Plan(planned, layers)


def _grounded(subject: Subject, shape: tuple[int, int], size: tuple[int, int]) -> Subject:
    """The subject, in the lower middle of a scene where it names no place."""
    if subject.box is not None or subject.at is not None or subject.random:
        return subject
    width, height = bounding_size(*shape, subject.rotate)
    scale = subject.scale or min(
        _SHARE * min(size) / max(width, height), size[0] / width, size[1] / height
    )
    tall = height * scale
    # One that is higher than that keeps its head in the picture as long as it can.
    y = max(_GROUND * size[1] - tall / 2, min(tall / 2, size[1] / 2))
    return subject.model_copy(update={"at": (size[0] / 2, y), "scale": scale})
