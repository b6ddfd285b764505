"""What every file may use: the version, exceptions and their words, files replaced in one step."""

from __future__ import annotations

import difflib
import errno
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

__version__ = "0.1.0"

_SHOWN = 60
_SHOWN_NAME = 80


class InputError(ValueError):
    """The input or the request is wrong.

    The message is one sentence that names the input, what is wrong with it and what would be
    right; the command line prints it as it stands and exits with status 2.
    """


class Cancelled(Exception):  # noqa: N818 - the public name is a contract
    """Raised by a progress callback to stop a run; the run leaves no output behind."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, else all of them."""
    names = list(known)
    if not names:
        return "there are none."
    close = difflib.get_close_matches(name, names, 1, 0.5)
    if not close:
        folded = {other.lower(): other for other in names}
        close = [folded[n] for n in difflib.get_close_matches(name.lower(), folded, 1, 0.5)]
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(names)}."


def unsaved(role: str) -> InputError:
    """The error where a record needs a picture that was never a file."""
    return InputError(
        f"the {role} was handed over in memory, not as a file; the picture cannot be made again."
    )


def show(value: object) -> str:
    """A value as it stands in a message: quoted where it is text, never long."""
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def name_of(path: str | os.PathLike[str]) -> str:
    """A path's last part as it stands in a message: printable, on one line, never long."""
    try:
        text = os.fsdecode(path)
    except (TypeError, ValueError):
        return "picture"
    name = os.path.basename(text.rstrip("/\\")) or text
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= _SHOWN_NAME else name[: _SHOWN_NAME - 1] + "…"


def check_target(path: str | os.PathLike[str]) -> Path:
    """The file that writing to `path` will replace (links are followed).

    Raises InputError where it cannot be written: its folder is missing or closed to us, or the
    name is that of a folder, a pipe, a device or a read-only file. Leaves nothing behind.
    """
    name = name_of(path)
    try:
        target = Path(os.path.realpath(os.fspath(path)))
        if target.exists() and not target.is_file():
            raise InputError(f"{name} is a folder, pipe or device; expected a file to write.")
        if target.exists() and not os.access(target, os.W_OK):
            raise InputError(f"{name} is read-only; give another output file.")
        # Permissions alone do not tell: only a try shows full or read-only file systems.
        probe = _temporary(target)
        probe.touch(exist_ok=False)
        probe.unlink()
    except InputError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise _unwritable(name, error) from None
    return target


def replace_file(path: str | os.PathLike[str], write: Callable[[IO[bytes]], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it in place in one step.

    Whatever is raised, a listed file is either the old one or the whole new one, whose permissions
    are the old one's. Raises InputError where the system refuses.
    """
    target = check_target(path)
    temporary = _temporary(target)
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o7777)
        os.replace(temporary, target)
    except OSError as error:
        raise _unwritable(name_of(path), error) from None
    finally:
        temporary.unlink(missing_ok=True)


def move_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Move every (source, target), or none: what was there comes back where one cannot be moved.

    The folders of the sources hold what was there until all are moved. Raises InputError.
    """
    done: list[tuple[Path, Path, Path | None]] = []
    try:
        for number, (source, target) in enumerate(moves):
            kept = source.with_name(f"old-{number}") if os.path.lexists(target) else None
            done.append((source, target, kept))
            if kept is not None:
                if target.is_dir() and not target.is_symlink():
                    raise IsADirectoryError(errno.EISDIR, "Is a directory")
                try:
                    os.link(target, kept, follow_symlinks=False)
                except (OSError, NotImplementedError):
                    # Not every file system has links; then the old file steps aside.
                    os.replace(target, kept)
            os.replace(source, target)
    except BaseException as error:
        for source, target, kept in reversed(done):
            with suppress(OSError):
                if kept is not None and os.path.lexists(kept):
                    os.replace(kept, target)
                elif kept is None and not source.exists():
                    target.unlink()
        if isinstance(error, OSError):
            raise _unwritable(name_of(done[-1][1]), error) from None
        raise


def _temporary(target: Path) -> Path:
    return target.parent / f".inlay-{secrets.token_hex(8)}.tmp"


def _unwritable(name: str, error: Exception) -> InputError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        reason = "its folder does not exist"
    else:
        reason = getattr(error, "strerror", None) or "not a usable path"
    return InputError(f"{name} cannot be written ({reason}); give another output file.")
