"""The branch beside a frozen U-Net: against direct calls of diffusers, and what it refuses."""

from __future__ import annotations

import functools
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import load, load_file, save_file

from checkpoints import BUILDERS, NOISE, WIDTH, loaded, predictions, raw
from inlay.checkpoints.load import load_branch
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.branches import (
    Harmonizer,
    correct,
    few_levels,
    new_harmonizer,
)
from inlay.diffusion.conditions import Conditions, Guide
from inlay.diffusion.text import Embedding
from inlay.diffusion.unet import PatchAutoencoder, UNetBackbone
from inlay.errors import InputError

NAMES = [*BUILDERS, "embedded-like"]
SIDE = 64
T = 321


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def embedded_like() -> Backbone:
    """Wired as the embedded checkpoint: 16 latent channels, patches of 4 pixels, predicts v."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        unet = UNet2DConditionModel(
            sample_size=16, in_channels=33, out_channels=16, block_out_channels=(16, 32),
            layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=WIDTH,
            attention_head_dim=2, norm_num_groups=8,
        )  # fmt: skip
        vae = PatchAutoencoder.fit(torch.rand(500, 48) * 2 - 1)
    schedule = {
        **NOISE, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing", "num_train_timesteps": 1000, "clip_sample": False,
    }  # fmt: skip
    return UNetBackbone(unet, vae, loaded("sd1").text, schedule, name="embedded-like")


def backbone_of(name: str) -> Backbone:
    return embedded_like() if name == "embedded-like" else loaded(name)


def awake(backbone: Backbone, seed: int = 0) -> Any:
    """A harmonizer that does something: what begins at zero is drawn instead."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = new_harmonizer(backbone)
        for parameter in network.parameters():
            if not parameter.detach().any():
                torch.nn.init.normal_(parameter, std=0.2)
    return network.requires_grad_(False).eval()


def inputs(backbone: Backbone, rows: int = 1) -> dict[str, Any]:
    """Latents, mask and masked latent, condition: a picture of SIDE pixels."""
    side, channels = SIDE // backbone.factor, backbone.latent_channels
    masks: tuple[Any, Any] = (None, None)
    if backbone.kind == "inpaint":
        masks = (draw(1, 1, side, side, seed=5) > 0).float(), draw(1, channels, side, side, seed=6)
    return {
        "z": draw(rows, channels, side, side, seed=1),
        "masks": masks,
        "condition": draw(1, 4, SIDE, SIDE, seed=2),
        "cond": backbone.embed(["a cat"], (SIDE, SIDE)),
        "uncond": backbone.embed(["coffee"], (SIDE, SIDE)),
    }


def literal(
    backbone: Backbone, network: Any, i: dict[str, Any], cond: Embedding, scale: float
) -> torch.Tensor:
    """The two calls of diffusers, written out."""
    sample = torch.cat([i["z"], *(m for m in i["masks"] if m is not None)], 1)
    options = {"encoder_hidden_states": cond.hidden, "added_cond_kwargs": cond.added}
    made = network(sample, T, controlnet_cond=i["condition"], **options)
    output: torch.Tensor = backbone.unet(
        sample,
        T,
        down_block_additional_residuals=[scale * x for x in made.down_block_res_samples],
        mid_block_additional_residual=scale * made.mid_block_res_sample,
        **options,
    ).sample
    return output


