"""PhD by stages, on the embedded checkpoint and real photographs."""

from __future__ import annotations

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

from inlay import Box, Composer, InputError, Result, Subject
from inlay.cli import main
from inlay.diffusion.branches import few_levels, new_harmonizer
from inlay.methods.base import Context
from inlay.methods.phd import PhdSettings
from inlay.methods.phd.stages import harmonize, inpaint_ring, shrinkage, soften_paste
from inlay.methods.workspace import Workspace
from inlay.pictures.read import read_record
from inlay.scene.stitch import Window
from inlay.settings import validate_settings
from photos import Photo, cup
from reruns import rerun

Capture = pytest.CaptureFixture[str]
BOX = Box(40, 150, 130, 120)
# Few steps: what is asserted holds for any number.
QUICK: dict[str, Any] = {
    "inpaint": True, "num_inference_steps": 6, "harmonize_steps": 8, "harmonizer_samples": 2,
}  # fmt: skip
PASTE: dict[str, Any] = {"method": "paste", "shadow": "none"}
OFF: dict[str, Any] = {"inpaint": False, "harmonize": False, "paste_blur": 0.0}


@cache
def composer() -> Composer:
    return Composer.from_pretrained("embedded", device="cpu", dtype="float32")


def composed(**settings: Any) -> Result:
    settings = {"method": "phd", "seed": 3, "shadow": "none", **QUICK, **settings}
    return composer().compose(data.chelsea(), cup(), box=BOX, **settings)


def pixels(result: Result) -> Photo:
    return np.asarray(result.image)


@cache
def paste() -> Photo:
    return pixels(composer().compose(data.chelsea(), cup(), box=BOX, **PASTE))


@cache
def alpha() -> np.ndarray:
    """The subject's alpha (h, w) in the background, in [0, 1]."""
    white = np.dstack([np.full_like(cup()[..., :3], 255), cup()[..., 3]])
    black = np.zeros_like(data.chelsea())
    made = composer().compose(black, white, box=BOX, **PASTE)
    return pixels(made)[..., 0].astype(np.float64) / 255


def away() -> np.ndarray:
    """Distance (h, w) from the subject, in pixels."""
    return cv2.distanceTransform((alpha() <= 0.5).astype(np.uint8), cv2.DIST_L2, 5)


