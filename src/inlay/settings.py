"""The settings of a method or of a training: bounds, sweeps typed as KEY=a,b, errors in a sentence.

Tables, sweeps and messages are all made from one reading of a settings class's pydantic schema. The
bounds themselves stand there: of all methods in methods/base.py, of one in its own file.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from inlay.errors import InputError, nearest, show

MAX_PICTURES = 64

T = TypeVar("T", bound=BaseModel)

# What JSON schema calls the bounds of a value, and what a knob does.
_LIMITS = {
    "minimum": "minimum",
    "maximum": "maximum",
    "exclusiveMinimum": "above",
    "exclusiveMaximum": "below",
    "maxLength": "max_length",
    "pattern": "pattern",
}
_KINDS = {"string": "text", "array": "list"}


@dataclass(frozen=True)
class Knob:
    """One setting: its type ("integer", "number", "boolean", "choice", "text", "list", "other"),
    bounds, choices and default.
    """

    name: str
    type: str
    description: str
    default: Any
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] = ()
    max_length: int | None = None
    pattern: str | None = None
    nullable: bool = False

    @property
    def sweepable(self) -> bool:
        """Whether a comma list means one picture for each value (text is taken whole)."""
        return self.type in ("integer", "number", "boolean", "choice")

    @property
    def bounds(self) -> str:
        """The allowed values in words, such as "0 to 1"; empty where there is no bound."""
        if self.choices:
            return ", ".join(str(choice) for choice in self.choices)
        if self.type == "boolean":
            return "true, false"
        if self.max_length is not None:
            return f"at most {self.max_length} characters"
        if self.pattern is not None:
            return f"matching {self.pattern}"
        if self.minimum is not None and self.maximum is not None:
            return f"{self.minimum:.10g} to {self.maximum:.10g}"
        words = {"at least": self.minimum, "above": self.above}
        words |= {"at most": self.maximum, "below": self.below}
        known = {word: limit for word, limit in words.items() if limit is not None}
        return " and ".join(f"{word} {limit:.10g}" for word, limit in known.items())

    @property
    def expected(self) -> str:
        """What a value must be, as it ends a sentence: "a number from 0 to 1"."""
        kinds = {
            "choice": f"one of {self.bounds}",
            "boolean": "true or false",
            "integer": "a whole number",
            "number": "a finite number",
            "text": "text",
            "list": "a comma list",
        }
        text = kinds.get(self.type, "another kind of value")
        if self.type not in ("choice", "boolean") and self.bounds:
            both = self.minimum is not None and self.maximum is not None
            of = self.max_length is not None or self.minimum is not None
            text += f"{' from' if both else ' of' if of else ''} {self.bounds}"
        return f"{text}, or none" if self.nullable else text

    def as_dict(self) -> dict[str, Any]:
        """For JSON: only what applies."""
        always = ("name", "type", "description", "default")
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if key in always or (value is not None and value is not False and value != ())
        }


@functools.cache
def knobs(settings: type[BaseModel]) -> dict[str, Knob]:
    """Every setting of a class by name, in the order of its definition."""
    schema, table = settings.model_json_schema(), {}
    for name, prop in schema.get("properties", {}).items():
        body, options = dict(prop), prop.get("anyOf", [])
        rest = [option for option in options if option.get("type") != "null"]
        if options:
            body |= rest[0] if len(rest) == 1 else {"type": "other"}
        if "$ref" in body:
            body = {**schema["$defs"][body["$ref"].rsplit("/", 1)[-1]], **body}
        choices = (body["const"],) if "const" in body else tuple(body.get("enum", ()))
        kind: str = body.get("type", "other")
        default = settings.model_fields[name].default
        table[name] = Knob(
            name=name,
            type="choice" if choices else _KINDS.get(kind, kind),
            description=str(body.get("description", "")),
            default=prop.get("default", default if default is None else str(default)),
            choices=choices,
            nullable=len(rest) < len(options),
            **{limit: body[word] for word, limit in _LIMITS.items() if word in body},
        )
    return table


def default(published: Any, *, embedded: Any, **bounds: Any) -> Any:
    """A field whose default is the published value, and another on the embedded checkpoint."""
    return Field(published, json_schema_extra={"embedded": embedded}, **bounds)


def tuned_defaults(settings: type[BaseModel]) -> dict[str, Any]:
    """The defaults of a class that are others on the embedded checkpoint, as they are there."""
    extras = {name: field.json_schema_extra for name, field in settings.model_fields.items()}
    return {n: extra["embedded"] for n, extra in extras.items() if isinstance(extra, Mapping)}


def published(settings: type[BaseModel], **values: Any) -> dict[str, Any]:
    """The published defaults and some more values: a preset that is the same on all checkpoints."""
    return {n: settings.model_fields[n].default for n in tuned_defaults(settings)} | values


@functools.cache
def tuned(settings: type[T]) -> type[T]:
    """A settings class with its defaults on the embedded checkpoint; all else is as it was."""
    changed: dict[str, Any] = {}
    for name, value in tuned_defaults(settings).items():
        field = copy.copy(settings.model_fields[name])
        field.default = value
        changed[name] = field.annotation, field
    name, module = settings.__name__, settings.__module__
    return create_model(name, __base__=settings, __module__=module, **changed)


def validate_settings(settings: type[T], values: Mapping[str, Any]) -> T:
    """An instance of a settings class from plain values.

    Raises InputError with one sentence for the first thing that is wrong: an unknown key (with
    the nearest name), or a value of the wrong kind or out of bounds (with the key, the value and
    the bounds).
    """
    table = knobs(settings)
    for key in values:
        if key not in table:
            raise InputError(f"setting {show(str(key))} is unknown; {nearest(str(key), table)}")
    try:
        return settings.model_validate(dict(values))
    except ValidationError as error:
        raise _refusal(error, settings, values) from None


def _refusal(
    error: ValidationError, kind: type[BaseModel], values: Mapping[str, Any]
) -> InputError:
    """One sentence for the first thing that is wrong with a model's values."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return cause
    if first["type"] == "extra_forbidden":
        return InputError(f"{show(place)} is unknown; {nearest(place, kind.model_fields)}")
    if first["type"] == "missing":
        return InputError(f"{place} is missing; give it.")
    knob, reason = knobs(kind).get(place), " ".join(str(cause or first["msg"]).split())
    if cause is None and knob is not None:
        reason = f"expected {knob.expected}."
    reason += "" if reason.endswith((".", "?", "!")) else "."
    if not place:
        return InputError(reason)
    value = show(values.get(place, first["input"]))
    return InputError(f"{place} is {value}{';' if cause is None else ':'} {reason}")


