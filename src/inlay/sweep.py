"""Settings as a user types them: KEY=VALUE, lists that sweep, and errors in one sentence."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from inlay.errors import InputError
from inlay.schema import Knob, knobs

__all__ = ["MAX_PICTURES", "check_count", "nearest", "parse_sets", "validate_settings"]

MAX_PICTURES = 64
_SHOWN = 60

T = TypeVar("T", bound=BaseModel)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, else all of them."""
    names = list(known)
    if not names:
        return "there are none."
    close = difflib.get_close_matches(name, names, 1, 0.5)
    if not close:
        folded = {other.lower(): other for other in names}
        close = [folded[n] for n in difflib.get_close_matches(name.lower(), folded, 1, 0.5)]
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}."


def show(value: object) -> str:
    """A value as it stands in a message: quoted where it is text, never long."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


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
        first = error.errors(include_url=False)[0]
        if not first["loc"]:
            raise InputError(_reason(first)) from None
        key = str(first["loc"][0])
        if first["type"] in ("value_error", "assertion_error"):
            raise InputError(f"{key} is {show(values.get(key))}: {_reason(first)}") from None
        value = values.get(key, first.get("input"))
        raise InputError(f"{key} is {show(value)}; expected {table[key].expected}.") from None


def _reason(error: Mapping[str, Any]) -> str:
    cause = error.get("ctx", {}).get("error")
    text = " ".join(str(cause or error["msg"]).split())
    return text if text.endswith((".", "?", "!")) else text + "."


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
    count = math.prod(len(values) for values in lists.values())
    if count > MAX_PICTURES:
        raise InputError(
            f"the lists ask for {count} pictures; a sweep makes at most {MAX_PICTURES}."
        )
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
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _label(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    text = repr(value) if isinstance(value, float) else str(value)
    return text.removesuffix(".0")
