"""Jobs to workers, which pull them: processes of this machine, or actors of a Ray cluster.

A worker that dies takes no job with it: those that it had not done are tried again, each by itself,
and one at which workers died three times has failed.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import islice
from multiprocessing.connection import wait
from typing import Any, Protocol, TypeAlias

from inlay.batch.runner import Event, Job, Runner
from inlay.batch.worker import Worker
from inlay.errors import InputError, plain

# How often a job may end its worker, and how often in a row an actor may not start.
DEATHS = 3
# An actor gets as many jobs at once as it does in so many seconds, at most so many.
_CALL_SECONDS, _MOST = 0.5, 64
_TICK, _GROWTH_SECONDS = 0.2, 5.0
_FULL = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT))

End: TypeAlias = tuple[Job, Event]


class Crew(Protocol):
    """Workers of one kind. Each is called a seat here: who sits on it may change."""

    most: int

    @property
    def seats(self) -> Sequence[Any]: ...

    def free(self) -> Sequence[Any]:
        """The seats that may be given jobs now, at most `most` at once."""

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
    again: deque[Job] = deque()
    deaths: Counter[str] = Counter()
    busy: dict[int, int] = {}
    left, size, mean = True, 1, 0.0
    while True:
        for seat in crew.free():
            given = [again.popleft()] if again else list(islice(jobs, size) if left else ())
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
                    if deaths[job.name] < DEATHS and not (event.kind == "late" and alone):
                        again.append(job)
                        continue
                yield number, job, event


class Processes:
    """Worker processes of this machine, with the limits of Worker; a Crew."""

    most = 1

    def __init__(self, count: int, **limits: Any) -> None:
        self.seats = [Worker(**limits) for _ in range(count)]

    def free(self) -> list[Worker]:
        return [seat for seat in self.seats if seat.job is None]

    def give(self, seat: Worker, jobs: Sequence[Job]) -> None:
        [job] = jobs
        seat.submit(job)

    def ends(self, timeout: float) -> list[tuple[Worker, list[End]]]:
        busy = [(seat, job) for seat in self.seats if (job := seat.job) is not None]
        wait([seat.pipe for seat, _ in busy], timeout)
        # All are asked, as one that says nothing may be beyond its limits.
        told = [
            (seat, [(job, event) for event in seat.poll() if event.final]) for seat, job in busy
        ]
        return [(seat, ends) for seat, ends in told if ends]

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

    most = _MOST

    def __init__(
        self,
        address: str | None = None,
        count: int | None = None,
        seconds: float | None = None,
        runner: type[Runner] = Runner,
    ) -> None:
        try:
            import ray
        except ImportError:
            raise InputError("ray is not installed; pip install 'inlay[batch]'.") from None
        self._ray, self._own = ray, not ray.is_initialized()
        if self._own:
            try:
                ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:
                reason = plain(f"{type(error).__name__}: {error}", 200)
                raise InputError(f"no Ray cluster at {address} ({reason}).") from None
        self.seconds, self._dynamic, self._grown = seconds, count is None, time.monotonic()
        own = {"num_gpus": 1} if ray.cluster_resources().get("GPU", 0) >= 1 else {"num_cpus": 1}
        self._kind = ray.remote(max_restarts=0, max_task_retries=0, **own)(runner)
        self._resource = "GPU" if "num_gpus" in own else "CPU"
        self._failures = 0
        self.seats: list[_Seat] = []
        self._grow(count or self._room())

    def free(self) -> list[_Seat]:
        if self._dynamic and time.monotonic() - self._grown > _GROWTH_SECONDS:
            self._grow(self._room() - len(self.seats))
        return [seat for seat in self.seats if seat.ref is None]

    def give(self, seat: _Seat, jobs: Sequence[Job]) -> None:
        seat.jobs, seat.ref = jobs, seat.actor.run_all.remote(jobs)
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
