"""Hostile and broken command lines and files: exit 2, one sentence, nothing written."""

from __future__ import annotations

import os
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from hostile import CASES, ROLES
from inlay.cli import main

Capture = pytest.CaptureFixture[str]


def _png(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG whose header claims a size that its body does not have."""

    def chunk(kind: bytes, payload: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + payload))
        return struct.pack(">I", len(payload)) + kind + payload + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def _photo() -> Image.Image:
    return Image.fromarray(data.astronaut()[20:180, 140:340])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Good pictures, and every kind of bad one; the working folder of all commands here."""
    root = tmp_path_factory.mktemp("bad")
    before, temporary = Path.cwd(), tempfile.tempdir
    os.chdir(root)
    (root / "tmp").mkdir()
    tempfile.tempdir = str(root / "tmp")
    # torch makes this folder when it is imported, wherever temporary files then go.
    inductor = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("inductor"))
    photo = _photo()
    photo.save("good.png")
    alpha = Image.fromarray(np.pad(np.full((100, 120), 255, np.uint8), ((30, 30), (40, 40))))
    subject = photo.copy()
    subject.putalpha(alpha)
    subject.save("subject.png")
    alpha.save("mask.png")
    alpha.resize((30, 40)).save("small-mask.png")
    Image.new("L", photo.size).save("black-mask.png")
    Image.new("RGBA", photo.size).save("clear.png")
    for suffix in ("png", "jpg", "webp", "tif", "bmp", "gif"):
        photo.save(f"whole.{suffix}")
        whole = Path(f"whole.{suffix}").read_bytes()
        Path(f"cut.{suffix}").write_bytes(whole[: len(whole) // 3])
        Path(f"head.{suffix}").write_bytes(whole[:12])
        Path(f"empty.{suffix}").write_bytes(b"")
        Path(f"noise.{suffix}").write_bytes(bytes(range(256)) * 8)
    Path("text.png").write_text("this is no picture\n")
    Path("script.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    Path("bomb.png").write_bytes(_png(60_000, 60_000))
    Path("wide.png").write_bytes(_png(2**31 - 1, 1))
    Path("nothing.png").write_bytes(_png(0, 0))
    Path("short.png").write_bytes(_png(64, 64, b"\0" * 100))
    Path("folder.png").mkdir()
    Path("loop.png").symlink_to("loop.png")
    Path("gone.png").symlink_to("nowhere.png")
    os.mkfifo("pipe.png")
    yield root
    os.chdir(before)
    tempfile.tempdir = temporary
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR")
    if inductor is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = inductor


def _snapshot(root: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        found[str(path)] = (status.st_size, status.st_mtime_ns)
    return found


def _check_refused(status: int, capture: Capture, *, exits: tuple[int, ...] = (2,)) -> None:
    out, err = capture.readouterr()
    assert status in exits, err
    if status == 0:
        return
    assert out == ""
    assert err.endswith("\n") and err.count("\n") == 1, err
    sentence = err[:-1]
    assert sentence.isprintable() or not sentence.isascii()
    assert sentence.endswith((".", "?")), sentence
    assert 10 < len(sentence) < 6000
    assert not re.search(r"[.?!] [A-Z]", sentence), f"more than one sentence: {sentence}"
    assert "Traceback" not in sentence


def test_there_are_enough_of_them() -> None:
    assert len({tuple(case) for case in CASES}) >= 300


@pytest.mark.parametrize("arguments", CASES, ids=lambda case: ascii(" ".join(case))[:90])
def test_it_is_refused_in_one_sentence(arguments: list[str], folder: Path, capsys: Capture) -> None:
    before = _snapshot(folder)
    _check_refused(main(arguments), capsys)
    assert _snapshot(folder) == before


WORDS = st.one_of(
    st.sampled_from(
        [
            "compose",
            "harmonize",
            "remove",
            "cut",
            "methods",
            "models",
            "rerun",
            "train",
            "embedded",
            "bench",
            "harmony",
        ]
    ),
    st.sampled_from(
        ["--box", "--at", "--scale", "--random", "--mask", "--seed", "--set", "--json", "--quiet"]
    ),
    st.sampled_from(["good.png", "subject.png", "mask.png", "text.png", "1,2,3,4", "--", "0"]),
    st.text(st.characters(codec="utf-8"), max_size=12),
)


@given(st.lists(WORDS, min_size=1, max_size=8))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_command_line_without_an_output_does_harm(
    folder: Path, capsys: Capture, words: list[str]
) -> None:
    before = _snapshot(folder)
    _check_refused(main(words), capsys, exits=(0, 2))
    assert _snapshot(folder) == before


@given(
    st.sampled_from(["png", "jpg", "webp", "tif", "bmp", "gif"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12),
    st.floats(0.5, 1),
    st.sampled_from([name for name in ROLES if name not in ("rerun", "cut")]),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_bytes_are_refused_or_read(
    folder: Path,
    capsys: Capture,
    suffix: str,
    changes: list[tuple[float, int]],
    kept: float,
    role: str,
) -> None:
    content = bytearray((folder / f"whole.{suffix}").read_bytes())
    for place, value in changes:
        # The first bytes matter most: the square favours them.
        content[min(int(place**2 * len(content)), len(content) - 1)] = value
    damaged = folder / f"damaged.{suffix}"
    damaged.write_bytes(content[: int(kept * len(content))])
    before = _snapshot(folder)
    arguments = ROLES[role](damaged.name)
    if "--method" not in arguments:
        arguments[1:1] = ["--method", "telea" if role.startswith("remove") else "paste"]
    status = main(arguments)
    _check_refused(status, capsys, exits=(0, 2))
    out = folder / "out.png"
    if status == 0:
        out.unlink()
    assert _snapshot(folder) == before
    damaged.unlink()
