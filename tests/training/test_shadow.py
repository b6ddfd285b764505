"""Training of shadows: triples, samples, the loss against a slow reference, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from skimage import data

from inlay.cli import main
from inlay.pictures.arrays import Box
from inlay.pictures.colour import srgb_decode, srgb_encode
from inlay.scene.network import load_layers, shadow
from inlay.scene.shadow import predict_shadow
from inlay.training.shadow import (
    ShadowConfig,
    ShadowTrainer,
    Triple,
    decode,
    draw_triple,
    encode,
    read_triples,
)
from inlay.training.trainer import train_folder

Pixels = NDArray[np.uint8]
SHADE = 0.5


def write_triples(folder: Path, count: int = 6) -> Path:
    """Discs on a crop of a photo; the truth is darker by half in linear light below the disc."""
    listing = []
    for number in range(count):
        place = data.coffee()[10 * number : 10 * number + 96, 20 : 20 + 96]
        alpha = np.zeros((96, 96), np.uint8)
        cv2.circle(alpha, (48, 40), 16 + number, 255, -1, cv2.LINE_AA)
        linear = srgb_decode(place / 255)
        linear[60:] *= SHADE
        truth = np.round(255 * srgb_encode(linear)).astype(np.uint8)
        own = np.full((96, 96, 3), (180, 60, 40), np.uint8)
        share = alpha[..., None] / 255
        truth = np.round(truth * (1 - share) + own * share).astype(np.uint8)
        other = np.full((96, 96, 3), (120, 60, 60), np.uint8)
        names = {kind: f"{kind}/{number:06d}.webp" for kind in ("place", "truth", "other")}
        pictures = (place, np.dstack([truth, alpha]), np.dstack([other, alpha]))
        for name, picture in zip(names.values(), pictures, strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / name, lossless=True, exact=True)
        row = {"file_name": names["truth"], "place": names["place"], "other": names["other"]}
        row |= {"held_out": number == 5, "pose": ("standing", "floating")[number % 2]}
        listing.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(listing) + "\n")
    return folder


@pytest.fixture(scope="module")
def triples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_triples(tmp_path_factory.mktemp("triples"))


def tiny(**changes: Any) -> ShadowConfig:
    return ShadowConfig(**{"steps": 4, "batch": 2, "save_every": 2, "side": 32, **changes})


def test_a_folder_of_triples_is_read_by_its_splits(triples: Path) -> None:
    train, held = (read_triples(triples, split) for split in (False, True))
    assert (len(train), len(held)) == (5, 1)
    assert [t.contact for t in train] == [True, False, True, False, True]
    for triple in (*train, *held):
        assert triple.place.shape == triple.truth.shape == triple.object.shape == (96, 96, 3)
        rows, columns = np.nonzero(triple.alpha)
        assert triple.box == Box(columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert (triple.place[:55] == triple.truth[:55])[triple.alpha[:55] == 0].all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 70), st.integers(0, 70), st.integers(8, 26))
def test_a_drawn_triple_shows_the_object_whole(seed: int, x: int, y: int, side: int) -> None:
    alpha = np.zeros((96, 96), np.uint8)
    alpha[y : y + side, x : x + side] = 255
    grey = np.full((96, 96, 3), 128, np.uint8)
    triple = Triple(grey, grey, grey, alpha, Box(x, y, side, side), True)
    place, truth, other, mask = draw_triple(triple, 96, np.random.default_rng(seed))
    assert all(p.shape == (96, 96, 3) and p.min() >= 0 and p.max() <= 1 for p in (place, truth))
    assert other.dtype == np.float32
    # Enlarged by at most what was cut away, and never cut itself.
    assert mask.sum() >= 0.97 * side**2
    rows, columns = (np.flatnonzero((mask > 0.5).any(axis)) for axis in (1, 0))
    assert abs(len(rows) - len(columns)) <= 2


def test_linear_light_is_that_of_srgb() -> None:
    values = torch.linspace(0, 1, 256, dtype=torch.float64)
    np.testing.assert_allclose(decode(values), srgb_decode(values.numpy()), atol=1e-6)
    np.testing.assert_allclose(encode(values), srgb_encode(values.numpy()), atol=1e-6)


def test_the_right_darkness_costs_nothing_and_none_costs_what_is_missing(
    triples: Path, tmp_path: Path
) -> None:
    trainer = ShadowTrainer(triples, tmp_path / "run", tiny(side=96))
    drawn = trainer.sample(trainer.corpus, np.random.default_rng(1))
    batch = {name: torch.from_numpy(np.asarray(v))[None] for name, v in drawn.items()}
    place, truth = batch["place"], torch.minimum(batch["truth"], batch["place"])
    outside = (1 - batch["x"][:, 3:]) * (batch["x"][:, 3:] < 0.5)

    class Fixed(torch.nn.Module):
        def __init__(self, maps: torch.Tensor) -> None:
            super().__init__()
            self.maps = maps

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.maps, torch.full((1,), 30.0 if batch["contact"][0] else -30.0)

    nothing = torch.full((1, 3, 48, 48), -40.0)
    trainer.network = Fixed(nothing)
    error = ((place - truth) * outside).double()
    wanted = 100 * (error**2).mean() + 0.5 * error.abs().mean()
    assert float(trainer.loss(batch)) == pytest.approx(float(wanted), abs=1e-3)
    stops = torch.log2((decode(place) + 1e-5) / (decode(truth) + 1e-5)).clamp(min=1e-4)
    # At the pictures' own size, so that nothing is lost on the way.
    trainer.network = Fixed(torch.log(torch.expm1(stops)) + 3)
    assert float(trainer.loss(batch)) < 0.02 * float(wanted)


def test_a_resumed_run_ends_where_an_unbroken_one_does(triples: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_folder(ShadowTrainer, triples, whole, tiny())
    for number in range(4):
        train_folder(ShadowTrainer, triples, parts, tiny(max_minutes=1e-6), resume=number > 0)
    one, other = (load_file(run / "shadow/model.safetensors") for run in (whole, parts))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-3, rtol=1e-2)
    rows = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert rows[-1]["validation"].keys() == {"shadow", "touches"}
    picture = np.random.default_rng(0).random((40, 50, 3), np.float32)
    factor, _ = predict_shadow(picture, picture[..., 0], load_layers(shadow, whole / "shadow"))
    assert factor.shape == (40, 50, 3)


def test_what_is_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(data.chelsea()).save(tmp_path / "photos" / "cat.png")
    assert main(["train", "shadow", str(tmp_path / "photos"), "-o", str(tmp_path / "a")]) == 2
    assert "no triples" in capsys.readouterr().err
    broken = write_triples(tmp_path / "broken")
    (broken / "other" / "000001.webp").unlink()
    assert main(["train", "shadow", str(broken), "-o", str(tmp_path / "b")]) == 2
    assert "000001.webp" in capsys.readouterr().err
