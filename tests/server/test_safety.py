"""Who is let in: tokens, hosts, origins, sizes; and that nothing is told to those who are not."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.routing import APIRoute

from inlay.server.api import router
from inlay.server.safety import Guard, log_lines
from servers import encoded, guarded, photographs

TOKEN = "a token that nobody guesses"
HERE = "http://127.0.0.1:8000"
Ask = Callable[..., httpx.Response]


def client(app: Guard, base: str = HERE, **more: Any) -> Ask:
    """Asks an application as a program on another machine would."""

    async def ask(method: str, url: str, **told: Any) -> httpx.Response:
        way = httpx.ASGITransport(app, raise_app_exceptions=False, client=("10.0.0.9", 5))
        async with httpx.AsyncClient(transport=way, base_url=base, **more) as one:
            return await one.request(method, url, **told)

    return lambda *words, **told: asyncio.run(ask(*words, **told))


def routes(app: Any) -> list[tuple[str, str]]:
    """(method, address) of everything that the application serves."""
    found = [("GET", "/"), ("GET", "/api/openapi.json"), ("GET", "/none"), ("PUT", "/api/jobs")]
    for route in [*app.app.routes, *router.routes]:
        if isinstance(route, APIRoute):
            path = (
                route.path
                if route.path.startswith(("/api", "/healthz", "/metrics"))
                else f"/api{route.path}"
            )
            path = path.format(job="x", file="0" * 64, verb="compose")
            found += [(method, path) for method in route.methods]
    return found


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer \xfc\xdf"},
        {"Cookie": "inlay_session=99999999999.0123"},
        {"Cookie": f"inlay_session={TOKEN}"},
        {"Cookie": "inlay_session=\u0663.x".encode().decode("latin-1")},
    ],
)
def test_without_the_token_every_address_says_401(tmp_path: Path, headers: dict[str, str]) -> None:
    app = guarded(tmp_path, TOKEN)
    ask, addresses = client(app), routes(app)
    assert len(addresses) > 15
    coded = {name: value.encode("latin-1") for name, value in headers.items()}
    for method, path in addresses:
        answer = ask(method, path, headers=coded)
        if (method, path) != ("POST", "/api/login"):
            assert answer.status_code == 401, (method, path)
            assert "inlay_client" not in str(answer.headers)
            assert "version" not in answer.text and str(tmp_path) not in answer.text


def test_the_token_opens_as_a_header_and_as_a_cookie_after_a_login(tmp_path: Path) -> None:
    ask = client(guarded(tmp_path, TOKEN))
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert ask("GET", "/api/session", headers=bearer).json()["token_required"] is True
    assert ask("POST", "/api/login", data={"token": "wrong"}).status_code == 401
    assert "form" in ask("GET", "/").text
    answer = ask("POST", "/api/login", data={"token": TOKEN})
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
    value = cookie.partition(";")[0]
    assert ask("GET", "/api/session", headers={"Cookie": value}).status_code == 200
    until, _, seal = value.partition("=")[2].partition(".")
    other = seal[:-1] + ("1" if seal.endswith("0") else "0")
    for forged in (f"{int(until) + 1}.{seal}", f"{until}.{other}", f"{until}."):
        headers = {"Cookie": f"inlay_session={forged}"}
        assert ask("GET", "/api/session", headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("[::1]:8000", 200),
        ("192.168.1.7", 200),
        ("inlay.example", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
    ],
)
def test_only_hosts_that_no_stranger_can_point_here_are_answered(
    tmp_path: Path, host: str, status: int
) -> None:
    ask = client(guarded(tmp_path, hosts=["inlay.example"]))
    assert ask("GET", "/api/session", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 201),
        ({"Origin": HERE}, 201),
        ({"Origin": HERE.replace("http", "https")}, 201),
        ({"Origin": "http://127.0.0.1:9000"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": HERE}, 201),
    ],
)
def test_a_foreign_page_can_send_nothing(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    app = guarded(tmp_path)
    ask = client(app)
    answer = ask("POST", "/api/files", files={"file": photographs()[1]}, headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")


def test_what_is_too_large_is_refused_before_it_is_read(tmp_path: Path) -> None:
    ask = client(guarded(tmp_path, upload_bytes=50_000, pixels=5000))

    async def endless() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(1000):
            yield bytes(1000)

    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert ask("POST", "/api/files", content=bytes(60_000), headers=kind).status_code == 413
    assert ask("POST", "/api/files", content=endless(), headers=kind).status_code == 413
    json_kind = {"content-type": "application/json"}
    assert ask("POST", "/api/jobs", content=bytes(2 << 20), headers=json_kind).status_code == 413
    large = encoded(np.zeros((100, 100), np.uint8))
    answer = ask("POST", "/api/files", files={"file": large})
    assert answer.status_code == 422 and "100 x 100 pixels" in answer.json()["error"]


def test_a_body_that_never_ends_is_not_waited_for(tmp_path: Path) -> None:
    ask = client(guarded(tmp_path, body_seconds=0.2))

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    kind = {"content-type": "application/json"}
    assert ask("POST", "/api/jobs", content=slow(), headers=kind).status_code == 408


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "multipart/form-data", 400),
        (b"", "multipart/form-data; boundary=x", 422),
        (b"--x\r\n\r\n", "multipart/form-data; boundary=x", 400),
        (
            b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--",
            "multipart/form-data; boundary=x",
            400,
        ),
        (b"x" * 99, "multipart/form-data; boundary=" + "y" * 999, 400),
        (b"{}", "application/json", 422),
        (b"a", "text/plain", 422),
        (b"a", "", 422),
    ],
)
def test_a_broken_upload_is_one_sentence(
    tmp_path: Path, content: bytes, kind: str, status: int
) -> None:
    answer = client(guarded(tmp_path))(
        "POST", "/api/files", content=content, headers={"content-type": kind}
    )
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize(
    "content", [b"", b"x" * 99, b"\x89PNG\r\n\x1a\n", b"12345678{}", b"RIFFxxxx"]
)
def test_what_is_no_picture_is_not_stored(tmp_path: Path, content: bytes) -> None:
    answer = client(guarded(tmp_path))("POST", "/api/files", files={"file": ("a.png", content)})
    assert answer.status_code == 422
    assert not [*(tmp_path / "files").iterdir()] and not [*(tmp_path / "new").iterdir()]


def test_a_full_queue_says_when_to_come_again(tmp_path: Path) -> None:
    ask = client(guarded(tmp_path, queue=3, client_queue=2))
    file = ask("POST", "/api/files", files={"file": photographs()[0]}).json()["file"]
    request = {"verb": "remove", "picture": file, "box": [10, 10, 50, 50]}
    cookies = [{"Cookie": f"inlay_client={letter * 22}"} for letter in "aab"]
    for headers in cookies:
        assert ask("POST", "/api/jobs", json=request, headers=headers).status_code == 202
    for headers, word in ((cookies[0], "queue"), ({}, "queue is full")):
        answer = ask("POST", "/api/jobs", json=request, headers=headers)
        assert answer.status_code == 429 and word in answer.json()["error"]
        assert int(answer.headers["retry-after"]) > 0
    assert len(ask("GET", "/api/jobs", headers=cookies[0]).json()["jobs"]) == 2
    assert ask("GET", "/api/jobs").json()["jobs"] == []


def test_a_browser_is_known_again_by_a_cookie(tmp_path: Path) -> None:
    ask = client(guarded(tmp_path))
    cookie = ask("GET", "/api/session").headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    known = {"Cookie": cookie.partition(";")[0]}
    assert "set-cookie" not in ask("GET", "/api/session", headers=known).headers
    assert "set-cookie" not in ask("GET", "/api/jobs").headers


def test_the_log_is_json_with_ids_of_requests_and_no_secrets(tmp_path: Path) -> None:
    stream = StringIO()
    log_lines(stream)
    ask = client(guarded(tmp_path, TOKEN))
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    answer = ask("GET", "/api/jobs/secret?x=secret", headers=bearer)
    logger = logging.getLogger("inlay.server")
    logger.removeHandler(logger.handlers[-1])
    [line] = map(json.loads, stream.getvalue().splitlines())
    assert line["request_id"] == answer.headers["x-request-id"]
    assert (line["route"], line["status"]) == ("/api/jobs/{job}", 404)
    assert TOKEN not in stream.getvalue() and "secret" not in stream.getvalue()
