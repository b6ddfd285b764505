"""The methods, a file or folder each: settings and the maths of a paper."""

from __future__ import annotations

import sys
import types
from typing import Any


class _Callable(types.ModuleType):
    """Lets `inlay.methods()` list the methods although `inlay.methods` is this package."""

    def __call__(self) -> dict[str, Any]:
        from inlay.methods.registry import all_methods

        return all_methods()


sys.modules[__name__].__class__ = _Callable
