"""A job: checked requests on pictures that are read, run for each seed and recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inlay.chain import Chain, Link, Stage
from inlay.composite import Composite
from inlay.methods.base import Settings
from inlay.phases import described, main_phase
from inlay.pictures.picture import Picture
from inlay.record import build_record
from inlay.request import Request

if TYPE_CHECKING:
    from inlay.diffusion.backbone import Backbone

__all__ = ["Job"]


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be made.

    requests are by phase, or one under the empty name; all have one seed and one number of
    pictures. links_of makes the links of a seed, which go by the same names; with `varied` their
    scenes hang on the seed. inputs and place are for the record. keep: each phase's picture stays,
    or without phases each of the method's stages.
    """

    requests: Mapping[str, Request]
    start: Picture
    links_of: Callable[[int], Sequence[Link]]
    inputs: Mapping[str, Any]
    place: Mapping[str, Any]
    notes: Sequence[str] = ()
    varied: bool = False
    keep: bool = False

    def run(
        self, load: Callable[[], Backbone], chain: Mapping[str, Any], model: Mapping[str, Any]
    ) -> Composite:
        """Make every picture.

        load opens the checkpoint, where one is needed; chain is what Chain takes besides, model
        what the record says of the checkpoint besides. Raises InputError, and whatever the
        callback raises.
        """
        drawn = chain.get("given", {}).get("control") is not None
        for each in self.requests.values():
            each.settings.check_use(each.verb, drawn)
        names = list(self.requests)
        request = self.requests[names[0]]
        links = self.links_of(request.seed)
        started = time.perf_counter()
        needed = any(each.method.needs_model for each in self.requests.values())
        backbone = load() if needed else None
        loaded = time.perf_counter()
        runs = Chain(backbone, seeds=request.num_images, keep=self.keep, **chain)
        result: Composite | None = None
        for seed in range(request.seed, request.seed + request.num_images):
            if self.varied and seed > request.seed:
                links = self.links_of(seed)
            before = time.perf_counter()
            stages = runs.run(self.start, links, seed, self.notes)
            timings = {
                "load_s": round(loaded - started, 4),
                "run_s": round(time.perf_counter() - before, 4),
            }
            kept = {}
            for number, name in enumerate(names, 1):
                if not self.keep and number < len(names):
                    continue
                stage = stages[name]
                more = {
                    "timings": timings,
                    "adapter": runs.adapter if self._follow(names[:number]) else None,
                    **model,
                }
                record = self._record(names[:number], backbone, seed, stage, **more)
                kept[name] = stage.picture, record
            if name == "":
                own = request.settings.stages(request.verb)
                kept = {
                    name: (
                        part.picture,
                        self._record([""], backbone, seed, part, own[name], **more),
                    )
                    for name, part in stage.parts.items()
                }
            if result is None:
                result = Composite([], [], stage.window, stage.region, stage.effect)
            result.pictures.append(stage.picture)
            result.records.append(record)
            if self.keep:
                result.kept.append(kept)
        assert result is not None
        return result

    def _follow(self, names: Sequence[str]) -> bool:
        return any(self.requests[name].settings.follows_control() for name in names)

    def _record(
        self,
        names: Sequence[str],
        backbone: Backbone | None,
        seed: int,
        stage: Stage,
        settings: Settings | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """The record of the picture after the requests of these names, with the settings given or
        else the main one's."""
        main = self.requests[main_phase(names)]
        done = {name: self.requests[name] for name in names}
        phased = names[0] != ""
        needed = any(each.method.needs_model for each in done.values())
        inputs = dict(self.inputs)
        if len(done) < len(self.requests) and not self._follow(names):
            # The drawing is for a phase that is yet to come.
            inputs.pop("control", None)
        return build_record(
            verb="compose" if phased else main.verb,
            method=main.method.name,
            preset=main.preset,
            settings=(settings or main.settings).model_dump(mode="json"),
            seed=seed,
            window=stage.window,
            region=stage.region,
            notes=stage.notes,
            harmonizer=stage.harmonizer,
            backbone=backbone if needed else None,
            inputs=inputs,
            request=self.place,
            phases=[described(*item, seed) for item in done.items()] if phased else None,
            **more,
        )