@cache
def harmonizer(folder: Path, std: float) -> str:
    """A harmonizer's folder: as it is made, or with noise where its weights begin at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = new_harmonizer(composer().backbone)
        for parameter in network.parameters():
            if not parameter.detach().any():
                torch.nn.init.normal_(parameter, std=std)
    path = folder / f"harmonizer-{std}"
    network.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("phd")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"paste_blur": 0.2}, "paste_blur"),
        ({"amount": 1.6}, "amount"),
        ({"restraint": -1}, "restraint"),
        ({"harmonizer_scale": 2.1}, "harmonizer_scale"),
        ({"harmonizer_samples": 0}, "harmonizer_samples"),
        ({"harmonizer": ""}, "harmonizer"),
        ({"region": "round"}, "region"),
        ({"shadow_reach": 0.6}, "shadow_reach"),
        ({"inpaint": True, "strength": 0.4, "harmonize_strength": 0.4}, "harmonize_strength"),
    ],
)
def test_bounds(values: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        validate_settings(PhdSettings, values).check_use("compose", False)


def test_a_gentler_inpainting_than_harmonizing_is_fine_where_one_of_them_is_off() -> None:
    for off in ({"inpaint": False}, {"harmonize": False}, {"harmonize_strength": 0.0}):
        near = {"inpaint": True, "strength": 0.2, "harmonize_strength": 0.5}
        validate_settings(PhdSettings, {**near, **off}).check_use("compose", False)
    # A picture that is harmonized has no ring.
    validate_settings(PhdSettings, near).check_use("harmonize", False)


def test_without_its_stages_it_is_paste() -> None:
    assert np.array_equal(pixels(composed(**OFF)), paste())
    # Nor does a stage change anything whose share of the change is nothing.
    still = {"paste_blur": 0.0, "strength": 0.0, "amount": 0.0}
    assert np.array_equal(pixels(composed(**still)), paste())


def test_softening_blurs_the_alpha() -> None:
    got = pixels(composed(inpaint=False, harmonize=False, paste_blur=0.01))
    window = composed(**OFF).window
    sigma = 0.01 * max(window.width, window.height)
    soft = cv2.GaussianBlur(alpha(), (0, 0), sigma)
    near = np.abs(soft - alpha()) > 0.002
    reach = cv2.dilate(near.astype(np.uint8), np.ones((5, 5))) > 0
    assert (got == paste())[~reach].all()
    # Where the subject was solid, its own colour is known: the formula to the last level.
    inside = near & (alpha() == 1)
    background = data.chelsea().astype(float)
    wanted = background + soft[..., None] * (paste() - background)
    assert inside.sum() > 100 and np.abs(got - wanted)[inside].max() < 1.1
    # Outside it spills over: there is more of the subject than the paste has.
    assert (got != paste())[near & (alpha() == 0)].any()


@pytest.mark.parametrize("region", ["dilated", "box"])
@pytest.mark.parametrize("decoding", ["residual", "plain"])
def test_the_inpainting_changes_the_ring_alone(region: str, decoding: str) -> None:
    result = composed(
        harmonize=False, paste_blur=0.0, grow=0.06, region=region, decoding=decoding, strength=1.0
    )
    changed = (pixels(result) != paste()).any(-1)
    window = result.window
    radius = round(0.06 * max(window.width, window.height))
    if region == "dilated":
        allowed = away() <= radius
    else:
        solid = (alpha() > 0.5).astype(np.uint8)
        x, y, width, height = cv2.boundingRect(solid)
        box = np.zeros_like(solid)
        box[y : y + height, x : x + width] = 1
        allowed = cv2.distanceTransform(1 - box, cv2.DIST_L2, 5) <= radius
    assert not changed[~allowed].any()
    # Where alpha rounds to 1, what lies under it shows by less than a level.
    assert np.abs(pixels(result).astype(int) - paste())[alpha() == 1].max() <= 1
    # It is a ring and not a stretch of one.
    ring = allowed & (alpha() == 0)
    assert changed[ring].mean() > 0.5
    # Nothing that changed lies outside of what the composite says may have changed.
    assert (np.asarray(result.mask)[changed] == 255).all()


@torch.inference_mode()
def test_the_harmonizing_sees_the_ring_as_it_was_painted() -> None:
    backbone = composer().backbone
    settings = PhdSettings(**QUICK, strength=1.0, grow=0.2, decoding="plain")
    around = Box(30, 130, 160, 160)
    before, pasted = (
        (image[around.slices] / 255).astype(np.float32) for image in (data.chelsea(), paste())
    )
    cover = alpha()[around.slices].astype(np.float32)
    window = Window(around, before, pasted, cover, before)
    work = Workspace(window, backbone, settings, Context(3))
    # Kept with the window, as when a stage has looked at the picture before.
    work.source()
    canvas = inpaint_ring(work, soften_paste(window, 0.0), settings)
    ring = np.abs(canvas.window.pasted - pasted).max(-1)[cover == 0]
    assert (ring > 0.05).mean() > 0.1
    made = [
        harmonize(on, canvas, settings, few_levels(backbone, 2, 0.3)).window.pasted
        for on in (
            Workspace(window, backbone, settings, Context(7)),
            Workspace(canvas.window, backbone, settings, Context(7)),
        )
    ]
    assert np.array_equal(made[0], made[1])


def test_the_harmonizing_changes_the_subject_alone() -> None:
    got = pixels(composed(inpaint=False, paste_blur=0.0))
    changed = (got != paste()).any(-1)
    assert not changed[alpha() == 0].any() and changed[alpha() == 1].mean() > 0.5


def test_the_subject_keeps_its_own_detail() -> None:
    got = pixels(composed(inpaint=False, paste_blur=0.0, harmonize_strength=0.45))
    change = (got.astype(float) - paste()).mean(-1)
    inner = cv2.erode((alpha() == 1).astype(np.uint8), np.ones((9, 9))) > 0
    steps = np.abs(np.diff(change, axis=1))[inner[:, 1:]]
    own = np.abs(np.diff(paste().astype(float).mean(-1), axis=1))[inner[:, 1:]]
    # The change is smooth: next to the subject's own detail it has none, but for rounding.
    assert np.abs(change[inner]).mean() > 0.5 and steps.mean() < 0.5 < own.mean()


def test_the_amount_scales_the_change_also_under_its_old_name() -> None:
    shared = {"inpaint": False, "paste_blur": 0.0, "harmonize_strength": 0.45}
    half, whole = (
        pixels(composed(**{name: c}, **shared)).astype(float) - paste()
        for name, c in (("correction", 0.5), ("amount", 1.0))
    )
    inside = (alpha() == 1) & (paste() > 20).all(-1) & (paste() < 235).all(-1)
    assert np.abs(2 * half - whole)[inside].mean() < 1.0 < np.abs(whole)[inside].mean()


def test_a_shadow_only_darkens_and_stays_within_its_reach() -> None:
    shared = {"inpaint": False, "paste_blur": 0.0, "harmonize_strength": 0.6, "restraint": 0.0}
    result = composed(shadow_reach=0.1, **shared)
    got, before = pixels(result).astype(int), paste().astype(int)
    outside = alpha() == 0
    radius = 0.1 * max(result.window.width, result.window.height)
    assert (got <= before)[outside].all()
    assert (got == before)[away() > radius + 1].all()
    assert (got < before)[outside].any()


def test_a_scale_of_0_is_training_free_to_the_byte(folder: Path) -> None:
    without = pixels(composed(harmonizer="none"))
    network = harmonizer(folder, 0.2)
    silent = composed(harmonizer=network, harmonizer_scale=0.0)
    assert np.array_equal(pixels(silent), without) and "harmonizer" not in silent.record
    loud = composed(harmonizer=network)
    assert loud.record["harmonizer"]["name"] == network
    assert (pixels(loud) != without).any()


def test_a_new_harmonizer_changes_nothing_beside_the_bare_model(folder: Path) -> None:
    """Its layers end in zeros, so the one-step answers are the bare model's from noise alone."""
    from inlay.diffusion.branches import correct
    from inlay.diffusion.conditions import Conditions, Guide

    backbone = composer().backbone
    network = composer().harmonizer(harmonizer(folder, 0.0))
    assert network is not None
    side = 32
    draw = torch.Generator().manual_seed(1)
    z = torch.randn(1, backbone.latent_channels, side, side, generator=draw)
    mask = torch.zeros(1, 1, side, side)
    mask[..., 8:24, 8:24] = 1
    condition = torch.rand(1, 3, 4 * side, 4 * side, generator=draw), torch.ones(1, 1, 128, 128)
    answers = [
        correct(
            backbone,
            Conditions(
                backbone.embed([""], (128, 128)),
                mask=mask,
                masked_latent=z * (1 - mask),
                guide=guide,
            ),
            z,
            few_levels(backbone, 1), generator=torch.Generator().manual_seed(2), samples=2,
        )
        for guide in (network.guide(*condition), Guide(None, torch.cat(condition, 1), 0.0))
    ]  # fmt: skip
    for one, other in zip(*answers, strict=True):
        assert torch.equal(one, other)


