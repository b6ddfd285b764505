"""The HTTP API: one FastAPI application over the store, whose bodies are the request models."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Depends, FastAPI, Form, Header, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from sse_starlette import EventSourceResponse
from starlette.concurrency import run_in_threadpool as apart
from starlette.exceptions import HTTPException
from starlette.routing import Match

from inlay.errors import InputError, __version__, show
from inlay.methods.registry import all_methods, facts_of
from inlay.pictures.read import MAX_JSON_BYTES
from inlay.request import Request as Order
from inlay.result.record import read_back
from inlay.scene.subject import Subject
from inlay.server import stage
from inlay.server.jobs import File, Job
from inlay.server.limits import Refusal
from inlay.server.messages import (
    ID,
    CutRequest,
    LearnRequest,
    OpenRequest,
    PreviewRequest,
    Problem,
    model_of,
    opened,
    parse,
    plainly,
    request_of,
)
from inlay.server.safety import Guard, problem, same, session
from inlay.server.service import Service, keep_result

_PAGE = Path(__file__).with_name("page") / "dist"
_NO_PAGE = "The page is not in this installation; the HTTP API is, see /api/openapi.json."
_SENTENCES = {
    404: "there is nothing at this address; see /api/openapi.json.",
    405: "this address does not take this method; see /api/openapi.json.",
}
_UNREADABLE = "the request's body cannot be read; expected JSON, or multipart/form-data."
_FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}
# Seconds between two signs of life of a stream, and after which one who does not read is let go.
_PING, _STUCK = 15, 30
router = APIRouter(prefix="/api")
Verb = Literal["compose", "harmonize", "remove", "scene", "learn"]
_REFS = [{"$ref": f"#/components/schemas/{verb}"} for verb in get_args(Verb)]
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"oneOf": _REFS},
                "example": {
                    "verb": "compose",
                    "background": "0d1e" * 16,
                    "subjects": [{"picture": "77af" * 16, "box": [120, 200, 160, 140]}],
                    "method": {"name": "phd", "prompt": "a cup on a table"},
                },
            }
        },
    }
}
_PICTURE: dict[int | str, Any] = {200: {"content": {"image/jpeg": {}, "image/png": {}}}}


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Own = Annotated[Service, Depends(_service)]
Size = Annotated[int, Query(ge=16, le=4096, description="longest side in pixels, at most")]


@router.post("/files", status_code=201)
async def add_file(file: UploadFile, own: Own) -> File:
    """Store a picture, or a concept that `inlay learn` wrote."""
    return await own.keep(file)


@router.get("/files/{file}", response_class=Response, responses=_PICTURE)
async def show_file(file: str, own: Own, size: Size = 4096) -> Response:
    """A stored picture as a browser can show it: upright, sRGB, JPEG, or PNG where it has alpha."""
    known = await apart(own.store.file, file)
    data, kind = await own.stage.call(stage.shown, known.file, size)
    return Response(data, media_type=kind, headers=_FOREVER)


@router.get("/files/{file}/info")
def describe_file(file: str, own: Own) -> File:
    """What a stored file is."""
    return own.store.file(file)


@router.post("/jobs", status_code=202, openapi_extra=_BODY)
async def add_job(
    request: Request,
    own: Own,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> Job:
    """Put a request into the queue: JSON, or a form with it as the part `request`, and files.

    Its pictures are ids of stored files, or names of the form's parts. A second request with the
    same Idempotency-Key is the first one.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    text: str | bytes = ""
    parts: dict[str, str] = {}
    if kind == "multipart/form-data":
        try:
            form = await request.form(max_files=own.store.limits.files)
        except (ValueError, LookupError):
            raise Refusal(HTTPStatus.BAD_REQUEST, _UNREADABLE) from None
        try:
            for name, part in form.items():
                if name == "request":
                    text = part if isinstance(part, str) else await part.read(2 * MAX_JSON_BYTES)
                elif not isinstance(part, str):
                    parts[name] = (await own.keep(part)).file
        finally:
            await form.close()
    elif kind == "application/json":
        text = await request.body()
    else:
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, _UNREADABLE)
    order, files = await apart(request_of, parse(text), parts, own.store, own.models)
    return await apart(own.store.add, request.state.client, order, files, idempotency_key)


