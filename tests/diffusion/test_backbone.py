"""A checkpoint as the methods see it, against direct calls of the libraries and closed forms."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

import flows
from checkpoints import BUILDERS, built, loaded, predictions, raw
from inlay.checkpoints.load import load_backbone
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.conditions import Conditions
from inlay.diffusion.sample import Level
from inlay.diffusion.text import Embedding, TextStack, join
from inlay.diffusion.unet import UNetBackbone
from inlay.errors import InputError

SIZE = (64, 128)
PLAIN = [name for name in BUILDERS if "inpaint" not in name]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mask_inputs(backbone: Backbone, rows: int = 1) -> tuple[Any, Any]:
    if backbone.kind == "plain":
        return None, None
    return (draw(rows, 1, 8, 16, seed=5) > 0).float(), draw(rows, 4, 8, 16, seed=6)


@pytest.fixture(params=list(BUILDERS))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return loaded(request.param)


@pytest.mark.parametrize(
    ("name", "kind", "family", "prediction", "multiple"),
    [
        ("sd1", "plain", "sd1", "epsilon", 8),
        ("sd1_inpaint", "inpaint", "sd1", "epsilon", 8),
        ("sd2_v", "plain", "sd2", "v_prediction", 8),
        ("sdxl", "plain", "sdxl", "epsilon", 8),
        ("sdxl_inpaint", "inpaint", "sdxl", "epsilon", 8),
    ],
)
def test_a_checkpoint_says_what_it_is(
    name: str, kind: str, family: str, prediction: str, multiple: int
) -> None:
    b = loaded(name)
    assert (b.kind, b.family, b.prediction_type, b.multiple) == (kind, family, prediction, multiple)
    assert (b.latent_channels, b.factor, b.native_size) == (4, 8, 128)
    assert isinstance(b, UNetBackbone)
    expected = DDIMScheduler.from_config(b.scheduler_config)
    rows = b.levels.rows(torch.arange(len(b.levels)))
    assert torch.equal(rows.signal.flatten(), expected.alphas_cumprod.sqrt())
    assert torch.equal(rows.noise.flatten(), (1 - expected.alphas_cumprod).sqrt())
    assert b.levels[500].signal == pytest.approx(float(rows.signal[500]))
    levels = b.levels.run(50)
    assert levels[-2].timestep == 1 and levels[0].timestep == 981
    assert (levels[-1].noise == 0) == (family == "sdxl")


def test_one_guided_batch_equals_two_separate_calls(backbone: Backbone) -> None:
    z, t, scale = draw(1, 4, 8, 16), 321, 5.0
    cond, uncond = backbone.embed(["a cat"], SIZE), backbone.embed(["coffee"], SIZE)
    masks = mask_inputs(backbone)
    eps, x0 = predictions(backbone, z, t, cond, uncond, scale, *masks)
    one = raw(backbone, z, t, cond, *masks)
    two = raw(backbone, z, t, uncond, *masks)
    assert not torch.allclose(one, two, atol=1e-4)
    guided = two + scale * (one - two)
    level = backbone.levels[t]
    expected = level.estimates(guided, z, backbone.prediction_type)[0]
    assert torch.allclose(eps, expected, atol=1e-5)
    assert torch.allclose(level.add_noise(x0, eps), z, atol=1e-5)


def test_guidance_of_one_or_no_second_prompt_runs_one_row(backbone: Backbone) -> None:
    z, cond = draw(1, 4, 8, 16), backbone.embed(["a cat"], SIZE)
    masks = mask_inputs(backbone)
    rows: list[int] = []
    hook = backbone.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        alone, _ = predictions(backbone, z, 10, cond, None, 7.5, *masks)
        same, _ = predictions(backbone, z, 10, cond, backbone.embed(["x"], SIZE), 1.0, *masks)
        predictions(backbone, z, 10, cond, backbone.embed(["x"], SIZE), 2.0, *masks)
    finally:
        hook.remove()
    assert rows == [1, 1, 2]
    assert torch.equal(alone, same)


def test_rows_of_a_batch_do_not_mix(backbone: Backbone) -> None:
    z = draw(2, 4, 8, 16)
    cond = backbone.embed(["a cat", "two cups"], SIZE)
    uncond = backbone.embed([""], SIZE)
    mask, latent = mask_inputs(backbone, rows=2)
    both, _ = predictions(backbone, z, 500, cond, uncond, 3.0, mask, latent)
    for row, prompt in enumerate(["a cat", "two cups"]):
        part = slice(row, row + 1)
        single, _ = predictions(
            backbone,
            z[part],
            500,
            backbone.embed([prompt], SIZE),
            uncond,
            3.0,
            None if mask is None else mask[part],
            None if latent is None else latent[part],
        )
        assert torch.allclose(both[part], single, atol=1e-5)


def test_an_inpainting_unet_is_fed_latent_then_mask_then_masked_latent() -> None:
    b = loaded("sd1_inpaint")
    z, t = draw(2, 4, 8, 16), 77
    mask, latent = mask_inputs(b)
    cond = b.embed(["a cat", "coffee"], SIZE)
    inputs = torch.cat([z, mask.expand(2, -1, -1, -1), latent.expand(2, -1, -1, -1)], 1)
    expected = b.unet(inputs, t, encoder_hidden_states=cond.hidden).sample
    assert torch.equal(raw(b, z, t, cond, mask, latent), expected)


def test_a_plain_unet_passes_over_masks_that_a_sampler_must_then_keep() -> None:
    plain, inpaint = loaded("sd1"), loaded("sd1_inpaint")
    z, (mask, latent) = draw(1, 4, 8, 16), mask_inputs(inpaint)
    text = plain.embed(["a"], SIZE)
    assert torch.equal(raw(plain, z, 1, text, mask, latent), raw(plain, z, 1, text))
    conditions = Conditions(text, mask=mask, masked_latent=latent)
    assert plain.denoiser(conditions).keep_outside is mask
    assert inpaint.denoiser(conditions).keep_outside is None
    x = draw(1, 3, *SIZE)
    assert plain.encode_masked(x, mask) is None
    erased = mask.repeat_interleave(8, 2).repeat_interleave(8, 3)
    seen = inpaint.encode_masked(x, mask)
    assert seen is not None and torch.equal(seen, inpaint.encode(x * (1 - erased)))


def test_wrong_mask_inputs_and_row_counts_are_refused() -> None:
    plain, inpaint = loaded("sd1"), loaded("sd1_inpaint")
    z, (mask, latent) = draw(1, 4, 8, 16), mask_inputs(inpaint)
    for wrong in [(None, None), (mask, None), (None, latent)]:
        with pytest.raises(ValueError, match="needs a mask"):
            raw(inpaint, z, 1, inpaint.embed(["a"], SIZE), *wrong)
    with pytest.raises(ValueError, match="2 rows"):
        predictions(plain, draw(3, 4, 8, 16), 1, plain.embed(["a", "b"], SIZE))
    with pytest.raises(ValueError, match="at least one"):
        plain.embed([], SIZE)


def with_schedule(**changes: Any) -> UNetBackbone:
    b = loaded("sd1")
    assert isinstance(b, UNetBackbone)
    return UNetBackbone(b.unet, b.vae, b.text, b.scheduler_config | changes, name="x")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
@settings(max_examples=20, deadline=None)
@given(t=st.integers(1, 999), seed=st.integers(0, 1000))
def test_what_a_model_predicts_becomes_noise_and_picture(kind: str, t: int, seed: int) -> None:
    level = loaded("sd1").levels[t]
    signal, noise = float(level.signal), float(level.noise)
    x0, eps = draw(1, 4, 3, 5, seed=seed), draw(1, 4, 3, 5, seed=seed + 1)
    z = signal * x0 + noise * eps
    v = signal * eps - noise * x0
    output = {"epsilon": eps, "v_prediction": v, "sample": x0, "flow_prediction": eps - x0}[kind]
    if kind == "flow_prediction":
        level = Level(1 - t / 1000, t / 1000, t)
        signal, noise = 1 - t / 1000, t / 1000
        z = signal * x0 + noise * eps
    assert torch.equal(level.output(x0, eps, kind), output)
    # The step from z back divides by the signal or the noise, and magnifies rounding as much.
    assert torch.allclose(level.estimates(output, z, kind)[0], eps, atol=1e-5 / noise)
    assert torch.allclose(level.estimates(output, z, kind)[1], x0, atol=1e-5 / signal)
    assert torch.allclose(level.x0(z, eps), x0, atol=1e-5 / signal)
    assert torch.allclose(level.eps(z, x0), eps, atol=1e-5 / noise)


def test_at_zero_terminal_snr_the_picture_comes_from_v() -> None:
    b = with_schedule(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
    assert b.levels[999].signal == 0 and b.levels.run(4)[-1].noise == 0
    assert [level.timestep for level in b.levels.run(4)[:-1]] == [999, 749, 499, 249]
    z, cond = draw(1, 4, 8, 16), b.embed(["a cat"], SIZE)
    eps, x0 = predictions(b, z, 999, cond)
    assert torch.equal(eps, z)
    assert torch.equal(x0, -raw(b, z, 999, cond))
    with pytest.raises(ValueError, match="signal is 0"):
        b.levels[999].x0(z, eps)


def test_unknown_predictions_and_mismatched_parts_are_refused() -> None:
    b = loaded("sd1")
    with pytest.raises(InputError, match="flow"):
        with_schedule(prediction_type="flow")
    other = loaded("sdxl")
    with pytest.raises(InputError, match="width 32"):
        UNetBackbone(b.unet, b.vae, other.text, b.scheduler_config, name="x")


def test_encode_and_decode_apply_the_scaling_factor(backbone: Backbone) -> None:
    x = draw(2, 3, *SIZE).clamp(-1, 1)
    factor = backbone.vae.config.scaling_factor
    assert factor in (0.18215, 0.13025)
    z = backbone.encode(x)
    assert z.shape == (2, 4, SIZE[0] // 8, SIZE[1] // 8)
    assert torch.equal(z, backbone.vae.encode(x).latent_dist.mode() * factor)
    assert torch.equal(backbone.encode(x), z)
    y = backbone.decode(z)
    assert y.shape == x.shape
    assert torch.equal(y, backbone.vae.decode(z / factor).sample)


def test_sd_text_is_the_encoders_last_hidden_state() -> None:
    b = loaded("sd2_v")
    tokenizer, encoder = b.text.tokenizers[0], b.text.encoders[0]
    prompts = ["a cat on a table", "", "a photo of " + "coffee " * 60, "Ünïcödé 🐈"]
    ids = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert [b.text.token_ids(prompt) for prompt in prompts] == ids.tolist()
    cond = b.embed(prompts, SIZE)
    assert cond.hidden.shape == (4, 77, 32) and cond.added is None and len(cond) == 4
    assert torch.allclose(cond.hidden, encoder(ids).last_hidden_state, atol=1e-6)


def test_a_prompt_that_is_too_long_is_cut_with_a_word_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert len(loaded("sd1").text.token_ids("cat " * 300)) == 77
    assert not caplog.text
    assert len(flows.loaded("sd3").text.token_ids("cat " * 300)) == 77
    assert "first 256" in caplog.text


def test_sdxl_text_is_what_diffusers_makes_of_it() -> None:
    b = loaded("sdxl")
    pipe = StableDiffusionXLPipeline.from_pretrained(built("sdxl"), add_watermarker=False)
    hidden, _, pooled, _ = pipe.encode_prompt("a cat", do_classifier_free_guidance=True)
    _, zeros, _, pooled_zeros = pipe.encode_prompt("a cat", do_classifier_free_guidance=True)
    ids = pipe._get_add_time_ids(SIZE, (0, 0), SIZE, torch.float32, 24)
    cond = b.embed(["a cat", ""], SIZE)
    assert cond.added is not None
    assert torch.allclose(cond.hidden, torch.cat([hidden, zeros]), atol=1e-6)
    assert torch.allclose(cond.added["text_embeds"], torch.cat([pooled, pooled_zeros]), atol=1e-6)
    assert torch.equal(cond.added["time_ids"], ids.expand(2, -1))
    assert cond.hidden[1].abs().max() == 0


@pytest.mark.parametrize("name", PLAIN)
def test_a_guided_run_equals_the_pipeline_of_diffusers(name: str) -> None:
    b, scale, steps = loaded(name), 4.0, 3
    assert isinstance(b, UNetBackbone)
    scheduler = DDIMScheduler.from_config(b.scheduler_config, clip_sample=False)
    xl = b.family == "sdxl"
    cls: Any = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    options = {"add_watermarker": False} if xl else {"safety_checker": None}
    pipe = cls.from_pretrained(built(name), scheduler=scheduler, **options)
    pipe.set_progress_bar_config(disable=True)
    start = draw(1, 4, 16, 16)
    expected = pipe(
        "a cat",
        num_inference_steps=steps,
        guidance_scale=scale,
        latents=start.clone(),
        height=128,
        width=128,
        output_type="latent",
    ).images
    scheduler.set_timesteps(steps)
    cond, uncond = b.embed(["a cat"], (128, 128)), b.embed([""], (128, 128))
    alphas = scheduler.alphas_cumprod
    z = start
    for t in scheduler.timesteps.tolist():
        following = t - 1000 // steps
        a = float(alphas[following] if following >= 0 else scheduler.final_alpha_cumprod)
        eps, x0 = predictions(b, z, t, cond, uncond, scale)
        z = a**0.5 * x0 + (1 - a) ** 0.5 * eps
    assert torch.allclose(z, expected, atol=2e-4, rtol=1e-4)


def test_the_text_cache_gives_the_same_tensor_and_stays_small() -> None:
    b = loaded("sdxl")
    text = TextStack(b.text.tokenizers, b.text.encoders, cache_size=2)
    first = text.embed(["a cat"], SIZE)
    again = text.embed(["a cat"], (32, 32))
    assert again.hidden is first.hidden
    assert first.added is not None and again.added is not None
    assert again.added["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]]
    assert first.added["time_ids"].tolist() == [[64, 128, 0, 0, 64, 128]]
    second = text.embed(["b"], SIZE).hidden
    assert text.embed(["a cat"], SIZE).hidden is first.hidden
    text.embed(["c"], SIZE)  # "b" was used longest ago
    assert text.embed(["a cat"], SIZE).hidden is first.hidden
    assert text.embed(["b"], SIZE).hidden is not second
    text.clear()
    fresh = text.embed(["a cat"], SIZE).hidden
    assert fresh is not first.hidden and torch.equal(fresh, first.hidden)


def test_conditionings_join_and_repeat() -> None:
    b = loaded("sdxl")
    one, two = b.embed(["a"], SIZE), b.embed(["b", "c"], SIZE)
    joined = join(one, two)
    expected = b.embed(["a", "b", "c"], SIZE)
    assert torch.equal(joined.hidden, expected.hidden)
    assert joined.added is not None and expected.added is not None
    assert all(torch.equal(joined.added[key], expected.added[key]) for key in expected.added)
    assert two.rows(2) is two
    wide = one.rows(3)
    assert wide.added is not None and len(wide) == len(wide.added["time_ids"]) == 3
    assert Embedding(one.hidden).rows(2).added is None


def test_weights_are_frozen_and_gradients_reach_the_inputs() -> None:
    b = loaded("sd1")
    assert not any(p.requires_grad for m in (b.unet, b.vae) for p in m.parameters())
    x = draw(1, 3, 64, 64).requires_grad_()
    b.decode(b.encode(x)).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    z = draw(1, 4, 8, 8)
    assert not predictions(b, z, 5, b.embed(["a"], SIZE))[0].requires_grad


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["sd1_inpaint", "sdxl"])
def test_half_precision_stays_near_and_hands_out_float32(name: str, dtype: str) -> None:
    full, half = loaded(name), loaded(name, dtype)
    assert half.dtype == getattr(torch, dtype) and half.vae.dtype == torch.float32
    z, masks = draw(1, 4, 8, 16), mask_inputs(full)

    def noise(b: Backbone) -> torch.Tensor:
        cond, uncond = b.embed(["a cat"], SIZE), b.embed([""], SIZE)
        return predictions(b, z, 400, cond, uncond, 2.0, *masks)[0]

    exact, rough = noise(full), noise(half)
    assert rough.dtype == torch.float32
    error = (rough - exact).std() / exact.std()
    assert error < (0.05 if dtype == "bfloat16" else 0.01)
    assert half.decode(half.encode(draw(1, 3, 64, 64))).dtype == torch.float32


def test_sizes_survive_bfloat16() -> None:
    added = loaded("sdxl", "bfloat16").embed(["a"], (1000, 1016)).added
    assert added is not None
    assert added["time_ids"].tolist() == [[1000, 1016, 0, 0, 1000, 1016]]


def test_an_autoencoder_that_is_safe_in_float16_runs_in_it(tmp_path: Any) -> None:
    import json
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(built("sd1"), folder)
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"force_upcast": False}))
    assert load_backbone(folder, device="cpu", dtype="float16").vae.dtype == torch.float16
    assert load_backbone(folder, device="cpu", dtype="bfloat16").vae.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_none_is_refused_and_a_sum_that_overflows_is_not(
    dtype: torch.dtype, odd: float
) -> None:
    backbone = loaded("sd1")
    values = torch.full((1, 4, 8, 8), 0.9 * torch.finfo(dtype).max, dtype=dtype)
    backbone.check_finite(values, "network", dtype)
    values[0, 1, 2, 3] = odd
    with pytest.raises(InputError, match=r"network of the model .* gave NaN or infinity"):
        backbone.check_finite(values, "network", dtype)


class FromTheDevice(TorchFunctionMode):
    """Lets what is on "meta", which holds no numbers, come back to the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.to and args[0].is_meta and "cpu" in map(str, args[1:]):
            return torch.zeros(args[0].shape, dtype=args[0].dtype)
        return func(*args, **(kwargs or {}))


