"""Flow-matching checkpoints: the same numbers as diffusers' own pipelines, and every method that
can run on them.
"""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FluxFillPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    QwenImageEditPipeline,
    QwenImagePipeline,
    StableDiffusion3Pipeline,
)
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import BatchFeature, Qwen2VLImageProcessorPil

from checkpoints import WIDTH
from flows import LATENT, built, loaded, one_file
from inlay import Box, Composer, InputError, Result
from inlay.checkpoints.hub import files_to_fetch, is_complete
from inlay.checkpoints.load import load_backbone
from inlay.diffusion.attention import HiddenRegion
from inlay.diffusion.branches import new_adapter, new_harmonizer
from inlay.diffusion.conditions import Conditions
from inlay.diffusion.sample import sample
from inlay.learning.lora import set_up
from inlay.learning.settings import LearnConfig
from inlay.methods.cdc import CdcSettings, LocalizedPull
from photos import Photo, cutout

PIPELINES = {
    "sd3": StableDiffusion3Pipeline,
    "flux": FluxPipeline,
    "flux_fill": FluxFillPipeline,
    "flux_kontext": FluxKontextPipeline,
    "qwen": QwenImagePipeline,
}
NAMES = [*PIPELINES, "qwen_edit"]
SIZE = (128, 128)
PROMPT, NEGATIVE, SCALE, STEPS = "a cat on a table", "a photo of 2 cups", 4.0, 5
FEW: dict[str, Any] = {"num_inference_steps": 3, "seed": 3, "guidance_scale": 3.0}


def noise(channels: int = LATENT) -> Tensor:
    return torch.randn(1, channels, 16, 16, generator=torch.Generator().manual_seed(0))


def hole() -> tuple[Tensor, Tensor]:
    """A picture (1, 3, H, W) in [0, 1] and a mask of its latent."""
    picture = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 3:11, 4:14] = 1
    return picture, mask


def conditions(name: str, prompt: str = PROMPT) -> Conditions:
    backbone, (picture, mask) = loaded(name), hole()
    shown = picture * 2 - 1
    return Conditions(
        backbone.embed([prompt], SIZE, 0, shown),
        backbone.embed([NEGATIVE], SIZE, 0, shown),
        guidance_scale=SCALE,
        mask=mask,
        masked_latent=backbone.encode_masked(shown, mask),
        reference=backbone.encode(shown) if backbone.edits else None,
    )


def trajectory(name: str, prompt: str = PROMPT) -> list[Tensor]:
    """The latents after each of our steps."""
    backbone, latents = loaded(name), []
    with torch.inference_mode():
        sample(
            backbone.denoiser(conditions(name, prompt)),
            noise(),
            backbone.levels.run(STEPS),
            noise=torch.zeros_like,
            progress=lambda step: latents.append(step.z),
        )
    return latents


