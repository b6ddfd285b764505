"""An interrupt that cannot get lost.

Python drops an exception that is raised while an object is finalised, KeyboardInterrupt too, and a
command that frees pictures all the time would then go on as if nobody had pressed Ctrl-C.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["check", "heard"]

_state = {"heard": False}


def _on_interrupt(number: int, frame: Any) -> None:
    del number, frame
    _state["heard"] = True
    raise KeyboardInterrupt


@contextmanager
def heard() -> Iterator[None]:
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


def check() -> None:
    """Raise KeyboardInterrupt where there was one, even if it was dropped."""
    if _state["heard"]:
        raise KeyboardInterrupt
