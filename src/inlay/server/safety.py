"""What stands before the API: who may ask, from where, how much; headers, logs and figures.

Without a token only this machine's programs and our own page are answered: the server listens on
the loopback address, and what a foreign page makes a browser send is told by Host and Origin. With
a token every route wants it: as "Authorization: Bearer TOKEN", or as a cookie after one login.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import secrets
import time
from collections.abc import Mapping, MutableMapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inlay.pictures.read import MAX_JSON_BYTES
from inlay.server.limits import Limits, Refusal

CLIENT, SESSION = "inlay_client", "inlay_session"
# How long a login holds, and a browser is known again, in seconds.
_LOGIN, _KNOWN = 30 * 86400, 365 * 86400
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_LOGIN_PAGE = Path(__file__).with_name("login.html")
_METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
_log = logging.getLogger("inlay.server")


class Metrics:
    """Figures for Prometheus, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: Mapping[str, Any] = {"registry": self.registry}
        words = "method", "route", "status"
        self.requests = Histogram("inlay_request_seconds", "Time to an answer.", words, **own)
        self.jobs = Histogram(
            "inlay_job_seconds", "Time to a worker's word of a job.", ("end",), **own,
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000),
        )  # fmt: skip

    def text(self, counts: Mapping[str, int]) -> bytes:
        """All of it, with how many jobs there are of each state now."""
        rows = [f'inlay_jobs{{state="{state}"}} {count}\n' for state, count in counts.items()]
        return generate_latest(self.registry) + "".join(rows).encode()


