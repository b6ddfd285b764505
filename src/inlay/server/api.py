"""The HTTP API: one FastAPI application over the store, whose bodies are the request models."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from sse_starlette import EventSourceResponse
from starlette.concurrency import run_in_threadpool as apart
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException

from inlay.errors import InputError, __version__, show
from inlay.methods.registry import all_methods, facts_of
from inlay.pictures.read import MAX_JSON_BYTES
from inlay.request import KINDS
from inlay.request import Request as Order
from inlay.result.record import read_back
from inlay.scene.subject import Subject
from inlay.server import stage
from inlay.server.jobs import File, Job
from inlay.server.limits import Refusal
from inlay.server.messages import LearnRequest, find_file, model_of, parse, plainly, request_of
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
_ID = {"type": "string", "description": "id of a stored file, or name of a part"}
_BOX = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
_POINT = {**_BOX, "minItems": 2, "maxItems": 2}
_EXAMPLE = {
    "verb": "compose",
    "background": "street",
    "subjects": [{"picture": "cup", "box": [120, 200, 160, 140]}],
    "method": {"name": "phd", "prompt": "a cup on a table"},
}
# Bodies that are no verb's request.
_BODIES: dict[str, Any] = {
    "cut": {
        "type": "object",
        "required": ["picture"],
        "additionalProperties": False,
        "properties": {
            "picture": _ID,
            "mask": _ID,
            "box": _BOX,
            "points": {"type": "array", "items": _POINT},
        },
    },
    "preview": {
        "type": "object",
        "required": ["request"],
        "properties": {
            "request": {"$ref": "#/components/schemas/compose"},
            "size": {"type": "integer", "minimum": 64, "maximum": 2048},
        },
    },
    "open": {"type": "object", "required": ["file"], "properties": {"file": _ID}},
    "login": {
        "type": "object",
        "required": ["token"],
        "properties": {"token": {"type": "string"}},
    },
}
router = APIRouter(prefix="/api")
_PART = {"file": {"type": "string", "format": "binary"}}
_UPLOAD = {"type": "object", "required": ["file"], "properties": _PART}
_FILES = {
    "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _UPLOAD}}}
}
_PICTURE: dict[int | str, Any] = {200: {"content": {"image/jpeg": {}, "image/png": {}}}}


class Problem(BaseModel):
    """What is wrong, in one sentence."""

    error: str


def _body(*names: str, example: Any = None) -> dict[str, Any]:
    """How OpenAPI tells a body: JSON, or a form with it as the part `request`, and files."""
    refs = [{"$ref": f"#/components/schemas/{name}"} for name in names]
    told = {"schema": {"oneOf": refs} if len(refs) > 1 else refs[0], "example": example}
    form = {
        "type": "object",
        "properties": {"request": {"type": "string", "contentMediaType": "application/json"}},
        "additionalProperties": {"type": "string", "format": "binary"},
        "required": ["request"],
    }
    content = {"application/json": told, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Own = Annotated[Service, Depends(_service)]
Size = Annotated[int, Query(ge=16, le=4096, description="longest side in pixels, at most")]


async def _received(request: Request, own: Own) -> tuple[dict[str, Any], dict[str, str]]:
    """The JSON of a request, its body or the part `request`, and its other parts, stored, by name.

    Raises InputError and Refusal.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with _form(request, own.store.limits.files) as form:
            told = form.get("request", "{}")
            data = parse(told if isinstance(told, str) else await told.read(MAX_JSON_BYTES + 1))
            uploads = {name: part for name, part in form.items() if not isinstance(part, str)}
            uploads.pop("request", None)
            return data, {name: (await own.keep(part)).file for name, part in uploads.items()}
    if kind != "application/json":
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, _UNREADABLE)
    body = b""
    async for chunk in request.stream():
        if len(body := body + chunk) > MAX_JSON_BYTES:
            break
    return parse(body), {}


@asynccontextmanager
async def _form(request: Request, files: int) -> AsyncIterator[FormData]:
    """A form, whose files are gone after it."""
    try:
        form = await request.form(max_files=files, max_fields=files, max_part_size=MAX_JSON_BYTES)
    except (HTTPException, ValueError, LookupError):
        raise Refusal(HTTPStatus.BAD_REQUEST, _UNREADABLE) from None
    try:
        yield form
    finally:
        await form.close()


Received = Annotated[tuple[dict[str, Any], dict[str, str]], Depends(_received)]


@router.post("/files", status_code=201, openapi_extra=_FILES)
async def add_file(request: Request, own: Own) -> File:
    """Store a picture, or a concept that `inlay learn` wrote: one part, whatever its name."""
    async with _form(request, 1) as form:
        for part in form.values():
            if not isinstance(part, str):
                return await own.keep(part)
    raise Refusal(HTTPStatus.BAD_REQUEST, "there is no file in the body; expected one as a part.")


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


