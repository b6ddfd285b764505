"""Training the cutter: what a folder says, what samples show, resuming, and that OUT loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data

from inlay import InputError
from inlay.cli import main
from inlay.learning.folder import is_held_out
from inlay.pictures.arrays import bounds
from inlay.scene.cutter import SIDE, find_subject
from inlay.scene.network import cutter, load_layers
from inlay.training.cutter import CutterConfig, CutterTrainer, Cuttings, compose, hint, view
from inlay.training.trainer import train_folder

Pixels = NDArray[np.uint8]
# The hash of two of these names holds them out.
NAMES = [f"{number}.png" for number in (*range(12), 20, 21)]
RED = (200, 30, 40)


def thing(number: int) -> tuple[Pixels, Pixels]:
    """A crop of a photo with a red ball on it, and the ball's mask."""
    rng = np.random.default_rng(number)
    photo = getattr(data, ("astronaut", "coffee", "chelsea", "rocket")[number % 4])()
    y, x = rng.integers(0, 100, 2)
    picture, mask = photo[y : y + 150, x : x + 170].copy(), np.zeros((150, 170), np.uint8)
    centre = int(rng.integers(50, 120)), int(rng.integers(50, 100))
    cv2.circle(mask, centre, int(rng.integers(25, 45)), 255, -1, cv2.LINE_AA)
    share = mask[..., None] / 255
    return np.round(picture * (1 - share) + share * RED).astype(np.uint8), mask


def fill(root: Path) -> Path:
    """Pictures with a mask beside them, with an alpha that is one, cut out, and without."""
    (root / "masks").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        picture, mask = thing(number)
        kind = number % 4
        if kind in (1, 2):
            picture = np.dstack([picture if kind == 1 else picture * (mask > 0)[..., None], mask])
        Image.fromarray(picture).save(root / name)
        if kind == 0:
            Image.fromarray(mask).save(root / "masks" / name)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert sum(map(is_held_out, NAMES)) == 2
    return fill(tmp_path_factory.mktemp("things") / "pictures")


def tiny(**changes: Any) -> CutterConfig:
    return CutterConfig(**{"steps": 4, "batch": 2, "save_every": 2, **changes})


