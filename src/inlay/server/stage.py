"""What the page's stage shows: pictures for a browser, cut-outs, previews; in a process of its own.

What strangers send is decoded there, by a process that may die of it or be ended for taking too
long or too much. It stands in the folder of files and is told names in it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyvips
from PIL import Image as PILImage
from pydantic import Field

from inlay.batch.runner import Event, Job, Runner
from inlay.errors import InputError
from inlay.methods.base import Callback
from inlay.pictures.arrays import Box
from inlay.pictures.read import read_picture
from inlay.scene.subject import Cutout, Subject, cut
from inlay.server.limits import Limits, busy
from inlay.settings import BatchSize

T = TypeVar("T")
# Reduced pictures and cut-outs that are kept for the next preview, of each kind.
_KEPT = 24
_NOTHING = np.zeros((1, 1), np.uint8)


class Helper:
    """A process for tasks on pictures, each bounded in time and memory, in a bounded queue.

    After so many tasks as it `lasts` another one takes its place: libraries lose some memory with
    each damaged picture.
    """

    def __init__(self, folder: Path, limits: Limits, lasts: int | None = None) -> None:
        self.folder, self.limits, self.lasts, self.done, self.waiting = folder, limits, lasts, 0, 0
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        told = str(self.folder), self.limits.task_bytes
        return ProcessPoolExecutor(1, get_context("spawn"), _prepare, told)

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What a function of this file gives, there; raises what it raises.

        Raises Refusal where too many tasks wait, and InputError where the process died, twice: once
        may be another task's fault.
        """
        if self.waiting >= self.limits.tasks:
            raise busy("the server has too many pictures to work on")
        self.waiting, self.done = self.waiting + 1, self.done + 1
        if self.done == self.lasts:
            self._pool.shutdown(wait=False)
            self._pool, self.done = self._start(), 0
        try:
            for _ in range(2):
                pool = self._pool
                with suppress(BrokenProcessPool):
                    task = pool.submit(_bounded, self.limits.task_seconds, function, arguments)
                    return await asyncio.wrap_future(task)
                if pool is self._pool:
                    self._pool = self._start()
        finally:
            self.waiting -= 1
        raise InputError(
            "the picture took more time or memory than this server gives; try a smaller one."
        )

    def close(self) -> None:
        """End the process once it has done its task."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _prepare(folder: str, memory: int) -> None:
    """Make a new process a helper; it ends with the one that started it."""

    def follow() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir(folder)
    with suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _bounded(seconds: float, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    """A task; after so many seconds the system's clock ends the process, whatever it is at."""
    timer = getattr(signal, "setitimer", lambda which, seconds: None)
    timer(getattr(signal, "ITIMER_REAL", 0), seconds)
    try:
        return function(*arguments)
    except MemoryError:
        raise InputError("the picture does not fit into memory; give a smaller one.") from None
    finally:
        timer(getattr(signal, "ITIMER_REAL", 0), 0)


def warm() -> None:
    """Load and compile what cuts and previews need, so that the first one does not wait for it."""
    from inlay.composer import Composer

    field = np.full((96, 96, 3), 128, np.uint8)
    field[32:64, 32:64] = (200, 40, 40)
    mask = field[..., 0] > 128
    Composer().compose(field, field, mask=mask.astype(np.uint8) * 255, method="reinhard")
    with suppress(InputError):
        cut(field)


def describe(path: str, most: int) -> dict[str, Any]:
    """What a file is, once it is seen to be whole; of `most` pixels at most. Raises InputError."""
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        from inlay.checkpoints.concept import read_concept

        return {"kind": "concept", "class_name": read_concept(Path(path)).class_name}
    picture = read_picture(path, role="picture", max_pixels=most)
    size = {"width": picture.width, "height": picture.height}
    return {"kind": "picture", **size, "has_alpha": picture.mode.endswith("A")}


@lru_cache(_KEPT)
def reduced(file: str, size: int) -> pyvips.Image:
    """A stored picture upright in sRGB of 8 bits, its longest side at most `size`; 3 or 4 bands.

    Of a concept it is its first photo. Raises InputError where it keeps none.
    """
    if file.endswith(".safetensors"):
        from inlay.checkpoints.concept import read_concept

        sights = (sight.image() for sight in read_concept(Path(file)).sights)
        photo = next(filter(None, sights), None)
        if photo is None:
            raise InputError("the concept keeps no photo; there is nothing to show.")
        return _image(photo, size)
    try:
        small = pyvips.Image.thumbnail(file, size, height=size, size="down", export_profile="srgb")
        return small.colourspace("srgb").cast("uchar").copy_memory()
    except pyvips.Error:
        # What libvips does not read.
        return _image(read_picture(file).converted(shallow=True, srgb=True).to_pil(), size)


