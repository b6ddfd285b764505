"""Make the pictures of these pages: run the offline tour and save its sheets as JPEG.

    python docs/make_pictures.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from inlay.demo import run

IMAGES = Path(__file__).parent / "images"


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(folder, print)
        for sheet in ("contact-sheet", "sweep"):
            picture = Image.open(folder / f"{sheet}.png").convert("RGB")
            picture.save(IMAGES / f"{sheet}.jpg", quality=88)


if __name__ == "__main__":
    main()
