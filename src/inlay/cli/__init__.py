"""The command line; `main` is its only way in."""

from __future__ import annotations

from inlay.cli.app import main

__all__ = ["main"]