@router.post("/jobs", status_code=202, openapi_extra=_body(*KINDS, "learn", example=_EXAMPLE))
async def add_job(
    request: Request,
    received: Received,
    own: Own,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> Job:
    """Put a request into the queue. A second one with the same Idempotency-Key is the first one."""
    order, files = await apart(request_of, *received, own.store, own.models)
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
async def follow_job(
    job: str, own: Own, last_event_id: Annotated[str | None, Header()] = None
) -> Response:
    """Server-sent events: state, progress, preview, and done, which is the last one."""
    word = last_event_id or ""
    after = int(word) if re.fullmatch(r"[0-9]{1,15}", word) else 0
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


@router.post("/cut", openapi_extra=_body("cut"))
async def cut_out(received: Received, own: Own) -> dict[str, Any]:
    """The subject of a picture, as a PNG with alpha of the picture's size, and its mask."""
    data, parts = received
    if unknown := data.keys() - {"picture", "box", "points", "mask"}:
        raise InputError(f"a cut has no {show(min(unknown))}; expected picture, box, points, mask.")
    picture = find_file(parts, own.store, data.get("picture"), "picture")
    mask = data.get("mask")
    if mask is not None:
        mask = find_file(parts, own.store, mask, "mask")
    points = data.get("points") or None
    hint = Subject(picture, mask=mask, cut_box=data.get("box"), cut_points=points)
    drafts = own.store.draft(".png"), own.store.draft(".png")
    try:
        most = own.store.limits.pixels
        found = await own.stage.call(stage.cut_out, hint, most, tuple(map(str, drafts)))
        kept = [await apart(keep_result, own.store, draft) for draft in drafts]
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)
    notes = [plainly(note) for note in found.pop("notes")]
    return {"file": kept[0], "mask": kept[1], **found, "notes": notes}


@router.post(
    "/preview", response_class=Response, responses=_PICTURE, openapi_extra=_body("preview")
)
async def preview(received: Received, own: Own) -> Response:
    """About what a compose request will give, at once: a reduced JPEG, made without a model."""
    data, parts = received
    size = data.pop("size", 1024)
    if not isinstance(size, int) or not 64 <= size <= 2048:
        raise InputError(f"size is {show(size)}; expected a whole number from 64 to 2048.")
    order, files = await apart(request_of, data.get("request", data), parts, own.store, own.models)
    if order["verb"] != "compose":
        raise InputError(f"a preview is of compose; it cannot show {order['verb']}.")
    known = [await apart(own.store.file, file) for file in files]
    sizes = {each.file: (each.width, each.height) for each in known}
    made = await own.stage.call(stage.preview, order, sizes, size)
    return Response(made, media_type="image/jpeg")


@router.post("/open", openapi_extra=_body("open"))
async def open_picture(received: Received, own: Own) -> dict[str, Any]:
    """The request inside a picture that inlay wrote, and what of its inputs is missing here."""
    data, parts = received
    file = find_file(parts, own.store, data.get("file"), "file")
    record = await own.uploads.call(read_back, file)
    request, missing = Order.of(record.request).model_dump(mode="json"), []
    for place, known in record.inputs.items():
        *above, last = place.split(".")
        inner: Any = request
        for part in above:
            inner = inner[int(part) if part.isdigit() else part]
        inner[last] = None
        for name in (known.sha256, f"{known.sha256}.safetensors"):
            with suppress(Refusal):
                inner[last] = own.store.file(name).file
        missing += [] if inner[last] else [place]
    model = request.pop("model")
    if model is not None and model["name"] in own.models:
        request["model"] = {"name": model["name"]}
    return {"request": request, "missing": missing}


@router.get("/methods")
def list_methods(own: Own, model: str | None = None) -> dict[str, Any]:
    """Every method with its settings, their bounds and their defaults for a model."""
    family = model_of(model, own.models)["family"]
    return {name: facts_of(method, family) for name, method in all_methods().items()}


@router.get("/schema/{verb}")
def show_schema(verb: str) -> dict[str, Any]:
    """The JSON schema of a verb's request."""
    return LearnRequest.model_json_schema() if verb == "learn" else Order.schema_of(verb)


@router.get("/session")
def show_session(own: Own) -> dict[str, Any]:
    """What this server offers its clients."""
    told = {"version": __version__, "models": [*own.models]}
    return {**told, "limits": asdict(own.store.limits), "token_required": own.token is not None}


@router.post("/login", openapi_extra=_body("login"))
async def log_in(request: Request, own: Own) -> Response:
    """A cookie that stands for the token; a form is sent on to the page."""
    answer: Response = RedirectResponse("/", 303)
    kind, token = request.headers.get("content-type", ""), None
    if kind.startswith("application/x-www-form-urlencoded"):
        async with _form(request, 1) as form:
            token = form.get("token")
    else:
        data, _ = await _received(request, own)
        token, answer = data.get("token"), JSONResponse({"ok": True})
    if own.token is not None:
        if not isinstance(token, str) or not same(token, own.token):
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
        return problem(HTTPStatus(error.status_code), sentence, error.headers)

    @app.exception_handler(Exception)
    def fail(request: Request, error: Any) -> Response:
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed; its log says why.")

    if _PAGE.is_dir():
        app.mount("/", StaticFiles(directory=_PAGE, html=True))
    else:
        app.get("/", include_in_schema=False)(lambda: PlainTextResponse(_NO_PAGE))
    return Guard(app, own.store.limits, own.metrics, own.token, hosts)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The API's description, with the schemas of the verbs and what else a body may be."""
    if app.openapi_schema is None:
        schema = FastAPI.openapi(app)
        parts = schema["components"]["schemas"]
        for verb in (*KINDS, "learn"):
            parts[verb] = show_schema(verb)
            parts |= parts[verb].pop("$defs", {})
        parts |= _BODIES
        app.openapi_schema = json.loads(
            json.dumps(schema).replace("#/$defs/", "#/components/schemas/")
        )
    return app.openapi_schema
