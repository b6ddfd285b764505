"""Files as such: what to call them, reading them whole, replacing them in one step.

Also what training and benchmarks agree on about a folder of pictures: names, and who is held out.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from inlay.errors import InputError

MAX_FILE_BYTES = 1 << 30
FORMATS = "PNG, JPEG, WebP, AVIF, TIFF, BMP or GIF"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
# A folder of this name holds masks of the pictures beside it.
MASKS = "masks"
_MAX_NAME = 80


def shown(path: str | os.PathLike[str]) -> str:
    """A path's last part as it can stand in a one-line message."""
    try:
        text = os.fsdecode(path)
    except (TypeError, ValueError):
        return "picture"
    name = os.path.basename(text.rstrip("/\\")) or text
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"


def read_file(path: str | os.PathLike[str], name: str) -> bytes:
    """The bytes of a regular file; InputError for all else, before a pipe or device is opened."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{name} is a folder; expected a picture file.")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{name} is a pipe or device; expected a picture file.")
        if status.st_size > MAX_FILE_BYTES:
            raise InputError(
                f"{name} is {status.st_size / 2**30:.1f} GiB; expected a file of at most "
                f"{MAX_FILE_BYTES // 2**30} GiB."
            )
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES)
    except FileNotFoundError:
        raise InputError(f"{name} does not exist; expected a picture file.") from None
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or "not a usable path"
        raise InputError(f"{name} cannot be read ({reason}); expected a picture file.") from None
    except MemoryError:
        raise InputError(f"{name} does not fit into memory; expected a smaller file.") from None
    if not data:
        raise InputError(f"{name} is empty; expected a {FORMATS} picture.")
    return data


def check_target(path: str | os.PathLike[str]) -> Path:
    """The file that writing to `path` will replace (links are followed).

    Raises InputError where it cannot be written: its folder is missing or closed to us, or the
    name is that of a folder, a pipe, a device or a read-only file. Leaves nothing behind.
    """
    name = shown(path)
    try:
        target = Path(os.path.realpath(os.fspath(path)))
        if not target.parent.is_dir():
            raise InputError(
                f"{name} cannot be written: its folder does not exist; make the folder first."
            )
        try:
            status = os.stat(target)
        except FileNotFoundError:
            status = None
        if status is not None:
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{name} is a folder, pipe or device; expected a file to write.")
            if not os.access(target, os.W_OK):
                raise InputError(f"{name} is read-only; give another output file.")
        # Permissions alone do not tell: only a try shows full or read-only file systems.
        probe = _temporary(target)
        with open(probe, "xb"):
            pass
        os.unlink(probe)
    except (OSError, ValueError, TypeError) as error:
        raise _unwritable(name, error) from None
    return target


def replace_file(path: str | os.PathLike[str], write: Callable[[IO[bytes]], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it in place in one step.

    Whatever is raised, a listed file is either the old one or the whole new one. Raises InputError
    where the system refuses.
    """
    target = check_target(path)
    temporary = _temporary(target)
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise _unwritable(shown(path), error) from None
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
            raise _unwritable(shown(done[-1][1]), error) from None
        raise


def _temporary(target: Path) -> Path:
    return target.parent / f".inlay-{secrets.token_hex(8)}.tmp"


def _unwritable(name: str, error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    reason = getattr(error, "strerror", None) or "not a usable path"
    return InputError(f"{name} cannot be written ({reason}); give another output file.")


def is_held_out(file_name: str, share: int = 20) -> bool:
    """Whether a file belongs to the held-out split: one in `share`, by the hash of its name."""
    digest = hashlib.sha256(file_name.encode()).digest()
    return int.from_bytes(digest[:8], "big") % share == 0


def picture_names(root: Path) -> list[str]:
    """Names of the pictures below a folder, relative to it, sorted; masks/ holds none."""
    names = []
    for here, folders, files in os.walk(root):
        if Path(here) == root and MASKS in folders:
            folders.remove(MASKS)
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [
            (Path(here) / file).relative_to(root).as_posix()
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        ]
    return sorted(names)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes; raises OSError where it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
