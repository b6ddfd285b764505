"""FreeCompose's semantic composition: the subject takes the pose of a drawing, or of prompts."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from checkpoints import built
from inlay import Box, Composer, InputError, Result
from inlay.cli import main
from inlay.diffusion.branches import new_adapter
from inlay.diffusion.conditions import Conditions
from inlay.diffusion.distill import Side, beside
from inlay.diffusion.text import join
from inlay.methods.registry import get
from inlay.settings import validate_settings
from photos import Photo, cutout
from reruns import rerun

NAMES = ["sd1", "sd1_inpaint", "sd2_v", "sdxl", "sdxl_inpaint", "embedded"]
BOX = Box(40, 30, 60, 50)
PASTE: dict[str, Any] = {"method": "paste", "shadow": "none"}
# Few steps at timesteps that see the lines, and long ones: these adapters have learned nothing.
FEW: dict[str, Any] = {
    "method": "freecompose", "variant": "semantic", "num_iterations": 3, "seed": 3, "eta": 2.0,
    "t_min": 200, "t_max": 500, "guidance_scale": 7.5,
}  # fmt: skip


@cache
def composer(name: str) -> Composer:
    model = name if name == "embedded" else str(built(name))
    return Composer.from_pretrained(model, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of untrained adapters, one a model, by its name."""
    root = tmp_path_factory.mktemp("adapters")
    for name in NAMES:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = new_adapter(composer(name).backbone)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.5)
        network.save_pretrained(root / name)
    return root


@cache
def background() -> Photo:
    return np.ascontiguousarray(data.chelsea()[:140, 200:360])


@cache
def cup() -> Photo:
    return cutout(data.coffee()[::4, ::4], Box(30, 5, 60, 50))


@cache
def drawing() -> Photo:
    """White lines on black, of the background's size: an ellipse where the subject lies."""
    lines = np.zeros(background().shape[:2], np.uint8)
    cv2.ellipse(lines, (70, 55), (26, 14), 35, 0, 360, 255, 1)
    return lines


def repose(root: Path, name: str = "embedded", drawn: bool = True, **settings: Any) -> Result:
    values = {"box": BOX, "adapter": str(root / name), "shadow": "none", **FEW, **settings}
    if drawn:
        values.setdefault("control", drawing())
    return composer(name).compose(background(), cup(), **values)


def pixels(result: Result) -> Photo:
    return np.asarray(result.image)


@pytest.fixture(scope="module")
def reposed(adapters: Path) -> Photo:
    return pixels(repose(adapters))


@pytest.mark.parametrize("name", NAMES)
def test_every_format_is_reposed_inside_the_region_and_stays_as_it_was(
    name: str, adapters: Path
) -> None:
    unet = composer(name).backbone.unet
    weights = {key: value.clone() for key, value in unet.state_dict().items()}
    processors = dict(unet.attn_processors)
    result = repose(adapters, name)
    outside = np.asarray(result.mask) == 0
    assert np.array_equal(pixels(result)[outside], background()[outside])
    plain = composer(name).compose(background(), cup(), box=BOX, **PASTE)
    assert not np.array_equal(pixels(result), pixels(plain))
    notes = result.record["notes"]
    assert len(notes) == (name == "embedded")
    assert all("not things; for semantic use a larger one" in note for note in notes)
    assert set(result.record["inputs"]) == {"background", "subjects.0.picture", "control"}
    assert result.record["adapter"]["name"] == str(adapters / name)
    assert len(result.record["adapter"]["hash"]) == 64
    assert "adapter" not in plain.record
    assert all(torch.equal(value, weights[key]) for key, value in unet.state_dict().items())
    assert all(unet.attn_processors[key] is processors[key] for key in processors)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "embedded"])
def test_each_row_of_the_one_batch_has_its_own_lines(name: str, adapters: Path) -> None:
    """Rows are [source, target] twice; beyond the control's timesteps there are no lines."""
    fed: list[Any] = []
    handle = composer(name).backbone.unet.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(
            (len(args[0]), int(args[1]), list(kwargs["down_intrablock_additional_residuals"] or []))
        ),
        with_kwargs=True,
    )
    try:
        ends = {"control_t_min": 300, "control_t_max": 400, "pool_size": 12}
        repose(adapters, name, num_iterations=12, **ends)
    finally:
        handle.remove()
    assert [rows for rows, *_ in fed] == [4] * 12
    assert {bool(levels) for *_, levels in fed} == {True, False}
    for _, t, levels in fed:
        assert bool(levels) == (300 <= t < 400)
        for level in levels:
            assert torch.equal(level[:2], level[2:])
            assert not torch.equal(level[0], level[1])