def test_shrinkage_of_a_uniform_change_has_a_closed_form() -> None:
    """d in one channel, deviations s: k = 1 / (1 + r (n + 1) / (n - 1) s^2 / d^2)."""
    mask = torch.ones(1, 1, 6, 6)
    change, spread = torch.zeros(1, 3, 6, 6), torch.zeros(1, 3, 6, 6)
    change[:, 1], spread[:, 1] = 0.5, 0.25
    for n, restraint in ((2, 1.0), (4, 1.0), (8, 3.0)):
        wanted = 1 / (1 + restraint * (n + 1) / (n - 1) * 0.25**2 / 0.5**2)
        for sigma in (0.0, 1.5):
            got = shrinkage(change, spread, mask, n, restraint, sigma)
            assert got.shape == (1, 1, 6, 6)
            torch.testing.assert_close(got, torch.full_like(got, wanted), atol=1e-4, rtol=0)
    # Doubt across the direction of the change does not count.
    spread[:, 0] = 9.0
    torch.testing.assert_close(shrinkage(change, spread, mask, 8, 3.0, 0.0), got)


def test_shrinkage_at_its_limits() -> None:
    draw = torch.Generator().manual_seed(0)
    change, spread = (torch.randn(1, 4, 8, 8, generator=draw) for _ in range(2))
    mask = (torch.rand(1, 1, 8, 8, generator=draw) > 0.3).float()
    spread = spread.abs()
    ones = torch.ones(1, 1, 8, 8)
    assert torch.equal(shrinkage(change, spread, mask, 1, 5.0, 1.0), ones)
    assert torch.equal(shrinkage(change, spread, mask, 4, 0.0, 1.0), ones)
    inside = mask > 0
    sure = shrinkage(change, torch.zeros_like(spread), mask, 4, 5.0, 1.0)
    assert torch.allclose(sure[inside], ones[inside])
    # The more restraint, the smaller the weight.
    weights = [shrinkage(change, spread, mask, 4, r, 1.0)[inside] for r in (0.1, 1.0, 10.0)]
    assert (weights[0] >= weights[1]).all() and (weights[1] >= weights[2]).all()
    assert (weights[2] >= 0).all() and weights[2].mean() < weights[0].mean() < 1
    # What lies outside the mask says nothing about the inside.
    other = torch.where(inside, change, 100 * change)
    noisy = torch.where(inside, spread, 100 * spread)
    a, b = shrinkage(change, spread, mask, 4, 1.0, 1.0), shrinkage(other, noisy, mask, 4, 1.0, 1.0)
    torch.testing.assert_close(a[inside], b[inside])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.chelsea()).save("cat.png")
    Image.fromarray(cup()).save("cup.png")
    Image.fromarray(paste()).save("pasted.png")
    Image.fromarray(np.round(alpha() * 255).astype(np.uint8)).save("mask.png")
    return tmp_path


