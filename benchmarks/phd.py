"""Does phd keep what a subject is, and does the ring round it look like the background?

Subjects are cut out of the photos of one folder (whole objects, as the cutter finds them) and
set into the scenes of another, each into two of them. Told for each composite:
identity: SSIM of luminance inside the subject, paste against result, after the result has been
    given the paste's mean and variance there; light and colour may change, structure may not.
ring: gradient energy (mean absolute difference of neighbouring pixels, RGB) in the ring round the
    subject over that of the background as far out again; `paste` is the same for the background as
    it was, which is what differs by the place alone.

    python benchmarks/phd.py SUBJECTS SCENES [--subjects 20] [--scenes 2] [-o DIR] [--set KEY=VALUE]

Either folder may be scikit-image. Pictures are reduced to a short side of 384 pixels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from skimage.metrics import structural_similarity

from inlay import Box, Composer
from inlay.evaluation.photos import Photo, find_photos
from inlay.methods.registry import get
from inlay.pictures.sheet import contact_sheet
from inlay.settings import parse_sets
from inlay.training.objects import find_objects

SHORT_SIDE = 384
LUMA = np.array([0.299, 0.587, 0.114])
# A subject's longer side, in short sides of the scene.
SIZES = (0.35, 0.6)


@dataclass
class Case:
    name: str
    scene: np.ndarray
    subject: np.ndarray
    box: Box


def subjects(photos: list[Photo], count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Names and RGBA cut-outs, from photos spread over the whole folder."""
    found, stride = 0, max(1, len(photos) // count)
    for number in sorted(range(len(photos)), key=lambda i: (i % stride, i)):
        photo = photos[number]
        picture, given = photo.read(SHORT_SIDE)
        masks = find_objects(picture, 1) if given is None else [given]
        if not masks:
            continue
        mask = np.asarray(masks[0], np.float32)
        x, y, width, height = cv2.boundingRect((mask > 0.02).astype(np.uint8))
        part = np.s_[y : y + height, x : x + width]
        alpha = np.round(mask[part] * 255).astype(np.uint8)
        yield photo.name, np.dstack([picture[part], alpha])
        found += 1
        if found == count:
            return


def cases(
    cut: list[tuple[str, np.ndarray]], photos: list[Photo], each: int, even: float, reach: float
) -> Iterator[Case]:
    """The composites; reach is the ring's width in sides of the subject."""
    rng = np.random.default_rng(3)
    order = rng.permutation(len(photos))
    for number, (name, subject) in enumerate(cut):
        for turn in range(each):
            photo = photos[order[(number * each + turn) % len(order)]]
            scene, _ = photo.read(SHORT_SIDE)
            box = drawn(rng, scene, subject)
            if even > 0:
                places = [box, *(drawn(rng, scene, subject) for _ in range(19))]
                box = next((p for p in places if is_even(scene, subject, p, even, reach)), None)
                if box is None:
                    continue
            label = f"{Path(name).stem[:14]} {Path(photo.name).stem[:14]}"
            yield Case(label, scene, subject, box)


def drawn(rng: np.random.Generator, scene: np.ndarray, subject: np.ndarray) -> Box:
    height, width = subject.shape[:2]
    side = rng.uniform(*SIZES) * min(scene.shape[:2])
    wide, high = (max(8, round(side * s / max(width, height))) for s in (width, height))
    # Room for the ring and for what it is compared with.
    x, y = (
        round(rng.uniform(0.15, 0.85) * (whole - size))
        for whole, size in ((scene.shape[1], wide), (scene.shape[0], high))
    )
    return Box(x, y, wide, high)


def is_even(scene: np.ndarray, subject: np.ndarray, box: Box, even: float, reach: float) -> bool:
    alpha = np.zeros(scene.shape[:2], np.float32)
    small = cv2.resize(subject[..., 3], (box.width, box.height), interpolation=cv2.INTER_AREA)
    alpha[box.slices] = small / np.float32(255)
    width = max(reach * max(box.width, box.height), 6.0)
    return abs(ring_energy(scene, alpha, width) - 1) <= even


def identity(paste: np.ndarray, result: np.ndarray, alpha: np.ndarray) -> float:
    """SSIM of luminance (gaussian window) inside alpha > 0.99, mean and variance matched."""
    inside = alpha > 0.99
    was, now = (picture.astype(float) @ LUMA for picture in (paste, result))
    now = (now - now[inside].mean()) / max(now[inside].std(), 1e-6)
    now = now * was[inside].std() + was[inside].mean()
    # What lies outside is alike, so that the window's rim is the subject's own doing.
    now = np.where(inside, now, was)
    _, similar = structural_similarity(
        was, now, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        full=True,
    )  # fmt: skip
    return float(similar[inside].mean())


def energy(picture: np.ndarray, where: np.ndarray) -> float:
    """Mean absolute difference to the right and down, of pixels that both lie inside."""
    values = picture.astype(float)
    across = np.abs(np.diff(values, axis=1))[where[:, 1:] & where[:, :-1]]
    down = np.abs(np.diff(values, axis=0))[where[1:] & where[:-1]]
    return float((across.sum() + down.sum()) / max(across.size + down.size, 1))


def ring_energy(picture: np.ndarray, alpha: np.ndarray, width: float) -> float:
    """Energy in the ring of so many pixels over that of the background as far out again."""
    away = cv2.distanceTransform((alpha <= 1 / 255).astype(np.uint8), cv2.DIST_L2, 5)
    # The cut's own edge is neither.
    ring, around = (away > 2) & (away <= width), (away > width + 1) & (away <= 2 * width + 1)
    # Less than half a level is the camera's noise, whose ratio says nothing.
    return max(energy(picture, ring), 0.5) / max(energy(picture, around), 0.5)


def main(arguments: argparse.Namespace) -> None:
    settings = parse_sets(arguments.set or [], get("phd", "compose").settings)[0][1]
    chosen = get("phd", "compose").settings.model_validate(settings)
    cut = list(subjects(find_photos([arguments.subjects_folder], "all"), arguments.subjects))
    photos = find_photos([arguments.scenes_folder], "all")
    composer, out = Composer("embedded", device="cpu"), arguments.output
    out.mkdir(parents=True, exist_ok=True)
    rows, pictures, names = [], [], []
    reach = chosen.grow * (1 + 2 * chosen.context)
    for case in cases(cut, photos, arguments.scenes, arguments.even, reach):
        place = {"box": case.box, "method": "phd", "keep_phases": True, "seed": arguments.seed}
        made = composer.compose(case.scene, case.subject, **place, **settings)
        pasted = composer.compose(case.scene, case.subject, box=case.box, method="paste")
        paste, result = (np.asarray(x.image.convert("RGB")) for x in (pasted, made))
        flat = np.dstack([np.zeros_like(case.subject[..., :3]) + 255, case.subject[..., 3]])
        black = np.zeros_like(case.scene)
        alpha = np.asarray(composer.compose(black, flat, box=case.box, method="paste").image)
        alpha = alpha[..., 0].astype(np.float32) / 255
        width = max(chosen.grow * max(made.window.width, made.window.height), 6.0)
        row = {
            "name": case.name,
            "identity": identity(paste, result, alpha),
            "ring": ring_energy(result, alpha, width),
            "paste": ring_energy(paste, alpha, width),
        }
        rows.append(row)
        print(" ".join(v if isinstance(v, str) else f"{v:.3f}" for v in row.values()), flush=True)
        shown = {"paste": pasted.image}
        shown |= {k: p.to_pil() for k, p in made.phases.items() if k != "paste"}
        part = made.window
        for name, picture in shown.items():
            whole = np.asarray(picture.convert("RGB"))[part.slices]
            pictures.append(Image.fromarray(whole).resize((256, 256)))
            names.append(f"{case.name}" if name == "paste" else name)
    columns = len(shown)
    limit = arguments.rows * columns
    contact_sheet(pictures[:limit], names[:limit], columns=columns, cell=256).save(out / "phd.png")
    kept, ring, before = (np.array([r[k] for r in rows]) for k in ("identity", "ring", "paste"))
    print(
        f"identity: mean {kept.mean():.3f}, least {kept.min():.3f}, "
        f"{(kept >= 0.9).mean():.0%} at least 0.9"
    )
    for name, values in (("ring", ring), ("paste", before), ("ring over paste", ring / before)):
        within = (np.abs(values - 1) <= 0.25).mean()
        print(
            f"{name}: median {np.median(values):.3f}, geometric mean "
            f"{np.exp(np.log(values).mean()):.3f}, {within:.0%} within 25%"
        )
    (out / "phd.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subjects_folder", metavar="SUBJECTS", help="folder, or scikit-image")
    parser.add_argument("scenes_folder", metavar="SCENES", help="folder, or scikit-image")
    parser.add_argument("--subjects", type=int, default=20)
    parser.add_argument("--scenes", type=int, default=2, help="scenes for each subject")
    parser.add_argument("--even", type=float, default=0, help="only where the place is this even")
    parser.add_argument("--rows", type=int, default=12, help="composites in the grid")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", metavar="KEY=VALUE")
    parser.add_argument("-o", "--output", type=Path, default=Path("phd"))
    main(parser.parse_args())