@pytest.fixture(scope="module")
def trainer(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> CutterTrainer:
    out = tmp_path_factory.mktemp("run")
    return CutterTrainer(folder, out, tiny(start_from="embedded", batch=8))


def test_masks_alphas_cutouts_and_grounds_are_told_apart(folder: Path) -> None:
    trained = [number for number, name in enumerate(NAMES) if not is_held_out(name)]
    kinds = [number % 4 for number in trained]
    read = CutterTrainer.read
    both = [read(CutterTrainer.__new__(CutterTrainer), folder, held) for held in (False, True)]
    train, held = both
    assert len(train.cutouts) == sum(kind != 3 for kind in kinds)
    assert len(train.grounds) == sum(kind != 2 for kind in kinds)
    assert len(train.known) == sum(kind < 2 for kind in kinds)
    assert len(train.cutouts) + len(held.cutouts) == sum(n % 4 != 3 for n in range(len(NAMES)))
    for ground in (train.grounds[number] for number in train.known):
        ball = ground[..., 3] == 255
        assert np.abs(ground[ball][:, :3].astype(int) - RED).max() <= 2
    # A cut-out goes on in its own colour, whatever lay round it.
    for cutout in train.cutouts:
        assert np.abs(cutout[..., :3].astype(int) - RED).max() <= 6
        assert cutout[0, :, 3].max() == 0 and cutout[..., 3].max() == 255


@pytest.mark.parametrize("hinted", [False, True])
def test_a_composite_is_the_cutout_where_its_alpha_is(hinted: bool) -> None:
    """Without light, shadow and others: colours are those of the ball or of the grey ground."""
    ball = np.zeros((60, 60, 4), np.uint8)
    cv2.circle(ball, (30, 30), 28, (0, 0, 0, 255), -1, cv2.LINE_AA)
    ball[..., 0] = 255
    ground = np.full((90, 120, 4), (0, 0, 255, 0), np.uint8)
    corpus, seen = Cuttings([ground], [], [ball]), 0
    for seed in range(12):
        rgb, alpha = compose(corpus, 0, hinted, np.random.default_rng(seed))
        assert rgb.shape == (SIDE, SIDE, 3) and alpha.shape == (SIDE, SIDE)
        assert alpha.min() >= 0 and alpha.max() <= 1
        inside = alpha > 0.99
        if inside.sum() > 500:
            seen += 1
            # Red is changed by light and contrast, and is red still against the ground it is on.
            redness = rgb[..., 0].astype(int) - rgb[..., 2]
            assert redness[inside].mean() > redness[alpha < 0.01].mean()
    assert seen > 6


def test_a_view_holds_its_whole_subject() -> None:
    picture, mask = thing(3)
    labelled = np.dstack([picture, mask])
    shares = []
    for seed in range(20):
        rgb, alpha = view(labelled, np.random.default_rng(seed))
        place = bounds(alpha, 0.5)
        assert rgb.shape == (SIDE, SIDE, 3) and place is not None
        # Squashed, a ball stays an ellipse: all of it, or a side would be flat.
        assert abs((alpha > 0.5).sum() / place.area - np.pi / 4) < 0.03
        shares.append(place.area / SIDE**2)
    assert min(shares) < 0.3 and max(shares) > 0.5


def test_hints_name_the_subject() -> None:
    alpha = np.zeros((SIDE, SIDE), np.float32)
    cv2.rectangle(alpha, (60, 90), (150, 200), 1.0, -1)
    place, counts = bounds(alpha, 0.5), {"box": 0, "points": 0, "none": 0}
    assert place is not None
    for seed in range(300):
        box, points = hint(alpha, seed % 2 == 0, np.random.default_rng(seed))
        counts["box" if box else "points" if points else "none"] += 1
        assert all((alpha[int(y), int(x)] > 0.5) == on for x, y, on in points)
        if box is not None:
            common = box.intersect(place)
            assert common is not None and common.area / box.hull(place).area > 0.35
    # Without a need 56 of 100 have none, with one 7.
    assert 70 < counts["none"] < 120 and counts["points"] > 40
    assert hint(np.zeros((SIDE, SIDE), np.float32), True, np.random.default_rng(0)) == (None, [])


def test_samples_are_what_the_network_reads(trainer: CutterTrainer) -> None:
    drawn = [trainer.sample(trainer.corpus, np.random.default_rng(seed)) for seed in range(24)]
    for sample in drawn:
        assert sample["x"].shape == (5, SIDE, SIDE) and sample["x"].dtype == np.float32
        assert sample["alpha"].shape == (1, SIDE, SIDE)
        assert np.abs(sample["x"][:3]).max() < 3 and set(np.unique(sample["x"][4])) <= {-1, 0, 1}
    again = trainer.sample(trainer.corpus, np.random.default_rng(5))
    assert all(np.array_equal(again[key], value) for key, value in drawn[5].items())


def test_the_shipped_weights_do_well_and_the_report_says_so(trainer: CutterTrainer) -> None:
    """Balls on photos; and what is said is what the network's own answers give."""
    said, curves = trainer.report()
    figures = said["validation"]
    assert figures["iou_box"] > 0.85 and figures["iou"] > 0.6
    assert 0 < figures["expected_error"] < 0.3
    assert curves["validation/iou_box"] == pytest.approx(figures["iou_box"], abs=1e-4)
    assert trainer.network.training


def test_loss_is_the_written_sum(trainer: CutterTrainer) -> None:
    """Against a slow reference in float64, on answers of the network itself."""
    rngs = [np.random.default_rng(seed) for seed in range(3)]
    samples = [trainer.sample(trainer.corpus, rng) for rng in rngs]
    batch = {key: torch.from_numpy(np.stack([s[key] for s in samples])) for key in samples[0]}
    trainer.network.eval()
    with torch.no_grad():
        loss = float(trainer.loss(batch))
        logits, sides, expected = trainer.network(batch["x"])
    trainer.network.train()
    total = 0.0
    for n, sample in enumerate(samples):
        alpha = sample["alpha"][0].astype(np.float64)
        mean = cv2.copyMakeBorder(alpha, 7, 7, 7, 7, cv2.BORDER_CONSTANT)
        mean = cv2.boxFilter(mean, -1, (15, 15))[7:-7, 7:-7]
        maps = [(logits, 1.0, 1 + 4 * np.minimum(3 * np.abs(alpha - mean), 1))]
        maps += [(side, 0.15, 1.0) for side in sides]
        each = 0.0
        for answer, share, edge in maps:
            z = answer[n, 0].double().numpy()
            step = SIDE // len(z)
            a = alpha.reshape(len(z), step, len(z), step).mean((1, 3))
            p, some = 1 / (1 + np.exp(-z)), 3e-4 * a.size
            cross = np.maximum(z, 0) - z * a + np.log1p(np.exp(-np.abs(z)))
            soft = ((p * a).sum() + some) / ((p + a - p * a).sum() + some)
            each += share * ((cross * edge).mean() + 0.7 * (1 - soft))
        found, truth = logits[n, 0].numpy() > 0, alpha > 0.5
        iou = (found & truth).sum() / max((found | truth).sum(), 1)
        e = float(expected[n])
        judged = max(e, 0) - e * iou + np.log1p(np.exp(-abs(e)))
        total += float(sample["weight"]) * each + 0.3 * judged
    assert loss == pytest.approx(total / 3, rel=1e-4)


def test_it_learns_to_cut_one_batch(folder: Path, tmp_path: Path) -> None:
    trainer = CutterTrainer(folder, tmp_path, tiny(steps=1000, batch=3))
    losses = []
    for _ in range(12):
        # The same samples each time; the rate is past its warm-up.
        trainer.state.step = 300
        losses.append(trainer.train_step())
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3])


