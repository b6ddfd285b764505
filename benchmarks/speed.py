"""What does inlay cost on top of the network, and what does a large background cost?

Prints ratios, each between two things timed alternately in one run, with peak memory:
1. compose (arrays in and out: no files) over a bare replay of its network calls;
2. compose on a 12-megapixel background over compose on a 0.25-megapixel one, same window;
3. inpainting a window of 128 pixels in 25 steps over 25 bare calls of the U-Net;
and, from a cold start, the whole command `inlay compose` with its default method: seconds and peak
memory of its process.

    python benchmarks/speed.py [RUNS]

A file of 12 megapixels in and one out, without a model, over what Pillow's open and save cost:

    python benchmarks/speed.py [RUNS] --files

What compose costs besides its network calls, in this tree and in another, by turns in processes of
their own (CPU seconds, both warm, networks answering from memory):

    python benchmarks/speed.py [RUNS] --against TREE
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from PIL import Image
from skimage import data

from inlay import Box, Composer


def subject() -> np.ndarray:
    """A round cut-out of the coffee cup, with alpha: no segmentation is timed."""
    photo = data.coffee()[20:340, 150:470]
    alpha = np.zeros(photo.shape[:2], np.uint8)
    cv2.ellipse(alpha, (160, 160), (150, 130), 0, 0, 360, 255, -1, cv2.LINE_AA)
    return np.dstack([photo, alpha])


def background(width: int, height: int) -> np.ndarray:
    return np.asarray(cv2.resize(data.astronaut(), (width, height), interpolation=cv2.INTER_CUBIC))


class Recorder:
    """Notes every call of the networks, so that the calls alone can be run again."""

    def __init__(self, composer: Composer) -> None:
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []
        backbone = composer.backbone
        for owner, name in (
            (backbone.unet, "forward"),
            (backbone.vae, "encode"),
            (backbone.vae, "decode"),
        ):
            self._wrap(owner, name)

    def _wrap(self, owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((plain, args, kwargs))
            return plain(*args, **kwargs)

        setattr(owner, name, noted)

    def replay(self) -> None:
        with torch.inference_mode():
            for function, args, kwargs in self.calls:
                function(*args, **kwargs)


def timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def alternately(
    a: Callable[[], Any], b: Callable[[], Any], runs: int
) -> tuple[float, float, float]:
    """Medians of both, and of the pairwise ratio."""
    pairs = [(timed(a), timed(b)) for _ in range(runs)]
    return (
        statistics.median(p[0] for p in pairs),
        statistics.median(p[1] for p in pairs),
        statistics.median(p[0] / p[1] for p in pairs),
    )


def help_cpu_seconds() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "inlay", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def inpainting(composer: Composer) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Both sides of the third ratio."""
    from inlay.diffusion.conditions import Conditions

    backbone = composer.backbone
    picture = background(128, 128)
    mask = np.zeros((128, 128), np.uint8)
    mask[32:96, 32:96] = 255
    z = torch.zeros(1, backbone.latent_channels, 32, 32)
    words = backbone.embed([""], (128, 128))

    def whole() -> None:
        composer.remove(picture, mask=mask, method="inpaint", num_inference_steps=25, seed=1)

    denoiser = backbone.denoiser(Conditions(words, mask=z[:, :1], masked_latent=z))

    def bare() -> None:
        with torch.inference_mode():
            for t in range(999, -1, -40):
                denoiser(z, backbone.levels[t])

    return whole, bare


