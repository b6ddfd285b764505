"""The one front door: pictures and a request go in, a composite and its record come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inlay import methods
from inlay.around import as_size, canvas, scene_links
from inlay.chain import Callback, Link
from inlay.composite import Composite
from inlay.errors import InputError
from inlay.job import Job
from inlay.opened import Opened
from inlay.phases import asked, linked
from inlay.pictures.box import Box
from inlay.pictures.read import (
    DEFAULT_MAX_PIXELS,
    Source,
    read_mask,
    read_picture,
)
from inlay.request import Request, as_flag
from inlay.scene.scene import guess_mask, region_scene
from inlay.subjects import Each, check_kind, hole, is_concept, laid, listed, named_inputs, where

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Composer", "Composite"]


class Composer(Opened):
    """Sets objects into pictures with one checkpoint.

    The checkpoint is loaded when a method first needs it; classical methods never load it.
    """

    def compose(
        self,
        background: Source,
        subject: Source | Sequence[Source],
        *,
        box: Each[Box | Sequence[float]] = None,
        at: Each[Sequence[float]] = None,
        scale: Each[float] = None,
        random: bool | Sequence[bool] = False,
        rotate: float | Sequence[float] = 0.0,
        flip: bool | Sequence[bool] = False,
        mask: Each[Source] = None,
        cut: Each[str] = None,
        cut_box: Each[Box | Sequence[float]] = None,
        trust_remote_code: bool = False,
        together: bool = False,
        phases: str | Sequence[str] | None = None,
        remove_method: str | None = None,
        remove_mask: Source | None = None,
        phase_settings: Mapping[str, Mapping[str, Any]] | None = None,
        keep_phases: bool = False,
        on_phase: Callable[[str], None] | None = None,
        control: Source | None = None,
        method: str | None = None,
        preset: str | None = None,
        seed: int = 0,
        num_images: int = 1,
        callback: Callback | None = None,
        previews: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        **settings: Any,
    ) -> Composite:
        """Put a subject into a background.

        box (background pixels; the subject keeps its aspect, centred in it), at + scale (centre and
        factor) or random say where; mask, cut ("alpha", "mask", "box", "grabcut" or a model)
        and cut_box say what the subject is in its own picture. Boxes are a Box or four numbers x,
        y, width, height. trust_remote_code lets a segmentation model run code of its own. Other
        keywords are the method's settings. callback(step, total, preview) may raise Cancelled.

        Of several subjects, in a list, box, at, mask and cut_box are lists with one value for each;
        scale, random, rotate, flip and cut may be. Each is composed into what came before, with the
        same method, settings and seed, so later ones lie over earlier ones; `together` pastes all
        first and runs the method once, on one window round them all.

        phases chains "remove", "paste", "harmonize" and "repose", or some of them: remove takes
        out what is in the boxes, or under remove_mask, by remove_method; method, preset and
        settings are harmonize's; phase_settings holds other phases' settings by phase. With
        keep_phases the composite's `phases` has each one's picture; on_phase hears their names.
        Without phases, keep_phases keeps the stages of a method that has some (phd).

        A subject may also be the path of a file that `inlay learn` wrote: its box is filled with
        the object, by "dreamcom" unless another method for such files is named.

        control is a drawing of the background's size, white lines on black, which freecompose's
        variant "semantic" (the phase "repose") re-draws the subjects by. Raises InputError.
        """
        if method is None and phases is None:
            given = subject if isinstance(subject, (list, tuple)) else [subject]
            method = methods.default_for("compose", any(map(is_concept, given)))
        requests = asked(
            phases,
            method=method,
            preset=preset,
            seed=seed,
            num_images=num_images,
            settings=settings,
            remove_method=remove_method,
            phase_settings=phase_settings,
            remove_mask=remove_mask,
            keep_phases=as_flag(keep_phases, "keep_phases"),
        )
        subjects = listed(
            subject,
            {
                "box": box,
                "at": at,
                "scale": scale,
                "random": random,
                "rotate": rotate,
                "flip": flip,
                "mask": mask,
                "cut": cut,
                "cut_box": cut_box,
                "trust_remote_code": trust_remote_code,
            },
        )
        joint = as_flag(together, "together") and len(subjects) > 1
        if keep_phases and phases is None and len(subjects) > 1 and not joint:
            raise InputError("the stages of one subject can be kept; set several in together.")
        check_kind(subjects, requests, joint)
        picture = read_picture(background, role="background", max_pixels=max_pixels)
        for request in requests.values():
            stages = len(request.settings.stages("compose"))
            request.check_size(picture.size, max(len(requests), stages) if keep_phases else 1)
        cutouts = [each.cut(max_pixels) for each in subjects]
        drawing, notes = None, list[str]()
        if control is not None:
            drawing = read_mask(
                control,
                size=picture.size,
                role="control",
                white="lines on black",
                max_pixels=max_pixels,
            )
            if not any(each.settings.follows_control() for each in requests.values()):
                names = ", ".join(each.method.name for each in requests.values())
                notes.append(f"{names}: the control picture is not used")
        gone = hole(subjects, remove_mask, picture, max_pixels) if "remove" in requests else None

        def links_of(seed: int) -> list[Link]:
            return linked(requests, laid(subjects, cutouts, picture.size, seed), joint, gone)

        job = Job(
            requests,
            picture,
            links_of,
            {
                "background": picture,
                **named_inputs(subjects, cutouts),
                "remove_mask": remove_mask,
                "control": control,
            },
            where(subjects, joint),
            notes,
            varied=any(each.place.placement.random for each in subjects),
            keep=keep_phases,
        )
        return self._made(job, callback, previews, on_phase, drawing)

    def harmonize(
        self,
        picture: Source,
        *,
        mask: Source | None = None,
        background: Source | None = None,
        method: str | None = None,
        preset: str | None = None,
        seed: int = 0,
        num_images: int = 1,
        callback: Callback | None = None,
        previews: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        **settings: Any,
    ) -> Composite:
        """Make an object that is already pasted belong.

        mask is white where the object is; without one the picture's alpha serves, else Otsu's
        threshold (said in the record). background is the picture before pasting, where there is
        one.
        """
        request = Request("harmonize", method, preset, seed, num_images, settings)
        whole = read_picture(picture, role="picture", max_pixels=max_pixels)
        request.check_size(whole.size)
        notes: list[str] = []
        region = (
            guess_mask(whole, notes)
            if mask is None
            else read_mask(mask, size=whole.size, role="mask", max_pixels=max_pixels)
        )
        clean = None
        if background is not None:
            clean = read_picture(background, role="background", max_pixels=max_pixels)
            if clean.size != whole.size:
                raise InputError(
                    f"the background is {clean.width}x{clean.height} pixels and the picture "
                    f"{whole.width}x{whole.height}; they must be of one size."
                )
        inputs = {"picture": whole, "mask": mask, "background": clean}
        scene = region_scene(whole, region, clean)
        links = [Link("", request, [lambda *_: scene])]
        job = Job({"": request}, whole, lambda seed: links, inputs, {}, notes)
        return self._made(job, callback, previews)

    def remove(
        self,
        picture: Source,
        *,
        mask: Source,
        method: str | None = None,
        preset: str | None = None,
        seed: int = 0,
        num_images: int = 1,
        callback: Callback | None = None,
        previews: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        **settings: Any,
    ) -> Composite:
        """Take out what the mask (white) covers."""
        request = Request("remove", method, preset, seed, num_images, settings)
        whole = read_picture(picture, role="picture", max_pixels=max_pixels)
        request.check_size(whole.size)
        region = read_mask(mask, size=whole.size, role="mask", max_pixels=max_pixels)
        inputs = {"picture": whole, "mask": mask}
        scene = region_scene(whole, region, None)
        links = [Link("", request, [lambda *_: scene])]
        return self._made(
            Job({"": request}, whole, lambda seed: links, inputs, {}), callback, previews
        )

    def scene(
        self,
        subject: Source | Sequence[Source],
        *,
        prompt: str = "",
        size: Sequence[int],
        box: Each[Box | Sequence[float]] = None,
        at: Each[Sequence[float]] = None,
        scale: Each[float] = None,
        random: bool | Sequence[bool] = False,
        rotate: float | Sequence[float] = 0.0,
        flip: bool | Sequence[bool] = False,
        mask: Each[Source] = None,
        cut: Each[str] = None,
        cut_box: Each[Box | Sequence[float]] = None,
        trust_remote_code: bool = False,
        keep_phases: bool = False,
        method: str | None = None,
        preset: str | None = None,
        seed: int = 0,
        num_images: int = 1,
        callback: Callback | None = None,
        previews: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        **settings: Any,
    ) -> Composite:
        """Make a scene of size (width, height) round a subject, or several, from the prompt.

        Sides are 64 to 8192 pixels. Where the subject goes and how it is cut out is said as for
        compose, in pixels of the scene; without a place it stands in the lower middle, its longer
        side half of the scene's shorter one. Several subjects are laid over each other in their
        order and the scene is made once, round them all. keep_phases keeps the method's stages.
        Raises InputError.
        """
        across = as_size(size, max_pixels)
        request = Request("scene", method, preset, seed, num_images, {"prompt": prompt, **settings})
        if not prompt.strip():
            raise InputError("a scene needs a prompt; say what the picture should show.")
        keep = as_flag(keep_phases, "keep_phases")
        request.check_size(across, len(request.settings.stages("scene")) if keep else 1)
        subjects = listed(
            subject,
            {
                "box": box,
                "at": at,
                "scale": scale,
                "random": random,
                "rotate": rotate,
                "flip": flip,
                "mask": mask,
                "cut": cut,
                "cut_box": cut_box,
                "trust_remote_code": trust_remote_code,
            },
        )
        check_kind(subjects, {"": request}, joint=False)
        cutouts = [each.cut(max_pixels) for each in subjects]
        job = Job(
            {"": request},
            canvas(across),
            lambda seed: scene_links(request, subjects, cutouts, across, seed),
            named_inputs(subjects, cutouts),
            {**where(subjects, True), "size": list(across)},
            varied=any(each.place.placement.random for each in subjects),
            keep=keep,
        )
        return self._made(job, callback, previews)

    def _made(
        self,
        job: Job,
        callback: Callback | None,
        previews: bool,
        on_phase: Callable[[str], None] | None = None,
        control: NDArray[np.float32] | None = None,
    ) -> Composite:
        return job.run(
            lambda: self.backbone,
            {
                "callback": callback,
                "previews": previews,
                "on_phase": on_phase,
                "given": {
                    "control": control,
                    "adapters": self.adapter,
                    "harmonizers": self.harmonizer,
                },
            },
            {"loras": self.loras, "textual_inversions": self.textual_inversions},
        )
