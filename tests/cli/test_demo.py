"""The offline tour."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inlay.cli import main
from inlay.pictures.read import read_record


def test_the_tour_makes_nine_pictures_and_what_they_are_compared_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "-o", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "contact-sheet.png" in said.out + said.err and "may be wrong" not in said.err
    befores = sorted(tmp_path.glob("*-before.png"))
    assert len(befores) == 9 and len(list(tmp_path.iterdir())) == 19
    verbs = []
    for before in befores:
        after = tmp_path / before.name.replace("-before", "")
        was, now = (np.asarray(Image.open(path).convert("RGB"), int) for path in (before, after))
        assert was.shape == now.shape and np.abs(was - now).max() > 10, after.name
        verbs.append(json.loads(read_record(after) or "")["request"]["verb"])
    assert [verbs.count(verb) for verb in ("compose", "harmonize", "remove")] == [7, 1, 1]
    with Image.open(tmp_path / "contact-sheet.png") as sheet:
        assert sheet.width > 2300


def test_the_pictures_of_the_tour_are_small() -> None:
    shipped = Path(str(files("inlay"))) / "assets" / "demo"
    assert sum(path.stat().st_size for path in shipped.iterdir()) < 150_000
