"""The record of how a picture was made: a plain dict that travels inside the picture as JSON.

Keys: inlay (version), verb, method, preset, settings (all of them), seed, model (name, hash, kind,
family, loras, textual_inversions; null for classical methods), device, dtype, window and region
(x, y, width, height in background pixels), inputs ({role: {path, sha256}}), request (where the
subject went and how it was cut out; of several: subjects, one such each, and together; of a scene
also its size), notes, timings (seconds). A composition in phases has phases too (phase, verb,
method, preset, settings and seed of each); its method, preset and settings are those of harmonize,
else of the last phase. Where a T2I-Adapter was used there is adapter (name, hash), where a
trained harmonizer was, harmonizer (likewise).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from inlay._version import __version__
from inlay.errors import InputError
from inlay.pictures.box import Box

if TYPE_CHECKING:
    from inlay.diffusion.backbone import Backbone
    from inlay.diffusion.harmonizer import Harmonizer
    from inlay.diffusion.t2i_adapter import ControlAdapter

__all__ = ["Record", "build_record", "read_back", "record_text", "resolve_inputs"]

VERBS = ("compose", "harmonize", "remove", "scene")


class _Loose(BaseModel):
    """Later versions may write more; what is not known here is passed over."""

    model_config = ConfigDict(extra="ignore")


class _Input(_Loose):
    path: str | None = None
    sha256: str


class _Model(_Loose):
    name: str
    hash: str = ""
    loras: list[tuple[str, float]] = []
    textual_inversions: list[str] = []


class _Adapter(_Loose):
    name: str
    hash: str = ""


class _Box(_Loose):
    model_config = ConfigDict(extra="ignore", strict=True)

    x: int
    y: int
    width: int
    height: int


class _Place(_Loose):
    """Where a subject went and how it was cut out."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    box: _Box | None = None
    at: list[float] | None = Field(None, min_length=2, max_length=2)
    scale: float | None = None
    random: bool = False
    rotate: float = 0.0
    flip: bool = False
    cut: str | None = None
    cut_box: _Box | None = None
    trust_remote_code: bool = False


class _Request(_Place):
    """The one subject's place, or those of several; empty but for compose and scene."""

    subjects: list[_Place] = []
    together: bool = False
    size: list[int] | None = Field(None, min_length=2, max_length=2)


class _Phase(_Loose):
    """A phase of a composition: what it is called, and what was run with which settings."""

    phase: str
    method: str
    preset: str | None = None
    settings: dict[str, Any]


class Record(_Loose):
    """A record as it is read back: what is needed to make its picture again."""

    inlay: str
    verb: str
    method: str
    preset: str | None = None
    settings: dict[str, Any]
    seed: int = Field(ge=0, lt=2**63)
    model: _Model | None = None
    adapter: _Adapter | None = None
    harmonizer: _Adapter | None = None
    device: str | None = None
    dtype: str | None = None
    inputs: dict[str, _Input]
    request: _Request = _Request()
    phases: list[_Phase] = []


def build_record(
    *,
    verb: str,
    method: str,
    preset: str | None,
    settings: Mapping[str, Any],
    seed: int,
    backbone: Backbone | None,
    window: Box,
    region: Box,
    inputs: Mapping[str, Any],
    request: Mapping[str, Any],
    notes: Sequence[str],
    timings: Mapping[str, float],
    loras: Sequence[tuple[str, float]] = (),
    textual_inversions: Sequence[str] = (),
    phases: Sequence[Mapping[str, Any]] | None = None,
    adapter: ControlAdapter | None = None,
    harmonizer: Harmonizer | None = None,
) -> dict[str, Any]:
    """The record of one picture.

    `inputs` maps a role (background, subject, subject_1, picture, mask, control) to what the user
    handed in or to what was read from it; None is left out. Paths are kept as they were given, so
    that a picture that is passed on tells no more about a disk than its maker typed.
    """
    model = None
    if backbone is not None:
        model = {
            "name": backbone.name,
            "hash": backbone.hash,
            "kind": backbone.kind,
            "family": backbone.family,
            "loras": [[str(path), scale] for path, scale in loras],
            "textual_inversions": [str(path) for path in textual_inversions],
        }
    record: dict[str, Any] = {
        "inlay": __version__,
        "verb": verb,
        "method": method,
        "preset": preset,
        "settings": dict(settings),
        "seed": seed,
        "model": model,
        "device": None if backbone is None else str(backbone.device),
        "dtype": None if backbone is None else str(backbone.dtype).removeprefix("torch."),
        "window": window.as_dict(),
        "region": region.as_dict(),
        "inputs": {role: identify(source) for role, source in inputs.items() if source is not None},
        "request": dict(request),
        "notes": list(notes),
        "timings": dict(timings),
    }
    if adapter is not None:
        record["adapter"] = {"name": adapter.name, "hash": adapter.hash}
    if harmonizer is not None:
        record["harmonizer"] = {"name": harmonizer.name, "hash": harmonizer.hash}
    if phases is not None:
        record["phases"] = [dict(phase) for phase in phases]
    return record


