"""Several subjects in one picture: one after the other, together, at random; records; refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from inlay import Box, Composer, InputError, Result, Subject
from inlay.cli import main
from photos import Photo, cup, cutout

Capture = pytest.CaptureFixture[str]
APART = [Box(20, 150, 110, 120), Box(300, 30, 120, 100)]
OVERLAPPING = [Box(60, 80, 150, 130), Box(150, 120, 150, 130)]


def cat() -> Photo:
    return cutout(data.chelsea(), Box(60, 20, 300, 260))


def composed(boxes: list[Box], method: str = "paste", **more: Any) -> Result:
    more = {"shadow": "none", **more}
    return Composer().compose(data.chelsea(), placed(boxes), method=method, **more)


def placed(boxes: list[Box]) -> list[Subject]:
    return [Subject(each, box=box) for each, box in zip((cup(), cat()), boxes, strict=True)]


def pixels(result: Result) -> Photo:
    return np.asarray(result.image)


@pytest.mark.parametrize("method", ["paste", "feather", "poisson", "reinhard"])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("boxes", [APART, OVERLAPPING])
def test_no_byte_changes_outside_the_union(method: str, together: bool, boxes: list[Box]) -> None:
    result = composed(boxes, method, together=together)
    differs = (pixels(result) != data.chelsea()).any(-1)
    may = np.asarray(result.mask) > 0
    assert not (differs & ~may).any()
    for box in boxes:
        assert differs[box.slices].mean() > 0.3
    inside = np.zeros_like(may)
    for box in boxes:
        inside[box.slices] = True
    assert not (may & ~inside).any()
    assert result.region.intersect(boxes[0].hull(boxes[1])) == result.region
    assert result.record["region"] == result.region.as_dict()


@pytest.mark.parametrize("method", ["feather", "poisson", "reinhard"])
def test_one_after_the_other_is_what_single_calls_make(method: str) -> None:
    composer, background = Composer(), data.chelsea()
    for subject, box in zip((cup(), cat()), OVERLAPPING, strict=True):
        made = composer.compose(background, subject, box=box, method=method, shadow="none")
        background = pixels(made)
    assert np.array_equal(pixels(composed(OVERLAPPING, method)), background)


def test_a_model_sees_each_subject_with_the_same_seed() -> None:
    composer, few = Composer(), {"method": "cdc", "num_inference_steps": 2, "seed": 4}
    background = data.chelsea()
    for subject, box in zip((cup(), cat()), OVERLAPPING, strict=True):
        background = pixels(composer.compose(background, subject, box=box, **few))
    several = composer.compose(data.chelsea(), placed(OVERLAPPING), **few)
    assert np.array_equal(pixels(several), background)
    joint = composer.compose(data.chelsea(), placed(OVERLAPPING), together=True, **few)
    assert (pixels(joint) != background).any()


def test_later_subjects_lie_over_earlier_ones() -> None:
    for together in (False, True):
        result = pixels(composed(OVERLAPPING, together=together))
        last = Composer().compose(data.chelsea(), cat(), box=OVERLAPPING[1], method="paste")
        # The ellipse of a cut-out is opaque well inside its box.
        middle = Box(190, 160, 70, 50).slices
        assert np.array_equal(result[middle], pixels(last)[middle])
        first = Composer().compose(data.chelsea(), cup(), box=OVERLAPPING[0], method="paste")
        both = OVERLAPPING[0].intersect(OVERLAPPING[1])
        assert both is not None
        assert (result[both.slices] != pixels(first)[both.slices]).any()


def test_pasting_is_the_same_together_and_one_after_the_other() -> None:
    one, other = (pixels(composed(APART, together=joint)) for joint in (False, True))
    assert np.array_equal(one, other)
    one, other = (pixels(composed(OVERLAPPING, together=joint)) for joint in (False, True))
    # Between the two pastes of the first way lies a rounding to 8 bits.
    assert np.abs(one.astype(int) - other).max() <= 1


def test_together_is_one_window_round_them_all() -> None:
    result = composed(APART, "poisson", together=True)
    assert result.record["request"]["together"] is True
    assert result.window.width == result.window.hull(APART[0]).hull(APART[1]).width
    # One run sees both at once, so the first subject's surroundings are the clean background.
    apart, together = (pixels(composed(OVERLAPPING, "poisson", together=t)) for t in (False, True))
    assert (apart != together).any()


def test_see_through_and_deep_backgrounds_hold_several() -> None:
    clear = np.dstack([data.chelsea(), np.full((300, 451), 90, np.uint8)])
    clear[:, :225, 3] = 0
    for joint in (False, True):
        result = Composer().compose(clear, placed(OVERLAPPING), method="paste", together=joint)
        after, may = np.asarray(result.image), np.asarray(result.mask) > 0
        assert np.array_equal(after[~may], clear[~may])
        assert (after[may][:, 3] >= clear[may][:, 3]).all()
        assert after[135, 135, 3] == 255


@pytest.mark.parametrize("seed", range(12))
def test_random_places_keep_apart(seed: int) -> None:
    subjects = [Subject(each, random=True, scale=0.3) for each in (cup(), cat(), cup())]
    paste: dict[str, Any] = {"method": "paste", "shadow": "none", "seed": seed}
    result = Composer().compose(data.rocket(), subjects, **paste)
    alone = Composer().compose(data.rocket(), subjects[0], **paste)
    may = np.asarray(result.mask) > 0
    assert (may[np.asarray(alone.mask) > 0]).all()
    # As many changed pixels as the three have alone: none lies over another.
    areas = [np.count_nonzero(Composer().compose(data.rocket(), s, **paste).mask) for s in subjects]
    assert np.count_nonzero(may) == sum(areas)
    again = Composer().compose(data.rocket(), subjects, **paste)
    assert np.array_equal(pixels(again), pixels(result))


def test_random_places_end_where_there_is_no_room() -> None:
    subjects = [Subject(cup(), random=True, scale=1.0)] * 6
    result = Composer().compose(data.chelsea(), subjects, method="paste")
    assert np.count_nonzero(result.mask) < 6 * 0.8 * 240 * 270
    assert result.image.size == (451, 300)


def test_subjects_are_objects_or_what_json_says_of_them() -> None:
    composer = Composer()
    said = [
        {"at": (100, 100), "scale": 0.4, "rotate": 20, "flip": True, "cut": "alpha"},
        {"at": np.array([300, 150]), "scale": 0.4, "rotate": 20, "flip": True},
    ]
    objects = [Subject(each, **own) for each, own in zip((cup(), cat()), said, strict=True)]
    one = composer.compose(data.chelsea(), objects, method="paste")
    mappings = [{"picture": p, **own} for p, own in zip((cup(), cat()), said, strict=True)]
    other = composer.compose(data.chelsea(), mappings, method="paste")
    assert np.array_equal(pixels(one), pixels(other))
    said[1] |= {"scale": 0.2, "rotate": 0}
    changed = [Subject(each, **own) for each, own in zip((cup(), cat()), said, strict=True)]
    assert (pixels(composer.compose(data.chelsea(), changed, method="paste")) != pixels(one)).any()


def test_one_subject_in_a_list_is_one_without() -> None:
    composer = Composer()
    alone = composer.compose(data.chelsea(), cup(), box=APART[0], method="feather")
    in_list = composer.compose(data.chelsea(), [cup()], box=APART[0], method="feather")
    subject = [Subject(cup(), box=APART[0])]
    as_object = composer.compose(data.chelsea(), subject, method="feather")
    for result in (in_list, as_object):
        assert np.array_equal(pixels(result), pixels(alone))
        for record in (result.record, alone.record):
            record.pop("timings", None)
        assert result.record == alone.record
    assert set(alone.record["inputs"]) == {"background", "subjects.0.picture"}


def test_each_subject_is_handed_back_as_it_was_laid() -> None:
    result = composed(OVERLAPPING)
    after = data.chelsea()
    for (image, box), wanted in zip(result.layers, OVERLAPPING, strict=True):
        assert box.intersect(wanted) == box and image.mode == "RGBA" and image.size == (
            box.width, box.height,
        )  # fmt: skip
        rgba = np.asarray(image).astype(float)
        alpha = rgba[..., 3:] / 255
        under = after[box.slices].astype(float)
        after = after.copy()
        after[box.slices] = np.round(rgba[..., :3] * alpha + under * (1 - alpha))
    assert np.abs(after.astype(int) - pixels(result)).max() <= 2
    assert [each["box"] for each in result.record["subjects"]] == [
        box.as_dict() for _, box in result.layers
    ]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"box": APART[0]}, "box is for one subject that is a picture"),
        ({"at": (100, 100), "scale": 0.3}, "at, scale is for one subject"),
        ({"mask": np.zeros((2, 2), np.uint8)}, "mask is for one subject"),
        ({"random": True}, r"random is .* Subject\(picture, box=...\)"),
        ({"together": "yes"}, "together is 'yes'; expected True or False"),
        ({"subject": [Subject(cup(), box=APART[0]), {"picture": cat(), "box": (1, 2)}]},
         "subject 2: box is .* four numbers"),
        ({"subject": [Subject(cup(), box=APART[0]), {"picture": cat(), "bax": APART[1]}]},
         "subject 2: 'bax' is unknown; did you mean box"),
        ({"subject": [Subject(cup(), box=APART[0]), {"box": APART[1]}]},
         "subject 2: picture is missing"),
        ({"subject": [{"picture": cup(), "rotate": "x"}, cat()]}, "subject 1: rotate is 'x'"),
        ({"subject": Subject(cup()), "box": APART[0]}, "box is for one subject that is a picture"),
        ({"subject": [{"picture": cup(), "box": APART[0], "at": (1, 1)}, cat()]},
         "subject 1: the place is given twice"),
        ({"subject": [{"picture": cup(), "flip": 1}, cat()]}, "subject 1: flip is 1"),
        ({"subject": [{"picture": cup(), "cut": 3}, cat()]}, "subject 1: cut is 3"),
        ({"subject": [cup(), cat()]}, "2 subjects would all lie in the middle"),
    ],
)  # fmt: skip
def test_what_does_not_match_is_named(arguments: dict[str, Any], sentence: str) -> None:
    given: dict[str, Any] = {"subject": placed(APART), **arguments}
    with pytest.raises(InputError, match=sentence):
        Composer().compose(data.chelsea(), method="paste", **given)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"box": (1, 2, 3)}, "box is"), ({"scale": 0}, "scale is"), ({"at": (1, 2, 3)}, "at is"),
        ({"box": APART[0], "scale": 2.0}, "scale goes with at or random"),
        ({"picture": "x.safetensors", "mask": "m.png"}, "mask does not go with x.safetensors"),
        ({"picture": "x.png", "view": 1}, "view goes with a concept"),
    ],
)  # fmt: skip
def test_a_subject_is_checked_where_it_is_made(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Subject(**{"picture": "cup.png", **values})


def test_no_subject_and_a_shared_background_are_refused() -> None:
    with pytest.raises(InputError, match="there is no subject"):
        Composer().compose(data.chelsea(), [], method="paste")
    arguments: dict[str, Any] = {"method": "cdc", "preset": "augment"}
    with pytest.raises(InputError, match="set them in together"):
        Composer(model="no/such-model").compose(data.chelsea(), placed(APART), **arguments)


def test_progress_is_one_count_over_subjects_and_pictures() -> None:
    steps: list[tuple[int, int]] = []
    composed(APART, "poisson", num_images=2, callback=lambda n, total, _: steps.append((n, total)))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.chelsea()).save("bg.png")
    Image.fromarray(cup()).save("cup.png")
    Image.fromarray(cat()).save("cat.png")
    Image.fromarray(data.coffee()).save("coffee.png")
    mask = np.zeros((400, 600), np.uint8)
    mask[60:240, 200:400] = 255
    Image.fromarray(mask).save("mask.png")
    return tmp_path


COMPOSE = ["compose", "bg.png", "cup.png", "cat.png", "--method", "poisson"]
BOXES = ["--box", "20,150,110,120", "--box", "300,30,120,100"]


@pytest.mark.parametrize(
    "arguments",
    [
        [*COMPOSE, *BOXES],
        [*COMPOSE, *BOXES, "--together", "--rotate", "30", "--flip"],
        [*COMPOSE, "--at", "90,90", "--at", "300,200", "--scale", "0.3", "--scale", "0.5"],
        [*COMPOSE, "--random", "--seed", "3"],
        ["compose", "bg.png", "cup.png", "coffee.png", "--method", "feather", *BOXES,
         "--mask=-", "--mask", "mask.png", "--rotate", "0", "--rotate", "45"],
        ["compose", "bg.png", "coffee.png", "cup.png", "--method", "paste", *BOXES,
         "--cut", "box", "--cut=-", "--cut-box", "160,20,280,250", "--cut-box=-"],
        ["compose", "bg.png", "coffee.png", "cup.png", "--method", "paste", *BOXES,
         "--cut-point", "290,150 300,300", "--cut-point=-"],
    ],
)  # fmt: skip
def test_rerun_makes_the_same_file(folder: Path, arguments: list[str], capsys: Capture) -> None:
    assert main([*arguments, "-o", "out.png", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    subjects = arguments[2:4]
    places = [f"subjects.{n}.picture" for n in (0, 1)]
    assert [record["inputs"][place]["path"] for place in places] == subjects
    assert len({record["inputs"][place]["sha256"] for place in places}) == 2
    assert ("subjects.1.mask" in record["inputs"]) == ("mask.png" in arguments)
    assert "subjects.0.mask" not in record["inputs"]
    assert main(["rerun", "out.png", "-o", "again.png"]) == 0
    assert Path("again.png").read_bytes() == Path("out.png").read_bytes()


def test_series_and_sweeps_of_several_can_be_made_again(folder: Path, capsys: Capture) -> None:
    sweep = [*COMPOSE, "--random", "--num-images", "2", "--set", "amount=0.5,1"]
    assert main([*sweep, "-o", "out.png", "--json"]) == 0
    outputs = json.loads(capsys.readouterr().out)["outputs"]
    assert len({Path(path).read_bytes() for path in outputs}) == 4
    for path in outputs:
        assert main(["rerun", path, "-o", "again.png"]) == 0
        assert Path("again.png").read_bytes() == Path(path).read_bytes()


def test_a_changed_subject_is_named(folder: Path, capsys: Capture) -> None:
    assert main([*COMPOSE, *BOXES, "-o", "out.png"]) == 0
    Image.fromarray(cup()[::-1]).save("cat.png")
    assert main(["rerun", "out.png", "-o", "again.png"]) == 2
    assert "the subject 2 cat.png has changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--box", "1,2,30,40"], "--box is given once for 2 subjects; give it once for each."),
        ([*BOXES, "--box", "1,2,30,40"], "--box is given 3 times for 2 subjects; give it once "
         "for each."),
        (["--at", "9,9"], "--at is given once for 2 subjects; give it once for each."),
        (["--at", "9,9", "--at", "50,50", *["--scale", "1"] * 3], "--scale is given 3 times for 2 "
         "subjects; give it once for each, or once for all."),
        ([*BOXES, "--mask", "mask.png"], "--mask is given once for 2 subjects; give it once for "
         "each."),
        ([*BOXES, "--cut-box", "1,1,9,9"], "--cut-box is given once for 2 subjects; give it once "
         "for each."),
        ([*BOXES, "--cut-point", "1,1"], "--cut-point is given once for 2 subjects; give it once "
         "for each."),
        ([*BOXES, "--cut-point", "1,1", "--cut-point", "2"], "subject 2: cut_points is [2.0]; "
         "expected two numbers x, y."),
        ([*BOXES, "--cut", "mask", "--mask", "mask.png", "--mask=-"], "--cut mask needs --mask "
         "FILE."),
        ([*BOXES, "--random"], "--box and --random exclude each other; give one of them."),
        ([], "2 subjects would all lie in the middle; give each a box or a point, or random "
         "places."),
        ([*BOXES, "-o", "cat.png"], "cat.png is the subject 2 itself; write to another file."),
    ],
)  # fmt: skip
def test_a_count_that_does_not_match_is_one_sentence(
    folder: Path, options: list[str], sentence: str, capsys: Capture
) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert main([*COMPOSE, "-o", "out.png", *options]) == 2
    assert capsys.readouterr().err == sentence + "\n"
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_place_given_twice_for_one_subject_is_refused(folder: Path, capsys: Capture) -> None:
    assert main(["compose", "bg.png", "cup.png", *BOXES, "-o", "out.png"]) == 2
    assert capsys.readouterr().err == (
        "--box is given 2 times for 1 subject; give it once.\n"
    )  # fmt: skip


def _put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: record["request"].update({key: value})


@pytest.mark.parametrize(
    "change",
    [
        _put("subjects", 5), _put("subjects", [5]), _put("subjects", [{"box": 1}] * 2),
        _put("subjects", [{}] * 3), _put("together", "yes"), _put("subjects", [{"at": [1]}] * 2),
        lambda record: record["inputs"].pop("subjects.1.picture"),
        lambda record: record["inputs"].update(
            {"subjects.0.mask": {"path": "/etc/passwd", "sha256": "0"}}
        ),
        lambda record: record["inputs"].update(
            {"subjects.7.mask": {"path": "cup.png", "sha256": "0"}}
        ),
    ],
)  # fmt: skip
def test_a_strangers_record_of_several_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], capsys: Capture
) -> None:
    from inlay.pictures.read import read_picture, read_record
    from inlay.pictures.write import write_picture

    assert main([*COMPOSE, *BOXES, "-o", "out.png", "-q"]) == 0
    record = json.loads(read_record("out.png") or "")
    change(record)
    write_picture(read_picture(data.coffee()), "bad.png", record=json.dumps(record))
    assert main(["rerun", "bad.png", "-o", "again.png"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not Path("again.png").exists()
