"""What a run gives back: pictures, and a record inside each of how it was made.

A record is a plain dict that travels inside the picture as JSON. Its keys: inlay (version), verb,
method, seed; request (what makes this picture again, with every setting; paths as they were given,
so that a picture that is passed on tells no more about a disk than its maker typed); model (name,
hash, kind, family, loras, textual_inversions; null where none ran), device, dtype; adapter and
harmonizer (name, hash) where one had a part; window and region (x, y, width, height in background
pixels); subjects (box: where each one lies); inputs ({place in the request: {path, sha256}});
notes; timings (seconds).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage
from pydantic import BaseModel, ConfigDict

from inlay.errors import InputError, __version__, unsaved
from inlay.methods.registry import main_phase
from inlay.pictures.arrays import Box, Image, to_uint8
from inlay.pictures.colour import convert
from inlay.pictures.picture import Picture
from inlay.pictures.read import file_sha256, read_record
from inlay.pictures.write import write_picture
from inlay.request import VERBS, Request
from inlay.scene.window import Layer

if TYPE_CHECKING:
    from inlay.diffusion.backbone import Backbone
    from inlay.diffusion.branches import ControlAdapter, Harmonizer


@dataclass(frozen=True, eq=False)
class Used:
    """What had a part in a picture besides its checkpoint, and what methods had to say."""

    adapter: ControlAdapter | None = None
    harmonizer: Harmonizer | None = None
    notes: tuple[str, ...] = ()


@dataclass(eq=False)
class Result:
    """What a call made: one picture for each seed.

    pictures keep the background's size, depth, mode and profile; records say how each was made.
    window is the crop the method saw (of several passes, the smallest box that holds their crops),
    region the box outside which no byte differs, changes the mask inside that box (float32, 0 or
    1). laid are the subjects as they lie in the first picture. kept holds, where it was asked for,
    each picture's phases or stages: name to picture and record.
    """

    pictures: list[Picture]
    records: list[dict[str, Any]]
    window: Box
    region: Box
    changes: Image = field(repr=False)
    laid: Sequence[Layer] = field(default=(), repr=False)
    kept: list[dict[str, tuple[Picture, dict[str, Any]]]] = field(default_factory=list, repr=False)

    @property
    def picture(self) -> Picture:
        return self.pictures[0]

    @property
    def record(self) -> dict[str, Any]:
        return self.records[0]

    @property
    def image(self) -> PILImage.Image:
        """The (first) picture as PIL."""
        return self.pictures[0].to_pil()

    @property
    def images(self) -> list[PILImage.Image]:
        return [picture.to_pil() for picture in self.pictures]

    @property
    def phases(self) -> dict[str, Picture]:
        """What the first picture was after each phase; empty unless it was to be kept."""
        return {name: picture for name, (picture, _) in (self.kept or [{}])[0].items()}

    @property
    def layers(self) -> list[tuple[PILImage.Image, Box]]:
        """Each subject as it was laid into the first picture: PIL "RGBA", and where."""
        colours = [convert(layer.rgb, self.picture.space, None) for layer in self.laid]
        pairs = zip(colours, self.laid, strict=True)
        samples = [to_uint8(np.dstack([rgb, layer.alpha])) for rgb, layer in pairs]
        images = (PILImage.fromarray(each, "RGBA") for each in samples)
        return [(image, layer.box) for image, layer in zip(images, self.laid, strict=True)]

    @property
    def mask(self) -> PILImage.Image:
        """Where the first picture may differ from the background: PIL "L", 255 = may."""
        whole = np.zeros((self.picture.height, self.picture.width), np.uint8)
        whole[self.region.slices] = to_uint8(self.changes)
        return PILImage.fromarray(whole)

    def save(self, path: str | Path) -> None:
        """Write the first picture, with its record inside; atomic."""
        write_picture(self.picture, path, record=record_text(self.record))


def record_of(
    request: Request,
    backbone: Backbone | None,
    window: Box,
    region: Box,
    inputs: Mapping[str, Mapping[str, Any]],
    used: Used,
    layers: Sequence[Layer],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The record of one picture, which the request makes; see the top of this file."""
    data = request.model_dump(mode="json")
    record: dict[str, Any] = {
        "inlay": __version__,
        "verb": request.verb,
        "method": request.method.name,
        "seed": request.seed,
        "request": data,
        "model": None,
        "device": None,
        "dtype": None,
        "window": window.as_dict(),
        "region": region.as_dict(),
        "subjects": [{"box": layer.box.as_dict()} for layer in layers],
        "inputs": {place: dict(known) for place, known in inputs.items()},
        "notes": list(used.notes),
        "timings": dict(seconds),
    }
    if backbone is not None:
        own = data["model"]
        record["device"], record["dtype"] = own["device"], own["dtype"]
        record["model"] = {
            "name": backbone.name,
            "hash": backbone.hash,
            "kind": backbone.kind,
            "family": backbone.family,
            "loras": own["loras"],
            "textual_inversions": own["textual_inversions"],
        }
    for word, network in (("adapter", used.adapter), ("harmonizer", used.harmonizer)):
        if network is not None:
            record[word] = {"name": network.name, "hash": network.hash}
    return record


def identify(source: Any) -> dict[str, Any]:
    """{path, sha256} of a file, a Picture, a Cutout, a PIL image or an array."""
    if isinstance(source, (str, os.PathLike)):
        return {"path": os.fspath(source), "sha256": file_sha256(Path(source))}
    known = getattr(source, "sha256", None)
    if known is not None:
        return {"path": getattr(source, "path", None), "sha256": str(known)}
    samples = np.ascontiguousarray(np.asarray(source))
    return {"path": None, "sha256": hashlib.sha256(samples.data).hexdigest()}


