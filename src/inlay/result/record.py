"""A record as it is read back from a picture: a stranger's word, by which little is opened."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel

from inlay.errors import InputError, nearest, plain, show, unsaved
from inlay.methods.registry import Model, main_phase
from inlay.pictures.picture import name_of
from inlay.pictures.read import MAX_FILE_BYTES, MAX_JSON_BYTES, file_sha256, read_record
from inlay.request import Request
from inlay.result import Result

# Of each name in a sentence.
_SHOWN = 200
# What else a record names beside its picture is not opened.
_PICTURES = (
    ".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".heic", ".heif",
)  # fmt: skip
_Word = Annotated[str, AfterValidator(partial(plain, longest=_SHOWN))]


# What a name may be that stands for nothing outside the package, by the last part of its place.
_OWN = {
    "name": ("embedded",),
    "cut": (None, "auto", "alpha", "mask", "box", "grabcut"),
    "adapter": (None, "", "embedded"),
    "harmonizer": (None, "none", "auto", "embedded"),
    "ip_adapter": (None, "none"),
}


# Later versions may write more: what is not known in these models is passed over.


class _Input(BaseModel):
    path: str | None = None
    sha256: str


class _Network(BaseModel):
    name: _Word
    hash: str = ""


class Record(BaseModel):
    """A record as it is read back: what is needed to make its picture again."""

    inlay: _Word
    request: dict[str, Any]
    inputs: dict[str, _Input]
    model: _Network | None = None
    adapter: _Network | None = None
    harmonizer: _Network | None = None
    ip_adapter: _Network | None = None
    cutter: _Network | None = None
    shadow: _Network | None = None

    def resolve(self, beside: Path, given: Mapping[str, str] | None = None) -> Request:
        """The request with every file found and seen to be the one that it was.

        Anybody may have written a record, so what it names is opened only where it is a picture in
        the folder `beside`. All else must be `given`, by role or place: other files, and models,
        LoRA files and the like by their names. Raises InputError for all that is not given, and for
        an input that was not a file or is not the same file any more.
        """
        request = Request.of(self.request)
        paths = {place: source.path or "" for place, source in self.inputs.items()}
        for place in (place for place, source in self.inputs.items() if source.path is None):
            raise unsaved(place.rpartition(".")[2].replace("_", " "))
        found = {_place(request, word): name for word, name in (given or {}).items()}
        for place in sorted(request.inputs().keys() ^ paths.keys()):
            raise InputError(f"the request and the inputs of the record differ in {show(place)}.")
        for place, path in paths.items():
            files = [found[place]] if place in found else _beside(beside, path)
            if files:
                found[place] = _same(request.role(place), files, self.inputs[place].sha256)
        wanted = {place: (request.role(place), path) for place, path in paths.items()}
        lacks = [
            f"--input {role.replace(' ', '_')}={shlex.quote(plain(name, _SHOWN))}"
            for place, (role, name) in (wanted | names(request)).items()
            if place not in found
        ]
        if lacks:
            raise InputError(
                f"to make it again, add {' '.join(lacks)} (what a record names is opened only if "
                "it is a picture in the same folder, or if you name it too)."
            )
        return with_inputs(request, found)

    def check(self, result: Result) -> None:
        """Raises InputError where other weights were used than those of the record."""
        for what in ("model", "adapter", "harmonizer", "ip_adapter", "cutter", "shadow"):
            was, used = getattr(self, what), result.record.get(what)
            if was is not None and used is not None and was.hash != used["hash"]:
                raise InputError(
                    f"the {what} {was.name} is not the one the picture was made with; its weights "
                    "have changed."
                )


def read_back(path: str | os.PathLike[str]) -> Record:
    """The record inside a picture, of this version or of 0.1.

    Raises InputError where there is none, it is damaged, or it is that of a contact sheet.
    """
    name = name_of(path)
    text = read_record(path)
    if text is None:
        raise InputError(f"{name} holds no record of inlay; give a picture that inlay has written.")
    try:
        data = json.loads(text if len(text) <= MAX_JSON_BYTES else "")
        if not (isinstance(data, dict) and "sheet" in data):
            data |= {} if "verb" in data["request"] else _from_0_1(data)
            if data["request"]["verb"] == "compose":
                # There were none before they could be asked for.
                data["request"] = {"shadow": "none", **data["request"]}
            record = Record.model_validate(data)
            Request.of(record.request)
            return record
        outputs = data.get("outputs")
        listed = outputs if isinstance(outputs, list) and outputs else ["one of its pictures"]
    except InputError as error:
        raise InputError(f"the record inside {name} is damaged: {error}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise InputError(
            f"the record inside {name} is damaged; give a picture as inlay has written it."
        ) from None
    first = name_of(str(listed[0]))
    raise InputError(f"{name} is a contact sheet; give one of its pictures, like {first}.")


def names(request: Request) -> dict[str, tuple[str, str]]:
    """What a request opens besides pictures: its (role, name) by its dotted place.

    Checkpoints, LoRA files, textual inversions, segmenters, adapters and harmonizers, where they
    are not the package's own.
    """
    model = request.model or Model()
    found: dict[str, tuple[str, Any]] = {"model.name": ("model", model.name)}
    for role, place, files in (
        ("lora", "model.loras.{}.0", [file for file, _ in model.loras]),
        ("textual inversion", "model.textual_inversions.{}", list(model.textual_inversions)),
    ):
        for number, file in enumerate(files):
            called = f"{role} {number + 1}" if len(files) > 1 else role
            found[place.format(number)] = called, file
    for number, subject in enumerate(request.subjects_of()):
        place = f"subjects.{number}.cut"
        found[place] = request.role(place), subject.cut
    for word in ("method", "remove", "repose"):
        settings = getattr(getattr(request, word, None), "settings", None)
        for key in ("adapter", "harmonizer", "ip_adapter"):
            called = (key if word == "method" else f"{word} {key}").replace("_", " ")
            found[f"{word}.{key}"] = called, getattr(settings, key, None)
    return {
        place: pair
        for place, pair in found.items()
        if pair[1] not in _OWN.get(place.rpartition(".")[2], ())
    }


def with_inputs(request: Request, given: Mapping[str, str]) -> Request:
    """The request with other files and names, by role or dotted place; raises InputError."""
    data = request.model_dump(mode="json")
    for word, name in given.items():
        inner: Any = data
        *above, last = [int(p) if p.isdigit() else p for p in _place(request, word).split(".")]
        for part in above:
            inner = inner[part]
        inner[last] = name
    return Request.of(data)


def _place(request: Request, word: str) -> str:
    """The dotted place that a role, or that place itself, stands for; raises InputError."""
    places = {request.role(place): place for place in request.inputs()}
    places |= {role: place for place, (role, _) in names(request).items()}
    place = places.get(word.replace("_", " "), word)
    if place not in places.values():
        raise InputError(f"the request has no input {show(word)}; {nearest(word, places)}")
    return place


def _same(role: str, files: Sequence[str], sha256: str) -> str:
    """The first of some files whose bytes are those that they were; raises InputError."""
    for file in files:
        with suppress(OSError):
            if file_sha256(Path(file)) == sha256:
                return file
    name = name_of(files[0])
    raise InputError(f"the {role} {name} has changed since or is not there; give it as it was.")


def _beside(folder: Path, named: str) -> list[str]:
    """The pictures in a folder that a path may mean; no other file is opened or looked up."""
    found = []
    for path in (Path(named), folder / named, folder / Path(named).name):
        with suppress(OSError, ValueError, RuntimeError):
            # Where it leads is asked only if it looks right: that can reach other machines.
            inside = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))
            if (
                inside
                and path.suffix.lower() in _PICTURES
                and path.resolve().is_relative_to(folder.resolve())
                and path.is_file()
                and path.stat().st_size <= MAX_FILE_BYTES
            ):
                found.append(str(path))
    return found


def _from_0_1(old: Mapping[str, Any]) -> dict[str, Any]:
    """The request and the inputs of a record as inlay 0.1 wrote it; raises where it is damaged."""
    place, inputs, verb = old["request"], dict(old["inputs"]), old["verb"]
    paths = {role: source.get("path") for role, source in inputs.items()}
    places = {role: role for role in inputs}
    request: dict[str, Any] = {"verb": verb, "seed": old["seed"], "method": _choice_0_1(old)}
    if (model := old.get("model")) is not None:
        own = {key: model[key] for key in ("name", "loras", "textual_inversions") if key in model}
        request["model"] = {**own, "device": old["device"], "dtype": old["dtype"]}
    if verb in ("compose", "scene"):
        several = place.get("subjects") or []
        request["subjects"] = []
        for number, own in enumerate(several or [place]):
            kept = {k: v for k, v in own.items() if k not in _NOT_OF_SUBJECTS}
            end = f"_{number + 1}" if several else ""
            for word, role in (("picture", f"subject{end}"), ("mask", f"mask{end}")):
                places[role] = f"subjects.{number}.{word}"
                kept[word] = paths.pop(role, None)
            request["subjects"].append(kept)
        if verb == "scene":
            request["size"] = place["size"]
        elif several:
            request["together"] = place["together"]
    if phases := old.get("phases"):
        choices = {phase["phase"]: _choice_0_1(phase) for phase in phases}
        main = main_phase(list(choices))
        request |= {"phases": list(choices), "method": choices.pop(main)}
        request |= {name: choices[name] for name in ("remove", "repose") if name in choices}
    # What is left are the request's own pictures.
    request |= paths
    return {"request": request, "inputs": {places[role]: known for role, known in inputs.items()}}


# What stood beside a place in 0.1.
_NOT_OF_SUBJECTS = ("subjects", "together", "size", "trust_remote_code")


def _choice_0_1(old: Mapping[str, Any]) -> dict[str, Any]:
    settings = dict(old["settings"])
    if "guidance_scale" in settings:
        # At strength 1, too, sampling began with a little of the picture.
        settings["initial_latent"] = "source"
    if settings.get("source_prompt") == "":
        # It stood for the variant's own prompt.
        del settings["source_prompt"]
    return {**settings, "name": old["method"], "preset": old.get("preset")}
