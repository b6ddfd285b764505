"""A job, a request as plain data and the file that its picture goes to, run in this process."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from inlay.errors import Cancelled, InputError, plain

if TYPE_CHECKING:
    from inlay.methods.base import Callback, Checkpoint
    from inlay.request import Request
    from inlay.result import Result
    from inlay.settings import BatchSize

_SENTENCE = 300
_LEARN = ("verb", "photos", "masks", "class_name", "device", "settings")


@dataclass(frozen=True)
class Job:
    """A request as plain data, and the file that its picture goes to.

    request is what Request.of reads; or {"verb": "learn", "photos": [paths], "class_name": …}, with
    masks, device and settings (LearnConfig's) where wanted; output is a .safetensors file then. Of
    several pictures each goes to STEM-seed=N beside output, what is kept of phases beside theirs.
    previews asks for preview pictures. max_pixels bounds pictures that are read; None is the usual
    bound. remote: inputs and output may be URLs, which fsspec opens. layers is an .npz file for the
    subjects of the first picture: boxes (n, 4) as x, y, width, height, and the alpha of each as it
    was laid, alpha_0, alpha_1, …, uint8 (height, width).
    """

    name: str
    request: Mapping[str, Any]
    output: str
    previews: bool = False
    max_pixels: int | None = None
    remote: bool = False
    layers: str = ""


@dataclass(frozen=True)
class Event:
    """What happens to a job.

    started: its time runs from here on. progress: step of total is done; preview is a JPEG in
    base64, or empty. All other kinds end the job. done: every file of paths is in place, the
    picture's or the first picture's first; each picture has a record; it took so many seconds.
    refused: the request or an input is wrong, as the sentence says; failed: it failed on our side;
    cancelled: it stopped when it was told to. late and died: its process was ended for the limit of
    time, or ended otherwise; the sentence says how. Unless it is done, nothing was written.
    """

    kind: Literal["started", "progress", "done", "refused", "failed", "cancelled", "late", "died"]
    sentence: str = ""
    step: int = 0
    total: int = 0
    preview: str = ""
    paths: Sequence[str] = ()
    records: Sequence[Mapping[str, Any]] = ()
    seconds: float = 0.0

    @property
    def final(self) -> bool:
        return self.kind not in ("started", "progress")


class Runner:
    """Runs jobs one after the other, with one checkpoint open at a time."""

    def __init__(self) -> None:
        # What every job needs; loaded before there is one, it does not count as its time.
        import_module("inlay.run")
        self._open: tuple[Any, Checkpoint] | None = None

    def run(self, job: Job, callback: Callback | None = None) -> Event:
        """Make a job's pictures and write all of them, or none; the event that ends it."""
        return self._ends([job], 1, callback)[0]

    def run_all(self, jobs: Sequence[Job], batch_size: BatchSize = 1) -> list[Event]:
        """As `run`, of several jobs. So many pictures of one checkpoint go through the network
        together, which rounds otherwise: within 1 of 255.
        """
        if batch_size == 1:
            return [self.run(job) for job in jobs]
        return self._ends(jobs, batch_size, None)

    def _ends(
        self, jobs: Sequence[Job], batch_size: BatchSize, callback: Callback | None
    ) -> list[Event]:
        from inlay.pictures.read import DEFAULT_MAX_PIXELS
        from inlay.run import Options, run_all

        started = time.monotonic()
        ends: list[Event | None] = [None] * len(jobs)
        with tempfile.TemporaryDirectory(prefix="inlay-") as folder:
            requests: dict[int, tuple[Request, dict[str, str]]] = {}
            for number, job in enumerate(jobs):
                try:
                    if job.request.get("verb") == "learn":
                        paths, records = _learn(job, callback)
                        ends[number] = _done(paths, records, started)
                    else:
                        requests[number] = _read(job, Path(folder, str(number)))
                except Exception as error:
                    ends[number] = _failure(error)
            while requests:
                first, _ = next(iter(requests.values()))
                those = [n for n, (request, _) in requests.items() if request.model == first.model]
                told = [
                    Options(
                        callback, None, jobs[n].previews, jobs[n].max_pixels or DEFAULT_MAX_PIXELS
                    )
                    for n in those
                ]
                asked = [requests[n][0] for n in those]
                try:
                    made = run_all(asked, self._checkpoint(first), told, batch_size)
                except Exception as error:
                    made = [error] * len(those)
                for n, result in zip(those, made, strict=True):
                    _, urls = requests.pop(n)
                    try:
                        if isinstance(result, BaseException):
                            raise result
                        paths = _deliver(result, jobs[n], urls, Path(folder, str(n)))
                        ends[n] = _done(paths, result.records, started, len(those))
                    except Exception as error:
                        ends[n] = _failure(error)
        return [end for end in ends if end is not None]

    def _checkpoint(self, request: Request) -> Checkpoint:
        """The request's checkpoint; the one that was open is closed where it is another."""
        from inlay.methods.base import Checkpoint

        if self._open is None or self._open[0] != request.model:
            self._open = None
            opened = {} if request.model is None else dict(request.model)
            self._open = request.model, Checkpoint(opened.pop("name", "embedded"), **opened)
        return self._open[1]


def _done(paths: list[str], records: Any, started: float, jobs: int = 1) -> Event:
    seconds = round((time.monotonic() - started) / jobs, 4)
    return Event("done", paths=paths, records=records, seconds=seconds)


def _failure(error: Exception) -> Event:
    """The end of a job that an error is."""
    if isinstance(error, InputError):
        return Event("refused", str(error))
    if isinstance(error, Cancelled):
        return Event("cancelled")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Event("failed", "it does not fit into memory; give smaller pictures.")
    return Event("failed", plain(f"inlay failed with {type(error).__name__}: {error}", _SENTENCE))


def _read(job: Job, folder: Path) -> tuple[Request, dict[str, str]]:
    """A job's request, with files in a folder in place of URLs, and these by their places."""
    from inlay.request import Request

    folder.mkdir()
    request = Request.of(job.request)
    return _fetched(request, folder) if job.remote else (request, {})


def _deliver(result: Result, job: Job, urls: Mapping[str, str], folder: Path) -> list[str]:
    """Put a job's files where they belong, by way of a folder where that is a URL."""
    for record in result.records:
        _restore(record, urls)
    above, _, name = job.output.rpartition("/")
    if not (job.remote and "://" in above):
        return _write(result, Path(job.output), job.layers)
    import fsspec

    there = {path: f"{above}/{Path(path).name}" for path in _write(result, folder / name, "")}
    # The first picture comes last: where it is, all are.
    for path in reversed(there):
        fsspec.url_to_fs(above)[0].put_file(path, there[path])
    return list(there.values())


def _learn(job: Job, callback: Callback | None) -> tuple[list[str], list[dict[str, Any]]]:
    """Learn a concept; the only job that is no request."""
    from inlay.learning.learn import learn
    from inlay.learning.photos import with_places
    from inlay.learning.settings import LearnConfig
    from inlay.settings import validate_settings

    told = {key: value for key, value in job.request.items() if value is not None}
    if unknown := sorted(told.keys() - set(_LEARN)):
        raise InputError(f"learn has no field {unknown[0]!r}; expected {', '.join(_LEARN)}.")
    config = validate_settings(LearnConfig, told.get("settings", {}))

    def log(line: str) -> None:
        step = re.match(r'(?:step |\{"step": )(\d+)', line)
        if callback is not None and step is not None:
            callback(int(step[1]), config.steps, None)

    name, device = str(told.get("class_name", "")), told.get("device", "auto")
    photos = with_places(told.get("photos", ()), masks=told.get("masks", ()))
    concept = learn(photos, name, job.output, config, device=device, log=log)
    record = concept.model_dump(mode="json", exclude={"sights": {"__all__": {"picture"}}})
    return [job.output], [record]


def _fetched(request: Request, folder: Path) -> tuple[Request, dict[str, str]]:
    """The request with files in place of URLs, and the URLs by their places; raises InputError."""
    from inlay.result.record import with_inputs

    urls = {place: str(source) for place, source in request.inputs().items()}
    urls = {place: url for place, url in urls.items() if "://" in url}
    files = {
        place: str(folder / f"{place}-{url.rpartition('/')[2]}") for place, url in urls.items()
    }
    for place, url in urls.items():
        import fsspec

        try:
            fsspec.url_to_fs(url)[0].get_file(url, files[place])
        except Exception as error:
            reason = plain(f"{type(error).__name__}: {error}", _SENTENCE)
            raise InputError(
                f"{request.role(place)} {url} cannot be fetched ({reason}); give one that is there."
            ) from None
    return with_inputs(request, files) if files else request, urls


def _restore(record: dict[str, Any], urls: Mapping[str, str]) -> None:
    """Say in a record where inputs came from, not where they lay for a moment."""
    for place, url in urls.items():
        record["inputs"][place]["path"] = url
        *above, last = place.split(".")
        inner = record["request"]
        for part in above:
            inner = inner[int(part) if part.isdigit() else part]
        inner[last] = url


def _write(result: Result, out: Path, layers: str) -> list[str]:
    """Write all that a result holds, as Job says; returns the files, the first picture's first."""
    from inlay.pictures.write import Files, write_picture
    from inlay.result import record_text

    paths: list[Path] = []
    with Files() as files:
        for number, (picture, record) in enumerate(
            zip(result.pictures, result.records, strict=True)
        ):
            seed = f"-seed={record['seed']}" if len(result.pictures) > 1 else ""
            path = out.with_name(f"{out.stem}{seed}{out.suffix}")
            made = {path: (picture, record)}
            for n, (name, kept) in enumerate(result.kept[number].items() if result.kept else (), 1):
                made[path.with_name(f"{path.stem}-{n}-{name}{path.suffix}")] = kept
            for path, (picture, record) in made.items():
                write_picture(picture, path, record=record_text(record), files=files)
            paths += made
        if layers:
            import numpy as np

            arrays: dict[str, Any] = {
                f"alpha_{n}": np.asarray(layer.mask) for n, layer in enumerate(result.layers)
            }
            arrays["boxes"] = np.array([[*each.box.as_dict().values()] for each in result.layers])
            paths.append(Path(layers))
            files.write(paths[-1], lambda file: np.savez_compressed(file, **arrays))
    return [str(path) for path in paths]
