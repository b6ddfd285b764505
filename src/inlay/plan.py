"""A request as passes: which method runs on which scene, on whose picture, in which order.

Several subjects are passes one after the other, each on what the last one made; phases are steps
of their own, harmonize begins anew from what remove left, so that its method knows both pictures
and pasted colours are never rounded twice. No model is needed to plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from inlay.errors import InputError, unsaved
from inlay.methods.base import Callback, Settings
from inlay.methods.registry import Step
from inlay.pictures.arrays import FAINT, Box, Image
from inlay.pictures.colour import convert
from inlay.pictures.mask import read_mask
from inlay.pictures.picture import Picture
from inlay.pictures.read import read_picture
from inlay.request import (
    ComposeRequest,
    HarmonizeRequest,
    RemoveRequest,
    Request,
    SceneRequest,
)
from inlay.scene.cutout import find_thing, guess_mask
from inlay.scene.stitch import Layer, Region, Scene, merge, place
from inlay.scene.subject import Cutout, Subject

# All pictures of a call are held in memory until it returns: so many pixels.
_MAX_TOGETHER = 2_000_000_000
# Without a place the subject of a scene has this share of its shorter side, and its lower edge
# lies at this share of the height.
_SHARE = 0.5
_GROUND = 0.9
_GREY = 128
# How often a random place is drawn anew because others lie there.
_TRIES = 64


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


class Progress:
    """One count of steps over all passes of all pictures of a request."""

    def __init__(self, callback: Callback | None, plan: Plan, pictures: int) -> None:
        self.callback, self.passes = callback, sum(len(each.scenes) for each in plan.steps)
        self.sizes = [
            _length(each.step.choice.settings) for each in plan.steps for _ in each.scenes
        ]
        self.sizes *= pictures
        # How many steps each pass made, and how many passes of each picture have begun.
        self.done, self.begun = [0] * len(self.sizes), [0] * pictures

    def next(self, picture: int) -> Callback | None:
        """The callback for the next pass of a picture, by number."""
        callback, sizes, done = self.callback, self.sizes, self.done
        first, number = picture * self.passes, picture * self.passes + self.begun[picture]
        done[first:number] = sizes[first:number]
        self.begun[picture] += 1
        if callback is None or len(sizes) == 1:
            return callback

        def tell(step: int, steps: int, preview: Any) -> None:
            done[number] = round(sizes[number] * step / max(steps, 1))
            callback(sum(done), sum(sizes), preview)

        return tell


def _length(settings: Settings) -> int:
    """About how many steps a pass takes: its part of the progress, no more."""
    for name in ("num_iterations", "num_inference_steps"):
        if steps := int(getattr(settings, name, 0)):
            return steps * int(getattr(settings, "rounds", 1))
    return 1


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a request's pictures hold, read once for all seeds.

    picture is what is worked on; cutouts are the subjects; region is what harmonize, remove and
    the phase remove work on; clean is the picture before pasting; drawing (height, width) the
    control picture in [0, 1]. read holds what the record names the hash of, by dotted place.
    """

    picture: Picture
    cutouts: Sequence[Cutout]
    region: Region | None
    clean: Picture | None
    drawing: Image | None
    read: dict[str, Any]
    notes: Sequence[str]


