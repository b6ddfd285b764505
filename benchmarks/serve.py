"""What `inlay serve` stands: kills at random moments, many clients, broken uploads.

    python benchmarks/serve.py chaos [--jobs 60] [--kills 20]    kill -9, of server and children
    python benchmarks/serve.py load [--clients 50] [--minutes 2] throughput against the library's
    python benchmarks/serve.py cost [--jobs 60]                  CPU of a job against the library's
    python benchmarks/serve.py uploads [--count 10000]           mutated pictures and forms
    python benchmarks/serve.py schema [--count 100]              schemathesis on the served OpenAPI

The last one runs the program schemathesis (`pip install schemathesis`, in any environment).

Each prints figures as JSON, and exits with 1 where something broke that must not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import hashlib
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image
from skimage import data

STEPS = 4
WAYS = ("one by one", "batched")


def encoded(samples: Any, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, kind)
    return buffer.getvalue()


@functools.cache
def photographs() -> tuple[bytes, bytes]:
    """A background, and a subject with alpha."""
    crop = data.coffee()[20:140, 150:300]
    there = np.hypot(*np.ogrid[-1:1:120j, -1:1:150j]) < 0.9
    subject = np.dstack([crop, np.where(there, 255, 0).astype(np.uint8)])
    return encoded(data.chelsea()[:256, :320]), encoded(subject)


def request_of(files: list[str], seed: int) -> dict[str, Any]:
    subject = {"picture": files[1], "box": [100 + seed % 90, 120, 80, 64]}
    method = {"name": "cdc", "prompt": "a cup", "num_inference_steps": STEPS}
    request = {"verb": "compose", "background": files[0], "subjects": [subject]}
    return {**request, "method": method, "seed": seed}


class Server:
    """`inlay serve` in a process of its own, that may be killed and started again."""

    def __init__(self, folder: Path, batch_size: int = 1) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.folder, self.url = folder, f"http://127.0.0.1:{self.port}"
        self.more = ["--device", "cpu", "--batch-size", str(batch_size)]
        self.log = (folder / "log.txt").open("a")
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "inlay", "serve", "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, "--folder", str(self.folder / "store"), *self.more],
            stdout=subprocess.DEVNULL, stderr=self.log,
        )  # fmt: skip
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/healthz", timeout=5).status_code == 200:
                    return
            if self.process.poll() is not None:
                raise SystemExit("the server does not start; see its log.")
            time.sleep(0.1)

    def kill(self, whole: bool) -> str:
        """Kill the server and start it again, or kill one of its children."""
        if not whole:
            children = psutil.Process(self.process.pid).children(recursive=True)
            busy = [each for each in children if each.memory_info().rss > 50e6]
            if busy:
                # The one that computes is the worker.
                busy.sort(key=lambda each: sum(each.cpu_times()[:2]))
                busy[-1 if random.random() < 0.8 else 0].kill()
                return "child"
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.start()
        return "server"

    def memory(self) -> list[int]:
        """Of the server and of each of its children, in MB."""
        own = psutil.Process(self.process.pid)
        each = (own, *own.children(recursive=True))
        return [round(process.memory_info().rss / 1e6) for process in each]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def patient(call: Any, *words: Any, **told: Any) -> httpx.Response:
    """An answer, asked for again while the server is away or has too much to do."""
    while True:
        with contextlib.suppress(httpx.TransportError):
            answer = call(*words, **told)
            if answer.status_code != 429:
                return answer
        time.sleep(0.3)


def made_by_the_library(folder: Path, requests: list[dict[str, Any]]) -> list[str]:
    """The hashes of the files that the library writes for requests, undisturbed."""
    from inlay.composer import Composer
    from inlay.request import Request

    composer, before, hashes = Composer("embedded", device="cpu"), Path.cwd(), []
    out = Path(tempfile.mkdtemp()) / "out.png"
    os.chdir(folder / "store" / "files")
    for request in requests:
        composer.run(Request.of(request)).save(out)
        hashes.append(hashlib.sha256(out.read_bytes()).hexdigest())
    os.chdir(before)
    return hashes


def chaos(folder: Path, jobs: int, kills: int) -> dict[str, Any]:
    """Jobs that are ordered while the server and its children are killed."""
    server, random_, told = Server(folder), random.Random(0), []
    client = httpx.Client(base_url=server.url, timeout=30)
    patient(client.get, "/api/session")
    files = [
        patient(client.post, "/api/files", files={"file": each}).json()["file"]
        for each in photographs()
    ]
    ids: list[str] = []

    def order() -> None:
        for seed in range(jobs):
            key = {"Idempotency-Key": f"job {seed}"}
            body = request_of(files, seed)
            ids.append(patient(client.post, "/api/jobs", json=body, headers=key).json()["id"])

    started, ordering = time.monotonic(), threading.Thread(target=order)
    ordering.start()
    for _ in range(kills):
        time.sleep(random_.uniform(0.5, 8))
        told.append(server.kill(whole=random_.random() < 0.5))
    ordering.join()
    states: dict[str, dict[str, Any]] = {}
    while len(states) < jobs:
        for job in set(ids) - states.keys():
            shown = patient(client.get, f"/api/jobs/{job}").json()
            if shown["state"] not in ("queued", "running"):
                states[job] = shown
        time.sleep(0.3)
    seconds = time.monotonic() - started
    listed = patient(client.get, "/api/jobs?limit=1000").json()["jobs"]
    done = [states[job] for job in ids if states[job]["state"] == "done"]
    server.close()
    wanted = made_by_the_library(folder, [each["request"] for each in done])
    return {
        "jobs": jobs, "kills": {word: told.count(word) for word in set(told)},
        "seconds": round(seconds, 1), "ids": len(set(ids)), "listed": len(listed),
        "done": len(done), "failed": [s["error"] for s in states.values() if s["state"] != "done"],
        "other bytes": sum(s["file"] != w for s, w in zip(done, wanted, strict=True)),
        "broken": len(set(ids)) != jobs or len(listed) != jobs
        or any(s["state"] == "failed" and not s["error"] for s in states.values())
        or [s["file"] for s in done] != wanted,
    }  # fmt: skip


async def one_client(
    url: str, number: int, end: float, done: list[float], statuses: dict[int, int]
) -> None:
    """Orders jobs one after the other and fetches their results, until the time is over."""
    async with httpx.AsyncClient(base_url=url, timeout=120, verify=False) as client:

        async def ask(method: str, path: str, **told: Any) -> httpx.Response:
            answer = await client.request(method, path, **told)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            return answer

        await ask("GET", "/api/session")
        files = []
        for each in photographs():
            files.append((await ask("POST", "/api/files", files={"file": each})).json()["file"])
        seed = number * 1000
        while time.monotonic() < end:
            seed += 1
            answer = await ask("POST", "/api/jobs", json=request_of(files, seed))
            if answer.status_code == 429:
                await asyncio.sleep(1)
                continue
            job = answer.json()["id"]
            async with client.stream("GET", f"/api/jobs/{job}/events") as events:
                async for line in events.aiter_lines():
                    if line == "event: done" or time.monotonic() > end:
                        break
            if time.monotonic() < end:
                await ask("GET", f"/api/jobs/{job}/result")
                done.append(time.monotonic())


async def crowd(url: str, clients: int, seconds: float) -> dict[str, Any]:
    end, done, statuses = time.monotonic() + seconds, list[float](), dict[int, int]()
    times: list[float] = []

    async def probe() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60, verify=False) as client:
            while time.monotonic() < end:
                before = time.monotonic()
                assert (await client.get("/healthz")).status_code == 200
                times.append(time.monotonic() - before)
                await asyncio.sleep(0.1)

    async def stuck() -> None:
        """Asks for much and reads nothing."""
        reader, writer = await asyncio.open_connection(*httpx.URL(url).netloc.decode().split(":"))
        for _ in range(2000):
            writer.write(b"GET /api/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.sleep(seconds)
        del reader

    each = [one_client(url, number, end, done, statuses) for number in range(clients)]
    found = await asyncio.gather(*each, probe(), stuck(), return_exceptions=True)
    failures = [repr(error) for error in found if isinstance(error, BaseException)]
    times.sort()
    health = {f"p{q}": round(1000 * times[int(len(times) * q / 100)], 1) for q in (50, 95, 99)}
    # From the first one on: before it the clients themselves get ready.
    rate = round((len(done) - 1) / (done[-1] - done[0]), 3)
    return {"jobs a second": rate, "healthz ms": health, "statuses": statuses, "failures": failures}


def library(folder: Path, seconds: float, batch: bool) -> tuple[float, float]:
    """Pictures a second that the library makes of the same requests, in a process of its own, and
    the CPU seconds of each.
    """
    code = f"""