@cache
def reference(name: str) -> list[Tensor]:
    """The latents after each step of diffusers' pipeline of the same folder."""
    if name == "qwen_edit":
        return edited()
    pipe: Any = PIPELINES[name].from_pretrained(built(name))
    pipe.set_progress_bar_config(disable=True)
    latents, z, options = [], noise(), {"negative_prompt": NEGATIVE}
    if name != "sd3":
        z, options = functional.pixel_unshuffle(z, 2).flatten(2).transpose(1, 2), {}
    if name == "qwen":
        options = {"negative_prompt": NEGATIVE, "true_cfg_scale": SCALE}
    if name == "flux_kontext":
        options = {"image": loaded(name).encode(hole()[0] * 2 - 1), "max_area": SIZE[0] * SIZE[1]}
    if name == "flux_fill":
        picture, mask = hole()
        options = {"image": picture, "mask_image": functional.interpolate(mask, SIZE)}
        # The pipeline draws from the posterior, of which we take the mode: leave it no width.
        with torch.no_grad():
            pipe.vae.encoder.conv_out.weight[LATENT:] = 0
            pipe.vae.encoder.conv_out.bias[LATENT:] = -30

    def keep(pipe: Any, number: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
        after = tensors["latents"]
        if name != "sd3":
            tokens = after.transpose(1, 2).unflatten(2, (8, 8))
            after = functional.pixel_shuffle(tokens, 2)
        latents.append(after.clone())
        return tensors

    pipe(
        prompt=PROMPT,
        height=SIZE[0],
        width=SIZE[1],
        num_inference_steps=STEPS,
        latents=z.clone(),
        output_type="latent",
        callback_on_step_end=keep,
        **({} if name == "qwen" else {"guidance_scale": SCALE}),
        **options,
    )
    return latents


def packed(z: Tensor) -> Tensor:
    return functional.pixel_unshuffle(z, 2).flatten(2).transpose(1, 2)


@torch.no_grad()
def edited() -> list[Tensor]:
    """The latents of Qwen-Image-Edit, by hand: its pipeline brings all pictures to 1024 pixels."""
    plain: Any = QwenImagePipeline.from_pretrained(built("qwen"))
    images = Qwen2VLImageProcessorPil.from_pretrained(built("qwen_edit") / "processor")

    def processor(text: list[str], images: Any = images, **_: Any) -> BatchFeature:
        # 128 pixels are 9 patches of 14 a side, less one to make pairs; four are one token.
        shown = made(images=[picture], return_tensors="pt")
        assert shown["image_grid_thw"].tolist() == [[1, 8, 8]]
        (text,) = (each.replace("<|image_pad|>", "<|image_pad|>" * 16) for each in text)
        return BatchFeature({**plain.tokenizer([text], return_tensors="pt"), **shown})

    made, picture = images, (hole()[0][0].permute(1, 2, 0) * 255).round().byte().numpy()
    parts = {name: getattr(plain, name) for name in ("vae", "text_encoder", "tokenizer")}
    parts |= {"transformer": plain.transformer, "scheduler": plain.scheduler}
    pipe = QwenImageEditPipeline(**parts, processor=processor)
    texts = [pipe.encode_prompt([p], image=picture, device="cpu")[0] for p in (PROMPT, NEGATIVE)]
    raw = pipe.vae.encode((hole()[0] * 2 - 1)[:, :, None]).latent_dist.mode()[:, :, 0]
    mean, spread = (
        torch.tensor(x).view(1, -1, 1, 1)
        for x in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    known, z, latents = packed((raw - mean) / spread), packed(noise()), []
    pipe.scheduler.set_timesteps(
        sigmas=np.linspace(1, 1 / STEPS, STEPS), mu=0.5 + (64 - 16) * (0.9 - 0.5) / (64 - 16)
    )
    for t in pipe.scheduler.timesteps:
        positive, negative = (
            pipe.transformer(
                hidden_states=torch.cat([z, known], 1),
                timestep=t.expand(1) / 1000,
                encoder_hidden_states=text,
                img_shapes=[[(1, 8, 8), (1, 8, 8)]],
                return_dict=False,
            )[0][:, :64]
            for text in texts
        )
        guided = negative + SCALE * (positive - negative)
        guided = guided * positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        z = pipe.scheduler.step(guided, t, z, return_dict=False)[0]
        latents.append(functional.pixel_shuffle(z.transpose(1, 2).unflatten(2, (8, 8)), 2))
    return latents


@pytest.mark.parametrize("name", NAMES)
def test_the_trajectory_is_that_of_diffusers_own_pipeline(name: str) -> None:
    got, expected = trajectory(name), reference(name)
    assert len(got) == len(expected) == STEPS
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (got[-1] - noise()).abs().max() > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_the_trajectory_feels_the_prompt(name: str) -> None:
    other = trajectory(name, "two dogs")[-1]
    assert (other - reference(name)[-1]).abs().max() > 1e-3


def test_guidance_is_told_to_flux_and_made_for_sd3() -> None:
    for name, rows in (("sd3", 2), ("flux", 1), ("flux_fill", 1), ("qwen", 2)):
        backbone, seen = loaded(name), []

        def see(module: Any, args: Any, options: dict[str, Any], to: Any = seen) -> None:
            to.append(options)

        handle = backbone.network.register_forward_pre_hook(see, with_kwargs=True)
        with torch.inference_mode():
            backbone.denoiser(conditions(name))(noise(), backbone.levels[500])
        handle.remove()
        assert len(seen[0]["hidden_states"]) == rows
        if rows == 1:
            assert seen[0]["guidance"].tolist() == [SCALE]


@pytest.mark.parametrize("name", NAMES)
def test_levels_are_straight_lines_from_noise_to_picture(name: str) -> None:
    levels = loaded(name).levels
    run = levels.run(10)
    assert run[0].noise == 1 and run[-1].noise == 0 and len(run) == 11
    assert len(levels) == 1000 and levels[999].noise == 1
    assert all(a.noise > b.noise for a, b in itertools.pairwise(run))
    assert levels.run(10, 0.5) == run[5:] and levels.run(10, 0.0) == []
    for level in (*run, levels[0], levels[400]):
        assert level.signal + level.noise == 1 and level.timestep == pytest.approx(
            1000 * level.noise
        )
    rows = levels.rows(torch.tensor([0, 400]))
    assert rows.noise.flatten().tolist() == [levels[0].noise, levels[400].noise]
    assert rows.signal.shape == (2, 1, 1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_denoiser_tells_the_noise_and_the_picture_of_its_sample(name: str) -> None:
    backbone, z = loaded(name), noise()
    denoiser = backbone.denoiser(conditions(name))
    with torch.inference_mode():
        for number in (0, 300, 999):
            level = backbone.levels[number]
            eps, x0 = denoiser(z, level)
            torch.testing.assert_close(level.add_noise(x0, eps), z, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_facts_of_the_checkpoint(name: str) -> None:
    backbone = loaded(name)
    assert (backbone.native_size, backbone.multiple, backbone.factor) == (128, 16, 8)
    assert backbone.family == name.split("_")[0]
    assert backbone.edits == (name in ("flux_kontext", "qwen_edit"))
    assert backbone.kind == ("inpaint" if name == "flux_fill" else "plain")
    assert len(backbone.hash) == 64


@pytest.mark.parametrize("name", NAMES)
def test_a_latent_decodes_to_its_picture_as_the_autoencoder_has_it(name: str) -> None:
    backbone, x = loaded(name), hole()[0] * 2 - 1
    with torch.inference_mode():
        x = x[:, :, None] if backbone.family == "qwen" else x
        raw = backbone.vae.encode(x).latent_dist.mode()
        made = backbone.decode(backbone.encode(hole()[0] * 2 - 1))
        known = backbone.vae.decode(raw).sample.reshape(made.shape)
        torch.testing.assert_close(made, known, atol=1e-4, rtol=0)


def disturbed(network: Any, mask: Tensor, behind: int = 64) -> list[Any]:
    """Hooks that change the keys and values of the picture's tokens under a latent mask (h, w), in
    the latter half of a transformer's layers.
    """
    where = functional.max_pool2d(mask[None, None], 2).flatten().nonzero()[:, 0]
    names = [name.removesuffix(".processor") for name in network.attn_processors]

    def change(module: Any, args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        # What precedes the picture, if anything does, is the text; behind it may be a reference.
        output[:, where - behind] += 3
        return output

    later = [network.get_submodule(name) for name in names[len(names) // 2 :]]
    return [
        x.register_forward_hook(change)
        for attention in later
        for x in (attention.to_k, attention.to_v)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_target_rows_do_not_see_what_is_hidden(name: str) -> None:
    backbone, mask, z, level = loaded(name), hole()[1], noise(), loaded(name).levels[500]
    told = replace(conditions(name), negative=None)
    source_and_target = Conditions.join(told, told)
    rule = HiddenRegion(mask)
    with torch.inference_mode():
        denoise = backbone.denoiser(source_and_target)
        plain = denoise(torch.cat([z, z]), level)[0]
        with backbone.attention(rule):
            hidden = denoise(torch.cat([z, z]), level)[0]
            hooks = disturbed(backbone.network, mask[0, 0], 128 if backbone.edits else 64)
            blind = denoise(torch.cat([z, z]), level)[0]
        seeing = denoise(torch.cat([z, z]), level)[0]
        for hook in hooks:
            hook.remove()
        again = denoise(torch.cat([z, z]), level)[0]
    assert torch.equal(again, plain)
    assert torch.equal(hidden[0], plain[0]) and not torch.equal(hidden[1], plain[1])
    torch.testing.assert_close(blind[1], hidden[1], atol=1e-6, rtol=0)
    assert (blind[0] - hidden[0]).abs().max() > 1e-4
    assert (seeing[1] - plain[1]).abs().max() > 1e-4


# The methods.

BOX = Box(40, 30, 60, 50)


@cache
def composer(name: str) -> Composer:
    return Composer.from_pretrained(str(built(name)), device="cpu", dtype="float32")


@cache
def scene() -> tuple[Photo, Photo, Photo, Photo]:
    """(background, subject, picture with the subject pasted by hand, its mask)."""
    from skimage import data

    background = np.ascontiguousarray(data.chelsea()[:140, 200:360])
    cup = cutout(data.coffee()[::4, ::4], Box(30, 5, 60, 50))
    alpha = cup[..., 3:] / 255.0
    picture, mask = background.copy(), np.zeros(background.shape[:2], np.uint8)
    picture[BOX.slices] = np.round(cup[..., :3] * alpha + picture[BOX.slices] * (1 - alpha))
    mask[BOX.slices] = cup[..., 3]
    return background, cup, picture, mask


def pixels(result: Result) -> Photo:
    return np.asarray(result.image)


def compose(name: str, method: str = "cdc", **settings: Any) -> Result:
    background, cup, _, _ = scene()
    settings = {"method": method, "shadow": "none", **FEW, **settings}
    return composer(name).compose(background, cup, box=BOX, **settings)


def remove(name: str, method: str = "inpaint", **settings: Any) -> Result:
    _, _, picture, mask = scene()
    return composer(name).remove(picture, mask=mask, method=method, **{**FEW, **settings})


def freecompose(name: str, verb: str, **settings: Any) -> Result:
    background, cup, picture, mask = scene()
    few: dict[str, Any] = {
        "method": "freecompose", "num_iterations": 2, "seed": 3, "guidance_scale": 7.5, "eta": 3.0,
        "texture": 0.0, "smoothing": 0.03,
    }  # fmt: skip
    few |= settings
    if verb == "compose":
        return composer(name).compose(background, cup, box=BOX, shadow="none", **few)
    if verb == "harmonize":
        return composer(name).harmonize(picture, mask=mask, background=background, **few)
    return composer(name).remove(picture, mask=mask, **few)


PHD: dict[str, Any] = {
    "inpaint": True, "strength": 1.0, "harmonize_steps": 3, "harmonize_strength": 0.7,
}  # fmt: skip
RUNS: dict[str, Any] = {
    "cdc": lambda name: compose(name),
    "cdc immerse": lambda name: compose(name, preset="immerse"),
    "cdc repaint": lambda name: compose(name, repaint_start=1.0, repaint_jump=1, repaint_repeats=2),
    "cdc eta": lambda name: compose(name, eta=1.0, condition_on="x0"),
    "phd": lambda name: compose(name, "phd", **PHD),
    "freecompose compose": lambda name: freecompose(name, "compose"),
    "freecompose harmonize": lambda name: freecompose(name, "harmonize", variant="background"),
    "freecompose score": lambda name: freecompose(name, "harmonize", variant="score"),
    "freecompose remove": lambda name: freecompose(name, "remove"),
    "freecompose texture": lambda name: freecompose(name, "remove", texture=0.1),
    "inpaint": lambda name: remove(name),
    "inpaint euler": lambda name: remove(name, scheduler="FlowMatchEulerDiscreteScheduler"),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", ["sd3", "flux", "flux_fill"])
def test_every_method_makes_a_picture_inside_its_region_only(name: str, run: str) -> None:
    background, _, picture, _ = scene()
    before = background if "cdc" in run or "phd" in run or "compose" in run.split() else picture
    result = RUNS[run](name)
    differs = (pixels(result) != before).any(-1)
    assert pixels(result).shape == before.shape and differs.any()
    assert not (differs & (np.asarray(result.mask) == 0)).any()
    assert (np.asarray(result.mask) == 0).any()
    assert result.record["model"]["family"] == loaded(name).family
    if run in ("cdc", "phd", "freecompose remove", "inpaint"):
        assert np.array_equal(pixels(RUNS[run](name)), pixels(result))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_do_changes_nothing(name: str) -> None:
    background, cup, picture, _ = scene()
    plain = {"method": "paste", "shadow": "none"}
    paste = pixels(composer(name).compose(background, cup, box=BOX, **plain))
    assert np.array_equal(pixels(compose(name, strength=0.0)), paste)
    # Conditioned on the picture to the end, inside and outside, at all frequencies.
    held = pixels(compose(name, T_in=1.0, decoding="residual")).astype(int) - paste
    assert np.abs(held).max() <= 1 and (held != 0).sum() <= 3
    assert not np.array_equal(pixels(compose(name, T_in=0.0)), paste)
    assert np.array_equal(pixels(remove(name, strength=0.0)), picture)
    assert np.array_equal(pixels(freecompose(name, "harmonize", num_iterations=0)), picture)


@pytest.mark.parametrize("name", NAMES)
def test_a_localized_pull_holds_what_it_says_and_no_more(name: str) -> None:
    backbone, told, z = loaded(name), conditions(name), noise()
    mask, reference = hole()[1], 0.5 * noise().flip(-1)
    run = backbone.levels.run(4)

    def pulled(t_in: float, t_out: float) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        pull = LocalizedPull(
            reference,
            mask,
            CdcSettings(T_in=t_in, T_out=t_out),
            lambda like: torch.randn(like.shape, generator=generator),
        )
        denoiser = backbone.denoiser(told)
        return sample(denoiser, z, run, noise=torch.zeros_like, on_step=pull.on_step)

    with torch.inference_mode():
        free = sample(backbone.denoiser(told), z, run, noise=torch.zeros_like)
        assert torch.equal(pulled(0.0, 0.0), free)
        torch.testing.assert_close(pulled(1.0, 1.0), reference, atol=1e-6, rtol=0)
        mixed = pulled(0.0, 1.0)
    outside = (mask == 0).expand_as(mixed)
    torch.testing.assert_close(mixed[outside], reference[outside], atol=1e-6, rtol=0)
    assert (mixed - reference)[~outside].abs().mean() > 0.1


@pytest.mark.parametrize("name", ["sd3", "flux_fill"])
def test_a_scene_is_made_round_a_subject(name: str) -> None:
    result = composer(name).scene(
        scene()[1], prompt=PROMPT, size=(160, 128), refine_steps=2, harmonize_steps=2,
        harmonize_strength=0.9, **FEW,
    )  # fmt: skip
    assert result.image.size == (160, 128)
    assert pixels(result).std() > 1


@pytest.mark.parametrize("name", NAMES)
def test_what_needs_a_unet_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    runs: list[Any] = [
        lambda: compose(name, prompt=PROMPT, words_inside="cat"),
        lambda: compose(name, "phd", harmonizer="embedded"),
        lambda: freecompose(name, "compose", variant="semantic", adapter="embedded"),
        lambda: remove(name, scheduler="UniPCMultistepScheduler"),
    ]
    for run in runs:
        with pytest.raises(InputError) as error:
            run()
        text = str(error.value)
        assert text.endswith(".") and ". " not in text and "\n" not in text


BREAKS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "another transformer": (
        "sd3", "model_index.json", {"transformer": ["diffusers", "PixArtTransformer2DModel"]},
        "PixArt",
    ),
    "an encoder is missing": (
        "sd3", "model_index.json", {"text_encoder_3": [None, None]}, "no text_encoder_3",
    ),
    "an encoder of another kind": (
        "flux", "model_index.json", {"text_encoder_2": ["transformers", "CLIPTextModel"]},
        "T5EncoderModel",
    ),
    "noise of another kind": (
        "flux", "scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "'DDIM",
    ),
    "other channels": ("flux", "transformer/config.json", {"in_channels": 128}, "could not be"),
}  # fmt: skip


@pytest.mark.parametrize("case", BREAKS)
def test_a_folder_that_does_not_fit_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    name, file, values, expected = BREAKS[case]
    folder = Path(shutil.copytree(built(name), tmp_path / "model"))
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**config, **values}))
    with pytest.raises(InputError, match=expected) as error:
        load_backbone(folder, device="cpu")
    assert str(folder) in str(error.value) and str(error.value).endswith(".")


def test_a_lora_that_does_not_fit_a_transformer_is_refused(tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    save_file({"transformer.x_embedder.lora_A.weight": torch.zeros(1, 1)}, lora)
    with pytest.raises(InputError, match="LoRA"):
        load_backbone(built("flux"), device="cpu", loras=[(lora, 1.0)])


LORA_LAYERS = {
    "sd3": "transformer_blocks.1.attn.to_k",
    "flux": "single_transformer_blocks.1.attn.to_q",
    "qwen": "transformer_blocks.0.attn.add_q_proj",
}


@pytest.mark.parametrize("name", LORA_LAYERS)
def test_a_lora_in_pefts_names_is_merged_into_a_transformer(name: str, tmp_path: Path) -> None:
    layer, lora = LORA_LAYERS[name], tmp_path / "lora.safetensors"
    before = loaded(name).network.get_submodule(layer).weight
    a, b = torch.randn(2, before.shape[1]), torch.randn(before.shape[0], 2)
    start = f"transformer.{layer}"
    save_file({f"{start}.lora_A.weight": a, f"{start}.lora_B.weight": b}, lora)
    after = load_backbone(built(name), device="cpu", loras=[(lora, 0.5)])
    known = before + 0.5 * b @ a
    torch.testing.assert_close(after.network.get_submodule(layer).weight, known)
    other = layer.replace("_q", "_v") if "_q" in layer else layer.replace("_k", "_v")
    same = loaded(name).network.get_submodule(other).weight
    assert torch.equal(after.network.get_submodule(other).weight, same) and not after.notes


def test_a_lora_in_kohyas_names_is_merged_into_flux(tmp_path: Path) -> None:
    generator, lora = torch.Generator().manual_seed(0), tmp_path / "lora.safetensors"
    width, rank, alpha, tensors = 32, 4, 2.0, dict[str, Tensor]()
    # Query, key and value of a block in one; the end of a single block; a text encoder's layer.
    shapes = {
        "lora_unet_double_blocks_0_img_attn_qkv": (3 * width, width),
        "lora_unet_single_blocks_1_linear2": (width, 5 * width),
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (WIDTH, WIDTH),
    }
    changes = []
    for name, (made, read) in shapes.items():
        down, up = (torch.randn(s, generator=generator) for s in ((rank, read), (made, rank)))
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
        changes.append(alpha / rank * up @ down)
    save_file(tensors, lora)
    before, after = loaded("flux"), load_backbone(built("flux"), device="cpu", loras=[(lora, 1.0)])
    assert not after.notes
    attention = "transformer_blocks.0.attn"
    known = {f"{attention}.to_{x}": c for x, c in zip("qkv", changes[0].chunk(3), strict=True)}
    known |= {"single_transformer_blocks.1.proj_out": changes[1], f"{attention}.add_q_proj": 0}
    for layer, change in known.items():
        old, new = (x.network.get_submodule(layer).weight for x in (before, after))
        torch.testing.assert_close(new, old + change, atol=1e-5, rtol=1e-5)
    old, new = (
        next(
            x for name, x in y.text.encoders[0].named_parameters() if "0.self_attn.q_proj.w" in name
        )
        for y in (before, after)
    )
    torch.testing.assert_close(new, old + changes[2], atol=1e-5, rtol=1e-5)


def test_a_transformer_in_one_file_is_that_of_its_folder(tmp_path: Path) -> None:
    backbone, source = load_backbone(one_file(tmp_path), device="cpu"), loaded("qwen")
    known, got = source.network.state_dict(), backbone.network.state_dict()
    assert known.keys() == got.keys()
    assert all(torch.equal(got[key], x) for key, x in known.items())
    assert backbone.family == "qwen" and backbone.hash != source.hash
    (tmp_path / "model" / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="text_encoder"):
        load_backbone(tmp_path / "model.safetensors", device="cpu")


@pytest.mark.parametrize("name", NAMES)
def test_a_download_has_all_parts_of_a_folder(name: str, tmp_path: Path) -> None:
    files = [path.relative_to(built(name)) for path in built(name).rglob("*") if path.is_file()]
    names = sorted(path.as_posix() for path in files)
    assert (
        sorted(files_to_fetch([*names, "transformer/x.bin", "flux1.safetensors"], False)) == names
    )
    assert is_complete(built(name), False)
    folder = Path(shutil.copytree(built(name), tmp_path / "model"))
    next((folder / "text_encoder").glob("*.safetensors")).unlink()
    assert not is_complete(folder, False)


@pytest.mark.parametrize("memory", ["balanced", "low"])
@pytest.mark.parametrize("name", ["flux", "qwen_edit"])
def test_where_weights_are_changes_no_bit_of_a_transformers_answer(name: str, memory: str) -> None:
    backbone = load_backbone(built(name), device="cpu", memory=memory)
    known, told = loaded(name), conditions(name)
    with torch.inference_mode():
        shown = hole()[0] * 2 - 1
        text = backbone.embed([PROMPT], SIZE, 0, shown)
        assert torch.equal(text.hidden, known.embed([PROMPT], SIZE, 0, shown).hidden)
        answers = [x.denoiser(told)(noise(), x.levels[400])[1] for x in (backbone, known)]
        assert torch.equal(*answers)
        assert torch.equal(*(x.decode(answers[0]) for x in (backbone, known)))


def test_what_is_learnt_or_trained_needs_a_unet() -> None:
    backbone = loaded("sd3")
    for make in (new_adapter, new_harmonizer, lambda backbone: set_up(backbone, LearnConfig())):
        with pytest.raises(InputError, match=r"is a transformer, but .* are for U-Nets\.$"):
            make(backbone)
