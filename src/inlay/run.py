"""Run a request: its passes for each seed, one picture and one record each."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from inlay.methods.base import Callback, Checkpoint, Context
from inlay.pictures.arrays import grow
from inlay.pictures.picture import Picture
from inlay.pictures.read import DEFAULT_MAX_PIXELS
from inlay.plan import PlannedStep, Progress, plan_of, read_inputs
from inlay.request import Request
from inlay.result import Result, State, Used, identify, record_of
from inlay.scene.fill import mend_alpha
from inlay.scene.network import networks_from_now
from inlay.scene.pieces import piecewise
from inlay.scene.shadow import Ground, shade
from inlay.scene.stitch import GROWN, Painted, Scene, Window, stitch
from inlay.settings import BatchSize, as_batch_size, as_flag

if TYPE_CHECKING:
    from inlay.diffusion.backbone import Backbone


# A window of a classical method is not enlarged, so it needs this many pixels a side.
_LEAST = 64
_TOO_SMALL = "the embedded checkpoint paints textures, not things; for {} use a larger one"
_log = logging.getLogger("inlay")


@dataclass(frozen=True)
class Options:
    """How a request is run; none of it changes a picture, but for rounding in a batch.

    callback(step, total, preview) hears the progress over all passes and may raise Cancelled,
    on_phase the name of each phase as it begins; previews asks for preview pictures. Pictures
    above max_pixels are refused; trust_remote_code lets a segmentation model run code of its own.
    batch_size is how many pictures of num_images go through the network together, whose bytes then
    are those of each alone but for rounding (1 of 255); "auto" is what fits into memory.
    """

    callback: Callback | None = None
    on_phase: Callable[[str], None] | None = None
    previews: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS
    trust_remote_code: bool = False
    batch_size: BatchSize = 1

    def __post_init__(self) -> None:
        as_batch_size(self.batch_size)
        as_flag(self.trust_remote_code, "trust_remote_code")


def run(request: Request, checkpoint: Checkpoint, options: Options) -> Result:
    """Make every picture of one request, see run_all(); raises what it raises."""
    (outcome,) = run_all([request], checkpoint, [options], options.batch_size)
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def run_all(
    requests: Sequence[Request],
    checkpoint: Checkpoint,
    options: Sequence[Options],
    batch_size: BatchSize,
) -> list[Result | BaseException]:
    """Make every picture of several requests, each with options of its own but for their
    batch_size: so many pictures go through the network together.

    The checkpoint is loaded only where a method needs one, and held while passes run, so that
    several threads may share it. What a request raised, such as InputError or what its callback
    did, stands in place of its result, and the others go on. All inputs are read at once. Of
    several pictures in a batch callbacks are called in other threads, one at a time.
    """
    outcomes: list[Any] = [None] * len(requests)
    jobs: list[tuple[_Passes, int]] = []
    for place, (request, told) in enumerate(zip(requests, options, strict=True)):
        try:
            passes = _Passes(request, checkpoint, told, place)
            jobs += [(passes, number) for number in range(request.num_images)]
        except Exception as error:
            outcomes[place] = error
    needs_model = any(passes.needs_model for passes, _ in jobs)
    with checkpoint.lock if needs_model else nullcontext():
        started = time.perf_counter()
        backbone = checkpoint.backbone if needs_model else None
        load, size = round(time.perf_counter() - started, 4), 1
        if backbone is not None and batch_size != 1:
            from inlay.diffusion.batch import fitting, run_together

            size = fitting(backbone) if batch_size == "auto" else batch_size
        for first in range(0, len(jobs), size):
            images = [
                passes.of(number)
                for passes, number in jobs[first : first + size]
                if not isinstance(outcomes[passes.place], BaseException)
            ]
            started, made = time.perf_counter(), list[Any]()
            joins = len(images) > 1 and all(image.joins for image in images)
            if joins and backbone is not None:
                made = run_together(backbone, [image.make for image in images])
            for image in () if made else images:
                try:
                    made.append(image.make(backbone))
                except Exception as error:
                    made.append(error)
            seconds = {"load_s": load, "run_s": round(time.perf_counter() - started, 4)}
            for image, states in zip(images, made, strict=True):
                before = outcomes[image.place]
                if isinstance(before, BaseException):
                    continue
                if not isinstance(states, BaseException):
                    image.backbone = backbone
                    together = len(images) if joins else 1
                    states = image.record(before, states, seconds, together)
                outcomes[image.place] = states
    return outcomes


class _Passes:
    """What the passes of one request share: what was read, the plan, windows, the progress."""

    def __init__(
        self, request: Request, checkpoint: Checkpoint, options: Options, place: int
    ) -> None:
        self.request, self.checkpoint, self.options = request, checkpoint, options
        self.place, self.number = place, 0
        self.keep = bool(request.kept_names())
        networks = networks_from_now()
        self.inputs = read_inputs(request, options.max_pixels, options.trust_remote_code)
        self.used = Used(networks=dict(networks))
        self.hashes = {place: identify(source) for place, source in self.inputs.read.items()}
        model, names = request.model, [step.invents() for step in request.steps()]
        small = model is None or "embedded" in (model.name, model.family)
        weak = [_TOO_SMALL.format(name) for name in names if name and small]
        for line in weak:
            _log.info(line)
        self.notes = [*self.inputs.notes, *weak]
        self.plan = plan_of(request, self.inputs, request.seed)
        methods = [each.choice.method for each in request.steps()]
        self.needs_model = any(method.needs_model for method in methods)
        # A concept that is painted changes the network's weights meanwhile.
        self.joins = not any(method.paints_concepts for method in methods)
        self.backbone: Backbone | None = None
        # A window on the picture that was handed in serves every seed.
        self.windows: dict[Scene, Window] = {}
        self.progress = Progress(options.callback, self.plan, request.num_images)

    def of(self, number: int) -> _Passes:
        """These passes for the picture of that number, from 0."""
        own = copy(self)
        own.number = number
        return own

    def make(self, backbone: Backbone | None) -> list[State]:
        """The states after each step, on a backbone where a method needs one."""
        self.backbone = backbone if self.needs_model else None
        seed = self.request.seed + self.number
        if self.number and any(subject.random for subject in self.request.subjects_of()):
            self.plan, self.windows = plan_of(self.request, self.inputs, seed), {}
        states: list[State] = []
        notes = [*self.notes, *(self.backbone.notes if self.backbone else ())]
        for planned in self.plan.steps:
            step = planned.step
            if self.options.on_phase is not None and step.phase:
                self.options.on_phase(step.phase)
            state = None if planned.on is None else states[planned.on]
            for scene in planned.scenes:
                state = self.shaded(planned, scene, state, before=True)
                window = self.window(planned, scene, state, states)
                context = Context(
                    seed, self.progress.next(self.number), self.options.previews, verb=step.verb
                )
                context.control, context.models = self.inputs.drawing, self.checkpoint
                method, settings = step.choice.method, step.choice.settings
                network = self.backbone if method.needs_model else None
                if step.verb == "remove" and network is not None:
                    paint = partial(_paint, planned, network, context)
                    painted = piecewise(window, network.native_size, paint)
                else:
                    painted = method.run(window, network, settings, context)
                if not method.needs_model:
                    context.progress(1, 1)
                notes += [line for line in context.notes if line not in notes]
                state = self.advance(planned, scene, window, state, painted, context, notes)
            assert state is not None
            states.append(state)
        return states

    def window(
        self, planned: PlannedStep, scene: Scene, state: State | None, states: Sequence[State]
    ) -> Window:
        """A scene's window on the picture so far; states are those after earlier steps."""
        if state is None and scene in self.windows:
            return self.windows[scene]
        method, settings = planned.step.choice.method, planned.step.choice.settings
        least = _LEAST
        if self.backbone and method.needs_model:
            # A concept fills as much of the window as it did while it was learnt.
            least = 1 if method.paints_concepts else self.backbone.least_window
        full = scene
        if planned.redraws:
            before = self.inputs if planned.before is None else states[planned.before]
            full = replace(full, clean=before.picture)
        if settings.works_on_background():
            full = replace(full, inverted=True)
        picture = self.inputs.picture if state is None else state.picture
        context = getattr(settings, "context", 0.25)
        if context is None and scene.layer is not None and scene.layer.concept is not None:
            from inlay.checkpoints.concept import read_concept

            context = read_concept(scene.layer.concept).context
        window = Window.of(picture, full, float(context), least)
        if planned.step.verb == "remove" and window.under is not None:
            mended = mend_alpha(window.under, grow(window.alpha > 0, GROWN))
            window.under += (window.alpha if window.soft else 1) * (mended - window.under)
        if state is None:
            self.windows[scene] = window
        return window

    def shaded(
        self, planned: PlannedStep, scene: Scene, state: State | None, before: bool
    ) -> State | None:
        """The state with the shadows of what a scene lays into the picture, if it is time for them.

        Checkpoints see those on the ground before they work, but for the embedded one and its kind.
        """
        shadow, method = getattr(self.request, "shadow", None), planned.step.choice.method
        sees = method.needs_model and self.backbone and self.backbone.family != "embedded"
        if shadow is None or scene.layer is None or (before and not sees):
            return state
        on: Ground = "all" if not sees else "picture" if before else "subjects"
        layers = self.plan.layers if len(planned.scenes) == 1 else [scene.layer]
        for number in range(on == "subjects", len(layers)):
            picture, used = self.inputs.picture, self.used
            if state is not None:
                picture, used = state.picture, state.used
            networks = networks_from_now()
            made = shade(picture, layers, number, shadow, on)
            used = replace(used, networks={**used.networks, **networks})
            if made is not None:
                later = State(*made, made[1], used)
                state = later if state is None else state.then(later)
            elif state is not None:
                state = replace(state, used=used)
        return state

    def advance(
        self,
        planned: PlannedStep,
        scene: Scene,
        window: Window,
        state: State | None,
        painted: Painted,
        context: Context,
        notes: Sequence[str],
    ) -> State:
        """The state after what a step's method painted in a window, under a context."""
        step, settings = planned.step, planned.step.choice.settings
        before = replace(self.used if state is None else state.used, notes=tuple(notes))
        used = replace(
            before,
            adapter=context.adapter or before.adapter,
            harmonizer=context.harmonizer or before.harmonizer,
            ip_adapter=context.ip_adapter or before.ip_adapter,
        )

        def after(part: Painted, used: Used) -> State:
            picture = self.inputs.picture if state is None else state.picture
            made = State(*stitch(picture, window, part), window.box, used)
            made = made if state is None else state.then(made)
            return self.shaded(planned, scene, made, before=False) or made

        made, stages = after(painted, used), {}
        for name, part in painted.stages if self.keep else ():
            # Only the last stage is made of all that the method opened.
            own = settings.stages(step.verb)[name]
            shown = used.ip_adapter if getattr(own, "ip_adapter", "none") != "none" else None
            stages[name] = after(
                part, used if own == settings else replace(before, ip_adapter=shown)
            )
        return replace(made, stages=stages)

    def record(
        self,
        result: Result | None,
        states: Sequence[State],
        seconds: Mapping[str, float],
        together: int,
    ) -> Result:
        """The result, begun with the first picture, with this one, its stages and their records;
        `together` is how many pictures were in its batch.
        """
        last, steps = states[-1], self.request.steps()
        if result is None:
            result = Result([], [], last.window, last.region, last.mask, self.plan.layers)
        record_of = partial(self._record, seconds=seconds, together=together)
        record = record_of(self.request, last)
        kept: dict[str, tuple[Picture, dict[str, Any]]] = {}
        for number, (step, state) in enumerate(zip(steps, states, strict=True), 1):
            if step.phase and self.keep:
                own = record if state is last else record_of(self.request.after(number), state)
                kept[step.phase] = state.picture, own
        settings = steps[-1].choice.settings.stages(steps[-1].verb)
        for name, part in last.stages.items() if not steps[-1].phase else ():
            choice = self.request.method.model_copy(update={"settings": settings[name]})
            request = self.request.model_copy(update={"method": choice})
            kept[name] = part.picture, record_of(request, part)
        result.pictures.append(last.picture)
        result.records.append(record)
        if self.keep:
            result.kept.append(kept)
        return result

    def _record(
        self, request: Request, state: State, seconds: Mapping[str, float], together: int
    ) -> dict[str, Any]:
        """The record of one picture; its request makes that picture alone."""
        places, seed = request.inputs(), request.seed + self.number
        hashes = {place: known for place, known in self.hashes.items() if place in places}
        alone = {"seed": seed, "num_images": 1} | ({"keep_phases": False} if self.keep else {})
        request = request.model_copy(update=alone)
        needs_model = any(step.choice.method.needs_model for step in request.steps())
        backbone = self.backbone if needs_model else None
        layers = self.plan.layers
        record = record_of(request, backbone, self.checkpoint, state, hashes, layers, seconds)
        return record | ({"batch_size": together} if backbone and together > 1 else {})


def _paint(
    planned: PlannedStep, backbone: Backbone, context: Context, part: Window, *place: int
) -> Painted:
    """What a step's method makes of a part of its window; place is (number, count)."""
    number, count = place

    def tell(step: int, steps: int, preview: Any) -> None:
        context.progress(number * steps + step, count * steps, preview)

    choice = planned.step.choice
    return choice.method.run(part, backbone, choice.settings, replace(context, callback=tell))
