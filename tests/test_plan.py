"""Compositions in phases: what each makes, what is kept, records, refusals."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from checkpoints import built, loaded
from inlay import Box, Cancelled, Composer, InputError, Result, Subject
from inlay.cli import main
from inlay.cli.outputs import Outputs, Target
from inlay.diffusion.branches import new_adapter
from inlay.methods.registry import as_phases
from inlay.pictures.read import read_picture, read_record
from inlay.pictures.write import Files, write_picture
from inlay.request import ComposeRequest, Request
from photos import Photo, cup, cutout
from reruns import needs, rerun

Capture = pytest.CaptureFixture[str]
BOX = Box(150, 60, 150, 140)
ALL = ("remove", "paste", "harmonize")


def composed(phases: Any = ALL, **more: Any) -> Result:
    arguments = {"box": BOX, "method": "poisson", "keep_phases": True, **more}
    if "harmonize" not in phases:
        arguments.pop("method")
    if "remove" in phases:
        arguments.setdefault("remove", "telea")
    return Composer().compose(data.chelsea(), cup(), phases=phases, **arguments)


def box_mask(*boxes: Box) -> Photo:
    mask = np.zeros((300, 451), np.uint8)
    for box in boxes:
        mask[box.slices] = 255
    return mask


def placed(boxes: list[Box], *pictures: Photo) -> list[Subject]:
    return [Subject(picture, box=box) for picture, box in zip(pictures, boxes, strict=True)]


def telea(**settings: Any) -> dict[str, Any]:
    """The phase remove by a classical method, so that no model is loaded."""
    return {"remove": {"name": "telea", **settings}}


def pixels(result: Result) -> Photo:
    return np.asarray(result.image)


def test_the_phases_are_what_single_calls_make() -> None:
    composer = Composer()
    empty = pixels(composer.remove(data.chelsea(), mask=box_mask(BOX), method="telea"))
    pasted = pixels(composer.compose(empty, cup(), box=BOX, method="paste"))
    harmonized = pixels(composer.compose(empty, cup(), box=BOX, method="poisson"))
    result = composed()
    assert list(result.phases) == list(ALL)
    wanted = zip(result.phases.values(), (empty, pasted, harmonized), strict=True)
    for picture, single in wanted:
        assert np.array_equal(picture.samples, single)
    assert np.array_equal(pixels(result), harmonized)
    assert (harmonized != pasted).any() and (empty != data.chelsea()).any()


def test_pasting_and_harmonizing_is_composing() -> None:
    wanted = Composer().compose(data.chelsea(), cup(), box=BOX, method="poisson")
    result = composed("paste, harmonize")
    assert np.array_equal(pixels(result), pixels(wanted))
    assert np.array_equal(result.changes, wanted.changes) and result.region == wanted.region


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("phases", [("remove",), ("remove", "paste"), ALL])
def test_no_byte_changes_outside_the_union(phases: tuple[str, ...], together: bool) -> None:
    boxes = [Box(20, 150, 110, 120), Box(300, 30, 120, 100)]
    cat = cutout(data.chelsea(), Box(60, 20, 300, 260))
    more: dict[str, Any] = {"method": "poisson"} if "harmonize" in phases else {}
    result = Composer().compose(
        data.chelsea(), placed(boxes, cup(), cat), phases=phases, together=together,
        shadow="none", **telea(dilate=0), **more,
    )  # fmt: skip
    differs = (pixels(result) != data.chelsea()).any(-1)
    may = np.asarray(result.mask) > 0
    assert np.array_equal(may, box_mask(*boxes) > 0)
    assert not (differs & ~may).any()
    assert differs[may].mean() > 0.8
    assert result.record["region"] == result.region.as_dict()
    assert result.phases == {}


def test_a_mask_says_what_goes_instead_of_the_box() -> None:
    goes = Box(10, 200, 80, 60)
    result = composed(remove_mask=box_mask(goes), **telea(dilate=0))
    changed = (result.phases["remove"].samples != data.chelsea()).any(-1)
    assert changed[goes.slices].mean() > 0.8
    assert not changed[BOX.slices].any()
    assert result.region.intersect(goes) == goes
    random = composed(box=None, random=True, seed=3, remove_mask=box_mask(goes))
    assert (random.phases["remove"].samples == composed(
        remove_mask=box_mask(goes)
    ).phases["remove"].samples).all()  # fmt: skip


def test_a_picture_of_each_seed_keeps_its_own_phases() -> None:
    result = composed(
        ("remove", "paste"), box=None, random=True, remove_mask=box_mask(BOX), num_images=2, seed=5
    )
    assert [record["seed"] for record in result.records] == [5, 6]
    assert result.records[1]["request"]["seed"] == 6
    pasted = [kept["paste"][0].samples for kept in result.kept]
    assert (pasted[0] != pasted[1]).any()
    for kept, picture in zip(result.kept, result.pictures, strict=True):
        assert kept["paste"][0] is picture


def test_a_model_is_loaded_for_the_phase_that_needs_it() -> None:
    result = composed(method="cdc", num_inference_steps=2, seed=3)
    empty = result.phases["remove"].samples
    single = Composer().compose(empty, cup(), box=BOX, method="cdc", num_inference_steps=2, seed=3)
    assert np.array_equal(pixels(result), pixels(single))
    kept = {name: record for name, (_, record) in result.kept[0].items()}
    assert kept["remove"]["model"] is None and kept["paste"]["model"] is None
    assert result.record["model"]["name"] == "embedded"
    asked = result.record["request"]
    assert (result.record["method"], asked["method"]["num_inference_steps"]) == ("cdc", 2)
    assert [step.choice.name for step in Request.of({**asked, "background": "bg.png"}).steps()] == [
        "telea", "paste", "cdc",
    ]  # fmt: skip


def test_progress_is_one_count_and_phases_are_called_by_name() -> None:
    heard: list[Any] = []
    composed(
        method="cdc", num_inference_steps=4, num_images=2, on_phase=heard.append,
        callback=lambda step, total, _: heard.append((step, total)),
    )  # fmt: skip
    # One step of telea, one of paste and four of cdc, twice.
    steps = [item for item in heard if isinstance(item, tuple)]
    assert steps == [(step, 12) for step in range(1, 13)]
    assert [item for item in heard if isinstance(item, str)] == [*ALL, *ALL]
    assert heard[:3] == ["remove", (1, 12), "paste"]


def test_a_callback_can_end_it_in_any_phase() -> None:
    for phase in range(3):
        count = 0

        def stop(step: int, total: int, preview: Any, last: int = phase) -> None:
            nonlocal count
            count += 1
            if count > last:
                raise Cancelled

        with pytest.raises(Cancelled):
            composed(callback=stop)
        assert count == phase + 1


@pytest.mark.parametrize(
    "phases",
    [
        "remove", "paste", "remove,paste", "paste,harmonize", "remove, paste ,harmonize",
        "paste,repose", "remove,paste,harmonize,repose", ["paste"], ("remove", "paste", "repose"),
    ],
)  # fmt: skip
def test_orders_that_make_sense(phases: Any) -> None:
    names = [name.strip() for name in phases.split(",")] if isinstance(phases, str) else phases
    assert as_phases(phases, "phases") == tuple(names)


@pytest.mark.parametrize(
    ("phases", "sentence"),
    [
        ("paste,remove", "expected some of remove, paste, harmonize, repose, each once and in"),
        ("harmonize", "with paste before harmonize and repose"),
        ("repose", "with paste before"), ("remove,harmonize", "with paste before"),
        ("paste,paste", "each once"), ("paste,repose,harmonize", "in this order"),
        ([None], "expected"),
        ("past", "phase 'past' is unknown; did you mean paste?"), ("", "phase '' is unknown"),
        ("paste,", "phase '' is unknown"), (5, "phases is 5; expected some of"),
        ([1], "expected some of"), ({"paste": 1}, "expected some of"),
    ],
)  # fmt: skip
def test_orders_that_do_not(phases: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        as_phases(phases, "phases")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"phases": None, "method": "poisson"}, "keep_phases goes with phases"),
        ({"phases": None, "keep_phases": False, "remove": "telea"}, "remove goes with phases"),
        ({"phases": None, "keep_phases": False, "repose": {}}, "repose goes with phases"),
        ({"keep_phases": 1}, "keep_phases is 1; expected True or False"),
        ({"phases": "paste", "method": "poisson"}, "method goes with the phase harmonize"),
        ({"phases": "remove,paste", "preset": "blend"}, "preset goes with the phase harmonize"),
        ({"phases": "paste,harmonize", "remove": "telea"}, "goes with the phase remove"),
        ({"phases": "paste", "remove_mask": box_mask(BOX)}, "remove_mask goes with the phase"),
        ({"remove": "poisson"}, "'poisson' does not serve remove; use one of"),
        ({"remove": {"name": "inpant"}}, "did you mean inpaint"),
        ({"method": "telea"}, "does not serve compose"),
        (telea(radios=1), "did you mean radius"),
        (telea(radius=0), "radius is 0; expected"),
        ({"repose": {}}, "repose goes with the phase repose; add that phase"),
        ({"remove": 3}, "remove is 3; expected a name, or a name with settings"),
        ({"remove": [1]}, "remove is .* expected a name, or a name with settings"),
        ({"phases": "paste", "amount": 1.0}, "setting 'amount' is unknown"),
        ({"box": None, "at": (50, 50)}, "give each subject a box, or a mask of what is to go"),
        ({"box": None, "random": True}, "give each subject a box, or a mask of what is to go"),
        ({"box": Box(900, 900, 20, 20)}, "wholly outside the background"),
        (
            {"box": Box(0, 0, 451, 300), "remove": "telea"},
            "the mask covers the whole picture",
        ),
        ({"remove_mask": box_mask(BOX)[:50]}, "remove mask is 451 x 50 pixels"),
        ({"remove_mask": box_mask()}, "remove mask is empty"),
    ],
)
def test_what_does_not_go_together_is_named(arguments: dict[str, Any], sentence: str) -> None:
    given = {"phases": ALL, "box": BOX, "keep_phases": True, **arguments}
    with pytest.raises(InputError, match=sentence) as caught:
        Composer().compose(data.chelsea(), cup(), **given)
    assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.chelsea()).save("bg.png")
    Image.fromarray(cup()).save("cup.png")
    Image.fromarray(box_mask(Box(10, 200, 80, 60))).save("goes.png")
    return tmp_path


COMPOSE = ["compose", "bg.png", "cup.png", "--box", "150,60,150,140"]
PHASES = ["--phases", "remove,paste,harmonize", "--remove-method", "telea"]
POISSON = ["--method", "poisson"]


def test_kept_phases_lie_beside_the_picture(folder: Path, capsys: Capture) -> None:
    before = set(os.listdir())
    arguments = [*COMPOSE, *PHASES, *POISSON, "--keep-phases", "-o", "out.png"]
    assert main(arguments) == 0
    kept = ["out-1-remove.png", "out-2-paste.png", "out-3-harmonize.png"]
    assert capsys.readouterr().out.split() == [*kept, "out.png"]
    assert set(os.listdir()) - before == {*kept, "out.png"}
    result = composed()
    for path, picture in zip(kept, result.phases.values(), strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), picture.samples)
    assert main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["kept"], record["outputs"]) == (kept, ["out.png"])
    assert "kept" not in (read_record("out.png") or "")


@pytest.mark.parametrize(
    "options",
    [
        [*PHASES, *POISSON, "--set", "amount=0.7", "--set", "remove.radius=9"],
        [*PHASES, "--method", "feather", "--remove-mask", "goes.png", "--set=harmonize.radius=7"],
        [*PHASES, *POISSON, "--seed", "4"], ["--phases", "remove,paste"],
        ["--phases", "paste"], ["--phases", "remove"],
        [*PHASES, "--method", "cdc", "--preset", "immerse", "--num-inference-steps", "2"],
        ["--phases", "remove,paste", "--remove-method", "freecompose", "--set",
         "remove.num_iterations=2"],
    ],
)  # fmt: skip
def test_every_phase_can_be_made_again(folder: Path, options: list[str], capsys: Capture) -> None:
    assert main([*COMPOSE, *options, "--keep-phases", "-o", "out.png", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    names = record["request"]["phases"]
    for path in [*record["kept"], "out.png"]:
        assert main(["rerun", path, "-o", "again.png"]) == 0
        assert Path("again.png").read_bytes() == Path(path).read_bytes()
        inside = json.loads(read_record(path) or "")
        assert inside["request"]["phases"] == names[: len(inside["request"]["phases"])]
    assert Path(record["kept"][-1]).read_bytes() == Path("out.png").read_bytes()


def test_several_subjects_in_phases_can_be_made_again(folder: Path) -> None:
    arguments = ["compose", "bg.png", "cup.png", "cup.png", "--box", "10,10,90,80", "--box",
                 "200,90,150,140", *PHASES, *POISSON, "--together", "-o", "out.png"]  # fmt: skip
    assert main(arguments) == 0
    assert main(["rerun", "out.png", "-o", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("out.png").read_bytes()


def test_a_sweep_over_phases_multiplies(folder: Path, capsys: Capture) -> None:
    options = ["--set", "amount=0.5,1", "--set", "remove.dilate=0,20", "--keep-phases"]
    assert main([*COMPOSE, *PHASES, *POISSON, *options, "-o", "out.png", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["labels"] == [
        f"amount={amount},remove.dilate={dilate}" for amount in ("0.5", "1") for dilate in (0, 20)
    ]
    assert len(record["kept"]) == 12
    assert "out-amount=1,remove.dilate=20-1-remove.png" in record["kept"]
    assert len({Path(path).read_bytes() for path in record["outputs"]}) == 4
    last = record["outputs"][-1]
    assert main(["rerun", last, "-o", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path(last).read_bytes()


def test_an_option_that_a_phase_has_not_is_passed_over(folder: Path, capsys: Capture) -> None:
    options = [*PHASES, *POISSON, "--prompt", "a cup", "--keep-phases", "-o", "out.png"]
    assert main([*COMPOSE, *options, "--json"]) == 0
    assert "--prompt is passed over" in json.loads(capsys.readouterr().out)["notes"][0]
    assert "passed over" in (read_record("out-1-remove.png") or "")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--phases", "paste,remove"], "expected some of remove, paste, harmonize, repose"),
        (["--phases", "remove,past"], "did you mean paste?"),
        (["--phases", ""], "phase '' is unknown"),
        (["--keep-phases", *POISSON], "keep_phases goes with phases; say which."),
        (["--remove-mask", "goes.png"], "--remove-mask goes with --phases"),
        (["--remove-method", "telea"], "--remove-method goes with --phases"),
        ([*PHASES, "--remove-mask", "gone.png"], "gone.png"),
        ([*PHASES[:-1], "tela"], "did you mean telea?"),
        (["--phases", "paste", *POISSON], "method goes with the phase harmonize"),
        (["--phases", "paste", "--set", "amount=1"], "setting 'amount' is unknown"),
        ([*PHASES, "--set", "remove.radios=1"], "did you mean radius?"),
        ([*PHASES, "--set", "repose.eta=1"], "is for the phase repose; add that phase."),
        ([*PHASES, "--set", "remov.radius=1"], "setting 'remov.radius' is unknown"),
        ([*PHASES, *POISSON, "--set", "remove.dilate=1,2,3,4,5,6,7,8,9", "--set",
          "amount=0,0.1,0.2,0.3,0.4,0.5,0.6,0.7"], "at most 64 are made"),
        (["--phases", "paste,repose"], "control picture"),
    ],
)  # fmt: skip
def test_bad_options_are_one_sentence_and_write_nothing(
    folder: Path, options: list[str], sentence: str, capsys: Capture
) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert main([*COMPOSE, *options, "-o", "out.png"]) == 2
    errors = capsys.readouterr().err
    assert sentence in errors and errors.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("taken", ["bg.png", "cup.png", "goes.png"])
def test_a_kept_phase_is_never_an_input(folder: Path, taken: str, capsys: Capture) -> None:
    os.rename(taken, "out-2-paste.png")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    files = {name: "out-2-paste.png" if name == taken else name
             for name in ("bg.png", "cup.png", "goes.png")}  # fmt: skip
    arguments = ["compose", files["bg.png"], files["cup.png"], "--box", "150,60,150,140", *PHASES,
                 *POISSON, "--remove-mask", files["goes.png"], "--keep-phases"]  # fmt: skip
    assert main([*arguments, "-o", "out.png"]) == 2
    assert "out-2-paste.png is the" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert main([*arguments, "-o", "other.png"]) == 0


def test_all_kept_phases_are_written_or_none(folder: Path) -> None:
    before = set(os.listdir())
    picture = read_picture(data.coffee())
    record: dict[str, Any] = {"inlay": "0", "verb": "compose", "method": "m", "notes": []}
    stages = {name: (picture, record) for name in ("remove", "paste")}
    place, changes = Box(0, 0, 1, 1), np.zeros((1, 1), np.float32)
    result = Result([picture], [record], place, place, changes, kept=[stages])
    out = Path("out.png")
    target = Target(out, phases=("remove", "paste"))
    kept = target.kept
    kept[0].write_bytes(b"old")
    with pytest.raises(InputError, match=r"out-2-paste\.png cannot be written"), Files() as files:
        Outputs(out, [target], files).take(result)
        assert not out.exists() and kept[0].read_bytes() == b"old"
        kept[1].mkdir()
    assert kept[0].read_bytes() == b"old"
    assert set(os.listdir()) - before == {"out-1-remove.png", "out-2-paste.png"}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for the checkpoint sd1 that has learned nothing, but does not stand still."""
    folder = tmp_path_factory.mktemp("adapter")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = new_adapter(loaded("sd1"))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    network.save_pretrained(folder)
    return folder


