"""Training a harmonizer: its samples, what learns and what stays, resuming, several processes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage import data

from checkpoints import built
from inlay.checkpoints.load import load_branch
from inlay.cli import main
from inlay.diffusion.branches import Harmonizer, correct
from inlay.diffusion.conditions import Conditions, Guide
from inlay.learning.folder import is_held_out
from inlay.learning.samples import random_crop
from inlay.pictures.arrays import Box
from inlay.training.corpus import cover
from inlay.training.disturb import TRAINED, Policy, disturb, draw_sample, jitter
from inlay.training.embedded import EmbeddedConfig, EmbeddedTrainer
from inlay.training.harmonizer import (
    HarmonizerConfig,
    HarmonizerTrainer,
    restoration,
)
from inlay.training.latent import favoured_timesteps
from inlay.training.objects import ObjectCache, move_object
from inlay.training.trainer import Ahead, train_folder

# The hash of the last two files' names holds them out.
NUMBERS = (*range(10), 20, 21)
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of small crops of real photos, large enough for both splits."""
    root = tmp_path_factory.mktemp("photos")
    rows = []
    rng = np.random.default_rng(0)
    for number in NUMBERS:
        name = ("astronaut", "coffee", "chelsea", "rocket")[number % 4]
        photo = getattr(data, name)()
        y, x = rng.integers(0, 100, 2)
        crop = cv2.resize(photo[y : y + 200, x : x + 240], (72, 60), interpolation=cv2.INTER_AREA)
        Image.fromarray(crop).save(root / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": f"a photo of a {name}"})
    assert sum(is_held_out(row["file_name"]) for row in rows) == 2
    (root / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return root


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint wired as the embedded one."""
    recipe = EmbeddedConfig(
        block_out_channels=(16, 32), text_width=32, text_layers=1, attention_heads=2,
        steps=1, low_resolution_steps=0, resolution=32, batch=2,
    )  # fmt: skip
    return str(train_folder(EmbeddedTrainer, folder, tmp_path_factory.mktemp("checkpoint"), recipe))


def tiny(model: str, **changes: Any) -> HarmonizerConfig:
    values = {"model": model, "steps": 4, "batch": 2, "save_every": 2}
    return HarmonizerConfig(**{**values, **changes})


def awake(trainer: HarmonizerTrainer) -> Any:
    """The trainer's branch, made to do something: what begins at zero is drawn instead."""
    for parameter in trainer.state.network.parameters():
        if not parameter.detach().any():
            torch.nn.init.normal_(parameter, std=1.0)
    return trainer.state.network


def policy(**changes: Any) -> Policy:
    """How samples are made: plain ones but for what is said."""
    return Policy().plain().model_copy(update=changes)


def thing() -> tuple[np.ndarray, np.ndarray]:
    """A picture (80, 96, 3) and the shape (80, 96) of the thing in it, 0 or 255."""
    shape = np.zeros((80, 96), np.uint8)
    cv2.ellipse(shape, (48, 42), (22, 26), 20, 0, 360, 255, -1)
    rng = np.random.default_rng(0)
    picture = np.where(shape[..., None] > 0, (190, 60, 40), (70, 90, 120))
    return np.clip(picture + rng.normal(0, 6, (80, 96, 3)), 0, 255).astype(np.uint8), shape


def test_a_disturbance_stays_inside_its_mask(tmp_path: Path) -> None:
    picture, shape = thing()
    cache = ObjectCache()
    rule = policy(whole_picture_augmentation=0.3, blob_share=0.3, mask_jitter=0.05)
    changed = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        sample = draw_sample(np.dstack([picture, shape]), "red", cache, (48, 48), rule, rng)
        assert sample.truth.shape == sample.pasted.shape == (48, 48, 3)
        assert sample.mask.dtype == np.float32 and 0 <= sample.mask.min() < sample.mask.max() <= 1
        outside = sample.mask == 0
        np.testing.assert_array_equal(sample.pasted[outside], sample.truth[outside])
        changed += (sample.pasted != sample.truth).any()
        # Nor does a U-Net's view of the rest show any of it.
        latent = cover(torch.from_numpy(sample.mask)[None, None], 4)
        assert latent.shape == (1, 1, 12, 12) and set(latent.unique().tolist()) <= {0.0, 1.0}
        touched = cv2.resize(latent[0, 0].numpy(), (48, 48), interpolation=cv2.INTER_NEAREST)
        seen = touched == 0
        np.testing.assert_array_equal(sample.pasted[seen], sample.truth[seen])
    assert changed > 55


def test_a_sample_is_the_disturbed_object_of_its_picture(tmp_path: Path) -> None:
    """Without jitter: the change is one of disturb's, and the mask is the thing's shape."""
    picture, shape = thing()
    cache, rule = ObjectCache(), policy(kinds=("exposure",), least_strength=0.8)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        sample = draw_sample(np.dstack([picture, shape]), "red", cache, (48, 48), rule, rng)
        assert sample.caption == "red"
        inside = sample.mask > 0.5
        assert set(np.unique(sample.mask)) == {0.0, 1.0}
        # The thing is red, all else is blue.
        red = sample.truth[..., 0].astype(int) - sample.truth[..., 2] > 0
        assert (red == inside).mean() > 0.97
        dark = disturb(sample.truth[inside], []).mean() > disturb(sample.pasted[inside], []).mean()
        ordered = (sample.pasted <= sample.truth) if dark else (sample.pasted >= sample.truth)
        assert ordered.all() and (sample.pasted != sample.truth)[inside].mean() > 0.5


def test_some_stay_undisturbed_and_recoloured_ones_lose_their_caption(tmp_path: Path) -> None:
    picture, shape = thing()
    cache = ObjectCache()
    whole = np.dstack([picture, shape])
    rule = policy(undisturbed_share=0.4, whole_picture_augmentation=0.5)
    calm, bare, means = 0, 0, []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        sample = draw_sample(whole, "red", cache, (32, 32), rule, rng)
        calm += np.array_equal(sample.pasted, sample.truth)
        bare += sample.caption == ""
        means.append(sample.truth.reshape(-1, 3).mean(0) if sample.caption == "" else None)
    assert 20 < calm < 45 and 28 < bare < 52
    spread = np.std([mean for mean in means if mean is not None], axis=0)
    assert (spread > 8).all()


def test_a_second_light_reaches_a_part_of_the_object() -> None:
    picture, shape = thing()
    rule = policy(kinds=("exposure",), uneven_share=1.0)
    uneven = 0
    for seed in range(12):
        even, other = (
            draw_sample(
                np.dstack([picture, shape]), "", ObjectCache(), (48, 64),
                rule.model_copy(update={"uneven_share": share}), np.random.default_rng(seed),
            )
            for share in (0.0, 1.0)
        )  # fmt: skip
        np.testing.assert_array_equal(even.truth, other.truth)
        inside = even.mask > 0.5
        np.testing.assert_array_equal(other.pasted[~inside], other.truth[~inside])
        gain = (other.pasted[inside] / np.maximum(even.pasted[inside].astype(float), 1))[:, 0]
        uneven += float(np.quantile(gain, 0.9) - np.quantile(gain, 0.1)) > 0.05
    assert uneven >= 4


def test_a_window_shows_the_object_as_methods_do() -> None:
    """Its longer side 1.5 to 2.5 times the object's, the object a tenth off its middle at most."""
    canvas = np.zeros((300, 400, 4), np.uint8)
    canvas[140:180, 190:250] = 255
    for seed in range(20):
        crop = random_crop(canvas, (96, 128), np.random.default_rng(seed), Box(190, 140, 60, 40))
        assert crop.shape == (96, 128, 4)
        rows, columns = np.nonzero(crop[..., 3] > 127)
        assert 128 / 2.6 <= np.ptp(columns) + 1 <= 128 / 1.4
        assert np.ptp(rows) / np.ptp(columns) == pytest.approx(2 / 3, abs=0.06)
        off = abs((columns.min() + columns.max()) / 2 - 63.5), abs(rows.mean() - 47.5)
        assert max(off) <= 0.1 * (np.ptp(columns) + 1) + 2


@pytest.mark.parametrize("seed", range(6))
def test_a_moved_object_stands_in_an_erased_ring(seed: int) -> None:
    truth = np.random.default_rng(7).integers(0, 60, (96, 128, 3), dtype=np.uint8)
    mask = np.zeros((96, 128), np.float32)
    mask[30:62, 40:84] = 1
    pasted = np.where(mask[..., None] > 0, np.uint8([200, 40, 90]), truth)
    made, alpha, region = move_object(truth, pasted, mask, np.random.default_rng(seed))
    assert made.dtype == np.uint8 and alpha.dtype == region.dtype == np.float32
    np.testing.assert_array_equal(made[region == 0], truth[region == 0])
    assert (made[(region == 1) & (alpha == 0)] == 128).all()
    # Deep in the object its own colour, whichever way it was turned; at its edge some of the grey.
    deep = cv2.erode((alpha == 1).astype(np.uint8), np.ones((9, 9))) > 0
    assert deep.sum() > 300 and np.abs(made[deep].astype(int) - (200, 40, 90)).max() <= 1
    soft = (alpha > 0.3) & (alpha < 0.7)
    assert soft.any() and made[soft, 0].mean() < 195
    # The ring is 3 to 10 pixels wide round all that the object covers or covered.
    far = cv2.distanceTransform(1 - np.uint8(np.maximum(alpha, mask) > 0), cv2.DIST_L2, 5)
    assert (region[far <= 2] == 1).all() and (region[far > 12] == 0).all()
    assert 0.7 < alpha.sum() / mask.sum() < 1.2
    assert not np.array_equal(alpha, mask)


def test_steps_are_square_upright_or_lying(model: str, folder: Path, tmp_path: Path) -> None:
    trainer = HarmonizerTrainer(folder, tmp_path, tiny(model, resolution=32, geometry=0.5))
    steps = (trainer.batch([trainer.draw(step, row) for row in range(2)]) for step in range(30))
    seen = {tuple(batch["region"].shape) for batch in steps}
    assert seen == {(2, 1, 32, 32), (2, 1, 32, 24), (2, 1, 24, 32)}
    assert {tuple(batch["mask"].shape[2:]) for batch in trainer.shown()} == {(32, 32)}


def test_masks_are_off_by_no_more_than_the_jitter() -> None:
    shape = thing()[1][:80, 8:88] > 0
    assert np.array_equal(jitter(shape, 0.0, np.random.default_rng(0)), shape)
    near = cv2.distanceTransform((~shape).astype(np.uint8), cv2.DIST_L2, 5)
    deep = cv2.distanceTransform(shape.astype(np.uint8), cv2.DIST_L2, 5)
    areas, soft = [], 0
    for seed in range(30):
        mask = jitter(shape, 0.05, np.random.default_rng(seed))
        np.testing.assert_array_equal(mask * 255, np.round(mask * 255))
        # 4 pixels, and the soft edge: three sigmas of 2 pixels.
        assert (mask[near > 11] == 0).all() and (mask[deep > 11] == 1).all()
        areas.append(mask.sum() / shape.sum())
        soft += bool(((mask > 0.1) & (mask < 0.9)).any())
    assert min(areas) < 0.9 and max(areas) > 1.1 and soft > 15
    thin = np.zeros((80, 80), bool)
    thin[:, 40] = True
    assert all(jitter(thin, 0.05, np.random.default_rng(s)).sum() > 20 for s in range(20))


def test_objects_are_looked_for_once_and_kept(tmp_path: Path) -> None:
    photo = np.ascontiguousarray(data.coffee()[::3, ::3][:, :-1])
    flat = np.full((40, 40, 3), 90, np.uint8)
    cache = ObjectCache()
    found = cache.of(photo)
    assert found and cache.of(flat) == []
    assert all(m.shape == photo.shape[:2] and m.dtype == np.uint8 for m in found)
    for one, two in zip(found, cache.of(photo.copy()), strict=True):
        np.testing.assert_array_equal(one, two)
    picture, shape = thing()
    (given,) = cache.of(np.dstack([picture, shape]))
    np.testing.assert_array_equal(given, shape)


def test_threads_make_the_same_batches(model: str, folder: Path, tmp_path: Path) -> None:
    trainer = HarmonizerTrainer(folder, tmp_path, tiny(model, whole_picture_augmentation=0.5))
    plain, threaded = Ahead(trainer.draw, 0), Ahead(trainer.draw, 3)
    for step in (0, 1, 2, 7):
        one, two = (trainer.batch(each.get(step, range(5))) for each in (plain, threaded))
        assert one["caption"] == two["caption"]
        for name in ("truth", "pasted", "mask", "region", "noise", "t"):
            assert torch.equal(one[name], two[name])
    other = trainer.batch(plain.get(8, range(5)))
    assert not torch.equal(one["pasted"], other["pasted"])
    # A row is itself in whichever part of the batch it is asked for.
    assert torch.equal(trainer.batch([trainer.draw(8, 3)])["pasted"][0], other["pasted"][3])


def test_timesteps_lean_to_the_noisiest_tenth() -> None:
    u = (np.arange(20000) + 0.5) / 20000
    for share in (0.0, 0.5, 1.0):
        t = favoured_timesteps(u, share, 0.9)
        assert (t >= 900).mean() == pytest.approx(0.1 + 0.9 * share, abs=0.001)
        assert t.max() == 999 and t.min() == (900 if share == 1 else 0)
        # Uniform on either side.
        assert np.median(t[t >= 900]) == pytest.approx(950, abs=1)
        assert share == 1 or np.median(t[t < 900]) == pytest.approx(450, abs=1)
    assert favoured_timesteps(np.array([0.0, 0.9999]), 0.5, 0.9, 40).tolist() == [0, 39]


@pytest.mark.parametrize("name", ["embedded-like", "sd1", "sd1_inpaint", "sdxl"])
def test_the_branch_learns_and_the_checkpoint_stays_as_it_is(
    name: str, model: str, folder: Path, tmp_path: Path
) -> None:
    source, side = (model, 32) if name == "embedded-like" else (str(built(name)), 64)
    config = tiny(source, resolution=side, warmup_steps=1)
    trainer = HarmonizerTrainer(folder, tmp_path, config)
    frozen = (trainer.backbone.network, trainer.backbone.vae, *trainer.backbone.text.encoders)
    before = [{k: v.clone() for k, v in part.state_dict().items()} for part in frozen]
    start = {k: v.clone() for k, v in trainer.state.network.state_dict().items()}
    assert np.isfinite([trainer.train_step() for _ in range(4)]).all()
    for part, tensors in zip(frozen, before, strict=True):
        assert all(torch.equal(value, tensors[k]) for k, value in part.state_dict().items())
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())
    moved = {k: not torch.equal(v, start[k]) for k, v in trainer.state.network.state_dict().items()}
    assert all(moved.values()), [k for k, v in moved.items() if not v]
    average = trainer.state.average["controlnet_mid_block.weight"]
    assert not torch.equal(average, trainer.state.network.controlnet_mid_block.weight)


def whole(hole: torch.Tensor, side: int) -> torch.Tensor:
    """A latent mask as one of pictures of `side` pixels."""
    return torch.nn.functional.interpolate(hole, (side, side), mode="nearest")


def about(error: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """Each pixel's mean over the hole, weighted by a Gaussian of a sixteenth of the side."""
    result, side = torch.zeros_like(error), error.shape[-1]
    place = torch.arange(side)
    for y in range(side):
        for x in range(side):
            square = (place[:, None] - y) ** 2 + (place[None] - x) ** 2
            weight = torch.exp(-square / 2 / (side / 16) ** 2) * hole[0, 0]
            result[..., y, x] = (error * weight).sum((2, 3)) / weight.sum().clamp_min(1e-9)
    return result


@pytest.mark.parametrize("start", ["pasted", "noise"])
@pytest.mark.parametrize("name", ["embedded-like", "sd1"])
def test_the_loss_is_the_error_inside_the_masks(
    name: str, start: str, model: str, folder: Path, tmp_path: Path
) -> None:
    """Worked out row by row with a branch that already does something; a share of it is of the
    error's local mean.
    """
    source, side = (model, 32) if name == "embedded-like" else (str(built(name)), 64)
    config = tiny(
        source, resolution=side, batch=3, caption_dropout=1.0, smooth_share=0.3, start=start,
        geometry=0.7,
    )  # fmt: skip
    trainer = HarmonizerTrainer(folder, tmp_path, config)
    network, backbone = awake(trainer), trainer.backbone
    shape = (1, backbone.latent_channels, side // backbone.factor, side // backbone.factor)
    expected, without, conditions = [], [], []
    for row in range(3):
        sample = trainer.batch([trainer.draw(0, row)])
        t, noise = int(sample["t"]), sample["noise"]
        # A third of all timesteps for each of three rows.
        first, last = (
            200 + 600 * np.array([row, row + 1]) / 3
            if start == "pasted"
            else favoured_timesteps(np.array([row, row + 0.999]) / 3, 0.5, 0.9)
        )
        assert first <= t <= last and sample["caption"] == [""] and noise.shape == shape
        hole = cover(sample["region"], backbone.factor)
        z, level = backbone.encode(sample["truth"]), backbone.levels[t]
        target = level.output(z, noise, backbone.prediction_type)
        masks = {}
        if name == "embedded-like":
            masks = {
                "mask": hole,
                "masked_latent": backbone.encode(sample["truth"] * (1 - whole(hole, side))),
            }
        begun = z if start == "noise" else backbone.encode(sample["pasted"])
        noisy, text = level.add_noise(begun, noise), backbone.embed([""], (side, side))
        guide = Guide(network, torch.cat([sample["pasted"], sample["mask"]], 1))
        conditions.append(guide.condition)
        for told, chosen in ((expected, guide), (without, None)):
            with torch.no_grad():
                output = backbone.predict(noisy, t, Conditions(text, **masks, guide=chosen))
            error = output - target
            if start == "pasted":
                x0 = level.estimates(output, noisy, backbone.prediction_type)[1]
                error = x0 - z
            parts = []
            for some in (error, about(error, hole)):
                weighted = (some**2 * trainer.channel_weight).mean(1, keepdim=True)
                parts.append(float((weighted * hole).sum() / hole.sum()))
            told.append(0.7 * parts[0] + 0.3 * parts[1])
    read: list[torch.Tensor] = []
    network.register_forward_pre_hook(
        lambda module, given, named: read.append(named["controlnet_cond"]), with_kwargs=True
    )
    assert np.abs(np.array(expected) / without - 1).mean() > 0.006
    # bfloat16 there, float32 here.
    assert trainer.train_step() == pytest.approx(np.mean(expected), rel=0.004)
    assert torch.equal(read[0], torch.cat(conditions))


def test_a_resumed_run_ends_where_an_unbroken_one_does(
    model: str, folder: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_folder(HarmonizerTrainer, folder, whole, tiny(model))
    for number in range(4):
        train_folder(
            HarmonizerTrainer, folder, parts, tiny(model, max_minutes=1e-6), resume=number > 0
        )
    one, two = load_file(whole / "state.safetensors"), load_file(parts / "state.safetensors")
    assert one.keys() == two.keys() and any(key.startswith("opt.exp_avg.") for key in one)
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], atol=1e-6, rtol=1e-5)
    steps = [json.loads(line)["step"] for line in (whole / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4]


def test_what_it_writes_is_the_average_in_half_precision_and_loads(
    model: str, folder: Path, tmp_path: Path
) -> None:
    out = train_folder(HarmonizerTrainer, folder, tmp_path, tiny(model))
    assert out == tmp_path / "harmonizer"
    assert sorted(path.name for path in tmp_path.glob("harmonizer*")) == ["harmonizer"]
    written, state = load_file(out / WEIGHTS), load_file(tmp_path / "state.safetensors")
    for key, value in written.items():
        assert value.dtype == torch.float16
        assert torch.equal(value, state[f"ema.{key}"].half())
    recipe = json.loads((out / "training.json").read_text())
    assert recipe["step"] == 4 and recipe["config"]["kinds"] == list(TRAINED)
    assert set(recipe["figures"]["validation_loss"]) == {"300", "500", "700"}
    assert set(recipe["figures"]["restored"]) == {
        "latent",
        "picture",
        "smooth",
        "improved",
        "untouched",
    }
    assert str(tmp_path) not in (out / "config.json").read_text()
    begun = tiny(model, start_from=str(out), learning_rate=1e-12, steps=1, resolution=32)
    trainer = HarmonizerTrainer(folder, tmp_path / "next", begun)
    load_branch(Harmonizer, str(out), trainer.backbone)
    for key, value in trainer.state.network.state_dict().items():
        torch.testing.assert_close(value, written[key].float())


def test_the_default_is_half_of_the_checkpoints_own_size(
    model: str, folder: Path, tmp_path: Path
) -> None:
    trainer = HarmonizerTrainer(folder, tmp_path, tiny(model))
    assert trainer.size == trainer.backbone.native_size // 2
    assert next(trainer.shown())["truth"].shape == (2, 3, trainer.size, trainer.size)


@pytest.mark.parametrize("timestep", [None, 400])
def test_figures_are_those_of_a_step_worked_out_by_hand(
    timestep: int | None, model: str, folder: Path, tmp_path: Path
) -> None:
    trainer = HarmonizerTrainer(folder, tmp_path, tiny(model, resolution=32))
    network, backbone = awake(trainer).requires_grad_(False), trainer.backbone
    samples = next(trainer.shown())
    found = restoration(backbone, network, [samples], seed=4, timestep=timestep)
    sums = np.zeros(6)
    for row in range(2):
        x, pasted, mask = (samples[n][row : row + 1] for n in ("truth", "pasted", "mask"))
        hole = cover(mask, 4)
        z, was = backbone.encode(x), backbone.encode(pasted)
        noise = torch.Generator().manual_seed(4 + row)
        after, _ = correct(
            backbone,
            Conditions(
                backbone.embed([""], (32, 32)),
                mask=hole,
                masked_latent=backbone.encode(x * (1 - whole(hole, 32))),
                guide=Guide(network, torch.cat([pasted, mask], 1)),
            ),
            was, [backbone.levels[timestep or 999]], generator=noise,
            from_pasted=timestep is not None,
        )  # fmt: skip
        change = backbone.decode(after) - backbone.decode(was)
        y = (pasted + change).clamp(-1, 1)
        soft = (pasted + about(change, mask)).clamp(-1, 1)
        errors = [
            float(((p - q) ** 2 * m).sum() / m.sum() / p.shape[1])
            for p, q, m in (
                (after, z, hole), (was, z, hole), (y, x, mask), (pasted, x, mask), (soft, x, mask),
            )
        ]  # fmt: skip
        sums += [*errors, errors[4] < errors[3]]
    assert found["latent"] == pytest.approx(sums[0] / sums[1], rel=1e-4)
    assert found["picture"] == pytest.approx(sums[2] / sums[3], rel=1e-4)
    assert found["smooth"] == pytest.approx(sums[4] / sums[3], rel=1e-3)
    assert found["improved"] == sums[5] / 2
    calm = samples | {"pasted": samples["truth"]}
    assert restoration(backbone, network, [calm], seed=4) == {}


def _run(arguments: list[str], count: int) -> None:
    """One command line in `count` processes that know of each other, as accelerate starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
        "INLAY_DEBUG": "1",
    }  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "inlay", *arguments],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(count)
    ]
    for process in running:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()


def test_two_processes_learn_what_one_learns(model: str, folder: Path, tmp_path: Path) -> None:
    """Their gradients are averaged; and when the minutes are up, the second one is told."""
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    config = {"steps": 9, "batch": 4, "max_minutes": 1e-6}
    for number in range(2):
        train_folder(
            HarmonizerTrainer, folder, whole, HarmonizerConfig(model=model, **config), number > 0
        )
    shutil.copytree(whole, shared)
    (shared / "log.jsonl").unlink()
    train_folder(HarmonizerTrainer, folder, whole, HarmonizerConfig(model=model, **config), True)
    _run(
        [
            "train", "harmonizer", str(folder), "-o", str(shared), "--model", model, "--resume",
            *(f"--set={key}={value}" for key, value in config.items()),
        ],
        2,
    )  # fmt: skip
    one, two = load_file(whole / "state.safetensors"), load_file(shared / "state.safetensors")
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], atol=2e-4, rtol=1e-2)
    (row,) = (shared / "log.jsonl").read_text().splitlines()
    assert json.loads(row)["step"] == 3


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["kinds=gain,fog"], "expected some of gain"),
        (["least_strength=0"], "least_strength is 0"),
        (["resolution=30"], "multiple of"),
        (["start_from=nowhere"], "nowhere"),
        (["steps=1,2"], "no lists"),
        (["stops=3"], "did you mean steps"),
    ],
)
def test_bad_settings_leave_nothing_behind(
    sets: list[str], says: str, model: str, folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    arguments = ["train", "harmonizer", str(folder), "-o", str(out), "--model", model]
    arguments += [f"--set={item}" for item in sets]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out
    assert not out.exists()


def test_any_folder_of_photos_will_do(model: str, folder: Path, tmp_path: Path) -> None:
    """Without metadata.jsonl all pictures below the folder count, without captions."""
    photos = tmp_path / "photos"
    shutil.copytree(folder, photos / "deeper")
    (photos / "deeper" / "metadata.jsonl").unlink()
    pictures = len(list((photos / "deeper").iterdir()))
    trainer = HarmonizerTrainer(photos, tmp_path / "out", tiny(model))
    assert len(trainer.corpus) + len(trainer.held_out) == pictures
    assert set(trainer.corpus.captions) == {""}
    assert trainer.train_step() > 0


def test_bad_folders_models_and_states_are_refused(
    model: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, another = tmp_path / "out", str(built("sd1"))
    # Writing that checkpoint shows a bar.
    capsys.readouterr()

    def refused(says: str, *arguments: str) -> None:
        assert main(["train", "harmonizer", *arguments, "-o", str(out)]) == 2
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1

    refused("is not a folder", str(tmp_path / "gone"))
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("holds no readable picture", str(empty), "--model", model)
    refused("neither 'embedded'", str(folder), "--model", "gone")
    refused("resume", str(folder), "--model", model, "--resume")
    assert not out.exists()
    train_folder(HarmonizerTrainer, folder, out, tiny(model, steps=1))
    before = (out / "state.safetensors").read_bytes()
    other = "--set=resolution=64"
    refused("is not of a harmonizer", str(folder), "--model", another, "--resume", other)
    assert (out / "state.safetensors").read_bytes() == before
