"""cut: a subject out of its picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from inlay.cli import options
from inlay.cli.options import (
    DEFAULT_MAX_PIXELS,
    Json,
    MaskFile,
    MaxPixels,
    Out,
    Quiet,
    TrustRemoteCode,
)
from inlay.errors import InputError

if TYPE_CHECKING:
    from pydantic import BaseModel

Config = TypeVar("Config", bound="BaseModel")

_WITH_ALPHA = (".png", ".webp", ".tif", ".tiff")


def cut(
    picture: Annotated[str, typer.Argument(metavar="PICTURE", help="Picture of the subject.")],
    output: Out,
    box: Annotated[
        str | None, typer.Option("--box", metavar="X,Y,W,H", help="Where the subject is.")
    ] = None,
    mask: MaskFile = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Segmentation model: a hub id or a folder, by transformers.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--cut",
            metavar="HOW",
            help="alpha, mask, box or grabcut.",
            autocompletion=options._completes(*options.CUTS),
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Cut the subject out of its picture.

    Edges are soft, and no colour of the old background comes along.
    """
    if by is not None and model is not None:
        raise InputError("--cut and --model exclude each other; give one of them.")
    if by is not None:
        options.one_of(by, options.CUTS, "--cut")
    if by == "mask" and mask is None:
        raise InputError("--cut mask needs --mask FILE.")
    if by == "box" and box is None:
        raise InputError("--cut box needs --box X,Y,W,H.")
    where = options.box(box, "--box")

    from inlay import __version__
    from inlay.cli.outputs import check_out, tell
    from inlay.cli.progress import listening
    from inlay.result import identify

    out = check_out(output, {"picture": picture, "mask": mask})
    if out.suffix.lower() not in _WITH_ALPHA:
        raise InputError(
            f"{out.name} cannot hold transparency; write to {', '.join(_WITH_ALPHA[:3])}."
        )
    from inlay.pictures.read import read_picture
    from inlay.pictures.write import write_picture
    from inlay.scene.cutout import cut_rgba

    with listening(quiet=quiet, bar=not json):
        image = cut_rgba(
            picture,
            by=by or model,
            mask=mask,
            box=where,
            max_pixels=max_pixels,
            trust_remote_code=trust_remote_code,
        )
        write_picture(read_picture(image, max_pixels=max_pixels), out)
    inputs = {"picture": picture} | ({} if mask is None else {"mask": mask})
    record = {
        "inlay": __version__,
        "verb": "cut",
        "inputs": {role: identify(path) for role, path in inputs.items()},
        "request": {
            "cut": by or model,
            "box": None if where is None else where.as_dict(),
            "trust_remote_code": trust_remote_code,
        },
        "outputs": [str(out)],
    }
    tell(record, as_json=json, quiet=quiet)
