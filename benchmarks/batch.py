"""What `inlay batch` withstands and what it costs: one figure a line for each question.

python benchmarks/batch.py chaos [--rows 2000] [--engine ray]   killed workers, a killed driver
python benchmarks/batch.py same       results of ray, local, `inlay run`, and in batches
python benchmarks/batch.py speed      two workers against one, and the overhead of a row
python benchmarks/batch.py noop       20,000 rows that do nothing, by Ray
python benchmarks/batch.py memory     the driver's memory at 1,000 and at 100,000 rows
python benchmarks/batch.py nodes      two Ray nodes, one of which is killed
python benchmarks/batch.py s3 URL     a store at an endpoint, such as moto's server
python benchmarks/batch.py labels     50 pictures with COCO's labels, for other readers
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from skimage import data

from inlay import Composer, Request
from inlay.batch.command import Running
from inlay.batch.engine import Actors, Crew, Processes, work
from inlay.batch.order import Batch
from inlay.batch.runner import Event, Job, Runner
from inlay.batch.sources import read_photos
from inlay.cli import main

HERE = str(Path(__file__).parent)
VISIBLE = 0.2  # a thing of which less is seen has no label: the default of `inlay augment`


class Unlucky(Runner):
    """Some of its jobs end its process or never end; it writes down what it begins."""

    def run(self, job: Job, callback: Any = None) -> Event:
        with open(Path(job.output).with_name("begun.txt"), "a") as file:
            file.write(f"{job.name}\n")
        if "poison" in job.name:
            os.kill(os.getpid(), signal.SIGKILL)
        if "hung" in job.name:
            time.sleep(3600)
        return super().run(job, callback)


class Nothing(Runner):
    """Does nothing with a job."""

    def __init__(self) -> None: ...

    def run(self, job: Job, callback: Any = None) -> Event:
        return Event("done", paths=[], records=[])


@dataclass(frozen=True)
class Told(Running):
    """The options of a batch, and who runs its jobs."""

    runner: type[Runner] = Runner

    def crew(self) -> Crew:
        if self.engine == "ray":
            return Actors(self.address, self.workers, self.timeout, self.runner)
        return Processes(self.workers or 2, seconds=self.timeout, threads=1, runner=self.runner)


def pictures(folder: Path) -> None:
    """A background and a cut-out, small, so that a row takes a tenth of a second."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data.chelsea()).resize((225, 150)).save(folder / "scene.png")
    cup = data.coffee()[10:250, 150:420]
    rows, columns = np.ogrid[-1 : 1 : cup.shape[0] * 1j, -1 : 1 : cup.shape[1] * 1j]
    alpha = ((rows**2 + columns**2 < 0.9) * 255).astype(np.uint8)
    Image.fromarray(np.dstack([cup, alpha])).resize((68, 60)).save(folder / "cup.png")


