"""The front door in Python: a checkpoint that is kept open, and the verbs as calls."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from inlay.errors import InputError
from inlay.methods.base import Callback, Checkpoint
from inlay.pictures.arrays import Box
from inlay.pictures.read import Source
from inlay.request import ComposeRequest, HarmonizeRequest, RemoveRequest, Request, SceneRequest
from inlay.result import Result
from inlay.run import Options, run, run_all
from inlay.scene.subject import Subject
from inlay.settings import BatchSize


class Composer(Checkpoint):
    """Sets objects into pictures with one checkpoint, loaded when a method first needs it.

    Several threads may use one composer: while a method runs on the checkpoint the others wait.
    """

    @classmethod
    def from_pretrained(cls, model: str = "embedded", **options: Any) -> Composer:
        """A composer on "embedded", a diffusers folder, a single file or a hub id.

        Options are those of the class: family is "embedded" where its defaults hold, None as the
        folder says; device auto, cpu, cuda or mps; dtype auto, float32, bfloat16 or float16;
        memory auto, low, balanced or fast, see Backbone.place(); loras are files with their scales.
        Raises InputError when the checkpoint is first needed and
        cannot be loaded.
        """
        return cls(model, **options)

    def run(self, request: Request, options: Options | None = None, **given: Any) -> Result:
        """Make what a request asks for.

        Options may be given by name instead: callback(step, total, preview), which may raise
        Cancelled, on_phase, previews, max_pixels, trust_remote_code, batch_size. Raises InputError,
        also for a request whose checkpoint is not the one that is open here.
        """
        return run(self._here(request), self, options or Options(**given))

    def run_all(
        self,
        requests: Sequence[Request],
        options: Sequence[Options] | None = None,
        batch_size: BatchSize = "auto",
    ) -> list[Result | BaseException]:
        """Make what several requests ask for, `batch_size` pictures at a time; "auto" is as many
        as fit into memory. Those of one size and method go through the network together.

        Results are those of run(), but for rounding: within 1 of 255. Each request has options of
        its own, whose callback is called in another thread, one at a time. Where a request is
        refused, cancelled or fails, its place holds the exception, and the others go on.
        """
        told = options or [Options() for _ in requests]
        return run_all([self._here(request) for request in requests], self, told, batch_size)

    def _here(self, request: Request) -> Request:
        """A request for the model that is open."""
        wanted = request.model
        if wanted is not None and wanted.name != self.model:
            raise InputError(
                f"the request is for the model {wanted.name}, and {self.model} is open; open "
                "another Composer, or leave model out of the request."
            )
        beside = {
            "loras": tuple((os.fspath(path), scale) for path, scale in self.loras),
            "textual_inversions": tuple(map(os.fspath, self.textual_inversions)),
        }
        for name, own in beside.items() if wanted else ():
            if getattr(wanted, name) not in ((), own):
                raise InputError(
                    f"the request is for {name} that are not open; open another Composer, or leave "
                    "them out of the request."
                )
        if wanted is None and self.model != "embedded":
            # What was not given is as it is best on the model that is open.
            request = type(request)(**{**dict(request), "model": self.named})
        return request

    def compose(
        self,
        background: Source,
        subject: Source | Subject | Sequence[Source | Subject],
        *,
        box: Box | Sequence[float] | None = None,
        at: Sequence[float] | None = None,
        scale: float | None = None,
        mask: Source | None = None,
        cut: str | None = None,
        shadow: Any = None,
        method: str | None = None,
        preset: str | None = None,
        seed: int = 0,
        num_images: int = 1,
        callback: Callback | None = None,
        **more: Any,
    ) -> Result:
        """Put subjects into a background.

        For one subject, box, at, scale, mask and cut, and random, rotate, flip, cut_box,
        cut_points and view likewise, are those of Subject; several are a list of Subject
        objects. Further keywords are those of ComposeRequest (together, phases, remove,
        remove_mask, repose, control, keep_phases) and of Options (previews, on_phase, max_pixels,
        trust_remote_code, batch_size); all others are the method's settings. Raises InputError.
        """
        more |= {"background": background, "seed": seed, "num_images": num_images}
        more |= {"box": box, "at": at, "scale": scale, "mask": mask, "cut": cut, "shadow": shadow}
        more |= {"method": method, "preset": preset, "callback": callback}
        return self._make(ComposeRequest, more, subject)

    def harmonize(
        self,
        picture: Source,
        *,
        mask: Source | None = None,
        box: Box | Sequence[float] | None = None,
        background: Source | None = None,
        method: str | None = None,
        preset: str | None = None,
        callback: Callback | None = None,
        **more: Any,
    ) -> Result:
        """Make an object that is already pasted belong; see HarmonizeRequest and compose()."""
        more |= {"picture": picture, "mask": mask, "box": box, "background": background}
        more |= {"method": method, "preset": preset, "callback": callback}
        return self._make(HarmonizeRequest, more)

    def remove(
        self,
        picture: Source,
        *,
        mask: Source | None = None,
        box: Box | Sequence[float] | None = None,
        point: Sequence[float] | None = None,
        method: str | None = None,
        preset: str | None = None,
        callback: Callback | None = None,
        **more: Any,
    ) -> Result:
        """Take out what a mask (white) covers, or what is in a box or at a point (x, y); see
        RemoveRequest and compose().
        """
        given = {"mask": mask, "box": box, "point": point}
        more |= {name: value for name, value in given.items() if value is not None}
        more |= {"picture": picture, "method": method, "preset": preset, "callback": callback}
        return self._make(RemoveRequest, more)

    def scene(
        self,
        subject: Source | Subject | Sequence[Source | Subject],
        *,
        prompt: str = "",
        size: Sequence[int],
        method: str | None = None,
        preset: str | None = None,
        callback: Callback | None = None,
        **more: Any,
    ) -> Result:
        """Make a scene of size (width, height) round subjects; see SceneRequest and compose()."""
        more |= {"prompt": prompt, "size": size}
        more |= {"method": method, "preset": preset, "callback": callback}
        return self._make(SceneRequest, more, subject)

    def _make(
        self, kind: type[Request], keywords: Mapping[str, Any], subject: Any = None
    ) -> Result:
        """Sort the keywords of a call into subject, request, options and settings, and run it."""
        several = "subjects" in kind.model_fields
        place, fields, options = dict[str, Any](), dict[str, Any](), dict[str, Any]()
        settings: dict[str, Any] = {"name": None}
        for key, value in keywords.items():
            if key == "method":
                settings["name"] = value
            elif key in Options.__dataclass_fields__:
                options[key] = value
            elif known := kind.model_fields.get(key):
                if value is not None or known.default is not None:
                    fields[key] = value
            elif several and (known := Subject.model_fields.get(key)):
                if value is not None or known.default is not None:
                    place[key] = value
            else:
                settings[key] = value
        if several:
            listed = list(subject) if isinstance(subject, (list, tuple)) else [subject]
            if place and (len(listed) != 1 or isinstance(listed[0], Subject)):
                raise InputError(
                    f"{', '.join(place)} is for one subject that is a picture; give each of "
                    "several as Subject(picture, box=...)."
                )
            fields["subjects"] = [Subject(listed[0], **place)] if place else listed
        request = kind(**{"model": self.named, **fields}, method=settings)
        return self.run(request, Options(**options))
