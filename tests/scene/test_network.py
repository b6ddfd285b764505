"""The small networks by numpy: the same as by torch, and files that are none of theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from inlay.cli import main
from inlay.errors import InputError
from inlay.scene.network import Definition, Layers, cutter, load_layers, shadow
from inlay.training.network import Learner

Floats = NDArray[np.float32]
NETWORKS = [(cutter, (5, 256, 256)), (shadow, (4, 96, 64)), (shadow, (4, 16, 96))]


def flat(answers: Any) -> list[Any]:
    nested = isinstance(answers, tuple | list)
    return [one for part in answers for one in flat(part)] if nested else [answers]


def random_weights(definition: Definition, shape: tuple[int, int, int]) -> dict[str, Floats]:
    """As a training leaves them: no layer is zero, and normalisation has seen something."""
    torch.manual_seed(1)
    state = Learner(definition, shape).state_dict()
    for name, value in state.items():
        if name.endswith(("running_var", "1.weight", "norm.weight")):
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.normal_(std=0.1 if value.ndim < 2 else (value[0].numel()) ** -0.5)
    return {name: v.numpy() for name, v in state.items() if v.is_floating_point()}


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(("definition", "shape"), NETWORKS)
def test_numpy_says_what_torch_says(
    definition: Definition, shape: tuple[int, int, int], trained: bool, tmp_path: Path
) -> None:
    if trained:
        layers = load_layers(definition)
    else:
        save_file(random_weights(definition, shape), tmp_path / "model.safetensors")
        layers = load_layers(definition, tmp_path)
    learner = Learner(definition, shape)
    learner.load(layers)
    x = np.random.default_rng(0).uniform(0, 1, (2, *shape)).astype(np.float32)
    with torch.no_grad():
        wanted = flat(learner.eval()(torch.from_numpy(x)))
    got = flat(definition(layers, x))
    assert len(got) == len(wanted)
    for own, other in zip(got, wanted, strict=True):
        assert own.dtype == np.float32
        np.testing.assert_allclose(own, other.numpy(), atol=1e-4 * max(1, np.abs(own).max()))
        assert np.abs(own).max() > 0.01


@pytest.mark.parametrize(
    "change",
    [
        {"stem.0.weight": np.zeros((24, 5, 5, 5), np.float32)},
        {"judge.2.weight": None},
        {"stem.1.bias": np.full(24, np.nan, np.float32)},
        {"heads.3.bias": np.array(1.0, np.float32)},
        {"padding": np.zeros(1 << 25, np.float16)},
    ],
)
def test_a_file_of_another_network_is_refused(
    change: dict[str, Floats | None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {**load_layers(cutter).weights, **change}
    save_file({k: v for k, v in weights.items() if v is not None}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors is not of a cutter"):
        cutter(load_layers(cutter, tmp_path), np.zeros((1, 5, 256, 256), np.float32))
    from skimage import data, io

    io.imsave(tmp_path / "cat.png", data.chelsea())
    line = ["cut", str(tmp_path / "cat.png"), "--cut", str(tmp_path), "-o", str(tmp_path / "o.png")]
    assert main(line) == 2 and not (tmp_path / "o.png").exists()
    assert "is not of a cutter" in capsys.readouterr().err


def test_numbers_that_numpy_does_not_know(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(
        {"stem.0.weight": torch.zeros(1, dtype=torch.bfloat16)}, tmp_path / "model.safetensors"
    )
    with pytest.raises(InputError, match="is not of a cutter"):
        cutter(Layers("cutter", tmp_path), np.zeros((1, 5, 256, 256), np.float32))
