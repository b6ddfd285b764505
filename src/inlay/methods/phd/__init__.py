"""Paste, Inpaint and Harmonize: settings, the method, its stages, scenes in tiles."""

from inlay.methods.phd.method import METHOD

__all__ = ["METHOD"]
