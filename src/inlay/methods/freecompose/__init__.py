"""FreeCompose: settings, the method, and what it compares with what."""

from inlay.methods.freecompose.method import METHOD

__all__ = ["METHOD"]
