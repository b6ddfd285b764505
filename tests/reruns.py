"""Making pictures again, with all that the first refusal asks for."""

from __future__ import annotations

import io
import shlex
from contextlib import redirect_stderr

from inlay.cli import main


def needs(picture: str) -> list[str]:
    """The options that `inlay rerun` says are missing, as they can be pasted."""
    with redirect_stderr(io.StringIO()) as said:
        status = main(["rerun", picture, "-o", "needs.png", "--quiet"])
    sentence = said.getvalue()
    assert status == 2 and sentence.count("\n") == 1, sentence
    return shlex.split(sentence.partition("add ")[2].partition(" (what a record")[0])


def rerun(picture: str, output: str, *options: str) -> int:
    """The status of making a picture again, where something of it must be named."""
    return main(["rerun", picture, "-o", output, *needs(picture), *options])
