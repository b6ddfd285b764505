"""What a server takes at most: of a request, of a client, of its disk, of a job's time."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from fastapi import HTTPException


@dataclass(frozen=True)
class Limits:
    """The bounds of a server; bytes and pixels are counted before anything is decoded.

    pixels: of a picture. upload_bytes: of a request's body, which may take body_seconds to come.
    files: of one request; images: that one job makes. queue and client_queue: jobs that have not
    ended, of all and of one client; tasks: uploads, cuts and previews that wait for a process, each
    of which may take task_seconds and task_bytes; job_seconds and job_bytes are a job's. After
    idle_seconds without a job its model is unloaded. age: seconds after which what is not used any
    more goes; store_bytes: of all files.
    """

    pixels: int = 25_000_000
    upload_bytes: int = 200_000_000
    body_seconds: float = 120
    files: int = 32
    images: int = 8
    queue: int = 100
    client_queue: int = 20
    tasks: int = 32
    task_seconds: float = 60
    task_bytes: int = 12 << 30
    job_seconds: float = 1800
    job_bytes: int = 24 << 30
    idle_seconds: float = 600
    age: float = 7 * 86400
    store_bytes: int = 10_000_000_000


class Refusal(HTTPException):
    """A request that is answered with a status and one sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(status, sentence)
        self.status, self.sentence = status, sentence


def busy(what: str) -> Refusal:
    """The refusal where there is too much to do just now."""
    return Refusal(HTTPStatus.TOO_MANY_REQUESTS, f"{what}; try again in a while.")


def gone(what: str) -> Refusal:
    """The refusal where a job or a file is not there, or not any more."""
    return Refusal(HTTPStatus.NOT_FOUND, f"there is no {what} here, or not any more.")
