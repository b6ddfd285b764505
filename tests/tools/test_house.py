"""The rules of the house: sizes, layers, and a map that agrees with the files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import house

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def measured() -> dict[str, float]:
    return house.measure(ROOT)


@pytest.mark.parametrize("what", house.BOUNDS)
def test_the_house_keeps_its_bounds(what: str, measured: dict[str, float]) -> None:
    assert measured[what] <= house.BOUNDS[what]


def test_the_map_in_the_documents_is_that_of_the_files() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "map.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
