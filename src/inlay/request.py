"""A request as it is checked before any picture is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from inlay import methods
from inlay.errors import InputError
from inlay.methods.base import Method, Settings
from inlay.pictures.box import Box
from inlay.scene.placement import Placement
from inlay.sweep import show, validate_settings

__all__ = ["Place", "Request", "as_box", "as_flag"]

_MAX_IMAGES = 64
# All pictures of a call are held in memory until it returns.
_MAX_TOGETHER = 2_000_000_000


class Request:
    """A checked request; everything that can be wrong without reading a picture is found here."""

    def __init__(
        self,
        verb: str,
        method: str | None,
        preset: str | None,
        seed: int,
        num_images: int,
        settings: Mapping[str, Any],
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise InputError(f"seed is {show(seed)}; expected a whole number from 0 to 2^63 - 1.")
        if (
            isinstance(num_images, bool)
            or not isinstance(num_images, int)
            or not 1 <= num_images <= _MAX_IMAGES
        ):
            raise InputError(
                f"num_images is {show(num_images)}; expected a whole number from 1 to "
                f"{_MAX_IMAGES}."
            )
        method, preset = _text(method, "method"), _text(preset, "preset")
        self.verb, self.seed, self.num_images, self.preset = verb, seed, num_images, preset
        self.method: Method = methods.get(method or methods.default_for(verb), verb)
        values: dict[str, Any] = {}
        if preset is not None:
            if preset not in self.method.presets:
                known = ", ".join(self.method.presets) or "none"
                raise InputError(
                    f"preset {preset!r} is not one of {self.method.name}; it has {known}."
                )
            values.update(self.method.presets[preset])
        values.update(settings)
        self.settings: Settings = validate_settings(self.method.settings, values)

    def check_size(self, size: tuple[int, int], each: int = 1) -> None:
        """Raises InputError where so many pictures of (width, height) are too much to hold.

        each: how many are held for one that was asked for.
        """
        if self.num_images > 1 and self.num_images * each * size[0] * size[1] > _MAX_TOGETHER:
            most = max(1, _MAX_TOGETHER // (each * size[0] * size[1]))
            raise InputError(
                f"num_images is {self.num_images}, too many at once for a picture of "
                f"{size[0]} x {size[1]} pixels; expected at most {most}."
            )


@dataclass(frozen=True)
class Place:
    """Where a subject goes and how it is cut out of its own picture, checked."""

    placement: Placement
    cut: str | None
    cut_box: Box | None
    trust_remote_code: bool

    @classmethod
    def of(
        cls,
        *,
        box: Any = None,
        at: Any = None,
        scale: Any = None,
        random: Any = False,
        rotate: Any = 0.0,
        flip: Any = False,
        cut: Any = None,
        cut_box: Any = None,
        trust_remote_code: Any = False,
    ) -> Place:
        """From what a caller hands in; raises InputError for values of the wrong kind.

        A box is a Box or four numbers, `at` two numbers; numpy's numbers and arrays will do.
        """
        point = None if at is None else _numbers(at, 2, "at", "two numbers x, y")
        placement = Placement(
            box=as_box(box, "box"),
            at=None if point is None else (point[0], point[1]),
            scale=None if scale is None else _number(scale, "scale", "a number above 0"),
            random=as_flag(random, "random"),
            rotate=_number(rotate, "rotate", "a finite number of degrees"),
            flip=as_flag(flip, "flip"),
        )
        trusted = as_flag(trust_remote_code, "trust_remote_code")
        return cls(placement, _text(cut, "cut"), as_box(cut_box, "cut_box"), trusted)

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        place = self.placement
        return {
            "box": None if place.box is None else place.box.as_dict(),
            "at": None if place.at is None else list(place.at),
            "scale": place.scale,
            "random": place.random,
            "rotate": place.rotate,
            "flip": place.flip,
            "cut": self.cut,
            "cut_box": None if self.cut_box is None else self.cut_box.as_dict(),
            "trust_remote_code": self.trust_remote_code,
        }


def _text(value: Any, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise InputError(f"{name} is {show(value)}; expected text or None.")


def as_flag(value: Any, name: str) -> bool:
    """True or False, numpy's too; raises InputError for anything else."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise InputError(f"{name} is {show(value)}; expected True or False.")


def _number(value: Any, name: str, expected: str) -> float:
    try:
        if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:
        pass
    raise InputError(f"{name} is {show(value)}; expected {expected}.")


def _numbers(value: Any, count: int, name: str, expected: str) -> list[float]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    listed = list(value) if isinstance(value, (list, tuple)) else []
    if len(listed) != count:
        raise InputError(f"{name} is {show(value)}; expected {expected}.")
    try:
        return [_number(item, name, expected) for item in listed]
    except InputError:
        raise InputError(f"{name} is {show(value)}; expected {expected}.") from None


def as_box(value: Any, name: str) -> Box | None:
    """A Box, or four numbers as one; raises InputError for anything else."""
    if value is None or isinstance(value, Box):
        return value
    expected = "a Box or four numbers x, y, width, height"
    x, y, width, height = _numbers(value, 4, name, expected)
    return Box(x, y, width, height)  # type: ignore[arg-type]
