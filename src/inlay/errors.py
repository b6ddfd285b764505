"""The two exceptions that callers of inlay meet."""

from __future__ import annotations

__all__ = ["Cancelled", "InputError"]


class InputError(ValueError):
    """The input or the request is wrong.

    The message is one sentence that names the input, what is wrong with it and what would be
    right; the command line prints it as it stands and exits with status 2.
    """


class Cancelled(Exception):  # noqa: N818 - the public name is a contract
    """Raised by a progress callback to stop a run; the run leaves no output behind."""
