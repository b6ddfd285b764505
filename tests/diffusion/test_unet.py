"""Sampling with diffusers' schedulers: against our own DDIM loop, and with a known answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline
from skimage import data
from torch import Tensor

from checkpoints import built, loaded
from inlay import Composer
from inlay.diffusion.conditions import Conditions
from inlay.diffusion.sample import Level, Sampler, sample
from inlay.diffusion.unet import DdpmLevels, UNetBackbone
from inlay.errors import InputError
from photos import cup

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


@pytest.mark.parametrize("scale", [1.0, 8.5])
def test_a_consistency_model_samples_as_diffusers_pipeline_does(scale: float) -> None:
    backbone = loaded("lcm")
    pipe = LatentConsistencyModelPipeline.from_pretrained(built("lcm"))
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        "a cat", height=128, width=128, num_inference_steps=4, guidance_scale=scale,
        generator=torch.Generator().manual_seed(3), output_type="latent",
    ).images  # fmt: skip
    conditions = Conditions(backbone.embed(["a cat"], (128, 128)), guidance_scale=scale)
    ours = backbone.solver("LCMScheduler", 4)(
        backbone.denoiser(conditions), torch.zeros(1, 4, 16, 16), strength=1.0,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_consistency_model_is_told_its_scale_and_has_the_levels_it_was_distilled_at() -> None:
    backbone, z = loaded("lcm"), torch.ones(1, 4, 16, 16)
    levels = backbone.levels.run(4)
    assert [level.timestep for level in levels] == [999, 759, 499, 259, 0]
    assert len(backbone.levels.run(500)) == 51
    text, negative = (backbone.embed([word], (128, 128)) for word in ("a cat", "cups"))
    said = [
        backbone.denoiser(Conditions(text, other, scale))(z, levels[1])[0]
        for other, scale in ((None, 3.0), (negative, 3.0), (None, 8.0))
    ]
    # It is not guided, so a negative prompt is not read.
    assert torch.equal(said[0], said[1]) and not torch.allclose(said[0], said[2], atol=1e-4)


@pytest.mark.parametrize("method", ["cdc", "freecompose", "phd", "inpaint"])
@pytest.mark.parametrize("model", ["lcm", "turbo"])
def test_few_steps_run_and_what_does_not_fit_them_is_said(model: str, method: str) -> None:
    def notes(**told: Any) -> str:
        composer = Composer(str(built(model)))
        few: dict[str, float] = {"num_inference_steps": 4}
        if method == "freecompose":
            few = {"num_iterations": 2, "foreground_weight": 0, "background_weight": 0}
        if method == "phd":
            few["harmonize_guidance_scale"] = 1.0
        settings = {"method": method, **few, **told}
        if method == "inpaint":
            result = composer.remove(data.astronaut(), box=(60, 60, 100, 100), **settings)
        else:
            result = composer.compose(data.astronaut(), cup(), box=(60, 60, 200, 200), **settings)
        return " ".join(result.record["notes"])

    guided, free = notes(guidance_scale=5), notes(guidance_scale=1)
    assert "distilled" not in free
    assert ("distilled for 1 to 8 steps without guidance" in guided) == (model == "turbo")
    if method != "freecompose":
        assert "distilled for 1 to 8 steps" in notes(guidance_scale=1, num_inference_steps=10)