import json, sys, time
from inlay.composer import Composer
from inlay.request import Request
composer, done = Composer("embedded", device="cpu"), 0
texts = json.loads(sys.stdin.read())
requests = [Request.of(text) for text in texts]
composer.run(requests[0])
start, spent = time.monotonic(), time.process_time()
while time.monotonic() - start < {seconds}:
    some = requests[done % 40:done % 40 + 8]
    if {batch}:
        made = composer.run_all(some)
    else:
        made = [composer.run(some[0])]
    for result in made:
        result.save({str(folder / "own.png")!r})
    done += len(made)
print(done / (time.monotonic() - start), (time.process_time() - spent) / done)
"""
    names = [hashlib.sha256(each).hexdigest() for each in photographs()]
    requests = json.dumps([request_of(names, seed) for seed in range(48)])
    done = subprocess.run(
        [sys.executable, "-c", code], input=requests, text=True, capture_output=True, check=True,
        cwd=folder / "store" / "files",
    )  # fmt: skip
    rate, spent = map(float, done.stdout.split())
    return round(rate, 3), round(spent, 4)


def cost(folder: Path, jobs: int, batch_size: int) -> dict[str, Any]:
    """CPU seconds of a job, by process, and of a picture in the library: other work on the machine
    changes these far less than it changes how many are made a second.
    """
    server = Server(folder, batch_size)

    def spent() -> dict[int, float]:
        own = psutil.Process(server.process.pid)
        each = (own, *own.children(recursive=True))
        return {process.pid: sum(process.cpu_times()[:2]) for process in each}

    with httpx.Client(base_url=server.url, timeout=60) as client:
        files = [
            client.post("/api/files", files={"file": each}).json()["file"] for each in photographs()
        ]

        def make(seeds: range) -> None:
            orders = [request_of(files, seed) for seed in seeds]
            ids = [patient(client.post, "/api/jobs", json=each).json()["id"] for each in orders]
            while any(client.get(f"/api/jobs/{job}").json()["finished"] is None for job in ids):
                time.sleep(0.5)

        make(range(1000, 1000 + batch_size))
        alone = {way: [library(folder, 15, way == "batched")[1]] for way in WAYS}
        before = spent()
        make(range(jobs))
        each = sorted(((now - before.get(process, 0)) / jobs for process, now in spent().items()))
        for way in WAYS:
            alone[way].append(library(folder, 15, way == "batched")[1])
    server.close()
    best = min(sum(seconds) / 2 for seconds in alone.values())
    found = {"library, before and after": alone, "server": [round(one, 4) for one in each[::-1]]}
    return {**found, "the library's over the server's": round(best / sum(each), 3), "broken": False}


def load(folder: Path, clients: int, minutes: float, batch_size: int) -> dict[str, Any]:
    """Many clients at once, against the library alone on the same machine, before and after."""
    server = Server(folder, batch_size)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        files = [
            client.post("/api/files", files={"file": each}).json()["file"] for each in photographs()
        ]
        # The library is measured warm, too.
        job = client.post("/api/jobs", json=request_of(files, 0)).json()["id"]
        while client.get(f"/api/jobs/{job}").json()["state"] in ("queued", "running"):
            time.sleep(0.2)
    alone = {way: library(folder, 15, way == "batched")[0] for way in WAYS}
    found = asyncio.run(crowd(server.url, clients, 60 * minutes))
    server.close()
    again = {way: library(folder, 15, way == "batched")[0] for way in WAYS}
    best = max((alone[way] + again[way]) / 2 for way in alone)
    wrong = [status for status in found["statuses"] if status >= 400 and status != 429]
    found |= {"library before": alone, "library after": again}
    found |= {"share of the library": round(found["jobs a second"] / best, 3)}
    return {**found, "broken": bool(wrong or found["failures"])}


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A file with flipped bytes, cut short, doubled in part, or with other numbers in its head."""
    body = bytearray(content)
    way = chance.randrange(6)
    if way == 0:
        return bytes(body[: chance.randrange(len(body))])
    if way == 1:
        at = chance.randrange(len(body))
        body[at:at] = chance.randbytes(chance.randrange(1, 400))
    elif way == 2:
        first, last = sorted(chance.randrange(len(body)) for _ in range(2))
        body[first:last] = body[first:last] * 2
    else:
        most = 64 if way == 3 else len(body)
        for _ in range(chance.randrange(1, 12)):
            body[chance.randrange(most)] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
    return bytes(body)