def identify(source: Any) -> dict[str, Any]:
    """{path, sha256} of a file, a Picture, a Cutout, a PIL image or an array."""
    if isinstance(source, (str, os.PathLike)):
        return {"path": os.fspath(source), "sha256": file_sha256(Path(source))}
    known = getattr(source, "sha256", None)
    if known is not None:
        return {"path": getattr(source, "path", None), "sha256": str(known)}
    import numpy as np

    samples = np.ascontiguousarray(np.asarray(source))
    return {"path": None, "sha256": hashlib.sha256(samples.data).hexdigest()}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes; raises OSError where it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def record_text(record: Mapping[str, Any]) -> str:
    """The record as it goes into a picture: one line of ASCII JSON, without the timings.

    They alone differ between two runs of one request, and such runs must give the same file.
    """
    lasting = {key: value for key, value in record.items() if key != "timings"}
    return json.dumps(lasting, allow_nan=False, separators=(",", ":"))


def read_back(path: str | os.PathLike[str]) -> Record:
    """The record inside a picture.

    Raises InputError where there is none, it is damaged, or it is that of a contact sheet.
    """
    from inlay.pictures.read import read_record

    name = Path(path).name
    text = read_record(path)
    if text is None:
        raise InputError(f"{name} holds no record of inlay; give a picture that inlay has written.")
    try:
        data = json.loads(text)
        sheet = isinstance(data, dict) and "sheet" in data
        record = None if sheet else Record.model_validate(data)
    except (ValueError, RecursionError):
        raise InputError(
            f"the record inside {name} is damaged; give a picture as inlay has written it."
        ) from None
    if record is None:
        outputs = data.get("outputs")
        listed = outputs if isinstance(outputs, list) and outputs else ["one of its pictures"]
        first = Path(str(listed[0])).name
        raise InputError(f"{name} is a contact sheet; give one of its pictures, like {first}.")
    if record.verb not in VERBS:
        raise InputError(
            f"the record inside {name} is of {record.verb!r}; "
            f"this version makes {', '.join(VERBS)} again."
        )
    return record


def resolve_inputs(record: Record, beside: Path) -> dict[str, str]:
    """The input files of a record, by role.

    A path is looked up as it stands and then in the folder `beside`. Raises InputError for an
    input that was not a file, is missing, or is not the same file any more.
    """
    return {
        role: _resolved(role.replace("_", " "), source, beside)
        for role, source in record.inputs.items()
    }


def _resolved(role: str, source: _Input, beside: Path) -> str:
    if source.path is None:
        raise InputError(
            f"the {role} was handed over in memory, not as a file; "
            "the picture cannot be made again."
        )
    changed = False
    for candidate in (Path(source.path), beside / source.path, beside / Path(source.path).name):
        try:
            if not candidate.is_file():
                continue
            if file_sha256(candidate) == source.sha256:
                return str(candidate)
        except (OSError, ValueError):
            continue
        changed = True
    if changed:
        raise InputError(
            f"the {role} {source.path} has changed since; put the file back as it was."
        )
    raise InputError(f"the {role} {source.path} is not there any more; put the file back.")
