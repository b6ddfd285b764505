"""Does a learnt photo give back the detail that a small model loses?

A crop of a photograph is taken for what an object truly looks like. The sample is that crop at
the model's size, blurred as the model's decoder would, and enlarged; the learnt photo is the crop
turned, scaled and under another light. Told are PSNR inside the object and gradient energy over the
truth's, of the sample and with the photo's detail (details=1), by the blur in the model's pixels.

    python benchmarks/details.py
"""

from __future__ import annotations

import cv2
import numpy as np
from skimage import data

from inlay.methods.concept.details import Reference, add_details

SIDE, MODEL = 256, 96
CROPS = {
    "cup": (data.coffee, (60, 180, 256)),
    "cat": (data.chelsea, (30, 90, 220)),
    "face": (data.astronaut, (0, 130, 220)),
    "suit": (data.astronaut, (230, 60, 256)),
    "rocket": (data.rocket, (90, 220, 256)),
}


def crop(name: str) -> np.ndarray:
    load, (top, left, side) = CROPS[name]
    part = load()[top : top + side, left : left + side].astype(np.float32) / 255
    return cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def energy(picture: np.ndarray, inside: np.ndarray) -> float:
    down, across = np.gradient(picture.mean(2))
    return float(np.hypot(down, across)[inside].mean())


def main() -> None:
    rng = np.random.default_rng(0)
    alpha = np.zeros((SIDE, SIDE), np.float32)
    cv2.circle(alpha, (SIDE // 2, SIDE // 2), 110, 1.0, -1)
    inside = cv2.erode(alpha, np.ones((25, 25), np.uint8)) > 0.5
    pixel = (SIDE / MODEL, SIDE / MODEL)
    print("| blur | PSNR, sample | with details | energy, sample | with details | used |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for blur in (0.0, 0.5, 1.0, 1.5):
        figures, used = [], 0
        for name in CROPS:
            truth = crop(name)
            small = cv2.resize(truth, (MODEL, MODEL), interpolation=cv2.INTER_AREA)
            if blur > 0:
                small = cv2.GaussianBlur(small, (0, 0), blur)
            sample = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
            turn, scale = rng.uniform(-8, 8), rng.uniform(0.95, 1.08)
            matrix = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), turn, scale)
            border = cv2.BORDER_REFLECT
            photo = cv2.warpAffine(truth, matrix, (SIDE, SIDE), borderMode=border)
            photo = (0.9 * photo + np.float32([0.05, 0.02, 0.0])).clip(0, 1)
            made, told = add_details(
                sample,
                alpha,
                pixel,
                [Reference("photo", photo, np.ones_like(alpha))],
                amount=1.0,
                least=0.7,
                feather=4.0,
            )
            used += told.startswith("details of")
            row = []
            for picture in (sample, made):
                error = float(((picture.clip(0, 1) - truth)[inside] ** 2).mean())
                row += [-10 * np.log10(error), energy(picture, inside) / energy(truth, inside)]
            figures.append(row)
        first, low, second, high = np.mean(figures, axis=0)
        print(
            f"| {blur:g} | {first:.1f} | {second:.1f} | {low:.2f} | {high:.2f} | "
            f"{used} of {len(CROPS)} |"
        )


if __name__ == "__main__":
    main()