def _image(photo: PILImage.Image, size: int) -> pyvips.Image:
    photo.thumbnail((size, size))
    return pyvips.Image.new_from_array(np.asarray(photo), interpretation="srgb")


def shown(file: str, size: int) -> tuple[bytes, str]:
    """A stored picture as a browser can show it, and its media type."""
    image = reduced(file, size)
    if image.hasalpha():
        return image.pngsave_buffer(compression=1, keep="none"), "image/png"
    return image.jpegsave_buffer(Q=90, keep="none"), "image/jpeg"


def cut_out(hint: Subject, most: int, drafts: Sequence[str]) -> dict[str, Any]:
    """Cut a subject out of its picture; it and its alpha are written to two PNG files.

    Gives the picture's width and height, the box (x, y, width, height) of what is not clear, and
    notes. Raises InputError.
    """
    from inlay.pictures.write import write_picture
    from inlay.scene.cutout import cleared

    notes: list[str] = []
    listener = logging.Handler(logging.INFO)
    listener.emit = lambda record: notes.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("inlay")
    logger.setLevel(logging.INFO)
    logger.addHandler(listener)
    try:
        whole = read_picture(hint.picture, role="picture", max_pixels=most)
        box, points = hint.cut_box, hint.cut_points or ()
        cutout = cut(whole, box=box, points=points, mask=hint.mask, max_pixels=most)
    finally:
        logger.removeHandler(listener)
    clear = cleared(whole, cutout)
    write_picture(clear, drafts[0])
    alpha = clear.converted(shallow=True).samples[..., -1]
    write_picture(read_picture(np.ascontiguousarray(alpha)), drafts[1])
    assert cutout.place is not None
    place = [*cutout.place.as_dict().values()]
    return {"width": whole.width, "height": whole.height, "box": place, "notes": notes}


class Bench(Runner):
    """Runs a worker's jobs where the stored files are, beside the folder that results go to."""

    def run(self, job: Job, callback: Callback | None = None) -> Event:
        os.chdir(Path(job.output).parent.with_name("files"))
        return super().run(job, callback)

    def run_all(self, jobs: Sequence[Job], batch_size: BatchSize = 1) -> list[Event]:
        os.chdir(Path(jobs[0].output).parent.with_name("files"))
        return super().run_all(jobs, batch_size)


class _Laid(Subject):
    """A subject whose cut-out is there already."""

    ready: Any = Field(None, exclude=True)

    def cutout(self, max_pixels: int, trust_remote_code: bool = False) -> Cutout:
        return self.ready  # type: ignore[no-any-return]


def preview(data: Mapping[str, Any], widths: Mapping[str, Any], size: int) -> bytes:
    """A JPEG, its longest side at most `size`, of about what a compose request will give.

    Reduced cut-outs are pasted, their colours brought a little nearer to those of what lies round
    them, with their shadows at the contact with the ground; no model runs. widths are the sizes
    (width, height) of the request's pictures. Raises InputError.
    """
    from inlay.composer import Composer
    from inlay.request import ComposeRequest

    request = ComposeRequest(**data)
    ground, full = reduced(request.background, size), widths[request.background]
    factor = ground.width / full[0]
    subjects: list[Subject] = []
    for each in request.subjects:
        own = 1.0
        if each.concept is None:
            own = reduced(each.picture, size).width / widths[each.picture][0]
        points = tuple((x * own, y * own) for x, y in each.cut_points or ())
        box = _times(each.cut_box, own)
        cutout = _small_cut(each.picture, size, each.cut, box, points, each.mask)
        width, height = (max(1, round(side / own)) for side in cutout.size)
        _, place = each.outline((width, height), full, request.seed)
        turn = {"rotate": each.rotate, "flip": each.flip}
        subjects.append(_Laid(picture=_NOTHING, box=_times(place, factor), ready=cutout, **turn))
    picture = np.ascontiguousarray(ground.numpy()[..., :3])
    shadow = "none" if request.shadow.kind == "none" else "contact"
    result = Composer().compose(picture, subjects, method="reinhard", shadow=shadow)
    made = pyvips.Image.new_from_array(result.picture.samples)
    return bytes(made.jpegsave_buffer(Q=85, keep="none"))


@lru_cache(_KEPT)
def _small_cut(
    file: str, size: int, by: str | None, box: Box | None, points: Any, mask: str | None
) -> Cutout:
    """A subject's cut-out from its reduced picture, in whose pixels box and points are."""
    samples = np.ascontiguousarray(reduced(file, size).numpy())
    white = None if mask is None else reduced(mask, size).numpy()
    return cut(samples, by=by, box=box, points=points, mask=white)


def _times(box: Box | None, factor: float) -> Box | None:
    if box is None:
        return None
    left, top, right, bottom = (round(v * factor) for v in (box.x, box.y, box.right, box.bottom))
    return Box(left, top, max(1, right - left), max(1, bottom - top))
