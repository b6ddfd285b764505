"""What clients send, made safe: requests that open stored files only, and what else is offered.

Workers stand in the folder of files, so that a file's name there is its name in requests, records
and sentences, and nothing tells a path of the server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, WithJsonSchema

from inlay.errors import InputError, nearest, show
from inlay.pictures.read import MAX_JSON_BYTES
from inlay.request import KINDS, Request, SceneRequest
from inlay.result.record import Record, names
from inlay.server.jobs import Store
from inlay.server.limits import Refusal
from inlay.settings import Form

ID = "[0-9a-f]{64}([.]safetensors)?"
# In a sentence, a file's name, and any path of several parts.
_NAMED = re.compile(rf" ?\b{ID}")
_PATH = re.compile(r"(?<![\w.:/])~?(?:/[^\s/'\"]+)+/([^\s/'\"]+)")

# What of a subject is a picture.
_PICTURES = ("picture", "mask")
FileId = Annotated[str, Field(pattern=f"^{ID}$")]
# Such an id, or the name of a part of the same POST.
FileOrPart = Annotated[Any, WithJsonSchema({"type": "string", "pattern": f"^{ID}$"})]
# What workers open, by the names that the operator gave: the fields of a request's model.
Models = Mapping[str, Mapping[str, Any]]


class LearnRequest(Form):
    """Learn one object from photos of it."""

    verb: Literal["learn"]
    photos: Annotated[tuple[FileOrPart, ...], Field(min_length=1, max_length=10)]
    class_name: Annotated[str, Field(min_length=1, max_length=200)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    steps: Annotated[int | None, Field(ge=1, le=5000)] = None
    model: Any = None


class CutRequest(BaseModel, extra="forbid"):
    """Cut the subject out of a stored picture: what a mask covers, or what box and points name."""

    picture: FileId
    mask: FileId | None = None
    box: tuple[float, float, float, float] | None = None
    points: list[tuple[float, float]] | None = None


class PreviewRequest(BaseModel, extra="forbid"):
    """Show about what a compose request will give, its longest side at most `size` pixels."""

    request: dict[str, Any]
    size: Annotated[int, Field(ge=64, le=2048)] = 1024


class OpenRequest(BaseModel, extra="forbid"):
    """Read the request inside a stored picture that inlay wrote."""

    file: FileId


class Problem(BaseModel):
    """What is wrong, in one sentence."""

    error: str


def parse(text: bytes | str) -> dict[str, Any]:
    """A JSON object; raises InputError for anything else."""
    try:
        data = json.loads(text if len(text) <= MAX_JSON_BYTES else "")
        # Halves of characters are no text that could be written down.
        json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
        if isinstance(data, dict):
            return data
    except (ValueError, RecursionError):
        pass
    raise InputError(
        f"the request is no JSON object of at most {MAX_JSON_BYTES} bytes; see /api/schema/compose."
    )


def request_of(
    data: Mapping[str, Any], parts: Mapping[str, str], store: Store, models: Models
) -> tuple[dict[str, Any], list[str]]:
    """What a worker is to run, as plain data, and the files that it needs.

    parts are the files that came along, by the names of their parts. Raises InputError for what is
    wrong, what would open anything else and what is too much; Refusal for a file that is not there.
    """
    limits, find = store.limits, partial(_find, parts, store)
    if data.get("verb") == "learn":
        order = LearnRequest(**data)
        photos = [find(photo, f"photo {number}") for number, photo in enumerate(order.photos, 1)]
        model = model_of(order.model, models)
        settings = {"model": model["name"], "seed": order.seed}
        settings |= {} if order.steps is None else {"steps": order.steps}
        told = {"verb": "learn", "photos": photos, "class_name": " ".join(order.class_name.split())}
        return {**told, "device": model["device"], "settings": settings}, photos
    made = _with_files(data, find, limits.files)
    request = Request.of({**made, "model": model_of(data.get("model"), models)})
    for place, (role, name) in names(request).items():
        if place != "model.name":
            raise InputError(f"the {role} {show(name)} is not offered here; leave it out.")
    if request.num_images > limits.images:
        raise InputError(f"num_images is {request.num_images}; at most {limits.images} here.")
    if isinstance(request, SceneRequest) and request.size[0] * request.size[1] > limits.pixels:
        raise InputError(
            f"size is {request.size[0]} x {request.size[1]}; expected at most "
            f"{limits.pixels / 1e6:g} MP."
        )
    return request.model_dump(mode="json"), sorted(set(request.inputs().values()))


def _find(parts: Mapping[str, str], store: Store, word: Any, role: str) -> str:
    """The stored file that a client means; raises InputError or Refusal where there is none."""
    if not isinstance(word, str) or (word not in parts and not re.fullmatch(ID, word)):
        raise InputError(
            f"{role} is {show(word)}; expected the id of an uploaded file, or the name of a part "
            "of this POST."
        )
    return store.file(parts.get(word, word)).file


def _with_files(
    data: Mapping[str, Any], find: Callable[[Any, str], str], most: int
) -> dict[str, Any]:
    """A request's data with stored files in the places of its pictures."""

    def put(values: Mapping[str, Any], fields: tuple[str, ...], end: str = "") -> dict[str, Any]:
        given = (name for name in fields if values.get(name) is not None)
        return {**values, **{name: find(values[name], f"{name}{end}") for name in given}}

    kind = KINDS.get(str(data.get("verb")))
    made = put(data, kind.sources if kind is not None else ())
    if made.get("subjects") is not None:
        subjects = made["subjects"] if isinstance(made["subjects"], list) else [made["subjects"]]
        if len(subjects) > most:
            raise InputError(f"there are {len(subjects)} subjects; expected at most {most}.")
        made["subjects"] = [
            put(
                each if isinstance(each, dict) else {"picture": each},
                _PICTURES,
                f" of subject {number}",
            )
            for number, each in enumerate(subjects, 1)
        ]
    return made