@pytest.mark.parametrize("name", NAMES)
def test_a_guided_prediction_is_that_of_diffusers(name: str) -> None:
    backbone = backbone_of(name)
    network, i = awake(backbone), inputs(backbone)
    for scale in (1.0, 0.4):
        guide = Guide(network, i["condition"], scale)
        found = raw(backbone, i["z"], T, i["cond"], *i["masks"], guide=guide)
        expected = literal(backbone, network, i, i["cond"], scale)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    without = raw(backbone, i["z"], T, i["cond"], *i["masks"])
    assert not torch.allclose(found, without, atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_a_new_one_fits_and_changes_nothing_yet(name: str) -> None:
    backbone = backbone_of(name)
    network, i = new_harmonizer(backbone), inputs(backbone)
    Harmonizer(network, backbone, name="new", hasher=str)
    unet = backbone.unet.state_dict()
    copied = {k: v for k, v in network.state_dict().items() if not k.startswith("controlnet_")}
    assert len(copied) > 50 and all(torch.equal(v, unet[k]) for k, v in copied.items())
    guide = Guide(network, i["condition"])
    found = raw(backbone, i["z"], T, i["cond"], *i["masks"], guide=guide)
    assert torch.equal(found, raw(backbone, i["z"], T, i["cond"], *i["masks"]))


@pytest.mark.parametrize("name", ["sd1", "sdxl_inpaint", "embedded-like"])
def test_scale_0_is_the_path_without_it(name: str) -> None:
    backbone = backbone_of(name)
    i = inputs(backbone)
    guide = Guide(awake(backbone), i["condition"], 0.0)
    both = (i["cond"], i["uncond"], 3.0, *i["masks"])
    for found, expected in zip(
        predictions(backbone, i["z"], T, *both, guide=guide),
        predictions(backbone, i["z"], T, *both),
        strict=True,
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_both_rows_of_a_guided_batch_are_guided(name: str) -> None:
    backbone = backbone_of(name)
    network, i = awake(backbone), inputs(backbone)
    guide = Guide(network, i["condition"], 0.7)
    one, two = (literal(backbone, network, i, i[row], 0.7) for row in ("cond", "uncond"))
    expected = two + 5 * (one - two)
    both = (i["cond"], i["uncond"], 5.0, *i["masks"])
    eps, x0 = predictions(backbone, i["z"], T, *both, guide=guide)
    level, kind = backbone.levels[T], backbone.prediction_type
    wanted = level.estimates(expected, i["z"], kind)[0]
    torch.testing.assert_close(eps, wanted, atol=1e-4, rtol=1e-4)
    wanted = level.estimates(expected, i["z"], kind)[1]
    torch.testing.assert_close(x0, wanted, atol=1e-3, rtol=1e-4)
    alone, _ = predictions(backbone, i["z"], T, *both, guide=guide)
    torch.testing.assert_close(alone, eps, atol=0, rtol=0)


def test_each_row_may_have_a_condition_of_its_own() -> None:
    backbone = embedded_like()
    network, i = awake(backbone), inputs(backbone, rows=2)
    conditions = torch.cat([i["condition"], draw(1, 4, SIDE, SIDE, seed=9)])
    guide, cond = Guide(network, conditions), i["cond"].rows(2)
    found = predictions(backbone, i["z"], T, cond, i["uncond"], 2.0, *i["masks"], guide=guide)
    for row in range(2):
        z, part = i["z"][row : row + 1], slice(row, row + 1)
        alone = Guide(network, conditions[part])
        expected = predictions(
            backbone, z, T, i["cond"], i["uncond"], 2.0, *i["masks"], guide=alone
        )
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x[part], y, atol=1e-5, rtol=1e-4)


def test_a_guide_reads_the_pasted_picture_and_the_mask() -> None:
    backbone = embedded_like()
    harmonizer = Harmonizer(awake(backbone), backbone, name="awake", hasher=str)
    pasted, mask = draw(1, 3, SIDE, SIDE), (draw(1, 1, SIDE, SIDE) > 0).float()
    guide = harmonizer.guide(pasted, mask, 0.5)
    assert guide.scale == 0.5 and guide.network is harmonizer.network
    assert torch.equal(guide.condition, torch.cat([pasted, mask], 1))


@pytest.mark.parametrize("name", ["sd1", "sd1_inpaint", "embedded-like"])
@pytest.mark.parametrize("from_pasted", [False, True])
def test_correcting_is_ddim_whose_outside_stays(name: str, from_pasted: bool) -> None:
    backbone = backbone_of(name)
    i = inputs(backbone)
    guide = Guide(awake(backbone), i["condition"])
    pasted = 0.5 * draw(*i["z"].shape, seed=3)
    region = (draw(1, 1, *pasted.shape[2:], seed=4) > 0).float()
    hole = region if backbone.kind == "inpaint" else None
    timesteps = [999, 500, 200]
    levels = [backbone.levels[t] for t in timesteps]
    conditions = Conditions(
        i["cond"], i["uncond"], 2.0, mask=region, masked_latent=i["masks"][1], guide=guide
    )
    mean, spread = correct(
        backbone, conditions, pasted, levels, samples=3,
        generator=torch.Generator().manual_seed(8), from_pasted=from_pasted,
    )  # fmt: skip
    noise, ends = draw(3, *pasted.shape[1:], seed=8), []
    for n in noise[:, None]:
        z = n
        if from_pasted:
            z = levels[0].add_noise(pasted, n)
        for t, after in zip(timesteps, [*timesteps[1:], None], strict=True):
            eps, x0 = predictions(
                backbone, z, t, i["cond"], i["uncond"], 2.0, hole, i["masks"][1], guide=guide
            )
            x0 = region * x0 + (1 - region) * pasted
            z = x0 if after is None else backbone.levels[after].add_noise(x0, eps)
        ends.append(z)
    every = torch.cat(ends)
    torch.testing.assert_close(mean, every.mean(0, keepdim=True), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(
        spread, every.std(0, keepdim=True, correction=0), atol=1e-3, rtol=1e-3
    )
    outside = (region == 0).expand_as(mean)
    torch.testing.assert_close(mean[outside], pasted[outside], atol=1e-6, rtol=1e-5)
    assert spread[outside].abs().max() < 1e-6 < spread[~outside].min()


def test_a_single_step_gives_the_x0_of_the_first_prediction() -> None:
    backbone = embedded_like()
    i = inputs(backbone)
    guide, ones = Guide(awake(backbone), i["condition"]), torch.ones(1, 1, *i["z"].shape[2:])
    assert backbone.levels[999].signal == 0
    mean, spread = correct(
        backbone, Conditions(i["cond"], mask=ones, masked_latent=i["masks"][1], guide=guide),
        i["z"], few_levels(backbone, 1), generator=torch.Generator().manual_seed(8),
    )  # fmt: skip
    noise = draw(*i["z"].shape, seed=8)
    v = raw(backbone, noise, 999, i["cond"], ones, i["masks"][1], guide=guide)
    torch.testing.assert_close(mean, -v, atol=1e-6, rtol=1e-5)
    assert not spread.any()


def test_few_levels_begin_with_the_last_and_fall() -> None:
    backbone = embedded_like()

    def timesteps(steps: int, strength: float = 1.0) -> list[Any]:
        return [level.timestep for level in few_levels(backbone, steps, strength)]

    assert timesteps(1) == [999]
    assert timesteps(4) == [999, 749, 499, 249]
    assert timesteps(2, strength=0.5) == [499, 249]
    assert timesteps(5, strength=0.002) == [1, 0]


@pytest.mark.parametrize("timesteps", [[], [10, 500], [500, 500]])
def test_timesteps_that_do_not_fall_are_refused(timesteps: list[int]) -> None:
    backbone = embedded_like()
    i = inputs(backbone)
    guide, ones = Guide(awake(backbone), i["condition"]), torch.ones(1, 1, *i["z"].shape[2:])
    with pytest.raises(ValueError, match="falling"):
        correct(
            backbone, Conditions(i["cond"], mask=ones, masked_latent=i["masks"][1], guide=guide),
            i["z"], [backbone.levels[t] for t in timesteps], generator=torch.Generator(),
        )  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    awake(embedded_like()).save_pretrained(tmp_path / "harmonizer")
    return tmp_path / "harmonizer"


WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_what_was_saved_loads_frozen_and_predicts_the_same(saved: Path) -> None:
    backbone = embedded_like()
    harmonizer, i = load_branch(Harmonizer, str(saved), backbone), inputs(backbone)
    assert not any(p.requires_grad for p in harmonizer.network.parameters())
    assert len(harmonizer.hash) == 64
    assert harmonizer.hash == load_branch(Harmonizer, str(saved), backbone).hash
    condition = i["condition"]
    one, two = (
        raw(backbone, i["z"], T, i["cond"], *i["masks"], guide=guide)
        for guide in (
            harmonizer.guide(condition[:, :3], condition[:, 3:]),
            Guide(awake(backbone), condition),
        )
    )
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("in_channels", 9, "in_channels is 9, but the model's is 33"),
        ("block_out_channels", [16, 16], "block_out_channels is [16, 16]"),
        ("conditioning_channels", 3, "reads 3 channels"),
        ("conditioning_embedding_out_channels", [16, 32, 96, 256], "latent pixel is 8"),
        ("cross_attention_dim", 48, "cross_attention_dim is 48"),
    ],
)
def test_one_that_does_not_fit_is_refused(tmp_path: Path, key: str, value: Any, says: str) -> None:
    config = {**new_harmonizer(embedded_like()).config, key: value}
    ControlNetModel.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(InputError) as error:
        load_branch(Harmonizer, str(tmp_path), embedded_like())
    assert says in str(error.value) and str(error.value).count(". ") == 0


