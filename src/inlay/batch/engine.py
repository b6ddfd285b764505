"""Jobs to workers, which pull them: processes of this machine, or actors of a Ray cluster.

A worker that dies takes no job with it: those that it had not done are tried again, each by itself,
and one at which workers died three times has failed.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, takewhile
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from inlay.batch.runner import Event, Job, Runner
from inlay.batch.worker import Worker
from inlay.errors import InputError, plain

if TYPE_CHECKING:
    from inlay.settings import BatchSize

# How often a job may end its worker, and how often in a row an actor may not start.
DEATHS = 3
# An actor gets as many jobs at once as it does in so many seconds, at most so many.
_CALL_SECONDS, _MOST = 0.5, 64
# With a batch size of "auto" so many jobs go to a worker at once; those alike are looked for among
# so many times as many.
_AUTO, _AHEAD = 16, 4
_TICK, _GROWTH_SECONDS = 0.2, 5.0
_FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT))

End: TypeAlias = tuple[Job, Event]


class Crew(Protocol):
    """Workers of one kind, each called a seat here: who sits on it may change. One is given at most
    `most` jobs at once; where batch is not 1, so many that are alike.
    """

    most: int
    batch: int

    @property
    def seats(self) -> Sequence[Any]: ...

    def free(self) -> Sequence[Any]:
        """The seats that may be given jobs now."""

    def give(self, seat: Any, jobs: Sequence[Job]) -> None:
        """Have jobs run on a free seat."""

    def ends(self, timeout: float) -> Sequence[tuple[Any, Sequence[End]]]:
        """How jobs ended, seat by seat, waited for `timeout` seconds at most."""

    def close(self) -> None:
        """Stop at once, whatever runs."""


def work(jobs: Iterator[Job], crew: Crew) -> Iterator[tuple[int, Job, Event] | None]:
    """Run jobs; each is yielded with the event that ended it and the number of its seat, and None
    where nothing has ended for a while.

    A job is asked for when a worker is free for it. Raises InputError where the disk is full.
    """
    again, waiting = deque[Job](), list[Job]()
    deaths, slow = Counter[str](), dict[str, Event]()
    busy: dict[int, int] = {}
    left, size, mean = True, 1, 0.0

    def draw() -> list[Job]:
        if crew.batch == 1:
            return list(islice(jobs, size))
        waiting.extend(islice(jobs, _AHEAD * crew.batch - len(waiting)))
        kind = kind_of(waiting[0].request)
        given = [job for job in waiting if kind_of(job.request) == kind][: crew.batch]
        waiting[:] = [job for job in waiting if job not in given]
        return given

    while True:
        for seat in crew.free():
            given = [again.popleft()] if again else draw() if left else []
            left = left and bool(given)
            if given:
                busy[id(seat)] = len(given)
                crew.give(seat, given)
        if not busy and not again and not left:
            return
        ends = crew.ends(_TICK)
        if not ends:
            yield None
        for seat, told in ends:
            alone, number = busy.pop(id(seat)) == 1, crew.seats.index(seat)
            for job, event in told:
                if any(reason in event.sentence for reason in _FULL):
                    what = event.sentence.partition(";")[0]
                    raise InputError(f"{what}; make room, and give the same command again.")
                if event.kind == "done":
                    mean += (event.seconds - mean) * (0.1 if mean else 1)
                    size = max(1, min(crew.most, int(_CALL_SECONDS / max(mean, 1e-3))))
                if event.kind in ("died", "late"):
                    deaths[job.name] += 1
                    # A second time is enough where nothing but the job itself took so long.
                    late = event.kind == "late" and alone and deaths[job.name] > 1
                    if event.kind == "late":
                        slow[job.name] = event
                    if deaths[job.name] < DEATHS and not late:
                        again.append(job)
                        continue
                # Whatever ended it at last, that it took too long says most.
                yield number, job, slow.get(job.name, event) if event.kind == "died" else event


def _shared(jobs: Sequence[Job], events: Sequence[Event]) -> list[End]:
    """Each job with its event, or with the one that ended all of them."""
    return [(job, events[number % len(events)]) for number, job in enumerate(jobs)]


def kind_of(told: Mapping[str, Any]) -> str:
    """What the requests of jobs have in common that go through a network together."""
    method = {key: value for key, value in told["method"].items() if "prompt" not in key}
    return json.dumps([told["verb"], told.get("model"), told.get("size"), method])


def find_gpus() -> list[str]:
    """The GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names or would name them.

    NVIDIA's own tool is asked: torch takes seconds to load, and this process needs none of it.
    """
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is None and (tool := shutil.which("nvidia-smi")):
        command = [tool, "--query-gpu=index", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        told = ",".join(answer.stdout.split()) if answer.returncode == 0 else ""
    names = [name.strip() for name in (told or "").split(",")]
    # As CUDA has it, one that is no device ends the list.
    return list(takewhile(lambda name: name not in ("", "-1"), names))


class Alone:
    """This process as the only worker; a Crew."""

    def __init__(self, batch_size: BatchSize = 1) -> None:
        self.batch = self.most = _AUTO if batch_size == "auto" else batch_size
        self.seats, self._size = [Runner()], batch_size
        self._jobs: Sequence[Job] = ()

    def free(self) -> list[Runner]:
        return [] if self._jobs else self.seats

    def give(self, seat: Runner, jobs: Sequence[Job]) -> None:
        self._jobs = jobs

    def ends(self, timeout: float) -> list[tuple[Runner, list[End]]]:
        jobs, self._jobs = self._jobs, ()
        ends = self.seats[0].run_all(jobs, self._size)
        return [(self.seats[0], list(zip(jobs, ends, strict=True)))]

    def close(self) -> None:
        return None


class Processes:
    """Worker processes of this machine, with the limits of Worker; a Crew. Each sees one of the
    GPUs, in turn, where there are some.
    """

    def __init__(
        self, count: int, batch_size: BatchSize = 1, gpus: Sequence[str] = (), **limits: Any
    ) -> None:
        own = [gpus[number % len(gpus)] if gpus else None for number in range(count)]
        self.seats = [Worker(batch_size=batch_size, gpu=gpu, **limits) for gpu in own]
        self.batch = self.most = _AUTO if batch_size == "auto" else batch_size
        self._given: dict[int, Sequence[Job]] = {}

    def free(self) -> list[Worker]:
        return [seat for seat in self.seats if seat.job is None]

    def give(self, seat: Worker, jobs: Sequence[Job]) -> None:
        self._given[id(seat)] = jobs
        seat.submit(*jobs)

    def ends(self, timeout: float) -> list[tuple[Worker, list[End]]]:
        busy = [seat for seat in self.seats if seat.job is not None]
        wait([seat.pipe for seat in busy], timeout)
        # All are asked, as one that says nothing may be beyond its limits.
        told = [(seat, [event for event in seat.poll() if event.final]) for seat in busy]
        return [(seat, _shared(self._given[id(seat)], events)) for seat, events in told if events]

    def close(self) -> None:
        for seat in self.seats:
            seat.kill()


class Actors:
    """Actors of a Ray cluster, one a GPU where there are some, else one a core; a Crew.

    address is the cluster's, None for one on this machine. count is how many there are; None: as
    many as the cluster has room for, also where nodes join it later. seconds bounds a job's time.
    runner is the class that runs jobs, which every node can import. Raises InputError where the
    cluster cannot be reached.
    """

    def __init__(
        self,
        address: str | None = None,
        count: int | None = None,
        seconds: float | None = None,
        runner: type[Runner] = Runner,
        batch_size: BatchSize = 1,
    ) -> None:
        try:
            import ray
            import ray.util.metrics
        except ImportError:
            raise InputError("ray is not installed; pip install 'inlay[batch]'.") from None
        self._ray, self._own = ray, not ray.is_initialized()
        if self._own:
            try:
                ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:
                reason = plain(f"{type(error).__name__}: {error}", 200)
                raise InputError(f"no Ray cluster at {address} ({reason}).") from None
        # A worker's death, which is dealt with here, is not for standard output.
        ray._private.worker.print_to_stdstream = lambda data, ignore_prefix: None
        self.seconds, self._dynamic, self._grown = seconds, count is None, time.monotonic()
        own = {"num_gpus": 1} if ray.cluster_resources().get("GPU", 0) >= 1 else {"num_cpus": 1}
        self._kind = ray.remote(max_restarts=0, max_task_retries=0, **own)(runner)
        self._resource = "GPU" if "num_gpus" in own else "CPU"
        # Beside what Ray itself tells Prometheus.
        self._ends = ray.util.metrics.Counter("inlay_jobs", "Jobs by their end.", ("kind",))
        self._failures, self._batch_size, self.most = 0, batch_size, _MOST
        self.batch = _AUTO if batch_size == "auto" else batch_size
        self.seats: list[_Seat] = []
        self._grow(count or self._room())

    def free(self) -> list[_Seat]:
        if self._dynamic and time.monotonic() - self._grown > _GROWTH_SECONDS:
            self._grow(self._room() - len(self.seats))
        return [seat for seat in self.seats if seat.ref is None]

    def give(self, seat: _Seat, jobs: Sequence[Job]) -> None:
        seat.jobs, seat.ref = jobs, seat.actor.run_all.remote(jobs, self._batch_size)
        # Several are tried again one by one, should that not do.
        seat.until = time.monotonic() + (self.seconds or 1e9) + _CALL_SECONDS

    def ends(self, timeout: float) -> list[tuple[_Seat, list[End]]]:
        refs = {seat.ref: seat for seat in self.seats if seat.ref is not None}
        ready, _ = self._ray.wait([*refs], timeout=timeout)
        told = [(refs[ref], self._answer(refs[ref])) for ref in ready]
        for seat in refs.values():
            if seat.jobs and time.monotonic() > seat.until:
                late = Event("late", f"it took longer than {self.seconds:g} s.")
                told.append((seat, self._replace(seat, late)))
        return [(seat, ends) for seat, ends in told if ends]

    def close(self) -> None:
        for seat in self.seats:
            self._ray.kill(seat.actor)
        if self._own:
            self._ray.shutdown()

    def _room(self) -> int:
        return max(1, int(self._ray.cluster_resources().get(self._resource, 0)))

    def _grow(self, count: int) -> None:
        self._grown = time.monotonic()
        self.seats += [self._start(_Seat()) for _ in range(count)]

    def _start(self, seat: _Seat) -> _Seat:
        seat.actor, seat.jobs = self._kind.remote(), ()
        # Its answer says that it is there; until then it has no job to lose.
        seat.ref = seat.actor.run_all.remote([])
        return seat

    def _answer(self, seat: _Seat) -> list[End]:
        try:
            events = self._ray.get(seat.ref)
        except Exception as error:
            reason = plain(str(error).strip().partition("\n")[0] or type(error).__name__, 200)
            return self._replace(seat, Event("died", f"its worker died ({reason})."))
        jobs, seat.jobs, seat.ref, self._failures = seat.jobs, (), None, 0
        for event in events:
            self._ends.inc(tags={"kind": event.kind})
        return list(zip(jobs, events, strict=True))

    def _replace(self, seat: _Seat, event: Event) -> list[End]:
        """Put another actor in the place of one that died or that has to."""
        ends = [(job, event) for job in seat.jobs]
        self._failures += not ends
        if self._failures > DEATHS * len(self.seats):
            raise InputError(f"no worker starts: {event.sentence}")
        self._ray.kill(seat.actor)
        self._start(seat)
        return ends


class _Seat:
    """An actor, the jobs that it has, and the answer that is awaited until a time; None: free."""

    actor: Any
    ref: Any
    jobs: Sequence[Job]
    until = 0.0
