"""Run a request: its passes for each seed, one picture and one record each."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from inlay.methods.base import Callback, Checkpoint, Context, Settings
from inlay.methods.registry import Model
from inlay.pictures.arrays import Box, Image, grow
from inlay.pictures.picture import Picture
from inlay.pictures.read import DEFAULT_MAX_PIXELS
from inlay.plan import Plan, PlannedStep, plan_of, read_inputs
from inlay.request import Request
from inlay.result import Result, Used, identify, record_of
from inlay.scene.fill import mend_alpha
from inlay.scene.network import networks_from_now
from inlay.scene.pieces import piecewise
from inlay.scene.shadow import Ground, shade
from inlay.scene.stitch import GROWN, Painted, Scene, Window, stitch
from inlay.settings import as_flag

if TYPE_CHECKING:
    from inlay.diffusion.backbone import Backbone


# A window of a classical method is not enlarged, so it needs this many pixels a side.
_LEAST = 64
_TOO_SMALL = (
    "the embedded checkpoint paints textures, not things; for {} use --model with a larger one, "
    "see inlay models"
)
_log = logging.getLogger("inlay")


@dataclass(frozen=True)
class Options:
    """How a request is run; none of it changes a picture.

    callback(step, total, preview) hears the progress over all passes and may raise Cancelled,
    on_phase the name of each phase as it begins; previews asks for preview pictures. Pictures
    above max_pixels are refused; trust_remote_code lets a segmentation model run code of its own.
    """

    callback: Callback | None = None
    on_phase: Callable[[str], None] | None = None
    previews: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        as_flag(self.trust_remote_code, "trust_remote_code")


@dataclass(frozen=True, eq=False)
class State:
    """A picture on its way.

    region and mask say where it may differ from the picture handed in: a box, and 0 or 1 (h, w) in
    it. window is the smallest box round all that methods saw of it so far. stages are what the last
    pass's method made on its way, by name.
    """

    picture: Picture
    region: Box
    mask: Image
    window: Box
    used: Used = field(default_factory=Used)
    stages: Mapping[str, State] = field(default_factory=dict)

    def then(self, later: State) -> State:
        """The state after another pass, which began with this one's picture."""
        window = self.window.hull(later.window)
        if not later.mask.any():
            return replace(later, window=window, region=self.region, mask=self.mask)
        if not self.mask.any():
            return replace(later, window=window)
        region = self.region.hull(later.region)
        mask = np.zeros((region.height, region.width), np.float32)
        for part in (self, later):
            here = part.region.shifted(-region.x, -region.y).slices
            mask[here] = np.maximum(mask[here], part.mask)
        return replace(later, window=window, region=region, mask=mask)


def run(request: Request, checkpoint: Checkpoint, options: Options | None = None) -> Result:
    """Make every picture of a request.

    The checkpoint is loaded only where a method needs one, and held while passes run, so that
    several threads may share it. Raises InputError, and whatever the callback raises.
    """
    passes = _Passes(request, checkpoint, options or Options())
    with checkpoint.lock if passes.needs_model else nullcontext():
        started = time.perf_counter()
        passes.backbone = checkpoint.backbone if passes.needs_model else None
        load = round(time.perf_counter() - started, 4)
        result: Result | None = None
        for seed in range(request.seed, request.seed + request.num_images):
            started = time.perf_counter()
            states: list[State] = []
            notes = [*passes.notes, *(passes.backbone.notes if passes.backbone else ())]
            for planned in passes.plan_for(seed).steps:
                if passes.options.on_phase is not None and planned.step.phase:
                    passes.options.on_phase(planned.step.phase)
                state = None if planned.on is None else states[planned.on]
                for scene in planned.scenes:
                    state = passes.shaded(planned, scene, state, before=True)
                    window = passes.window(planned, scene, state, states)
                    state = passes.advance(planned, scene, window, state, seed, notes)
                assert state is not None
                states.append(state)
            if result is None:
                last = states[-1]
                result = Result([], [], last.window, last.region, last.mask, passes.plan.layers)
            seconds = {"load_s": load, "run_s": round(time.perf_counter() - started, 4)}
            passes.record(result, states, seed, seconds)
    assert result is not None
    return result