@pytest.mark.parametrize(
    "settings",
    [
        {"adapter_conditioning_scale": 2.0},
        {"control_type": "sketch"},
        {"control_t_min": 480},
        {"control_t_max": 220},
        {"share": False},
        {"share_from_iteration": 1.0},
        {"share_t_min": 480},
        {"share_from_layer": 0},
        {"region": "mask"},
        {"grow": 0.15},
        {"surroundings": "target"},
        {"surroundings": "none"},
        {"prompt": "a t-shirt"},
        {"source_prompt": "a t-shirt"},
        {"background_weight": 2.0, "perceptual_every": 1},
        {"control": 255 - np.zeros((140, 160), np.uint8)},
    ],
    ids=lambda s: next(iter(s)),
)
def test_every_setting_has_an_effect(
    settings: dict[str, Any], adapters: Path, reposed: Photo
) -> None:
    assert not np.array_equal(reposed, pixels(repose(adapters, **settings)))


def test_the_difference_of_noise_is_the_only_pull(adapters: Path, reposed: Photo) -> None:
    held = pixels(repose(adapters, foreground_weight=5.0, perceptual_every=1))
    assert np.array_equal(reposed, held)
    again = pixels(repose(adapters))
    assert np.array_equal(reposed, again)
    nothing = repose(adapters, num_iterations=0)
    plain = composer("embedded").compose(background(), cup(), box=BOX, **PASTE)
    assert np.array_equal(pixels(nothing), pixels(plain))


def test_sharing_begins_after_its_share_of_the_steps(adapters: Path) -> None:
    def steps(**settings: Any) -> list[Photo]:
        seen: list[Photo] = []
        repose(
            adapters, num_iterations=4, previews=True, eta=4.0,
            callback=lambda step, total, preview: seen.append(np.asarray(preview)), **settings,
        )  # fmt: skip
        return seen

    never, late, first = (
        steps(share=False), steps(share_from_iteration=0.5), steps(share_from_iteration=0.0)
    )  # fmt: skip
    assert [np.array_equal(a, b) for a, b in zip(never, late, strict=True)] == [
        True, True, False, False,
    ]  # fmt: skip
    # At the first step of all both branches are the same picture: all but the lines is shared.
    assert not np.array_equal(first[1], never[1])


def test_sharing_at_no_timestep_is_none(adapters: Path, reposed: Photo) -> None:
    never = pixels(repose(adapters, share=False))
    assert np.array_equal(never, pixels(repose(adapters, share_t_min=500)))
    assert np.array_equal(reposed, pixels(repose(adapters, share_t_min=200)))


def test_the_region_is_the_subjects_box_grown(adapters: Path) -> None:
    """The mask of a wide drawing would not fit into that of the subject."""
    box = repose(adapters, grow=0.0, feather=0.0)
    allowed = np.zeros(background().shape[:2], bool)
    allowed[BOX.grown(2).slices] = True
    assert not (np.asarray(box.mask) > 0)[~allowed].any()
    corner = np.asarray(box.mask)[BOX.slices][4:8, 8:12]
    assert (corner == 255).all()
    mask = repose(adapters, region="mask", grow=0.0, feather=0.0)
    assert not np.asarray(mask.mask)[BOX.slices][:2, :2].any()
    assert (np.asarray(mask.mask) > 0).sum() < (np.asarray(box.mask) > 0).sum()


def test_without_a_drawing_the_prompts_drive(adapters: Path, reposed: Photo) -> None:
    by_words = repose(adapters, drawn=False, prompt="a red cup")
    assert "control" not in by_words.record["inputs"]
    assert not np.array_equal(pixels(by_words), reposed)
    # Said before anything is loaded: there is no such model.
    nowhere = Composer.from_pretrained("no such model")
    for prompts in ({}, {"prompt": "a cup", "source_prompt": "a cup"}):
        with pytest.raises(InputError, match="nothing to change: give a control picture"):
            nowhere.compose(background(), cup(), box=BOX, **FEW, **prompts)