def overhead(runs: int) -> float:
    """CPU seconds of one warm compose whose networks answer from memory: the median of `runs`."""
    composer = Composer.from_pretrained("embedded", device="cpu")
    cup, picture, box = subject(), background(500, 500), Box(180, 180, 128, 128)

    def whole() -> None:
        composer.compose(picture, cup, box=box, method="cdc", seed=1, num_inference_steps=10)

    whole()
    backbone, seconds = composer.backbone, list[float]()
    answers: list[Any] = []
    heard: list[Any] = []

    def answer(plain: Callable[..., Any], *args: Any, **more: Any) -> Any:
        heard.append(answers.pop(0) if answers else plain(*args, **more))
        return heard[-1]

    for owner, name in (
        (backbone.unet, "forward"),
        (backbone.vae, "encode"),
        (backbone.vae, "decode"),
    ):
        setattr(owner, name, partial(answer, getattr(owner, name)))
    whole()
    known = list(heard)
    for _ in range(runs):
        answers[:] = known
        start = time.process_time()
        whole()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def against(tree: str, runs: int) -> None:
    """Both trees by turns."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found: dict[str, list[float]] = {here: [], os.path.abspath(tree): []}
    for _ in range(3):
        for root, seconds in found.items():
            environment = {**os.environ, "PYTHONPATH": os.path.join(root, "src")}
            command = [sys.executable, __file__, str(runs), "--overhead"]
            done = subprocess.run(command, env=environment, check=True, capture_output=True)
            seconds.append(float(done.stdout))
    ours, theirs = (statistics.median(seconds) for seconds in found.values())
    shown = [f"{name} {each:.4f} s" for name, each in (("here", ours), ("there", theirs))]
    print(f"compose besides its network calls, CPU: {', '.join(shown)}; ratio {ours / theirs:.3f}")
    print({root: [round(one, 4) for one in seconds] for root, seconds in found.items()})


def cold_start() -> tuple[float, float]:
    """Seconds and peak memory in MB of the whole command, files in and out."""
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(background(1500, 1000)).save(f"{folder}/background.jpg")
        Image.fromarray(subject()).save(f"{folder}/cup.png")
        files = [f"{folder}/background.jpg", f"{folder}/cup.png"]
        place = ["--box", "600,400,300,300", "-o", f"{folder}/out.png", "--quiet"]
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "inlay", "compose", *files, *place])
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            raise SystemExit("inlay compose failed")
    return seconds, usage.ru_maxrss / 1024


def files(runs: int) -> None:
    """CPU seconds of a 12 MP file in and one out, without a model, over Pillow's open and save."""
    rng, composer = np.random.default_rng(0), Composer(device="cpu")
    tiles = np.tile(data.astronaut(), (6, 8, 1))[:3000, :4000]
    photo = np.clip(tiles + rng.normal(0, 2, tiles.shape), 0, 255).round().astype(np.uint8)
    best = {"quality": 95, "subsampling": 0}
    cases = [("png", {}, {}), ("jpg", best, {}), ("jpg", best, {"jpeglib": None})]
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(subject()).save(f"{folder}/cup.png")
        for kind, options, hidden in cases:
            source, target = f"{folder}/source.{kind}", f"{folder}/target.{kind}"
            Image.fromarray(photo).save(source, **options)

            def ours(source: str = source, target: str = target) -> None:
                place = {"box": Box(1800, 1300, 700, 600), "shadow": "none", "method": "paste"}
                composer.compose(source, f"{folder}/cup.png", **place).save(target)

            def pillows(source: str = source, target: str = target, options: Any = options) -> None:
                with Image.open(source) as picture:
                    picture.save(target, **options)

            spent: dict[str, list[float]] = {"ours": [], "Pillow's": []}
            with mock.patch.dict(sys.modules, hidden):
                ours()
                size = os.path.getsize(target) / 1e6
                for _ in range(runs):
                    for name, side in zip(spent, (ours, pillows), strict=True):
                        start = time.process_time()
                        side()
                        spent[name].append(time.process_time() - start)
            a, b = (statistics.median(each) for each in spent.values())
            label = f"12 MP {kind} to {kind}{', without inlay[jpeg]' if hidden else ''}"
            print(f"{label:42s} {a / b:6.3f}   (CPU {a:.2f} s, {b:.2f} s; {size:.1f} MB)")


def main(runs: int) -> None:
    # First: a child's peak counts what its parent held when it was started.
    seconds, peak = cold_start()
    composer = Composer.from_pretrained("embedded", device="cpu")
    cup, small, large = subject(), background(500, 500), background(4000, 3000)
    box = Box(180, 180, 128, 128)

    def on(picture: np.ndarray) -> Callable[[], Any]:
        return lambda: composer.compose(picture, cup, box=box, method="cdc", seed=1)

    on(small)()
    recorder = Recorder(composer)
    on(small)()
    replay = Recorder.replay
    calls = list(recorder.calls)

    def bare() -> None:
        recorder.calls = list(calls)
        replay(recorder)

    def whole() -> None:
        on(small)()
        recorder.calls = []

    a, b, ratio = alternately(whole, bare, runs)
    print(
        f"{'compose / bare network calls':42s} {ratio:6.3f}   "
        f"({a:.2f} s, {b:.2f} s, {len(calls)} calls)"
    )
    a, b, ratio = alternately(on(large), on(small), runs)
    print(f"{'12 MP / 0.25 MP background, same window':42s} {ratio:6.3f}   ({a:.2f} s, {b:.2f} s)")
    a, b, ratio = alternately(*inpainting(composer), runs)
    print(
        f"{'25 steps of inpaint / 25 bare U-Net calls':42s} {ratio:6.3f}   ({a:.2f} s, {b:.2f} s)"
    )
    cpu = statistics.median(help_cpu_seconds() for _ in range(5))
    print(f"{'inlay --help, CPU seconds (median of 5)':42s} {cpu:6.3f}")
    print(
        f"{'peak memory, MB':42s} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:6.0f}"
    )
    print(f"{'inlay compose, cold start, seconds':42s} {seconds:6.1f}   (peak {peak:.0f} MB)")


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    how_often = numbers[0] if numbers else 7
    if "--files" in sys.argv:
        files(how_often)
    elif "--overhead" in sys.argv:
        print(overhead(how_often))
    elif "--against" in sys.argv:
        against(sys.argv[sys.argv.index("--against") + 1], how_often)
    else:
        main(how_often)