FEW = {"num_iterations": 2, "eta": 2.0, "t_min": 200, "t_max": 500, "redraw": 0}


def drawing(*boxes: Box) -> Photo:
    """White lines on black where the subjects lie."""
    lines = np.zeros((300, 451), np.uint8)
    for box in boxes:
        lines[box.slices][10:-10:12, 10:-10] = 255
    return lines


@pytest.mark.parametrize("together", [False, True])
def test_reposing_works_on_the_harmonized_picture(adapter: Path, together: bool) -> None:
    boxes = [Box(20, 150, 90, 80), Box(250, 60, 120, 100)]
    composer = Composer(str(built("sd1")), device="cpu", dtype="float32")
    heard: list[str] = []

    def made(**settings: Any) -> Result:
        return composer.compose(
            data.chelsea(), placed(boxes, cup(), cup()), phases=[*ALL, "repose"],
            method="poisson", remove="telea", control=drawing(*boxes), keep_phases=True,
            on_phase=heard.append, together=together, seed=3,
            repose={**FEW, "adapter": str(adapter), **settings},
        )  # fmt: skip

    still = made(num_iterations=0).phases
    assert np.array_equal(still["repose"].samples, still["harmonize"].samples)
    heard.clear()
    result = made()
    assert heard == [*ALL, "repose"]
    harmonized, reposed = (result.phases[name].samples for name in ("harmonize", "repose"))
    for box in boxes:
        assert (harmonized[box.slices] != reposed[box.slices]).any()
    outside = np.asarray(result.mask) == 0
    assert np.array_equal(reposed[outside], data.chelsea()[outside])
    kept = {name: record for name, (_, record) in result.kept[0].items()}
    assert "adapter" not in kept["harmonize"] and kept["harmonize"]["model"] is None
    assert result.record["adapter"]["name"] == str(adapter)
    assert result.record["method"] == "poisson"
    assert result.record["request"]["repose"]["variant"] == "semantic"


