"""Which methods a request runs: a choice of method and settings, and the phases that chain them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import InstanceOf, model_serializer

from inlay import methods
from inlay.errors import InputError, nearest, show
from inlay.methods.base import Method, Settings
from inlay.settings import Form, as_text, validate_settings

PHASES = ("remove", "paste", "harmonize", "repose")
# What of the method's settings holds for the phase repose too, unless it is told otherwise.
SHARED = ("prompt", "negative_prompt")
# What each phase is run as: the verb, and the method and its preset where that is settled.
RUN_AS: dict[str, tuple[str, dict[str, str]]] = {
    "remove": ("remove", {}),
    "paste": ("compose", {"name": "paste"}),
    "harmonize": ("compose", {}),
    "repose": ("compose", {"name": "freecompose", "preset": "semantic"}),
}


class MethodChoice(Form):
    """A method with all of its settings; as JSON they stand beside its name and preset."""

    name: str
    preset: str | None = None
    settings: InstanceOf[Settings]

    @classmethod
    def of(cls, value: Any, verb: str, default: Mapping[str, Any]) -> MethodChoice:
        """From a name, a mapping of name, preset and settings, or None.

        `default` says name and preset where the value does not. Raises InputError for a method
        that does not serve the verb, and for settings that it does not have or that are wrong.
        """
        values = as_mapping(value, "method")
        name, preset = as_text(values.pop("name", None), "method"), values.pop("preset", None)
        preset = as_text(preset, "preset")
        if name is None:
            name, preset = default["name"], preset or default.get("preset")
        method = methods.get(str(name), verb)
        if preset is not None:
            if not method.presets:
                raise InputError(f"method {method.name} has no presets; leave preset out.")
            if preset not in method.presets:
                raise InputError(
                    f"{method.name} has no preset {show(preset)}; {nearest(preset, method.presets)}"
                )
            values = {**method.presets[preset], **values}
        return cls(name=name, preset=preset, settings=validate_settings(method.settings, values))

    @property
    def method(self) -> Method:
        return methods.get(self.name)

    @model_serializer
    def _beside(self) -> dict[str, Any]:
        own = self.settings.model_dump(mode="json")
        return {"name": self.name, "preset": self.preset, **own}


def as_mapping(value: Any, word: str) -> dict[str, Any]:
    """What is said of a method, a name alone or a mapping, as a mapping; raises InputError."""
    if isinstance(value, MethodChoice):
        return value.model_dump()
    if value is None or isinstance(value, str):
        return {} if value is None else {"name": value}
    if not isinstance(value, Mapping):
        raise InputError(f"{word} is {show(value)}; expected a name, or a name with settings.")
    return dict(value)


class Step(NamedTuple):
    """A method that a request runs, as which verb, and in which phase where there are some."""

    phase: str | None
    verb: str
    choice: MethodChoice


def as_phases(value: Any, name: str) -> tuple[str, ...]:
    """Names of phases, as a list or comma-separated text; None is none."""
    if value is None or (isinstance(value, (list, tuple)) and not value):
        return ()
    if isinstance(value, str):
        value = [item.strip() for item in value.split(",")]
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise InputError(
            f"{name} is {show(value)}; expected names out of {', '.join(PHASES)}, in this order."
        )
    for item in value:
        if item not in PHASES:
            raise InputError(f"phase {show(item)} is unknown; {nearest(item, PHASES)}")
    ordered = tuple(item for item in PHASES if item in value)
    pastes = "paste" in ordered or ordered[-1:] == ("remove",)
    if tuple(value) != ordered or not pastes:
        raise InputError(
            f"{name} is {show(','.join(value))}; expected some of {', '.join(PHASES)}, each once "
            "and in this order, with paste before harmonize and repose."
        )
    return ordered


def main_phase(phases: Sequence[str]) -> str:
    """The phase that the method, the preset and the settings of a call are for."""
    return "harmonize" if "harmonize" in phases else phases[-1]


def choice_schema(verb: str) -> dict[str, Any]:
    """The JSON schema of a method for a verb: one alternative for each that serves it."""
    alternatives = []
    for name, method in methods.all_methods().items():
        if verb not in method.verbs:
            continue
        own = method.settings.model_json_schema()
        properties = {
            "name": {"const": name, "description": method.summary},
            "preset": {"enum": [None, *method.presets]},
            **own.get("properties", {}),
        }
        alternatives.append(
            {
                "type": "object",
                "title": name,
                "properties": properties,
                "required": ["name"],
                "additionalProperties": False,
            }
        )
    return {"oneOf": alternatives}
