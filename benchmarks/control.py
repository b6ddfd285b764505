"""Do Cross-domain Compositing's knobs do what they say, and does residual decoding keep detail?

On five real photographs, with the embedded checkpoint: the distance of the result from the plain
paste inside the subject (RMS, 8-bit levels) over T_in and over N_in, at the settings that show the
method bare (plain paste as input, no smoothing); and the subject's high-frequency energy
(luminance minus its 9x9 Gaussian blur, inside the eroded subject) over the plain paste's, with
residual and with plain decoding at the defaults.

    python benchmarks/control.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from inlay import Box, Composer
from photos import Photo, five_scenes

NAMES = ("cup/garage", "face/launch", "cat/table", "cat/portrait", "cup/cat")
T_IN = (0.0, 0.25, 0.5, 0.75, 1.0)
N_IN = (1, 2, 4, 8, 16)


def energy(image: Photo, where: np.ndarray) -> float:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    return float(((grey - cv2.GaussianBlur(grey, (9, 9), 0))[where] ** 2).mean())


def row(name: str, values: list[float]) -> str:
    return f"{name:14s}" + "".join(f"{value:9.3f}" for value in values)


class Scene:
    """One of the five pictures: how to run on it, and how far a result is from the paste."""

    def __init__(self, composer: Composer, background: Photo, subject: Photo, box: Box) -> None:
        self.composer, self.background, self.subject, self.box = composer, background, subject, box
        white = np.full_like(background, 255)
        black = np.dstack([np.zeros_like(subject[..., :3]), subject[..., 3]])
        solid = composer.compose(white, black, box=box, method="paste")
        self.inside = np.asarray(solid.image).max(-1) == 0
        self.core = cv2.erode(self.inside.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        self.paste = self.run(method="paste")

    def run(self, **settings: object) -> Photo:
        settings = {"method": "cdc", "seed": 3, **settings}
        result = self.composer.compose(self.background, self.subject, box=self.box, **settings)
        return np.asarray(result.image)

    def distance(self, image: Photo) -> float:
        return float(np.sqrt(((image.astype(float) - self.paste)[self.inside] ** 2).mean()))

    def detail(self, image: Photo) -> float:
        return energy(image, self.core) / energy(self.paste, self.core)


def main() -> int:
    composer = Composer.from_pretrained("embedded", device="cpu")
    tables: dict[str, list[str]] = {"T_in": [], "N_in": [], "energy": []}
    good = True
    for name, (background, subject, box) in zip(NAMES, five_scenes(), strict=True):
        scene = Scene(composer, background, subject, box)
        by_t = [scene.distance(scene.run(T_in=t, smoothing=0.0)) for t in T_IN]
        by_n = [scene.distance(scene.run(T_in=1.0, N_in=n, smoothing=0.0)) for n in N_IN]
        detail = [scene.detail(scene.run(decoding=d)) for d in ("residual", "plain")]
        good &= bool((np.diff(by_t) < 0).all() and (np.diff(by_n) > 0).all())
        good &= abs(detail[0] - 1) <= 0.05 and abs(detail[1] - 1) > abs(detail[0] - 1)
        tables["T_in"].append(row(name, by_t))
        tables["N_in"].append(row(name, by_n))
        tables["energy"].append(row(name, detail))
    print("distance from the paste, T_in =", *T_IN)
    print("\n".join(tables["T_in"]))
    print("distance from the paste at T_in = 1, N_in =", *N_IN)
    print("\n".join(tables["N_in"]))
    print("high-frequency energy over the paste's: residual decoding, plain decoding")
    print("\n".join(tables["energy"]))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
