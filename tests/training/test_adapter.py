"""Training a T2I-Adapter: what learns, what stays, resuming, and that what it writes loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage import data

from checkpoints import built
from inlay import InputError
from inlay.checkpoints.load import load_backbone, load_branch
from inlay.cli import main
from inlay.diffusion.branches import ControlAdapter
from inlay.learning.folder import is_held_out
from inlay.learning.samples import random_mask
from inlay.training.adapter import (
    AdapterConfig,
    AdapterTrainer,
    large_hole,
    noisy_timesteps,
)
from inlay.training.embedded import EmbeddedConfig, EmbeddedTrainer
from inlay.training.trainer import train_folder

# The hash of the last two files' names holds them out.
NUMBERS = (*range(10), 20, 21)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of crops of real photos, large enough for both splits."""
    root = tmp_path_factory.mktemp("photos")
    rows = []
    rng = np.random.default_rng(0)
    for number in NUMBERS:
        name = ("astronaut", "coffee", "chelsea", "rocket")[number % 4]
        photo = getattr(data, name)()
        y, x = rng.integers(0, 100, 2)
        Image.fromarray(photo[y : y + 100, x : x + 120]).save(root / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": f"a photo of a {name}"})
    assert sum(is_held_out(row["file_name"]) for row in rows) == 2
    (root / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return root


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint wired as the embedded one: its first block has no attention."""
    tiny = EmbeddedConfig(
        block_out_channels=(16, 16, 32), text_width=32, text_layers=1, attention_heads=2,
        steps=1, low_resolution_steps=0, resolution=32, batch=2,
    )  # fmt: skip
    return str(train_folder(EmbeddedTrainer, folder, tmp_path_factory.mktemp("checkpoint"), tiny))


def tiny(model: str, **changes: Any) -> AdapterConfig:
    values = {"model": model, "steps": 4, "batch": 2, "resolution": 32, "save_every": 2}
    return AdapterConfig(**{**values, **changes})


@pytest.mark.parametrize("name", ["embedded-like", "sd1", "sd1_inpaint"])
def test_the_adapter_learns_and_the_checkpoint_stays_as_it_is(
    name: str, model: str, folder: Path, tmp_path: Path
) -> None:
    embedded = name == "embedded-like"
    source, side = (model, 32) if embedded else (str(built(name)), 64)
    trainer = AdapterTrainer(folder, tmp_path, tiny(source, resolution=side, optimizer="muon"))
    frozen = (trainer.backbone.network, trainer.backbone.vae, *trainer.backbone.text.encoders)
    before = [{k: v.clone() for k, v in part.state_dict().items()} for part in frozen]
    start = {k: v.clone() for k, v in trainer.state.network.state_dict().items()}
    assert np.isfinite([trainer.train_step() for _ in range(3)]).all()
    for part, tensors in zip(frozen, before, strict=True):
        assert all(torch.equal(value, tensors[k]) for k, value in part.state_dict().items())
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())
    moved = [not torch.equal(v, start[k]) for k, v in trainer.state.network.state_dict().items()]
    assert all(moved)
    average = trainer.state.average["adapter.body.0.resnets.0.block1.weight"]
    now = trainer.state.network.state_dict()["adapter.body.0.resnets.0.block1.weight"]
    assert not torch.equal(average, now)


def test_it_learns_to_explain_one_batch(model: str, folder: Path, tmp_path: Path) -> None:
    trainer = AdapterTrainer(folder, tmp_path, tiny(model, steps=1000, learning_rate=3e-3))
    losses = []
    for _ in range(40):
        # The same pictures, holes and noise each time; the rate is past its warm-up.
        trainer.state.step = 200
        losses.append(trainer.train_step())
    # The checkpoint beside it has learned next to nothing, which bounds what can be explained.
    assert np.mean(losses[-3:]) < 0.94 * np.mean(losses[:3])


def test_a_resumed_run_ends_where_an_unbroken_one_does(
    model: str, folder: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_folder(AdapterTrainer, folder, whole, tiny(model))
    for number in range(4):
        train_folder(
            AdapterTrainer, folder, parts, tiny(model, max_minutes=1e-6), resume=number > 0
        )
    one, two = load_file(whole / "state.safetensors"), load_file(parts / "state.safetensors")
    assert one.keys() == two.keys() and any(key.startswith("opt.exp_avg.") for key in one)
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], atol=1e-6, rtol=1e-5)
    steps = [json.loads(line)["step"] for line in (whole / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4]
    other = load_file(
        train_folder(AdapterTrainer, folder, tmp_path / "other", tiny(model, seed=1)) / WEIGHTS
    )
    assert not torch.equal(other[FIRST], load_file(whole / "adapter" / WEIGHTS)[FIRST])


WEIGHTS = "diffusion_pytorch_model.safetensors"
FIRST = "adapter.conv_in.weight"


def test_what_it_writes_is_the_average_in_half_precision_and_loads(
    model: str, folder: Path, tmp_path: Path
) -> None:
    out = train_folder(AdapterTrainer, folder, tmp_path, tiny(model, control_type="sketch"))
    assert out == tmp_path / "adapter"
    assert sorted(path.name for path in tmp_path.glob("adapter*")) == ["adapter"]
    config = json.loads((out / "config.json").read_text())
    expected = {
        "_class_name": "T2IAdapter", "adapter_type": "full_adapter_xl", "in_channels": 1,
        "channels": [16, 16, 32], "downscale_factor": 8,
    }  # fmt: skip
    assert {key: config[key] for key in expected} == expected
    written, state = load_file(out / WEIGHTS), load_file(tmp_path / "state.safetensors")
    for key, value in written.items():
        assert value.dtype == torch.float16
        assert torch.equal(value, state[f"ema.{key}"].half())
    recipe = json.loads((out / "training.json").read_text())
    assert recipe["step"] == 4 and recipe["config"]["control_type"] == "sketch"
    assert set(recipe["figures"]["validation_v_loss"]) == {"100", "300", "500", "700", "900"}
    adapter = load_branch(
        ControlAdapter, str(out), load_backbone(model, device="cpu", dtype="float32")
    )
    assert [level.shape[1] for level in adapter.features(torch.zeros(1, 1, 32, 32))] == [16, 16, 32]


def test_validation_tells_what_the_adapter_changes(
    model: str, folder: Path, tmp_path: Path
) -> None:
    trainer = AdapterTrainer(folder, tmp_path, tiny(model))
    first, curves = trainer.report()
    names = ("validation_v_loss", "validation_v_loss_without_adapter")
    with_it, without = (first[name] for name in names)
    # Bfloat16 rounds otherwise where something is added, be it nothing.
    rounding = {"abs": 2e-3}
    assert with_it.keys() == without.keys() and with_it != pytest.approx(without, **rounding)
    assert curves["validation_v_loss/500"] == pytest.approx(with_it["500"], abs=1e-5)
    for tensor in trainer.state.average.values():
        tensor.zero_()
    # An adapter that adds nothing is none.
    row = trainer.report()[0]
    assert row[names[0]] == pytest.approx(row[names[1]], **rounding)
    assert row[names[1]] == without
    assert all(tensor.any() for tensor in trainer.state.network.state_dict().values())


def test_timesteps_lean_to_the_noisy_ones_by_the_cube() -> None:
    u = (np.arange(20000) + 0.5) / 20000
    t = noisy_timesteps(u, 3.0)
    assert (t.min(), t.max()) == (0, 999)
    # 1 - u^3 > 0.3 where u < 0.7^(1/3).
    assert (t >= 300).mean() == pytest.approx(0.7 ** (1 / 3), abs=1e-3)
    plain = noisy_timesteps(u, 1.0)
    assert np.bincount(plain // 100).tolist() == [2000] * 10
    assert noisy_timesteps(np.zeros(1), 3.0).tolist() == [999]


def test_holes_only_grow_and_a_share_is_everything() -> None:
    def drawn(share: float) -> np.ndarray:
        return np.stack([large_hole(24, share, np.random.default_rng(n)) for n in range(300)])

    some, none = drawn(0.5), drawn(0.0)
    assert set(np.unique(some)) == {0.0, 1.0}
    # Besides the share that was asked for, one of two holes is everything in 28 of 100 cases.
    assert some.all((1, 2)).mean() == pytest.approx(0.64, abs=0.09)
    assert none.all((1, 2)).mean() == pytest.approx(0.28, abs=0.09)
    for number, hole in enumerate(none):
        rng = np.random.default_rng(number)
        rng.random()
        assert (hole >= random_mask(24, rng)).all()
    assert drawn(1.0).all()


def test_bad_requests_are_refused(model: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="multiple of 8"):
        train_folder(AdapterTrainer, folder, tmp_path / "a", tiny(str(built("sd1")), resolution=90))
    with pytest.raises(InputError, match="resume"):
        train_folder(AdapterTrainer, folder, tmp_path / "b", tiny(model), resume=True)
    with pytest.raises(InputError, match="neither 'embedded'"):
        train_folder(AdapterTrainer, folder, tmp_path / "c", tiny("no such model"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no readable picture"):
        train_folder(AdapterTrainer, tmp_path / "empty", tmp_path / "d", tiny(model))
    train_folder(AdapterTrainer, folder, tmp_path / "e", tiny(model, steps=1))
    with pytest.raises(InputError, match="not of an adapter for the model"):
        train_folder(
            AdapterTrainer,
            folder,
            tmp_path / "e",
            tiny(str(built("sd1")), resolution=64),
            resume=True,
        )


def test_the_command_trains_and_refuses_in_one_sentence(
    model: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [f"model={model}", "steps=1", "batch=1", "resolution=32"]
    command = ["train", "adapter", str(folder), "-o", str(tmp_path / "out")]
    assert main([*command, *(x for item in sets for x in ("--set", item))]) == 0
    assert "pictures to train on" in capsys.readouterr().out
    assert (tmp_path / "out" / "adapter" / WEIGHTS).is_file()
    for wrong in (
        ["--set", "control_type=pose"],
        ["--set", "batch=1,2"],
        ["--set", "steps=0"],
        ["--set", "colour=1"],
    ):
        assert main([*command, *wrong]) == 2
    assert main(["train", "adapter", "no such folder", "-o", str(tmp_path / "new")]) == 2
    assert main(["train", "adapter", str(folder), "-o", str(tmp_path / "new"), "--resume"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 6 and all(line.endswith((".", "?")) for line in errors)
    assert not (tmp_path / "new").exists()