def on_meta(module: Any) -> bool:
    return all(parameter.is_meta for parameter in module.parameters())


class Numberless(UNetBackbone):
    def check_finite(self, x: torch.Tensor, part: str, dtype: torch.dtype) -> None:
        pass


@pytest.mark.parametrize("memory", ["device", "balanced", "low"])
def test_what_is_on_the_device_while_a_network_runs(memory: str) -> None:
    source = copy.deepcopy(loaded("sdxl"))
    config, text = source.scheduler_config, source.text
    text.clear()
    backbone = Numberless(
        source.network, source.vae, text, config, name="x", device=torch.device("meta")
    )
    backbone.place(memory)
    unet = backbone.network
    parts = {
        "unet": unet,
        "vae": backbone.vae.decoder,
        "one": text.encoders[0],
        "two": text.encoders[1],
    }
    one, other = unet.conv_in, unet.conv_out
    seen: dict[str, list[str]] = {}

    def look(name: str) -> Any:
        def hook(*_: Any) -> None:
            seen[name] = [each for each, part in parts.items() if on_meta(part)]

        return hook

    layers: list[bool] = []
    for name, part in parts.items():
        part.register_forward_pre_hook(look(name))
    one.register_forward_pre_hook(lambda *_: layers.extend([on_meta(one), on_meta(other)]))
    with torch.inference_mode(), FromTheDevice():
        z = backbone.encode(torch.zeros(1, 3, 128, 128))
        told = Conditions(backbone.embed(["a cat"], (128, 128)))
        x0 = backbone.denoiser(told)(z, backbone.levels[500])[1]
        assert backbone.decode(x0).shape == (1, 3, 128, 128)
    everything = list(parts)
    expected = {
        "device": {name: everything for name in parts},
        "balanced": {name: [name] for name in parts},
        "low": {name: ["vae"] if name == "vae" else [] for name in parts},
    }
    assert seen == expected[memory]
    assert layers == [True, memory != "low"]