def record_text(record: Mapping[str, Any]) -> str:
    """The record as it goes into a picture: one line of ASCII JSON, without the timings.

    They alone differ between two runs of one request, and such runs must give the same file.
    """
    lasting = {key: value for key, value in record.items() if key != "timings"}
    return json.dumps(lasting, allow_nan=False, separators=(",", ":"))


class _Loose(BaseModel):
    """Later versions may write more; what is not known here is passed over."""

    model_config = ConfigDict(extra="ignore")


class _Input(_Loose):
    path: str | None = None
    sha256: str


class _Network(_Loose):
    name: str
    hash: str = ""


class Record(_Loose):
    """A record as it is read back: what is needed to make its picture again."""

    inlay: str
    request: dict[str, Any]
    inputs: dict[str, _Input]
    model: _Network | None = None
    adapter: _Network | None = None
    harmonizer: _Network | None = None

    def resolve(self, beside: Path) -> Request:
        """The request with every file found and seen to be the one that it was.

        A path is looked up as it stands and then in the folder `beside`. Raises InputError for an
        input that was not a file, is missing, or is not the same file any more.
        """
        request = Request.of(self.request)
        for place in request.inputs():
            if place not in self.inputs:
                raise InputError(
                    f"the record names no {request.role(place)}; it cannot be run again."
                )
        found = {
            place: _find(request.role(place), source, beside)
            for place, source in self.inputs.items()
        }
        return request.with_inputs(found)

    def check(self, result: Result) -> None:
        """Raises InputError where other weights were used than those of the record."""
        for what in ("model", "adapter", "harmonizer"):
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
    name = Path(path).name
    text = read_record(path)
    if text is None:
        raise InputError(f"{name} holds no record of inlay; give a picture that inlay has written.")
    try:
        data = json.loads(text)
        sheet = isinstance(data, dict) and "sheet" in data
        verb = None if sheet else data["request"].get("verb", data.get("verb"))
        if verb in VERBS and "verb" not in data["request"]:
            data = {**data, **_from_0_1(data)}
        record = None if sheet or verb not in VERBS else Record.model_validate(data)
        if record is not None:
            Request.of(record.request)
    except InputError as error:
        raise InputError(f"the record inside {name} is damaged: {error}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise InputError(
            f"the record inside {name} is damaged; give a picture as inlay has written it."
        ) from None
    if sheet:
        outputs = data.get("outputs")
        listed = outputs if isinstance(outputs, list) and outputs else ["one of its pictures"]
        first = Path(str(listed[0])).name
        raise InputError(f"{name} is a contact sheet; give one of its pictures, like {first}.")
    if record is None:
        raise InputError(
            f"the record inside {name} is of {verb!r}; this version makes {', '.join(VERBS)} again."
        )
    return record


def _find(role: str, source: _Input, beside: Path) -> str:
    if source.path is None:
        raise unsaved(role)
    changed = False
    for candidate in (Path(source.path), beside / source.path, beside / Path(source.path).name):
        with suppress(OSError, ValueError):
            if candidate.is_file():
                if file_sha256(candidate) == source.sha256:
                    return str(candidate)
                changed = True
    if changed:
        raise InputError(
            f"the {role} {source.path} has changed since; put the file back as it was."
        )
    raise InputError(f"the {role} {source.path} is not there any more; put the file back.")


def _from_0_1(old: Mapping[str, Any]) -> dict[str, Any]:
    """The request and the inputs of a record as inlay 0.1 wrote it; raises where it is damaged."""
    place, inputs, verb = old["request"], dict(old["inputs"]), old["verb"]
    paths = {role: source.get("path") for role, source in inputs.items()}
    model = old.get("model")
    request: dict[str, Any] = {"verb": verb, "seed": old["seed"], "method": _choice_0_1(old)}
    if model is not None:
        own = {key: model[key] for key in ("name", "loras", "textual_inversions") if key in model}
        request["model"] = {**own, "device": old["device"], "dtype": old["dtype"]}
    places = {role: role for role in inputs}
    if verb in ("compose", "scene"):
        several = place.get("subjects") or []
        subjects = []
        for number, own in enumerate(several or [place]):
            end = f"_{number + 1}" if several else ""
            kept = {k: v for k, v in own.items() if k not in _NOT_OF_SUBJECTS}
            subjects.append(
                {**kept, "picture": paths["subject" + end], "mask": paths.get("mask" + end)}
            )
            places["subject" + end] = f"subjects.{number}.picture"
            places["mask" + end] = f"subjects.{number}.mask"
        request["subjects"] = subjects
        if verb == "scene":
            request["size"] = place["size"]
        elif several:
            request["together"] = place["together"]
    own_roles = {role: path for role, path in paths.items() if places[role] == role}
    phases = old.get("phases") or []
    if phases:
        names = [phase["phase"] for phase in phases]
        choices = {phase["phase"]: _choice_0_1(phase) for phase in phases}
        request |= {"phases": names, "method": choices[main_phase(names)]}
        for name in ("remove", "repose"):
            if name in names and name != main_phase(names):
                request[name] = choices[name]
    request |= own_roles
    return {"request": request, "inputs": {places[role]: known for role, known in inputs.items()}}


# What stood beside a place in 0.1.
_NOT_OF_SUBJECTS = ("subjects", "together", "size", "trust_remote_code")


def _choice_0_1(old: Mapping[str, Any]) -> dict[str, Any]:
    return {**old["settings"], "name": old["method"], "preset": old.get("preset")}