class _Passes:
    """What the passes of one request share: what was read, the plan, windows, the progress."""

    def __init__(self, request: Request, checkpoint: Checkpoint, options: Options) -> None:
        self.request, self.checkpoint, self.options = request, checkpoint, options
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
        self.needs_model = any(each.choice.method.needs_model for each in request.steps())
        self.backbone: Backbone | None = None
        self.windows: dict[Scene, Window] = {}
        self.progress = _Progress(options.callback, self.plan, request.num_images)

    def plan_for(self, seed: int) -> Plan:
        """The plan of a seed; only random places make it another one."""
        if seed > self.request.seed and any(s.random for s in self.request.subjects_of()):
            self.plan = plan_of(self.request, self.inputs, seed)
            self.windows.clear()
        return self.plan

    def window(
        self, planned: PlannedStep, scene: Scene, state: State | None, states: Sequence[State]
    ) -> Window:
        """A scene's window on the picture so far; states are those after earlier steps."""
        if state is None and scene in self.windows:
            # A window on the picture that was handed in serves every seed.
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
        seed: int,
        notes: list[str],
    ) -> State:
        """The state after one run of a step's method; what it has to say is added to notes."""
        step = planned.step
        method, settings = step.choice.method, step.choice.settings
        context = Context(seed, self.progress.next(), self.options.previews, verb=step.verb)
        context.control, context.models = self.inputs.drawing, self.checkpoint
        backbone = self.backbone if method.needs_model else None

        def paint(part: Window, number: int, count: int) -> Painted:
            def tell(step: int, steps: int, preview: Any) -> None:
                context.progress(number * steps + step, count * steps, preview)

            return method.run(part, backbone, settings, replace(context, callback=tell))

        if step.verb == "remove" and backbone is not None:
            painted = piecewise(window, backbone.native_size, paint)
        else:
            painted = method.run(window, backbone, settings, context)
        if not method.needs_model:
            context.progress(1, 1)
        notes += [line for line in context.notes if line not in notes]
        before = replace(self.used if state is None else state.used, notes=tuple(notes))
        used = replace(
            before,
            adapter=context.adapter or before.adapter,
            harmonizer=context.harmonizer or before.harmonizer,
        )

        def after(part: Painted, used: Used) -> State:
            picture = self.inputs.picture if state is None else state.picture
            made = State(*stitch(picture, window, part), window.box, used)
            made = made if state is None else state.then(made)
            return self.shaded(planned, scene, made, before=False) or made

        made, stages = after(painted, used), {}
        for name, part in painted.stages if self.keep else ():
            # Only the last stage is made of all that the method opened.
            whole = settings.stages(step.verb)[name] == settings
            stages[name] = after(part, used if whole else before)
        return replace(made, stages=stages)

    def record(
        self, result: Result, states: Sequence[State], seed: int, seconds: Mapping[str, float]
    ) -> None:
        """Put the pictures of one seed and their records into the result."""
        last, steps = states[-1], self.request.steps()
        record = self._record(self.request, last, seed, seconds)
        kept: dict[str, tuple[Picture, dict[str, Any]]] = {}
        for number, (step, state) in enumerate(zip(steps, states, strict=True), 1):
            if step.phase and self.keep:
                request = self.request.after(number)
                own = record if state is last else self._record(request, state, seed, seconds)
                kept[step.phase] = state.picture, own
        settings = steps[-1].choice.settings.stages(steps[-1].verb)
        for name, part in last.stages.items() if not steps[-1].phase else ():
            choice = self.request.method.model_copy(update={"settings": settings[name]})
            request = self.request.model_copy(update={"method": choice})
            kept[name] = part.picture, self._record(request, part, seed, seconds)
        result.pictures.append(last.picture)
        result.records.append(record)
        if self.keep:
            result.kept.append(kept)

    def _record(
        self, request: Request, state: State, seed: int, seconds: Mapping[str, float]
    ) -> dict[str, Any]:
        """The record of one picture; its request makes that picture alone."""
        needed = any(step.choice.method.needs_model for step in request.steps())
        backbone = self.backbone if needed else None
        update: dict[str, Any] = {"seed": seed, "num_images": 1, "model": None}
        if backbone is not None:
            update["model"] = Model(
                name=backbone.name,
                device=str(backbone.device),
                dtype=str(backbone.dtype).removeprefix("torch."),
                loras=tuple(self.checkpoint.loras),
                textual_inversions=tuple(self.checkpoint.textual_inversions),
            )
        if self.keep:
            update["keep_phases"] = False
        places = request.inputs()
        return record_of(
            request.model_copy(update=update),
            backbone,
            state.window,
            state.region,
            {place: known for place, known in self.hashes.items() if place in places},
            state.used,
            self.plan.layers,
            seconds,
        )


class _Progress:
    """One count of steps over all passes of all seeds."""

    def __init__(self, callback: Callback | None, plan: Plan, seeds: int) -> None:
        self.callback = callback
        steps = plan.steps
        self.sizes = [_length(each.step.choice.settings) for each in steps for _ in each.scenes]
        self.sizes *= seeds
        self.done = 0

    def next(self) -> Callback | None:
        """The callback for the next pass."""
        callback, done = self.callback, self.done
        self.done += 1
        if callback is None or len(self.sizes) == 1:
            return callback
        before, size, whole = sum(self.sizes[:done]), self.sizes[done], sum(self.sizes)

        def tell(step: int, steps: int, preview: Any) -> None:
            callback(before + round(size * step / max(steps, 1)), whole, preview)

        return tell


def _length(settings: Settings) -> int:
    """About how many steps a pass takes: its part of the progress, no more."""
    for name in ("num_iterations", "num_inference_steps"):
        if steps := int(getattr(settings, name, 0)):
            return steps * int(getattr(settings, "rounds", 1))
    return 1
