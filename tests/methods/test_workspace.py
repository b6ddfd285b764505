"""What goes into a network: on random checkpoints with Stable Diffusion's schedule and size."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from skimage import data
from torch import Tensor

import flows
from checkpoints import BUILDERS, built
from inlay import Box, Composer, InputError
from inlay.checkpoints.load import load_backbone
from inlay.diffusion.sample import draw_noise
from inlay.pictures.read import read_picture
from inlay.scene.stitch import Region, Scene, Window
from photos import cup

SIDE, VAE = 512, "diffusion_pytorch_model.safetensors"
BOX = Box(200, 150, 120, 100)


@functools.cache
def composer(name: str) -> Composer:
    """One of the small checkpoints, which says that it was trained at 512 pixels."""
    root = Path(tempfile.mkdtemp(prefix="inlay-checkpoint-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    folder = shutil.copytree(built(name), root / name)
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": SIDE // 8}))
    made = Composer.from_pretrained(str(folder), device="cpu", dtype="float32")
    assert made.backbone.native_size == SIDE
    return made


@contextmanager
def inputs(name: str) -> Iterator[list[Tensor]]:
    """What the network is fed, call by call."""
    seen: list[Tensor] = []
    network = composer(name).backbone.network
    handle = network.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    try:
        yield seen
    finally:
        handle.remove()


def mask(box: Box = BOX) -> np.ndarray:
    image = np.zeros(data.coffee().shape[:2], np.uint8)
    image[box.slices] = 255
    return image


def first_latent(name: str, method: str, **settings: Any) -> Tensor:
    """The latent (1, 4, h, w) of the network's first call, at strength 1 in 4 steps."""
    few = {"num_inference_steps": 4, "strength": 1.0, "guidance_scale": 1.0, "seed": 5}
    with inputs(name) as seen:
        if method == "inpaint":
            composer(name).remove(data.coffee(), mask=mask(), method=method, **few, **settings)
        else:
            told = {"inpaint": True, "grow": 0.1} if method == "phd" else {}
            composer(name).compose(
                data.coffee(), cup(), box=BOX, method=method,
                **few, **told, **settings,
            )  # fmt: skip
    return seen[0][:1, :4]


