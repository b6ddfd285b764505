from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import data

import inlay
from inlay.cli import main
from inlay.cli.app import interrupts
from inlay.cli.outputs import listening


@pytest.fixture(autouse=True)
def _photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real pictures in the folder that the commands run in."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.astronaut()).save("bg.png")
    Image.fromarray(data.coffee()).save("coffee.jpg", quality=95)
    cup = data.coffee()[60:260, 180:420]
    alpha = np.full((*cup.shape[:2], 1), 255, np.uint8)
    alpha[:20] = 0
    Image.fromarray(np.concatenate([cup, alpha], 2)).save("cup.png")
    mask = np.zeros((512, 512), np.uint8)
    mask[200:260, 180:280] = 255
    Image.fromarray(mask).save("mask.png")


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """SIGINT as in a terminal; a shell's background jobs are born ignoring it and pass it on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _pixels(path: str | Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path))


def _subprocess(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    code = "import sys; from inlay.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, **more
    )


COMPOSE = ["compose", "bg.png", "cup.png", "--method", "paste"]


def test_compose_changes_nothing_outside_the_region(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMPOSE, "--box", "100,120,90,80", "-o", "out.png", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["method"] == "paste"
    assert record["outputs"] == ["out.png"]
    box = record["region"]
    before, after = _pixels("bg.png").copy(), _pixels("out.png").copy()
    rows = slice(box["y"], box["y"] + box["height"])
    columns = slice(box["x"], box["x"] + box["width"])
    assert (before[rows, columns] != after[rows, columns]).any()
    before[rows, columns] = after[rows, columns] = 0
    assert np.array_equal(before, after)
    box = record["subjects"][0]["box"]
    assert box["x"] >= 100 and box["x"] + box["width"] <= 190
    assert box["y"] >= 120 and box["y"] + box["height"] <= 200


def test_where_and_how_reach_the_composer() -> None:
    pictures = []
    for number, where in enumerate(
        (
            ["--at", "200,200", "--scale", "0.3"],
            ["--at", "200,200", "--scale", "0.3", "--flip"],
            ["--at", "200,200", "--scale", "0.3", "--rotate", "90"],
            ["--at=-5,200", "--scale", "0.3"],
            ["--random", "--seed", "1"],
            ["--random", "--seed", "2"],
            [],
        )
    ):
        assert main([*COMPOSE, *where, "-o", f"{number}.png"]) == 0
        pictures.append(_pixels(f"{number}.png").tobytes())
    assert len(set(pictures)) == len(pictures)


def test_the_subject_can_be_cut_by_box_and_by_mask() -> None:
    Image.fromarray(np.pad(np.full((180, 200), 255, np.uint8), ((60, 160), (200, 200)))).save(
        "cupmask.png"
    )
    for cut in (["--mask", "cupmask.png"], ["--cut", "box", "--cut-box", "160,20,280,250"]):
        arguments = ["compose", "bg.png", "coffee.jpg", "--method", "paste", *cut, "-o", "o.png"]
        arguments += ["--shadow", "none"]
        assert main([*arguments, "--box", "10,10,100,100"]) == 0
        changed = (_pixels("o.png") != _pixels("bg.png")).any(-1)
        assert changed[10:110, 10:110].mean() > 0.2
        assert changed.sum() == changed[10:110, 10:110].sum()


def test_points_say_what_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    on = ["--point", "290,150", "--cut-point", "300,330"]
    assert main(["cut", "coffee.jpg", *on, "-o", "cup.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["request"]["points"] == [[290, 150], [300, 330]]
    alpha = np.asarray(Image.open("cup.png"))[..., 3]
    assert alpha[150, 290] == 255 and alpha[330, 300] == 255 and alpha[20, 560] == 0
    arguments = ["compose", "bg.png", "coffee.jpg", "--method", "paste", "--box", "10,10,100,100"]
    cuts = ["--cut-point", "290,150", "--cut-point", "300,330"]
    assert main([*arguments, *cuts, "-o", "o.png", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["request"]["subjects"][0]["cut_points"] == [[290, 150], [300, 330]]
    assert main([*arguments, "--cut-point", "1", "-o", "p.png"]) == 2
    assert "two numbers x, y" in capsys.readouterr().err


def test_harmonize_and_remove() -> None:
    assert (
        main(["harmonize", "bg.png", "--mask", "mask.png", "-o", "h.png", "--method", "reinhard"])
        == 0
    )
    assert main(["remove", "bg.png", "--mask", "mask.png", "-o", "r.png", "--method", "telea"]) == 0
    changed = (_pixels("r.png") != _pixels("bg.png")).any(-1)
    assert changed[200:260, 180:280].mean() > 0.9
    assert changed.mean() < 0.05


CUP = [(150, 290), (60, 200), (200, 250)]
SAUCER = [(300, 150), (340, 280), (290, 362)]


@pytest.mark.parametrize(
    ("place", "there"), [("--box=75,12,410,380", CUP + SAUCER), ("--point=290,150", CUP[:1])]
)
def test_what_is_named_goes(
    place: str, there: list[tuple[int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    """In its box the cup goes with its saucer; the table stays; the record makes it again."""
    assert main(["remove", "coffee.jpg", place, "-o", "r.png", "--method", "telea"]) == 0
    changed = (_pixels("r.png") != _pixels("coffee.jpg")).any(-1)
    for y, x in there:
        assert changed[y - 5 : y + 5, x - 5 : x + 5].mean() > 0.8
    assert not changed[:, :55].any() and not changed[:, 510:].any() and changed.mean() < 0.56
    assert main(["rerun", "r.png", "-o", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("r.png").read_bytes()
    capsys.readouterr()


def test_an_object_in_a_box_is_harmonized_alone() -> None:
    box = ["--box", "75,12,410,380"]
    assert main(["harmonize", "coffee.jpg", *box, "-o", "h.png", "--method", "reinhard"]) == 0
    changed = (_pixels("h.png") != _pixels("coffee.jpg")).any(-1)
    assert changed[150, 290] and changed[300, 150]
    assert not changed[:, :60].any() and not changed[393:].any()


@pytest.mark.parametrize(
    ("place", "word"),
    [
        ([], "mask is missing"),
        (["--box", "1,1,9,9", "--point", "3,3"], "exclude each other"),
        (["--mask", "mask.png", "--box", "1,1,9,9"], "exclude each other"),
        (["--point", "3"], "two numbers"),
        (["--point", "9999,3"], "lies outside"),
        (["--box", "5,5,2,2"], "give a mask"),
    ],
)
def test_what_is_to_go_is_said_once(
    place: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["remove", "bg.png", *place, "-o", "r.png", "--method", "telea"]) == 2
    said = capsys.readouterr().err
    assert word in said and said.count("\n") == 1 and not Path("r.png").exists()


def test_cut_writes_the_cut_out_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cut", "coffee.jpg", "--box", "160,20,280,250", "-o", "c.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verb"] == "cut"
    picture = Image.open("c.png")
    assert picture.mode == "RGBA"
    assert picture.size == (600, 400)
    alpha = np.asarray(picture)[..., 3]
    assert alpha[:, 500:].max() == 0
    assert alpha[80:200, 220:380].mean() > 120


def test_num_images_gives_files_by_seed_and_a_sheet(capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--random", "--seed", "7", "--num-images", "3", "-o", "out.jpg", "--json"]
    assert main([*COMPOSE, *out]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["outputs"] == ["out-seed=7.jpg", "out-seed=8.jpg", "out-seed=9.jpg"]
    assert [r["seed"] for r in record["records"]] == [7, 8, 9]
    assert record["sheet"] == "out.jpg"
    assert sorted(p.name for p in Path().glob("out*")) == sorted([*record["outputs"], "out.jpg"])
    assert not list(Path().glob(".inlay*"))


def test_a_sweep_gives_files_by_label_and_a_sheet(capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--box", "100,120,90,80", "--method", "feather", "-o", "out.png"]
    assert main(["methods", "feather", "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["feather"]["settings"]
    knob = next(s for s in settings if s["type"] == "number" and "maximum" in s)
    low, high = knob["minimum"], knob["maximum"]
    assert main([*COMPOSE, *where, "--set", f"{knob['name']}={low},{high}", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["outputs"]) == 2
    assert all(knob["name"] + "=" in path for path in record["outputs"])
    assert (_pixels(record["outputs"][0]) != _pixels(record["outputs"][1])).any()


def test_rerun_makes_the_same_bytes() -> None:
    assert main([*COMPOSE, "--random", "--seed", "3", "--rotate", "20", "-o", "out.png"]) == 0
    assert main(["rerun", "out.png", "-o", "again.png"]) == 0
    assert np.array_equal(_pixels("out.png"), _pixels("again.png"))


def test_every_picture_of_a_series_can_be_made_again() -> None:
    assert main([*COMPOSE, "--random", "--num-images", "3", "-o", "out.png", "--quiet"]) == 0
    assert main(["rerun", "out-seed=2.png", "-o", "again.png"]) == 0
    assert np.array_equal(_pixels("out-seed=2.png"), _pixels("again.png"))


def test_rerun_refuses_a_contact_sheet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMPOSE, "--num-images", "2", "-o", "out.png"]) == 0
    capsys.readouterr()
    assert main(["rerun", "out.png", "-o", "again.png"]) == 2
    assert "out-seed=0.png" in capsys.readouterr().err


def test_quiet_says_nothing_and_default_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMPOSE, "-o", "a.png", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main([*COMPOSE, "-o", "a.png"]) == 0
    assert capsys.readouterr().out == "a.png\n"


def test_an_input_is_never_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("bg.png").read_bytes()
    assert main([*COMPOSE, "-o", "bg.png"]) == 2
    assert main([*COMPOSE, "-o", "./../" + Path.cwd().name + "/cup.png"]) == 2
    assert Path("bg.png").read_bytes() == before
    assert "is the subject itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["compos"], "did you mean compose?"),
        (["compose", "--promt", "x"], "did you mean --prompt?"),
        (["compose", "a", "b", "-o", "o.png", "--method", "posson"], "did you mean poisson?"),
        (["compose", "a", "b", "-o", "o.png", "--device", "cudda"], "did you mean cuda?"),
        (["compose", "a", "b", "-o", "o.png", "--dtype", "float23"], "did you mean float32?"),
        (
            ["compose", "a", "b", "-o", "o.png", "--method", "cdc", "--set", "T_ni=1"],
            "did you mean T_in?",
        ),
        (
            ["compose", "a", "b", "-o", "o.png", "--method", "cdc", "--preset", "imerse"],
            "did you mean immerse?",
        ),
        (["methods", "cdd"], "did you mean cdc?"),
        (["train", "embeded", "photos", "-o", "run"], "did you mean embedded?"),
        (["cut", "a", "-o", "o.png", "--cut", "grabcat"], "did you mean grabcut?"),
    ],
)
def test_the_nearest_name_is_offered(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.endswith(hint + "\n")


@pytest.mark.parametrize("words", [["?", "A"], ["What?", "Yes. No"], ["x"]])
def test_an_argument_too_many_is_named(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", *words]) == 2
    first = words[0]
    assert capsys.readouterr().err == (
        f"inlay models takes no argument {first!r} here; see inlay models --help.\n"
    )


def test_help_version_and_completion_exit_with_zero(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["-h"], ["--help"], ["compose", "--help"], ["train", "-h"]):
        assert main(arguments) == 0
        assert "Usage: inlay" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"inlay {inlay.__version__}\n"
    environment = {
        **os.environ,
        "_INLAY_COMPLETE": "complete_bash",
        "COMP_WORDS": "inlay compose --device c",
        "COMP_CWORD": "3",
    }
    assert _subprocess(env=environment).stdout.split() == ["cpu", "cuda"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_inside_of_a_finaliser_is_not_lost() -> None:
    class Freed:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with interrupts() as check:
        check()
        # Python drops what is raised here.
        Freed()
        with pytest.raises(KeyboardInterrupt), listening(quiet=True) as heard:
            heard.step(1, 2)
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is before
    with interrupts() as check:
        check()


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("count", ["1", "6"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_with_130_and_leaves_nothing(number: signal.Signals, count: str) -> None:
    Image.fromarray(np.tile(data.astronaut(), (8, 8, 1))).save("large.png", compress_level=1)
    code = "import sys; from inlay.cli import main; sys.exit(main())"
    arguments = ["compose", "large.png", "cup.png", "--method", "paste", "--random"]
    before = set(os.listdir())
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "--num-images", count, "-o", "out.png"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60

    def written() -> bool:
        with suppress(FileNotFoundError):
            return any(path.stat().st_size for path in Path().glob(".inlay-*.tmp"))
        return False

    while not written() and time.monotonic() < deadline:
        time.sleep(0.002)
        assert process.poll() is None, process.communicate()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted; nothing was written.\n"
    assert set(os.listdir()) == before


def test_a_failure_on_our_side_is_one_sentence_with_status_1() -> None:
    code = "import sys; from inlay.cli import main; sys.exit(main())"
    for debug in ("0", "1"):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-c", code, "methods"],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "INLAY_DEBUG": debug},
            )
        assert done.returncode == 1
        assert done.stderr.endswith(
            "inlay failed with OSError: [Errno 28] No space left on device; "
            "INLAY_DEBUG=1 shows where.\n"
        )
        assert ("Traceback" in done.stderr) == (debug == "1")
        assert len(done.stderr.splitlines()) == 1 or debug == "1"


@pytest.mark.parametrize("json_too", [[], ["--json"]])
@pytest.mark.parametrize(
    "streams", [">/dev/full", "2>/dev/full", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1"]
)
def test_a_picture_is_written_whoever_listens(streams: str, json_too: list[str]) -> None:
    frames = [Image.fromarray(np.roll(data.astronaut(), 9 * i, 1)) for i in range(2)]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:])
    arguments = ["compose", "moving.gif", "cup.png", "--method", "paste"]
    assert main([*arguments, "-o", "heard.png"]) == 0
    code = "import sys; from inlay.cli import main; sys.exit(main())"
    command = ["sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, "-c", code, *arguments]
    done = subprocess.run([*command, *json_too, "-o", "o.png"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "rror" not in done.stderr
    if streams == "2>&-":
        # A note must not go where the result is looked for.
        said = json.loads(done.stdout)["outputs"] if json_too else done.stdout.split()
        assert said == ["o.png"]
    assert Path("o.png").read_bytes() == Path("heard.png").read_bytes()
    assert not list(Path().glob(".inlay*"))


def test_a_picture_is_written_when_the_reader_has_left() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = "import sys; from inlay.cli import main; sys.exit(main())"
    series = [*COMPOSE, "--num-images", "2", "--json", "-o", "o.png"]
    with os.fdopen(writing, "w") as gone:
        done = subprocess.run([sys.executable, "-c", code, *series], stdout=gone, stderr=gone)
    assert done.returncode == 0
    assert {"o.png", "o-seed=0.png", "o-seed=1.png"} <= set(os.listdir())


def test_a_refusal_keeps_its_status_where_nobody_hears_it() -> None:
    code = "import sys; from inlay.cli import main; sys.exit(main())"
    for streams in ("2>/dev/full", "2>&-"):
        command = ["sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, "-c", code]
        done = subprocess.run([*command, "compose", "bg.png"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")


def test_notes_reach_standard_error_once_it_has_worked(capsys: pytest.CaptureFixture[str]) -> None:
    frames = [Image.fromarray(np.roll(data.astronaut(), 9 * i, 1)) for i in range(3)]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:])
    arguments = ["compose", "moving.gif", "cup.png", "--method", "paste", "-o", "o.png"]
    assert main(arguments) == 0
    assert "first" in capsys.readouterr().err
    assert main([*arguments, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_a_process_of_its_own_imports_what_it_runs_and_the_rest_when_asked() -> None:
    """What a library only tries to import, the process is without until something of it is used."""
    program = (
        "import sys\n"
        "from inlay.cli.app import few_imports\n"
        "from inlay.methods.base import Checkpoint\n"
        "checkpoint = Checkpoint()\n"
        "checkpoint.importing = few_imports\n"
        "backbone = checkpoint.backbone\n"
        "left = ('scipy.stats', 'scipy.optimize', 'peft', 'torch._dynamo')\n"
        "print(*(name in sys.modules for name in left))\n"
        "print(backbone.solver('LMSDiscreteScheduler', 10).steps)\n"
        "import peft, scipy.optimize, scipy.stats, torch._dynamo\n"
        "print(torch._dynamo.is_compiling(), scipy.optimize.linear_sum_assignment is not None)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    expected = ["False False False False", "10", "False True"]
    assert done.stdout.splitlines() == expected, done.stderr
