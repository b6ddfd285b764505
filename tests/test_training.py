"""The training of the embedded checkpoint: data, resuming, and that what it writes loads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage import data

from inlay import Box, Composer, InputError
from inlay.training.data import is_held_out, load_corpus, random_crop, random_mask
from inlay.training.embedded import EmbeddedConfig, train_embedded

TINY = EmbeddedConfig(
    block_out_channels=(16, 32), text_width=32, text_layers=1, attention_heads=2,
    steps=4, low_resolution_steps=2, low_resolution=32, resolution=64, low_resolution_batch=2,
    batch=2, save_every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of crops of real photos, large enough for both splits."""
    root = tmp_path_factory.mktemp("photos")
    rows = []
    rng = np.random.default_rng(0)
    for number in range(40):
        name = ("astronaut", "coffee", "chelsea", "rocket")[number % 4]
        photo = getattr(data, name)()
        y, x = rng.integers(0, 100, 2)
        Image.fromarray(photo[y : y + 150, x : x + 170]).save(root / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": f"a photo of a {name}"})
    (root / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return root


def test_the_splits_are_disjoint_and_complete(folder: Path) -> None:
    train, held = load_corpus(folder, held_out=False), load_corpus(folder, held_out=True)
    assert len(train) + len(held) == 40
    assert 1 <= len(held) < 10
    assert train.weights.sum() == pytest.approx(1)
    share = sum(is_held_out(f"photo-{n}.jpg") for n in range(4000)) / 4000
    assert share == pytest.approx(0.05, abs=0.012)


def test_crops_and_masks_are_what_they_say() -> None:
    rng = np.random.default_rng(1)
    photo = data.coffee()
    for _ in range(20):
        crop = random_crop(photo, 64, rng)
        assert crop.shape == (64, 64, 3)
        assert crop.dtype == np.uint8
    masks = [random_mask(64, rng) for _ in range(200)]
    shares = np.array([mask.mean() for mask in masks])
    assert all(set(np.unique(mask)) <= {0.0, 1.0} for mask in masks)
    assert 0.08 < (shares == 1).mean() < 0.25
    assert 0.1 < np.median(shares) < 0.7
    assert (shares > 0).mean() > 0.95


def test_a_resumed_run_ends_where_an_unbroken_one_does(folder: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_embedded(folder, whole, TINY)
    stopped = TINY.model_copy(update={"max_minutes": 1e-6})
    for _ in range(4):
        train_embedded(folder, parts, stopped, resume=(parts / "state.safetensors").exists())
    one, two = load_file(whole / "state.safetensors"), load_file(parts / "state.safetensors")
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], atol=1e-5, rtol=1e-4)
    steps = [json.loads(line)["step"] for line in (whole / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4]


def test_what_training_writes_composes(folder: Path, tmp_path: Path) -> None:
    checkpoint = train_embedded(folder, tmp_path / "out", TINY)
    recipe = json.loads((checkpoint / "training.json").read_text())
    assert recipe["step"] == 4
    assert recipe["config"]["seed"] == 0
    result = Composer.from_pretrained(str(checkpoint), device="cpu").harmonize(
        data.coffee(), mask=(np.indices((400, 600)).sum(0) % 400 < 60).astype(np.uint8) * 255,
        method="cdc", num_inference_steps=2,
    )  # fmt: skip
    assert result.image.size == (600, 400)
    assert Box.of_size((600, 400)).intersect(result.region) == result.region


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metadata\.jsonl"):
        train_embedded(tmp_path, tmp_path / "out", TINY)
    (tmp_path / "metadata.jsonl").write_text("{nonsense")
    with pytest.raises(InputError, match="line 1"):
        train_embedded(tmp_path, tmp_path / "out", TINY)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "gone.png", "text": "x"}')
    with pytest.raises(InputError, match="no readable picture"):
        train_embedded(tmp_path, tmp_path / "out", TINY)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"file_name": "../a.png", "text": "x"}', "inside the folder"),
        ('{"file_name": "/a.png", "text": "x"}', "inside the folder"),
        ('{"file_name": "a.png", "text": "x", "weight": -1}', "weight"),
        ('{"file_name": "a.png", "text": "x", "weight": NaN}', "weight"),
        ("[1, 2]", "line 1"),
        ("\udcff", "UTF-8"),
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "metadata.jsonl").write_bytes(line.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=says):
        train_embedded(tmp_path, tmp_path / "out", TINY)


def test_a_handful_of_photos_trains_without_a_held_out_split(tmp_path: Path) -> None:
    rows = []
    for name in ("chelsea.png", "coffee.png", "rocket.png"):
        assert not is_held_out(name)
        Image.fromarray(getattr(data, name[:-4])()).save(tmp_path / name)
        rows.append(json.dumps({"file_name": name, "text": "a photo"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    short = TINY.model_copy(update={"steps": 2})
    assert (train_embedded(tmp_path, tmp_path / "out", short) / "model_index.json").is_file()


@pytest.mark.parametrize("widths", [(30, 60), (16,), (0, 16)])
def test_widths_that_no_network_has_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        EmbeddedConfig(block_out_channels=widths)


def test_nothing_to_resume_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="resume"):
        train_embedded(folder, tmp_path / "empty", TINY, resume=True)
