"""What the command line may write over, and records that come from a stranger."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from inlay.cli import main
from inlay.cli.outputs import Outputs, Target, listening, sibling_names
from inlay.errors import InputError
from inlay.pictures.arrays import Box
from inlay.pictures.read import read_picture, read_record
from inlay.pictures.write import Files, write_picture
from inlay.result import Result
from photos import cup

Capture = pytest.CaptureFixture[str]
COMPOSE = ["compose", "bg.png", "cup.png", "--method", "paste"]


@pytest.fixture(autouse=True)
def _photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.astronaut()).save("bg.png")
    Image.fromarray(cup()).save("cup.png")


def test_a_preview_takes_no_name_that_is_taken(capsys: Capture) -> None:
    Path("out-preview.png").write_bytes(b"mine")
    assert main([*COMPOSE, "-o", "out.png", "--previews"]) == 2
    assert "out-preview.png exists already" in capsys.readouterr().err
    assert Path("out-preview.png").read_bytes() == b"mine"
    os.rename("bg.png", "o-preview.png")
    before = Path("o-preview.png").read_bytes()
    assert main(["compose", "o-preview.png", *COMPOSE[2:], "-o", "o.png", "--previews"]) == 2
    assert "is the background itself" in capsys.readouterr().err
    assert Path("o-preview.png").read_bytes() == before
    assert not Path("o.png").exists()


def test_a_listener_removes_only_its_own_preview() -> None:
    theirs = Path("theirs.png")
    theirs.write_bytes(b"mine")
    with (
        pytest.raises(InputError, match="exists already"),
        listening(quiet=True, bar=False, preview_file=theirs) as listener,
    ):
        listener.step(1, 2, data.coffee())
    assert theirs.read_bytes() == b"mine"
    with listening(quiet=True, bar=False, preview_file=Path("own.png")) as listener:
        listener.step(1, 2, data.coffee())
        listener.step(2, 2, data.coffee())
        assert Path("own.png").exists()
    assert not Path("own.png").exists()


def test_a_sibling_is_never_an_input(capsys: Capture) -> None:
    os.rename("bg.png", "x-seed=1.png")
    before = Path("x-seed=1.png").read_bytes()
    assert main(["compose", "x-seed=1.png", *COMPOSE[2:], "-o", "x.png", "--num-images", "2"]) == 2
    assert "x-seed=1.png is the background itself" in capsys.readouterr().err
    assert Path("x-seed=1.png").read_bytes() == before
    assert sorted(os.listdir()) == ["cup.png", "x-seed=1.png"]


def test_a_folder_in_a_siblings_place_is_refused_before_the_work(capsys: Capture) -> None:
    Path("x-seed=1.png").mkdir()
    assert main([*COMPOSE, "-o", "x.png", "--num-images", "2"]) == 2
    assert "x-seed=1.png is a folder" in capsys.readouterr().err
    assert sorted(os.listdir()) == ["bg.png", "cup.png", "x-seed=1.png"]


def test_all_siblings_are_written_or_none() -> None:
    record = {"inlay": "0", "verb": "compose", "method": "m", "notes": []}
    box, nothing = Box(0, 0, 1, 1), np.zeros((1, 1), np.float32)
    result = Result([read_picture(data.coffee())], [record], box, box, nothing)
    siblings = sibling_names(Path("x.png"), ["a", "b", "c"])
    siblings[1].write_bytes(b"old")
    targets = [Target(path, label) for path, label in zip(siblings, "abc", strict=True)]
    with pytest.raises(InputError, match=r"x-c\.png cannot be written"), Files() as files:
        outputs = Outputs(Path("x.png"), targets, files)
        for _ in "abc":
            outputs.take(result)
        outputs.summary()
        siblings[2].mkdir()
    assert siblings[1].read_bytes() == b"old"
    assert sorted(os.listdir()) == ["bg.png", "cup.png", "x-b.png", "x-c.png"]


def test_siblings_have_names_of_their_own() -> None:
    names = sibling_names(Path("x.png"), ["a b", "a c", "a/b", "a_b", "z" * 160, "z" * 161])
    assert len(set(names)) == 6


@pytest.mark.parametrize(
    "option",
    [["--prompt", "x"], ["--negative-prompt", "x"], ["--num-inference-steps", "3"],
     ["--guidance-scale", "2"]],
)  # fmt: skip
def test_a_common_option_is_passed_over_with_a_note(option: list[str], capsys: Capture) -> None:
    assert main([*COMPOSE, *option, "-o", "out.png", "--json"]) == 0
    out, err = capsys.readouterr()
    assert f"{option[0]} is passed over" in json.loads(out)["notes"][0]
    assert f"{option[0]} is passed over" in err
    assert main(["rerun", "out.png", "-o", "again.png"]) == 0


def test_set_still_refuses_what_a_method_has_not(capsys: Capture) -> None:
    assert main([*COMPOSE, "--set", "prompt=x", "-o", "out.png"]) == 2
    assert capsys.readouterr().err == "setting 'prompt' is unknown; there are none.\n"


@pytest.mark.parametrize("scale", ["1e308", "nan", "inf", "0", "-1", "1e-320"])
def test_no_scale_fails_on_our_side(scale: str, capsys: Capture) -> None:
    assert main([*COMPOSE, "--at", "9,9", f"--scale={scale}", "-o", "out.png"]) == 2
    assert "scale" in capsys.readouterr().err


METHOD, SUBJECT = ("request", "method"), ("request", "subjects", 0)


def _put(*path: str | int) -> Callable[[dict[str, Any], Any], None]:
    def change(record: Any, value: Any) -> None:
        for key in path[:-1]:
            record = record[key]
        record[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*METHOD, "max_pixels"), 10**12), ((*METHOD, "seed"), 5),
        ((*METHOD, "method"), "telea"), ((*METHOD, "mask"), "/etc/passwd"),
        ((*METHOD, "callback"), 1), ((*METHOD, "box"), 1), ((*METHOD, "x"), None),
        ((*SUBJECT, "scale"), "x"), ((*SUBJECT, "scale"), 1e308), ((*SUBJECT, "at"), "ab"),
        ((*SUBJECT, "rotate"), "9"), ((*SUBJECT, "random"), "yes"), ((*SUBJECT, "box"), [1]),
        ((*SUBJECT, "cut"), 3), ((*SUBJECT, "cut_box"), {"x": "1"}), (("request",), [1]),
        ((*SUBJECT, "flip"), 1), ((*METHOD, "preset"), "x"), ((*METHOD, "name"), "x"),
        (("sheet",), 1), (("request", "seed"), float("nan")),
        (("request", "trust_remote_code"), True), (("request", "background"), 5),
        (("request", "verb"), "explode"), (("request", "subjects"), []),
        (("request", "num_images"), 10**6), (("request", "model"), "x"), (("inputs",), {}),
    ],
)  # fmt: skip
def test_a_strangers_record_is_refused(
    path: tuple[str | int, ...], value: Any, capsys: Capture
) -> None:
    assert main([*COMPOSE, "--at", "200,200", "--scale", "0.3", "-o", "out.png", "-q"]) == 0
    record = json.loads(read_record("out.png") or "")
    _put(*path)(record, value)
    write_picture(read_picture(data.coffee()), "bad.png", record=json.dumps(record))
    assert main(["rerun", "bad.png", "-o", "again.png"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("again.png").exists()


def test_a_record_with_a_number_beyond_reason_is_damaged(capsys: Capture) -> None:
    text = '{"sheet": {"a": 1}, "outputs": {"b": ' + "9" * 5000 + "}}"
    write_picture(read_picture(np.zeros((9, 9), np.uint8)), "bad.png", record=text)
    assert main(["rerun", "bad.png", "-o", "again.png"]) == 2
    write_picture(read_picture(data.coffee()), "b.png", record='{"sheet": 1, "outputs": {"b": 1}}')
    assert main(["rerun", "b.png", "-o", "again.png"]) == 2
    assert "contact sheet" in capsys.readouterr().err
