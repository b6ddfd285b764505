"""What a user sees while a picture is made: a bar, notes, previews; all on standard error.

And interrupts that cannot get lost: Python drops an exception that is raised while an object is
finalised, KeyboardInterrupt too, and a command that frees pictures all the time would then go on
as if nobody had pressed Ctrl-C.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Listener:
    """Hears steps and notes; draws a bar on a terminal, keeps quiet elsewhere.

    On a terminal notes appear at once. Where standard error is a file or a pipe they are held
    back until the work is done, so that a failure leaves one sentence and nothing else.
    """

    def __init__(self, *, quiet: bool, bar: bool, preview_file: Path | None = None) -> None:
        self.live = bar and not quiet and sys.stderr.isatty()
        self.quiet = quiet
        self.preview_file = preview_file
        self.label = ""
        self._phase = ""
        self._previewed = False
        self._notes: list[str] = []
        self._progress: Any = None
        self._task: Any = None

    def note(self, line: str) -> None:
        """Say something once."""
        line = " ".join(line.split())
        if line in self._notes:
            return
        self._notes.append(line)
        if self.live and self._progress is not None:
            self._progress.console.print(line, markup=False, highlight=False)

    def step(self, number: int, total: int, preview: Any | None = None) -> None:
        """The callback that a Composer calls."""
        if self._progress is not None:
            description = ", ".join(filter(None, (self.label, self._phase))) or "denoising"
            self._progress.update(
                self._task, completed=number, total=total, description=description
            )
        if preview is not None and self.preview_file is not None:
            from inlay.pictures.read import read_picture
            from inlay.pictures.write import write_picture

            picture = read_picture(preview, role="preview")
            # Only the first one may find the name free; later ones replace what we wrote.
            write_picture(picture, self.preview_file, overwrite=self._previewed)
            self._previewed = True

    def phase(self, name: str) -> None:
        """What the next steps are part of, where a picture is made in phases."""
        self._phase = name

    def start(self) -> None:
        if not self.live:
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("getting ready", total=None)
        self._progress.start()

    def stop(self, *, worked: bool) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        elif worked and not self.quiet:
            for line in self._notes:
                print(line, file=sys.stderr)
        if self.preview_file is not None and self._previewed:
            self.preview_file.unlink(missing_ok=True)


class _Handler(logging.Handler):
    def __init__(self, listener: Listener) -> None:
        super().__init__(logging.INFO)
        self.listener = listener

    def emit(self, record: logging.LogRecord) -> None:
        self.listener.note(record.getMessage())


@contextmanager
def listening(
    *, quiet: bool = False, bar: bool = True, preview_file: Path | None = None
) -> Iterator[Listener]:
    """Listen to inlay's log and to a Composer's steps for the length of the block."""
    listener = Listener(quiet=quiet, bar=bar, preview_file=preview_file)
    logger = logging.getLogger("inlay")
    before = (logger.level, logger.propagate)
    handler = _Handler(listener)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    worked = False
    listener.start()
    try:
        yield listener
        worked = True
    finally:
        listener.stop(worked=worked)
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def hush() -> None:
    """Keep the libraries below from writing to the terminal; INLAY_DEBUG=1 lets them."""
    if os.environ.get("INLAY_DEBUG") == "1":
        return
    import warnings

    warnings.filterwarnings("ignore")
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("DIFFUSERS_VERBOSITY", "error"),
        ("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TQDM_DISABLE", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("OPENCV_LOG_LEVEL", "SILENT"),
    ):
        os.environ.setdefault(name, value)


_state = {"heard": False}


def _on_interrupt(number: int, frame: Any) -> None:
    del number, frame
    _state["heard"] = True
    raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it interrupts are noted as they are raised; a handler of somebody else's stays."""
    own = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    _state["heard"] = False
    if own:
        signal.signal(signal.SIGINT, _on_interrupt)
    try:
        yield
    finally:
        if own:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def raise_interrupt() -> None:
    """Raise KeyboardInterrupt where there was one, even if it was dropped."""
    if _state["heard"]:
        raise KeyboardInterrupt
