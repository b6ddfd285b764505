"""IP-Adapters in their released layout, on small random checkpoints, beside diffusers' own."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data

import checkpoints
from inlay import Box, Composer, InputError, Result
from inlay.checkpoints.load import load_ip_adapter
from inlay.cli import main
from inlay.diffusion.conditions import Conditions
from inlay.methods.base import Context
from inlay.methods.phd import PhdSettings
from inlay.methods.phd.stages import image_prompt
from inlay.methods.workspace import Workspace
from inlay.pictures.read import read_record
from inlay.scene.stitch import Window
from photos import cutout
from reruns import needs, rerun

Capture = pytest.CaptureFixture[str]
Tensors = dict[str, torch.Tensor]
PIPELINES: dict[str, Any] = {"sd1": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
FEW: dict[str, Any] = {
    "method": "phd", "num_inference_steps": 2, "prompt": "a cat", "harmonize": False, "seed": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    root = tmp_path_factory.mktemp("ip")

    @functools.cache
    def build(name: str, kind: str = "plain") -> Path:
        return checkpoints.build_ip_adapter(root / f"{name}-{kind}", checkpoints.loaded(name), kind)

    return build


@pytest.mark.parametrize(
    ("name", "kind"), [("sd1", "plain"), ("sd1", "plus"), ("sd1", "full"), ("sdxl", "plain")]
)
def test_the_noise_is_that_of_diffusers_own_pipeline(
    built: Callable[..., Path], name: str, kind: str
) -> None:
    folder, backbone = built(name, kind), checkpoints.loaded(name)
    picture, calls = Image.fromarray(data.astronaut()[:90, :70]), list[Any]()
    pipe = PIPELINES[name].from_pretrained(checkpoints.built(name))
    pipe.load_ip_adapter(str(folder), subfolder="", weight_name="ip.safetensors")
    pipe.set_ip_adapter_scale(0.7)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.register_forward_hook(lambda *call: calls.append(call[1:]), with_kwargs=True)
    told = {"guidance_scale": 3.0, "height": 128, "width": 128, "output_type": "latent"}
    generator = torch.Generator().manual_seed(1)
    pipe(
        "a cat", negative_prompt="a table", ip_adapter_image=picture,
        num_inference_steps=1, generator=generator, **told,
    )  # fmt: skip
    (z, t), _, (output, *_) = calls[0]
    expected = output[:1] + 3.0 * (output[1:] - output[:1])
    text, negative = (backbone.embed([words], (128, 128)) for words in ("a cat", "a table"))
    told = Conditions(text, negative, 3.0)
    prompt = load_ip_adapter(str(folder / "ip.safetensors"), backbone).prompt(picture, 0.7)
    with torch.no_grad():
        plain, _ = backbone.denoiser(told)(z[:1], backbone.levels[int(t)])
        with backbone.attention(prompt):
            noise, _ = backbone.denoiser(told)(z[:1], backbone.levels[int(t)])
            both, _ = backbone.denoiser(told)(z[:1].repeat(2, 1, 1, 1), backbone.levels[int(t)])
            alone, _ = backbone.denoiser(replace(told, negative=None))(
                z[:1], backbone.levels[int(t)]
            )
    assert (noise - expected).abs().max() < 1e-4
    assert (alone - output[1:]).abs().max() < 1e-4
    assert (both - expected).abs().max() < 1e-4
    assert (noise - plain).abs().max() > 1e-2


@functools.cache
def composer(name: str) -> Composer:
    return Composer.from_pretrained(str(checkpoints.built(name)), device="cpu", dtype="float32")


@functools.cache
def subject() -> np.ndarray:
    return cutout(data.coffee()[::4, ::4], Box(30, 5, 60, 50))


def composed(name: str, **settings: Any) -> Result:
    background = np.ascontiguousarray(data.chelsea()[:140, 200:360])
    return composer(name).compose(
        background, subject(), box=Box(40, 30, 60, 50), shadow="none", **FEW, **settings
    )


def scene(name: str, **settings: Any) -> Result:
    return composer(name).scene(subject(), size=(160, 96), **FEW, refine_steps=4, **settings)


def pixels(result: Result) -> np.ndarray:
    return np.asarray(result.image)


@pytest.mark.parametrize("made", [composed, scene])
def test_the_subject_is_a_prompt_of_what_is_painted_round_it(
    built: Callable[..., Path], made: Callable[..., Result]
) -> None:
    name, file = "sd1", str(built("sd1") / "ip.safetensors")
    plain, none = made(name), made(name, ip_adapter=file, ip_adapter_scale=0)
    shown = made(name, ip_adapter=file, ip_adapter_scale=1)
    assert np.array_equal(pixels(plain), pixels(none))
    changed = (pixels(plain) != pixels(shown)).any(-1)
    assert changed.any() and not changed.all()
    assert "ip_adapter" not in none.record and "ip_adapter" not in plain.record
    adapter = composer(name).ip_adapter(file)
    assert shown.record["ip_adapter"] == {"name": file, "hash": adapter.hash}
    # The network is as it was, for whoever comes next.
    assert np.array_equal(pixels(made(name)), pixels(plain))


def test_the_prompt_is_the_whole_cutout_on_a_white_square(built: Callable[..., Path]) -> None:
    file = str(built("sd1") / "ip.safetensors")
    cut = subject()
    alpha = cut[..., 3:].astype(np.float32) / 255
    paint = np.zeros((90, 120, 3), np.float32)
    cover = np.zeros((90, 120), np.float32)
    place = slice(10, 10 + cut.shape[0]), slice(30, 30 + cut.shape[1])
    paint[place], cover[place] = cut[..., :3] / 255 * alpha, alpha[..., 0]
    rows, columns = (np.flatnonzero((cover > 1 / 512).any(axis)) for axis in (1, 0))
    tall, wide = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    side = max(tall, wide)
    square = np.ones((side, side, 3), np.float32)
    top, left = round((side - tall) / 2), round((side - wide) / 2)
    part = slice(rows[0], rows[0] + tall), slice(columns[0], columns[0] + wide)
    square[top : top + tall, left : left + wide] = paint[part] + (1 - cover[part])[..., None]
    window = Window(Box(0, 0, 120, 90), paint, paint, cover, paint)
    settings = PhdSettings(ip_adapter=file, ip_adapter_scale=0.3)
    context = Context(models=composer("sd1"))
    made = image_prompt(
        Workspace(window, composer("sd1").backbone, settings, context), settings, paint, cover
    )
    expected = (
        composer("sd1")
        .ip_adapter(file)
        .prompt(Image.fromarray(np.round(square * 255).astype(np.uint8)), 0.3)
    )
    assert made is not None and made.scale == 0.3 and context.ip_adapter is not None
    for place, pair in expected.seen.items():
        for x, y in zip(made.seen[place], pair, strict=True):
            assert (x - y).abs().max() < 1e-5


def test_a_picture_is_made_again_only_where_the_adapter_is_named(
    built: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "own"
    shutil.copytree(built("sd1"), folder)
    Image.fromarray(np.ascontiguousarray(data.chelsea()[:140, 200:360])).save("cat.png")
    Image.fromarray(subject()).save("cup.png")
    file = folder / "ip.safetensors"
    settings = [
        "prompt=a cat", "num_inference_steps=2", "harmonize_steps=2", "harmonize_strength=0.6",
        "harmonizer=none", f"ip_adapter={file}", "ip_adapter_scale=1",
    ]  # fmt: skip
    command = ["compose", "cat.png", "cup.png", "--box", "40,30,60,50", "-o", "out.png", "--quiet"]
    command += ["--model", str(checkpoints.built("sd1")), "--shadow", "none", "--keep-phases"]
    assert main([*command, *(word for each in settings for word in ("--set", each))]) == 0
    parts = {"out.png": 1, "out-1-paste.png": 0, "out-2-inpaint.png": 1, "out-3-harmonize.png": 1}
    for picture, has in parts.items():
        asked = needs(picture)
        assert (f"ip_adapter={file}" in asked) == has
        record = json.loads(read_record(picture) or "")
        assert ("ip_adapter" in record) == has
        assert main(["rerun", picture, "-o", "again.png", "-q", *asked]) == 0
        assert Path("again.png").read_bytes() == Path(picture).read_bytes()
    assert capsys.readouterr().err == ""
    weights = load_file(file)
    save_file({key: x + 1 for key, x in weights.items()}, file)
    assert rerun("out-2-inpaint.png", "other.png", "-q") == 2
    assert "ip_adapter" in capsys.readouterr().err
    assert not Path("other.png").exists()


def test_what_paints_nothing_says_that_the_adapter_is_not_used(built: Callable[..., Path]) -> None:
    made = composed("sd1", inpaint=False, ip_adapter=str(built("sd1") / "ip.safetensors"))
    assert any("ip_adapter is not used" in line for line in made.record["notes"])
    assert "ip_adapter" not in made.record


@pytest.mark.parametrize("name", ["embedded", "sd2_v"])
def test_other_families_have_no_ip_adapter(
    built: Callable[..., Path], name: str, tmp_path: Path, capsys: Capture
) -> None:
    model = name if name == "embedded" else str(checkpoints.built(name))
    Image.fromarray(np.ascontiguousarray(data.chelsea()[:140, 200:360])).save(tmp_path / "cat.png")
    Image.fromarray(subject()).save(tmp_path / "cup.png")
    command = ["compose", str(tmp_path / "cat.png"), str(tmp_path / "cup.png"), "--box"]
    command += ["40,30,60,50", "--model", model, "-o", str(tmp_path / "out.png"), "--quiet"]
    command += ["--set", f"ip_adapter={built('sd1')}/ip.safetensors", "--set", "inpaint=true"]
    capsys.readouterr()
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Stable Diffusion 1.x or XL" in said
    assert not (tmp_path / "out.png").exists()


def without(key: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: x for name, x in tensors.items() if name != key}


def face(tensors: Tensors) -> Tensors:
    """As those for faces: with LoRA weights beside them."""
    return tensors | {"ip_adapter.0.to_q_lora.down.weight": torch.zeros(2, 16)}


BAD: dict[str, Callable[[Tensors], Tensors]] = {
    "no projection": lambda x: {k: v for k, v in x.items() if k.startswith("ip_adapter.")},
    "no layers": lambda x: {k: v for k, v in x.items() if k.startswith("image_proj.")},
    "a layer too few": without("ip_adapter.3.to_v_ip.weight"),
    "a layer too many": lambda x: x | {"ip_adapter.99.to_k_ip.weight": torch.zeros(16, 32)},
    "a layer too wide": lambda x: x | {"ip_adapter.1.to_k_ip.weight": torch.zeros(18, 32)},
    "an encoder too wide": lambda x: x | {"image_proj.proj.weight": torch.zeros(128, 9)},
    "a flat projection": lambda x: x | {"image_proj.proj.weight": torch.zeros(128)},
    "no norm": without("image_proj.norm.weight"),
    "for faces": face,
    "of nothing": lambda x: {"x": torch.zeros(1)},
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_does_not_fit_is_refused_in_a_sentence(
    built: Callable[..., Path], kind: str, tmp_path: Path
) -> None:
    folder = tmp_path / "own"
    shutil.copytree(built("sd1"), folder)
    file = folder / "ip.safetensors"
    save_file(BAD[kind](load_file(file)), file)
    with pytest.raises(InputError, match="does not fit the model") as refusal:
        load_ip_adapter(str(file), checkpoints.loaded("sd1"))
    assert "\n" not in str(refusal.value)


def test_files_that_are_not_right_are_refused_in_a_sentence(
    built: Callable[..., Path], tmp_path: Path
) -> None:
    backbone, folder = checkpoints.loaded("sd1"), tmp_path / "own"
    shutil.copytree(built("sd1"), folder)
    file, encoder = folder / "ip.safetensors", folder / "image_encoder"

    def refusal(path: Path = file) -> str:
        with pytest.raises(InputError) as told:
            load_ip_adapter(str(path), backbone)
        assert "\n" not in str(told.value) and str(path) in str(told.value)
        return str(told.value)

    assert "does not fit" in refusal(built("sdxl") / "ip.safetensors")
    assert "does not exist" in refusal(tmp_path / "none.safetensors")
    assert "must be a .safetensors file" in refusal(folder)
    pickle = folder / "ip.bin"
    pickle.write_bytes(b"\x80\x04")
    assert "is a pickle" in refusal(pickle)
    weights = encoder / "model.safetensors"
    told = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps({**told, "num_hidden_layers": 100_000}))
    assert "far more weights" in refusal()
    (encoder / "config.json").write_text(json.dumps({**told, "num_channels": 1}))
    tensors = load_file(weights)
    grey = "vision_model.embeddings.patch_embedding.weight"
    tensors[grey] = tensors[grey][:, :1].contiguous()
    save_file(tensors, weights, metadata={"format": "pt"})
    assert "does not fit" in refusal()
    weights.rename(encoder / "pytorch_model.bin")
    assert "only as a pickle" in refusal()
    shutil.rmtree(encoder)
    assert "image_encoder" in refusal()
    file.write_bytes(file.read_bytes()[:-100])
    assert "not a whole .safetensors file" in refusal()