def test_broken_folders_are_refused_in_one_sentence(saved: Path, tmp_path: Path) -> None:
    backbone = embedded_like()

    def refused(name: str, says: str) -> None:
        with pytest.raises(InputError, match=says) as error:
            load_branch(Harmonizer, name, backbone)
        assert "\n" not in str(error.value)

    refused(str(tmp_path / "nowhere"), "neither 'embedded', a folder nor a hub id")
    refused(str(tmp_path), "no config.json")
    whole, config = (saved / WEIGHTS).read_bytes(), (saved / "config.json").read_text()
    (saved / WEIGHTS).write_bytes(whole[:-100])
    refused(str(saved), "not a whole .safetensors file")
    (saved / WEIGHTS).rename(saved / "diffusion_pytorch_model.bin")
    refused(str(saved), "pickle")
    tensors = load(whole)
    del tensors["conv_in.weight"]
    save_file(tensors, saved / WEIGHTS)
    for broken, says in (
        ("{", "not readable JSON"),
        (config.replace("ControlNetModel", "T2IAdapter"), "is a T2IAdapter"),
        (config, "lacks conv_in.weight"),
    ):
        (saved / "config.json").write_text(broken)
        refused(str(saved), says)


def test_embedded_is_there_and_fits_or_its_absence_is_said() -> None:
    folder = Path(str(files("inlay"))) / "assets" / "harmonizer"
    if not folder.exists():
        with pytest.raises(InputError, match="embedded harmonizer is not in this installation"):
            load_branch(Harmonizer, "embedded", embedded_like())
        return
    from inlay.checkpoints.load import load_backbone

    network = load_branch(Harmonizer, "embedded", load_backbone("embedded", device="cpu")).network
    written = load_file(folder / WEIGHTS)
    assert {str(x.dtype) for x in written.values()} == {"torch.float16"}
    assert any(network.state_dict()["controlnet_mid_block.weight"].flatten())
    assert json.loads((folder / "training.json").read_text())["config"]["model"] == "embedded"


def test_a_u_net_of_another_build_is_refused() -> None:
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(16, 32),
        layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=WIDTH,
        attention_head_dim=2, norm_num_groups=8, mid_block_type=None,
    )  # fmt: skip
    sd1 = loaded("sd1")
    assert isinstance(sd1, UNetBackbone)
    odd = UNetBackbone(unet, sd1.vae, sd1.text, sd1.scheduler_config, name="odd")
    with pytest.raises(InputError, match="U-Net of the model odd"):
        new_harmonizer(odd)
