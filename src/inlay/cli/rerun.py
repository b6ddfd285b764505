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
from inlay.geometry import Box

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
        result = again(record, inputs, listener.step, max_pixels, trust_remote_code)
        outputs.add(result.pictures[0], result.records[0], "")
        summary = outputs.finish()
    tell(summary, as_json=json, quiet=quiet)


def again(
    record: Record,
    inputs: dict[str, str],
    callback: Any,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    trust_remote_code: bool = False,
) -> Composite:
    """Run a record's request; raises InputError where the model is not the recorded one.

    A record may come from a stranger: its settings must be the method's own, and whether a
    segmentation model may run code of its own is not for it to say.
    """
    from inlay import methods
    from inlay.composer import Composer
    from inlay.sweep import validate_settings

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
        **record.settings,
        "method": record.method,
        "preset": record.preset,
        "seed": record.seed,
        "callback": callback,
        "max_pixels": max_pixels,
    }
    try:
        if record.verb == "compose":
            result = composer.compose(
                inputs["background"],
                inputs["subject"],
                mask=inputs.get("mask"),
                **_place(record),
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
    return result


def _place(record: Record) -> dict[str, Any]:
    """The keywords of Composer.compose that say where the subject went."""
    place = record.request.model_dump(exclude={"trust_remote_code"})
    for key in ("box", "cut_box"):
        if place[key] is not None:
            place[key] = Box(**place[key])
    return place
