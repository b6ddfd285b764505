"""DreamEdit: rounds of inpainting on small random checkpoints, and by hand."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from checkpoints import built
from concepts import learnt
from inlay import Box, Composer, InputError, Result
from inlay.cli import main
from inlay.methods.base import Context
from inlay.methods.concept.details import Reference
from inlay.methods.concept.fill import filler
from inlay.methods.dreamedit import DreamEditSettings, paste_photo
from inlay.pictures.arrays import resize
from inlay.pictures.read import read_picture
from inlay.scene.stitch import Scene, Window, place
from inlay.scene.subject import Cutout, Subject
from inlay.settings import validate_settings
from photos import Photo
from reruns import rerun

Capture = pytest.CaptureFixture[str]
BOX = Box(40, 150, 130, 120)
QUICK: dict[str, Any] = {"num_inference_steps": 5, "iterations": 2, "context": 0.5}


@cache
def composer(model: str) -> Composer:
    return Composer.from_pretrained(str(built(model)), device="cpu", dtype="float32")


def composed(model: str = "sd1", method: str = "dreamedit", **settings: Any) -> Result:
    settings = {"seed": 3, "box": BOX, **settings}
    return composer(model).compose(data.chelsea(), learnt(model), method=method, **settings)


def pixels(result: Result) -> Photo:
    return np.asarray(result.image)


@cache
def window() -> Window:
    picture = read_picture(data.chelsea())
    grey, solid = np.full((120, 130, 3), 0.5, np.float32), np.ones((120, 130), np.float32)
    layer = place(Cutout(grey, solid, "", "", learnt("sd1")), picture.size, Subject("", box=BOX))
    return Window.of(picture, Scene(layer.region, layer), 0.5, 128)


def test_the_rounds_calm_down_in_equal_steps() -> None:
    settings = DreamEditSettings()
    assert settings.strengths() == pytest.approx([0.6, 0.525, 0.45, 0.375, 0.3])
    assert DreamEditSettings(iterations=1).strengths() == [0.6]
    assert DreamEditSettings(iterations=0).strengths() == []
    stages = settings.stages("compose")
    assert list(stages) == ["start", "round1", "round2", "round3", "round4", "round5"]
    for number, stage in enumerate(stages.values()):
        assert isinstance(stage, DreamEditSettings)
        assert stage.strengths() == pytest.approx(settings.strengths()[:number])
    with pytest.raises(InputError, match="strength_end"):
        validate_settings(DreamEditSettings, {"strength_end": 0.7})


def test_the_photo_of_the_nearest_aspect_is_pasted() -> None:
    flat = [
        Reference(str(shape), np.full((*shape, 3), value, np.float32), np.ones(shape, np.float32))
        for shape, value in (((30, 60), 0.2), ((40, 44), 0.4), ((60, 30), 0.6))
    ]
    # 44 x 40 in 130 x 120: as wide as the box and 118 high, so one row is left above and below.
    inner = BOX.shifted(-window().box.x, -window().box.y)
    expected = window().clean.copy()
    expected[inner.y + 1 : inner.y + 119, inner.x : inner.right] = 0.4
    assert np.allclose(paste_photo(window(), flat), expected, atol=1e-6)
    flat[1].alpha[:, :22] = 0
    half = paste_photo(window(), flat)
    left = inner.slices[0], slice(inner.x, inner.x + 60)
    assert np.allclose(half[left], window().clean[left], atol=1e-6)
    assert np.allclose(half[inner.y + 5, inner.right - 5], 0.4, atol=1e-6)


@pytest.mark.parametrize(("model", "region"), [("sd1", "box"), ("sd1_inpaint", "object")])
def test_only_the_box_changes_and_a_seed_gives_the_same(model: str, region: str) -> None:
    options = {"region": region, "feather": 0.04, **QUICK}
    result = composed(model, **options)
    changed = (pixels(result) != data.chelsea()).any(-1)
    assert changed[BOX.slices].any()
    beyond = changed.copy()
    beyond[BOX.grown(round(0.04 * 260) + 1).slices] = False
    assert not beyond.any() and (np.asarray(result.mask)[changed] == 255).all()
    assert np.array_equal(pixels(composed(model, **options)), pixels(result))
    assert (pixels(composed(model, seed=4, **options)) != pixels(result)).any()


def test_without_rounds_it_is_what_it_begins_with() -> None:
    begun = composed(start="inpaint", iterations=0, num_inference_steps=2)
    assert np.array_equal(pixels(begun), pixels(composed(method="dreamcom", num_inference_steps=2)))
    # The photo itself, as the checkpoint's autoencoder has it.
    pasted = pixels(composed(iterations=0, feather=0.0))
    backbone = composer("sd1").backbone
    with filler(window(), backbone, DreamEditSettings(), Context()) as fill:
        image = resize(paste_photo(window(), fill.photos), (128, 128))
        small = torch.from_numpy(image).permute(2, 0, 1)[None].clamp(0, 1) * 2 - 1
        seen = backbone.decode(backbone.encode(small))[0].permute(1, 2, 0).numpy() / 2 + 0.5
    inner = BOX.shifted(-window().box.x, -window().box.y).slices
    expected = 255 * np.clip(resize(np.ascontiguousarray(seen), (260, 260)), 0, 1)[inner]
    assert np.abs(pasted[BOX.slices] - expected).max() < 0.6


@pytest.mark.parametrize("model", ["sd1", "sd1_inpaint"])
def test_a_round_paints_what_it_found_and_leaves_the_background(model: str) -> None:
    """With a box that is all object, by hand: two rounds of filling the box from the last one."""
    settings = DreamEditSettings(num_inference_steps=5, iterations=2, grow=0.5, feather=0.0)
    view, context = window(), Context(3)
    view = Window(view.box, view.clean, view.pasted, view.alpha, view.was, None, learnt(model))
    with filler(view, composer(model).backbone, settings, context) as work:
        clean = view.tensor("clean", work.size)
        background = work.backbone.encode(clean)
        hole = work.latent_mask(view.mask(work.size), cover=True)
        image = resize(paste_photo(view, work.photos), work.size)
        z = work.backbone.encode(torch.from_numpy(image).permute(2, 0, 1)[None].clamp(0, 1) * 2 - 1)
        # 3 of 5 steps, then 1.
        for strength in (0.6, 0.3):
            source = z * hole + background * (1 - hole)
            z = work.fill(source, hole, strength)
            z = z * hole + background * (1 - hole)
        made = work.backbone.decode(z)[0].permute(1, 2, 0).numpy() / 2 + 0.5
    inner = BOX.shifted(-view.box.x, -view.box.y).slices
    expected = 255 * np.clip(resize(np.ascontiguousarray(made), (260, 260)), 0, 1)[inner]
    result = composed(model, **QUICK, grow=0.5, feather=0.0)
    assert np.abs(pixels(result)[BOX.slices] - expected).max() < 0.6


def test_the_rounds_are_kept_and_each_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.chelsea()).save("cat.png")
    arguments = ["compose", "cat.png", str(learnt("sd1")), "--box", "40,150,130,120"]
    arguments += ["--method", "dreamedit", "--model", str(built("sd1")), "--device", "cpu"]
    for name, value in {**QUICK, "region": "object"}.items():
        arguments += ["--set", f"{name}={value}"]
    assert main([*arguments, "--seed", "3", "--keep-phases", "-o", "out.png", "--json"]) == 0
    kept = json.loads(capsys.readouterr().out)["kept"]
    assert kept == ["out-1-start.png", "out-2-round1.png", "out-3-round2.png"]
    stages = [np.asarray(Image.open(name)) for name in kept]
    assert np.array_equal(stages[2], np.asarray(Image.open("out.png")))
    assert (stages[0] != stages[1]).any() and (stages[1] != stages[2]).any()
    assert rerun(kept[1], "again.png") == 0
    assert np.array_equal(np.asarray(Image.open("again.png")), stages[1])
    assert rerun("out.png", "again.png") == 0
    assert Path("again.png").read_bytes() == Path("out.png").read_bytes()


def test_a_file_without_photos_begins_with_a_sample() -> None:
    path, backgrounds = learnt("sd1", keep_photos=False), data.chelsea()
    with pytest.raises(InputError, match=r"none of its photos, which start=paste .*start=inpaint"):
        composer("sd1").compose(backgrounds, path, box=BOX, method="dreamedit")
    options = {"method": "dreamedit", "start": "inpaint", **QUICK}
    result = composer("sd1").compose(backgrounds, path, box=BOX, **options)
    assert (np.asarray(result.image) != backgrounds).any()