def model_of(asked: Any, models: Models) -> dict[str, Any]:
    """One of the operator's models, the first where none is named; InputError or Refusal else."""
    told = {"name": asked} if isinstance(asked, str) else asked or {}
    if not isinstance(told, dict) or told.get("loras") or told.get("textual_inversions"):
        raise InputError(f"model is {show(asked)}; expected one of {', '.join(models)}.")
    name = told.get("name") or next(iter(models))
    if not isinstance(name, str) or name not in models:
        sentence = f"the model is {show(name)}; {nearest(str(name), models)}"
        raise Refusal(HTTPStatus.NOT_FOUND, sentence)
    return dict(models[name])


def plainly(sentence: str) -> str:
    """A sentence as a client may read it: without names of stored files, and without paths."""
    return _PATH.sub(r"\1", _NAMED.sub(lambda found: "" if found.start() else "the file", sentence))


def opened(record: Record, store: Store, models: Models) -> dict[str, Any]:
    """{"request", "missing"}: the request inside a picture with the ids of its inputs, and the
    places of those that are not stored here, null in it.
    """
    told = Request.of(record.request)
    places = {f"subjects.{n}.{w}" for n in range(len(told.subjects_of())) for w in _PICTURES}
    # A stranger's record may name any place.
    places = {*told.inputs(), *((places | {*told.sources}) & record.inputs.keys())}
    request, missing = told.model_dump(mode="json"), []
    for place in sorted(places):
        inner: Any = request
        *above, last = (int(part) if part.isdigit() else part for part in place.split("."))
        for part in above:
            inner = inner[part]
        known = record.inputs[place].sha256 if place in record.inputs else ""
        ids = (known, f"{known}.safetensors")
        inner[last] = next((each for each in ids if store.holds(each)), None)
        missing += [place] if inner[last] is None else []
    model = request.pop("model") or {}
    if model.get("name") in models:
        request["model"] = {"name": model["name"]}
    return {"request": request, "missing": missing}