def manifest(folder: Path, rows: int, phd: int = 20, odd: tuple[str, ...] = ()) -> str:
    """A manifest of poisson rows, every `phd`-th one phd, with odd ones in between."""
    pictures(folder)
    path = folder / "manifest.jsonl"
    with path.open("w") as file:
        for number in range(rows):
            phds = phd and number % phd == phd - 1
            method = {"name": "phd", "num_inference_steps": 4} if phds else "poisson"
            name = f"row{number:06d}"
            if number % (rows // (len(odd) + 1) + 1) == rows // (len(odd) + 1) and odd:
                name, odd = odd[0], odd[1:]
            box = [number % 150, number // 150 % 80, 68, 60]
            told = {"verb": "compose", "method": method, "background": "scene.png", "seed": number}
            told |= {"name": name, "subjects": [{"picture": "cup.png", "box": box}]}
            file.write(json.dumps(told) + "\n")
    return str(path)


def made(path: str, out: Path, options: Told) -> int:
    return Batch(path, str(out), options).write(lambda: None)


def done(out: Path) -> int:
    return len(list(out.glob("row*.png")))


def chaos(folder: Path, rows: int, engine: Any) -> None:
    """Kill workers at ten moments and the driver at one; then count."""
    path, out = manifest(folder, rows, odd=("poison", "hung")), folder / "out"
    driver = subprocess.Popen([sys.executable, __file__, "driver", path, str(out), engine])
    kills = 0

    def kill_one(above: psutil.Process) -> int:
        found = [
            each
            for each in above.children(recursive=True)
            if "ray::Unlucky" in each.name() + " ".join(each.cmdline())
            or "spawn_main" in " ".join(each.cmdline())
        ]
        if found:
            random.choice(found).kill()
        return len(found) > 0

    def wait_for(count: int) -> None:
        while done(out) < count and driver.poll() is None:
            time.sleep(0.2)

    started = time.monotonic()
    for moment in sorted(random.Random(1).sample(range(rows // 20, rows // 2), 5)):
        wait_for(moment)
        kills += kill_one(psutil.Process(driver.pid))
    wait_for(rows // 2)
    before = done(out)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    print(f"driver killed with {before} results, {kills} workers killed before")
    driver = subprocess.Popen([sys.executable, __file__, "driver", path, str(out), engine])
    for moment in sorted(random.Random(2).sample(range(rows // 2 + 20, rows - rows // 20), 5)):
        wait_for(moment)
        kills += kill_one(psutil.Process(driver.pid))
    status = driver.wait()
    seconds = time.monotonic() - started
    failed = [json.loads(line) for line in (out / "failed.jsonl").open()]
    begun = (out / "begun.txt").read_text().split()
    print(f"{rows} rows by {engine}: {done(out)} results, {len(failed)} failures, status {status}")
    for each in failed:
        print(f"  {each['name']}: {each['state']}: {each['sentence']}")
    print(f"{kills} workers killed; {len(begun)} jobs begun for {rows} rows, {seconds:.0f} s")
    sizes = {Image.open(file).size for file in out.glob("row*.png")}
    print(f"sizes {sizes}, left-over temporary files {len(list(out.glob('.inlay-*')))}")


def driver(path: str, out: str, engine: Any) -> int:
    """The command of chaos, in a process of its own."""
    told = Told(engine=engine, quiet=True, timeout=60.0, workers=2, runner=Unlucky)
    return made(path, Path(out), told)


def same(folder: Path) -> None:
    """The bytes of one manifest by Ray, by local processes and by `inlay run`."""
    path = manifest(folder, 24, phd=4)
    for engine in ("local", "ray"):
        made(path, folder / engine, Told(engine=engine, workers=2, quiet=True))  # type: ignore[arg-type]
    differ = {"ray": 0, "run": 0}
    (folder / "run").mkdir()
    for line in Path(path).read_text().splitlines():
        told = json.loads(line)
        name = told.pop("name")
        told["background"] = str(folder / "scene.png")
        told["subjects"][0]["picture"] = str(folder / "cup.png")
        (folder / "one.json").write_text(json.dumps(told))
        main(["run", str(folder / "one.json"), "-o", str(folder / "run" / f"{name}.png"), "-q"])
        local = (folder / "local" / f"{name}.png").read_bytes()
        for kind in differ:
            differ[kind] += (folder / kind / f"{name}.png").read_bytes() != local
    print(f"24 rows, 6 of them phd: files that differ from local ones: {differ}")


def speed(folder: Path) -> None:
    """Rows a second with one and with two workers of one core each, less their start."""
    rates = {}
    for workers in (1, 2):
        path = manifest(folder / str(workers), 200, phd=0)
        times: list[float] = []
        jobs = list(jobs_of(path, folder / str(workers)))
        crew = Processes(workers, threads=1)
        inside = 0.0
        for ended in work(iter(jobs), crew):
            if ended is not None:
                times.append(time.monotonic())
                inside += ended[2].seconds
        crew.close()
        skip = 20
        rates[workers] = (len(times) - skip) / (times[-1] - times[skip - 1])
        overhead = (times[-1] - times[0]) * workers / (len(times) - 1) - inside / len(times)
        told = f"{1e3 * inside / len(times):.0f} ms in a worker, overhead {1e3 * overhead:.1f} ms"
        print(f"{workers} workers: {rates[workers]:.2f} rows a second, {told} a row")
    print(f"2 workers / 1: {rates[2] / rates[1]:.2f}; load {os.getloadavg()[0]:.1f}")


def jobs_of(path: str, out: Path) -> Iterator[Job]:
    from inlay.batch.manifest import read_rows

    for row in read_rows(path):
        assert row.request is not None
        yield Job(row.name, row.request.model_dump(mode="json"), str(out / row.name))


def noop(folder: Path, rows: int = 20_000) -> None:
    """Rows that do nothing, by the whole of a batch: manifest, ledger, Ray."""
    import ray

    os.environ["PYTHONPATH"] = os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])
    ray.init(num_cpus=2, log_to_driver=False, logging_level="error")
    path = manifest(folder, rows, phd=0)
    crew = Actors(None, 2, None, Nothing)
    jobs = (Job(str(number), {}, "") for number in range(200))
    list(work(jobs, crew))
    jobs = (Job(str(number), {}, "") for number in range(rows))
    started = time.monotonic()
    ended = sum(each is not None for each in work(jobs, crew))
    print(f"the scheduler alone: {ended} rows in {time.monotonic() - started:.1f} s")
    crew.close()
    started, before = time.monotonic(), time.process_time()
    made(path, folder / "out", Told(engine="ray", workers=2, quiet=True, runner=Nothing))
    spent = time.process_time() - before
    print(
        f"with manifest, hashes and ledger: {rows} rows in {time.monotonic() - started:.1f} s, of "
        f"which the driver computes {spent:.1f} s; load {os.getloadavg()[0]:.1f}"
    )
    ray.shutdown()


def memory(folder: Path) -> None:
    """The largest resident memory of a driver, in processes of their own."""
    for rows in (1_000, 100_000):
        path = manifest(folder / str(rows), rows, phd=0)
        command = [sys.executable, __file__, "peak", path, str(folder / str(rows) / "out")]
        print(f"{rows} rows: {subprocess.check_output(command, text=True).strip()}")


def peak(path: str, out: str) -> int:
    started = time.monotonic()
    made(path, Path(out), Told(workers=1, quiet=True, runner=Nothing))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"driver's peak {most:.0f} MB, {time.monotonic() - started:.0f} s")
    return 0


def nodes(folder: Path) -> None:
    """A cluster of two nodes on this machine; one is killed in the middle."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join([HERE, os.environ.get("PYTHONPATH", "")])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    path, out = manifest(folder, 200, phd=0), folder / "out"

    def kill() -> None:
        while done(out) < 60:
            time.sleep(0.2)
        cluster.remove_node(second, allow_graceful=False)
        print(f"node killed with {done(out)} results")

    threading.Thread(target=kill).start()
    status = made(path, out, Told(engine="ray", quiet=True))
    print(f"two nodes, one killed: {done(out)} of 200 results, status {status}")
    ray.shutdown()
    cluster.shutdown()


def s3(folder: Path, endpoint: str) -> None:
    """The same manifest in a bucket and in a folder."""
    os.environ |= {
        "FSSPEC_S3_ENDPOINT_URL": endpoint,
        "FSSPEC_S3_KEY": "k",
        "FSSPEC_S3_SECRET": "s",
    }
    import fsspec

    path = manifest(folder, 20, phd=5)
    made(path, folder / "local", Told(quiet=True))
    system, _ = fsspec.url_to_fs("s3://rows")
    system.mkdirs("rows", exist_ok=True)
    for name in ("manifest.jsonl", "scene.png", "cup.png"):
        system.put_file(str(folder / name), f"rows/in/{name}")
    for turn in ("first", "again"):
        batch = Batch("s3://rows/in/manifest.jsonl", "s3://rows/out", Told(quiet=True))
        print(f"s3, {turn}: status {batch.write(lambda: None)}, {dict(batch.counts)}")
    differ = 0
    for file in sorted((folder / "local").glob("row*.png")):
        with system.open(f"rows/out/{file.name}") as there, Image.open(there) as image:
            differ += not np.array_equal(np.asarray(image), np.asarray(Image.open(file)))
    print(f"pictures that differ from local ones: {differ} of 20; {system.ls('rows/out/ledger')}")


def labels(folder: Path) -> None:
    """50 composites of photos with COCO's labels, by scikit-image's photos, in every format."""
    from pycocotools import mask as coco

    from inlay.training.objects import find_objects

    shutil.rmtree(folder, ignore_errors=True)
    pictures(folder / "things" / "cup")
    (folder / "things" / "cup" / "scene.png").unlink()
    photos = [data.coffee(), data.astronaut(), data.chelsea(), data.rocket(), data.cat()]
    images, annotations = [], []
    for number, photo in enumerate(photos):
        for turn in range(2):
            own, name = np.ascontiguousarray(photo[:, :: 1 - 2 * turn]), f"{number}{turn}.png"
            Image.fromarray(own).save(folder / name)
            size = {"width": own.shape[1], "height": own.shape[0]}
            images.append({"id": len(images) + 1, "file_name": name, **size})
            for mask in find_objects(own):
                code = coco.encode(np.asfortranarray((mask > 0.5).astype(np.uint8)))
                code["counts"] = code["counts"].decode()
                told = {"id": len(annotations) + 1, "image_id": len(images), "category_id": 1}
                annotations.append({**told, "segmentation": code, "bbox": [0, 0, 1, 1]})
    told = {"images": images, "annotations": annotations}
    told |= {"categories": [{"id": 1, "name": "thing"}]}
    (folder / "instances.json").write_text(json.dumps(told))
    command = ["augment", str(folder / "instances.json"), str(folder / "things"), "-o"]
    command += [str(folder / "out"), "--places", "0,0.5,1,0.5", "--copies", "5", "--seed", "1"]
    main([*command, "--labels", "coco,yolo,voc,masks,imagefolder,webdataset", "--workers", "2"])
    wrong = [pixels_wrong(folder, image) for image in read_coco(folder / "out").values()]
    print(f"{len(wrong)} pictures made again from the manifest: pixels of labels that their layers")
    print(
        f"do not say {sum(each[1] for each in wrong)}, of {sum(each[0] for each in wrong)} labels"
    )


def read_coco(out: Path) -> dict[str, dict[str, Any]]:
    """The images of COCO's JSON by name, each with its labels and its row of the manifest."""
    told = json.loads((out / "coco.json").read_text())
    images = {each["id"]: {**each, "labels": []} for each in told["images"]}
    for label in told["annotations"]:
        images[label["image_id"]]["labels"].append(label)
    names = {image["file_name"]: image for image in images.values()}
    for line in (out / "manifest.jsonl").open():
        row = json.loads(line)
        names[row.pop("name")]["row"] = row
    return names


def pixels_wrong(folder: Path, image: dict[str, Any]) -> tuple[int, int]:
    """How many labels a picture has, and the pixels in which they differ from what is left of
    each layer of the request, run again, under those that lie over it.
    """
    from pycocotools import mask as coco

    result = Composer().run(Request.of(image["row"]))
    size = (image["height"], image["width"])
    photo = {Path(each.path).name: each for each in read_photos(str(folder / "instances.json"))}
    alphas = [
        mask.astype(float)
        for _, mask in photo[Path(image["row"]["background"]).name].masks(*size[::-1])
    ]
    own = len(alphas)
    for layer in result.layers:
        alphas.append(np.zeros(size))
        alphas[-1][layer.box.slices] = np.asarray(layer.mask) / 255
    truth = []
    for number, alpha in enumerate(alphas):
        left = alpha.copy()
        for above in alphas[max(number + 1, own) :]:
            left *= 1 - above
        if left.sum() >= VISIBLE * alpha.sum() > 0:
            truth.append(left >= 0.5 - 1e-6)
    found = [coco.decode(label["segmentation"]).astype(bool) for label in image["labels"]]
    if len(found) != len(truth):
        return len(found), size[0] * size[1]
    return len(found), sum(int((a != b).sum()) for a, b in zip(found, truth, strict=True))


def cost(folder: Path) -> None:
    """Seconds a picture takes on one core, by method: a subject of 170 pixels in 512 x 512."""
    pictures(folder)
    Image.fromarray(data.astronaut()).save(folder / "scene.png")
    runner, times = Runner(), dict[str, float]()
    for method in ("paste", "poisson", "reinhard", "phd", "cdc", "freecompose"):
        subject = {"picture": str(folder / "cup.png"), "box": [60, 320, 170, 150]}
        told = {"verb": "compose", "method": {"name": method}, "subjects": [subject]}
        told["background"] = str(folder / "scene.png")
        job = Job(method, told, str(folder / "out.png"))
        # The first one loads.
        times[method] = [runner.run(job).seconds for _ in range(3)][-1]
    print("seconds of a picture:", ", ".join(f"{name} {t:.2f}" for name, t in times.items()))


ASKED: dict[str, Callable[..., Any]] = {
    "chaos": chaos, "same": same, "speed": speed, "noop": noop, "memory": memory, "nodes": nodes,
    "s3": s3, "labels": labels, "cost": cost,
}  # fmt: skip

if __name__ == "__main__":
    if sys.argv[1:2] == ["driver"]:
        sys.exit(driver(*sys.argv[2:]))
    if sys.argv[1:2] == ["peak"]:
        sys.exit(peak(*sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=ASKED)
    parser.add_argument("endpoint", nargs="?")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--engine", default="ray", choices=["ray", "local"])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/inlay-batch"))
    given = parser.parse_args()
    own = given.folder / given.what
    shutil.rmtree(own, ignore_errors=True)
    more = {"chaos": (given.rows, given.engine), "s3": (given.endpoint,)}.get(given.what, ())
    ASKED[given.what](own, *more)
