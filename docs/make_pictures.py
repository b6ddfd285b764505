"""Make the pictures of these pages, as JPEG: some of the offline tour, scenes, phd's stages.

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

from inlay import Box, Composer, Result, cut
from inlay.cli.demo import astronaut_mask, run
from inlay.pictures.sheet import contact_sheet

IMAGES = Path(__file__).parent / "images"
# What the README shows of the tour, and what stands beside it.
SHOWN = {
    "vase-on-a-table": "pasted",
    "teapot-and-cup": "pasted",
    "plant-in-the-sun": "pasted",
    "astronaut-harmonized": "in another light",
}
# A background, a subject, and how it is cut and where it goes.
GARAGE = (
    data.stereo_motorcycle()[0],
    data.coffee(),
    {"cut_box": Box(60, 5, 430, 390), "box": Box(15, 325, 195, 165)},
)


def tour() -> None:
    """Four pictures of the tour, each beside what it is compared with; cdc's sweep."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(folder, print)
        for picture, before in SHOWN.items():
            pair = [Image.open(folder / f"{picture}{end}.png") for end in ("-before", "")]
            words = [before, f"inlay: {picture.replace('-', ' ')}"]
            contact_sheet(pair, words, cell=384).save(IMAGES / f"{picture}.jpg", quality=88)
    composer, pictures, labels = Composer(), [], []
    for t_in in (0.0, 0.25, 0.5, 0.75, 1.0):
        swept = composer.compose(
            *GARAGE[:2], **GARAGE[2], method="cdc", preset="stylize", T_in=t_in
        )
        pictures.append(seen(swept, swept.image))
        labels.append(f"T_in = {t_in}")
    contact_sheet(pictures, labels, columns=5).save(IMAGES / "sweep.jpg", quality=88)


def seen(made: Result, picture: Image.Image) -> Image.Image:
    """Of a picture that was made, the window that the method saw."""
    window = made.window
    return picture.convert("RGB").crop((window.x, window.y, window.right, window.bottom))


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
    launch = {"mask": astronaut_mask(), "box": Box(30, 167, 300, 260)}
    for background, subject, place in (GARAGE, (data.rocket(), data.astronaut(), launch)):
        made = composer.compose(
            background, subject, **place, method="phd", inpaint=True, keep_phases=True
        )
        for name, picture in made.phases.items():
            pictures.append(seen(made, picture.to_pil()))
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
