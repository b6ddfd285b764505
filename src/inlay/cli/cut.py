"""cut: a subject out of its picture."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

import typer

from inlay.cli.make import numbers
from inlay.cli.options import CUTS, Out, Reading, cut_names, flag
from inlay.cli.outputs import check_out, listening, tell
from inlay.errors import InputError, nearest, show

_WITH_ALPHA = (".png", ".webp", ".avif", ".tif", ".tiff")


@dataclass(frozen=True)
class Cutting(Reading):
    """The options of cut."""

    box: str | None = flag("Where the subject is.", "X,Y,W,H")
    mask: str | None = flag("Mask: white is the object.", "FILE")
    model: str | None = flag("Segmentation model: a hub id or a folder, by transformers.", "MODEL")
    cut: str | None = flag("How the subject is found, as for compose.", "HOW", complete=cut_names)
    point: list[str] | None = flag(
        "A point on the subject; may be repeated.", "X,Y", names=("--point", "--cut-point")
    )


def cut(
    picture: Annotated[str, typer.Argument(help="Picture of the subject.")],
    output: Out,
    given: Cutting,
) -> None:
    """Cut the subject out of its picture.

    Edges are soft, and no colour of the old background comes along.
    """
    if given.cut is not None and given.model is not None:
        raise InputError("--cut and --model exclude each other; give one of them.")
    by, own = given.cut or given.model, given.cut or "auto"
    if own.partition(":")[0] not in CUTS and "/" not in own and not os.path.exists(own):
        raise InputError(f"--cut is {show(own)}; {nearest(own, CUTS)}")
    points = [numbers(text) for text in given.point or ()]

    from inlay.errors import __version__
    from inlay.pictures.read import read_picture
    from inlay.pictures.write import write_picture
    from inlay.result import identify
    from inlay.scene.cutout import cleared
    from inlay.scene.subject import Subject, as_box
    from inlay.scene.subject import cut as cut_out

    box = as_box(given.box if given.box is None else numbers(given.box), "--box")
    named = Subject(picture, cut_points=points or None).cut_points or ()

    inputs = {"picture": picture} | ({} if given.mask is None else {"mask": given.mask})
    out = check_out(output, inputs)
    if out.suffix.lower() not in _WITH_ALPHA:
        raise InputError(
            f"{out.name} cannot hold transparency; write to {', '.join(_WITH_ALPHA[:3])}."
        )
    with listening(quiet=given.quiet, bar=not given.json):
        whole = read_picture(picture, role="subject", max_pixels=given.max_pixels)
        cutout = cut_out(
            whole,
            by=by,
            mask=given.mask,
            box=box,
            points=named,
            max_pixels=given.max_pixels,
            trust_remote_code=given.trust_remote_code,
        )
        write_picture(cleared(whole, cutout), out)
    request = {"cut": by, "box": None if box is None else box.as_dict(), "points": named}
    record = {
        "inlay": __version__,
        "verb": "cut",
        "inputs": {role: identify(path) for role, path in inputs.items()},
        "request": {**request, "trust_remote_code": given.trust_remote_code},
        "outputs": [str(out)],
    }
    tell(record, as_json=given.json, quiet=given.quiet)
