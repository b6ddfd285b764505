"""Write an image folder of rendered scenes, to train on beside photographs.

    python tools/render_scenes.py FOLDER --count 1500 --size 160

Rooms, studios and open ground with one to four simple objects under a known light, traced in linear
light from a seed (about a tenth of a second each). FOLDER gets square PNG files, their alpha 255 on
the main object and 0 elsewhere, and a metadata.jsonl whose lines hold file_name and text.

    inlay train embedded PHOTOS -o RUN --set rendered=FOLDER --set rendered_share=0.1
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from rendered.render import render

__all__ = ["write_scenes"]


def write_scenes(folder: Path, count: int, size: int = 160, seed: int = 0) -> None:
    """Write the scenes of `count` seeds from `seed` on; the same call writes the same pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(seed, seed + count):
        scene, name = render(number, size), f"scene-{number:06d}.png"
        Image.fromarray(np.dstack([scene.image, scene.mask])).save(folder / name)
        rows.append(json.dumps({"file_name": name, "text": scene.caption}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder to write to")
    parser.add_argument("--count", type=int, default=1500, metavar="N", help="pictures")
    parser.add_argument("--size", type=int, default=160, metavar="S", help="their side in pixels")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first picture")
    options = parser.parse_args()
    if options.count < 1 or options.size < 16 or options.seed < 0:
        parser.error("expected a count of at least 1, a size of at least 16 and a seed from 0 on")
    write_scenes(options.folder, options.count, options.size, options.seed)


if __name__ == "__main__":
    main()