def test_a_resumed_run_ends_where_an_unbroken_one_does(folder: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    out = train_folder(CutterTrainer, folder, whole, tiny())
    for number in range(4):
        train_folder(CutterTrainer, folder, parts, tiny(max_minutes=1e-6), resume=number > 0)
    one, two = load_file(whole / "state.safetensors"), load_file(parts / "state.safetensors")
    assert one.keys() == two.keys() and any(key.startswith("opt.exp_avg.") for key in one)
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], atol=1e-6, rtol=1e-5)
    rows = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4] and "iou" in rows[-1]["validation"]
    # What is written is the average in half precision, and finds something.
    assert out == whole / "cutter"
    recipe = json.loads((out / "training.json").read_text())
    assert recipe["step"] == 4 and recipe["config"]["composite_share"] == 0.64
    written = load_file(out / "model.safetensors")
    assert all(v.dtype == torch.float16 and torch.equal(v, one[f"ema.{k}"].half())
               for k, v in written.items())  # fmt: skip
    found, expected = find_subject(thing(1)[0] / np.float32(255), net=load_layers(cutter, out))
    assert found.shape == (150, 170) and np.isfinite(found).all() and 0 <= expected <= 1


def test_what_is_wrong_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    Image.fromarray(thing(0)[0]).save(plain / "0.png")
    assert main(["train", "cutter", str(plain), "-o", str(tmp_path / "out")]) == 2
    assert "no picture whose subject is known" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    picture, mask = thing(0)
    Image.fromarray(np.dstack([picture * (mask > 0)[..., None], mask])).save(plain / "0.png")
    with pytest.raises(InputError, match="no picture to lay cut-outs on"):
        CutterTrainer(plain, tmp_path, tiny())
    known = load_layers(cutter).weights.items()
    other = {k: torch.from_numpy(v) for k, v in known if not k.startswith("judge")}
    save_file(other, plain / "model.safetensors")
    for wrong in (str(plain), str(tmp_path)):
        with pytest.raises(InputError, match=r"model\.safetensors"):
            CutterTrainer(folder, tmp_path, tiny(start_from=wrong))
