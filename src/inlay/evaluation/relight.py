"""Light and shadow against a known truth: rendered objects that come from another light.

A triple (tools/render_pairs.py) is a place, the truth with an object in it, and the object in
another place's light. That, and for harm the truth's own object, is composed into the place at its
own pixels, and measured inside the object, in its shadow, and over all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from inlay.errors import InputError
from inlay.evaluation.benchmark import Benchmark, Case, Image, ratio
from inlay.evaluation.figures import psnr
from inlay.evaluation.photos import folder_rows, is_included
from inlay.learning.folder import Row
from inlay.pictures.arrays import bounds, from_levels, shrink, srgb_decode, to_uint8
from inlay.pictures.mask import LEAST_SHARE
from inlay.pictures.read import read_picture

# Luminance of linear sRGB (IEC 61966-2-1), and how much of the place's is left where a shadow is.
_LUMINANCE, _SHADED = (0.2126, 0.7152, 0.0722), 0.96


def find_triples(
    folders: Sequence[str], split: str | None = None, include: Sequence[str] = ()
) -> list[tuple[Path, Row]]:
    """The triples of folders, each a folder and a line of its metadata.jsonl, by name.

    split (None is held-out) and include are those of find_photos(). Raises InputError for what is
    no folder, a malformed metadata.jsonl, or when no triple is left.
    """
    split = split or "held-out"
    triples = [
        (root, row)
        for root, rows in (folder_rows(folder, split) for folder in folders)
        for row in sorted(rows, key=lambda row: row.file_name)
        if row.place and row.other and is_included(include, row.file_name)
    ]
    if not triples:
        raise InputError(
            f"there are no triples of the split {split} in {', '.join(map(repr, folders))}; give a "
            "folder that tools/render_pairs.py wrote, with its metadata.jsonl."
        )
    return triples


class Relight(Benchmark):
    """Rendered triples (see find_triples()); methods compose the object into its place."""

    name = "relight"
    title = "Light and shadow against a rendered truth"
    blank: ClassVar[Mapping[str, Any]] = {"verb": "compose", "background": "-", "subjects": "-"}
    plain: ClassVar[Mapping[str, Any]] = {"shadow": "none"}
    nouns = ("triples", "objects in their own light", "pose")
    kinds = ("standing", "lying", "leaning", "floating")
    columns = (
        ("method", "label", "{}"),
        ("inside", "fmse", "{:.1f}"),
        ("of paste's", "fmse_ratio", "{:.3f}"),
        ("improved", "improved", "{:.0%}"),
        ("shadow", "shadow_ratio", "{:.3f}"),
        ("of all", "shadow_ratio_all", "{:.3f}"),
        ("together", "together_ratio", "{:.3f}"),
        ("harm", "harm_delta_e", "{:.2f}"),
        ("floating", "floating", "{:.2f}"),
        ("s/picture", "seconds", "{:.2f}"),
    )
    rank = "psnr"

    def __post_init__(self) -> None:
        self.count = min(self.count, len(self.sources))
        super().__post_init__()

    def cases(self) -> Iterator[Case]:
        for number, (root, row) in enumerate(self.sources[: self.count]):
            names = (row.file_name, str(row.other), str(row.place))
            pictures = [read_picture(root / name).to_pil().convert("RGBA") for name in names]
            truth, other, place = (shrink(np.asarray(p), self.short_side) for p in pictures)
            mask = from_levels(other[..., 3])
            alike = place.shape == truth.shape == other.shape
            if not (alike and (mask > 0.5).any() and (mask == 0).any()):
                raise InputError(
                    f"{root / row.file_name} is of no triple; expected three pictures of one size, "
                    "the object's with an alpha that is above one half somewhere and 0 elsewhere."
                )
            truth, other, place = (p[..., :3].copy() for p in (truth, other, place))
            yield Case(number, row.file_name, row.pose, mask, truth, other, place)

    def order(self, case: Case, pasted: Image) -> dict[str, Any]:
        # A subject is what of its picture is seen; in the box of that it keeps its pixels.
        assert case.place is not None
        box = bounds(case.mask >= LEAST_SHARE * case.mask.max())
        subject = np.dstack([pasted, to_uint8(case.mask)])
        subjects = [{"picture": subject, "box": box}]
        return {"verb": "compose", "background": case.place, "subjects": subjects}

    def figures(self, case: Case, result: Image) -> dict[str, float]:
        """Those of the object; together (mean squared error of the whole picture) and its psnr;
        shadow: the part of that which lies outside the object where the truth is darker than the
        place; and darkening: of what lies outside the object, in levels.
        """
        assert case.place is not None
        outside = case.mask == 0
        square = np.square(result.astype(np.float64) - case.truth).mean(-1)
        lost = np.clip(case.place.astype(np.float64) - result, 0, None).mean(-1)
        light, full = (srgb_decode(from_levels(p)) @ _LUMINANCE for p in (case.truth, case.place))
        shadow = outside & (light < _SHADED * full)
        return super().figures(case, result) | {
            "together": float(square.mean()),
            "psnr": psnr(float(square.mean())),
            "shadow": float((square * shadow).mean()),
            "darkening": float(lost[outside].mean()),
        }

    def shares(self, cases: Sequence[Mapping[str, Any]], label: str) -> dict[str, float | None]:
        contact = [case for case in cases if case["kind"] != "floating"]
        dark = [c["results"][label]["darkening"] for c in cases if c["kind"] == "floating"]
        return {
            "shadow_ratio": ratio(contact, label, "shadow"),
            "shadow_ratio_all": ratio(cases, label, "shadow"),
            "together_ratio": ratio(cases, label, "together"),
            "floating": float(np.mean(dark)) if dark else None,
        }
