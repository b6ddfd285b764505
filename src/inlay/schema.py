"""The knobs of a settings class, read from its pydantic schema.

Tables, sweeps and error messages are all made from this one reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

__all__ = ["Knob", "knobs"]

_NUMERIC = ("integer", "number")


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
        return self.type in (*_NUMERIC, "boolean", "choice")

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
        low, high = _number(self.minimum), _number(self.maximum)
        if low and high:
            return f"{low} to {high}"
        parts = [
            text
            for value, text in (
                (self.minimum, f"at least {low}"),
                (self.above, f"above {_number(self.above)}"),
                (self.maximum, f"at most {high}"),
                (self.below, f"below {_number(self.below)}"),
            )
            if value is not None
        ]
        return " and ".join(parts)

    @property
    def expected(self) -> str:
        """What a value must be, as it ends a sentence: "a number from 0 to 1"."""
        if self.type == "choice":
            text = "one of " + ", ".join(str(choice) for choice in self.choices)
        elif self.type == "boolean":
            text = "true or false"
        else:
            kind = {
                "integer": "a whole number",
                "number": "a finite number",
                "text": "text",
                "list": "a comma list",
            }.get(self.type, "another kind of value")
            bounds = self.bounds
            if self.minimum is not None and self.maximum is not None:
                text = f"{kind} from {bounds}"
            elif bounds and (self.max_length is not None or self.minimum is not None):
                text = f"{kind} of {bounds}"
            else:
                text = f"{kind} {bounds}".rstrip()
        return f"{text}, or none" if self.nullable else text

    def as_dict(self) -> dict[str, Any]:
        """For JSON: only what applies."""
        row: dict[str, Any] = {
            "name": self.name,
            "type": self.type,
            "description": self.description,
            "default": self.default,
        }
        for key in ("minimum", "maximum", "above", "below", "max_length", "pattern"):
            if getattr(self, key) is not None:
                row[key] = getattr(self, key)
        if self.choices:
            row["choices"] = list(self.choices)
        if self.nullable:
            row["nullable"] = True
        return row


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"


def knobs(settings: type[BaseModel]) -> dict[str, Knob]:
    """Every setting of a class by name, in the order of its definition."""
    schema = settings.model_json_schema()
    definitions = schema.get("$defs", {})
    found = {}
    for name, prop in schema.get("properties", {}).items():
        found[name] = _knob(name, prop, definitions, settings.model_fields[name].default)
    return found


def _knob(name: str, prop: dict[str, Any], definitions: dict[str, Any], default: Any) -> Knob:
    body = dict(prop)
    nullable = False
    options = body.get("anyOf", [])
    if options:
        rest = [option for option in options if option.get("type") != "null"]
        nullable = len(rest) < len(options)
        body.update(rest[0] if len(rest) == 1 else {"type": "other"})
    if "$ref" in body:
        body = {**definitions.get(body["$ref"].rsplit("/", 1)[-1], {}), **body}
    choices = tuple(body["enum"]) if "enum" in body else ()
    if "const" in body:
        choices = (body["const"],)
    kinds = {"string": "text", "array": "list"}
    kind = body.get("type", "other")
    return Knob(
        name=name,
        type="choice" if choices else kinds.get(kind, kind),
        description=str(body.get("description", "")),
        default=prop.get("default", default if default is None else str(default)),
        minimum=body.get("minimum"),
        maximum=body.get("maximum"),
        above=body.get("exclusiveMinimum"),
        below=body.get("exclusiveMaximum"),
        choices=choices,
        max_length=body.get("maxLength"),
        pattern=body.get("pattern"),
        nullable=nullable,
    )