def test_reposing_what_is_pasted_is_near_to_its_method_alone(adapter: Path) -> None:
    composer = Composer(str(built("sd1")), device="cpu", dtype="float32")
    shared: dict[str, Any] = {"box": BOX, "control": drawing(BOX), "seed": 3}
    settings = {**FEW, "adapter": str(adapter)}
    phased = composer.compose(
        data.chelsea(), cup(), phases="paste,repose", keep_phases=True, **settings, **shared
    )
    alone = composer.compose(
        data.chelsea(), cup(), method="freecompose", preset="semantic", **settings, **shared
    )
    # In between, the paste is rounded to 8 bits.
    apart = np.abs(pixels(phased).astype(int) - pixels(alone)).mean()
    moved = np.abs(pixels(phased).astype(int) - phased.phases["paste"].samples).mean()
    assert apart < 0.1 * moved
    choice = phased.record["request"]["method"]
    assert (choice["name"], choice["preset"]) == ("freecompose", "semantic")


def test_what_the_picture_should_show_is_said_to_the_reposing_too(folder: Path) -> None:
    composer = Composer()
    shared: dict[str, Any] = {"box": BOX, "phases": [*ALL, "repose"]}
    with pytest.raises(InputError, match="source_prompt that differ"):
        composer.compose(data.chelsea(), cup(), method="poisson", **shared)
    told = {"prompt": "a cup", "source_prompt": "a cup"}
    with pytest.raises(InputError, match="source_prompt that differ"):
        composer.compose(data.chelsea(), cup(), prompt="a bowl", repose=told, **shared)
    request = ComposeRequest(
        background="bg.png", subjects="cup.png", phases=shared["phases"], control="lines.png",
        method={"prompt": "a bowl", "num_inference_steps": 3},
    )  # fmt: skip
    assert [getattr(step.choice.settings, "prompt", None) for step in request.steps()] == [
        None, None, "a bowl", "a bowl",
    ]  # fmt: skip


