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
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from inlay.errors import InputError, nearest, show

MAX_PICTURES = 64

T = TypeVar("T", bound=BaseModel)
BatchSize = int | Literal["auto"]

# What JSON schema calls the bounds of a value, what a knob does, and words for them.
_LIMITS = {
    "minimum": ("minimum", "at least {:.10g}"),
    "exclusiveMinimum": ("above", "above {:.10g}"),
    "maximum": ("maximum", "at most {:.10g}"),
    "exclusiveMaximum": ("below", "below {:.10g}"),
    "maxLength": ("max_length", "at most {} characters"),
    "pattern": ("pattern", "matching {}"),
}
_WORDS = dict(_LIMITS.values())
_KINDS = {"string": "text", "array": "list"}
# Text that stands for a value: of a boolean, and of none at all.
_TRUTHS = {"true": True, "yes": True, "on": True, "1": True}
_TRUTHS |= {"false": False, "no": False, "off": False, "0": False}
_NONE = ("none", "null")


@dataclass(frozen=True)
class Knob:
    """One setting: its type ("integer", "number", "boolean", "choice", "text", "list", "other"),
    default, bounds by the names in _LIMITS, and choices.
    """

    name: str
    type: str
    description: str
    default: Any
    limits: Mapping[str, Any]
    choices: tuple[Any, ...] = ()
    nullable: bool = False

    @property
    def bounds(self) -> str:
        """The allowed values in words, such as "0 to 1"; empty where there is no bound."""
        if self.choices:
            return ", ".join(str(choice) for choice in self.choices)
        if self.type == "boolean":
            return "true, false"
        if {"minimum", "maximum"} <= self.limits.keys():
            return "{minimum:.10g} to {maximum:.10g}".format(**self.limits)
        known = (word for word in _WORDS if word in self.limits)
        return " and ".join(_WORDS[word].format(self.limits[word]) for word in known)

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
        if self.limits and self.type not in ("choice", "boolean"):
            both = {"minimum", "maximum"} <= self.limits.keys()
            of = self.limits.keys() & {"minimum", "max_length"}
            text += f"{' from' if both else ' of' if of else ''} {self.bounds}"
        return f"{text}, or none" if self.nullable else text

    def as_dict(self) -> dict[str, Any]:
        """For JSON: only what applies."""
        own = asdict(self)
        limits, more = own.pop("limits"), {"choices": [*own.pop("choices")]}
        more |= {"nullable": own.pop("nullable")}
        return {**own, **limits, **{key: value for key, value in more.items() if value}}


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
            limits={known: body[word] for word, (known, _) in _LIMITS.items() if word in body},
            choices=choices,
            nullable=len(rest) < len(options),
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
        word = "" if issubclass(kind, Form) else "setting "
        return InputError(f"{word}{show(place)} is unknown; {nearest(place, kind.model_fields)}")
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
    prefix: str = "",
) -> list[tuple[str, dict[str, Any]]]:
    """Read "KEY=VALUE" items into one (label, values) for each picture to make.

    A comma list for a numeric, boolean or choice setting is a sweep; several lists multiply, the
    last one varying fastest. Text is taken whole. `base` holds settings that come from elsewhere
    (a preset, flags): each variant is checked together with them, but returned without them.
    Labels read "T_in=0.25,N_in=2", each key after `prefix`; without a list there is one variant
    with an empty label.
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
        swept = [f"{prefix}{key}={value_text(values[key])}" for key in lists if len(lists[key]) > 1]
        variants.append((",".join(swept), values))
    return variants


def parse_values(items: Sequence[str], settings: type[BaseModel]) -> dict[str, Any]:
    """As `parse_sets` where there is nothing to sweep: a list is refused."""
    variants = parse_sets(items, settings)
    if len(variants) > 1:
        raise InputError("settings take no lists here; give one variant for each value.")
    return variants[0][1]


def check_count(count: int) -> None:
    """Raises InputError where so many pictures are more than a command makes."""
    if count > MAX_PICTURES:
        raise InputError(
            f"the lists and --num-images ask for {count} pictures; at most {MAX_PICTURES} are made."
        )


def _values(knob: Knob, text: str) -> list[Any]:
    if knob.type == "text":
        return [None] if knob.nullable and text.lower() in _NONE else [text]
    pieces = [piece.strip() for piece in text.split(",")]
    if knob.type not in ("integer", "number", "boolean", "choice"):
        return [[_plain(piece) for piece in pieces]]
    if len(pieces) > 1 and "" in pieces:
        raise InputError(
            f"the list for {knob.name} is {show(text)}; an item is missing between the commas."
        )
    # Equal values make one picture.
    return list(dict.fromkeys(_value(knob, piece) for piece in pieces))


def _value(knob: Knob, text: str) -> Any:
    """One value of a setting; whatever does not read as one is left for the check to refuse."""
    if knob.nullable and text.lower() in _NONE:
        return None
    if knob.type == "boolean":
        return _TRUTHS.get(text.lower(), text)
    if knob.type == "choice":
        return next((choice for choice in knob.choices if str(choice) == text), text)
    return _plain(text)


def _plain(text: str) -> Any:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def value_text(value: Any) -> str:
    """A value as it may be typed after KEY=."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return str(value).removesuffix(".0")


class Form(BaseModel):
    """A model whose errors are InputErrors: one sentence for the first thing that is wrong."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, defer_build=True
    )

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _refusal(error, type(self), values) from None


def as_flag(value: Any, name: str) -> bool:
    """True or False, numpy's too; raises InputError for anything else."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise InputError(f"{name} is {show(value)}; expected True or False.")


def as_batch_size(value: Any) -> BatchSize:
    """A batch size from a number or its text; raises InputError."""
    text = str(value)
    if text == "auto" or (text.isdecimal() and 1 <= int(text[:9]) <= MAX_PICTURES):
        return "auto" if text == "auto" else int(text)
    raise InputError(f"batch_size is {show(value)}; expected 1 to {MAX_PICTURES}, or auto.")


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