@router.get("/jobs")
def list_jobs(
    request: Request, own: Own, limit: Annotated[int, Query(ge=1, le=1000)] = 50
) -> dict[Literal["jobs"], list[Job]]:
    """This client's jobs, the newest first."""
    return {"jobs": own.store.jobs(request.state.client, limit)}


@router.get("/jobs/{job}")
def show_job(job: str, own: Own) -> Job:
    """How a job stands."""
    return own.store.job(job)


@router.delete(
    "/jobs/{job}", response_model=Job, responses={204: {"description": "It had ended: it is gone."}}
)
def end_job(job: str, own: Own) -> Any:
    """Cancel a job, or forget one that has ended."""
    if own.store.job(job).ended:
        own.store.delete(job)
        return Response(status_code=204)
    own.store.cancel(job)
    return own.store.job(job)


@router.get("/jobs/{job}/events", response_class=EventSourceResponse)
async def follow_job(job: str, own: Own, last_event_id: Annotated[str, Header()] = "") -> Response:
    """Server-sent events: state, progress, preview, and done, which is the last one."""
    after = int(last_event_id) if re.fullmatch(r"[0-9]{1,15}", last_event_id) else 0
    current = await apart(own.store.job, job)
    if current.ended and not await apart(own.store.events, job, after):
        # With this a browser stops to ask again.
        return Response(status_code=204)
    return EventSourceResponse(own.events(job, after), ping=_PING, send_timeout=_STUCK)


@router.get("/jobs/{job}/result", response_class=Response, responses=_PICTURE)
async def fetch_result(
    job: str, own: Own, n: Annotated[int, Query(ge=0, le=1000)] = 0, size: Size | None = None
) -> Response:
    """The n-th file that a job made, with its record inside; reduced for show with a size."""
    made = await apart(own.store.job, job)
    if made.state != "done":
        raise Refusal(HTTPStatus.CONFLICT, f"the job is {made.state}; it has no result.")
    if n >= len(made.files):
        raise Refusal(HTTPStatus.NOT_FOUND, f"the job has made {len(made.files)} files; n is {n}.")
    if size is not None:
        data, kind = await own.stage.call(stage.shown, made.files[n], size)
        return Response(data, media_type=kind, headers=_FOREVER)
    file = await apart(own.store.file, made.files[n])
    suffix = ".png" if file.kind == "picture" else ".safetensors"
    name = f"inlay-{job}{f'-{n}' if n else ''}{suffix}"
    return FileResponse(own.store.files / file.file, filename=name, headers=_FOREVER)


@router.post("/cut")
async def cut_out(asked: CutRequest, own: Own) -> dict[str, Any]:
    """The subject of a picture, as a PNG with alpha of the picture's size, and its mask."""
    for file in filter(None, (asked.picture, asked.mask)):
        await apart(own.store.file, file)
    hint = Subject(asked.picture, mask=asked.mask, cut_box=asked.box, cut_points=asked.points)
    drafts = own.store.draft(".png"), own.store.draft(".png")
    try:
        most = own.store.limits.pixels
        found = await own.stage.call(stage.cut_out, hint, most, tuple(map(str, drafts)))
        kept = [await apart(keep_result, own.store, draft) for draft in drafts]
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)
    notes = [plainly(note) for note in found["notes"]]
    return {**found, "file": kept[0], "mask": kept[1], "notes": notes}


@router.post("/preview", response_class=Response, responses=_PICTURE)
async def preview(asked: PreviewRequest, own: Own) -> Response:
    """About what a compose request will give, at once: a reduced JPEG, made without a model."""
    order, files = await apart(request_of, asked.request, {}, own.store, own.models)
    if order["verb"] != "compose":
        raise InputError(f"a preview is of compose; it cannot show {order['verb']}.")
    known = [await apart(own.store.file, file) for file in files]
    sizes = {each.file: (each.width, each.height) for each in known}
    made = await own.stage.call(stage.preview, order, sizes, asked.size)
    return Response(made, media_type="image/jpeg")


@router.post("/open")
async def open_picture(asked: OpenRequest, own: Own) -> dict[str, Any]:
    """The request inside a picture that inlay wrote, and what of its inputs is missing here."""
    await apart(own.store.file, asked.file)
    record = await own.uploads.call(read_back, asked.file)
    return await apart(opened, record, own.store, own.models)


