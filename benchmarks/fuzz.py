"""Does the command line answer whatever it is given with a picture or with one sentence?

    python benchmarks/fuzz.py --count 10000 [--seed N]
    python benchmarks/fuzz.py --only SEED

Photographs, records inside pictures, requests, a concept, a LoRA, the JSON of checkpoints and
command lines are damaged or changed. A case has its own seed and folder and calls inlay.cli.main,
in one process with all others. It fails where the status is neither 0 nor 2; where standard error
has more than one printable line at status 2, a warning at status 0, or a C library's chatter; where
a file is left besides the output, an input is changed or the output is no picture; beyond 30 s of
CPU time, 60 s in all or 2 GB of memory. Failures are grouped by what was said, with their seeds.
--only shows what one case came to and keeps its folder. Linux only.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import math
import os
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import pyvips
import typer
from PIL import Image, ImageCms, PngImagePlugin
from safetensors.numpy import save_file
from skimage import data

import inlay
from inlay.cli.app import app
from inlay.cli.app import main as run_inlay

CPU_SECONDS, WALL_SECONDS, MEMORY_KB = 30, 60, 2 << 20
SUFFIXES = ["png", "jpg", "webp", "avif", "tif", "bmp"]
ODD_TEXTS = [
    "", " ", "-", "--", ".", "..", "/", "~", "\0", "\n", "\x1b[31mred\x1b[0m", "\ud800", "é" * 3000,
    "x" * 70000, "%s%n", "../../etc/passwd", "/dev/zero", "/dev/null", "/proc/self/mem", "pipe.png",
    "folder", "-0", "nan", "inf", "-1", "1e309", "9" * 5000, "0x10", "1,2,3,4", "0,0,1,1", "a,b",
    "-5,-5,20,20", "0,0,99999999,99999999", "1e-300,0,5,5", "owner/name", "embedded", "null", "[]",
    "https://example.org/a.png", "file:///etc/passwd", "CON", "a\u202eb.png", "=", "K=V", "seed=1",
]  # fmt: skip
ODD_VALUES: list[Any] = [
    *ODD_TEXTS, None, True, False, 0, -1, 1, 0.5, 1e-320, 1e308, float("nan"), float("inf"), 10**40,
    2**31, 2**63, -(2**63) - 1, [], {}, [[]], [None], {"": {}}, [0] * 5000, "[" * 2000,
]  # fmt: skip
OUT, FEW = ["-o", "out.png"], "--num-inference-steps=1"
COMPOSE = ["compose", "photo.png", "subject.png", "--box=10,10,40,40", *OUT]
REMOVE = ["remove", "photo.png", "--mask=mask.png", "--method=inpaint", FEW, *OUT]


def write_corpus(folder: Path) -> None:
    """What each case finds in its folder: photographs as many kinds of file, and inlay's files."""
    os.chdir(folder)
    photo, cup = data.astronaut()[0:90, 170:280], data.coffee()[60:150, 200:310]
    alpha, mask = np.zeros((2, 90, 110), np.uint8)
    cv2.circle(alpha, (50, 40), 32, 255, -1, cv2.LINE_AA)
    cv2.ellipse(mask, (40, 45), (16, 12), 0, 0, 360, 255, -1, cv2.LINE_AA)
    rgb, rgba = Image.fromarray(photo), Image.fromarray(np.dstack([cup, alpha]))
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    turned = Image.Exif()
    turned[0x0112] = 6
    for suffix in SUFFIXES:
        rgb.save(f"photo.{suffix}", **({} if suffix == "bmp" else {"icc_profile": icc}))
        Image.fromarray(mask).save(f"mask.{suffix}")
        if suffix not in ("jpg", "bmp"):
            rgba.save(f"subject.{suffix}")
    rgb.save("photo.gif", save_all=True, append_images=[rgb.rotate(90)])
    rgba.convert("P").save("palette.png", transparency=3)
    rgb.convert("CMYK").save("cmyk.jpg")
    rgb.convert("L").save("grey.jpg")
    rgb.save("turned.jpg", progressive=True, subsampling=2, exif=turned)
    rgb.convert("F").save("float.tif")
    for suffix in ("png", "tif"):
        for name, samples in (("deep", photo), ("deep-grey", photo[..., 0]), ("mask-deep", mask)):
            cv2.imwrite(f"{name}.{suffix}", samples.astype(np.uint16) * 257)
    learn = ["learn", "subject.png", "--class-name=cup", "--set=steps=2", "--set=variants=1"]
    assert run_inlay([*COMPOSE[:-1], "record.png", "--method=paste", "--quiet"]) == 0
    assert run_inlay([*learn, "-o", "concept.safetensors", "--quiet"]) == 0
    shutil.rmtree("concept-learning")
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    shapes = {"alpha": (), "lora_down.weight": (2, 128), "lora_up.weight": (128, 2)}
    lora = {f"{layer}.{end}": np.full(shape, 0.1, np.float32) for end, shape in shapes.items()}
    save_file(lora, "lora.safetensors")
    Path("folder").mkdir()


