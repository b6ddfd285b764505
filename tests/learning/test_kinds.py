"""What learns: a LoRA quickly, the whole U-Net, the text encoders; and several processes at it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from checkpoints import built
from concepts import BOXES, learnt, photos
from inlay import InputError
from inlay.checkpoints.concept import attach, read_concept, write_concept
from inlay.checkpoints.load import load_backbone
from inlay.cli import main
from inlay.diffusion.attention import processors
from inlay.diffusion.attention_masked import MaskedAttention, released_tokens
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.conditions import Conditions
from inlay.learning.learn import Learning, learn, run_folder
from inlay.learning.loop import Processes
from inlay.learning.lora import PlainTrainingAttention, TrainingAttention
from inlay.learning.photos import find_views, with_places
from inlay.learning.samples import example
from inlay.learning.settings import LearnConfig

SMALL: dict[str, Any] = {
    "batch": 2, "variants": 2, "rank": 2, "resolution": 64, "layers": "attention",
}  # fmt: skip


def _run(out: Path, model: str = "sd1_inpaint", **changes: Any) -> Learning:
    config = LearnConfig(**{**SMALL, "model": str(built(model)), **changes})
    found = find_views(with_places(photos(), BOXES))
    backbone = load_backbone(config.model, device="cpu")
    return Learning([example(one, config, 64) for one in found], "cup", out, backbone, config)


def _state(backbone: Backbone) -> dict[str, torch.Tensor]:
    modules = (backbone.network, *backbone.text.encoders)
    return {
        f"{number}.{name}": value.clone()
        for number, module in enumerate(modules)
        for name, value in module.state_dict().items()
    }


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


@pytest.mark.parametrize("inside", [None, released_tokens()])
def test_one_prompt_for_all_rows_changes_no_sum(inside: torch.Tensor | None) -> None:
    backbone = load_backbone(built("sd1"), device="cpu")
    holes = torch.zeros(4, 1, 16, 16)
    holes[0, :, 2:9, 3:12] = holes[1, :, 8:10, :] = holes[2] = 1
    rules = [kind(holes, "a", inside=inside) for kind in (MaskedAttention, TrainingAttention)]
    z = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    text = Conditions(backbone.embed(["a photo of q cup"], (128, 128)).rows(4))
    found = []
    for rule, plain in zip(rules, (None, PlainTrainingAttention()), strict=True):
        x = z.clone().requires_grad_()
        if plain is not None:
            backbone.network.set_attn_processor(processors(plain, backbone.layers()))
        with backbone.attention(rule):
            output = backbone.predict(x, 500, text)
            output.square().sum().backward()
        found.append((output.detach(), x.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    # Rows that read prompts of their own are not taken for one.
    prompts = Conditions(backbone.embed(["cat", "a", "q", "two cups"], (128, 128)))
    results = []
    for rule in rules:
        with torch.no_grad(), backbone.attention(rule):
            results.append(backbone.predict(z, 500, prompts))
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)


def test_lean_layers_are_the_librarys(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", layers="all", rank=4)
    unet = run.backbone.network
    layers = [m for m in unet.modules() if hasattr(m, "lora_A")]
    assert {type(m.base_layer) for m in layers} == {nn.Linear, nn.Conv2d}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for layer in layers:
            for weights in (layer.lora_A, layer.lora_B):
                weight = weights["concept"].weight
                weight.copy_(torch.randn(weight.shape, generator=generator) / 8)
            linear = isinstance(layer.base_layer, nn.Linear)
            shape = (
                (2, 6, layer.base_layer.in_features)
                if linear
                else (2, layer.base_layer.in_channels, 6, 6)
            )
            x = torch.randn(shape, generator=generator)
            plain = type(layer).forward(layer, x)
            assert not torch.equal(plain, layer.base_layer(x))
            torch.testing.assert_close(layer(x), plain, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_whole_unet_learns(checkpointing: bool, tmp_path: Path) -> None:
    # The paper's rate, unless one is given.
    assert LearnConfig(train="full").learning_rate == 5e-6
    assert LearnConfig(train="full", learning_rate=1e-3).learning_rate == 1e-3
    run = _run(
        tmp_path / "run", train="full", learning_rate=1e-3, warmup_steps=1, resolution=128,
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    before = _state(run.backbone)
    for _ in range(2):
        run.train_step()
    after = _state(run.backbone)
    assert not [k for k, v in before.items() if k[0] == "0" and torch.equal(v, after[k])]
    assert not [k for k, v in before.items() if k[0] != "0" and not torch.equal(v, after[k])]
    row, _ = run.report()
    assert row["loss_in_box_photos"] != row["loss_in_box_photos_before"]


def test_a_whole_unet_goes_in_and_out(tmp_path: Path) -> None:
    path, model = learnt("sd1", train="full"), str(built("sd1"))
    held = load_file(path)
    backbone = load_backbone(model, device="cpu")
    before = _state(backbone)
    assert {key.removeprefix("unet.") for key in held} == backbone.network.state_dict().keys()
    assert {value.dtype for value in held.values()} == {torch.float16}
    with attach(backbone, path) as concept:
        assert concept.kind == "full"
        assert all(
            torch.equal(value, held[f"unet.{name}"].float())
            for name, value in backbone.network.state_dict().items()
        )
    assert _same(before, _state(backbone))
    with attach(backbone, path, 0.0):
        assert _same(before, _state(backbone))
    with pytest.raises(InputError, match="cannot be merged"):
        load_backbone(model, device="cpu", loras=[(path, 1.0)])
    broken = tmp_path / "cup.safetensors"
    write_concept(broken, read_concept(path), dict(list(held.items())[1:]))
    with pytest.raises(InputError, match="does not fit"), attach(backbone, broken):
        raise AssertionError
    assert _same(before, _state(backbone))


@pytest.mark.parametrize("model", ["sd1_inpaint", "sdxl"])
def test_the_text_encoders_learn(model: str, tmp_path: Path) -> None:
    import diffusers

    first = model == "sd1_inpaint"
    # Written as tests of the file write it, to have it made once.
    path = learnt(text_encoder=True) if first else learnt(model, text_encoder=True)
    prefixes = {key.partition(".")[0] for key in load_file(path)}
    assert prefixes == {"unet", "text_encoder", *([] if first else ["text_encoder_2"])}
    backbone = load_backbone(built(model), device="cpu")
    prompt, size = ["a photo of q cup"], (64, 64)
    before, plain = _state(backbone), backbone.embed(prompt, size).hidden
    with attach(backbone, path):
        inside = backbone.embed(prompt, size).hidden
    assert torch.equal(backbone.embed(prompt, size).hidden, plain)
    assert _same(before, _state(backbone))
    assert (inside - plain).abs().max() > 1e-2
    with attach(backbone, path, 0.5), attach(backbone, path, 0.5):
        torch.testing.assert_close(backbone.embed(prompt, size).hidden, inside)
    merged = load_backbone(built(model), device="cpu", loras=[(path, 1.0)])
    torch.testing.assert_close(merged.embed(prompt, size).hidden, inside)
    library: Any = diffusers
    pipe = library.DiffusionPipeline.from_pretrained(built(model))
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    backbone.text.encoders = [pipe.text_encoder, *([] if first else [pipe.text_encoder_2])]
    backbone.text.clear()
    torch.testing.assert_close(backbone.embed(prompt, size).hidden, inside)


def test_a_text_encoders_lora_is_all_of_it_that_learns(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", "sdxl", text_encoder=True, warmup_steps=1)
    before = _state(run.backbone)
    for _ in range(2):
        run.train_step()
    moved = {k for k, v in _state(run.backbone).items() if not torch.equal(v, before[k])}
    learning = {k for k in before if "lora_" in k}
    # The pooled text comes from the last layer, the rest from the one before: all are in use, but
    # for the first encoder's last.
    last = "1.encoder.layers.1."
    assert moved == {k for k in learning if not k.startswith(last)}


def _in_processes(arguments: list[str], count: int) -> list[str]:
    """A command line in processes that know of each other, as accelerate starts them; the output
    of each.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
        "INLAY_DEBUG": "1",
    }  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "inlay", *arguments],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    told = []
    for process in running:
        out, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        told.append(out)
    return told


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    files = []
    for number, photo in enumerate(photos()):
        files.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(photo).save(files[-1])
    settings, model = {**SMALL, "steps": 2, "learning_rate": 0.01}, str(built("sd1_inpaint"))
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    places = with_places(files, BOXES)
    learn(places, "cup", one, LearnConfig(**settings, model=model), device="cpu")
    arguments = ["learn", *files, "--class-name", "cup", "-o", str(two), "--model", model]
    arguments += ["--json"]
    for box in BOXES:
        arguments += ["--box", f"{box.x},{box.y},{box.width},{box.height}"]
    told = _in_processes([*arguments, *(f"--set={k}={v}" for k, v in settings.items())], 2)
    assert json.loads(told[0])["steps"] == 2 and told[1] == ""
    states = [load_file(run_folder(file) / "state.safetensors") for file in (one, two)]
    for group in ("net.", "ema.", "opt.exp_avg.", "opt.exp_avg_sq."):
        first, second = (
            torch.cat([state[key].flatten() for key in sorted(state) if key.startswith(group)])
            for state in states
        )
        # bfloat16, and sums in another order.
        assert (first - second).norm() < 0.05 * first.norm(), group
    rows = [(run_folder(f) / "log.jsonl").read_text().splitlines() for f in (one, two)]
    losses = [json.loads(lines[-1])["train_loss"] for lines in rows]
    assert len(rows[1]) == len(rows[0]) and np.isclose(*losses, rtol=1e-2)


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    shared = Processes()
    shared.count, shared.number = 2, 1
    assert shared.rows(6) == [1, 3, 5]
    with pytest.raises(InputError, match="batch is 3; expected a multiple of the 2 processes"):
        shared.rows(3)


def test_the_command_line_asks_for_a_whole_unet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(photos()[0]).save(tmp_path / "cup.png")
    out = tmp_path / "cup.safetensors"
    arguments = ["learn", str(tmp_path / "cup.png"), "--class-name", "cup", "-o", str(out)]
    arguments += ["--box", "60,30,90,80", "--model", str(built("sd1")), "--full", "--json"]
    for setting in ("steps=1", "batch=1", "variants=1", "resolution=64", "full_dtype=float32"):
        arguments += ["--set", setting]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "full" and told["settings"]["learning_rate"] == 5e-6
    assert "picture" not in told["sights"][0]
    assert {value.dtype for value in load_file(out).values()} == {torch.float32}