def test_what_the_variant_does_not_serve_is_named(adapters: Path) -> None:
    mask = np.zeros(background().shape[:2], np.uint8)
    mask[BOX.slices] = 255
    nowhere = Composer.from_pretrained("no such model")
    with pytest.raises(InputError, match="semantic serves compose, not harmonize"):
        nowhere.harmonize(background(), mask=mask, method="freecompose", variant="semantic")
    with pytest.raises(InputError, match="semantic serves compose, not remove"):
        nowhere.remove(background(), mask=mask, method="freecompose", variant="semantic")


def test_what_is_odd_about_a_drawing_is_said(adapters: Path) -> None:
    with pytest.raises(InputError, match=r"control is 80 x 140 pixels; expected 160 x 140"):
        repose(adapters, control=drawing()[:, ::2])
    with pytest.raises(InputError, match="control is empty; expected white lines on black"):
        repose(adapters, control=np.zeros_like(drawing()))
    few = {"num_iterations": 1}
    inked = repose(adapters, control=255 - drawing(), **few)
    assert "mostly white" in " ".join(inked.record["notes"])
    corner = np.zeros_like(drawing())
    corner[136:139, 2:150] = 255
    away = repose(adapters, control=corner, context=0.2, **few)
    assert "no lines round the subject" in " ".join(away.record["notes"])
    passed = composer("embedded").compose(
        background(), cup(), box=BOX, method="paste", control=drawing()
    )
    assert passed.record["notes"] == ["paste: the control picture is not used"]
    assert set(passed.record["inputs"]) == {"background", "subjects.0.picture", "control"}


def test_adapters_and_layers_that_a_model_does_not_have_are_refused(adapters: Path) -> None:
    with pytest.raises(InputError, match="needs the setting adapter for the model"):
        repose(adapters, "sd1", adapter="")
    with pytest.raises(InputError, match="does not fit the model"):
        repose(adapters, "sd1", adapter=str(adapters / "sdxl"))
    with pytest.raises(InputError, match=r"has 10 layers of self-attention; give 0 to 9, or dec"):
        repose(adapters, "sd1", share_from_layer=10)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"control_t_min": 600}, "control_t_min"),
        ({"control_type": "pose"}, "control_type"),
        ({"share_from_layer": "encoder"}, "share_from_layer"),
        ({"share_from_layer": -1}, "share_from_layer"),
        ({"share_from_iteration": 1.5}, "share_from_iteration"),
        ({"adapter_conditioning_scale": -0.1}, "adapter_conditioning_scale"),
        ({"region": "all"}, "region"),
    ],
)
def test_bad_settings_are_named(values: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        validate_settings(get("freecompose").settings, values)


def test_redrawing_is_ddim_with_the_source_beside_it(adapters: Path) -> None:
    """The loop written out: both rows at one level, the source under one noise throughout."""
    backbone = composer("embedded").backbone
    generator = torch.Generator().manual_seed(0)
    z_source, z_target, seen = (
        torch.randn(1, backbone.latent_channels, 8, 8, generator=generator) for _ in range(3)
    )
    hole = torch.ones(1, 1, 8, 8)
    hole[..., :3] = 0
    size = (8 * backbone.factor,) * 2
    texts = [backbone.embed([text], size) for text in ("a shirt", "a coat")]
    branches = [
        Side(z, Conditions(text, mask=hole, masked_latent=seen))
        for z, text in zip((z_source, z_target), texts, strict=True)
    ]
    same = torch.Generator().manual_seed(1)
    draws = [torch.randn(z_source.shape, generator=same) for _ in range(2)]
    with torch.no_grad():
        draw = torch.Generator().manual_seed(1)
        got = backbone.solver("DDIMScheduler", 10)(
            beside(backbone.denoiser, *branches, torch.randn(z_source.shape, generator=draw)),
            z_target, strength=0.5, generator=draw,
        )  # fmt: skip
        levels = backbone.levels.run(10, 0.5)
        z = levels[0].add_noise(z_target, draws[1])
        denoiser = backbone.denoiser(Conditions(join(*texts), mask=hole, masked_latent=seen))
        for level, after in itertools.pairwise(levels):
            noisy = level.add_noise(z_source, draws[0])
            eps, x0 = denoiser(torch.cat([noisy, z]), level)
            z = after.add_noise(x0[1:], eps[1:])
    assert len(levels) == 6
    assert (got - z).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["sd1", "sd2_v", "sdxl_inpaint", "embedded"])
