"""Labelled contact sheets: several pictures beside each other in one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont
from PIL.Image import Image

from inlay.errors import InputError

_GAP = 8
_INK = (32, 32, 32)


def contact_sheet(
    pictures: Sequence[Image],
    labels: Sequence[str],
    columns: int | None = None,
    cell: int = 320,
) -> Image:
    """Lay pictures out in rows with a label under each; returns PIL "RGB".

    Each picture is shrunk (never enlarged) to fit a square of `cell` pixels and centred in its
    column; a row is as high as its highest picture; what is transparent lies over white. A label
    is cut with "..." where it is wider than its cell. `columns` defaults to the squarest layout
    that is at least as wide as high. Raises InputError for no pictures, as many labels as not
    pictures, or sizes below one.
    """
    few = cell < 16 or (columns is not None and columns < 1)
    if not 0 < len(pictures) == len(labels) or few:
        raise InputError(
            f"a contact sheet has {len(pictures)} pictures, {len(labels)} labels and {columns} "
            f"columns of {cell} pixels; expected a label for each picture, and 16 pixels or more."
        )
    across = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    size = max(10, cell // 20)
    font = ImageFont.load_default(size=size)
    line = math.ceil(size * 1.6)
    step = cell + _GAP
    smalls = [_fitted(picture, cell) for picture in pictures]
    # A row is as high as its highest picture: wide pictures leave no white bands.
    rows = [smalls[i : i + across] for i in range(0, len(smalls), across)]
    heights = [max(small.height for small in row) for row in rows]
    tops = [_GAP + sum(heights[:i]) + i * (line + _GAP) for i in range(len(rows) + 1)]
    sheet = PilImage.new("RGB", (across * step + _GAP, tops[-1]), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (small, label) in enumerate(zip(smalls, labels, strict=True)):
        left, top = _GAP + number % across * step, tops[number // across]
        height = heights[number // across]
        sheet.paste(small, (left + (cell - small.width) // 2, top + (height - small.height) // 2))
        text = whole = " ".join(label.split())
        while whole and font.getlength(text) > cell:
            whole = whole[:-1]
            text = whole + "..."
        indent = (cell - font.getlength(text)) / 2
        draw.text((left + max(indent, 0), top + height + (line - size) // 2), text, _INK, font)
    return sheet


def _fitted(picture: Image, cell: int) -> Image:
    """An RGB copy over white, at most `cell` pixels on a side."""
    see_through = picture.has_transparency_data
    # Premultiplied resampling: colours under transparent pixels must not bleed in.
    small = picture.convert("RGBA" if see_through else "RGB")
    small.thumbnail((cell, cell), PilImage.Resampling.LANCZOS, reducing_gap=3.0)
    if not see_through:
        return small
    paper = PilImage.new("RGBA", small.size, "white")
    return PilImage.alpha_composite(paper, small).convert("RGB")
