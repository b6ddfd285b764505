"""Workers that meet with accidents, and commands that are made to run with them."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.batch.command import Running
from inlay.batch.engine import Actors, Crew, Processes
from inlay.batch.order import Batch
from inlay.batch.runner import Event, Job, Runner

SECONDS = 8.0
# What a process was told in its environment by the time it imported this module.
NAMES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
TOLD = json.dumps([os.environ.get(name) for name in NAMES])


class Told(Runner):
    """Says which threads and GPU its process was told of; does nothing else."""

    def run(self, job: Job, callback: Any = None) -> Event:
        return Event("done", TOLD)


class Unlucky(Runner):
    """Some of its jobs end its process or never end; it writes down what it begins."""

    def run(self, job: Job, callback: Any = None) -> Event:
        with open(Path(job.output).with_name("begun.txt"), "a") as file:
            file.write(f"{job.name} {os.getpid()}\n")
        if "poison" in job.name:
            os.kill(os.getpid(), signal.SIGKILL)
        if "hung" in job.name:
            time.sleep(3600)
        return super().run(job, callback)


@dataclass(frozen=True)
class Accidents(Running):
    """The options of a batch whose workers are unlucky."""

    def crew(self) -> Crew:
        if self.engine == "ray":
            return Actors(None, 2, SECONDS, Unlucky)
        return Processes(2, seconds=SECONDS, threads=1, runner=Unlucky)


def manifest(folder: Path, names: list[str], **more: Any) -> str:
    """A manifest of small pastes, one of each name, beside the pictures that they are made of."""
    path = folder / "manifest.jsonl"
    with path.open("w") as file:
        for number, name in enumerate(names):
            box = [number % 40, number // 40, 40, 36]
            row = {"verb": "compose", "method": "paste", "background": "scene.png", "name": name}
            row |= {"shadow": "none", "subjects": [{"picture": "cup.png", "box": box}], **more}
            file.write(json.dumps(row) + "\n")
    return str(path)


def begun(out: Path) -> list[str]:
    """The jobs that were begun in a folder, in their order."""
    return [line.split()[0] for line in (out / "begun.txt").read_text().splitlines()]


if __name__ == "__main__":
    told = Accidents(engine=sys.argv[3], quiet=True)  # type: ignore[arg-type]
    sys.exit(Batch(sys.argv[1], sys.argv[2], told).write(lambda: None))
