"""What does an iteration of FreeCompose cost over the bare calls of the U-Net it needs?

Prints ratios of two things timed alternately in one run: ITERATIONS of the latent loop, and bare
U-Net calls of the same batch (4 rows with fresh draws, 2 where the source is taken from the pool),
without and with the perceptual terms; and the peak memory of a process that harmonizes over that
of one that samples as many steps, at window sides of 128 and 512 pixels.

    python benchmarks/distill_cost.py [RUNS]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from skimage import data

from inlay import Composer
from inlay.diffusion.conditions import Conditions

ITERATIONS = 20
QUIET = {"foreground_weight": 0.0, "background_weight": 0.0}
LOUD = {"foreground_weight": 0.25, "background_weight": 0.25}


def picture(side: int) -> tuple[np.ndarray, np.ndarray]:
    """A photo and the mask of a disc in its middle, uint8."""
    photo = cv2.resize(data.astronaut(), (side, side), interpolation=cv2.INTER_AREA)
    mask = np.zeros((side, side), np.uint8)
    cv2.circle(mask, (side // 2, side // 2), side // 4, 255, -1)
    return photo, mask


def iterations(composer: Composer, count: int, **settings: Any) -> Callable[[], None]:
    photo, mask = picture(128)

    def run() -> None:
        composer.harmonize(
            photo,
            mask=mask,
            method="freecompose",
            variant="collage",
            num_iterations=count,
            guidance_scale=7.5,
            **settings,
        )

    return run


def bare(composer: Composer, rows: int, count: int) -> Callable[[], None]:
    backbone = composer.backbone
    z = torch.zeros(rows, backbone.latent_channels, 32, 32)
    words = backbone.embed([""] * rows, (128, 128))
    conditions = Conditions(words, mask=z[:, :1], masked_latent=z)

    def run() -> None:
        with torch.inference_mode():
            for t in np.linspace(50, 949, count).astype(int).tolist():
                backbone.predict(z, t, conditions)

    return run


def timed(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def per_iteration(composer: Composer, rows: int, runs: int, **settings: Any) -> float:
    """Seconds of an iteration over those of a bare call: what is done once a run cancels out."""
    long, short = (iterations(composer, n, **settings) for n in (2 * ITERATIONS, ITERATIONS))
    calls = bare(composer, rows, ITERATIONS)
    for warm in (short, calls):
        warm()
    ratios = []
    for _ in range(runs):
        before, whole, between, half, after = (timed(f) for f in (calls, long, calls, short, calls))
        ratios.append((whole - half) / ((before + between + after) / 3))
    return statistics.median(ratios)


def peak(side: int, settings: dict[str, Any]) -> float:
    """Peak memory in MB of a process of its own that makes one picture."""
    request = json.dumps([side, settings])
    process = subprocess.Popen([sys.executable, __file__, "--one", request])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("the picture could not be made")
    return usage.ru_maxrss / 1024


def one(request: str) -> None:
    side, settings = json.loads(request)
    photo, mask = picture(side)
    Composer("embedded", device="cpu").harmonize(photo, mask=mask, **settings)


def main(runs: int) -> None:
    sampling = {"method": "cdc", "num_inference_steps": 10}
    moving = {"method": "freecompose", "variant": "collage", "num_iterations": 10}
    # First: a child's peak counts what its parent held when it was started.
    for side in (128, 512):
        plain = peak(side, sampling)
        for label, terms in (("terms off", QUIET), ("terms on", LOUD)):
            ours = peak(side, {**moving, **terms})
            print(
                f"peak memory, picture of {side}, {label:9s} {ours / plain:6.3f}   "
                f"({ours:.0f} MB, sampling {plain:.0f} MB)",
                flush=True,
            )
    composer = Composer("embedded", device="cpu")
    for label, rows, pool in (("fresh draws", 4, 0), ("from the pool", 2, 8)):
        for terms, weights in (("off", QUIET), ("on", LOUD)):
            ratio = per_iteration(composer, rows, runs, pool_size=pool, **weights)
            print(f"iteration / bare call, {label:13s}, terms {terms:3s} {ratio:6.3f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
