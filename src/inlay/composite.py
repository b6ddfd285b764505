"""What a call of a Composer gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inlay.pictures.box import Box
from inlay.pictures.picture import Picture
from inlay.pictures.write import write_picture
from inlay.record import record_text

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Composite"]


@dataclass(eq=False)
class Composite:
    """What a call made: one picture per seed.

    pictures keep the background's size, depth, mode and profile; records say how each was made.
    window is the crop the method saw (of several runs, the smallest box that holds their crops),
    region the box outside which no byte differs, effect the mask inside that box (float32, 0 or
    1). kept holds, where it was asked for, each picture's phases: name to picture and record.
    """

    pictures: list[Picture]
    records: list[dict[str, Any]]
    window: Box
    region: Box
    effect: NDArray[np.float32] = field(repr=False)
    kept: list[dict[str, tuple[Picture, dict[str, Any]]]] = field(default_factory=list, repr=False)

    @property
    def picture(self) -> Picture:
        return self.pictures[0]

    @property
    def image(self) -> Image:
        """The (first) picture as PIL."""
        return self.pictures[0].to_pil()

    @property
    def images(self) -> list[Image]:
        return [picture.to_pil() for picture in self.pictures]

    @property
    def phases(self) -> dict[str, Picture]:
        """What the first picture was after each phase; empty unless it was to be kept."""
        return {name: picture for name, (picture, _) in (self.kept or [{}])[0].items()}

    @property
    def record(self) -> dict[str, Any]:
        return self.records[0]

    @property
    def mask(self) -> Image:
        """Where the first picture may differ from the background: PIL "L", 255 = may."""
        from PIL import Image as PilImage

        whole = np.zeros((self.picture.height, self.picture.width), np.uint8)
        whole[self.region.slices] = np.round(self.effect * 255).astype(np.uint8)
        return PilImage.fromarray(whole)

    def save(self, path: str | Path) -> None:
        """Write the first picture, with its record inside; atomic."""
        write_picture(self.picture, path, record=record_text(self.record))
