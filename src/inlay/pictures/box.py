"""Boxes, in the one convention of inlay: x, y, width, height in pixels, origin top left."""

from __future__ import annotations

import math
from dataclasses import dataclass

from inlay.errors import InputError

_LIMIT = 1_000_000


@dataclass(frozen=True)
class Box:
    """An axis-aligned box of whole pixels; it may lie partly outside a picture.

    Numbers are rounded to the nearest pixel. Raises InputError for numbers that are not finite,
    beyond a million pixels, or for a width or height below one pixel.
    """

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        for name in ("x", "y", "width", "height"):
            value = getattr(self, name)
            try:
                number = float(value)
            except (TypeError, ValueError):
                raise InputError(f"box {name} is {value!r}; expected a number of pixels.") from None
            if not abs(number) <= _LIMIT:
                raise InputError(
                    f"box {name} is {value}; expected a finite number of at most {_LIMIT} pixels."
                )
            object.__setattr__(self, name, math.floor(number + 0.5))
        if self.width < 1 or self.height < 1:
            raise InputError(
                f"box width and height are {self.width} and {self.height}; both must be at least 1."
            )

    @classmethod
    def parse(cls, text: str, name: str = "box") -> Box:
        """Read "X,Y,W,H"; raises InputError that names the option."""
        try:
            x, y, width, height = (float(part) for part in text.split(","))
        except ValueError:
            raise InputError(f"{name} is {text!r}; expected four numbers X,Y,W,H.") from None
        return cls(x, y, width, height)  # type: ignore[arg-type]

    @classmethod
    def of_size(cls, size: tuple[int, int]) -> Box:
        """The whole of a picture of (width, height)."""
        return cls(0, 0, size[0], size[1])

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def bottom(self) -> int:
        return self.y + self.height

    @property
    def area(self) -> int:
        return self.width * self.height

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices for an array whose origin is the box's origin."""
        return slice(self.y, self.bottom), slice(self.x, self.right)

    def intersect(self, other: Box) -> Box | None:
        """The common part, or None where there is none."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        return Box(x, y, right - x, bottom - y) if right > x and bottom > y else None

    def hull(self, other: Box) -> Box:
        """The smallest box that holds both."""
        x, y = min(self.x, other.x), min(self.y, other.y)
        right, bottom = max(self.right, other.right), max(self.bottom, other.bottom)
        return Box(x, y, right - x, bottom - y)

    def shifted(self, dx: int, dy: int) -> Box:
        return Box(self.x + dx, self.y + dy, self.width, self.height)

    def grown(self, margin: int) -> Box:
        """Larger by `margin` pixels on every side."""
        return Box(
            self.x - margin, self.y - margin, self.width + 2 * margin, self.height + 2 * margin
        )

    def as_dict(self) -> dict[str, int]:
        return {"x": self.x, "y": self.y, "width": self.width, "height": self.height}
