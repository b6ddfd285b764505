"""How good is a checkpoint of the embedded kind? Figures and picture grids from its weights.

    python benchmarks/quality.py FOLDER --foreign PHOTOS [--model embedded|DIR] [-o docs/images]

FOLDER is the image folder that it was trained on (metadata.jsonl): its held-out split is measured.
PHOTOS is a folder of photographs of other kinds; scikit-image's own are always among them. Prints

1. the v-loss inside the hole at five timesteps, masks of all kinds;
2. inpainting of a centred box of a quarter of the area at 128 pixels, with no words: PSNR inside
   the hole of the mean of 8 samples, and of OpenCV's Telea; gradient energy of one sample over the
   truth's (sum of the absolute differences of neighbouring grey levels; of their squares, too);
3. how often the right caption has a lower loss inside the hidden object than another class's;

and, with -o, writes grids: inpainting, the same hole under several captions, and no picture at all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from inlay.checkpoints.load import load_backbone
from inlay.diffusion.conditions import Conditions
from inlay.diffusion.sample import Level
from inlay.learning.samples import random_crop, random_mask
from inlay.methods.inpaint import InpaintSettings
from inlay.pictures.sheet import contact_sheet
from inlay.settings import tuned
from inlay.training.corpus import Corpus, load_corpus

SIZE, TIMESTEPS = 128, (100, 300, 500, 700, 900)
GUIDANCE_TIMESTEPS = range(100, 1000, 100)
HOLE = slice(SIZE // 4, 3 * SIZE // 4)


class Model:
    """A backbone in batches: erase, predict, sample."""

    def __init__(self, name: str, bf16: bool, steps: int, scheduler: str) -> None:
        self.backbone = load_backbone(name, device="cpu")
        self.bf16 = bf16
        self.settings = tuned(InpaintSettings)(num_inference_steps=steps, scheduler=scheduler)

    def fast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bf16)

    def erased(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Latent mask, and latent of the picture without what it covers."""
        factor = self.backbone.factor
        small = mask[:, :, ::factor, ::factor]
        whole = small.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        return small, self.backbone.encode(x * (1 - whole))

    def v_error(
        self, x: Tensor, mask: Tensor, captions: Sequence[str], t: int, noise: Tensor
    ) -> Tensor:
        """Mean squared v-error inside the hole, one number a picture."""
        backbone = self.backbone
        small, seen = self.erased(x, mask)
        z, level = backbone.encode(x), backbone.levels[t]
        text = backbone.embed(captions, (SIZE, SIZE))
        with self.fast():
            v = backbone.predict(
                level.add_noise(z, noise), t, Conditions(text, mask=small, masked_latent=seen)
            )
        target = level.output(z, noise, "v_prediction")
        error = ((v - target) ** 2).mean(1, keepdim=True)
        return (error * small).sum((1, 2, 3)) / small.sum((1, 2, 3)).clamp_min(1)

    def sample(
        self, x: Tensor, mask: Tensor, captions: Sequence[str], seed: int, guidance: float = 1.0
    ) -> Tensor:
        """Pictures (N, 3, H, W) in [-1, 1] with the hole painted by the defaults of `inpaint`."""
        backbone = self.backbone
        small, seen = self.erased(x, mask)
        steps = self.settings.num_inference_steps
        solver = backbone.solver(self.settings.scheduler, steps)
        words = backbone.embed(captions, (SIZE, SIZE))
        none = backbone.embed([""] * len(x), (SIZE, SIZE)) if guidance != 1 else None
        generator = torch.Generator().manual_seed(seed)

        conditions = Conditions(words, none, guidance, mask=small, masked_latent=seen)
        denoiser = backbone.denoiser(conditions)

        def fast(z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
            with self.fast():
                return denoiser(z, level)

        z = solver(
            fast,
            torch.zeros_like(seen),
            strength=1.0,
            generator=generator,
        )
        return torch.where(mask > 0, backbone.decode(z).clamp(-1, 1), x)


def tensor(pictures: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def held_out_pictures(corpus: Corpus, count: int) -> tuple[list[np.ndarray], list[str]]:
    rng = np.random.default_rng(0)
    order = rng.permutation(len(corpus))[:count]
    crops = [middle(corpus.images[i][..., :3]) for i in order]
    return crops, [corpus.captions[i] for i in order]


def foreign_pictures(folder: Path | None, pattern: str, count: int) -> list[np.ndarray]:
    photos = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    photos.append(data.stereo_motorcycle()[0])
    for file in sorted(folder.glob(pattern)) if folder else ():
        photos.append(np.asarray(Image.open(file).convert("RGB")))
    rng = np.random.default_rng(0)
    crops = []
    for number in range(count):
        photo = photos[number % len(photos)]
        ratio = 288 / min(photo.shape[:2])
        small = cv2.resize(photo, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA)
        crops.append(random_crop(small, SIZE, rng))
    return crops


def batches(count: int, size: int = 20) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def v_losses(model: Model, pictures: list[np.ndarray], captions: list[str]) -> dict[str, float]:
    rng = np.random.default_rng(1)
    x = tensor(pictures)
    mask = torch.from_numpy(np.stack([random_mask(SIZE, rng) for _ in pictures]))[:, None]
    side, channels = SIZE // model.backbone.factor, model.backbone.latent_channels
    shape = (len(x), channels, side, side)
    noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    return {
        str(t): float(
            torch.cat(
                [
                    model.v_error(x[part], mask[part], captions[part], t, noise[part])
                    for part in batches(len(x))
                ]
            ).mean()
        )
        for t in TIMESTEPS
    }


def energy(grey: Tensor, power: int = 1) -> float:
    """Mean difference of neighbouring grey levels, to a power, along both axes."""
    across, down = grey.diff(dim=-1).abs(), grey.diff(dim=-2).abs()
    return float((across**power).mean() + (down**power).mean())


def decibels(error: Tensor) -> float:
    """The mean of the pictures' PSNRs from their mean squared errors in [0, 1] squared."""
    return float((-10 * torch.log10(error.clamp_min(1e-6))).mean())


def telea(pictures: Sequence[np.ndarray], mask: np.ndarray) -> Tensor:
    hole = (mask * 255).astype(np.uint8)
    return tensor([cv2.inpaint(p, hole, 3, cv2.INPAINT_TELEA) for p in pictures])


def inpainting(model: Model, pictures: list[np.ndarray], samples: int) -> dict[str, float]:
    x, mask = tensor(pictures), np.zeros((SIZE, SIZE), np.float32)
    mask[HOLE, HOLE] = 1
    hole = torch.from_numpy(mask)[None, None]

    def inside(y: Tensor) -> Tensor:
        return ((y + 1) / 2)[..., HOLE, HOLE]

    total, first = torch.zeros_like(inside(x)), torch.zeros_like(inside(x))
    for part in batches(len(x)):
        holes = hole.expand(len(x[part]), -1, -1, -1)
        for seed in range(samples):
            painted = inside(model.sample(x[part], holes, [""] * len(holes), seed))
            total[part] += painted / samples
            if seed == 0:
                first[part] = painted
    truth, classical = inside(x), inside(telea(pictures, mask))

    def error(y: Tensor) -> Tensor:
        return ((y - truth) ** 2).mean((1, 2, 3))

    def pooled(y: Tensor) -> float:
        return decibels(error(y).mean()[None])

    def strength(y: Tensor, power: int = 1) -> float:
        return energy(y.mean(1), power) / energy(truth.mean(1), power)

    return {
        "psnr_mean_of_samples": decibels(error(total)),
        "psnr_telea": decibels(error(classical)),
        "psnr_one_sample": decibels(error(first)),
        "pooled_psnr_mean_of_samples": pooled(total),
        "pooled_psnr_telea": pooled(classical),
        "gradient_energy_one_sample": strength(first),
        "gradient_energy_telea": strength(classical),
        "squared_gradient_one_sample": strength(first, 2),
        "squared_gradient_telea": strength(classical, 2),
    }


def middle(picture: np.ndarray) -> np.ndarray:
    """The square in the middle of a picture, at the model's size."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = picture[top : top + side, left : left + side]
    return np.asarray(cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA))


def guidance(model: Model, corpus: Corpus, count: int, draws: int = 3) -> dict[str, float]:
    """Share of pictures whose own caption explains the hidden object better than another's.

    The denoising loss is the squared error of the noise, a * v-error at cumulative alpha a, over
    timesteps 100 to 900; that of v, which the noisiest timesteps rule, is told as well.
    """
    rng = np.random.default_rng(2)
    classes = sorted({c for c in corpus.captions if corpus.captions.count(c) > 1})
    crops, masks, right, wrong = [], [], [], []
    for index in rng.permutation(len(corpus)):
        caption = corpus.captions[index]
        if caption not in classes or len(crops) == count:
            continue
        crop = middle(corpus.with_object(int(index)))
        mask = cv2.dilate((crop[..., 3] > 127).astype(np.float32), np.ones((7, 7)))
        if not 0.05 < mask.mean() < 0.7:
            continue
        crops.append(crop[..., :3])
        masks.append(mask)
        right.append(caption)
        wrong.append(str(rng.choice([c for c in classes if c != caption])))
    x, mask = tensor(crops), torch.from_numpy(np.stack(masks))[:, None]
    side, channels = SIZE // model.backbone.factor, model.backbone.latent_channels
    gain = {"noise": torch.zeros(len(x)), "v": torch.zeros(len(x))}
    for t in GUIDANCE_TIMESTEPS:
        a = float(model.backbone.levels[t].signal) ** 2
        for _ in range(draws):
            shape = (len(x), channels, side, side)
            noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
            for part in batches(len(x)):
                rows = (x[part], mask[part])
                better = model.v_error(*rows, wrong[part], t, noise[part])
                better -= model.v_error(*rows, right[part], t, noise[part])
                gain["noise"][part] += a * better
                gain["v"][part] += better
    shares = {f"share_by_{k}_loss": float((d > 0).float().mean()) for k, d in gain.items()}
    return {"pictures": len(x), **shares}


def to_pil(x: Tensor, scale: int = 1) -> Image.Image:
    levels = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(levels).resize((SIZE * scale, SIZE * scale), Image.Resampling.LANCZOS)


def grids(
    model: Model, pictures: list[np.ndarray], captions: list[str], name: str, out: Path
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    x, mask = tensor(pictures), np.zeros((SIZE, SIZE), np.float32)
    mask[HOLE, HOLE] = 1
    holes = torch.from_numpy(mask)[None, None].expand(len(x), -1, -1, -1)
    none = [""] * len(x)
    columns = [x, x * (1 - holes), telea(pictures, mask)]
    columns += [model.sample(x, holes, none, seed) for seed in range(3)]
    labels = ["truth", "erased", "Telea", "sample 1", "sample 2", "sample 3"]
    cells = [to_pil(column[row]) for row in range(len(x)) for column in columns]
    sheet = contact_sheet(cells, labels * len(x), columns=len(columns), cell=SIZE)
    sheet.save(out / f"inpainting-{name}.png")
    if name != "held-out":
        return
    whole = torch.ones_like(holes)
    words = [
        "a photo of a t-shirt",
        "a photo of trousers",
        "a photo of shoes",
        "a photo of a dress",
    ]
    words += ["a photo of a building", "a rendering of a red sphere"]
    cells, names = [], []
    for text in words:
        cells += [to_pil(y) for y in model.sample(x[:6] * 0, whole[:6], [text] * 6, 0, 4.0)]
        names += [text.removeprefix("a ")] * 6
    contact_sheet(cells, names, columns=6, cell=SIZE).save(out / "text-guided.png")
    free = [to_pil(y) for y in model.sample(x[:12] * 0, whole[:12], none[:12], 1)]
    contact_sheet(free, [""] * len(free), columns=6, cell=SIZE).save(out / "unconditional.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--foreign", type=Path)
    parser.add_argument("--foreign-pattern", default="*")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--samples", type=int, default=8)
    usual = tuned(InpaintSettings)()
    parser.add_argument("--steps", type=int, default=usual.num_inference_steps)
    parser.add_argument("--scheduler", default=usual.scheduler)
    parser.add_argument("--bf16", action="store_true", help="faster, rounded networks")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    model, corpus = (
        Model(arguments.model, arguments.bf16, arguments.steps, arguments.scheduler),
        load_corpus(arguments.folder, held_out=True),
    )
    pictures, captions = held_out_pictures(corpus, arguments.pictures)
    foreign = foreign_pictures(
        arguments.foreign, arguments.foreign_pattern, arguments.pictures // 2
    )
    with torch.inference_mode():
        report: dict[str, Any] = {
            "model": arguments.model,
            "hash": model.backbone.hash,
            "scheduler": model.settings.scheduler,
            "num_inference_steps": model.settings.num_inference_steps,
            "v_loss_in_hole": v_losses(model, pictures, captions),
            "guidance": guidance(model, corpus, arguments.pictures),
        }
        print(json.dumps(report, indent=2), flush=True)
        for name, set_ in (("held out", pictures), ("foreign", foreign)):
            report[name] = inpainting(model, set_, arguments.samples)
            print(name, json.dumps(report[name], indent=2), flush=True)
        if arguments.output:
            grids(model, pictures[:12], captions[:12], "held-out", arguments.output)
            own = foreign_pictures(None, "", 12)
            grids(model, own, [""] * 12, "scikit-image", arguments.output)
            (arguments.output / "quality.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
