"""serve: the web page and the HTTP API, from the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from inlay.errors import InputError, show

if TYPE_CHECKING:
    from inlay.server.messages import Models

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_LEAST_TOKEN = 16


def serve(
    host: Annotated[str, typer.Option(metavar="H", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="P", help="Port.", min=1, max=65535)] = 8000,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]MODEL",
            help="What clients may use, by NAME: embedded, a folder, a .safetensors file or a hub "
            "id; the first is the default; may be repeated.",
        ),
    ] = None,
    folder: Annotated[
        str, typer.Option(metavar="DIR", help="Where jobs and pictures are kept.")
    ] = "inlay-server",
    token: Annotated[
        str | None,
        typer.Option(
            envvar="INLAY_TOKEN",
            metavar="T",
            help="What clients must know; beyond this machine there is one in any case.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name of this server, as behind a proxy; repeatable."),
    ] = None,
    workers: Annotated[int, typer.Option(metavar="N", help="Jobs at a time.", min=1)] = 1,
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"], typer.Option(help="Where it runs.")
    ] = "auto",
    max_pixels: Annotated[int, typer.Option(metavar="N", help="Of a picture.", min=1)] = 25_000_000,
    max_queue: Annotated[int, typer.Option(metavar="N", help="Jobs that may wait.", min=1)] = 100,
    keep_days: Annotated[float, typer.Option(metavar="D", help="Then results go.", min=0)] = 7,
    keep_gb: Annotated[float, typer.Option(metavar="G", help="Of files in DIR.", min=0)] = 10,
) -> None:
    """Serve the web page and the HTTP API.

    Beyond this machine (--host 0.0.0.0) clients need a token, which is printed unless you give one.
    """
    try:
        import uvicorn

        from inlay.server.api import create_app
        from inlay.server.service import Service
    except ImportError as error:
        raise InputError(f"inlay serve needs {error.name}; pip install inlay[server].") from None
    import logging
    import secrets
    from contextlib import suppress

    from inlay.server.jobs import Store
    from inlay.server.limits import Limits
    from inlay.server.safety import JsonLines

    if token is not None and len(token) < _LEAST_TOKEN:
        raise InputError(f"--token is too short; give {_LEAST_TOKEN} letters at least.")
    limits = Limits(
        pixels=max_pixels, queue=max_queue, age=keep_days * 86400, store_bytes=int(keep_gb * 1e9)
    )
    logger, lines = logging.getLogger("inlay.server"), logging.StreamHandler()
    lines.setFormatter(JsonLines())
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    store = Store(Path(folder).resolve(), limits)
    models = models_of(model or ["embedded"], store.files, device)
    said = ""
    if host not in _LOOPBACK and token is None:
        token = secrets.token_urlsafe(24)
        said = f", token {token}"
    app = create_app(Service(store, models, token, workers), [*(allow_host or ()), host])
    typer.echo(f"inlay serves at http://{f'[{host}]' if ':' in host else host}:{port}{said}")
    with suppress(KeyboardInterrupt):
        uvicorn.run(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )


def models_of(named: list[str], files: Path, device: str) -> Models:
    """What clients may use: a request's model by its name; raises InputError.

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
        opened = where
        if where != "embedded" and path.exists():
            suffix = path.suffix if path.is_file() else ""
            opened = f"{(name or path.name).removesuffix(suffix)}{suffix}"
            if not re.fullmatch(r"[A-Za-z][\w.-]{0,59}", opened):
                raise InputError(f"--model {show(text)} has no plain name; give NAME=PATH.")
            (files / opened).symlink_to(path.resolve())
        elif where != "embedded" and not is_hub_id(where):
            raise InputError(
                f"--model {show(text)} is not there; give embedded, a folder, a file or a hub id."
            )
        models[name or opened] = {
            "name": opened,
            "family": family_of(str(path) if path.exists() else where),
            "device": device,
        }
    return models