@pytest.mark.parametrize("memory", ["balanced", "low"])
@pytest.mark.parametrize("name", ["sd1_inpaint", "sdxl"])
def test_where_weights_are_changes_no_bit(name: str, memory: str) -> None:
    backbone, known = load_backbone(built(name), device="cpu", memory=memory), loaded(name)
    weights = {key: x.clone() for key, x in backbone.network.state_dict().items()}
    picture = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.ones(1, 1, 16, 16)
    made = []
    for each in (known, backbone):
        with torch.inference_mode():
            z = each.encode(picture)
            both = [each.embed([text], (128, 128)) for text in ("a (cat:1.3)", "two")]
            seen = each.encode_masked(picture, mask)
            told = Conditions(*both, 4.0, mask=mask, masked_latent=seen)
            made.append(each.decode(each.denoiser(told)(z, each.levels[500])[1]))
    assert torch.equal(*made)
    after = backbone.network.state_dict()
    assert all(torch.equal(after[key], x) for key, x in weights.items())


def test_memory_is_one_of_four_words() -> None:
    with pytest.raises(
        InputError, match="memory is 'little'; expected auto, low, balanced or fast"
    ):
        load_backbone("embedded", device="cpu", memory="little")
    assert load_backbone(built("sd1"), device="cpu", memory="auto")._guests == []