def uploads(folder: Path, count: int) -> dict[str, Any]:
    """Mutated pictures, and now and then a mutated form round one."""
    server, chance = Server(folder), random.Random(1)
    photo = data.astronaut()[:160, :200]
    seeds = [encoded(photo, kind) for kind in ("png", "jpeg", "webp", "tiff", "gif", "bmp", "avif")]
    seeds += [encoded(np.dstack([photo, photo[..., 0]])), encoded(photo[..., 0].astype(np.uint16))]
    statuses: dict[int, int] = {}
    leaks, memory = set[str](), list[list[int]]()
    shape = re.compile(r"Traceback|File \"|/tmp/|/store|site-packages")
    with httpx.Client(base_url=server.url, timeout=120) as client:
        for number in range(count):
            content = mutated(chance.choice(seeds), chance)
            if number % 10:
                answer = client.post("/api/files", files={"file": ("a/../b.png", content)})
            else:
                form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
                form = mutated(form + content[:2000] + b"\r\n--x--\r\n", chance)
                kind = {"content-type": "multipart/form-data; boundary=x"}
                answer = client.post("/api/files", content=form, headers=kind)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            leaks |= {answer.text[:200]} if shape.search(answer.text) else set()
            if number in (500, count - 1):
                time.sleep(2)
                memory.append(server.memory())
    server.close()
    log = (folder / "log.txt").read_text()
    found = {"uploads": count, "statuses": statuses, "leaks": sorted(leaks)}
    found |= {"MB after 500 and at the end, by process": memory}
    found |= {"tracebacks in the log": log.count("Traceback")}
    wrong = [status for status in statuses if status >= 500]
    return {**found, "broken": bool(wrong or leaks) or sum(memory[-1]) > 1.1 * sum(memory[0])}


