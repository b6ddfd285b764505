"""Batches: what comes out, that nothing is lost or done twice, and what is said of it."""

from __future__ import annotations

import io
import json
import os
import random
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import psutil
import pytest
from PIL import Image
from skimage import data

import runners
from inlay import InputError
from inlay.batch.engine import Processes, find_gpus
from inlay.batch.ledger import Ledger
from inlay.batch.order import Batch
from inlay.batch.runner import Job, Runner
from inlay.cli import main
from photos import cup
from runners import Accidents, Told, begun, manifest

MANY = [f"row{number:03d}" for number in range(200)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.fromarray(data.chelsea()).resize((120, 80)).save(tmp_path / "scene.png")
    Image.fromarray(cup()).resize((40, 36)).save(tmp_path / "cup.png")
    return tmp_path


def failures(out: Path) -> dict[str, str]:
    lines = (out / "failed.jsonl").read_text().splitlines()
    return {row["name"]: row["sentence"] for row in map(json.loads, lines)}


def kill_some(stop: threading.Event, times: int, word: str) -> None:
    """Kill a child of this process now and then, one whose command has a word in it."""
    for _ in range(times):
        if stop.wait(random.Random(times).uniform(0.2, 0.6)):
            return
        found = [
            child
            for child in psutil.Process().children(recursive=True)
            if word in child.name() + " ".join(child.cmdline())
        ]
        if found:
            random.choice(found).kill()


@pytest.mark.parametrize(
    ("engine", "word", "kills"), [("local", "spawn_main", 4), ("ray", "ray::Unlucky", 3)]
)
def test_killed_workers_lose_nothing(
    folder: Path, engine: Any, word: str, kills: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver is killed once, too, and its command given again; a row that kills its workers and
    one that never ends fail alone.
    """
    if engine == "ray":
        pytest.importorskip("ray")
        here = [str(Path(runners.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(here))
    names = [*MANY[:60], "poison", "hung", *MANY[60:]]
    path, out = manifest(folder, names), folder / "out"
    driver = subprocess.Popen([sys.executable, runners.__file__, path, str(out), engine])
    until = time.monotonic() + 120
    while len(list(out.glob("row*.png"))) < 20 and time.monotonic() < until:
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("row*.png")}
    assert 20 <= len(before) < 200
    stop = threading.Event()
    killer = threading.Thread(target=kill_some, args=(stop, kills, word))
    killer.start()
    try:
        assert Batch(path, str(out), Accidents(engine=engine, quiet=True)).write(lambda: None) == 1
    finally:
        stop.set()
        killer.join()
    assert sorted(file.stem for file in out.glob("row*.png")) == MANY
    told = failures(out)
    assert told.keys() == {"poison.png", "hung.png"}
    assert "died" in told["poison.png"] or "SIGKILL" in told["poison.png"]
    assert "longer than 8 s" in told["hung.png"]
    # What was in flight is made again: of each that died as many as it had, of the driver all.
    most = 1 if engine == "local" else 64
    assert len(begun(out)) <= 202 + most * (2 + kills + 6)
    assert not list(out.glob(".inlay-*"))
    sizes = {Image.open(file).size for file in out.glob("*.png")}
    assert sizes == {(120, 80)}
    if engine == "local":
        single = json.loads(Path(path).read_text().splitlines()[7])
        del single["name"]
        single["background"] = str(folder / "scene.png")
        single["subjects"][0]["picture"] = str(folder / "cup.png")
        (folder / "one.json").write_text(json.dumps(single))
        assert main(["run", str(folder / "one.json"), "-o", str(folder / "one.png"), "-q"]) == 0
        assert (folder / "one.png").read_bytes() == (out / "row007.png").read_bytes()


def test_again_makes_what_is_missing_or_changed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = manifest(folder, MANY[:6]), folder / "out"
    command = Batch(path, str(out), Accidents(quiet=True))
    assert command.write(lambda: None) == 0 and sorted(begun(out)) == [f"{n}.png" for n in MANY[:6]]
    (out / "begun.txt").unlink()
    (out / "row002.png").unlink()
    lines = Path(path).read_text().splitlines()
    lines[4] = lines[4].replace('"paste"', '"feather"')
    Path(path).write_text("\n".join(lines))
    assert Batch(path, str(out), Accidents(quiet=True)).write(lambda: None) == 0
    assert sorted(begun(out)) == ["row002.png", "row004.png"]
    Image.fromarray(cup()).resize((40, 36)).rotate(90).save(folder / "cup.png")
    (out / "begun.txt").unlink()
    assert Batch(path, str(out), Accidents(quiet=True)).write(lambda: None) == 0
    assert len(begun(out)) == 6


def test_two_commands_on_one_folder_do_not_clash(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(folder, MANY[:2])
    (folder / "out").mkdir()
    ledger = Ledger(str(folder / "out"))
    assert main(["batch", path, "-o", str(folder / "out")]) == 2
    assert "in use by another inlay batch" in capsys.readouterr().err
    ledger.close()
    assert main(["batch", path, "-o", str(folder / "out"), "--workers", "1"]) == 0
    assert main(["batch", path, "-o", str(folder / "cup.png")]) == 2
    assert "cannot be a folder" in capsys.readouterr().err


def test_two_commands_on_one_store_do_not_clash(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = manifest(folder, MANY[:2]), f"memory://{folder.name}"
    system, root = fsspec.url_to_fs(out)
    ledger = Ledger(out)
    assert main(["batch", path, "-o", out]) == 2
    assert "in use by another inlay batch" in capsys.readouterr().err
    ledger.close()
    assert not system.exists(f"{root}/ledger.lock")
    alive, ended = os.getpid(), subprocess.Popen(["true"])
    ended.wait()
    now, here = time.time(), socket.gethostname()
    for pid, host, moment, taken in (
        (alive, here, now - 299, False),
        (alive, here, now - 301, True),
        (ended.pid, here, now, True),
        (ended.pid, "another", now, False),
    ):
        told = {"run": "other", "host": host, "pid": pid, "time": moment}
        system.pipe_file(f"{root}/ledger.lock", json.dumps(told).encode())
        if taken:
            Ledger(out).close()
        else:
            with pytest.raises(InputError, match=f"in use by another inlay batch on {host}"):
                Ledger(out)
            assert json.loads(system.cat_file(f"{root}/ledger.lock")) == told


def test_each_worker_sees_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert find_gpus() == ["0", "1", "2"]
    for told, names in (("", []), ("1,MIG-a", ["1", "MIG-a"]), ("2,-1,0", ["2"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
        assert find_gpus() == names
    crew = Processes(3, gpus=["0", "MIG-a"], runner=Told)
    for seat in crew.seats:
        crew.give(seat, [Job("a", {"verb": "compose"}, str(tmp_path / "a.png"))])
    seen = []
    while len(seen) < 3:
        seen += [(crew.seats.index(seat), end) for seat, end in crew.ends(1)]
    crew.close()
    gpus = [json.loads(event.sentence)[-1] for _, [(_, event)] in sorted(seen, key=lambda s: s[0])]
    assert gpus == ["0", "MIG-a", "0"]


def test_an_interrupted_command_says_what_is_done_and_goes_on(folder: Path) -> None:
    path, out = manifest(folder, MANY), folder / "out"
    command = [sys.executable, "-m", "inlay", "batch", path, "-o", str(out), "--json"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert driver.stdout is not None and driver.stderr is not None
    while json.loads(driver.stdout.readline()).get("done", 0) < 3:
        pass
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(60) == 130
    assert " of 200 are done" in driver.stderr.read()
    made = len(list(out.glob("*.png")))
    assert 3 <= made < 200 and not list(out.glob(".inlay-*"))
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    last = json.loads(again.stdout.splitlines()[-1])
    assert last["kept"] >= 3 and last["kept"] + last["done"] == last["total"] == 200


def test_a_full_disk_stops_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the same command goes on where there is room."""
    small = folder / "small"
    small.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can make a small file system")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(small)])
    if made.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        path = manifest(folder, MANY[:60])
        assert main(["batch", path, "-o", str(small / "out"), "--workers", "1"]) == 2
        assert "make room" in capsys.readouterr().err
        subprocess.run(["mount", "-o", "remount,size=30m", str(small)], check=True)
        assert main(["batch", path, "-o", str(small / "out"), "--workers", "1"]) == 0
        assert len(list((small / "out").glob("row*.png"))) == 60
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_validate_names_every_bad_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = manifest(folder, [*MANY[:3], "row001"])
    with open(path, "a") as file:
        told = {"verb": "compose", "background": "scene.png", "subjects": ["none.png"]}
        file.write(json.dumps({**told, "name": "<b>"}) + "\n{\n")
    assert main(["batch", path, "-o", str(folder / "out"), "--validate"]) == 2
    *problems, last = capsys.readouterr().out.splitlines()
    assert [problem.split(":")[0] for problem in problems] == ["line 4", "line 5", "line 6"]
    assert "line 2's too" in problems[0] and "none.png" in problems[1] and "JSON" in problems[2]
    assert last == "6 rows, 3 of them wrong" and not (folder / "out").exists()
    assert main(["batch", path, "-o", str(folder / "out"), "--workers", "1", "-q"]) == 1
    assert len(failures(folder / "out")) == 3
    page = (folder / "out" / "report.html").read_text()
    assert "row000.png" in page and "&lt;b&gt;.png" in page and "<b>" not in page


def test_rows_alike_go_to_a_worker_together(folder: Path) -> None:
    """And one among them that is wrong fails alone."""
    path = manifest(folder, MANY[:7])
    lines = Path(path).read_text().splitlines()
    lines[1] = lines[1].replace('"paste"', '"feather"')
    lines[4] = lines[4].replace("scene.png", "broken.png")
    (folder / "broken.png").write_bytes((folder / "scene.png").read_bytes()[:900])
    Path(path).write_text("\n".join(lines))
    for size in ("1", "3"):
        command = ["batch", path, "-o", str(folder / size), "--workers", "1", "-q"]
        assert main([*command, "--batch-size", size]) == 1
        assert failures(folder / size).keys() == {"row004.png"}
    for name in set(MANY[:7]) - {"row004"}:
        one, many = ((folder / size / f"{name}.png").read_bytes() for size in ("1", "3"))
        assert one == many


def test_rows_alike_go_through_the_network_together(folder: Path) -> None:
    """Within 1 of 255 of those that go alone, in this process, which has torch already."""
    path = manifest(folder, MANY[:3], method={"name": "phd", "num_inference_steps": 2})
    paths = {"background": str(folder / "scene.png")}
    rows = [json.loads(line) | paths for line in Path(path).read_text().splitlines()]
    for row in rows:
        row["subjects"][0]["picture"] = str(folder / "cup.png")
        del row["name"]
    for size in (1, "auto"):
        jobs = [
            Job(name, row, str(folder / f"{size}-{name}.png"))
            for name, row in zip(MANY, rows, strict=False)
        ]
        ends = Runner().run_all(jobs, size)  # type: ignore[arg-type]
        assert [end.kind for end in ends] == ["done"] * 3
        assert all(end.records[0].get("batch_size", 1) == (1 if size == 1 else 3) for end in ends)
    for name in MANY[:3]:
        one, many = (
            np.asarray(Image.open(folder / f"{size}-{name}.png")).astype(int)
            for size in (1, "auto")
        )
        assert np.abs(one - many).max() <= 1


def test_the_example_for_ray_data_makes_a_batch(folder: Path) -> None:
    """Without Ray, which calls it with columns."""
    path = Path(__file__).parents[2] / "examples" / "ray_data.py"
    compose = runpy.run_path(str(path))["Compose"]()
    subject = {"picture": str(folder / "cup.png"), "random": True}
    told = {"verb": "compose", "method": "paste", "background": str(folder / "scene.png")}
    rows = [{**told, "subjects": [subject]}, {**told, "subjects": ["none.png"]}]
    made = compose({"request": np.array([json.dumps(row) for row in rows])})
    assert Image.open(io.BytesIO(made["image"][0])).size == (120, 80) and made["error"][0] == ""
    assert made["image"][1] == b"" and "none.png" in made["error"][1]