@pytest.mark.parametrize(
    ("name", "method", "scheduler"),
    [
        ("sd1", "inpaint", "EulerAncestralDiscreteScheduler"),
        ("sd1_inpaint", "inpaint", "DDIMScheduler"),
        ("sd2_v", "inpaint", "UniPCMultistepScheduler"),
        ("sdxl_inpaint", "inpaint", "EulerDiscreteScheduler"),
        ("sd1_inpaint", "cdc", None),
        ("sd1", "phd", "DDIMScheduler"),
    ],
)
def test_strength_1_starts_from_noise_alone(name: str, method: str, scheduler: str | None) -> None:
    settings = {} if scheduler is None else {"scheduler": scheduler}
    first = first_latent(name, method, **settings)
    assert first.shape == (1, 4, SIDE // 8, SIDE // 8)
    noise = draw_noise(first, torch.Generator().manual_seed(5))
    torch.testing.assert_close(first, noise, atol=1e-4, rtol=1e-3)
    window = Window.of(read_picture(data.coffee()), Scene(Region.of(mask() / np.float32(255))), 0.5)
    picture = composer(name).backbone.encode(window.tensor("clean", (SIDE, SIDE)))
    pair = torch.stack([first.flatten(), picture.flatten()])
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.04
    kept = first_latent(name, method, initial_latent="source", **settings)
    assert not torch.allclose(kept, first, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("context", "share"), [(0.5, 1 / 2), (0.25, 2 / 3)])
@pytest.mark.parametrize(
    "box", [BOX, Box(0, 0, 120, 100), Box(380, 280, 18, 20), Box(90, 60, 30, 7)]
)
def test_a_small_box_fills_its_share_of_what_the_model_sees(
    box: Box, context: float, share: float
) -> None:
    told = {"num_inference_steps": 1, "grow": 0.0, "context": context, "guidance_scale": 1.0}
    with inputs("sd1_inpaint") as seen:
        made = composer("sd1_inpaint").remove(
            data.coffee(), mask=mask(box), method="inpaint", **told
        )
    hole = seen[0][0, 4]
    assert max(hole.shape) == SIDE // 8
    rows, columns = int(hole.any(1).sum()), int(hole.any(0).sum())
    scale = SIDE / max(made.record["window"]["width"], made.record["window"]["height"])
    # Latent pixels that the box touches: up to two more than it is wide.
    assert 0 <= columns - box.width * scale / 8 <= 2
    assert 0 <= rows - box.height * scale / 8 <= 2
    least = max(box.width, box.height) * (1 + 2 * context) < 32
    assert max(box.width, box.height) * scale == pytest.approx(
        SIDE * max(box.width, box.height) / 32 if least else SIDE * share, rel=0.03
    )
    outside = np.asarray(made.image) != data.coffee()
    away = np.ones(mask().shape, bool)
    away[Box(box.x - 9, box.y - 9, box.width + 18, box.height + 18).intersect(
        Box(0, 0, away.shape[1], away.shape[0])
    ).slices] = False  # fmt: skip
    assert outside.any() and not outside[away].any()


@pytest.mark.parametrize("name", list(BUILDERS))
def test_sides_are_multiples_of_8(name: str) -> None:
    """A picture of 120 x 77: a window of 512 x 328 pixels is what is nearest to its shape."""
    picture = np.ascontiguousarray(data.coffee()[100:177, 200:320])
    hole = np.zeros(picture.shape[:2], np.uint8)
    hole[10:70, 10:110] = 255
    told = {"num_inference_steps": 1, "prompt": "a cat"}
    with inputs(name) as seen:
        composer(name).remove(picture, mask=hole, method="inpaint", **told)
        composer(name).remove(
            picture, mask=hole, method="freecompose", num_iterations=1, texture=0.0
        )
        composer(name).harmonize(picture, mask=hole, method="cdc", words_inside="cat", **told)
    assert {tuple(x.shape[2:]) for x in seen} == {(41, 64)}


def test_a_cut_prompt_is_in_the_record() -> None:
    told = {"num_inference_steps": 1, "mask": mask(), "method": "inpaint"}
    sd3, long = Composer(str(flows.built("sd3"))), "a cat on a table " * 60
    made = sd3.remove(data.coffee(), prompt=long, **told)
    (note,) = made.record["notes"]
    assert note.startswith("only the first 256 of the ") and "'a cat on a table" in note
    assert sd3.remove(data.coffee(), prompt=long, **told).record["notes"] == [note]
    assert sd3.remove(data.coffee(), prompt="a cat", **told).record["notes"] == []
    # A U-Net reads all of it.
    assert composer("sd1").remove(data.coffee(), prompt=long, **told).record["notes"] == []


@pytest.mark.parametrize("part", ["network", "vae"])
def test_nan_is_an_error_not_the_picture_as_it_was(part: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        broken = Composer.from_pretrained(
            str(shutil.copytree(built("sd1"), Path(root) / "sd1")), device="cpu", dtype="float32"
        )
        module = getattr(broken.backbone, part)
        with torch.no_grad():
            next(module.parameters()).fill_(float("nan"))
        what = "network" if part == "network" else "autoencoder"
        for settings in ({"method": "inpaint"}, {"method": "freecompose", "num_iterations": 2}):
            with pytest.raises(InputError, match=f"the {what} of the model .* gave NaN"):
                broken.remove(data.coffee(), mask=mask(), **settings)


def test_an_autoencoder_that_overflows_in_float16_is_run_in_float32(tmp_path: Path) -> None:
    """SDXL's own does, and some that were published beside it say wrongly that they do not."""
    folder = shutil.copytree(built("sdxl"), tmp_path / "sdxl")
    config, weights = (folder / "vae" / name for name in ("config.json", VAE))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"force_upcast": False}))
    tensors = load_file(weights)
    # What goes into the group norm behind is beyond float16's 65504, and normed again there.
    for name in ("encoder.conv_in", "decoder.conv_in"):
        tensors |= {f"{name}.{p}": tensors[f"{name}.{p}"] * 1e6 for p in ("weight", "bias")}
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"].clamp(-6e4, 6e4)
        tensors[f"{name}.bias"] = tensors[f"{name}.bias"].clamp(-6e4, 6e4)
    save_file(tensors, weights)
    half, full = (load_backbone(folder, device="cpu", dtype=d) for d in ("float16", "float32"))
    assert half.vae.dtype == torch.float16
    x = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        assert not half.vae.encode(x.half()).latent_dist.mode().isfinite().all()
        z = full.encode(x)
        torch.testing.assert_close(half.encode(x), z, atol=2e-3, rtol=2e-2)
        torch.testing.assert_close(half.decode(z), full.decode(z), atol=2e-3, rtol=2e-2)
    assert half.vae.dtype == torch.float16
