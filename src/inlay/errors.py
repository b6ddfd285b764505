"""What every file may use: the version, exceptions and their words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__version__ = "0.1.0"

_SHOWN = 60
# What is echoed may be a stranger's: the longest word, and the longest sentence.
_LONGEST_WORD, _LONGEST = 200, 900


class InputError(ValueError):
    """The input or the request is wrong.

    The message is one sentence that names the input, what is wrong with it and what would be
    right; the command line prints it as it stands and exits with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(plain(message))


class Cancelled(Exception):  # noqa: N818 - the public name is a contract
    """Raised by a progress callback to stop a run; the run leaves no output behind."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, else all of them."""
    names = list(known)
    folded = {other.lower(): other for other in names}
    close = difflib.get_close_matches(name, names, 1, 0.5)
    close += [folded[n] for n in difflib.get_close_matches(name.lower(), folded, 1, 0.5)]
    if close:
        return f"did you mean {close[0]}?"
    return f"known are {', '.join(names)}." if names else "there are none."


def unsaved(role: str) -> InputError:
    """The error where a record needs a picture that was never a file."""
    return InputError(
        f"the {role} was handed over in memory, not as a file; the picture cannot be made again."
    )


def plain(text: str, longest: int = _LONGEST) -> str:
    """Text as one line that can be printed whoever wrote it: no control codes, nothing endless."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    line = re.sub(rf"(\S{{{_LONGEST_WORD - 1}}})\S\S+", r"\1…", line)
    half = longest // 2 - 2
    return line if len(line) <= longest else f"{line[:half]} … {line[-half:]}"


def show(value: object) -> str:
    """A value as it stands in a message: quoted where it is text, never long."""
    try:
        text = repr(value) if isinstance(value, str) else str(value)
    except RecursionError:
        text = "nested too deeply"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