def test_a_redrawn_subject_stays_in_its_region_and_shares(name: str, adapters: Path) -> None:
    drawn = {"num_iterations": 0, "redraw": 0.5, "redraw_steps": 4, "guidance_scale": 3}
    told: list[tuple[int, int]] = []
    result = repose(
        adapters, name, callback=lambda step, total, preview: told.append((step, total)), **drawn
    )
    outside = np.asarray(result.mask) == 0
    assert np.array_equal(pixels(result)[outside], background()[outside])
    assert told == [(1, 2), (2, 2)]
    assert not np.array_equal(pixels(result), pixels(repose(adapters, name, share=False, **drawn)))
    assert np.array_equal(pixels(result), pixels(repose(adapters, name, **drawn)))


def test_a_preset_is_what_was_released(adapters: Path) -> None:
    values = validate_settings(
        get("freecompose").settings, get("freecompose").presets["semantic-released"]
    ).model_dump()
    # Half of the 0.49 that the other tasks' step amounts to in the release.
    assert values["eta"] == 0.49 / 2
    assert (values["num_iterations"], round(300 * values["late_share"])) == (300, 50)
    assert (values["t_min"], values["late_t_max"]) == (50, 150)
    assert (values["control_t_min"], values["control_t_max"]) == (100, 600)
    made = composer("embedded").compose(
        background(), cup(), box=BOX, control=drawing(), method="freecompose",
        preset="semantic-released", adapter=str(adapters / "embedded"), num_iterations=2,
    )  # fmt: skip
    assert made.record["request"]["method"]["preset"] == "semantic-released"
    assert made.record["request"]["method"]["variant"] == "semantic"


def test_the_command_records_the_drawing_and_makes_it_again(
    adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, picture in (("cup", cup()), ("back", background()), ("lines", drawing())):
        Image.fromarray(picture).save(f"{name}.png")
    Image.fromarray(drawing()[:70]).save("half.png")
    sets = {key: value for key, value in FEW.items() if key not in ("method", "seed")}
    sets["adapter"] = str(adapters / "sd1")
    command = ["compose", "back.png", "cup.png", "--box", "40,30,60,50", "--method", "freecompose"]
    command += [x for key, value in sets.items() for x in ("--set", f"{key}={value}")]
    command += ["--model", str(built("sd1")), "--device", "cpu"]
    assert main([*command, "--control", "lines.png", "-o", "one.png", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["inputs"]["control"]["path"] == "lines.png"
    assert rerun("one.png", "two.png") == 0
    assert np.array_equal(np.asarray(Image.open("one.png")), np.asarray(Image.open("two.png")))
    capsys.readouterr()
    for wrong in ("half.png", "nothing.png", str(adapters)):
        assert main([*command, "--control", wrong, "-o", "three.png"]) == 2
    assert main([*command, "--control", "lines.png", "-o", "lines.png"]) == 2
    Image.fromarray(np.roll(drawing(), 3)).save("lines.png")
    assert main(["rerun", "one.png", "-o", "three.png"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 5 and "has changed since" in errors[-1]
    assert not Path("three.png").exists()


def test_a_rerun_knows_another_adapter(adapters: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name, picture in (("cup", cup()), ("back", background()), ("lines", drawing())):
        Image.fromarray(picture).save(f"{name}.png")
    network = new_adapter(composer("sd1").backbone)
    network.save_pretrained("adapter")
    made = composer("sd1").compose(
        "back.png", "cup.png", box=BOX, control="lines.png", adapter="adapter",
        **{**FEW, "num_iterations": 1},
    )  # fmt: skip
    made.save("one.png")
    with torch.no_grad():
        next(network.parameters()).add_(1)
    network.save_pretrained("adapter")
    assert rerun("one.png", "two.png") == 2
    assert not Path("two.png").exists()
