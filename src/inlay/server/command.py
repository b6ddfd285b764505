"""serve: the web page and the HTTP API, from the command line."""

from __future__ import annotations

import re
import secrets
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inlay.batch.command import flag
from inlay.errors import InputError, show

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_LEAST = 16


@dataclass(frozen=True)
class Serving:
    """The options of serve."""

    host: str = flag("127.0.0.1", "Address to listen on; 0.0.0.0 is every one.", "ADDRESS")
    port: int = flag(8000, "Port to listen on; 0 is a free one.", "N", min=0, max=65535)
    model: list[str] | None = flag(
        None,
        "What clients may name: embedded, a folder, a .safetensors file or a hub id; may be "
        "repeated, the first is the default.",
        "[NAME=]MODEL",
    )
    folder: str = flag("inlay-server", "Where jobs and pictures are kept.", "DIR")
    token: str | None = flag(
        None, "What clients must know; made up beyond this machine.", "T", envvar="INLAY_TOKEN"
    )
    allow_host: list[str] | None = flag(
        None, "A name of this server, as behind a proxy; may be repeated.", "NAME"
    )
    workers: int = flag(1, "Jobs at a time.", "N", min=1)
    batch_size: int = flag(
        1,
        "How many jobs alike go through a network together, which may round otherwise.",
        "N",
        min=1,
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = flag("auto", "Where it runs.")
    max_pixels: int = flag(25_000_000, "Refuse larger pictures undecoded.", "N", min=1)
    max_queue: int = flag(100, "Jobs that may wait.", "N", min=1)
    keep_days: float = flag(7.0, "How long what nobody uses is kept.", "D", min=0)
    keep_gb: float = flag(10.0, "How much is kept; the least used goes first.", "G", min=0)


def serve(given: Serving) -> None:
    """Serve the web page and the HTTP API.

    To other machines only with a token, which is printed unless you give one.
    """
    try:
        import uvicorn

        from inlay.server.api import create_app
        from inlay.server.jobs import Store
        from inlay.server.limits import Limits
        from inlay.server.safety import log_lines
        from inlay.server.service import Service
    except ImportError as error:
        raise InputError(f"inlay serve needs {error.name}; pip install inlay[server].") from None
    token, said = given.token, ""
    if token is not None and len(token) < _LEAST:
        raise InputError(f"the token is too short; give {_LEAST} letters at least.")
    if token is None and given.host not in _LOOPBACK:
        token = secrets.token_urlsafe(24)
        said = f", token: {token}"
    size = int(given.keep_gb * 1e9)
    age = given.keep_days * 86400
    limits = Limits(given.max_pixels, queue=given.max_queue, age=age, store_bytes=size)
    store = Store(Path(given.folder).resolve(), limits)
    models = models_of(given.model or ["embedded"], store.files, given.device)
    service = Service(store, models, token, given.workers, given.batch_size)
    app = create_app(service, [given.host, *(given.allow_host or ())])
    # Longer than proxies keep a connection that rests.
    waits: dict[str, Any] = {"timeout_keep_alive": 90, "timeout_graceful_shutdown": 5}
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, **waits)
    six = ":" in given.host
    try:
        family = socket.AF_INET6 if six else socket.AF_INET
        listener = socket.create_server((given.host, given.port), family=family)
    except OSError as error:
        raise InputError(
            f"{given.host}:{given.port} cannot be listened on ({error.strerror}); give another "
            "--host or --port."
        ) from None
    where = f"[{given.host}]" if six else given.host
    print(f"inlay serves at http://{where}:{listener.getsockname()[1]}{said}", flush=True)
    log_lines(sys.stderr)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run([listener])


def models_of(named: Sequence[str], files: Path, device: str) -> dict[str, dict[str, Any]]:
    """What clients may use: the fields of a request's model, by name; raises InputError.

    A folder or file becomes a link of that name where workers stand, so that nothing they write
    tells where it is.
    """
    from inlay.checkpoints.folder import family_of
    from inlay.checkpoints.hub import is_hub_id

    for link in filter(Path.is_symlink, files.iterdir()):
        link.unlink()
    models: dict[str, dict[str, Any]] = {}
    for text in named:
        name, _, where = text.rpartition("=")
        path = Path(where).expanduser()
        if where != "embedded" and path.exists():
            suffix = path.suffix if path.is_file() else ""
            opened = f"{name.removesuffix(suffix) or path.name.removesuffix(suffix)}{suffix}"
            if not re.fullmatch(r"[A-Za-z][\w.-]{0,59}", opened) or opened == "embedded":
                raise InputError(f"--model {show(text)} has no plain name; give NAME=PATH.")
            (files / opened).symlink_to(path.resolve())
            name, family = opened, family_of(str(path))
        elif where == "embedded" or is_hub_id(where):
            opened, family = where, family_of(where)
        else:
            raise InputError(
                f"--model {show(text)} is not there; give embedded, a folder, a file or a hub id."
            )
        models[name or opened] = {"name": opened, "family": family, "device": device}
    return models
