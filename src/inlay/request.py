"""A request as it is checked before any picture is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inlay import methods
from inlay.errors import InputError
from inlay.methods.base import Method, Settings
from inlay.sweep import validate_settings

__all__ = ["Request"]

_MAX_IMAGES = 64


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
            raise InputError(f"seed is {seed!r}; expected a whole number from 0 to 2^63 - 1.")
        if (
            isinstance(num_images, bool)
            or not isinstance(num_images, int)
            or not 1 <= num_images <= _MAX_IMAGES
        ):
            raise InputError(
                f"num_images is {num_images!r}; expected a whole number from 1 to {_MAX_IMAGES}."
            )
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