def test_a_reposed_picture_can_be_made_again(folder: Path, adapter: Path, capsys: Capture) -> None:
    Image.fromarray(drawing(BOX)).save("lines.png")
    few = [f"--set=repose.{key}={value}" for key, value in FEW.items()]
    arguments = [*COMPOSE, "--phases", "remove,paste,harmonize,repose", *POISSON, *few,
                 "--remove-method=telea",
                 f"--set=repose.adapter={adapter}", "--control", "lines.png", "--prompt", "a cup",
                 "--model", str(built("sd1")), "--keep-phases", "--json"]  # fmt: skip
    assert main([*arguments, "-o", "out.png"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["notes"] == []
    assert record["request"]["repose"]["prompt"] == "a cup"
    assert main(["rerun", "out-3-harmonize.png", "-o", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("out-3-harmonize.png").read_bytes()
    for path in ("out.png", "out-4-repose.png"):
        assert needs(path) == ["--input", f"model={built('sd1')}", "--input",
                               f"repose_adapter={adapter}"]  # fmt: skip
        assert rerun(path, "again.png") == 0
        assert Path("again.png").read_bytes() == Path(path).read_bytes()


def _put(*path: str | Any) -> Callable[[dict[str, Any]], None]:
    """A change of a record's request: the keys, and then the value."""

    def change(record: dict[str, Any]) -> None:
        inner = record["request"]
        for key in path[:-2]:
            inner = inner[key]
        inner[path[-2]] = path[-1]

    return change


@pytest.mark.parametrize(
    "change",
    [
        _put("phases", ["paste", "paste", "harmonize"]), _put("phases", ["explode", "paste"]),
        _put("remove", "name", "paste"), _put("method", "name", "telea"),
        _put("remove", {"mask": "/etc/passwd"}), _put("method", "max_pixels", 10**12),
        _put("method", 3), _put("method", "preset", "x"), _put("phases", 5),
        _put("phases", ["harmonize", "paste", "remove"]), _put("phases", ["remove", "harmonize"]),
        _put("phases", ["remove", "paste", "harmonize", "remove"]),
    ],
)  # fmt: skip
def test_a_strangers_phases_are_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], capsys: Capture
) -> None:
    assert main([*COMPOSE, *PHASES, *POISSON, "-o", "out.png", "-q"]) == 0
    record = json.loads(read_record("out.png") or "")
    change(record)
    write_picture(read_picture(data.coffee()), "bad.png", record=json.dumps(record))
    assert main(["rerun", "bad.png", "-o", "again.png"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("again.png").exists()
