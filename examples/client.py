"""A client of `inlay serve` in one file: upload, order, follow, fetch. Needs httpx alone.

    python examples/client.py http://127.0.0.1:8000 street.jpg cup.png --box 12,20,160,140 -o o.png

A token is read from INLAY_TOKEN. As a library:

    with Client("http://127.0.0.1:8000") as client:
        street, cup = client.upload("street.jpg"), client.upload("cup.png")
        subject = {"picture": cup.file, "box": [120, 200, 160, 140]}
        job = client.order({"verb": "compose", "background": street.file, "subjects": [subject]})
        for event in client.follow(job.id):
            print(event.name, event.data)
        client.fetch(job.id, "out.png")
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import httpx

T = TypeVar("T")


@dataclass(frozen=True)
class File:
    """A stored file: its id, and what it shows."""

    file: str
    kind: str
    width: int | None
    height: int | None
    has_alpha: bool


@dataclass(frozen=True)
class Job:
    """How a job stands: queued, running, done, failed or cancelled; files are its results."""

    id: str
    state: str
    position: int
    step: int
    total: int
    error: str | None
    record: dict[str, Any] | None
    files: list[str]


@dataclass(frozen=True)
class Event:
    """What a job tells: state and done (the job), progress (step, total), preview (image)."""

    number: int
    name: str
    data: dict[str, Any]


class ServerError(Exception):
    """What the server says is wrong, with its status."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Client:
    """A connection to a server. Each call raises ServerError for what the server refuses."""

    def __init__(self, url: str, token: str | None = None, timeout: float = 120) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def _ask(self, method: str, path: str, **told: Any) -> httpx.Response:
        """An answer; where the server has too much to do, it is asked again when it says."""
        while True:
            answer = self._http.request(method, path, **told)
            if answer.status_code != 429:
                break
            time.sleep(float(answer.headers.get("Retry-After", 5)))
        if answer.is_error:
            raise ServerError(answer.status_code, answer.json()["error"])
        return answer

    def session(self) -> dict[str, Any]:
        """What the server offers: version, models, limits."""
        return dict(self._ask("GET", "/api/session").json())

    def upload(self, path: str | Path) -> File:
        """Store a picture, or a concept that `inlay learn` wrote."""
        files = {"file": Path(path).read_bytes()}
        return _read(File, self._ask("POST", "/api/files", files=files).json())

    def order(self, request: dict[str, Any], key: str | None = None) -> Job:
        """Put a request into the queue; with a key, one that is sent twice is one job."""
        headers = {} if key is None else {"Idempotency-Key": key}
        return _read(Job, self._ask("POST", "/api/jobs", json=request, headers=headers).json())

    def job(self, job: str) -> Job:
        """How a job stands."""
        return _read(Job, self._ask("GET", f"/api/jobs/{job}").json())

    def cancel(self, job: str) -> None:
        """End a job, or forget one that has ended."""
        self._ask("DELETE", f"/api/jobs/{job}")

    def follow(self, job: str) -> Iterator[Event]:
        """A job's events up to its end; a connection that breaks is taken up where it was."""
        last, name = 0, ""
        while name != "done":
            headers = {"Last-Event-ID": str(last)}
            try:
                with self._http.stream("GET", f"/api/jobs/{job}/events", headers=headers) as lines:
                    if lines.status_code != 200:
                        lines.read()
                        error = "it had ended" if lines.is_success else lines.json()["error"]
                        raise ServerError(lines.status_code, error)
                    for line in lines.iter_lines():
                        word, _, text = line.partition(": ")
                        last = int(text) if word == "id" else last
                        name = text if word == "event" else name
                        if word == "data":
                            yield Event(last, name, json.loads(text))
            except httpx.TransportError:
                time.sleep(1)

    def fetch(self, job: str, path: str | Path, number: int = 0) -> None:
        """Write a result of a job, with its record inside, to a file."""
        answer = self._ask("GET", f"/api/jobs/{job}/result", params={"n": number})
        Path(path).write_bytes(answer.content)

    def cut(self, file: str, **hints: Any) -> dict[str, Any]:
        """Cut the subject out of a stored picture; hints are box, points and mask."""
        return dict(self._ask("POST", "/api/cut", json={"picture": file, **hints}).json())


def _read(kind: type[T], data: dict[str, Any]) -> T:
    """A dataclass from JSON; what later servers may say besides is passed over."""
    return kind(**{each.name: data[each.name] for each in fields(kind)})  # type: ignore[arg-type]


def main() -> int:
    parser = argparse.ArgumentParser(description="Put a subject into a background, by a server.")
    parser.add_argument("url")
    parser.add_argument("background")
    parser.add_argument("subject")
    parser.add_argument("--box", help="X,Y,W,H in pixels of the background")
    parser.add_argument("--method", help="see inlay methods")
    parser.add_argument("-o", "--output", required=True)
    given = parser.parse_args()
    with Client(given.url, os.environ.get("INLAY_TOKEN")) as client:
        subject: dict[str, Any] = {"picture": client.upload(given.subject).file}
        if given.box:
            subject["box"] = [float(part) for part in given.box.split(",")]
        background = client.upload(given.background).file
        request = {"verb": "compose", "background": background, "subjects": [subject]}
        job = client.order({**request, "method": given.method})
        for event in client.follow(job.id):
            if event.name == "progress":
                print("step {step} of {total}".format(**event.data), file=sys.stderr)
        job = client.job(job.id)
        if job.state != "done":
            print(job.error or job.state, file=sys.stderr)
            return 1
        client.fetch(job.id, given.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
