"""Does any method change a pixel outside the effect region that its record names?

A 12-megapixel JPEG as background, PNG as output, through the command line, every method of every
verb; those for concepts get one that was learnt in a few steps. Prints the number of
differing pixels outside the region (0 is right) and region / window. Compose is run with the
default shadow and with a cast one.

    python benchmarks/exactness.py [MODEL ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from skimage import data

from inlay.methods.registry import all_methods

Image.MAX_IMAGE_PIXELS = None


def prepare(folder: Path) -> None:
    photo = cv2.resize(data.astronaut(), (4000, 3000), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(photo).save(folder / "background.jpg", quality=92)
    cup = data.coffee()[20:340, 150:470]
    alpha = np.zeros(cup.shape[:2], np.uint8)
    cv2.ellipse(alpha, (160, 160), (150, 130), 0, 0, 360, 255, -1, cv2.LINE_AA)
    Image.fromarray(np.dstack([cup, alpha])).save(folder / "cup.png")
    mask = np.zeros((3000, 4000), np.uint8)
    cv2.ellipse(mask, (1700, 1200), (240, 300), 20, 0, 360, 255, -1)
    Image.fromarray(mask).save(folder / "mask.png")


def learnt(folder: Path, model: str) -> str:
    """The name of a file of the cup, learnt for a model."""
    name = f"cup-{abs(hash(model))}.safetensors"
    if not (folder / name).is_file():
        command = [sys.executable, "-m", "inlay", "learn", "cup.png", "--class-name", "cup"]
        command += ["-o", name, "--model", model, "--set", "steps=3", "--set", "variants=2"]
        subprocess.run([*command, "--quiet"], cwd=folder, check=True)
    return name


def main(models: list[str]) -> int:
    worst = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        before = np.asarray(Image.open(folder / "background.jpg").convert("RGB"))
        put = ["background.jpg", "cup.png", "--box", "1500,900,620,580"]
        arguments = [
            ("compose", put),
            ("compose", [*put, "--shadow", "cast"]),
            ("harmonize", ["background.jpg", "--mask", "mask.png"]),
            ("remove", ["background.jpg", "--mask", "mask.png"]),
        ]
        print(
            f"{'model':12s} {'verb':10s} {'method':10s} {'outside':>8s} {'changed':>9s}"
            "  region / window"
        )
        for verb, words in arguments:
            for method in all_methods().values():
                if verb not in method.verbs:
                    continue
                for model in models if method.needs_model else ["-"]:
                    given = [
                        learnt(folder, model) if w == "cup.png" and method.concepts else w
                        for w in words
                    ]
                    command = [sys.executable, "-m", "inlay", verb, *given, "-o", "out.png"]
                    command += ["--method", method.name, "--json", "--quiet"]
                    if method.needs_model:
                        command += ["--model", model, "--num-inference-steps", "10"]
                    done = subprocess.run(
                        command, cwd=folder, capture_output=True, text=True, check=True
                    )
                    record = json.loads(done.stdout)
                    after = np.asarray(Image.open(folder / "out.png").convert("RGB"))
                    differs = (before != after).any(-1)
                    changed = int(differs.sum())
                    r, w = record["region"], record["window"]
                    differs[r["y"] : r["y"] + r["height"], r["x"] : r["x"] + r["width"]] = False
                    outside = int(differs.sum())
                    worst = max(worst, outside)
                    size = f"{r['width']}x{r['height']} / {w['width']}x{w['height']}"
                    print(
                        f"{Path(model).name:12s} {verb:10s} {method.name:10s} "
                        f"{outside:8d} {changed:9d}  {size}",
                        flush=True,
                    )
    return 1 if worst else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["embedded"]))
