"""What scoring stored composites costs over bare calls of the metrics' functions.

    python benchmarks/scoring.py [--count 1000]

Composites of 512 x 512 pixels in PNG files on 50 backgrounds: SSIM outside the box, the seam and
the changed bytes, by `Bench.score` as `inlay bench --results` calls it, and by a loop that decodes
each file with Pillow and calls the functions; one after the other, on one thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from skimage import data

from inlay.evaluation.bench import Bench
from inlay.evaluation.datasets import open_dataset
from inlay.evaluation.figures import bytes_changed, seam, ssim_outside
from inlay.evaluation.metrics import metrics_of
from inlay.pictures.arrays import Box

NAMES = ("ssim_outside", "changed_outside", "seam")
BACKGROUNDS, BOX = 50, Box(150, 130, 200, 220)


def write(folder: Path, count: int) -> list[tuple[Path, Path]]:
    """Composites in folder/theirs and a manifest; the files of each and of its background."""
    photo, cat = data.astronaut(), data.chelsea()[20:240, 100:300]
    rng, files, lines = np.random.default_rng(0), [], []
    (folder / "theirs").mkdir()
    for number in range(BACKGROUNDS):
        Image.fromarray(np.roll(photo, 9 * number, 1)).save(folder / f"place-{number}.png")
    for number in range(count):
        place = folder / f"place-{number % BACKGROUNDS}.png"
        made = np.array(Image.open(place))
        made[BOX.slices] = cat
        made[rng.integers(100), rng.integers(512)] ^= 1
        result = folder / "theirs" / f"{number:05d}.png"
        Image.fromarray(made).save(result)
        subject = {"picture": place.name, "box": list(BOX.as_dict().values())}
        row = {"name": result.stem, "verb": "compose", "background": place.name}
        lines.append(json.dumps({**row, "subjects": [subject]}) + "\n")
        files.append((result, place))
    (folder / "manifest.jsonl").write_text("".join(lines))
    return files


def bare(files: list[tuple[Path, Path]]) -> float:
    """Seconds of a loop over the functions."""
    start = time.perf_counter()
    for pair in files:
        one, two = (np.asarray(Image.open(path).convert("RGB")) for path in pair)
        worked = np.zeros(one.shape[:2], np.bool_)
        worked[BOX.slices] = True
        ssim_outside(BOX, one, two)
        seam(one, worked, BOX)
        bytes_changed(one, two, BOX)
    return time.perf_counter() - start


def scored(folder: Path) -> float:
    """Seconds of a benchmark that finds the same pictures made by another tool."""
    bench = Bench(
        open_dataset("manifest", folder),
        [],
        folder / "out",
        results=[str(folder / "theirs")],
    )
    bench.out.mkdir()
    bench.write(lambda: None)
    metrics = [metric for metric in metrics_of("inlay") if metric.name in NAMES]
    start = time.perf_counter()
    rows = bench.score(metrics)
    assert all(row["changed_outside"] == 3 for row in rows)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000, help="composites")
    count = parser.parse_args().count
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        files = write(folder, count)
        bare(files[:20])
        own, ours = bare(files), scored(folder)
    print(f"{count} composites: bare {own:.1f} s, scored {ours:.1f} s, ratio {ours / own:.2f}")


if __name__ == "__main__":
    main()
