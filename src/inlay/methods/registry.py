"""Which methods there are, and which a request runs: with which settings, in which phases."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, InstanceOf, model_serializer

from inlay.errors import InputError, nearest, show
from inlay.methods.base import Method, Settings
from inlay.scene.subject import Subject
from inlay.settings import MAX_PICTURES, Form, as_text, as_whole, checked, knobs, validate_settings

_DIFFUSION = ("cdc", "freecompose", "phd", "dreamcom", "dreamedit", "inpaint")
_CLASSICAL = ("paste", "feather", "poisson", "reinhard", "telea", "patches")
_MODULES = (*_DIFFUSION, "exemplar", *_CLASSICAL)

# The default of a verb is the method that measures best, on the embedded checkpoint and on others.
_DEFAULTS = {"compose": "phd", "harmonize": "phd", "remove": "freecompose", "scene": "phd"}
_EMBEDDED_DEFAULTS = {**_DEFAULTS, "remove": "patches"}


def all_methods() -> dict[str, Method]:
    """Every method by name; loads no model and no torch."""
    return {name: get(name) for name in _MODULES}


def default_for(verb: str, concept: bool = False, family: str | None = None) -> str:
    """The method a verb uses when none is named; `concept` is for concepts as subjects, which the
    embedded checkpoint is too small to paint.
    """
    if concept:
        return "exemplar" if family else "dreamcom"
    return (_EMBEDDED_DEFAULTS if family else _DEFAULTS)[verb]


def facts_of(method: Method, family: str | None) -> dict[str, Any]:
    """What there is to say of a method, as JSON: with every setting, its bounds and its default."""
    return {
        "summary": method.summary,
        "source": method.source,
        "verbs": list(method.verbs),
        "default_for": defaults(method, family),
        "needs_model": method.needs_model,
        "invents": list(method.invents),
        "concepts": method.concepts,
        "presets": {key: dict(values) for key, values in method.presets.items()},
        "settings": [knob.as_dict() for knob in knobs(method.settings_on(family)).values()],
    }


def defaults(method: Method, family: str | None) -> list[str]:
    """The verbs that it is the default of, where concepts are the subjects if it is for those."""
    return [v for v in method.verbs if default_for(v, method.concepts, family) == method.name]


def family_named(model: Any) -> str | None:
    """The family of the model that a request names, as far as its name and family tell."""
    told = model if isinstance(model, Mapping) else getattr(model, "__dict__", {})
    return "embedded" if told.get("name", "embedded") == "embedded" else told.get("family")


def get(name: str, verb: str | None = None) -> Method:
    """A method by name; raises InputError for one that is unknown or does not serve the verb."""
    if name not in _MODULES:
        raise InputError(f"method {show(name)} is unknown; {nearest(str(name), _MODULES)}")
    # One that is another's way of working stands in its file.
    module, word = ("phd", "EXEMPLAR") if name == "exemplar" else (name, "METHOD")
    method: Method = getattr(importlib.import_module(f"inlay.methods.{module}"), word)
    if verb is not None and verb not in method.verbs:
        fits = ", ".join(n for n, m in all_methods().items() if verb in m.verbs)
        raise InputError(f"method {name!r} does not serve {verb}; use one of {fits}.")
    return method


# What settings were called in records of before.
_EARLIER = {("phd", "correction"): "amount"}
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


# The first picture's seed, and how many pictures there are.
Seed = Annotated[
    int,
    checked(partial(as_whole, least=0, most=2**63 - 1, spelt="2^63 - 1")),
    Field(json_schema_extra={"minimum": 0, "maximum": 2**63 - 1}),
]
Count = Annotated[
    int,
    checked(partial(as_whole, least=1, most=MAX_PICTURES, spelt=str(MAX_PICTURES))),
    Field(json_schema_extra={"minimum": 1, "maximum": MAX_PICTURES}),
]


class Model(Form):
    """A checkpoint, as for --model, with its LoRA and textual-inversion files; `family` says of one
    that `inlay train embedded` made that the embedded one's defaults hold for it.
    """

    name: str = "embedded"
    family: Literal["embedded"] | None = None
    device: str = "auto"
    dtype: str = "auto"
    memory: Literal["auto", "low", "balanced", "fast"] = "auto"
    loras: tuple[tuple[str, float], ...] = ()
    textual_inversions: tuple[str, ...] = ()


class MethodChoice(Form):
    """A method with all of its settings; as JSON they stand beside its name and preset."""

    name: str
    preset: str | None = None
    settings: InstanceOf[Settings]

    @classmethod
    def of(
        cls, value: Any, verb: str, default: Mapping[str, Any] | None = None, model: Any = None
    ) -> MethodChoice:
        """From a name, a mapping of name, preset and settings, or None.

        `default` says name and preset where the value does not, else the verb does. A setting that
        is None or not given is as it is best on the request's model, of which only name and family
        are asked. Raises InputError for a method that does not serve the verb, and for settings
        that are wrong.
        """
        values = as_mapping(value, "method")
        name = as_text(values.pop("name", None), "method")
        preset = as_text(values.pop("preset", None), "preset")
        if name is None:
            default = default or {"name": default_for(verb, family=family_named(model))}
            name, preset = default["name"], default.get("preset") if preset is None else preset
        method = get(name, verb)
        if preset is not None:
            if not method.presets:
                raise InputError(f"method {name} has no presets; leave preset out.")
            if preset not in method.presets:
                near = nearest(preset, method.presets)
                raise InputError(f"{name} has no preset {show(preset)}; {near}")
            values = {**method.presets[preset], **values}
        values = {_EARLIER.get((name, key), key): value for key, value in values.items()}
        known = method.settings.model_fields
        values = {k: v for k, v in values.items() if v is not None or k not in known}
        settings = validate_settings(method.settings_on(family_named(model)), values)
        return cls(name=name, preset=preset, settings=settings)

    @property
    def method(self) -> Method:
        return get(self.name)

    @model_serializer
    def _beside(self) -> dict[str, Any]:
        own = self.settings.model_dump(mode="json")
        return {"name": self.name, "preset": self.preset, **own}


def as_mapping(value: Any, word: str) -> dict[str, Any]:
    """What is said of a method, a name alone or a mapping, as a mapping; raises InputError."""
    if isinstance(value, MethodChoice):
        given = value.settings.model_dump(include=value.settings.model_fields_set)
        return {"name": value.name, "preset": value.preset, **given}
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping | None):
        raise InputError(f"{word} is {show(value)}; expected a name, or a name with settings.")
    return dict(value or {})


class Step(NamedTuple):
    """A method that a request runs, as which verb, and in which phase where there are some."""

    phase: str | None
    verb: str
    choice: MethodChoice

    def invents(self) -> str | None:
        """What of it paints things that are not there yet, as Method.invents calls it."""
        settings, method = self.choice.settings, self.choice.method
        names = (self.choice.preset, getattr(settings, "variant", None), self.verb, method.name)
        return next((name for name in names if name in method.invents), None)


def as_phases(value: Any, name: str) -> tuple[str, ...]:
    """Names of phases, as a list or comma-separated text; None is none."""
    if value is None or (isinstance(value, (list, tuple)) and not value):
        return ()
    listed = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
    items = listed if isinstance(listed, (list, tuple)) else ()
    for item in items:
        if isinstance(item, str) and item not in PHASES:
            raise InputError(f"phase {show(item)} is unknown; {nearest(item, PHASES)}")
    ordered = tuple(item for item in PHASES if item in items)
    pastes = "paste" in ordered or ordered[-1:] == ("remove",)
    if tuple(items) != ordered or not pastes:
        raise InputError(
            f"{name} is {show(value)}; expected some of {', '.join(PHASES)}, each once and in this "
            "order, with paste before harmonize and repose."
        )
    return ordered


def main_phase(phases: Sequence[str]) -> str:
    """The phase that the method, the preset and the settings of a call are for."""
    return "harmonize" if "harmonize" in phases else phases[-1]


def choice_schema(verb: str) -> dict[str, Any]:
    """The JSON schema of a method for a verb: one alternative for each that serves it."""

    def alternative(method: Method) -> dict[str, Any]:
        properties = {
            "name": {"const": method.name, "description": method.summary},
            "preset": {"enum": [None, *method.presets]},
            **method.settings_on("embedded").model_json_schema().get("properties", {}),
        }
        shape = {"required": ["name"], "additionalProperties": False}
        return {"type": "object", "title": method.name, "properties": properties, **shape}

    fitting = (method for method in all_methods().values() if verb in method.verbs)
    return {"oneOf": [alternative(method) for method in fitting]}


def check_kinds(subjects: Sequence[Subject], steps: Sequence[Step], joint: bool) -> None:
    """Raises InputError where the subjects are not of the kind that a method takes."""
    concepts = [subject.concept for subject in subjects if subject.concept]
    painted = False
    for method in (step.choice.method for step in steps):
        if method.concepts and len(concepts) < len(subjects):
            raise InputError(
                f"{method.name} puts in concepts that `inlay learn` has made, and one of the "
                "subjects is a picture; learn it first, or use another method."
            )
        painted |= method.paints_concepts
    if concepts and painted and joint:
        raise InputError("concepts are put in one after the other; leave out together.")
