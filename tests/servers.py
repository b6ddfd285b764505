"""A server of inlay for the tests: on a free port of this machine, with a folder of its own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from inlay.server.api import create_app
from inlay.server.jobs import Store
from inlay.server.limits import Limits
from inlay.server.safety import Guard
from inlay.server.service import Service
from photos import cup

MODELS = {"embedded": {"name": "embedded", "family": "embedded", "device": "cpu"}}
SMALL = {"pixels": 1_000_000, "upload_bytes": 20_000_000, "images": 4, "files": 8}


@dataclass(frozen=True)
class Running:
    """A server that runs, and a client of it."""

    service: Service
    client: httpx.Client
    port: int

    def upload(self, content: bytes) -> str:
        """The id of a picture, stored now."""
        answer = self.client.post("/api/files", files={"file": content})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["file"])

    def order(self, request: dict[str, Any], **headers: str) -> dict[str, Any]:
        """A job, put into the queue."""
        answer = self.client.post("/api/jobs", json=request, headers=headers)
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def wait(self, job: str, *states: str, seconds: float = 120) -> dict[str, Any]:
        """The job once it is in one of some states, by default an end."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            shown = self.client.get(f"/api/jobs/{job}").json()
            if shown["state"] in (states or ("done", "failed", "cancelled")):
                return dict(shown)
            time.sleep(0.05)
        raise AssertionError(f"{job} is {shown['state']}")

    def events(self, job: str, **headers: str) -> list[tuple[int, str, Any]]:
        """All events of a job, up to the last one."""
        found, number, name = [], 0, ""
        url = f"/api/jobs/{job}/events"
        with self.client.stream("GET", url, headers=headers, timeout=120) as answer:
            for line in answer.iter_lines():
                word, _, text = line.partition(": ")
                number = int(text) if word == "id" else number
                name = text if word == "event" else name
                if word == "data":
                    found.append((number, name, json.loads(text)))
        return found


def guarded(
    folder: Path, token: str | None = None, hosts: Sequence[str] = (), **more: Any
) -> Guard:
    """An application whose jobs nobody runs, for requests that need no worker."""
    limits = Limits(**{**SMALL, **more})
    return create_app(Service(Store(folder, limits), MODELS, token), hosts)


@contextmanager
def running(folder: Path, batch_size: int = 1, **more: Any) -> Iterator[Running]:
    """A server with a real worker, as long as the block lasts."""
    store = Store(folder, Limits(**{**SMALL, **more}))
    service = Service(store, MODELS, None, batch_size=batch_size)
    server = uvicorn.Server(uvicorn.Config(create_app(service), port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Running(service, client, port)
    finally:
        server.should_exit = True
        thread.join()


def encoded(samples: NDArray[Any], kind: str = "png") -> bytes:
    """Samples as a picture's file."""
    buffer = BytesIO()
    Image.fromarray(samples).save(buffer, kind)
    return buffer.getvalue()


def photographs() -> tuple[bytes, bytes]:
    """A background, and a subject with alpha: files of small photographs."""
    subject = np.asarray(Image.fromarray(cup()).resize((90, 80)))
    return encoded(data.chelsea()[:256, :256]), encoded(subject)
