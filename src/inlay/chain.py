"""Runs of methods on a picture, each on what an earlier one made of it.

Every call of a Composer is a chain: mostly of one run, of several for several subjects, and of
several requests for a composition in phases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from inlay.methods.base import Context, Settings
from inlay.pictures.box import Box
from inlay.pictures.picture import Picture
from inlay.request import Request
from inlay.scene.scene import Scene, invert
from inlay.scene.window import Painted, Window, stitch

if TYPE_CHECKING:
    from inlay.diffusion.backbone import Backbone
    from inlay.diffusion.harmonizer import Harmonizer
    from inlay.diffusion.t2i_adapter import ControlAdapter

__all__ = ["Callback", "Chain", "Link", "SceneOf", "Stage"]

Callback = Callable[[int, int, Any], None]
# From the picture so far, and the pictures after the links that are done, by name; the one that
# was handed in goes by the empty name.
SceneOf: TypeAlias = Callable[[Picture, Mapping[str, Picture]], Scene]

# Even a classical method needs some surroundings to look at: so many pixels.
_LEAST = 64


@dataclass(frozen=True, eq=False)
class Link:
    """One request, run on one scene after the other.

    on is the name of the link on whose picture it works, None for the picture handed in.
    """

    name: str
    request: Request
    scenes: Sequence[SceneOf]
    on: str | None = None


@dataclass(frozen=True, eq=False)
class Stage:
    """A picture on its way.

    window is the smallest box round all that methods saw of it so far; region and effect say where
    it may differ from the picture handed in: a box, and a mask (h, w) in it, 0 or 1. notes are what
    methods had to say until then. harmonizer is one that had a part in it; parts are the stages of
    the method's last run, by name, each without parts of its own.
    """

    picture: Picture
    window: Box
    region: Box
    effect: NDArray[np.float32]
    notes: Sequence[str] = ()
    harmonizer: Harmonizer | None = None
    parts: Mapping[str, Stage] = field(default_factory=dict)

    def then(self, later: Stage) -> Stage:
        """The stage after another run, which began with this one's picture."""
        window = self.window.hull(later.window)
        if not later.effect.any():
            return Stage(later.picture, window, self.region, self.effect)
        if not self.effect.any():
            return Stage(later.picture, window, later.region, later.effect)
        region = self.region.hull(later.region)
        effect = np.zeros((region.height, region.width), np.float32)
        for part in (self, later):
            here = part.region.shifted(-region.x, -region.y).slices
            effect[here] = np.maximum(effect[here], part.effect)
        return Stage(later.picture, window, region, effect)


@dataclass
class Chain:
    """Runs links, for one seed after the other.

    callback hears the progress over all runs of all `seeds` seeds as one count, on_phase the name
    of each link that has one as it begins. given is what every Context gets besides; contexts are
    those of the last seed's runs. keep: stages have the parts that their method made.
    """

    backbone: Backbone | None
    callback: Callback | None = None
    previews: bool = False
    seeds: int = 1
    on_phase: Callable[[str], None] | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    keep: bool = False
    contexts: list[Context] = field(default_factory=list)
    _done: int = 0
    _windows: dict[str, tuple[SceneOf, Window]] = field(default_factory=dict, repr=False)

    def run(
        self, start: Picture, links: Sequence[Link], seed: int, notes: Sequence[str] = ()
    ) -> dict[str, Stage]:
        """What `start` is after each link, by its name; `notes` are said already."""
        notes = list(notes)
        sizes = [_steps(link.request.settings) for link in links for _ in link.scenes] * self.seeds
        stages: dict[str, Stage] = {}
        self.contexts = []
        for link in links:
            if self.on_phase is not None and link.name:
                self.on_phase(link.name)
            method, settings = link.request.method, link.request.settings
            backbone = self.backbone if method.needs_model else None
            stage = None if link.on is None else stages[link.on]
            for scene_of in link.scenes:
                window = self._window(link, scene_of, start, stage, stages)
                context = Context(
                    seed,
                    self._counted(sizes, len(links) == 1),
                    self.previews,
                    verb=link.request.verb,
                    **self.given,
                )
                self.contexts.append(context)
                painted = method.run(window, backbone, settings, context)
                used = context.opened_harmonizer
                if used is None and stage is not None:
                    used = stage.harmonizer
                parts = {
                    name: _after(start, stage, window, part)
                    for name, part in (painted.stages.items() if self.keep else ())
                }
                stage = replace(_after(start, stage, window, painted), harmonizer=used, parts=parts)
                notes += [line for line in context.notes if line not in notes]
                self._done += 1
            if stage is not None:
                said = tuple(notes)
                parts = {name: replace(part, notes=said) for name, part in stage.parts.items()}
                stages[link.name] = replace(stage, notes=said, parts=parts)
        return stages

    @property
    def adapter(self) -> ControlAdapter | None:
        """The T2I-Adapter that a method opened for the last seed."""
        return next((each.opened for each in self.contexts if each.opened is not None), None)

    def _window(
        self,
        link: Link,
        scene_of: SceneOf,
        start: Picture,
        stage: Stage | None,
        stages: Mapping[str, Stage],
    ) -> Window:
        """The window of a scene; one on the picture handed in serves every seed."""
        known = self._windows.get(link.name)
        if stage is None and known is not None and known[0] is scene_of:
            return known[1]
        settings = link.request.settings
        pictures = {"": start, **{name: done.picture for name, done in stages.items()}}
        scene = scene_of(start if stage is None else stage.picture, pictures)
        if settings.works_on_background():
            scene = invert(scene)
        native = _LEAST
        if link.request.method.needs_model and self.backbone is not None:
            native = self.backbone.native_size
        window = Window.of(scene, float(getattr(settings, "context", 0.25)), native)
        if stage is None:
            self._windows[link.name] = scene_of, window
        return window

    def _counted(self, sizes: Sequence[int], alike: bool) -> Callback | None:
        """The callback for the next run; `alike` runs all take as many steps as this one."""
        callback, done = self.callback, self._done
        if callback is None or len(sizes) == 1:
            return callback
        before, size, whole = sum(sizes[:done]), sizes[done], sum(sizes)

        def tell(step: int, steps: int, preview: Any) -> None:
            if alike:
                callback(done * steps + step, len(sizes) * steps, preview)
            else:
                callback(before + round(size * step / max(steps, 1)), whole, preview)

        return tell


def _after(start: Picture, stage: Stage | None, window: Window, painted: Painted) -> Stage:
    """The stage after a run on `start`, or on the picture of the stage before."""
    picture, region, effect = stitch(start if stage is None else stage.picture, window, painted)
    made = Stage(picture, window.box, region, effect)
    return made if stage is None else stage.then(made)


def _steps(settings: Settings) -> int:
    """About how many steps a run takes: its share of the progress, no more."""
    for name in ("num_iterations", "num_inference_steps"):
        if steps := int(getattr(settings, name, 0)):
            return steps * int(getattr(settings, "rounds", 1))
    return 1
