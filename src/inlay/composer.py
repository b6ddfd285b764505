"""The one front door: pictures and a request go in, a composite and its record come out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inlay.errors import InputError
from inlay.geometry import Box
from inlay.methods.base import Context, Settings
from inlay.pixels import DEFAULT_MAX_PIXELS, Picture, Source, read_mask, read_picture, write_picture
from inlay.record import build_record, record_text
from inlay.region import found_region, inverted
from inlay.request import Place, Request
from inlay.scene import Scene, compose_scene, region_scene
from inlay.window import Window, stitch

if TYPE_CHECKING:
    from PIL.Image import Image

    from inlay.diffusion.backbone import Backbone

__all__ = ["Composer", "Composite"]

Callback = Callable[[int, int, Any], None]


@dataclass(eq=False)
class Composite:
    """What a call made: one picture per seed.

    pictures keep the background's size, depth, mode and profile; records say how each was made.
    window is the crop the method saw, region the box outside which no byte differs, effect the
    mask inside that box (float32, 0 or 1).
    """

    pictures: list[Picture]
    records: list[dict[str, Any]]
    window: Box
    region: Box
    effect: NDArray[np.float32] = field(repr=False)

    @property
    def picture(self) -> Picture:
        return self.pictures[0]

    @property
    def image(self) -> Image:
        """The (first) picture as PIL."""
        return self.pictures[0].to_pil()

    @property
    def images(self) -> list[Image]:
        return [picture.to_pil() for picture in self.pictures]

    @property
    def record(self) -> dict[str, Any]:
        return self.records[0]

    @property
    def mask(self) -> Image:
        """Where the first picture may differ from the background: PIL "L", 255 = may."""
        from PIL import Image as PilImage

        whole = np.zeros((self.picture.height, self.picture.width), np.uint8)
        whole[self.region.slices] = np.round(self.effect * 255).astype(np.uint8)
        return PilImage.fromarray(whole)

    def save(self, path: str | Path) -> None:
        """Write the first picture, with its record inside; atomic."""
        write_picture(self.picture, path, record=record_text(self.record))


class Composer:
    """Sets objects into pictures with one checkpoint.

    The checkpoint is loaded when a method first needs it; classical methods never load it.
    """

    def __init__(
        self,
        model: str = "embedded",
        *,
        device: str = "auto",
        dtype: str = "auto",
        loras: Sequence[tuple[str, float]] = (),
        textual_inversions: Sequence[str] = (),
    ) -> None:
        self.model, self.device, self.dtype = model, device, dtype
        self.loras, self.textual_inversions = tuple(loras), tuple(textual_inversions)
        self._backbone: Backbone | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str = "embedded",
        *,
        device: str = "auto",
        dtype: str = "auto",
        loras: Sequence[tuple[str, float]] = (),
        textual_inversions: Sequence[str] = (),
    ) -> Composer:
        """A composer on "embedded", a diffusers folder, a single file or a hub id.

        device is auto, cpu, cuda or mps; dtype auto, float32, bfloat16 or float16. Raises
        InputError when the checkpoint is first needed and cannot be loaded.
        """
        return cls(
            model, device=device, dtype=dtype, loras=loras, textual_inversions=textual_inversions
        )

    @property
    def backbone(self) -> Backbone:
        """The loaded checkpoint."""
        if self._backbone is None:
            from inlay.diffusion.checkpoints import load_backbone

            self._backbone = load_backbone(
                self.model,
                device=self.device,
                dtype=self.dtype,
                loras=self.loras,
                textual_inversions=self.textual_inversions,
            )
        return self._backbone

    def compose(
        self,
        background: Source,
        subject: Source,
        *,
        box: Box | Sequence[float] | None = None,
        at: Sequence[float] | None = None,
        scale: float | None = None,
        random: bool = False,
        rotate: float = 0.0,
        flip: bool = False,
        mask: Source | None = None,
        cut: str | None = None,
        cut_box: Box | Sequence[float] | None = None,
        trust_remote_code: bool = False,
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
        Raises InputError.
        """
        from inlay.cutout import cut as cut_out

        request = Request("compose", method, preset, seed, num_images, settings)
        place = Place.of(
            box=box,
            at=at,
            scale=scale,
            random=random,
            rotate=rotate,
            flip=flip,
            cut=cut,
            cut_box=cut_box,
            trust_remote_code=trust_remote_code,
        )
        picture = read_picture(background, role="background", max_pixels=max_pixels)
        request.check_size(picture.size)
        cutout = cut_out(
            subject,
            by=place.cut,
            mask=mask,
            box=place.cut_box,
            max_pixels=max_pixels,
            trust_remote_code=place.trust_remote_code,
        )

        def scene(seed: int) -> Scene:
            return compose_scene(picture, cutout, place.placement, seed)

        # A file is recorded by its path, so that the picture can be made again.
        named = subject if isinstance(subject, (str, os.PathLike)) else cutout
        inputs = {"background": picture, "subject": named, "mask": mask}
        varied = place.placement.random
        return self._run(request, scene, inputs, place.as_dict(), callback, previews, varied=varied)

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
            found_region(whole, notes)
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
        return self._run(request, lambda seed: scene, inputs, {}, callback, previews, notes)

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
        return self._run(request, lambda seed: scene, inputs, {}, callback, previews)

    def _run(
        self,
        request: Request,
        scene_of: Callable[[int], Scene],
        inputs: Mapping[str, Any],
        place: Mapping[str, Any],
        callback: Callback | None,
        previews: bool,
        notes: Sequence[str] = (),
        varied: bool = False,
    ) -> Composite:
        """Run a request for each of its seeds; `varied` means that the scene hangs on the seed."""
        method, settings = request.method, request.settings
        scene = scene_of(request.seed)
        started = time.perf_counter()
        backbone = self.backbone if method.needs_model else None
        loaded = time.perf_counter()
        # Even a classical method needs some surroundings to look at.
        native = 64 if backbone is None else backbone.native_size
        window = _window(scene, settings, native)
        first, pictures, records = window.box, [], []
        region, effect = window.box, np.zeros((1, 1), np.float32)
        total = request.num_images
        for number in range(total):
            seed = request.seed + number
            context = Context(seed, _counted(callback, number, total), previews, verb=request.verb)
            for line in notes:
                context.note(line)
            before = time.perf_counter()
            if varied and number:
                scene = scene_of(seed)
                window = _window(scene, settings, native)
            painted = method.run(window, backbone, settings, context)
            picture, box, mask = stitch(scene.background, window, painted)
            if number == 0:
                region, effect = box, mask
            pictures.append(picture)
            records.append(
                build_record(
                    verb=request.verb,
                    method=method.name,
                    preset=request.preset,
                    settings=settings.model_dump(mode="json"),
                    seed=seed,
                    backbone=backbone,
                    window=window.box,
                    region=box,
                    inputs=inputs,
                    request=place,
                    notes=context.notes,
                    loras=self.loras,
                    textual_inversions=self.textual_inversions,
                    timings={
                        "load_s": round(loaded - started, 4),
                        "run_s": round(time.perf_counter() - before, 4),
                    },
                )
            )
        return Composite(pictures, records, first, region, effect)


def _window(scene: Scene, settings: Settings, native: int) -> Window:
    if settings.works_on_background():
        scene = inverted(scene)
    return Window.of(scene, float(getattr(settings, "context", 0.25)), native)


def _counted(callback: Callback | None, number: int, total: int) -> Callback | None:
    """Progress over several pictures as one count."""
    if callback is None or total == 1:
        return callback

    def tell(step: int, steps: int, preview: Any) -> None:
        callback(number * steps + step, total * steps, preview)

    return tell