def damaged(rng: Random, content: bytes) -> bytes:
    """Bytes after one to three accidents: flips, cuts, holes, doubled and foreign pieces."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        # Headers are short and matter more than all that follows.
        start = rng.randrange(1 + min(len(data), rng.choice((200, len(data), len(data)))))
        stop = start + rng.choice((1, 2, 4, 8, 64, 1000))
        piece = bytes(data[start:stop])
        number = struct.pack("<I", rng.choice((0, 1, 2**16, 2**31, 2**32 - 1)))
        flipped = bytes(byte ^ 1 << rng.randrange(8) for byte in piece)
        ways = (flipped, b"", piece * rng.randint(2, 40), number + piece[4:], rng.randbytes(9))
        data[start:stop] = rng.choice(ways)
        if rng.random() < 0.15:
            del data[start:]
    return bytes(data)


def changed(rng: Random, data: Any) -> Any:
    """JSON data with one to three values made odd, dropped, repeated or renamed, in place."""
    for _ in range(rng.randint(1, 3)):
        inner, places = data, []
        while isinstance(inner, (dict, list)) and inner:
            key = rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
            places.append((inner, key))
            inner = inner[key]
        if not places:
            return deepcopy(rng.choice(ODD_VALUES))
        holder, key = rng.choice(places)
        value, way = holder[key], rng.randrange(6)
        if way == 0:
            del holder[key]
        elif way == 1 and isinstance(holder, dict):
            holder[rng.choice(["", f"{key}s", "\x1b[2J", "x" * 9000])] = deepcopy(value)
        elif way == 2 and isinstance(value, (int, float)):
            holder[key] = value * rng.choice((-1, 0, 1.5, 10**6))
        elif way > 2 and isinstance(value, str) and value.startswith("{"):
            holder[key] = json.dumps(changed(rng, json.loads(value)))
        else:
            # Copies: what is changed next may lie inside.
            holder[key] = deepcopy(rng.choice([*ODD_VALUES, [value], [value] * 300]))
    return data


def json_of(rng: Random, data: Any) -> bytes:
    """JSON text of changed data; one in eight is damaged as text too."""
    text = json.dumps(changed(rng, data)).encode()
    return damaged(rng, text) if rng.random() < 0.125 else text


# Each kind of case changes files in a folder that has the corpus, and gives the command line.


def cheap(rng: Random, folder: Path) -> list[str]:
    """A sound command line over any of the pictures, by a method that needs no checkpoint."""
    pictures = sorted(p.name for p in folder.iterdir() if p.suffix[1:] in (*SUFFIXES, "gif"))
    picture, other = rng.choice(pictures), rng.choice(pictures)
    mask = ["--mask", rng.choice([name for name in pictures if name.startswith("mask")])]
    verb = rng.choice(["compose"] * 4 + ["harmonize", "remove", "remove", "cut"])
    x, y, w, h = (rng.randint(*ends) for ends in ((-20, 90), (-20, 80), (1, 90), (1, 90)))
    box, output = f"box={x},{y},{w},{h}", ["-o", f"out.{rng.choice(SUFFIXES)}"]
    if verb == "cut":
        return ["cut", picture, *rng.choice(([f"--{box}"], mask)), *output]
    method = ["--method", rng.choice(("paste", "feather", "reinhard", "poisson"))]
    if verb == "remove":
        return ["remove", picture, *mask, "--method=telea", *output]
    if verb == "harmonize":
        return ["harmonize", picture, *mask, *method, *output]
    place = rng.choice(([f"--{box}"], [f"--at={x},{y}", "--scale=0.7"], ["--random"], []))
    cut = rng.choice(([], [f"--cut-{box}", "--cut=box"], ["--rotate=30", "--flip"]))
    return ["compose", picture, other, *place, *cut, *method, *output]


def of_picture(rng: Random, folder: Path) -> list[str]:
    command = cheap(rng, folder)
    files = [name for name in command[1:-1] if (folder / name).is_file()]
    if files and rng.random() < 0.8:
        path = folder / rng.choice(files)
        path.write_bytes(damaged(rng, path.read_bytes()))
    return command


def of_record(rng: Random, folder: Path) -> list[str]:
    picture, info = Image.open(folder / "record.png"), PngImagePlugin.PngInfo()
    info.add_text("inlay", json_of(rng, json.loads(picture.info["inlay"])).decode("latin-1"))
    picture.save(folder / "record.png", pnginfo=info)
    return [rng.choice(("rerun", "run")), "record.png", *OUT]


def of_request(rng: Random, folder: Path) -> list[str]:
    box = {"x": 10, "y": 10, "width": 40, "height": 40}
    subject = {"picture": "subject.png", "box": box, "rotate": 10, "cut": None, "mask": None}
    compose = {"verb": "compose", "background": "photo.png", "subjects": [subject], "num_images": 2}
    edit = {"picture": "photo.png", "mask": "mask.png", "model": {"name": "embedded", "loras": []}}
    request = rng.choice((
        {**compose, "method": {"name": "paste"}, "seed": 0},
        {**edit, "method": {"name": "reinhard"}, "verb": "harmonize"},
        {**edit, "method": {"name": "telea"}, "verb": "remove"},
    ))  # fmt: skip
    (folder / "request.json").write_bytes(json_of(rng, request))
    return ["run", "request.json", "-o", f"out.{rng.choice(SUFFIXES)}"]


def of_weights(rng: Random, folder: Path) -> list[str]:
    """A concept or a LoRA that is damaged, or whose header or the JSON inside that is changed."""
    name = rng.choice(("concept.safetensors", "lora.safetensors"))
    content = (folder / name).read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    tensor = rng.choice([value for key, value in header.items() if key != "__metadata__"])
    # The same bytes in another shape or of another type are still a sound file.
    flat, way = [math.prod(tensor["shape"])], rng.randrange(6)
    tensor["shape"] = (flat, tensor["shape"][::-1], [1, *tensor["shape"]])[way % 3]
    tensor["dtype"] = rng.choice((tensor["dtype"], {"F32": "I32", "F16": "BF16"}[tensor["dtype"]]))
    text = json.dumps(header).encode() if way < 3 else json_of(rng, json.loads(content[8:end]))
    whole = struct.pack("<Q", len(text)) + text + content[end:]
    (folder / name).write_bytes(damaged(rng, content) if rng.random() < 0.3 else whole)
    if name == "lora.safetensors":
        return [*REMOVE, "--lora", name]
    return ["compose", "photo.png", name, *COMPOSE[3:], FEW]


def of_checkpoint(rng: Random, folder: Path) -> list[str]:
    """A copy of a folder that ships with inlay, one of whose JSON files is changed."""
    kind = rng.choice(["embedded", "embedded", "adapter-canny", "harmonizer"])
    shutil.copytree(Path(inlay.__file__).parent / "assets" / kind, folder / "model")
    path = rng.choice(sorted((folder / "model").rglob("*.json")))
    path.write_bytes(json_of(rng, json.loads(path.read_bytes())))
    semantic = ["--method=freecompose", "--preset=semantic", "--control=mask.png"]
    return {
        "embedded": [*REMOVE, "--model=model"],
        "harmonizer": [*COMPOSE, FEW, "--set=harmonizer=model"],
        "adapter-canny": [*COMPOSE, *semantic, "--set=num_iterations=1", "--set=adapter=model"],
    }[kind]


def of_arguments(rng: Random, folder: Path) -> list[str]:
    kinds = typer.main.get_command(app).commands["compose"].params
    options = [name for kind in kinds for name in kind.opts if name not in ("-o", "--output")]
    command = cheap(rng, folder)
    if rng.random() < 0.25:
        verb = rng.choice(["schema", "models", "methods", "run", "rerun", "", "compos"])
        command = [verb, rng.choice([*ODD_TEXTS, "compose", "paste", "--json", "photo.png"])]
    for _ in range(rng.randint(1, 3)):
        place, option, odd = rng.randrange(9), rng.choice(options), rng.choice(ODD_TEXTS)
        piece = rng.choice(([option, odd], [f"{option}={odd}"], [odd], []))
        command[place : place + rng.randint(0, 1)] = piece
    # Nothing is to be written outside the folder.
    for index, word in enumerate(command):
        if index and command[index - 1] == "-o" and ("/" in word or ".." in word):
            command[index] = "out.png"
    return command


# As often as they are listed.
CASES = [of_picture] * 8 + [of_arguments] * 4 + [of_record, of_request, of_weights] * 2
CASES += [of_checkpoint]


def faults(command: list[str], folder: Path) -> Iterator[str]:
    """Run a command line in a folder, and name what is wrong with its answer."""

    def files() -> dict[Path, int]:
        return {path: path.lstat().st_mtime_ns for path in folder.rglob("*") if not path.is_dir()}

    before, own = files(), os.dup(2)
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    with redirect_stdout(out), redirect_stderr(err), tempfile.TemporaryFile() as noise:
        os.dup2(noise.fileno(), 2)
        try:
            status: object = run_inlay(command)
        except BaseException as error:
            status = f"raised {type(error).__name__}: {error}"
        os.dup2(own, 2)
        os.close(own)
        noise.seek(0)
        if written := noise.read().decode(errors="replace"):
            yield f"a library wrote: {written}"
    printed, said = (stream.buffer.getvalue().decode(errors="replace") for stream in (out, err))
    if status not in (0, 2):
        yield f"status {status}: {said}"
    elif status == 0 and re.search(r"Warning|Traceback|[Ee]rror", said):
        yield f"said at status 0: {said}"
    elif not all(len(line) < 1000 and line.isprintable() for line in said.splitlines()):
        yield f"long or unprintable: {said}"
    elif status == 2 and (printed or said.count("\n") != 1):
        yield f"not one line at status 2: {said}{printed}"
    after = files()
    yield from (f"{path.name} is changed" for path in before if after.get(path) != before[path])
    for path in sorted(after.keys() - before.keys()):
        if status != 0 or not (path.name.startswith("out") or path.name in command):
            yield f"left {path.name}"
            continue
        try:
            # Pillow knows no 16-bit grey TIFF with alpha.
            if path.suffix == ".tif":
                pyvips.Image.new_from_file(str(path), access="sequential").avg()
            else:
                Image.open(path).load()
        except Exception as error:
            yield f"{path.name} is no picture: {error}"


def load_libraries() -> None:
    """Import those that write to what standard error was when they were first imported."""
    with redirect_stdout(io.StringIO()):
        # Tells them to be quiet.
        run_inlay(["--version"])
    importlib.import_module("diffusers.loaders.peft")


def outcome(seed: int, corpus: Path, keep: bool = False) -> dict[str, Any]:
    """Run the case of a seed: its kind, command line, folder, faults and seconds."""
    rng, folder = Random(seed), Path(tempfile.mkdtemp(dir=corpus.parent))
    shutil.copytree(corpus, folder, dirs_exist_ok=True)
    os.mkfifo(folder / "pipe.png")
    case = rng.choice(CASES)
    command = case(rng, folder)
    os.chdir(folder)
    tempfile.tempdir = str(folder)
    # The peak of memory is counted anew; both signals end the process.
    Path("/proc/self/clear_refs").write_text("5")
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.alarm(WALL_SECONDS)
    start = time.process_time()
    wrong = list(faults(command, folder))
    seconds = round(time.process_time() - start, 1)
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.alarm(0)
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > MEMORY_KB:
        wrong.append("more than 2 GB of memory")
    if not keep:
        os.chdir(corpus)
        shutil.rmtree(folder)
    shown = {"command": [word[:200] for word in command], "folder": str(folder)}
    return {"kind": case.__name__[3:], "faults": wrong, "seconds": seconds, **shown}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--only", type=int, metavar="SEED")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    corpus = Path(tempfile.mkdtemp(prefix="fuzz-")) / "corpus"
    corpus.mkdir()
    write_corpus(corpus)
    if given.only is not None:
        print(json.dumps(outcome(given.only, corpus, keep=True), indent=2))
        return 0
    kinds, groups, times = Counter[str](), defaultdict[str, list[int]](list), []
    pool = None
    for seed in range(given.seed, given.seed + given.count):
        pool = pool or ProcessPoolExecutor(1, get_context("spawn"), load_libraries)
        try:
            case = pool.submit(outcome, seed, corpus).result()
        except BrokenProcessPool:
            pool, kind = None, Random(seed).choice(CASES).__name__[3:]
            case = {"kind": kind, "faults": ["the process is killed"], "seconds": 0.0}
        kinds[case["kind"]] += 1
        times.append((case["seconds"], seed))
        for fault in case["faults"]:
            # Names and numbers differ from case to case.
            shape = re.sub(r"'[^']*'|\S*\d\S*", "…", " ".join(fault.split()))[:90]
            groups[f"{case['kind']}: {shape}"].append(seed)
            print(f"{seed} {case['kind']}: {fault[:300]!r}", flush=True)
    if pool is not None:
        pool.shutdown()
    shutil.rmtree(corpus.parent)
    print(f"\n{given.count} cases: {dict(kinds)}; slowest (s, seed): {sorted(times)[:-6:-1]}")
    for shape, seeds in sorted(groups.items(), key=lambda item: -len(item[1])):
        print(f"{len(seeds):5} {shape}\n      seeds {seeds[:8]}")
    return 1 if groups else 0


if __name__ == "__main__":
    sys.exit(main())