# What schemathesis is told: mostly pictures and jobs that are there, in place of made-up ids.
HOOKS = """
import random
import schemathesis

KNOWN, CHANCE = {known!r}, random.Random(3)


def put(name, value):
    if isinstance(value, dict):
        return {{key: put(key, each) for key, each in value.items()}}
    if isinstance(value, list):
        return [put("", each) for each in value]
    known = KNOWN.get(name)
    return CHANCE.choice(known) if known and value and CHANCE.random() < 0.8 else value


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    return put("", path_parameters)


@schemathesis.hook
def map_body(context, body):
    return put("", body)
"""
# Addresses whose bodies are requests: theirs are many, so they are drawn at random alone.
HEAVY = "/api/(preview|jobs|jobs/{job})$"


def schema(folder: Path, count: int) -> dict[str, Any]:
    """schemathesis on every address, events too, with pictures and jobs that are there."""
    server = Server(folder)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        files = [
            client.post("/api/files", files={"file": each}).json()["file"] for each in photographs()
        ]
        jobs = [
            client.post("/api/jobs", json=request_of(files, seed)).json()["id"] for seed in range(3)
        ]
        while any(client.get(f"/api/jobs/{job}").json()["finished"] is None for job in jobs):
            time.sleep(0.2)
    names = ("file", "picture", "mask", "background", "remove_mask", "control")
    known = {"job": jobs, **dict.fromkeys(names, files)}
    (folder / "hooks.py").write_text(HOOKS.format(known=known))
    (folder / "schemathesis.toml").write_text('hooks = "hooks.py"\n')
    found: dict[str, Any] = {}
    for kind, phases in (("exclude", "examples,coverage,fuzzing"), ("include", "fuzzing")):
        # What takes a look at the picture, or at two fields together, is refused with 422.
        done = subprocess.run(
            ["schemathesis", "run", f"{server.url}/api/openapi.json", "--phases", phases,
             f"--{kind}-path-regex", HEAVY, "--max-examples", str(count), "--continue-on-failure",
             "--exclude-checks", "positive_data_acceptance", "--request-timeout", "60",
             "--no-color"],
            cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""},
        )  # fmt: skip
        told = done.stdout.partition("= SUMMARY =")[2] or done.stdout + done.stderr
        found[phases] = [" ".join(line.split()) for line in told.splitlines() if line.strip()]
        found["broken"] = found.get("broken", False) or done.returncode != 0
    server.close()
    log = (folder / "log.txt").read_text()
    statuses = re.findall('"status": ([0-9]+)', log)
    found["statuses"] = {status: statuses.count(status) for status in sorted({*statuses})}
    found["tracebacks in the log"] = log.count("Traceback")
    broken = found.pop("broken") or "Traceback" in log or max(statuses) >= "500"
    return {**found, "broken": broken}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("chaos", "load", "cost", "uploads", "schema"))
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--count", type=int)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.what == "chaos":
            found = chaos(folder, given.jobs, given.kills)
        elif given.what == "load":
            found = load(folder, given.clients, given.minutes, given.batch_size)
        elif given.what == "cost":
            found = cost(folder, given.jobs, given.batch_size)
        elif given.what == "uploads":
            found = uploads(folder, given.count or 10_000)
        else:
            found = schema(folder, given.count or 100)
    print(json.dumps(found, indent=1))
    return int(found["broken"])


if __name__ == "__main__":
    sys.exit(main())
