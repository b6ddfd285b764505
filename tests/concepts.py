"""A concept for the tests: a cup, from crops of scikit-image's photograph, in a few steps."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage import data

from checkpoints import built
from inlay import Box
from inlay.learning.learn import learn
from inlay.learning.photos import with_places
from inlay.learning.settings import LearnConfig

# Where the cup is in each crop of the photograph.
CROPS = ((120, 10), (180, 40))
BOXES = [Box(60, 30, 90, 80), Box(50, 20, 100, 90)]


def photos() -> list[NDArray[np.uint8]]:
    """The photos that learnt() learns from."""
    return [data.coffee()[y : y + 180, x : x + 220] for x, y in CROPS]


@functools.cache
def learnt(model: str = "sd1_inpaint", **settings: Any) -> Path:
    """The file of an object that one of the small checkpoints, or "embedded", has learnt.

    Made once a test run, hastily: it shows in every picture. Do not write into its folder.
    """
    root = Path(tempfile.mkdtemp(prefix="inlay-learnt-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    config = LearnConfig(
        **{"rank": 2, "layers": "attention", **settings}, ema_decay=0, learning_rate=0.1,
        model=model if model == "embedded" else str(built(model)), steps=3, batch=1, variants=2,
        resolution=64,
    )  # fmt: skip
    path = root / "cup.safetensors"
    learn(with_places(photos(), BOXES), "cup", path, config, device="cpu")
    return path
