"""A process that makes pictures, watched from another one: jobs go in as data, events come out.

Neither loads torch, numpy or pydantic until a job runs. Both ways speak JSON: whatever a stranger's
picture does to the process that decodes it, the one that watches reads plain data only.
"""

from __future__ import annotations

import base64
import io
import json
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from inlay.batch.runner import Event, Job, Runner
from inlay.errors import Cancelled

if TYPE_CHECKING:
    from PIL.Image import Image

    from inlay.settings import BatchSize

# How often the limits of a running job are looked at, in seconds.
_TICK = 0.2
# The longest message from a worker, in bytes: records of many pictures, or a preview.
_LONGEST = 64 << 20
_PREVIEW_SIDE = 512
# So often a process may end before it has begun a job, and another one gets it.
_STARTS = 3
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OPENCV_FOR_THREADS_NUM",
    "NUMBA_NUM_THREADS",
)


class Worker:
    """A process of its own, spawned when it first gets a job, that runs one job after the other.

    It keeps one checkpoint open. seconds bounds a job's time once it has started, memory what the
    process holds in memory, in bytes, each None for no bound; beyond them it is killed. After
    `idle` seconds without a job it ends, which gives all memory back, and starts again with the
    next job. threads is how many it computes with; None is the libraries' choice. gpu is the only
    one that it sees, as CUDA names it; None: all. runner is the class that runs jobs there. One
    thread may read events while others cancel or kill. As for any spawned process the program's
    main module must do its work under `if __name__ == "__main__"`.
    """

    def __init__(
        self,
        *,
        seconds: float | None = None,
        memory: int | None = None,
        idle: float | None = None,
        threads: int | None = None,
        gpu: str | None = None,
        runner: type[Runner] = Runner,
        batch_size: BatchSize = 1,
    ) -> None:
        self.seconds, self.memory = seconds, memory
        self._how, self._variables = (idle, runner, batch_size), dict[str, str]()
        if threads is not None:
            self._variables |= dict.fromkeys(_THREADS, str(threads))
        if gpu is not None:
            self._variables["CUDA_VISIBLE_DEVICES"] = gpu
        self.job: Job | None = None
        self._jobs: Sequence[Job] = ()
        self._started: float | None = None
        self._starts = 0
        self._process: Any = None
        self._pipe: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, once there was one."""
        return self._process.pid if self._process is not None else None

    @property
    def pipe(self) -> Connection:
        """What multiprocessing.connection.wait may wait for: there are events, or it died."""
        if self._pipe is None:
            raise RuntimeError("the worker has not started; submit a job first.")
        return self._pipe

    def submit(self, *jobs: Job) -> None:
        """Have a job run; the one before must have ended. Several run together, batch_size at a
        time, without steps: their ends come at once, in their order; if they die, it is one.
        """
        if self.job is not None:
            raise RuntimeError(f"the worker still runs {self.job.name}.")
        self._starts = _STARTS
        self._begin(jobs)

    def events(self) -> Iterator[Event]:
        """Everything that happens until the job ends; its end comes last."""
        while self.job is not None:
            yield from self.poll(_TICK)

    def poll(self, timeout: float = 0) -> list[Event]:
        """What has happened, waited for `timeout` seconds at most; sees to the limits, too."""
        found: list[Event] = []
        try:
            while self.job is not None and self.pipe.poll(0 if found else timeout):
                found += [Event(**told) for told in json.loads(self.pipe.recv_bytes(_LONGEST))]
                if found[-1].kind == "started":
                    self._started = time.monotonic()
                if found[-1].final:
                    self.job = None
        except (EOFError, OSError):
            self._process.join()
            job, self.job = self.job, None
            if job is not None and self._started is None and self._starts > 0:
                # It ended before the job began, be it for want of work just when that came.
                self._starts -= 1
                self._begin(self._jobs)
            else:
                found.append(Event("died", _end_of(self._process.exitcode)))
        if self.job is not None and (end := self._excess()):
            self.kill()
            self.job = None
            found.append(end)
        return found

    def cancel(self) -> None:
        """Ask the job to stop at its next step; kill() ends it at once."""
        with suppress(OSError, RuntimeError):
            self.pipe.send_bytes(b"null")

    def kill(self) -> None:
        """End the process; the job that it was at has died. The next job starts another one."""
        self._starts = 0
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _begin(self, jobs: Sequence[Job]) -> None:
        """Send jobs to the process, started where there is none."""
        if self._process is None or not self._process.is_alive():
            context = get_context("spawn")
            if self._pipe is not None:
                self._pipe.close()
            self._pipe, other = context.Pipe()
            self._process = context.Process(target=_work, args=(other, *self._how), daemon=True)
            with _environment(self._variables):
                self._process.start()
            other.close()
        self.job, self._jobs, self._started = jobs[0], jobs, None
        # That it died just now is seen by poll().
        with suppress(OSError):
            self.pipe.send_bytes(json.dumps([vars(job) for job in jobs]).encode())

    def _excess(self) -> Event | None:
        """The end of a job that goes beyond a limit."""
        spent = 0.0 if self._started is None else time.monotonic() - self._started
        if self.seconds is not None and spent > self.seconds * len(self._jobs):
            return Event("late", f"it took longer than {self.seconds:g} s.")
        if self.memory is not None and _resident(self._process.pid) > self.memory:
            return Event("died", f"it needed more than {self.memory / 1e6:.0f} MB of memory.")
        return None


@contextmanager
def _environment(told: dict[str, str]) -> Iterator[None]:
    """Inside, a process that starts has these variables: it has to know its threads before its main
    module imports numpy.
    """
    before = {name: os.environ[name] for name in told if name in os.environ}
    os.environ.update(told)
    try:
        yield
    finally:
        for name in told.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _work(
    pipe: Connection,
    idle: float | None,
    kind: type[Runner],
    batch_size: BatchSize,
) -> None:
    """The worker's process: jobs from the pipe, one after the other, and their events back."""
    # Ctrl-C reaches every process of a terminal; the one that watches decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    jobs: queue.Queue[list[Job]] = queue.Queue()
    cancelled = threading.Event()
    threading.Thread(target=_listen, args=(pipe, jobs, cancelled), daemon=True).start()
    runner = kind()

    def send(*events: Event) -> None:
        pipe.send_bytes(json.dumps([vars(event) for event in events]).encode())

    def step(number: int, total: int, preview: Any) -> None:
        if cancelled.is_set():
            raise Cancelled
        shown = "" if preview is None else _jpeg(preview)
        send(Event("progress", step=number, total=total, preview=shown))

    with suppress(queue.Empty):
        while True:
            told = jobs.get(timeout=idle)
            send(Event("started"))
            if len(told) > 1:
                send(*runner.run_all(told, batch_size))
            else:
                send(runner.run(told[0], step))
    # Libraries may stumble over each other on the way out, but this end is no accident.
    os._exit(0)


def _listen(pipe: Connection, jobs: queue.Queue[list[Job]], cancelled: threading.Event) -> None:
    """Take jobs and cancellations; where whoever watches is gone, nobody wants the work."""
    try:
        while True:
            message = json.loads(pipe.recv_bytes())
            if message is None:
                cancelled.set()
            else:
                cancelled.clear()
                jobs.put([Job(**told) for told in message])
    except (EOFError, OSError):
        os._exit(1)


def _jpeg(preview: Image) -> str:
    small = preview.convert("RGB")
    small.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()


def _resident(pid: int) -> int:
    """A process's memory in bytes; 0 where it is gone."""
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _end_of(code: int | None) -> str:
    """How a process ended, in words."""
    if code is not None and code < 0:
        return f"its process was killed by {signal.Signals(-code).name}, as when memory runs out."
    return f"its process ended with status {code}."
