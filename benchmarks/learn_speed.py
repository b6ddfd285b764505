"""How many steps a second does `inlay learn` make, against a loop as diffusers' example has it?

Ours is Learning.train_step with its defaults. The other side is written as diffusers' DreamBooth
LoRA examples are (examples/dreambooth/train_dreambooth_lora.py, and for inpainting checkpoints
examples/research_projects/dreambooth_inpaint): each step opens and crops its pictures, encodes
them (and the masked ones) and the prompt, runs the U-Net with diffusers' own attention, and learns
by mean squared error and AdamW. Checkpoint, photos, batch, side, rank, layers and threads are the
same. The other side is timed twice: "float32", the example's default, and "bf16", its
--mixed_precision bf16, where the frozen weights are bfloat16, the LoRA is float32 and autocast is
on; ours has autocast to bfloat16.

All are timed in turn, block by block, in one process. Prints steps a second, ours / theirs as the
median over the rounds by CPU time and by wall time, and the most memory that a process holds while
it makes steps, interpreter and libraries included (on a GPU, what torch allocated).

    python benchmarks/learn_speed.py [--model embedded] [--steps 5] [--rounds 5] [--batch 4]
        [--resolution PIXELS] [--layers all] [--rank 16] [--threads 1] [--device cpu]
"""

from __future__ import annotations

import argparse
import gc
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from skimage import data
from torch import Tensor
from torch.nn import functional

from inlay import Box
from inlay.checkpoints.load import load_backbone
from inlay.diffusion.backbone import Backbone
from inlay.learning.learn import Learning
from inlay.learning.lora import lora_layers
from inlay.learning.photos import find_views, with_places
from inlay.learning.samples import example
from inlay.learning.settings import LearnConfig

PHOTOS = {"coffee": Box(180, 80, 240, 230), "chelsea": Box(60, 20, 300, 270)}
SIDES = ("ours", "float32", "bf16")
MARK = Path("/proc/self/clear_refs")
Step = Callable[[], object]


def photos(folder: Path) -> list[str]:
    for name in PHOTOS:
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.jpg", quality=95)
    return [str(folder / f"{name}.jpg") for name in PHOTOS]


def ours(folder: Path, backbone: Backbone, config: LearnConfig) -> Step:
    views = find_views(with_places(photos(folder), list(PHOTOS.values())))
    side = config.resolution or backbone.native_size
    run = Learning(
        [example(view, config, side) for view in views], "thing", folder, backbone, config
    )
    return run.train_step


