"""Sampling with diffusers' schedulers: against our own DDIM loop, and with a known answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from checkpoints import loaded
from inlay.diffusion.sample import Level, Sampler, sample
from inlay.diffusion.unet import DdpmLevels, UNetBackbone
from inlay.errors import InputError

CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "skip_prk_steps": True,
}


def make_solver(name: str, config: dict[str, Any], steps: int = 20) -> Sampler:
    b = loaded("sd1")
    return UNetBackbone(b.unet, b.vae, b.text, config, name="x").solver(name, steps)


def pull(z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """A made-up network: eps is a fixed function of the sample and the level."""
    eps = torch.tanh(z * 0.7 + level.timestep / 1000)
    return eps, level.x0(z, eps)


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_ddim_by_either_loop(strength: float) -> None:
    solver = make_solver("DDIMScheduler", {**CONFIG, "set_alpha_to_one": False}, 20)
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(1, 4, 6, 6, generator=generator)
    draw = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    theirs = solver(
        pull,
        source,
        strength=strength,
        generator=torch.Generator().manual_seed(1),
    )
    levels = DdpmLevels({**CONFIG, "set_alpha_to_one": False}).run(20, strength)
    begin = draw if strength == 1 else levels[0].add_noise(source, draw)
    ours = sample(pull, begin, levels, noise=torch.randn_like)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "LMSDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
    ],
)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_every_solver_finds_what_the_network_knows(name: str, strength: float) -> None:
    solver = make_solver(name, CONFIG, 12)
    clean = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)

    def oracle(z: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        return level.eps(z, clean), clean

    result = solver(
        oracle,
        torch.zeros_like(clean),
        strength=strength,
        generator=torch.Generator().manual_seed(1),
    )
    assert (result - clean).abs().max() < 0.2


def test_outside_the_mask_the_source_comes_back_exactly() -> None:
    solver = make_solver("EulerDiscreteScheduler", CONFIG, 5)
    generator = torch.Generator().manual_seed(2)
    source = torch.randn(1, 4, 8, 8, generator=generator)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, 3:7] = 1
    result = solver(
        pull,
        source,
        strength=1.0,
        generator=generator,
        keep_outside=mask,
    )
    outside = (mask == 0).expand_as(source)
    assert torch.equal(result[outside], source[outside])
    assert (result - source)[~outside].abs().max() > 0.1


def test_no_strength_returns_the_source() -> None:
    solver = make_solver("DDIMScheduler", CONFIG, 10)
    source = torch.ones(1, 4, 4, 4)
    result = solver(
        pull,
        source,
        strength=0.0,
        generator=torch.Generator(),
    )
    assert torch.equal(result, source)


@pytest.mark.parametrize(
    "name",
    [
        "NoSuchScheduler",
        "UNet2DModel",
        "FlowMatchEulerDiscreteScheduler",
        "RePaintScheduler",
        "DDIMInverseScheduler",
        "CogVideoXDPMScheduler",
    ],
)
def test_what_is_not_a_usable_scheduler_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="does not sample this model"):
        make_solver(name, CONFIG)


@pytest.mark.parametrize("name", ["EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"])
def test_zero_terminal_snr_is_followed(name: str) -> None:
    zero = {**CONFIG, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert make_solver(name, {**zero, "prediction_type": "v_prediction"}) is not None


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerAncestralDiscreteScheduler"])
def test_as_many_steps_as_there_are_levels(name: str) -> None:
    assert make_solver(name, CONFIG, 1000) is not None
    assert DdpmLevels(CONFIG).run(1000)[0].timestep == 999
