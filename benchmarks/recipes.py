"""Which architecture or recipe learns most in the same time? Short runs of the embedded training.

    python benchmarks/recipes.py FOLDER [-o DIR] [--minutes 5] [--size 64] [NAME:KEY=VALUE:...]...

Each recipe starts afresh (or from `start_from`), trains for the same wall time on one thread with a
learning rate that falls to nothing over the last 40% of it, and is validated on the same 128
held-out pictures. Two recipes run beside each other, one on each core, so that whatever else the
machine does slows both. Prints samples, samples a second, and the v-loss in the hole.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DEFAULT = [
    "adamw:optimizer=adamw:learning_rate=3e-4",
    "muon",
    "muon, twice the layers:layers_per_block=2",
    "muon, 96/192/384:block_out_channels=[96,192,384]",
    "muon, a fourth level:block_out_channels=[64,128,256,256]",
]
BASE: dict[str, Any] = {
    "steps": 10**6, "ema_decay": 0.99, "low_resolution_steps": 0, "batch": 16, "seed": 0,
    "warmup_steps": 50, "learning_rate": 1e-3, "save_every": 10**6,
    "object_mask_share": 0.0, "recolour_share": 0.0,
}  # fmt: skip


def value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def one(recipe: str, folder: Path, out: Path, minutes: float, size: int) -> dict[str, Any]:
    import torch

    from inlay.training.embedded import EmbeddedConfig, EmbeddedTrainer

    torch.set_num_threads(1)
    name, *items = recipe.split(":")
    own = {key: value(text) for key, text in (item.split("=", 1) for item in items)}
    config = EmbeddedConfig(**{**BASE, "resolution": size, **own})
    out.mkdir(parents=True, exist_ok=True)

    class Timed(EmbeddedTrainer):
        """The learning rate goes by the clock."""

        def learning_rate(self) -> float:
            warm = min(1.0, (self.step + 1) / config.warmup_steps)
            left = (minutes * 60 - (time.monotonic() - started)) / (0.4 * minutes * 60)
            return config.learning_rate * warm * min(1.0, max(0.0, left))

    started = time.monotonic()
    trainer = Timed(folder, out, config)
    started = time.monotonic()
    while time.monotonic() - started < minutes * 60:
        trainer.train_step()
    seconds = time.monotonic() - started
    validation = trainer.report()[0]["validation_v_loss"]
    return {
        "recipe": name,
        "millions": sum(p.numel() for p in trainer.network.unet.parameters()) / 1e6,
        "samples": trainer.step * config.batch,
        "a_second": trainer.step * config.batch / seconds,
        "v_loss": validation,
        "mean": sum(validation.values()) / len(validation),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("recipes", nargs="*", default=DEFAULT)
    parser.add_argument("-o", "--output", type=Path, default=Path("recipes"))
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_intermixed_args()
    if a.alone:
        print(json.dumps(one(a.recipes[0], a.folder, a.output, a.minutes, a.size)))
        return
    me = [sys.executable, __file__, str(a.folder)]
    shared = ["--minutes", str(a.minutes), "--size", str(a.size), "--alone"]
    print("recipe | M | samples | /s | v-loss at t = 100 300 500 700 900 | mean")
    for first in range(0, len(a.recipes), 2):
        processes = [
            subprocess.Popen(
                [*me, recipe, *shared, "-o", str(a.output / str(first + number))],
                stdout=subprocess.PIPE,
                text=True,
            )
            for number, recipe in enumerate(a.recipes[first : first + 2])
        ]
        for process in processes:
            text = process.communicate()[0].strip()
            if process.returncode:
                raise SystemExit("a recipe failed")
            row = json.loads(text.splitlines()[-1])
            losses = " ".join(f"{loss:.4f}" for loss in row["v_loss"].values())
            print(
                f"{row['recipe']} | {row['millions']:.1f} | {row['samples']} | "
                f"{row['a_second']:.1f} | {losses} | {row['mean']:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