@router.get("/methods")
def list_methods(own: Own, model: str | None = None) -> dict[str, Any]:
    """Every method with its settings, their bounds and their defaults for a model."""
    family = model_of(model, own.models)["family"]
    return {name: facts_of(method, family) for name, method in all_methods().items()}


@router.get("/schema/{verb}")
def show_schema(verb: Verb) -> dict[str, Any]:
    """The JSON schema of a verb's request."""
    return LearnRequest.model_json_schema() if verb == "learn" else Order.schema_of(verb)


@router.get("/session")
def show_session(own: Own) -> dict[str, Any]:
    """What this server offers its clients."""
    told = {"version": __version__, "models": [*own.models]}
    return {**told, "limits": asdict(own.store.limits), "token_required": own.token is not None}


@router.post("/login", response_class=RedirectResponse, status_code=303)
async def log_in(request: Request, own: Own, token: Annotated[str, Form()] = "") -> Response:
    """A cookie that stands for the token, and on to the page."""
    answer = RedirectResponse("/", HTTPStatus.SEE_OTHER)
    if own.token is not None:
        if not same(token, own.token):
            raise Refusal(HTTPStatus.UNAUTHORIZED, "the token is wrong; see the server's terminal.")
        answer.headers["Set-Cookie"] = session(own.token, request.scope)
    return answer


def create_app(own: Service, hosts: Sequence[str] = ()) -> Guard:
    """The application, ASGI, behind its guard; hosts are names under which it may be spoken to."""
    app = FastAPI(
        title="inlay",
        version=__version__,
        lifespan=own.running,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        responses={"4XX": {"model": Problem}, 422: {"model": Problem}},
    )
    app.state.service = own
    app.include_router(router)
    app.openapi = partial(_openapi, app)  # type: ignore[method-assign]

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        """Whether the server is well."""
        if not all(runner.is_alive() for runner in own.runners):
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "no job is run; start the server again.")
        return {"status": "ok"}

    @app.get("/", include_in_schema=False)
    def show_page() -> Response:
        page = _PAGE / "index.html"
        return FileResponse(page) if page.exists() else PlainTextResponse(_NO_PAGE)

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        """Figures for Prometheus."""
        return PlainTextResponse(own.metrics.text(own.store.counts()))

    @app.exception_handler(Refusal)
    def refuse(request: Request, error: Any) -> Response:
        return problem(error.status, plainly(error.sentence))

    @app.exception_handler(InputError)
    def tell(request: Request, error: Any) -> Response:
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, plainly(str(error)))

    @app.exception_handler(RequestValidationError)
    def validate(request: Request, error: Any) -> Response:
        first = error.errors()[0]
        sentence = f"{first['loc'][-1]} is {show(first['input'])}; see /api/openapi.json."
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, sentence)

    @app.exception_handler(HTTPException)
    def miss(request: Request, error: Any) -> Response:
        sentence = _SENTENCES.get(error.status_code, _UNREADABLE)
        # Starlette names the methods of the first route alone.
        met: Any = [each for each in router.routes if each.matches(request.scope)[0] != Match.NONE]
        allowed = {"Allow": ", ".join(sorted(method for each in met for method in each.methods))}
        return problem(HTTPStatus(error.status_code), sentence, allowed if met else error.headers)

    @app.exception_handler(Exception)
    def fail(request: Request, error: Any) -> Response:
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed; its log says why.")

    if _PAGE.is_dir():
        app.mount("/assets", StaticFiles(directory=_PAGE / "assets"))
    return Guard(app, own.store.limits, own.metrics, own.token, hosts)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The API's description, with the schemas of the verbs and what else a body may be."""
    if app.openapi_schema is None:
        schema = FastAPI.openapi(app)
        parts = schema["components"]["schemas"]
        for verb in get_args(Verb):
            parts[verb] = show_schema(verb)
            parts |= parts[verb].pop("$defs", {})
        parts["PreviewRequest"]["properties"]["request"] = _REFS[0]
        text = json.dumps(schema).replace("#/$defs/", "#/components/schemas/")
        file = f'"description": "id of a stored file", "pattern": "^{ID}$"'
        app.openapi_schema = json.loads(text.replace('"description": "path of a picture"', file))
    return app.openapi_schema
