"""The service: a store, and what works on it: runners with their workers, helpers, sweeps."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pyvips
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool as apart
from starlette.datastructures import UploadFile

from inlay.batch.runner import Event
from inlay.batch.runner import Job as Task
from inlay.batch.worker import Worker
from inlay.errors import InputError
from inlay.pictures.read import file_sha256
from inlay.server import stage
from inlay.server.jobs import File, Job, Store, remove
from inlay.server.limits import Refusal
from inlay.server.messages import Models, plainly
from inlay.server.safety import Metrics

_log = logging.getLogger("inlay.server")
# Seconds between two looks at the queue, between two steps that are told, and that a cancelled job
# may take to stop by itself.
_LOOK, _TELL, _STOP = 1.0, 0.2, 5.0
# Seconds between two sweeps of the store.
_SWEEP = 60
_BROKEN = "the job failed on the server's side; its log says why."


class Runner(threading.Thread):
    """One worker, and the thread that feeds it; a store may have several."""

    def __init__(
        self, store: Store, metrics: Metrics, threads: int | None = None, batch_size: int = 1
    ) -> None:
        super().__init__(name="runner", daemon=True)
        limits = store.limits
        self.store, self.metrics, self.batch_size, self.stopped = store, metrics, batch_size, False
        self.worker = Worker(
            seconds=limits.job_seconds,
            memory=limits.job_bytes,
            idle=limits.idle_seconds,
            threads=threads,
            runner=stage.Bench,
            batch_size=batch_size,
        )

    def run(self) -> None:
        """Until stop(); a job that is running then runs again with the next server."""
        while not self.stopped:
            if (first := self.store.claim(_LOOK)) is None:
                continue
            jobs = [first, *self.store.claim_alike(first, self.batch_size - 1)]
            try:
                self._make(jobs)
            except Exception:
                _log.exception("job failed", extra={"job": first.id})
                self.worker.kill()
                for job in jobs:
                    self.store.fail(job.id, _BROKEN)

    def stop(self) -> None:
        """End the worker and the thread."""
        self.stopped = True
        self.worker.kill()
        self.join(_STOP)

    def _make(self, jobs: Sequence[Job]) -> None:
        """Run one job, or several together, which tell no steps."""
        suffix = ".safetensors" if jobs[0].verb == "learn" else ".png"
        outs = [self.store.draft(suffix) for _ in jobs]
        single, most = len(jobs) == 1, self.store.limits.pixels
        self.worker.submit(
            *(
                Task(job.id, job.request, str(out), previews=single, max_pixels=most)
                for job, out in zip(jobs, outs, strict=True)
            )
        )
        ends, told, end = list[Event](), 0.0, 0.0
        try:
            while self.worker.job is not None:
                for event in self.worker.poll(_TELL):
                    now = time.monotonic()
                    if event.final:
                        ends.append(event)
                    elif event.preview or event.step == event.total or now - told > _TELL:
                        told = now
                        step, total, preview = event.step, event.total, event.preview
                        self.store.advance(jobs[0].id, step, total, preview)
                if not any(map(self._wanted, jobs)) and self.worker.job is not None:
                    end = end or time.monotonic() + _STOP
                    self.worker.cancel()
                    if time.monotonic() > end:
                        self.worker.kill()
            # Where the process died, its death is the end of all.
            for number, job in enumerate(jobs if not self.stopped else ()):
                self._end(job, ends[number % len(ends)], single)
        finally:
            for out in outs:
                for path in self.store.new.glob(f"{out.stem}*"):
                    remove(path)

    def _wanted(self, job: Job) -> bool:
        with suppress(Refusal):
            return self.store.job(job.id).state == "running"
        return False

    def _end(self, job: Job, event: Event, single: bool) -> None:
        """Put down how a job ended; in company it gets another try alone."""
        self.metrics.jobs.labels(event.kind).observe(time.time() - (job.started or 0))
        if event.kind == "done":
            try:
                named = job.request.get("class_name")
                files = [keep_result(self.store, Path(path), named) for path in event.paths]
            except Refusal as refusal:
                return self.store.fail(job.id, refusal.sentence)
            pictures = files[:: len(files) // len(event.records)]
            files = [*pictures, *(set(files) - set(pictures))]
            return self.store.finish(job.id, files, event.records)
        if event.kind in ("failed", "died"):
            _log.error(event.sentence, extra={"job": job.id})
        if event.kind == "died" or (event.kind == "late" and not single):
            self.store.died(job.id, event.sentence)
        elif event.kind == "failed" and event.sentence.startswith("inlay failed"):
            self.store.fail(job.id, _BROKEN)
        elif event.kind != "cancelled":
            self.store.fail(job.id, plainly(event.sentence))


class Service:
    """What the addresses share: the store, a process each for uploads and for the stage, runners.

    models are what clients may name, and the fields of a request's model that each stands for.
    workers run at a time, each on one job, or on batch_size of them that are alike.
    """

    def __init__(
        self,
        store: Store,
        models: Models,
        token: str | None,
        workers: int = 1,
        batch_size: int = 1,
    ) -> None:
        self.store, self.models, self.token, self.metrics = store, models, token, Metrics()
        self.uploads = stage.Helper(store.files, store.limits, lasts=1000)
        self.stage = stage.Helper(store.files, store.limits)
        # Alone a worker has all cores; several share them.
        threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None
        self.runners = [Runner(store, self.metrics, threads, batch_size) for _ in range(workers)]
        self.readers: dict[str, set[asyncio.Event]] = {}

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Within it jobs are run and old files go; the lifespan of an application."""
        loop = asyncio.get_running_loop()

        def wake(job: str) -> None:
            for reader in self.readers.get(job, ()):
                reader.set()

        async def sweep() -> None:
            while True:
                await asyncio.sleep(_SWEEP)
                await apart(self.store.sweep)

        def hear(job: str) -> None:
            loop.call_soon_threadsafe(wake, job)

        self.store.listener = hear
        for runner in self.runners:
            runner.start()
        tasks = [asyncio.create_task(sweep()), asyncio.create_task(self.stage.call(stage.warm))]
        yield
        for task in tasks:
            task.cancel()
        self.store.listener = lambda job: None
        for runner in self.runners:
            await apart(runner.stop)
        for helper in (self.uploads, self.stage):
            helper.close()
        self.store.close()

    async def keep(self, upload: UploadFile) -> File:
        """Store what was uploaded; raises InputError for what is no whole picture or concept."""
        draft = self.store.draft()
        try:
            file = await apart(_copy, upload, draft)
            for known in (file, f"{file}.safetensors"):
                if await apart(self.store.holds, known):
                    return await apart(self.store.file, known)
            most = self.store.limits.pixels
            facts = await self.uploads.call(stage.describe, str(draft), most)
            file += ".safetensors" if facts["kind"] == "concept" else ""
            return await apart(self.store.keep, draft, file, facts)
        finally:
            draft.unlink(missing_ok=True)

    async def events(self, job: str, after: int) -> AsyncIterator[dict[str, Any]]:
        """A job's events as they come, up to its end; a state is told as the whole job."""
        reader = asyncio.Event()
        self.readers.setdefault(job, set()).add(reader)
        try:
            while True:
                reader.clear()
                found = await apart(self.store.events, job, after)
                # Later than the events, so that it is as new as the last of them.
                current = await apart(self.store.job, job)
                for after, name, data in found:
                    whole = current.model_dump_json() if name in ("state", "done") else data
                    yield {"id": str(after), "event": name, "data": whole}
                # It may have ended between the two: then its last event is yet to be read.
                if current.ended and (not found or found[-1][1] == "done"):
                    return
                await reader.wait()
        except Refusal:
            return  # The job was deleted.
        finally:
            self.readers[job].discard(reader)
            if not self.readers[job]:
                del self.readers[job]


def _copy(upload: UploadFile, draft: Path) -> str:
    """Write what was uploaded; its SHA-256 in hex."""
    with draft.open("wb") as file:
        shutil.copyfileobj(upload.file, file)
    if not draft.stat().st_size:
        raise InputError("the file is empty; expected a picture.")
    return file_sha256(draft)


def keep_result(store: Store, path: Path, class_name: str | None = None) -> str:
    """The id of a file of our own making, which is stored now; a concept is of a class."""
    file, facts = file_sha256(path), dict[str, Any](kind="concept", class_name=class_name)
    if path.suffix == ".png":
        image = pyvips.Image.new_from_file(str(path))
        facts = {"kind": "picture", "width": image.width, "height": image.height}
        facts["has_alpha"] = image.hasalpha()
    else:
        file += path.suffix
    return store.keep(path, file, facts).file