def parse_sets(
    items: Sequence[str],
    settings: type[BaseModel],
    base: Mapping[str, Any] | None = None,
) -> list[tuple[str, dict[str, Any]]]:
    """Read "KEY=VALUE" items into one (label, values) for each picture to make.

    A comma list for a numeric, boolean or choice setting is a sweep; several lists multiply, the
    last one varying fastest. Text is taken whole. `base` holds settings that come from elsewhere
    (a preset, flags): each variant is checked together with them, but returned without them.
    Labels read "T_in=0.25,N_in=2"; without a list there is one variant with an empty label.
    Raises InputError for a malformed item, an unknown or repeated key, a value out of bounds, or
    more than MAX_PICTURES variants.
    """
    table = knobs(settings)
    lists: dict[str, list[Any]] = {}
    for item in items:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(f"--set {show(item)} is not a setting; expected KEY=VALUE.")
        if key not in table:
            raise InputError(f"setting {show(key)} is unknown; {nearest(key, table)}")
        if key in lists:
            raise InputError(
                f"setting {key} is given twice; give it once, with a comma list to sweep it."
            )
        lists[key] = _values(table[key], text)
    check_count(math.prod(len(values) for values in lists.values()))
    variants = []
    for chosen in itertools.product(*lists.values()):
        values = dict(zip(lists, chosen, strict=True))
        validate_settings(settings, {**(base or {}), **values})
        swept = [f"{key}={_label(values[key])}" for key in lists if len(lists[key]) > 1]
        variants.append((",".join(swept), values))
    return variants


def check_count(count: int) -> None:
    """Raises InputError where so many pictures are more than a command makes."""
    if count > MAX_PICTURES:
        raise InputError(
            f"the lists and --num-images ask for {count} pictures; at most {MAX_PICTURES} are made."
        )


def _values(knob: Knob, text: str) -> list[Any]:
    if knob.type == "text":
        return [None] if knob.nullable and text.lower() in ("none", "null") else [text]
    pieces = [piece.strip() for piece in text.split(",")]
    if not knob.sweepable:
        return [[_plain(piece) for piece in pieces]]
    if len(pieces) > 1 and "" in pieces:
        raise InputError(
            f"the list for {knob.name} is {show(text)}; an item is missing between the commas."
        )
    values: list[Any] = []
    for piece in pieces:
        value = _value(knob, piece)
        if value not in values:
            values.append(value)
    return values


def _value(knob: Knob, text: str) -> Any:
    """One value of a setting; whatever does not read as one is left for the check to refuse."""
    if knob.nullable and text.lower() in ("none", "null"):
        return None
    if knob.type == "boolean":
        words = {"true": True, "yes": True, "on": True, "1": True}
        words |= {"false": False, "no": False, "off": False, "0": False}
        return words.get(text.lower(), text)
    if knob.type == "choice":
        return next((choice for choice in knob.choices if str(choice) == text), text)
    return _plain(text)


def _plain(text: str) -> Any:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _label(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    text = repr(value) if isinstance(value, float) else str(value)
    return text.removesuffix(".0")


class Form(BaseModel):
    """A model whose errors are InputErrors: one sentence for the first thing that is wrong."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _refusal(error, type(self), values) from None


def as_flag(value: Any, name: str) -> bool:
    """True or False, numpy's too; raises InputError for anything else."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise InputError(f"{name} is {show(value)}; expected True or False.")


def as_number(value: Any, name: str, expected: str) -> float:
    with suppress(OverflowError):
        if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    raise InputError(f"{name} is {show(value)}; expected {expected}.")


def as_numbers(value: Any, name: str, count: int, expected: str) -> list[float]:
    listed = value.tolist() if isinstance(value, np.ndarray) else value
    with suppress(InputError):
        if isinstance(listed, (list, tuple)) and len(listed) == count:
            return [as_number(item, name, expected) for item in listed]
    raise InputError(f"{name} is {show(value)}; expected {expected}.")


def as_whole(value: Any, name: str, least: int, most: int, spelt: str) -> int:
    """A whole number between two; `spelt` is how a sentence calls the larger one."""
    number = isinstance(value, Integral) and not isinstance(value, bool)
    if number and least <= int(value) <= most:
        return int(value)
    raise InputError(f"{name} is {show(value)}; expected a whole number from {least} to {spelt}.")


def checked(read: Callable[[Any, str], Any]) -> BeforeValidator:
    """A check that is told the name of its field."""
    return BeforeValidator(lambda value, info: read(value, str(info.field_name)))


def as_text(value: Any, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise InputError(f"{name} is {show(value)}; expected text or None.")
