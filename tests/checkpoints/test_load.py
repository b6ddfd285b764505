"""Opening checkpoints and what goes with them: every format, and everything that is not one."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import inlay
from checkpoints import BUILDERS, WIDTH, build_single_file, built, loaded, predictions
from inlay.checkpoints.folder import budget, pick_weights, read_tensors
from inlay.checkpoints.hub import files_to_fetch, is_complete
from inlay.checkpoints.load import fingerprint, load_backbone, pick_device, pick_dtype
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.unet import PatchAutoencoder
from inlay.errors import InputError

SIZE = (64, 64)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, an empty hub cache and a cache of our own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the SD 1.x checkpoint to break."""
    return Path(shutil.copytree(built("sd1"), tmp_path / "model"))


def noise(b: Backbone, prompt: str = "a cat") -> torch.Tensor:
    z = torch.randn(1, b.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    masks = () if b.kind == "plain" else (torch.ones(1, 1, 8, 8), torch.zeros_like(z))
    return predictions(b, z, 400, b.embed([prompt], SIZE), None, 1.0, *masks)[0]


def sentence(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text and len(text) < 600
    assert not re.search(r"[.!?] [A-Z]", text), text
    return text


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- every format ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILDERS)
def test_each_format_loads_and_predicts(name: str) -> None:
    b = loaded(name)
    assert b.kind == ("inpaint" if "inpaint" in name else "plain")
    assert noise(b).shape == (1, 4, 8, 8)
    assert torch.isfinite(noise(b)).all() and noise(b).std() > 0


def test_the_embedded_checkpoint_loads_by_its_name() -> None:
    b = load_backbone("embedded", device="cpu")
    assert (b.name, b.family, b.kind, b.prediction_type) == (
        "embedded",
        "embedded",
        "inpaint",
        "v_prediction",
    )
    assert (b.latent_channels, b.factor, b.native_size, b.multiple) == (16, 4, 128, 16)
    assert b.levels[999].signal == 0 and b.levels.run(4)[-1].noise == 0
    assert [level.timestep for level in b.levels.run(4)[:-1]] == [999, 749, 499, 249]
    assert noise(b).shape == (1, 16, 8, 8)
    x = torch.linspace(-0.9, 0.9, 64).expand(1, 3, 64, 64)
    assert (b.decode(b.encode(x)) - x).abs().max() < 0.1


def test_a_single_file_equals_its_folder(tmp_path: Path) -> None:
    path = build_single_file(tmp_path)
    one, two = load_backbone(path, device="cpu"), loaded("sd1")
    assert torch.equal(noise(one), noise(two))
    z = two.encode(torch.rand(1, 3, 64, 64) * 2 - 1)
    assert torch.equal(one.decode(z), two.decode(z))
    assert one.hash == hashlib.sha256(path.read_bytes()).hexdigest()
    half = load_backbone(path, device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16 and half.vae.dtype == torch.float32
    assert torch.equal(half.decode(z), two.decode(z))


def test_a_single_file_without_settings_says_what_it_needs(tmp_path: Path) -> None:
    path = build_single_file(tmp_path, settings=False)
    with pytest.raises(InputError, match="put such a folder, named model, beside it") as error:
        load_backbone(path)
    sentence(error)


def hub_copy(source: Path, repo_id: str, root: Path) -> None:
    """What huggingface_hub leaves behind after downloading a repository."""
    home, commit = root / f"models--{repo_id.replace('/', '--')}", "a" * 40
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    shutil.copytree(source, home / "snapshots" / commit)


def test_a_cached_hub_id_loads_offline(tmp_path: Path) -> None:
    hub_copy(built("sd1"), "someone/a-model", tmp_path / "hub")
    b = load_backbone("someone/a-model", device="cpu")
    assert b.name == "someone/a-model"
    assert torch.equal(noise(b), noise(loaded("sd1")))
    (unet,) = (tmp_path / "hub").rglob("unet/*.safetensors")
    unet.unlink()
    with pytest.raises(InputError, match="someone/a-model is not in the local cache"):
        load_backbone("someone/a-model")


def test_a_single_file_takes_its_settings_from_the_hub_cache(tmp_path: Path) -> None:
    path = build_single_file(tmp_path)
    settings = path.with_suffix("")
    hub_copy(settings, "stable-diffusion-v1-5/stable-diffusion-v1-5", tmp_path / "hub")
    shutil.rmtree(settings)
    assert torch.equal(noise(load_backbone(path, device="cpu")), noise(loaded("sd1")))


def test_shards_and_the_fp16_variant_are_found(folder: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="500KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    sharded = load_backbone(folder, device="cpu")
    assert torch.equal(noise(sharded), noise(loaded("sd1")))
    assert sharded.hash != loaded("sd1").hash
    shutil.rmtree(folder / "unet")
    unet.half().save_pretrained(folder / "unet", variant="fp16")
    assert torch.allclose(
        noise(load_backbone(folder, device="cpu")), noise(loaded("sd1")), atol=0.01
    )


def test_one_set_of_weights_is_chosen() -> None:
    both = ["m.safetensors", "m.fp16.safetensors", "m.bin"]
    assert pick_weights(both, "m", half=False, where="x") == (None, ["m.safetensors"])
    assert pick_weights(both, "m", half=True, where="x") == ("fp16", ["m.fp16.safetensors"])
    assert pick_weights(both[:1], "m", half=True, where="x") == (None, ["m.safetensors"])
    repository = [
        "README.md",
        "model_index.json",
        "v1-5-pruned.safetensors",
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
        "safety_checker/model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    kept = files_to_fetch(repository, half=True)
    assert sorted(set(repository) - set(kept)) == [
        "README.md",
        "safety_checker/model.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.safetensors",
        "v1-5-pruned.safetensors",
    ]


def test_nothing_is_printed_while_loading(folder: Path, tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    save_file(kohya_lora(), lora)
    code = (
        "import sys; from inlay.checkpoints.load import load_backbone; "
        "load_backbone(sys.argv[1], device='cpu', dtype='bfloat16', loras=[(sys.argv[2], 1.0)])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, folder, lora], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_names_of_devices_and_dtypes() -> None:
    cpu = torch.device("cpu")
    assert pick_device("cpu") == cpu and pick_device(cpu) == cpu
    assert pick_dtype("auto", cpu) == torch.float32
    assert pick_dtype("auto", torch.device("mps")) == torch.float32
    assert pick_dtype("auto", torch.device("cuda")) == torch.float16
    assert pick_dtype("bfloat16", cpu) == pick_dtype(torch.bfloat16, cpu) == torch.bfloat16
    for device in ("tpu", "", "cuda:99", "meta", "cpu:-2"):
        with pytest.raises(InputError, match="device") as error:
            pick_device(device)
        sentence(error)
    for dtype in ("float64", "half", ""):
        with pytest.raises(InputError, match="dtype"):
            pick_dtype(dtype, cpu)


# --- the fingerprint ------------------------------------------------------------------------


def test_the_hash_follows_the_bytes_and_not_the_place(folder: Path, tmp_path: Path) -> None:
    first = load_backbone(folder, device="cpu").hash
    assert first == loaded("sd1").hash and re.fullmatch("[0-9a-f]{64}", first)
    lines = []
    for part, file in [
        ("text_encoder", "model.safetensors"),
        ("unet", "diffusion_pytorch_model.safetensors"),
        ("vae", "diffusion_pytorch_model.safetensors"),
    ]:
        digest = hashlib.sha256((folder / part / file).read_bytes()).hexdigest()
        lines.append(f"{digest}  {part}/{file}\n")
    assert first == hashlib.sha256("".join(lines).encode()).hexdigest()
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({key: value + 1 for key, value in load_file(vae).items()}, vae)
    assert load_backbone(folder, device="cpu").hash != first


def test_digests_are_remembered_until_a_file_changes(tmp_path: Path) -> None:
    file, memory = tmp_path / "a.safetensors", tmp_path / "cache" / "hashes.json"
    file.write_bytes(b"one")
    assert fingerprint([("a", file)]) == hashlib.sha256(b"one").hexdigest()
    # One that was written this instant is not remembered: its times may not tell the next change.
    assert not memory.exists()
    time.sleep(0.1)
    assert fingerprint([("a", file)]) == hashlib.sha256(b"one").hexdigest()
    known = json.loads(memory.read_text())
    (mark,) = known
    known[mark] = "0" * 64
    memory.write_text(json.dumps(known))
    assert fingerprint([("a", file)]) == "0" * 64
    file.write_bytes(b"three")
    assert fingerprint([("a", file)]) == hashlib.sha256(b"three").hexdigest()
    # Of the same length, with the old times, as archives and rsync leave it; and by another name.
    time.sleep(0.1)
    fingerprint([("a", file)])
    stat = file.stat()
    for same in (file, tmp_path / "b"):
        same.write_bytes(b"seven")
        os.utime(same, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        same.replace(file)
        assert fingerprint([("a", file)]) == hashlib.sha256(b"seven").hexdigest()
    memory.write_text("not json")
    assert fingerprint([("a", file)]) == hashlib.sha256(b"seven").hexdigest()


# --- what is no checkpoint ------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_tensor(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, metadata={"format": "pt"})


WEIGHTS = "diffusion_pytorch_model.safetensors"
BREAKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated unet": (lambda f: cut(f / "unet" / WEIGHTS), "truncated"),
    "truncated text": (lambda f: cut(f / "text_encoder" / "model.safetensors"), "truncated"),
    "empty weights": (lambda f: (f / "vae" / WEIGHTS).write_bytes(b""), "truncated"),
    "noise weights": (lambda f: (f / "vae" / WEIGHTS).write_bytes(b"\xff" * 999), "truncated"),
    "no weights": (lambda f: (f / "vae" / WEIGHTS).unlink(), "no weights"),
    "lost tensor of the unet": (lambda f: drop_tensor(f / "unet" / WEIGHTS), "lacks"),
    "lost tensor of the vae": (lambda f: drop_tensor(f / "vae" / WEIGHTS), "lacks"),
    "lost tensor of the text": (
        lambda f: drop_tensor(f / "text_encoder" / "model.safetensors"),
        "lacks",
    ),
    "no index": (lambda f: (f / "model_index.json").unlink(), "no model_index.json"),
    "index no json": (lambda f: (f / "model_index.json").write_text("{"), "JSON"),
    "index no text": (lambda f: (f / "model_index.json").write_bytes(b"\xff\xfe\x00"), "JSON"),
    "index a list": (lambda f: (f / "model_index.json").write_text("[]"), "JSON object"),
    "index names nothing": (lambda f: (f / "model_index.json").write_text("{}"), "no unet"),
    "unet missing": (lambda f: shutil.rmtree(f / "unet"), "no folder unet"),
    "tokenizer missing": (lambda f: shutil.rmtree(f / "tokenizer"), "no folder tokenizer"),
    "tokenizer empty": (
        lambda f: [file.unlink() for file in (f / "tokenizer").iterdir()],
        "no vocabulary",
    ),
    "prompts of no length": (
        lambda f: edit(f / "tokenizer" / "tokenizer_config.json", model_max_length=[77]),
        "as its model_max_length; expected a number",
    ),
    "scheduler missing": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config.json"),
    "config no json": (lambda f: (f / "unet" / "config.json").write_text("?"), "readable JSON"),
    "config of other widths": (
        lambda f: edit(f / "unet" / "config.json", block_out_channels=[8, 8, 8, 8]),
        "could not be",
    ),
    "a million layers": (
        lambda f: edit(f / "unet" / "config.json", layers_per_block=10**6),
        "more weights than its files hold",
    ),
    "a million text layers": (
        lambda f: edit(f / "text_encoder" / "config.json", num_hidden_layers=10**6),
        "more weights than its files hold",
    ),
    "terabytes of text": (
        lambda f: edit(f / "text_encoder" / "config.json", max_position_embeddings=10**10),
        "more weights than its files hold",
    ),
    "terabytes of convolutions": (
        lambda f: edit(f / "unet" / "config.json", block_out_channels=[2**17] * 4),
        "more weights than its files hold|could not be loaded",
    ),
    "a wide autoencoder": (
        lambda f: edit(f / "vae" / "config.json", latent_channels=2**30),
        "more weights than its files hold|could not be loaded",
    ),
    "20000 pixels": (lambda f: edit(f / "unet" / "config.json", sample_size=2500), "20000 pixels"),
    "no pixels": (lambda f: edit(f / "unet" / "config.json", sample_size=-5), "-40 pixels"),
    "a factor no number": (
        lambda f: edit(f / "unet" / "config.json", mid_block_scale_factor="x"),
        "'x' as its mid_block_scale_factor; expected a number",
    ),
    "a word no text": (
        lambda f: edit(f / "text_encoder" / "config.json", hidden_act={"": {}}),
        "as its hidden_act; expected a word",
    ),
    "a norm of nothing": (
        lambda f: edit(f / "text_encoder" / "config.json", layer_norm_eps=None),
        "None as its layer_norm_eps; expected a number",
    ),
    "pixels no number": (lambda f: edit(f / "unet" / "config.json", sample_size="x"), "could not"),
    "a scale of nothing": (
        lambda f: edit(f / "vae" / "config.json", scaling_factor=0),
        "latents times 0",
    ),
    "a scale no number": (
        lambda f: edit(f / "vae" / "config.json", scaling_factor=float("nan")),
        "latents times nan",
    ),
    "an endless config": (
        lambda f: (f / "unet" / "config.json").write_text('{"a": ' + "[" * 10**6),
        "could not be|readable JSON",
    ),
    "a long config": (
        lambda f: (f / "unet" / "config.json").write_text(" " * (1 << 23) + "{}"),
        "readable JSON",
    ),
    "an adapter beside the text": (
        lambda f: (f / "text_encoder" / "adapter_config.json").write_text("{}"),
        "adapter_config.json",
    ),
    "an adapter beside the autoencoder": (
        lambda f: (f / "vae" / "adapter_config.json").write_text("{}"),
        "adapter_config.json",
    ),
    "weights of another name": (
        lambda f: edit(f / "text_encoder" / "config.json", transformers_weights="x.safetensors"),
        "transformers_weights",
    ),
    "attention from the hub": (
        lambda f: edit(f / "text_encoder" / "config.json", attn_implementation="evil/kernel"),
        "attn_implementation",
    ),
    "class labels": (
        lambda f: edit(f / "unet" / "config.json", num_class_embeds=3),
        "num_class_embeds|lacks",
    ),
    "timesteps through an activation": (
        lambda f: edit(f / "unet" / "config.json", timestep_post_act="silu"),
        "timestep_post_act",
    ),
    "strange blocks": (
        lambda f: edit(
            f / "unet" / "config.json", down_block_types=["AttnDownBlock2D"] * 3 + ["DownBlock2D"]
        ),
        "AttnDownBlock2D|lacks",
    ),
    "strange text class": (
        lambda f: edit(f / "model_index.json", text_encoder=["transformers", "T5EncoderModel"]),
        "T5EncoderModel",
    ),
    "strange unet class": (
        lambda f: edit(f / "model_index.json", unet=["diffusers", "FluxTransformer2DModel"]),
        "FluxTransformer2DModel",
    ),
    "entry of another shape": (lambda f: edit(f / "model_index.json", vae="x"), "vae"),
    "half of sdxl": (
        lambda f: edit(f / "model_index.json", tokenizer_2=["transformers", "CLIPTokenizer"]),
        "both",
    ),
    "flow matching": (
        lambda f: edit(
            f / "scheduler" / "scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"
        ),
        "DDPM",
    ),
    "a billion timesteps": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", num_train_timesteps=10**9),
        "timesteps",
    ),
    "unknown noise": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", beta_schedule="spiral"),
        "spiral",
    ),
    "unknown prediction": (
        lambda f: edit(f / "scheduler" / "scheduler_config.json", prediction_type="flow"),
        "'flow'",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_folder_is_one_sentence(case: str, folder: Path) -> None:
    breaking, expected = BREAKS[case]
    breaking(folder)
    with pytest.raises(InputError, match=expected) as error:
        load_backbone(folder, device="cpu")
    assert str(folder) in sentence(error)


@pytest.mark.skipif(sys.platform != "linux", reason="counts the pages that Linux hands out")
def test_what_a_config_asks_for_is_not_taken(tmp_path: Path) -> None:
    import resource

    file = tmp_path / "weights"
    file.write_bytes(bytes(1000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with budget([file], "the vae"), pytest.raises(InputError, match="more weights than its files"):
        PatchAutoencoder(4, 4_000_000)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    # Its two tables of 48 numbers a channel would be 1.5 GB, and 375,000 pages of 4 KiB.
    assert taken * resource.getpagesize() < 100_000_000


def test_a_tokenizer_with_words_that_its_encoder_does_not_know(folder: Path) -> None:
    edit(folder / "tokenizer" / "tokenizer_config.json", bos_token="<|another|>")
    backbone = load_backbone(folder, device="cpu")
    with pytest.raises(InputError, match=r"token \d+ of the prompt 'a cup', but .* knows \d+"):
        backbone.text.embed(["a cup"], (64, 64))


def test_shards_lie_in_their_folder(folder: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="500KB")
    (index,) = (folder / "unet").glob("*.index.json")
    said = json.loads(index.read_text())
    for where in ("../vae/" + WEIGHTS, "missing.safetensors", ["x"]):
        first = next(iter(said["weight_map"]))
        edit(index, weight_map=said["weight_map"] | {first: where})
        with pytest.raises(InputError, match=r"The unet of|unhashable") as error:
            load_backbone(folder, device="cpu")
        sentence(error)


def test_a_unet_that_is_told_the_guidance_scale_is_read(folder: Path) -> None:
    config = UNet2DConditionModel.load_config(folder / "unet")
    unet = UNet2DConditionModel.from_config(config, time_cond_proj_dim=24)
    unet.save_pretrained(folder / "unet")
    assert load_backbone(folder, device="cpu").told_scale


def test_a_unet_of_five_channels_is_refused(folder: Path) -> None:
    config = UNet2DConditionModel.load_config(folder / "unet")
    UNet2DConditionModel.from_config(config, in_channels=5).save_pretrained(folder / "unet")
    with pytest.raises(InputError, match=r"reads 5 channels.*\(4\).*\(9\)") as error:
        load_backbone(folder, device="cpu")
    sentence(error)


@pytest.mark.parametrize("name", ["", "no_such_model", "a/b/c", "nobody/nothing", "../x y", "a\0b"])
def test_a_name_that_is_nothing_is_one_sentence(name: str) -> None:
    with pytest.raises(InputError) as error:
        load_backbone(name, device="cpu")
    sentence(error)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "lora.safetensors")
    stem = "model.diffusion_model."
    for name, key in (
        ("flux", "double_blocks.0.img_attn.qkv.weight"),
        ("flux2", f"{stem}double_blocks.0.img_attn.qkv.weight"),
        ("sd3", f"{stem}joint_blocks.0.x_block.attn.qkv.weight"),
    ):
        save_file({key: torch.zeros(2)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "zero.safetensors").write_bytes(b"")
    (tmp_path / "text.txt").write_text("hello")
    cases = {
        "empty": "no model_index.json",
        "lora.safetensors": "goes in beside a model",
        "zero.safetensors": "truncated",
        "text.txt": "must be a .safetensors",
        "absent.safetensors": "does not exist",
        "absent.ckpt": "convert it with diffusers",
        "flux.safetensors": "flux.safetensors needs the settings",
        "flux2.safetensors": "put such a folder, named flux2, beside it",
        "sd3.safetensors": "sd3.safetensors needs the settings",
    }
    for name, expected in cases.items():
        with pytest.raises(InputError, match=expected) as error:
            load_backbone(tmp_path / name, device="cpu")
        assert name in sentence(error)


def test_truncated_and_incomplete_single_files(tmp_path: Path) -> None:
    path = build_single_file(tmp_path)
    whole = path.read_bytes()
    tensors = load_file(path)
    lost = {k: v for k, v in tensors.items() if "input_blocks.1." not in k}
    save_file(lost, path)
    with pytest.raises(InputError) as error:
        load_backbone(path, device="cpu")
    assert str(path) in sentence(error)
    path.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="truncated") as error:
        load_backbone(path, device="cpu")
    sentence(error)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that leaves a mark when it is imported, and the mark's path."""
    mark = tmp_path / "mark"
    home = tmp_path / "modules"
    home.mkdir()
    (home / "evil_library.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil: ...\n")
    monkeypatch.syspath_prepend(str(home))
    yield mark
    sys.modules.pop("evil_library", None)


def test_a_folder_that_version_0_1_trained_is_read(tmp_path: Path) -> None:
    shutil.copytree(Path(inlay.__file__).parent / "assets" / "embedded", tmp_path / "trained")
    entry = ["inlay.diffusion.autoencoder", "PatchAutoencoder"]
    edit(tmp_path / "trained" / "model_index.json", vae=entry)
    trained = load_backbone(tmp_path / "trained", device="cpu")
    assert trained.hash == load_backbone("embedded", device="cpu").hash
    assert type(trained.vae).__name__ == "PatchAutoencoder"


@pytest.mark.parametrize(
    "entry",
    [
        ["evil_library", "Evil"],
        ["evil_library", "UNet2DConditionModel"],
        ["diffusers.evil_library", "UNet2DConditionModel"],
        ["os", "system"],
        ["inlay.diffusion.unet", "torch"],
    ],
)
def test_an_index_cannot_import_a_library(folder: Path, trap: Path, entry: list[str]) -> None:
    for part in ("unet", "vae", "tokenizer"):
        copy = folder.with_name(part)
        shutil.copytree(folder, copy)
        edit(copy / "model_index.json", **{part: entry})
        with pytest.raises(InputError, match=f"as its {part}") as error:
            load_backbone(copy, device="cpu")
        sentence(error)
    edit(folder / "model_index.json", safety_checker=entry, extra=entry)
    assert noise(load_backbone(folder, device="cpu")).shape == (1, 4, 8, 8)
    assert not trap.exists()


def test_the_settings_of_a_single_file_cannot_either(tmp_path: Path, trap: Path) -> None:
    path = build_single_file(tmp_path / "x")
    edit(path.with_suffix("") / "model_index.json", extra=["evil_library", "Evil"])
    assert noise(load_backbone(path, device="cpu")).shape == (1, 4, 8, 8)
    assert not trap.exists()


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.mark), "w"))


def test_pickles_are_never_opened(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    bomb = pickle.dumps(Bomb(mark))
    for suffix in (".ckpt", ".pt", ".bin", ".pth"):
        file = tmp_path / f"model{suffix}"
        file.write_bytes(bomb)
        for options in ({}, {"loras": [(file, 1.0)]}, {"textual_inversions": [file]}):
            model = folder if options else file
            with pytest.raises(InputError, match="pickle") as error:
                load_backbone(model, device="cpu", **options)
            assert file.name in sentence(error)
    (folder / "unet" / WEIGHTS).unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(bomb)
    with pytest.raises(InputError, match="pickle") as error:
        load_backbone(folder, device="cpu")
    sentence(error)
    # A pickle that calls itself safetensors is not opened as one either.
    (folder / "unet" / WEIGHTS).write_bytes(bomb)
    with pytest.raises(InputError, match="truncated"):
        load_backbone(folder, device="cpu")
    assert not mark.exists()


# --- LoRA -----------------------------------------------------------------------------------

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT_LAYER = "encoder.layers.0.self_attn.q_proj"


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kohya_lora(layer: str = LAYER, alpha: float = 1.0) -> dict[str, torch.Tensor]:
    """Rank 2, in the U-Net and in the text encoder, as kohya's scripts write it."""
    tensors = {}
    names = {f"lora_unet_{layer.replace('.', '_')}": 16}
    for text in (TEXT_LAYER, TEXT_LAYER.replace("q_proj", "out_proj")):
        names[f"lora_te_text_model_{text.replace('.', '_')}"] = WIDTH
    for number, (name, width) in enumerate(names.items()):
        tensors[f"{name}.lora_down.weight"] = draw(2, width, seed=number)
        tensors[f"{name}.lora_up.weight"] = draw(width, 2, seed=number + 10)
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def text_layer(encoder: Any) -> torch.Tensor:
    inner = getattr(encoder, "text_model", encoder)
    return inner.encoder.layers[0].self_attn.q_proj.weight.detach()


def merged_layer(b: Backbone, layer: str = LAYER) -> torch.Tensor:
    return b.unet.get_submodule(layer).weight.detach()


@pytest.mark.parametrize("scale", [1.0, -0.5, 0.0])
def test_a_kohya_lora_is_added_to_the_weights(tmp_path: Path, scale: float) -> None:
    path, tensors = tmp_path / "style.safetensors", kohya_lora()
    save_file(tensors, path)
    plain = loaded("sd1")
    b = load_backbone(built("sd1"), device="cpu", loras=[(path, scale)])
    # The update is alpha / rank * up @ down (arXiv 2106.09685, section 4.1).
    for number, (before, after) in enumerate(
        [
            (merged_layer(plain), merged_layer(b)),
            (text_layer(plain.text.encoders[0]), text_layer(b.text.encoders[0])),
        ]
    ):
        width = after.shape[0]
        update = draw(width, 2, seed=number + 10) @ draw(2, width, seed=number)
        assert torch.allclose(after, before + scale * 0.5 * update, atol=1e-5)
    assert b.unet.state_dict().keys() == plain.unet.state_dict().keys()
    assert torch.equal(noise(b), noise(plain)) == (scale == 0)
    same_text = torch.equal(b.embed(["a"], SIZE).hidden, plain.embed(["a"], SIZE).hidden)
    assert same_text == (scale == 0)
    assert b.hash != plain.hash
    assert not any(p.requires_grad for p in b.unet.parameters())


def test_a_peft_lora_saved_by_diffusers_keeps_its_alpha(tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(built("sd1") / "unet")
    unet.add_adapter(
        LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "conv1"], init_lora_weights=False)
    )
    state = get_peft_model_state_dict(unet)
    metadata = {"unet": unet.peft_config["default"].to_dict()}
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=state,
        unet_lora_adapter_metadata=metadata["unet"],
        weight_name="peft.safetensors",
    )
    b = load_backbone(built("sd1"), device="cpu", loras=[(tmp_path / "peft.safetensors", 0.7)])
    update = state[f"{LAYER}.lora_B.weight"] @ state[f"{LAYER}.lora_A.weight"]
    expected = merged_layer(loaded("sd1")) + 0.7 * 3 * update
    assert torch.allclose(merged_layer(b), expected, atol=1e-5)
    name = "mid_block.resnets.0.conv1"
    up, down = state[f"{name}.lora_B.weight"][:, :, 0, 0], state[f"{name}.lora_A.weight"]
    convolution = torch.einsum("or,rihw->oihw", up, down)
    expected = merged_layer(loaded("sd1"), name) + 0.7 * 3 * convolution
    assert torch.allclose(merged_layer(b, name), expected, atol=1e-5)


def test_loras_add_up_and_reach_sdxls_second_encoder(tmp_path: Path) -> None:
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    state = {
        f"unet.{layer}.lora_A.weight": draw(1, 32),
        f"unet.{layer}.lora_B.weight": draw(32, 1, seed=1),
        f"text_encoder_2.text_model.{TEXT_LAYER}.lora_A.weight": draw(1, WIDTH, seed=2),
        f"text_encoder_2.text_model.{TEXT_LAYER}.lora_B.weight": draw(WIDTH, 1, seed=3),
    }
    path = tmp_path / "xl.safetensors"
    save_file(state, path)
    plain = loaded("sdxl")
    b = load_backbone(built("sdxl"), device="cpu", loras=[(path, 0.25), (path, 0.5)])
    update = 0.75 * draw(32, 1, seed=1) @ draw(1, 32)
    assert torch.allclose(merged_layer(b, layer), merged_layer(plain, layer) + update, atol=1e-5)
    first, second = b.text.encoders
    assert torch.equal(text_layer(first), text_layer(plain.text.encoders[0]))
    expected = text_layer(plain.text.encoders[1])
    expected = expected + 0.75 * draw(WIDTH, 1, seed=3) @ draw(1, WIDTH, seed=2)
    assert torch.allclose(text_layer(second), expected, atol=1e-5)


def test_loras_that_do_not_fit_are_one_sentence(tmp_path: Path) -> None:
    def broken(name: str, tensors: dict[str, torch.Tensor]) -> Path:
        save_file(tensors, tmp_path / f"{name}.safetensors")
        return tmp_path / f"{name}.safetensors"

    good = kohya_lora()
    unet = {name: tensor for name, tensor in good.items() if "unet" in name}
    cases = [
        (broken("wide", {k: torch.cat([v, v], -1) if v.ndim else v for k, v in good.items()}), 1),
        (broken("other", {k.replace("blocks_0_", "blocks_7_"): v for k, v in unet.items()}), 1),
        (broken("nan", {k: v * float("nan") for k, v in good.items()}), 1),
        (broken("embedding", {"emb_params": draw(1, WIDTH)}), 1),
        (broken("fine", good), float("nan")),
        (broken("fine", good), float("inf")),
        (tmp_path / "absent.safetensors", 1),
        (tmp_path, 1),
    ]
    for path, scale in cases:
        with pytest.raises(InputError) as error:
            load_backbone(built("sd1"), device="cpu", loras=[(path, scale)])
        assert path.name in sentence(error)


# --- textual inversion ----------------------------------------------------------------------


def rows_of(b: Backbone, ids: list[int], number: int = 0) -> torch.Tensor:
    return b.text.encoders[number].get_input_embeddings().weight[ids].detach()


@pytest.mark.parametrize("count", [1, 3])
def test_a_textual_inversion_stands_for_its_vectors(tmp_path: Path, count: int) -> None:
    path, vectors = tmp_path / "any.safetensors", draw(count, WIDTH)
    save_file({"<my-cat>": vectors[0] if count == 1 else vectors}, path)
    plain = loaded("sd1")
    b = load_backbone(built("sd1"), device="cpu", textual_inversions=[path])
    ids = b.text.token_ids("a <my-cat> on a table")
    before = plain.text.token_ids("a table on a table")
    assert len(ids) == 77
    start = before.index(plain.text.token_ids("table")[1])
    new = ids[start : start + count]
    assert min(new) >= len(plain.text.tokenizers[0]) and len(set(new)) == count
    assert torch.equal(rows_of(b, new), vectors)
    assert ids[:start] == before[:start]
    assert ids[start + count : start + count + 4] == before[start + 1 : start + 5]
    for text in ("a cat", ""):
        assert torch.equal(b.embed([text], SIZE).hidden, plain.embed([text], SIZE).hidden)
    changed = b.embed(["a <my-cat>"], SIZE).hidden
    assert not torch.allclose(changed, plain.embed(["a <my-cat>"], SIZE).hidden, atol=1e-3)


def test_a_textual_inversion_for_sdxl_reaches_both_encoders(tmp_path: Path) -> None:
    path = tmp_path / "sketchy.safetensors"
    one, two = draw(2, WIDTH), draw(2, WIDTH, seed=1)
    save_file({"clip_l": one, "clip_g": two}, path)
    b = load_backbone(built("sdxl"), device="cpu", textual_inversions=[path])
    for number, vectors in enumerate((one, two)):
        ids = b.text.token_ids("sketchy", number)
        assert torch.equal(rows_of(b, ids[1:3], number), vectors)
        other = b.text.token_ids("sketchyness", number)
        assert other == loaded("sdxl").text.token_ids("sketchyness", number)
    plain = loaded("sdxl").embed(["sketchy"], SIZE)
    added = b.embed(["sketchy"], SIZE).added
    assert plain.added is not None and added is not None
    assert not torch.allclose(added["text_embeds"], plain.added["text_embeds"], atol=1e-4)


def test_the_pooled_text_is_read_at_the_end_even_in_old_configs(tmp_path: Path) -> None:
    """Old configs give 2 as the end token; CLIP then reads the largest id, an added token's."""
    folder = Path(shutil.copytree(built("sdxl"), tmp_path / "old"))
    edit(folder / "text_encoder_2" / "config.json", eos_token_id=2)
    path = tmp_path / "word.safetensors"
    save_file({"clip_l": draw(1, WIDTH), "clip_g": draw(1, WIDTH, seed=1)}, path)
    found = []
    for source in (built("sdxl"), folder):
        added = (
            load_backbone(source, device="cpu", textual_inversions=[path])
            .embed(["a word on it"], SIZE)
            .added
        )
        assert added is not None
        found.append(added["text_embeds"])
    assert torch.equal(found[0], found[1])


def test_textual_inversions_that_do_not_fit_are_one_sentence(tmp_path: Path) -> None:
    cases: dict[str, dict[str, torch.Tensor]] = {
        "wide": {"emb_params": draw(1, WIDTH + 1)},
        "many": {"emb_params": draw(76, WIDTH)},
        "none": {"emb_params": draw(0, WIDTH)},
        "deep": {"emb_params": draw(1, 1, WIDTH)},
        "nan": {"emb_params": draw(1, WIDTH) * float("nan")},
        "two": {"a": draw(1, WIDTH), "b": draw(1, WIDTH)},
        "xl": {"clip_l": draw(1, WIDTH), "clip_g": draw(1, WIDTH)},
        "known": {"<|endoftext|>": draw(1, WIDTH)},
        "blank": {" ": draw(1, WIDTH)},
    }
    for name, tensors in cases.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path)
        with pytest.raises(InputError) as error:
            load_backbone(built("sd1"), device="cpu", textual_inversions=[path])
        assert path.name in sentence(error)
    path = tmp_path / "mine.safetensors"
    save_file({"emb_params": draw(1, WIDTH)}, path)
    with pytest.raises(InputError, match="already"):
        load_backbone(built("sd1"), device="cpu", textual_inversions=[path, path])
    with pytest.raises(InputError, match="1 text encoder"):
        load_backbone(built("sdxl"), device="cpu", textual_inversions=[path])


def test_the_pipelines_of_diffusers_load_these_folders_too() -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(built("sdxl"), add_watermarker=False)
    assert pipe.unet.config.in_channels == 4


def test_a_download_that_broke_off_between_shards_is_not_complete(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(built("sd1"), folder)
    unet = folder / "unet"
    assert is_complete(folder, half=False)
    stem = "diffusion_pytorch_model"
    (unet / f"{stem}.safetensors").rename(unet / f"{stem}-00001-of-00002.safetensors")
    shards = {"a": f"{stem}-00001-of-00002.safetensors", "b": f"{stem}-00002-of-00002.safetensors"}
    index = unet / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert not is_complete(folder, half=False)
    (unet / shards["b"]).write_bytes((unet / shards["a"]).read_bytes())
    assert is_complete(folder, half=False)


def test_tensors_are_read_as_the_library_reads_them_but_into_memory_of_their_own(
    tmp_path: Path,
) -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    tensors = {f"{kind}": torch.arange(7).to(kind) for kind in kinds}
    tensors |= {"one": torch.tensor(2.5), "none": torch.zeros(0, 3), "matrix": draw(5, 4)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    made = read_tensors(tmp_path / "a.safetensors")
    assert made.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert made[name].dtype == tensor.dtype and torch.equal(made[name], tensor)
        assert made[name].data_ptr() % 64 == 0
    halves = read_tensors(tmp_path / "a.safetensors", torch.float16)
    assert torch.equal(halves["matrix"], tensors["matrix"].half())
    assert halves["torch.int64"].dtype == torch.int64


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_a_checkpoints_weights_lie_in_no_file(name: str, tmp_path: Path) -> None:
    """A file that is cut short after loading changes nothing, and ends no process."""
    shutil.copytree(built(name), tmp_path / name)
    backbone = load_backbone(tmp_path / name, device="cpu")
    for file in (tmp_path / name).rglob("*.safetensors"):
        file.write_bytes(b"")
    pairs = zip(backbone.network.parameters(), loaded(name).network.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert torch.equal(backbone.embed(["a"], SIZE).hidden, loaded(name).embed(["a"], SIZE).hidden)
