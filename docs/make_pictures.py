"""Make the pictures of these pages, as JPEG: the offline tour's sheets, scenes, phd's stages.

python docs/make_pictures.py [tour] [scenes] [stages]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from skimage import data

from inlay import Box, Composer, cut
from inlay.cli.demo import _mask, _photo, run
from inlay.pictures.sheet import contact_sheet

IMAGES = Path(__file__).parent / "images"


def tour() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(folder, print)
        for sheet in ("contact-sheet", "sweep"):
            picture = Image.open(folder / f"{sheet}.png").convert("RGB")
            picture.save(IMAGES / f"{sheet}.jpg", quality=88)


def largest(cutout: Image.Image) -> np.ndarray:
    """A cut-out (RGBA) less all pieces but its largest."""
    samples = np.array(cutout)
    _, labels, found, _ = cv2.connectedComponentsWithStats((samples[..., 3] > 25).astype(np.uint8))
    samples[labels != 1 + int(np.argmax(found[1:, cv2.CC_STAT_AREA]))] = 0
    return samples


def scenes() -> None:
    cup = largest(cut(data.coffee(), box=Box(140, 10, 330, 330)))
    cat = largest(cut(data.chelsea(), box=Box(60, 10, 330, 285)))
    composer, pictures, labels = Composer(), [], []
    for subject, words, size, seed in (
        (cup, "landscape", (256, 256), 0),
        (cup, "building", (384, 256), 2),
        (cat, "building", (256, 256), 1),
        (cat, "landscape", (384, 192), 4),
    ):
        prompt = f"a photo of a {words}"
        pictures.append(composer.scene(subject, prompt=prompt, size=size, seed=seed).image)
        labels.append(f"{prompt}, {size[0]}x{size[1]}")
        print(labels[-1])
    sheet = contact_sheet(pictures, labels, columns=4, cell=384)
    sheet.save(IMAGES / "scene.jpg", quality=88)


def stages() -> None:
    """The stages of phd on two compositions of the tour."""
    composer, pictures, labels = Composer(), [], []
    for background, subject, box in (
        ("stereo_motorcycle", "coffee", Box(15, 325, 195, 165)),
        ("rocket", "astronaut", Box(30, 167, 300, 260)),
    ):
        made = composer.compose(
            _photo(background), _photo(subject), mask=_mask(subject), box=box, method="phd",
            inpaint=True, keep_phases=True,
        )  # fmt: skip
        seen = made.window
        for name, picture in made.phases.items():
            whole = picture.to_pil().convert("RGB")
            pictures.append(whole.crop((seen.x, seen.y, seen.right, seen.bottom)))
            labels.append(name)
    sheet = contact_sheet(pictures, labels, columns=3, cell=320)
    sheet.save(IMAGES / "phd-stages.jpg", quality=88)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    made = {"tour": tour, "scenes": scenes, "stages": stages}
    for name in sys.argv[1:] or made:
        made[name]()


if __name__ == "__main__":
    main()
