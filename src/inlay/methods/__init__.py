"""The registry: one line a method; nothing is imported until it is asked for."""

from __future__ import annotations

import difflib
import importlib
import sys
import types

from inlay.errors import InputError
from inlay.methods.base import Method

__all__ = ["all_methods", "default_for", "get"]

_MODULES = (
    "cdc",
    "freecompose",
    "phd",
    "dreamcom",
    "dreamedit",
    "inpaint",
    "paste",
    "feather",
    "poisson",
    "reinhard",
    "telea",
)

# The default of a verb is the method that measures best on the embedded checkpoint.
_DEFAULTS = {"compose": "phd", "harmonize": "phd", "remove": "freecompose", "scene": "phd"}
# Of compose where the subject is a concept.
_CONCEPT = "dreamcom"


def _load(name: str) -> Method:
    method: Method = importlib.import_module(f"inlay.methods.{name}").METHOD
    return method


def all_methods() -> dict[str, Method]:
    """Every method by name; loads no model and no torch."""
    return {name: _load(name) for name in _MODULES}


def default_for(verb: str, concept: bool = False) -> str:
    """The method a verb uses when none is named; `concept` is for concepts as subjects."""
    return _CONCEPT if concept else _DEFAULTS[verb]


def get(name: str, verb: str | None = None) -> Method:
    """A method by name, checked against a verb.

    Raises InputError for an unknown name (with the nearest one) or a method that does not serve
    the verb (with those that do).
    """
    if name not in _MODULES:
        near = difflib.get_close_matches(str(name), _MODULES, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_MODULES)}."
        raise InputError(f"method {name!r} is unknown; {hint}")
    method = _load(name)
    if verb is not None and verb not in method.verbs:
        fits = ", ".join(n for n, m in all_methods().items() if verb in m.verbs)
        raise InputError(f"method {name!r} does not serve {verb}; use one of {fits}.")
    return method


class _Callable(types.ModuleType):
    """Lets `inlay.methods()` list the methods although `inlay.methods` is this package."""

    def __call__(self) -> dict[str, Method]:
        return all_methods()


sys.modules[__name__].__class__ = _Callable
