"""A worker's process: what it makes, and that nothing it meets is lost or left half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from inlay.batch.runner import Job, Runner
from inlay.batch.worker import Worker
from inlay.cli import main
from photos import cup
from runners import Told

REQUEST = {
    "verb": "compose",
    "method": "poisson",
    "background": "chelsea.png",
    "subjects": [{"picture": "cup.png", "box": [20, 170, 120, 110]}],
}
SLOW = {**REQUEST, "method": {"name": "cdc", "num_inference_steps": 500, "prompt": "a cup"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("worker")
    Image.fromarray(data.chelsea()).save(path / "chelsea.png")
    Image.fromarray(cup()).save(path / "cup.png")
    return path


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One process for all tests that leave it alive, as starting one takes seconds."""
    worker = Worker(threads=1)
    yield worker
    worker.kill()


def job(folder: Path, request: dict[str, Any], output: str = "out.png", **more: Any) -> Job:
    """A job whose pictures lie in a folder."""
    [subject] = request["subjects"]
    subject = {**subject, "picture": str(folder / subject["picture"])}
    placed = {**request, "background": str(folder / "chelsea.png"), "subjects": [subject]}
    return Job(output, placed, str(folder / output), **more)


def test_a_worker_knows_its_threads_and_gpu_before_it_imports_numpy(folder: Path) -> None:
    before = dict(os.environ)
    worker = Worker(threads=3, gpu="5", runner=Told)
    worker.submit(job(folder, REQUEST))
    *_, done = worker.events()
    worker.kill()
    assert json.loads(done.sentence) == ["3", "3", "3", "5"]
    assert dict(os.environ) == before


def test_a_worker_writes_what_inlay_run_writes(folder: Path, worker: Worker) -> None:
    """To the byte, and again in a second job; steps and the record arrive on the way."""
    asked = job(folder, {**REQUEST, "num_images": 2, "seed": 5}, "two.png")
    (folder / "two.json").write_text(json.dumps(asked.request))
    assert main(["run", str(folder / "two.json"), "-o", str(folder / "by_run.png"), "-q"]) == 0
    worker.submit(asked)
    first, *steps, done = worker.events()
    assert first.kind == "started" and done.kind == "done"
    assert [(each.kind, each.step, each.total) for each in steps[-1:]] == [("progress", 2, 2)]
    assert [Path(path).name for path in done.paths] == ["two-seed=5.png", "two-seed=6.png"]
    assert [record["seed"] for record in done.records] == [5, 6]
    for path in done.paths:
        mine = Path(path).read_bytes()
        assert mine == Path(path.replace("two-", "by_run-")).read_bytes()
    pid = worker.pid
    worker.submit(job(folder, REQUEST))
    *_, again = worker.events()
    assert again.kind == "done" and worker.pid == pid


def test_layers_say_where_each_subject_lies(folder: Path, worker: Worker) -> None:
    asked = job(folder, REQUEST, "laid.png", layers=str(folder / "laid.npz"))
    worker.submit(asked)
    *_, done = worker.events()
    assert done.kind == "done" and done.paths[1].endswith("laid.npz")
    with np.load(done.paths[1], allow_pickle=False) as layers:
        [[x, y, width, height]], alpha = layers["boxes"], layers["alpha_0"]
    assert done.records[0]["subjects"] == [
        {"box": {"x": x, "y": y, "width": width, "height": height}}
    ]
    assert alpha.shape == (height, width) and alpha.dtype == np.uint8 and alpha.max() == 255


def test_a_refusal_is_a_sentence_and_writes_nothing(folder: Path, worker: Worker) -> None:
    wrong = {**REQUEST, "subjects": [{"picture": "none.png", "box": [1, 2, 3, 4]}]}
    for request, words in (({**REQUEST, "method": "poison"}, "poisson"), (wrong, "none.png")):
        worker.submit(job(folder, request, "refused.png"))
        *_, refused = worker.events()
        assert refused.kind == "refused" and words in refused.sentence
    assert not (folder / "refused.png").exists()


def test_a_job_stops_at_its_next_step_when_it_is_cancelled(folder: Path, worker: Worker) -> None:
    worker.submit(job(folder, SLOW, "cancelled.png", previews=True))
    seen = []
    for event in worker.events():
        seen.append(event)
        if event.kind == "progress":
            worker.cancel()
    *_, last = seen
    assert last.kind == "cancelled" and not (folder / "cancelled.png").exists()
    assert any(each.preview.startswith("/9j/") for each in seen)
    worker.submit(job(folder, REQUEST))
    *_, done = worker.events()
    assert done.kind == "done"


def test_what_kills_a_worker_is_said_and_another_one_starts(folder: Path) -> None:
    worker = Worker(threads=1)
    worker.submit(job(folder, SLOW, "killed.png"))
    for event in worker.events():
        if event.kind == "progress":
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
    assert event.kind == "died" and "SIGKILL" in event.sentence
    worker.memory = 50 << 20
    worker.submit(job(folder, SLOW, "killed.png"))
    *_, event = worker.events()
    assert event.kind == "died" and "MB of memory" in event.sentence
    worker.memory, worker.seconds = None, 0.0
    worker.submit(job(folder, SLOW, "killed.png"))
    *_, event = worker.events()
    assert event.kind == "late" and "0 s" in event.sentence
    assert not list(folder.glob("killed*"))
    worker.kill()


def test_an_idle_worker_ends_and_starts_again(folder: Path) -> None:
    worker = Worker(threads=1, idle=0.01)
    pids = set()
    for _ in range(2):
        worker.submit(job(folder, REQUEST, "idle.png"))
        *_, done = worker.events()
        assert done.kind == "done"
        pids.add(worker.pid)
        worker._process.join(60)
        assert worker._process.exitcode == 0
    assert len(pids) == 2


def test_a_concept_is_learnt_as_a_job(folder: Path) -> None:
    """In this process, which has torch already."""
    photos = [str(folder / "cup.png")]
    request = {"verb": "learn", "photos": photos, "class_name": "cup"}
    request["settings"] = {"steps": 2, "resolution": 64, "rank": 1}
    output, steps = folder / "cup.safetensors", []
    done = Runner().run(
        Job("cup", request, str(output)), lambda step, total, _: steps.append((step, total))
    )
    assert done.kind == "done" and done.paths == [str(output)] and output.is_file()
    assert steps[-1] == (2, 2)
    refused = Runner().run(Job("cup", {**request, "photo": "x"}, str(output)))
    assert refused.kind == "refused" and "'photo'" in refused.sentence


def test_whoever_watches_loads_no_heavy_library() -> None:
    code = "import inlay.batch.worker, sys; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "numpy", "pydantic", "diffusers"} & set(out.stdout.split())
