"""The store: every change of a job is there after a kill, and none is made twice."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from inlay.errors import InputError
from inlay.server.jobs import Job, Store
from inlay.server.limits import Limits, Refusal

REQUEST = {"verb": "remove", "picture": "a" * 64}
FACTS = {"kind": "picture", "width": 4, "height": 3}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, Limits())


def kept(store: Store, letter: str, size: int = 10) -> str:
    draft = store.draft()
    draft.write_bytes(bytes(size))
    return store.keep(draft, letter * 64, FACTS).file


def added(store: Store, seed: int = 0, **more: Any) -> Job:
    return store.add("client", {**REQUEST, "seed": seed}, (), **more)


def claimed(store: Store) -> Job:
    job = store.claim(0)
    assert job is not None
    return job


def aged(store: Store, seconds: float) -> None:
    """Let time pass, for what is stored."""
    store._do("UPDATE files SET used = used - ?", seconds)
    store._do("UPDATE jobs SET finished = finished - ?", seconds)


def test_jobs_run_in_their_order_and_end_once(store: Store) -> None:
    first, second = added(store), added(store, 1)
    assert (first.position, second.position) == (1, 2)
    assert claimed(store).id == first.id
    assert store.job(second.id).position == 1
    store.finish(first.id, [kept(store, "b")], [{"seed": 0}])
    store.fail(first.id, "too late")
    store.cancel(first.id)
    done = store.job(first.id)
    assert (done.state, done.file, done.images, done.record) == ("done", "b" * 64, 1, {"seed": 0})
    store.cancel(second.id)
    assert store.claim(0) is None
    # What a worker still says of a cancelled job is passed over.
    store.advance(second.id, 1, 2)
    store.finish(second.id, [], [])
    assert store.job(second.id).state == "cancelled"


def test_a_new_server_finds_what_the_last_one_left(store: Store, tmp_path: Path) -> None:
    jobs = [added(store, number) for number in range(3)]
    store.finish(claimed(store).id, [kept(store, "b")], [{}])
    assert claimed(store).id == jobs[1].id
    draft = store.draft(".png")
    draft.write_text("half a pict")
    with pytest.raises(InputError, match="another server"):
        Store(tmp_path, Limits())
    store.close()
    again = Store(tmp_path, Limits())
    assert [again.job(job.id).state for job in jobs] == ["done", "queued", "queued"]
    assert claimed(again).id == jobs[1].id
    assert not draft.exists() and again.file("b" * 64).width == 4


def test_a_job_that_ends_its_worker_three_times_fails_with_the_reason(store: Store) -> None:
    job, other = added(store), added(store, 1)
    for _ in range(3):
        assert claimed(store).id == job.id
        store.died(job.id, "its process was killed by SIGKILL.")
    failed = store.job(job.id)
    assert failed.state == "failed" and "SIGKILL" in str(failed.error)
    assert "3 times" in str(failed.error)
    assert claimed(store).id == other.id


def test_events_come_in_order_and_the_last_of_each_name_stays(store: Store) -> None:
    job = added(store).id
    claimed(store)
    for step in range(50):
        store.advance(job, step, 50, "AAAA")
    events = store.events(job, 0)
    assert [name for _, name, _ in events] == ["state", "progress", "preview"]
    assert '"step": 49' in events[1][2] and "base64,AAAA" in events[2][2]
    store.fail(job, "no.")
    later = store.events(job, events[-1][0])
    assert [name for _, name, _ in later] == ["done"]
    heard: list[str] = []
    store.listener = heard.append
    store.delete(job)
    assert heard == [job] and store.events(job, 0) == []
    with pytest.raises(Refusal, match="no job"):
        store.job(job)


def test_a_key_is_one_job_of_its_client(store: Store) -> None:
    first = added(store, key="k")
    assert added(store, key="k").id == first.id
    assert store.add("other", {**REQUEST, "seed": 0}, (), "k").id != first.id
    with pytest.raises(Refusal, match="Idempotency-Key"):
        added(store, 1, key="k")


def test_jobs_alike_are_claimed_together(store: Store) -> None:
    """They differ in seeds, pictures and prompts; what a worker has died of runs alone."""
    method = {"name": "cdc", "prompt": "a cup", "num_inference_steps": 5}
    jobs = [
        store.add("client", {**REQUEST, "seed": seed, "method": {**method, **more}}, ())
        for seed, more in enumerate(
            ({}, {"num_inference_steps": 6}, {"prompt": "a cat"}, {}, {"prompt": ""}, {})
        )
    ]
    assert claimed(store).id == jobs[0].id
    store.died(jobs[0].id, "no.")
    dead = claimed(store)
    assert dead.id == jobs[0].id and store.claim_alike(dead, 9) == []
    store.fail(dead.id, "no.")
    odd = claimed(store)
    assert odd.id == jobs[1].id and store.claim_alike(odd, 9) == []
    first = claimed(store)
    alike = store.claim_alike(first, 2)
    assert [each.id for each in (first, *alike)] == [jobs[n].id for n in (2, 3, 4)]
    assert {each.state for each in alike} == {"running"}
    assert claimed(store).id == jobs[5].id


def test_what_is_old_goes_and_what_is_needed_stays(store: Store) -> None:
    needed, result, spare = (kept(store, letter) for letter in "abc")
    waits = store.add("client", REQUEST, [needed])
    ends = added(store)
    store._do("UPDATE jobs SET number = 0 WHERE id = ?", ends.id)
    store.finish(claimed(store).id, [result], [{}])
    store.sweep()
    assert store.job(ends.id).state == "done" and store.holds(spare)
    aged(store, store.limits.age + 1)
    store.sweep()
    assert [store.holds(file) for file in (needed, result, spare)] == [True, False, False]
    assert os.listdir(store.files) == [needed]
    assert store.job(waits.id).state == "queued"
    with pytest.raises(Refusal):
        store.job(ends.id)


def test_the_least_used_goes_where_there_is_too_much(tmp_path: Path) -> None:
    store = Store(tmp_path, Limits(store_bytes=1000))
    kept(store, "a", 400)
    kept(store, "b", 400)
    with pytest.raises(Refusal, match="full"):
        kept(store, "c", 400)
    aged(store, 7200)
    store.file("a" * 64)
    kept(store, "c", 400)
    assert [store.holds(letter * 64) for letter in "abc"] == [True, False, True]
    assert sum(path.stat().st_size for path in store.files.iterdir()) == 800


def test_a_wait_for_a_job_ends_when_there_is_one(store: Store) -> None:
    import threading

    found: list[Job | None] = []
    thread = threading.Thread(target=lambda: found.append(store.claim(60)))
    thread.start()
    time.sleep(0.1)
    job = added(store)
    thread.join(10)
    assert found and found[0] is not None and found[0].id == job.id


def test_several_runners_claim_each_job_once(store: Store) -> None:
    """At the same time, alone and together, and none waits for another for ever."""
    import threading

    method = {"name": "cdc", "prompt": "a cup"}
    jobs = [store.add(f"{n}", {**REQUEST, "seed": n, "method": method}, ()) for n in range(40)]
    found: list[str] = []

    def run() -> None:
        while (job := store.claim(0.2)) is not None:
            found.extend(each.id for each in (job, *store.claim_alike(job, 2)))

    threads = [threading.Thread(target=run, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == sorted(job.id for job in jobs)
