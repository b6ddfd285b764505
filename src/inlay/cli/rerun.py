"""rerun: make a picture again from the record inside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay.cli.options import (
    DEFAULT_MAX_PIXELS,
    Json,
    MaxPixels,
    Out,
    Quiet,
    TrustRemoteCode,
)
from inlay.errors import InputError
from inlay.pictures.box import Box

if TYPE_CHECKING:
    from inlay.composer import Composite
    from inlay.record import Record


def rerun(
    picture: Annotated[
        str, typer.Argument(metavar="PICTURE", help="Picture that inlay has written.")
    ],
    output: Out,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a picture again from the record inside it."""
    from inlay._version import __version__
    from inlay.cli.outputs import Outputs, check_out, tell
    from inlay.cli.progress import listening
    from inlay.record import read_back, resolve_inputs

    record = read_back(picture)
    inputs = resolve_inputs(record, Path(picture).parent)
    out = check_out(output, inputs)
    with listening(quiet=quiet, bar=not json) as listener, Outputs(out) as outputs:
        if record.inlay != __version__:
            listener.note(
                f"the picture was made by inlay {record.inlay}, this is {__version__}: "
                "the result may differ"
            )
        result = again(record, inputs, listener.step, max_pixels, trust_remote_code, listener.phase)
        outputs.add(result.pictures[0], result.records[0], "")
        summary = outputs.finish()
    tell(summary, as_json=json, quiet=quiet)


def again(
    record: Record,
    inputs: dict[str, str],
    callback: Any,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    trust_remote_code: bool = False,
    on_phase: Any = None,
) -> Composite:
    """Run a record's request; raises InputError where the model is not the recorded one.

    A record may come from a stranger: its settings must be the method's own, and whether a
    segmentation model may run code of its own is not for it to say.
    """
    from inlay import methods
    from inlay.composer import Composer
    from inlay.sweep import validate_settings

    if not record.phases:
        validate_settings(methods.get(record.method, record.verb).settings, record.settings)

    model = record.model
    composer = Composer.from_pretrained(
        "embedded" if model is None else model.name,
        device=record.device or "auto",
        dtype=record.dtype or "auto",
        loras=[] if model is None else model.loras,
        textual_inversions=[] if model is None else model.textual_inversions,
    )
    shared: dict[str, Any] = {
        **(_phases(record, inputs) if record.phases else _method(record)),
        "seed": record.seed,
        "callback": callback,
        "max_pixels": max_pixels,
    }
    if record.phases:
        shared["on_phase"] = on_phase
    try:
        if record.verb == "compose":
            result = composer.compose(
                inputs["background"],
                **_subjects(record, inputs),
                control=inputs.get("control"),
                trust_remote_code=trust_remote_code,
                **shared,
            )
        elif record.verb == "harmonize":
            result = composer.harmonize(
                inputs["picture"],
                mask=inputs.get("mask"),
                background=inputs.get("background"),
                **shared,
            )
        elif record.verb == "scene":
            subjects = _subjects(record, inputs)
            subjects.pop("together", None)
            if record.request.size is None:
                raise KeyError("size")
            result = composer.scene(
                **subjects,
                size=record.request.size,
                trust_remote_code=trust_remote_code,
                **shared,
            )
        else:
            result = composer.remove(inputs["picture"], mask=inputs["mask"], **shared)
    except KeyError as error:
        raise InputError(f"the record names no {error.args[0]}; it cannot be run again.") from None
    now = result.record["model"]
    if model is not None and now is not None and model.hash != now["hash"]:
        raise InputError(
            f"the model {model.name} is not the one the picture was made with; "
            "its weights have changed."
        )
    for what, was in (("adapter", record.adapter), ("harmonizer", record.harmonizer)):
        used = result.record.get(what)
        if was is not None and used is not None and was.hash != used["hash"]:
            raise InputError(
                f"the {what} {was.name} is not the one the picture was made with; "
                "its weights have changed."
            )
    return result


def _method(record: Record) -> dict[str, Any]:
    """The keywords of every verb that say how: checked settings, method and preset."""
    return {**record.settings, "method": record.method, "preset": record.preset}


def _phases(record: Record, inputs: dict[str, str]) -> dict[str, Any]:
    """The same for a composition in phases; Composer.compose checks each one's settings."""
    by_name = {phase.phase: phase for phase in record.phases}
    harmonize, remove = by_name.get("harmonize"), by_name.get("remove")
    return {
        "phases": [phase.phase for phase in record.phases],
        "phase_settings": {name: phase.settings for name, phase in by_name.items()},
        "method": None if harmonize is None else harmonize.method,
        "preset": None if harmonize is None else harmonize.preset,
        "remove_method": None if remove is None else remove.method,
        "remove_mask": inputs.get("remove_mask"),
    }


def _subjects(record: Record, inputs: dict[str, str]) -> dict[str, Any]:
    """The keywords of Composer.compose that say what went where."""
    request = record.request
    if not request.subjects:
        return {"subject": inputs["subject"], "mask": inputs.get("mask"), **_place(request)}
    numbers = range(1, len(request.subjects) + 1)
    places = [_place(each) for each in request.subjects]
    return {
        "subject": [inputs[f"subject_{number}"] for number in numbers],
        "mask": [inputs.get(f"mask_{number}") for number in numbers],
        "together": request.together,
        **{key: [place[key] for place in places] for key in places[0]},
    }


def _place(request: Any) -> dict[str, Any]:
    place: dict[str, Any] = request.model_dump(
        exclude={"trust_remote_code", "subjects", "together", "size"}
    )
    for key in ("box", "cut_box"):
        if place[key] is not None:
            place[key] = Box(**place[key])
    return place