COMPOSE = ["compose", "cat.png", "cup.png", "--box", "40,150,130,120", "--method", "phd"]
SETS = [f"--set={key}={value}" for key, value in QUICK.items()]


def test_the_stages_are_kept_and_each_can_be_made_again(files: Path, capsys: Capture) -> None:
    assert main([*COMPOSE, *SETS, "--keep-phases", "-o", "out.png", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    names = ["out-1-paste.png", "out-2-inpaint.png", "out-3-harmonize.png"]
    assert told["kept"] == names and told["outputs"] == ["out.png"]
    stages = [np.asarray(Image.open(name)) for name in names]
    assert np.array_equal(stages[2], np.asarray(Image.open("out.png")))
    assert (stages[0] != stages[1]).any() and (stages[1] != stages[2]).any()
    for name in (names[1], "out.png"):
        assert main(["rerun", name, "-o", "again.png", "--quiet"]) == 0
        assert Path("again.png").read_bytes() == Path(name).read_bytes(), name


def test_stages_that_are_off_are_not_kept(files: Path, capsys: Capture) -> None:
    # The ring is painted only where it is asked for.
    options = ["--set", "harmonizer_samples=2", "--keep-phases", "-o", "out.png", "--json"]
    assert main([*COMPOSE, *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kept"] == ["out-1-paste.png", "out-2-harmonize.png"]


def test_only_a_method_with_stages_keeps_some(files: Path, capsys: Capture) -> None:
    options = ["--method", "paste", "--keep-phases", "-o", "out.png"]
    assert main([*COMPOSE[:-2], *options]) == 2
    assert "keep_phases goes with phases" in capsys.readouterr().err
    two = [Subject(cup(), box=BOX), Subject(cup(), box=BOX)]
    with pytest.raises(InputError, match="together"):
        composer().compose(data.chelsea(), two, method="phd", keep_phases=True, **QUICK)


def test_a_harmonizer_is_in_the_record_and_must_be_the_same(
    files: Path, folder: Path, capsys: Capture
) -> None:
    own = files / "own"
    network = Path(harmonizer(folder, 0.2))
    own.mkdir()
    for file in network.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    pasted = ["harmonize", "pasted.png", "--mask", "mask.png", "--method", "phd", *SETS]
    assert main([*pasted, "--set", "harmonizer=own", "-o", "out.png", "--quiet"]) == 0
    record = json.loads(read_record("out.png") or "")
    assert record["harmonizer"]["name"] == "own" and len(record["harmonizer"]["hash"]) == 64
    assert rerun("out.png", "again.png") == 0
    assert Path("again.png").read_bytes() == Path("out.png").read_bytes()
    # Only the harmonize stage runs: all outside the mask is as it was.
    changed = (np.asarray(Image.open("out.png")) != paste()).any(-1)
    assert changed.any() and not changed[alpha() == 0].any()
    for file in Path(harmonizer(folder, 0.0)).iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    assert rerun("out.png", "other.png") == 2
    assert "harmonizer own is not the one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--set", "harmonizer=nowhere/at/all"], "harmonizer 'nowhere/at/all'"),
        (["--set", "harmonizer=."], "config.json"),
        (["--set", "scheduler=NoSuchScheduler"], "scheduler 'NoSuchScheduler'"),
        (["--set", "harmonizer_scale=3"], "harmonizer_scale"),
        (["--set", "harmonize_strength=0.6"], "harmonize_strength"),
    ],
)
def test_bad_input_is_one_sentence(
    options: list[str], sentence: str, files: Path, capsys: Capture
) -> None:
    assert main([*COMPOSE, *SETS, *options, "-o", "out.png", "--quiet"]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said and "\n" not in said and not Path("out.png").exists()


def test_harmonize_with_nothing_to_do_is_refused() -> None:
    mask = np.round(alpha() * 255).astype(np.uint8)
    with pytest.raises(InputError, match="harmonize=false"):
        composer().harmonize(paste(), mask=mask, method="phd", harmonize=False)


def test_a_thin_subject_and_one_that_fills_the_picture() -> None:
    thin = cup()[118:121]
    full = cup()
    for subject, box in ((thin, Box(30, 40, 200, 4)), (full, Box(-100, -100, 700, 600))):
        settings = {"method": "phd", **QUICK, "region": "box"}
        result = composer().compose(data.chelsea(), subject, box=box, **settings)
        changed = (pixels(result) != data.chelsea()).any(-1)
        assert (np.asarray(result.mask)[changed] == 255).all()