class Guard:
    """ASGI middleware round the whole application; see the top of this file.

    token None asks for none. hosts are the names besides localhost and IP addresses (which no
    foreign name server can point here) under which the server may be spoken to.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        metrics: Metrics,
        token: str | None = None,
        hosts: Sequence[str] = (),
    ) -> None:
        self.app, self.limits, self.metrics, self.token = app, limits, metrics, token
        self.hosts = {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                return await self.app(scope, receive, send)
            # There are no web sockets here.
            return await send({"type": "websocket.close"})
        started, status, number = time.perf_counter(), 500, secrets.token_hex(8)
        headers, begun = Headers(scope=scope), False
        cookies = cookie_parser(headers.get("cookie", ""))
        refusal = self._refusal(scope, headers, cookies)
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        state["client"] = client = self._client(scope, headers, cookies)
        new = scope["path"] in ("/", "/api/session") and not _known(cookies)

        async def answer(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                begun, status = True, message["status"]
                said = MutableHeaders(scope=message)
                for name, value in {**_HEADERS, "X-Request-ID": number}.items():
                    said[name] = value
                private = scope["path"].startswith("/api/")
                said.setdefault("Cache-Control", "no-store" if private else "no-cache")
                if new and status < 400:
                    fresh = cookie(CLIENT, secrets.token_urlsafe(16), _KNOWN, scope)
                    said.append("Set-Cookie", fresh)
            await send(message)

        try:
            app = refusal or self.app
            await app(scope, self._bounded(receive, headers), answer)
        except Exception:
            # The application has answered as far as it could.
            _log.exception("request failed", extra={"request_id": number})
            if not begun:
                await problem(HTTPStatus.INTERNAL_SERVER_ERROR, _OURS)(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - started
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self.metrics.requests.labels(method, route, status).observe(seconds)
            who = hashlib.sha256(client.encode()).hexdigest()[:8]
            fields = {"request_id": number, "method": scope["method"], "route": route}
            fields |= {"status": status, "ms": round(1000 * seconds, 1), "client": who}
            _log.info("request", extra=fields)

    def _refusal(
        self, scope: Scope, headers: Headers, cookies: Mapping[str, str]
    ) -> Response | None:
        """The answer to what is not let in, or None."""
        path, method = scope["path"], scope["method"]
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return problem(
                HTTPStatus.MISDIRECTED_REQUEST,
                "the server is not known by this host's name; start it with --allow-host NAME.",
            )
        if path.startswith("/api/") or method not in ("GET", "HEAD", "OPTIONS"):
            origin = headers.get("origin", f"http://{hosts[0]}")
            foreign = origin.partition("://")[2].lower() != hosts[0].lower()
            if foreign or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
                return problem(
                    HTTPStatus.FORBIDDEN, "the request comes from another site's page; use its own."
                )
        if not self._is_let_in(headers, cookies) and (method, path) != ("POST", "/api/login"):
            if path == "/":
                return HTMLResponse(_LOGIN_PAGE.read_text(), HTTPStatus.UNAUTHORIZED, _BEARER)
            return problem(
                HTTPStatus.UNAUTHORIZED,
                "a token is needed; send it as Authorization: Bearer TOKEN, or log in at /.",
                _BEARER,
            )
        size = headers.get("content-length", "0")
        if not size.isdecimal() or int(size[:20]) > self._most(headers):
            return problem(*_TOO_LARGE)
        return None

    def _most(self, headers: Headers) -> int:
        """Bytes of a body: only files may be many."""
        files = headers.get("content-type", "").lower().startswith("multipart/")
        return self.limits.upload_bytes if files else MAX_JSON_BYTES

    def _is_ours(self, host: str) -> bool:
        name = re.sub(r":\d*$", "", host.lower())
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name in self.hosts
        return True

    def _is_let_in(self, headers: Headers, cookies: Mapping[str, str]) -> bool:
        if self.token is None:
            return True
        kind, _, word = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and same(word.strip(), self.token):
            return True
        until, _, seal = cookies.get(SESSION, "").partition(".")
        fresh = until.isdecimal() and time.time() < int(until[:12])
        return same(seal, _seal(until, self.token)) and fresh

    def _client(self, scope: Scope, headers: Headers, cookies: Mapping[str, str]) -> str:
        """Who asks: a browser by its cookie, a program by its token, else by its address."""
        if _known(cookies):
            return cookies[CLIENT]
        if self.token is not None and "authorization" in headers:
            return "token"
        return f"address {(scope.get('client') or ('unknown',))[0]}"

    def _bounded(self, receive: Receive, headers: Headers) -> Receive:
        """The same body, which may neither be too long nor take too long."""
        size, whole, most = 0, False, self._most(headers)
        end = time.monotonic() + self.limits.body_seconds

        async def bounded() -> Message:
            nonlocal size, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), end - time.monotonic())
            except asyncio.TimeoutError:
                raise Refusal(
                    HTTPStatus.REQUEST_TIMEOUT, "the request took too long to come; send it again."
                ) from None
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if size > most:
                raise Refusal(*_TOO_LARGE)
            return message

        return bounded


_OURS = "the server failed; its log says why."
_BEARER = {"WWW-Authenticate": "Bearer"}
_TOO_LARGE = (
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "the request is too large for this server; send smaller or fewer files.",
)


def same(word: str, other: str) -> bool:
    """Whether two words are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(word.encode(), other.encode())


def session(token: str, scope: Scope) -> str:
    """The Set-Cookie header of a login."""
    until = str(int(time.time()) + _LOGIN)
    return cookie(SESSION, f"{until}.{_seal(until, token)}", _LOGIN, scope)


def _seal(until: str, token: str) -> str:
    return hmac.new(token.encode(), f"session {until}".encode(), "sha256").hexdigest()


def cookie(name: str, value: str, seconds: int, scope: Scope) -> str:
    """A Set-Cookie header that no script and no other site gets at."""
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    return f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"


def _known(cookies: Mapping[str, str]) -> bool:
    return re.fullmatch(r"[\w-]{22}", cookies.get(CLIENT, ""), re.ASCII) is not None


def problem(
    status: HTTPStatus, sentence: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error as clients get it: one sentence."""
    told = {**(headers or {}), **({"Retry-After": "5"} if status == 429 else {})}
    return JSONResponse({"error": sentence}, status, told)


class JsonLines(logging.Formatter):
    """A line of JSON for each record: time, level, message, and what it is told besides."""

    _USUAL = frozenset(vars(logging.makeLogRecord({})))

    def format(self, record: logging.LogRecord) -> str:
        more = {key: value for key, value in vars(record).items() if key not in self._USUAL}
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), **more}
        line["message"] = record.getMessage()
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_lines(stream: TextIO) -> None:
    """From now on write the server's log there."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False
