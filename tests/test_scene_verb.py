"""inlay scene: a picture made round subjects, from a prompt."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from checkpoints import built
from inlay import Box, Composer, InputError, Subject
from inlay.cli import main
from inlay.diffusion.sample import guide
from inlay.diffusion.tiles import resolutions
from inlay.pictures.read import read_record
from inlay.request import SceneRequest
from photos import Photo, cup, cutout

Capture = pytest.CaptureFixture[str]
# As few steps as still run every stage.
FEW: dict[str, Any] = {
    "num_inference_steps": 3, "refine_steps": 4, "refine_strength": 0.5, "harmonize": False,
}  # fmt: skip
PROMPT = "a photo of a landscape"


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer("embedded", device="cpu")


def solid(colours: Photo) -> Photo:
    """RGBA: opaque colours (h, w, 3) with one clear pixel round them, which is cropped away."""
    rgba = np.dstack([colours, np.full(colours.shape[:2], 255, np.uint8)])
    return np.pad(rgba, ((1, 1), (1, 1), (0, 0)))


def block(colour: tuple[int, int, int], side: int = 40) -> Photo:
    return solid(np.full((side, side, 3), colour, np.uint8))


def test_resolutions_grow_by_two_at_most_and_end_at_the_size() -> None:
    for size in ((256, 256), (150, 97), (64, 64), (512, 768), (1024, 128), (130, 120), (900, 64)):
        plan = resolutions(size, 128)
        growth = [b[i] / a[i] for a, b in pairwise(plan) for i in (0, 1)]
        assert all(g < 2.05 for g in growth)
        if max(size) > 141:
            assert plan[-1] == size
    assert resolutions((256, 256), 128)[0] == (128, 128)
    # A panorama begins narrow, not flat; a giant is enlarged at the end.
    assert resolutions((128, 1024), 128)[0] == (64, 512)
    assert resolutions((4096, 8192), 128)[-1] == (512, 1024)
    assert max(resolutions((64, 8192), 128)[0]) == 1024


def test_guidance_keeps_most_of_the_conditional_spread() -> None:
    torch.manual_seed(0)
    none, words = torch.randn(2, 3, 4, 5, 5).unbind()
    result = guide(none, words, 6.0, 0.7)
    for row in range(3):
        guided = none[row] + 6 * (words[row] - none[row])
        same = guided * words[row].std() / guided.std()
        assert torch.allclose(result[row], 0.7 * same + 0.3 * guided, atol=1e-5)
    assert torch.allclose(guide(none, words, 1.0, 0.7), words, atol=1e-5)


def test_opaque_pixels_are_the_subjects_own_and_the_rest_is_made(composer: Composer) -> None:
    # As large as its box, so that it is not resampled.
    subject = solid(data.chelsea()[60:140, 120:200])
    result = composer.scene(subject, prompt=PROMPT, size=(190, 141), box=(61, 33, 80, 80), **FEW)
    scene = np.asarray(result.image)
    assert scene.shape == (141, 190, 3)
    assert np.array_equal(scene[33:113, 61:141], data.chelsea()[60:140, 120:200])
    made = np.ones(scene.shape[:2], bool)
    made[33:113, 61:141] = False
    assert (scene[made] == 128).all(-1).mean() < 0.01
    for y in range(0, 141 - 15, 16):
        for x in range(0, 190 - 15, 16):
            if made[y : y + 16, x : x + 16].all():
                assert scene[y : y + 16, x : x + 16].std() > 0.5
    assert np.asarray(result.mask).all()
    softened = composer.scene(
        subject, prompt=PROMPT, size=(190, 141), box=(61, 33, 80, 80),
        **{**FEW, "harmonize": True, "harmonizer": "none", "harmonize_steps": 10},
    )  # fmt: skip
    other = np.asarray(softened.image)
    assert np.array_equal(other[made], scene[made])
    assert (other[~made] != scene[~made]).any()


def test_without_a_place_it_stands_in_the_lower_middle(composer: Composer) -> None:
    square = block((250, 0, 250), 50)
    result = composer.scene(square, prompt=PROMPT, size=(200, 120), **FEW)
    rows, columns = np.nonzero((np.asarray(result.image) == (250, 0, 250)).all(-1))
    assert (rows.min(), rows.max() + 1) == (48, 108)
    assert (columns.min(), columns.max() + 1) == (70, 130)
    tall = composer.scene(square, prompt=PROMPT, size=(100, 100), scale=1.9, **FEW)
    rows, _ = np.nonzero((np.asarray(tall.image) == (250, 0, 250)).all(-1))
    assert rows.min() <= 3


def test_several_subjects_lie_in_their_boxes_later_ones_on_top(composer: Composer) -> None:
    red, green = (255, 10, 10), (10, 255, 10)
    result = composer.scene(
        [Subject(block(red), box=(10, 20, 40, 40)), Subject(block(green), box=(30, 40, 40, 40))],
        prompt=PROMPT, size=(128, 96), **FEW,
    )  # fmt: skip
    scene = np.asarray(result.image)
    assert (scene[20:40, 10:50] == red).all() and (scene[40:80, 30:70] == green).all()
    assert [each["box"][0] for each in result.record["request"]["subjects"]] == [10, 30]
    drawn = composer.scene(
        [Subject(block(red), random=True), Subject(block(green), random=True)], prompt=PROMPT,
        size=(128, 96), num_images=2, **FEW, seed=4,
    )  # fmt: skip
    places = [(np.asarray(image) == red).all(-1) for image in drawn.images]
    assert all(place.any() for place in places) and (places[0] != places[1]).any()


def test_a_plain_checkpoint_makes_scenes_too() -> None:
    subject = solid(data.chelsea()[60:100, 120:160])
    plain = Composer(str(built("sd1")), device="cpu")
    scene = np.asarray(
        plain.scene(subject, prompt="a cup", size=(100, 70), box=(20, 20, 40, 40), **FEW).image
    )
    assert np.array_equal(scene[20:60, 20:60], data.chelsea()[60:100, 120:160])
    assert (scene[:20] == 128).all(-1).mean() < 0.1


def test_the_command_its_record_and_running_it_again(tmp_path: Path, capsys: Capture) -> None:
    Image.fromarray(cup()).save(tmp_path / "cup.png")
    Image.fromarray(cutout(data.chelsea(), Box(60, 20, 300, 260))).save(tmp_path / "cat.png")
    common = [
        "scene", str(tmp_path / "cup.png"), str(tmp_path / "cat.png"), "--prompt", PROMPT,
        "--size", "150x117", "--box=5,40,60,60", "--box=80,30,60,70", "--flip", "--seed", "3",
        "--num-inference-steps", "2", "--set", "refine_steps=4", "--set", "refine_strength=0.5",
        "--set", "harmonizer=none", "--set", "harmonize_steps=5",
    ]  # fmt: skip
    out, again, same = (str(tmp_path / f"{name}.png") for name in ("out", "again", "same"))
    assert main([*common, "--json", "--keep-phases", "-o", out]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["verb"], record["method"]) == ("scene", "phd")
    assert main(["rerun", out, "-o", again, "--quiet"]) == 0
    assert main([*common, "-o", same, "--quiet"]) == 0
    written = Path(out).read_bytes()
    assert Path(again).read_bytes() == written and Path(same).read_bytes() == written
    inside = json.loads(read_record(out) or "")
    assert (inside["request"]["size"], inside["request"]["method"]["prompt"]) == (
        [150, 117],
        PROMPT,
    )
    stages = [tmp_path / f"out-{n}-{name}.png" for n, name in
              enumerate(("coarse", "refine", "harmonize"), 1)]  # fmt: skip
    coarse, refined, last = (np.asarray(Image.open(path)) for path in stages)
    assert (coarse != refined).any() and (refined != last).any()
    assert np.array_equal(last, np.asarray(Image.open(out)))
    # A stage's record is that of a request with its result.
    assert main(["rerun", str(stages[1]), "-o", again, "--quiet"]) == 0
    assert np.array_equal(np.asarray(Image.open(again)), refined)


def test_a_sweep_makes_a_picture_for_each_value(tmp_path: Path, capsys: Capture) -> None:
    Image.fromarray(cup()).save(tmp_path / "cup.png")
    status = main(
        ["scene", str(tmp_path / "cup.png"), "--size", "64x64", "--num-inference-steps", "1",
         "--prompt", "a hat", "--set", "guidance_scale=1,4", "--set", "harmonize=false", "--quiet",
         "-o", str(tmp_path / "out.png")]
    )  # fmt: skip
    assert (status, capsys.readouterr().err) == (0, "")
    assert len(list(tmp_path.glob("out*.png"))) == 3


@pytest.mark.parametrize(
    "size",
    ["", "64", "64x", "x64", "63x64", "64x8193", "1e3x100", "-64x64", "64x64x3", "64,64", "0x0",
     "9" * 12 + "x64", "nanx64", "64.5x64"],
)  # fmt: skip
def test_a_wrong_size_is_refused_in_one_sentence(
    size: str, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out.png"
    arguments = ["scene", "cup.png", "--prompt", "x", f"--size={size}", "-o", str(out)]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "size is " in said and "expected" in said and said.count("\n") == 1
    assert not out.exists()


def test_what_is_missing_is_named(tmp_path: Path, capsys: Capture) -> None:
    Image.fromarray(cup()).save(tmp_path / "cup.png")
    base = ["scene", str(tmp_path / "cup.png"), "-o", str(tmp_path / "out.png")]
    for more, word in (
        (["--size", "100x100"], "prompt"),
        (["--size", "100x100", "--prompt", " "], "prompt"),
        (["--prompt", "x"], "--size"),
        (["--prompt", "x", "--size", "100x100", "--method", "cdc"], "phd"),
        (["--prompt", "x", "--size", "100x100", "--max-pixels", "9999"], "scene is"),
        (["--prompt", "x", "--size", "100x100", "--box=300,300,20,20"], "outside"),
        (["--prompt", "x", "--size", "100x100", "--set", "scheduler=NoScheduler"], "scheduler"),
    ):
        assert main([*base, *more]) == 2, more
        assert word in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()
    with pytest.raises(InputError, match="prompt"):
        Composer().scene(cup(), size=(100, 100))
    for size in (100, (100,), (100, "100"), (100.5, 100), (True, 100), None):
        with pytest.raises(InputError, match="size is"):
            SceneRequest(subjects="cup.png", size=size, method={"prompt": "x"})
