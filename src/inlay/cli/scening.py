"""scene: the command that makes a picture round subjects, without a background.

Nothing here may import numpy, torch or pydantic before it is called: `inlay --help` reads it.
"""

from __future__ import annotations

import re
from typing import Annotated

import typer

from inlay.cli import composing, make, options, phasing
from inlay.cli.options import Common, Out, TrustRemoteCode, takes_common
from inlay.errors import InputError

__all__ = ["scene"]


@takes_common
def scene(
    subject: composing.Subjects,
    output: Out,
    common: Common,
    size: Annotated[
        str, typer.Option("--size", metavar="WxH", help="Of the scene in pixels, like 768x512.")
    ],
    box: composing.Boxes = None,
    at: composing.Points = None,
    scale: composing.Scales = None,
    random: composing.Random = False,
    rotate: composing.Turns = None,
    flip: composing.Flip = False,
    mask: composing.Masks = None,
    cut: composing.Cuts = None,
    cut_box: composing.CutBoxes = None,
    keep_phases: phasing.KeepPhases = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Build a scene around subjects from a prompt."""
    from inlay.around import as_size

    across = as_size(_size(size), common.max_pixels, "--size")
    said = common.prompt
    if said is None and not any(item.strip().startswith("prompt=") for item in common.set or []):
        said = ""
    if said is not None and not said.strip():
        raise InputError("inlay scene needs --prompt TEXT; say what the picture should show.")
    place = composing.places(
        len(subject),
        box=box,
        at=at,
        scale=scale,
        random=random,
        rotate=rotate,
        flip=flip,
        mask=mask,
        cut=cut,
        cut_box=cut_box,
    )
    place |= {"trust_remote_code": trust_remote_code, "size": across}
    place |= {"keep_phases": keep_phases}
    pictures = subject[0] if len(subject) == 1 else subject
    make.produce(
        "scene",
        output,
        composing.roles(None, subject, place["mask"], None),
        common,
        lambda composer, more: composer.scene(pictures, **place, **more),
        keep=keep_phases,
    )


def _size(text: str) -> tuple[int, int]:
    """Read "WxH"."""
    found = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", text, re.ASCII)
    if found is None:
        raise InputError(
            f"--size is {options.short(text)}; expected WxH in whole pixels, like 768x512."
        )
    return int(found[1]), int(found[2])
