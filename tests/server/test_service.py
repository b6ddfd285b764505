"""Whole servers: killed and started again, and helpers that die of what they are given."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from inlay import Composer
from inlay.cli import main
from inlay.errors import InputError
from inlay.request import Request
from inlay.server import stage
from inlay.server.command import models_of
from inlay.server.limits import Limits
from servers import Running, encoded, photographs, running

COMMAND = (sys.executable, "-m", "inlay", "serve", "--port", "0", "--folder", "store")


def kill_self(name: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def process(folder: Path) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    """`inlay serve` in a process of its own, and a client of it."""
    with subprocess.Popen(
        COMMAND, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as server:
        assert server.stdout is not None
        try:
            [port] = re.findall(r":(\d+)$", server.stdout.readline().strip())
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                yield client, server
        finally:
            server.kill()


def finished(client: httpx.Client, job: str) -> dict[str, object]:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        told: dict[str, object] = client.get(f"/api/jobs/{job}").json()
        if told["state"] not in ("queued", "running"):
            return told
        time.sleep(0.1)
    raise AssertionError(told)


def test_what_a_killed_server_had_to_do_is_done_by_the_next(tmp_path: Path) -> None:
    """A finished job, one that was running and one that waited."""
    with process(tmp_path) as (client, server):
        files = [
            client.post("/api/files", files={"file": each}).json()["file"] for each in photographs()
        ]
        subject = {"picture": files[1], "box": [100, 120, 90, 80]}
        request = {"verb": "compose", "background": files[0], "subjects": [subject]}
        fast, slow = {**request, "method": "paste"}, {**request, "method": {"name": "cdc"}}
        slow["method"] = {"name": "cdc", "num_inference_steps": 60, "prompt": "a cup"}
        first = client.post("/api/jobs", json=fast).json()["id"]
        before = finished(client, first)
        jobs = [client.post("/api/jobs", json=each).json()["id"] for each in (slow, fast)]
        while client.get(f"/api/jobs/{jobs[0]}").json()["step"] == 0:
            time.sleep(0.01)
        server.kill()
    with process(tmp_path) as (client, server):
        assert client.get(f"/api/jobs/{first}").json() == before
        ends = [finished(client, job) for job in jobs]
        assert [end["state"] for end in ends] == ["done", "done"]
        assert ends[1]["file"] == before["file"]
        again = client.post("/api/jobs", json=slow).json()["id"]
        assert finished(client, again)["file"] == ends[0]["file"]


def test_jobs_alike_go_through_the_network_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures are those of each alone, within a level; one that is refused harms no other."""
    clear = encoded(np.zeros((32, 32, 4), np.uint8))
    with running(tmp_path / "store", batch_size=4) as one:
        background, subject, clear = (one.upload(each) for each in (*photographs(), clear))
        method = {"name": "cdc", "num_inference_steps": 3, "prompt": "a cup"}
        request = {"verb": "compose", "background": background, "method": method}
        placed = [{"picture": each, "box": [100, 120, 90, 80]} for each in (subject, clear)]
        orders = [{**request, "seed": n, "subjects": [placed[n == 2]]} for n in range(4)]
        # All of these wait until this long one has gone ahead.
        long = {**method, "num_inference_steps": 60}
        one.order({**request, "method": long, "subjects": placed[:1]})
        jobs = [one.wait(job["id"]) for job in [one.order(order) for order in orders]]
        assert [job["state"] for job in jobs] == ["done", "done", "failed", "done"]
        assert jobs[0]["record"]["batch_size"] == 3
        composer = Composer("embedded", device="cpu")
        monkeypatch.chdir(one.service.store.files)
        for job in (jobs[0], jobs[3]):
            made = np.asarray(Image.open(job["file"])).astype(int)
            own = np.asarray(composer.run(Request.of(job["request"])).image)
            assert abs(made - own).max() <= 1


def test_a_worker_that_is_killed_costs_no_job(server: Running) -> None:
    files = [server.upload(each) for each in photographs()]
    subject = {"picture": files[1], "box": [100, 120, 90, 80]}
    request = {"verb": "compose", "background": files[0], "subjects": [subject]}
    request["method"] = {"name": "cdc", "num_inference_steps": 40, "prompt": "a cup"}
    job = server.order(request)["id"]
    while server.client.get(f"/api/jobs/{job}").json()["step"] == 0:
        time.sleep(0.01)
    pid = server.service.runners[0].worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert server.wait(job)["state"] == "done"
    assert server.client.get("/healthz").status_code == 200


def test_a_helper_that_dies_is_replaced(tmp_path: Path) -> None:
    """Also where it takes too long; tasks beside it are done."""

    async def tasks() -> list[object]:
        calls = (helper.call(time.sleep, 0.1), helper.call(os.getpid), helper.call(time.sleep, 9))
        return await asyncio.gather(*calls, return_exceptions=True)

    helper = stage.Helper(tmp_path, Limits(task_seconds=1.0))
    with pytest.raises(InputError, match="more time or memory"):
        asyncio.run(helper.call(kill_self, "a"))
    found = asyncio.run(tasks())
    assert found[0] is None and isinstance(found[1], int) and isinstance(found[2], InputError)
    helper.close()


def test_a_helper_lasts_for_so_many_tasks(tmp_path: Path) -> None:
    """Then another process goes on, and what the first one was at is done."""
    helper = stage.Helper(tmp_path, Limits(), lasts=3)

    async def tasks() -> list[int]:
        return await asyncio.gather(*(helper.call(os.getpid) for _ in range(4)))

    found = asyncio.run(tasks())
    assert found[0] == found[1] != found[2] == found[3]
    helper.close()


def test_models_are_named_by_the_operator_and_tell_no_path(tmp_path: Path) -> None:
    files, secret = tmp_path / "files", tmp_path / "secret" / "model"
    files.mkdir()
    secret.mkdir(parents=True)
    weights = secret / "w.safetensors"
    weights.write_bytes(b"x")
    found = models_of(["embedded", f"own={secret}", str(weights), "owner/name"], files, "cpu")
    assert [*found] == ["embedded", "own", "w.safetensors", "owner/name"]
    assert str(tmp_path) not in str(found)
    assert (files / "own").resolve() == secret
    # Links of an earlier start are gone.
    assert [*models_of(["embedded"], files, "cpu")] == ["embedded"]
    assert not [*files.iterdir()]
    for wrong in ("nothing here", "/no/such/file", "embedded=" + str(secret), "a b=" + str(secret)):
        with pytest.raises(InputError, match="--model"):
            models_of([wrong], files, "cpu")


def test_serve_says_what_is_wrong_with_its_options(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--folder", str(tmp_path), "--token", "short"]) == 2
    assert "too short" in capfd.readouterr().err
    (tmp_path / "file").write_text("x")
    assert main(["serve", "--folder", str(tmp_path / "file")]) == 2
    assert "cannot be used" in capfd.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--folder", str(tmp_path / "new"), "--port", port]) == 2
    assert "cannot be listened on" in capfd.readouterr().err
