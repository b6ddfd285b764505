"""Files of concepts as subjects: where they go, what stays as it was, what is refused."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage import data

from checkpoints import built
from concepts import learnt
from inlay import Box, Cancelled, Composer, InputError, Result, Subject
from inlay.checkpoints.concept import read_concept
from inlay.cli import main
from inlay.diffusion.backbone import Backbone
from photos import Photo, cup
from reruns import needs, rerun

Capture = pytest.CaptureFixture[str]
BOX = Box(40, 150, 130, 120)
OTHER = Box(250, 40, 100, 140)
QUICK: dict[str, Any] = {"num_inference_steps": 2, "context": 0.5, "feather": 0.03}


@cache
def composer(model: str = "sd1_inpaint") -> Composer:
    return Composer.from_pretrained(str(built(model)), device="cpu", dtype="float32")


def composed(subject: Any = None, **options: Any) -> Result:
    options = {"box": BOX, "seed": 3, **QUICK, **options}
    return composer().compose(data.chelsea(), learnt() if subject is None else subject, **options)


def pixels(result: Result, number: int = 0) -> Photo:
    return np.asarray(result.images[number])


def changed(result: Result) -> np.ndarray:
    return (pixels(result) != data.chelsea()).any(-1)


def weights(backbone: Backbone) -> dict[str, torch.Tensor]:
    modules = (backbone.unet, backbone.vae, *backbone.text.encoders)
    return {
        f"{number}.{name}": value.clone()
        for number, module in enumerate(modules)
        for name, value in module.state_dict().items()
    }


def assert_as_before(backbone: Backbone, before: dict[str, torch.Tensor]) -> None:
    after = weights(backbone)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_box_is_filled_and_nothing_else_changes() -> None:
    result = composed()
    where = changed(result)
    assert where[BOX.slices].mean() > 0.9
    # The effect ends where the rim does, and so does the record's region.
    reach = round(0.03 * result.window.width) + 1
    allowed = np.zeros_like(where)
    allowed[BOX.grown(reach).slices] = True
    assert not where[~allowed].any()
    assert (np.asarray(result.mask)[where] == 255).all()
    region = Box(**result.record["region"])
    assert region == result.region and BOX.grown(reach).intersect(region) == region
    assert result.record["method"] == "dreamcom"
    assert Path(result.record["inputs"]["subjects.0.picture"]["path"]).name == "cup.safetensors"


def test_a_seed_gives_the_same_bytes_and_several_pictures_are_of_several_seeds() -> None:
    result = composed(num_images=2)
    assert np.array_equal(pixels(result), pixels(composed()))
    assert np.array_equal(pixels(result, 1), pixels(composed(seed=4)))
    assert (pixels(result) != pixels(result, 1)).any()
    assert [record["seed"] for record in result.records] == [3, 4]


def test_a_point_and_a_scale_are_of_the_learnt_aspect() -> None:
    aspect = read_concept(learnt()).aspect
    result = composed(box=None, at=(200, 120), scale=0.25, feather=0.0)
    rows, columns = (np.flatnonzero(changed(result).any(axis)) for axis in (1, 0))
    # The rim reaches a pixel beyond the object at the most.
    assert 128 <= columns[-1] - columns[0] + 1 <= 130
    assert rows[-1] - rows[0] + 1 == pytest.approx(128 / aspect, abs=2)
    assert columns.mean() == pytest.approx(200, abs=1) and rows.mean() == pytest.approx(120, abs=1)
    # A box that reaches over the edge of the picture is cut there.
    beyond = composed(box=Box(400, 200, 130, 120))
    assert changed(beyond)[200:, 400:].mean() > 0.9


def test_a_random_place_is_of_the_seed() -> None:
    first, second = (composed(box=None, random=True, seed=seed) for seed in (1, 2))
    assert first.region != second.region
    again = composed(box=None, random=True, num_images=2, seed=1)
    assert np.array_equal(pixels(again), pixels(first))
    assert np.array_equal(pixels(again, 1), pixels(second))


def _two(one: Any, other: Any) -> list[Subject]:
    return [Subject(one, box=BOX), Subject(other, box=OTHER)]


def test_two_files_go_in_one_after_the_other() -> None:
    both = composed(_two(learnt(), learnt(rank=3)), box=None)
    first = composed()
    second = composer().compose(first.image, learnt(rank=3), box=OTHER, seed=3, **QUICK)
    assert np.array_equal(pixels(both), np.asarray(second.image))
    assert changed(both)[BOX.slices].mean() > 0.9 and changed(both)[OTHER.slices].mean() > 0.9
    assert [Box(*each["box"]) for each in both.record["request"]["subjects"]] == [BOX, OTHER]


def test_the_checkpoint_is_afterwards_as_it_was() -> None:
    backbone, before = composer().backbone, weights(composer().backbone)

    def others() -> list[Photo]:
        phd = {"method": "phd", "harmonize_steps": 4, "harmonizer_samples": 1}
        chosen: list[dict[str, Any]] = [{"method": "paste"}, phd]
        return [
            np.asarray(composer().compose(data.chelsea(), cup(), box=BOX, **one).image)
            for one in chosen
        ]

    known = others()
    processors = {name: type(one) for name, one in backbone.unet.attn_processors.items()}
    composed()

    def stop(step: int, total: int, preview: Any) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        composed(callback=stop)
    assert_as_before(backbone, before)
    assert {name: type(one) for name, one in backbone.unet.attn_processors.items()} == processors
    assert all(np.array_equal(one, other) for one, other in zip(known, others(), strict=True))


@pytest.mark.parametrize(
    ("subject", "options", "sentence"),
    [
        ("cup", {"method": "dreamcom"}, "one of the subjects is a picture"),
        ("cup", {"method": "exemplar"}, "one of the subjects is a picture"),
        ("both", {"box": None, "method": "dreamcom"}, "one of the subjects is a picture"),
        ("twice", {"box": None, "together": True}, "leave out together"),
        (None, {"mask": np.full((20, 20), 255, np.uint8)}, "mask does not go with cup.safetensors"),
        (None, {"cut": "alpha"}, "cut does not go with"),
        (None, {"cut_box": (0, 0, 9, 9)}, "cut_box does not go with"),
        (None, {"flip": True}, "rotate and flip do not go with cup.safetensors where"),
        (None, {"rotate": 10}, "rotate and flip do not go with cup.safetensors where"),
        (None, {"view": 2}, "view, rotate and flip do not go with cup.safetensors where"),
        (None, {"view": 3, "method": "exemplar"}, "view is 3; expected 1 to 2, the photos of"),
        (None, {"view": 0}, "view is 0"),
        ("cup", {"view": 1}, "view goes with a concept"),
        (None, {"box": (0, 0, 50_000, 50_000)}, "too large"),
        (None, {"scheduler": "NoSuchScheduler"}, "scheduler 'NoSuchScheduler'"),
        (None, {"lora_scale": 3}, "lora_scale"),
        (None, {"self_attention": "e"}, "self_attention"),
        ("missing.safetensors", {}, "missing.safetensors"),
        ("plain.safetensors", {}, "holds no concept"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    subject: Any, options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    chosen = {"cup": cup(), "both": _two(learnt(), cup()), "twice": _two(learnt(), learnt())}
    if isinstance(subject, str):
        subject = chosen.get(subject, tmp_path / subject)
    with pytest.raises(InputError, match=sentence) as error:
        composed(subject, **options)
    assert "\n" not in str(error.value)


def test_a_file_is_no_background() -> None:
    with pytest.raises(InputError, match=r"cup\.safetensors"):
        composer().compose(learnt(), cup(), box=BOX)


def test_a_file_for_another_checkpoint_is_refused() -> None:
    with pytest.raises(InputError, match="has other weights"):
        composer("sd1").compose(data.chelsea(), learnt(), box=BOX, **QUICK)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.chelsea()).save("cat.png")
    shutil.copy(learnt(), "one.safetensors")
    shutil.copy(learnt(rank=3), "two.safetensors")
    return ["--model", str(built("sd1_inpaint")), "--device", "cpu", "--seed", "3", "-o", "out.png"]


def test_the_command_line_makes_the_same_and_makes_it_again(
    files: list[str], capsys: Capture
) -> None:
    steps = [f"--set={name}={value}" for name, value in QUICK.items()]
    one = ["compose", "cat.png", "one.safetensors", "--box", "40,150,130,120"]
    assert main([*one, *steps, *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"] == ["out.png"]
    assert np.array_equal(np.asarray(Image.open("out.png")), pixels(composed()))
    assert rerun("out.png", "again.png") == 0
    assert Path("again.png").read_bytes() == Path("out.png").read_bytes()
    two = ["compose", "cat.png", "one.safetensors", "two.safetensors", "--box", "40,150,130,120"]
    assert main([*two, "--box", "250,40,100,140", *steps, *files, "--quiet"]) == 0
    both = composed(_two(learnt(), learnt(rank=3)), box=None)
    assert np.array_equal(np.asarray(Image.open("out.png")), pixels(both))
    assert needs("out.png")[:4:2] == ["--input", "--input"]
    assert needs("out.png")[1::2][:2] == ["subject_1=one.safetensors", "subject_2=two.safetensors"]
    assert rerun("out.png", "both.png") == 0
    assert Path("both.png").read_bytes() == Path("out.png").read_bytes()
    # Another object under the same name is not what the record speaks of.
    shutil.copy("two.safetensors", "one.safetensors")
    assert rerun("out.png", "third.png") == 2
    assert "one.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["cat.png", "--view", "1"], "view goes with a concept"),
        (["one.safetensors", "--view", "x", "--method", "paste"], "view is 'x'"),
        (["one.safetensors", "--view", "9" * 5000, "--method", "paste"], "view is '999"),
        (["one.safetensors", "two.safetensors", "--together", "--box", "1,1,50,50"], "together"),
        (["one.safetensors", "--mask", "cat.png"], "mask does not go"),
        (["one.safetensors", "--flip"], "rotate and flip do not go"),
        (["cat.png", "--method", "dreamcom"], "is a picture"),
        (["none.safetensors"], "none.safetensors"),
    ],
)
def test_the_command_line_refuses_in_one_line(
    options: list[str], sentence: str, files: list[str], capsys: Capture
) -> None:
    assert main(["compose", "cat.png", *options, "--box", "40,150,130,120", *files]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and "\n" not in said and not Path("out.png").exists()
