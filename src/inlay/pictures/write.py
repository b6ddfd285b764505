"""Writing pictures in the format of their suffix, and any file in one step.

What a format can hold is kept as it is; what it cannot hold is reduced, and the log says so. PNG
and TIFF keep every sample; JPEG is written at quality 95 without chroma subsampling, or with the
blocks that it had, WebP at quality 95, AVIF at 90. The record is a text of its own in PNG, the
ImageDescription of a TIFF, else EXIF's UserComment. libvips encodes all but BMP.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Literal

import pyvips
from PIL import Image as PilImage

from inlay.errors import InputError
from inlay.pictures.arrays import Box
from inlay.pictures.picture import Picture, name_of
from inlay.pictures.read import PHOTOSHOP

_log = logging.getLogger("inlay")


@dataclass(frozen=True)
class _Format:
    """What a format holds, how libvips writes it, and in which of its fields the record goes.

    facts: what it keeps of a picture's, but for the resolution.
    """

    name: str
    modes: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    record: str = "exif-ifd2-UserComment"
    deep: bool = False
    facts: tuple[str, ...] = ("exif-data", "xmp-data")


_ALL = ("L", "LA", "RGB", "RGBA")
_FACTS = ("exif-data", "xmp-data", "iptc-data")
_JPEG_OPTIONS = {"Q": 95, "subsample_mode": "off"}
_TIFF_OPTIONS = {"compression": "deflate", "predictor": "horizontal", "level": 4}
_PNG = _Format("PNG", _ALL, {"compression": 3, "filter": "up"}, "png-comment-0-inlay", True)
_JPEG = _Format("JPEG", ("L", "RGB", "CMYK"), _JPEG_OPTIONS, facts=_FACTS)
_WEBP = _Format("WebP", ("RGB", "RGBA"), {"Q": 95})
_AVIF = _Format("AVIF", ("RGB", "RGBA"), {**_JPEG_OPTIONS, "Q": 90})
_TIFF = _Format("TIFF", (*_ALL, "CMYK"), _TIFF_OPTIONS, "image-description", True, _FACTS[1:])
_BMP = _Format("BMP", ("L", "RGB"), record="", facts=())
_SUFFIXES = {
    ".png": _PNG, ".jpg": _JPEG, ".jpeg": _JPEG, ".webp": _WEBP, ".avif": _AVIF,
    ".tif": _TIFF, ".tiff": _TIFF, ".bmp": _BMP,
}  # fmt: skip
_LOSS = "JPEG encodes it anew, which changes pixels outside the region by up to %d, %.2f on average"
# The longest record of a JPEG: a segment of 65535 bytes, in which libvips adds some fields.
_JPEG_RECORD = 64900
# 72 dots an inch, in pixels a millimetre: what files say that say nothing.
_DENSITY = 72 / 25.4


def check_output(path: str | os.PathLike[str]) -> None:
    """Whether a picture can be written to `path`; InputError where not. Leaves nothing behind."""
    _format(path)
    check_target(path)


def write_picture(
    picture: Picture,
    path: str | os.PathLike[str],
    *,
    record: str | None = None,
    files: Files | None = None,
) -> None:
    """Write a picture; size, mode, depth and profile stay as far as the format holds them.

    The format follows the suffix: png, jpg, jpeg, webp, avif, tif, tiff, bmp. `record` (JSON in
    ASCII) goes into the file, which is put in place in one step, or with other `files`. Raises
    InputError for an unknown suffix, a missing folder, a place that cannot be written, or a picture
    that the format cannot hold.
    """
    form = _format(path)
    name = name_of(path)
    opaque = picture.mode != picture.kind and "RGBA" not in form.modes
    shallow = picture.depth == 16 and not form.deep
    mode = picture.kind if opaque else picture.mode
    srgb = mode not in form.modes or (picture.icc is not None and not form.record)
    lost = {
        ", which has no alpha; it lies on white": opaque,
        ", which has 8 bits": shallow,
        " in sRGB": srgb and (picture.mode == "CMYK" or picture.icc is not None),
        ", which holds no record; it is left out": record is not None and not form.record,
    }
    for fact in _FACTS:
        what = fact.removesuffix("-data").upper()
        lost[f", which keeps no {what}"] = fact in picture.facts and fact not in form.facts
    for how in (how for how, said in lost.items() if said):
        _log.info("%s is written as %s%s", name, form.name, how)
    if opaque or shallow or srgb:
        picture = picture.converted(opaque=opaque, shallow=shallow, srgb=srgb)
    if record is not None and form is _JPEG and len(record) > _JPEG_RECORD:
        _log.info("%s: the record is too long for a JPEG; it is left out", name)
        record = None
    write = replace_file if files is None else files.write
    write(path, lambda file: _encode(file, picture, form, record, name))


def _format(path: str | os.PathLike[str]) -> _Format:
    try:
        suffix = Path(os.fsdecode(path)).suffix.lower()
    except TypeError:
        raise InputError(f"the output is {path!r}; expected a path.") from None
    if suffix not in _SUFFIXES:
        known = ", ".join(known[1:] for known in _SUFFIXES)
        raise InputError(
            f"{name_of(path)} has the suffix {suffix[:20]!r}; expected one of {known}."
        )
    return _SUFFIXES[suffix]


def _encode(
    file: IO[bytes], picture: Picture, form: _Format, record: str | None, name: str
) -> None:
    if form is _BMP:
        buffer = io.BytesIO()
        PilImage.fromarray(picture.samples).save(buffer, form.name)
        file.write(buffer.getbuffer())
        return
    if form is _JPEG and picture.jpeg:
        from inlay.pictures.jpeg import keep_blocks

        corner = replace(picture, base=picture.crop(Box(0, 0, 1, 1)), patches=())
        said = _described(corner, form, record).jpegsave_buffer(keep="all")
        if kept := keep_blocks(picture, said):
            file.write(kept)
            return
    image = _described(picture, form, record)
    try:
        target = pyvips.Target.new_to_descriptor(file.fileno())
        image.write_to_target(target, f".{form.name.lower()}", keep="all", **form.options)
    except pyvips.Error as error:
        if reason := re.search("system error: (.*)", error.detail):
            raise OSError(errno.EIO, reason[1]) from None
        raise InputError(
            f"{name} cannot be written as {form.name}, which may hold no {picture.width} x "
            f"{picture.height} pixels; write a png or tif."
        ) from None
    if form is _JPEG and picture.patches and _log.isEnabledFor(logging.INFO):
        file.seek(0)
        off = (pyvips.Image.jpegload_buffer(file.read()) - picture.image()).abs()
        for box, _ in picture.patches:
            off = off.insert(pyvips.Image.black(box.width, box.height), box.x, box.y)
        stats = off.stats()
        without = picture.jpeg and find_spec("jpeglib") is None
        extra = " (the extra inlay[jpeg] keeps most of them as they are)" if without else ""
        _log.info(f"%s: {_LOSS}%s", name, stats(1, 0)[0], stats(4, 0)[0], extra)


def _described(picture: Picture, form: _Format, record: str | None) -> pyvips.Image:
    """A picture as libvips sees it, with all that its file is to say of it."""
    image = picture.image()
    if picture.icc is not None:
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", picture.icc)
    said = PilImage.Exif()
    for axis, tag in (("xres", 282), ("yres", 283)):
        # 1 is what libvips says where a file says nothing, but for its EXIF.
        density = picture.facts.get(axis, 1.0)
        with suppress(Exception):
            said.load(picture.facts["exif-data"] if density <= 1 else b"")
            density = float(said[tag]) / (10 if said.get(296) == 3 else 25.4)
        image = image.copy(**{axis: density if density > 1 else _DENSITY})
    image.set_type(pyvips.GValue.gstr_type, "resolution-unit", "in")
    for fact in picture.facts.keys() & form.facts:
        block, place = picture.facts[fact], fact
        if fact == "exif-data":
            block = _without_thumbnail(block)
        if fact == "iptc-data" and form is _TIFF:
            block, place = block.removeprefix(PHOTOSHOP), "photoshop-data"
        image.set_type(pyvips.GValue.blob_type, place, block)
    image.set_type(pyvips.GValue.gint_type, "orientation", 1)
    if record is not None:
        record.encode("ascii")
        image.set_type(pyvips.GValue.gstr_type, form.record, record)
    return image


def _without_thumbnail(exif: bytes) -> bytes:
    """EXIF without its second table, that of a thumbnail, which shows the picture as it was."""
    start = 6 * exif.startswith(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if exif[start:].startswith(b"II") else "big"
    table = start + int.from_bytes(exif[start + 4 : start + 8], order)
    end = table + 2 + 12 * int.from_bytes(exif[table : table + 2], order)
    return exif if len(exif) < end + 4 else exif[:end] + bytes(4) + exif[end + 4 :]


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


def replace_file(path: str | os.PathLike[str], fill: Callable[[IO[bytes]], None]) -> None:
    """Write one file as `Files` does."""
    with Files() as files:
        files.write(path, fill)


class Files:
    """Files that are written beside their places and put there at the end: all of them, or none.

    Whatever is raised, a listed file is either the old one or the whole new one, whose permissions
    are the old one's. Raises InputError where the system refuses.
    """

    def __init__(self) -> None:
        self._moves: list[tuple[Path, Path]] = []

    def __enter__(self) -> Files:
        return self

    def write(self, path: str | os.PathLike[str], fill: Callable[[IO[bytes]], None]) -> None:
        """Let `fill` write what is to stand at `path`."""
        target = check_target(path)
        temporary = _temporary(target)
        self._moves.append((temporary, target))
        try:
            with open(temporary, "x+b") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                temporary.chmod(target.stat().st_mode & 0o7777)
        except OSError as error:
            raise _unwritable(name_of(path), error) from None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        spare = [temporary for temporary, _ in self._moves]
        try:
            with ExitStack() as undo:
                for temporary, target in self._moves if kind is None else ():
                    if not os.path.lexists(target):
                        undo.callback(target.unlink, missing_ok=True)
                    elif len(self._moves) > 1:
                        spare.append(_temporary(target))
                        shutil.copy2(target, spare[-1], follow_symlinks=False)
                        undo.callback(os.replace, spare[-1], target)
                    os.replace(temporary, target)
                undo.pop_all()
        except OSError as error:
            raise _unwritable(name_of(target), error) from None
        finally:
            for path in spare:
                path.unlink(missing_ok=True)


def _temporary(target: Path) -> Path:
    return target.parent / f".inlay-{secrets.token_hex(8)}.tmp"


def _unwritable(name: str, error: Exception) -> InputError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        reason = "its folder does not exist"
    else:
        reason = getattr(error, "strerror", None) or "not a usable path"
    return InputError(f"{name} cannot be written ({reason}); give another output file.")