class Theirs:
    """One step as diffusers' example makes it."""

    def __init__(
        self, folder: Path, backbone: Backbone, config: LearnConfig, dtype: torch.dtype
    ) -> None:
        from diffusers import DDPMScheduler
        from diffusers.training_utils import cast_training_params
        from peft import LoraConfig

        self.files, self.backbone, self.config, self.dtype = photos(folder), backbone, config, dtype
        self.side = config.resolution or backbone.native_size
        unet, names = backbone.unet, lora_layers(backbone.unet, config.layers)
        for module in (unet, backbone.vae, *backbone.text.encoders):
            module.to(dtype=dtype)
        rank = config.rank
        unet.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=names)
        )
        if dtype != torch.float32:
            cast_training_params(unet, dtype=torch.float32)
        unet.train()
        self.learning = [p for p in unet.parameters() if p.requires_grad]
        scheduler: Any = DDPMScheduler
        self.scheduler = scheduler.from_config(backbone.scheduler_config)
        self.optimizer = torch.optim.AdamW(
            self.learning, lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8
        )
        self.rng = np.random.default_rng(0)

    def picture(self) -> Tensor:
        """A photo, its shorter side resized to the model's, cropped at random: in [-1, 1]."""
        image = Image.open(self.files[self.rng.integers(len(self.files))])
        image = ImageOps.exif_transpose(image).convert("RGB")
        scale = self.side / min(image.size)
        wide, high = (max(self.side, round(length * scale)) for length in image.size)
        image = image.resize((wide, high), Image.Resampling.BILINEAR)
        x, y = (int(self.rng.integers(spare + 1)) for spare in (wide - self.side, high - self.side))
        image = image.crop((x, y, x + self.side, y + self.side))
        return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1) * 2 - 1

    def mask(self) -> Tensor:
        """A random rectangle, as the inpainting example draws it: 1 where it is erased."""
        low = self.side // 4
        wide, high = self.rng.integers(low, self.side - low, 2)
        x, y = (int(self.rng.integers(self.side - length)) for length in (wide, high))
        mask = torch.zeros(1, self.side, self.side)
        mask[:, y : y + high, x : x + wide] = 1
        return mask

    def encode(self, x: Tensor) -> Tensor:
        vae = self.backbone.vae
        output = vae.encode(x.to(self.dtype))
        drawn = output.latent_dist.sample() if hasattr(output, "latent_dist") else output.latents
        latent: Tensor = drawn * vae.config.scaling_factor
        return latent

    def embed(self) -> tuple[Tensor, dict[str, Tensor] | None]:
        text, device = self.backbone.text, self.backbone.device
        outputs = [
            encoder(
                torch.tensor([text.token_ids("a photo of sks thing", i)] * self.config.batch).to(
                    device
                ),
                output_hidden_states=text.penultimate,
            )
            for i, encoder in enumerate(text.encoders)
        ]
        if not text.penultimate:
            return outputs[0].last_hidden_state, None
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        sizes = [[self.side, self.side, 0, 0, self.side, self.side]] * self.config.batch
        return hidden, {
            "text_embeds": outputs[-1].text_embeds,
            "time_ids": torch.tensor(sizes, device=device, dtype=self.dtype),
        }

    def __call__(self) -> None:
        unet, device = self.backbone.unet, self.backbone.device
        rows = range(self.config.batch)
        pictures = torch.stack([self.picture() for _ in rows]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.dtype != torch.float32):
            latents = self.encode(pictures)
            noise = torch.randn_like(latents)
            count = int(self.scheduler.config.num_train_timesteps)
            t = torch.randint(0, count, (len(latents),), device=device)
            inputs = self.scheduler.add_noise(latents, noise, t)
            if self.backbone.kind == "inpaint":
                masks = torch.stack([self.mask() for _ in rows]).to(device)
                masked = self.encode(pictures * (masks < 0.5))
                small = functional.interpolate(masks, latents.shape[-2:]).to(inputs.dtype)
                inputs = torch.cat([inputs, small, masked], 1)
            hidden, added = self.embed()
            output = unet(inputs, t, hidden, added_cond_kwargs=added).sample
            kind = self.scheduler.config.prediction_type
            target = noise
            if kind == "v_prediction":
                target = self.scheduler.get_velocity(latents, noise, t)
            elif kind == "sample":
                target = latents
            loss = functional.mse_loss(output.float(), target.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learning, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def made(side: str, folder: Path, options: argparse.Namespace) -> Step:
    config = LearnConfig(
        model=options.model,
        batch=options.batch,
        resolution=options.resolution,
        layers=options.layers,
        rank=options.rank,
        variants=4,
    )
    folder = folder / side
    folder.mkdir()
    backbone = load_backbone(config.model, device=options.device, dtype="float32")
    if side == "ours":
        return ours(folder, backbone, config)
    dtype = torch.float32 if side == "float32" else torch.bfloat16
    return Theirs(folder, backbone, config, dtype)


def peak(side: str, options: argparse.Namespace) -> float:
    """The most MB that a process holds while it makes two steps of a side, when all is loaded."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        step = made(side, Path(folder), options)
        gc.collect()
        if options.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        elif MARK.exists():
            # Linux forgets the peak of before.
            MARK.write_text("5")
        step()
        step()
    if options.device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    if MARK.exists():
        lines = MARK.with_name("status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
    # The peak of loading, too; kilobytes, but bytes on macOS.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def peaks() -> dict[str, float]:
    """peak() of each side, each in a process of its own."""
    found = {}
    for side in SIDES:
        told = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--peak", side],
            check=True,
            capture_output=True,
            text=True,
        )
        found[side] = float(told.stdout.split()[-1])
    return found


def timed(step: Step, count: int, device: str) -> tuple[float, float]:
    """(CPU, wall) seconds of so many steps."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(count):
        step()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--layers", default="all")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak(options.peak, options))
        return
    held = peaks()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        steps = {side: made(side, Path(folder), options) for side in SIDES}
        for step in steps.values():
            step()
            step()
        rounds = [
            {side: timed(step, options.steps, options.device) for side, step in steps.items()}
            for _ in range(options.rounds)
        ]
    for side in SIDES:
        wall = statistics.median(one[side][1] for one in rounds) / options.steps
        line = f"{side:8s} {1 / wall:6.2f} steps/s   {held[side]:7.0f} MB"
        if side != "ours":
            cpu, by_wall = (
                statistics.median(one[side][i] / one["ours"][i] for one in rounds) for i in (0, 1)
            )
            line += f"   ours is {cpu:.2f} (CPU) {by_wall:.2f} (wall) times as fast"
        print(line, flush=True)


if __name__ == "__main__":
    main()