def read_inputs(request: Request, max_pixels: int, trust_remote_code: bool = False) -> Inputs:
    """Read every picture of a request.

    Pictures above max_pixels are refused; trust_remote_code lets a segmentation model run code of
    its own. Raises InputError.
    """
    read, notes = request.inputs(), list[str]()

    def picture_of(role: str) -> Picture:
        source = getattr(request, role)
        if source is None:
            raise unsaved(role)
        read[role] = picture = read_picture(source, role=role, max_pixels=max_pixels)
        _check_memory(request, picture.size)
        return picture

    def mask_of(name: str, **told: Any) -> Image:
        told |= {"size": picture.size, "max_pixels": max_pixels, "notes": notes}
        return read_mask(getattr(request, name), role=request.role(name), **told)

    region = clean = drawing = None
    if isinstance(request, SceneRequest):
        _check_memory(request, request.size)
        grey = np.full((*request.size[::-1], 3), _GREY, np.uint8)
        picture = read_picture(grey, role="scene", max_pixels=max_pixels)
    else:
        picture = picture_of("background" if isinstance(request, ComposeRequest) else "picture")
    painted = any(step.choice.method.paints_concepts for step in request.steps())
    cutouts = []
    for number, subject in enumerate(request.subjects_of()):
        if subject.concept is None:
            cutout = subject.cutout(max_pixels, trust_remote_code)
        else:
            from inlay.scene.view import stand_in, view_of

            cutout = stand_in(subject) if painted else view_of(subject, picture, notes)
        if picture.mode in ("L", "LA") and np.ptp(cutout.rgb, axis=-1).max() > FAINT:
            notes.append(f"{picture.name} is grey: the colours of {cutout.name} are gone")
        if cutout.space != picture.space:
            rgb = convert(cutout.rgb, cutout.space, picture.space)
            cutout = replace(cutout, rgb=rgb, space=picture.space)
        cutouts.append(cutout)
        # A file is known by its bytes, a subject in memory by its cut-out.
        read[f"subjects.{number}.picture"] = subject.path or cutouts[-1]
    if isinstance(request, ComposeRequest):
        if request.control is not None:
            drawing = mask_of("control", white="lines on black")
            choices = [step.choice for step in request.steps()]
            if not any(choice.settings.follows_control() for choice in choices):
                names = ", ".join(choice.name for choice in choices)
                notes.append(f"{names}: the control picture is not used")
        if painted and request.shadow.kind in ("contact", "cast"):
            concepts = (each.concept for each in request.subjects if each.concept)
            notes += [f"{path.name} is a concept, which has no shadow" for path in concepts]
        if "remove" in request.phases:
            masked = request.remove_mask is not None
            region = (
                Region.of(mask_of("remove_mask", hole=True)) if masked else _boxes(request, picture)
            )
    elif isinstance(request, HarmonizeRequest):
        if request.background is not None:
            clean = picture_of("background")
            if clean.size != picture.size:
                raise InputError(
                    f"the background is {clean.width}x{clean.height} pixels and the picture "
                    f"{picture.width}x{picture.height}; they must be of one size."
                )
        if request.box is not None:
            mask = find_thing(picture, request.box)
        else:
            mask = guess_mask(picture, notes) if request.mask is None else mask_of("mask")
        region = Region.of(mask)
    elif isinstance(request, RemoveRequest):
        if request.box is None and request.point is None:
            region = Region.of(mask_of("mask", hole=True))
        else:
            region = Region.of(find_thing(picture, request.box, request.point, whole=True))
    return Inputs(picture, cutouts, region, clean, drawing, read, notes)


def _check_memory(request: Request, size: tuple[int, int]) -> None:
    """Raises InputError where a request's pictures of (width, height) are too much to hold."""
    count, pixels = request.num_images, max(1, len(request.kept_names())) * size[0] * size[1]
    if count > 1 and count * pixels > _MAX_TOGETHER:
        raise InputError(
            f"num_images is {count}, too many at once for a picture of {size[0]} x {size[1]} "
            f"pixels; expected at most {max(1, _MAX_TOGETHER // pixels)}."
        )


def _boxes(request: ComposeRequest, picture: Picture) -> Region:
    """What lies in the subjects' boxes; raises InputError for a subject without one."""
    boxes = [subject.box for subject in request.subjects if subject.box is not None]
    if len(boxes) < len(request.subjects):
        raise InputError(
            "the phase remove takes out what is in the box; give each subject a box, or a mask of "
            "what is to go."
        )
    inside = [part for box in boxes if (part := box.intersect(Box.of_size(picture.size)))]
    # Where none is, there is no place for a subject either, which is said of them.
    inside = inside or [Box(0, 0, 1, 1)]
    whole = reduce(Box.hull, inside)
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
    layers = _layers(request, inputs, seed)
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


def _layers(request: ComposeRequest | SceneRequest, inputs: Inputs, seed: int) -> list[Layer]:
    """Every subject where it lies; random places keep apart.

    The first one is placed with `seed`, so that it lies where it would lie alone. Each further one
    with a random place gets the first of a row of seeds that puts it clear of those before it;
    where none of them does, the one that covers least of theirs. Raises InputError as `place` does.
    """
    size = inputs.picture.size
    layers: list[Layer] = []
    taken: list[Box] = []
    for number, (subject, cutout) in enumerate(zip(request.subjects, inputs.cutouts, strict=True)):
        if isinstance(request, SceneRequest):
            subject = _grounded(subject, cutout.size, size)
        drawn = number and subject.random
        seeds = [[seed, number, n] for n in range(_TRIES)] if drawn else [seed]
        boxes = [subject.outline(cutout.size, size, each)[1] for each in seeds]
        common = [sum(b.area for other in taken if (b := box.intersect(other))) for box in boxes]
        best = common.index(min(common))
        layers.append(place(cutout, size, subject, seeds[best]))
        taken.append(boxes[best])
    return layers


def _grounded(subject: Subject, shape: tuple[int, int], size: tuple[int, int]) -> Subject:
    """The subject, in the lower middle of a scene where it names no place."""
    if subject.box is not None or subject.at is not None or subject.random:
        return subject
    width, height = subject.turned(*shape)
    scale = subject.scale or min(
        _SHARE * min(size) / max(width, height), size[0] / width, size[1] / height
    )
    tall = height * scale
    # One that is higher than that keeps its head in the picture as long as it can.
    y = max(_GROUND * size[1] - tall / 2, min(tall / 2, size[1] / 2))
    return subject.model_copy(update={"at": (size[0] / 2, y), "scale": scale})
