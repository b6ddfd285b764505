"""Does a benchmark outlive kills, is its page small, and does scoring cost what the metrics cost?

    python benchmarks/bench.py kills DIR [--methods A,B] [--times 3]
    python benchmarks/bench.py page DIR [--pairs 200]
    python benchmarks/bench.py scoring DIR [--pictures 1000]
    python benchmarks/bench.py look-alikes DIR

kills: look-alikes of MureCom (two categories, two backgrounds, two objects) and of DreamEditBench
are run whole by every method, and again in another folder, killed (SIGKILL) at random moments and
resumed; told is whether the tables are the same to the byte. page: the bytes of report.html for so
many pairs of 512 pixels by seven methods. scoring: seconds to score stored composites of 512 pixels
with SSIM, seam and bytes changed, over those of the bare calls and of decoding files. look-alikes:
writes the data sets alone, to run inlay bench on.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from evaluation import lookalikes
from inlay.evaluation.bench import Bench
from inlay.evaluation.datasets import open_dataset
from inlay.evaluation.figures import bytes_changed, seam, ssim_outside
from inlay.evaluation.metrics import metrics_of
from inlay.evaluation.report import write_results

METHODS = "paste,poisson,phd,cdc,freecompose,exemplar,dreamcom"
FAST = ("phd", "cdc", "exemplar", "dreamcom")
TABLES = ("tables.md", "tables.tex", "tables.csv")


def command(name: str, root: Path, out: Path, methods: str) -> list[str]:
    told = [sys.executable, "-m", "inlay", "bench", name, str(root), "--methods", methods]
    for method in set(FAST) & set(methods.split(",")):
        told += ["--set", f"{method}.num_inference_steps=4"]
    if "freecompose" in methods:
        told += ["--set", "freecompose.num_iterations=4"]
    return [*told, "--learn", "steps=4", "-o", str(out), "--quiet"]


def kills(folder: Path, methods: str, times: int) -> None:
    """Both data sets, whole and killed."""
    for name in ("murecom", "dreameditbench"):
        root = lookalikes.LAYOUTS[name](folder / name)
        whole, killed = folder / f"{name}-whole", folder / f"{name}-killed"
        started = time.monotonic()
        subprocess.run(command(name, root, whole, methods), check=True)
        seconds = time.monotonic() - started
        moments = sorted(random.uniform(0.15, 0.9) * seconds for _ in range(times))
        spent, resume = 0.0, list[str]()
        for moment in moments:
            process = subprocess.Popen([*command(name, root, killed, methods), *resume])
            time.sleep(max(moment - spent, 1.0))
            process.send_signal(signal.SIGKILL)
            process.wait()
            made = len(list(killed.rglob("pictures/*/*.png")))
            print(f"{name}: killed at {moment:.0f} of {seconds:.0f} s, with {made} pictures")
            spent, resume = moment, ["--resume"] if (killed / "bench.json").exists() else []
        subprocess.run([*command(name, root, killed, methods), *resume], check=True)
        same = all((whole / t).read_bytes() == (killed / t).read_bytes() for t in TABLES)
        pictures = sorted(path.relative_to(whole) for path in whole.rglob("pictures/*/*.png"))
        # Their records name the folder that concepts lie in, so files may differ.
        equal = [
            np.array_equal(*(np.asarray(Image.open(root / path)) for root in (whole, killed)))
            for path in pictures
        ]
        said = "the same" if same else "DIFFERENT"
        print(f"{name}: tables {said}, and {sum(equal)} of {len(equal)} pictures")


def composites(folder: Path, count: int, labels: int) -> tuple[Path, list[str]]:
    """A manifest of pairs of 512 pixels, and folders with pictures of them."""
    photos = [data.astronaut(), data.coffee()[:400, :400], data.chelsea()[:300, :300]]
    photos = [np.asarray(Image.fromarray(photo).resize((512, 512))) for photo in photos]
    rng, lines = np.random.default_rng(0), list[str]()
    names = [folder / "made" / f"method-{number}" for number in range(labels)]
    for each in (folder / "places", *names):
        each.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        x, y = (int(v) for v in rng.integers(40, 240, 2))
        place = np.roll(photos[number % 3], number * 7, axis=1)
        Image.fromarray(place).save(folder / "places" / f"{number}.png", compress_level=1)
        row = {"name": f"pair-{number:04d}", "verb": "compose", "method": "paste"}
        row |= {"background": f"places/{number}.png"}
        row["subjects"] = [
            {"picture": f"places/{(number + 1) % count}.png", "box": [x, y, 180, 180]}
        ]
        lines.append(str(row).replace("'", '"'))
        for label, path in enumerate(names):
            made = place.copy()
            other = photos[(number + 1) % 3][100:280, 100:280]
            made[y : y + 180, x : x + 180] = other * (0.5 + label / 14)
            Image.fromarray(made).save(path / f"pair-{number:04d}.png", compress_level=1)
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder / "manifest.jsonl", [str(path) for path in names]


def page(folder: Path, pairs: int) -> None:
    """The page of many pairs."""
    manifest, results = composites(folder, pairs, 7)
    metrics = [m for m in metrics_of("inlay") if m.name in ("ssim_outside", "seam")]
    bench = Bench(open_dataset("manifest", manifest), [], folder / "out", results=results)
    bench.write(lambda: None)
    about = {"title": "Pictures of seven methods", "benchmark": "manifest", "protocol": "inlay"}
    write_results(bench, bench.score(metrics), metrics, about)
    size = os.path.getsize(folder / "out" / "report.html")
    print(f"{pairs} pairs by 7 methods: {size / 1e6:.1f} MB, {folder}/out/report.html")


def scoring(folder: Path, pictures: int) -> None:
    """The cost of scoring over that of the metrics."""
    manifest, results = composites(folder, pictures, 1)
    named = ("ssim_outside", "seam", "changed_outside")
    metrics = [m for m in metrics_of("inlay") if m.name in named]
    bench = Bench(open_dataset("manifest", manifest), [], folder / "out", results=results)
    bench.write(lambda: None)
    started = time.perf_counter()
    bench.score(metrics)
    whole, bare, files = time.perf_counter() - started, 0.0, 0.0
    for pair in bench.pairs:
        started = time.perf_counter()
        paths = (bench.files["method-0", pair.name][0][0], pair.background)
        made, place = (np.asarray(Image.open(path).convert("RGB")) for path in paths)
        read = time.perf_counter()
        worked = np.zeros(made.shape[:2], np.bool_)
        worked[pair.box.slices] = True
        ssim_outside(pair.box, made, place)
        seam(made, worked, pair.box)
        bytes_changed(made, place, pair.box)
        files, bare = files + read - started, bare + time.perf_counter() - read
    print(f"{pictures} pictures: {whole:.1f} s; bare calls {bare:.1f} s, decoding {files:.1f} s")
    print(f"{whole / (bare + files):.2f} times both, {whole / bare:.2f} times the calls alone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("kills", "page", "scoring", "look-alikes"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=1000)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.what == "kills":
        kills(given.folder, given.methods, given.times)
    elif given.what == "look-alikes":
        for name in ("murecom", "dreameditbench"):
            print(lookalikes.LAYOUTS[name](given.folder / name))
    elif given.what == "page":
        page(given.folder, given.pairs)
    else:
        scoring(given.folder, given.pictures)


if __name__ == "__main__":
    main()
