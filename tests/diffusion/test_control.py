"""Control images on hand-made pictures, and T2I-Adapters against direct calls of diffusers."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import T2IAdapter, UNet2DConditionModel
from skimage import data

from checkpoints import built, loaded, predictions, raw
from inlay import InputError
from inlay.checkpoints.load import load_backbone, load_branch
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.branches import (
    ControlAdapter,
    canny,
    control_image,
    feature_shapes,
    fit_drawing,
    new_adapter,
    sketch,
)
from inlay.diffusion.conditions import Conditions
from inlay.diffusion.distill import Side, delta

NAMES = ["sd1", "sd1_inpaint", "sd2_v", "sdxl", "sdxl_inpaint", "embedded"]
WEIGHTS = "diffusion_pytorch_model.safetensors"
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


# --- Control images -------------------------------------------------------------------------


def square(inside: int = 220, outside: int = 40) -> np.ndarray:
    """A grey square from 20 to 43 on another grey, 64 pixels wide."""
    picture = np.full((64, 64, 3), outside, np.uint8)
    picture[20:44, 20:44] = inside
    return picture


def test_canny_draws_the_outline_and_nothing_else() -> None:
    edges = canny(square())
    assert set(np.unique(edges)) == {0.0, 1.0}
    far = np.ones((64, 64), bool)
    far[18:46, 18:46] = False
    far[23:41, 23:41] = True
    assert not edges[far].any()
    # A closed line: every row and every column through the square meets it twice.
    assert (edges[24:40].sum(1) == 2).all()
    assert (edges[:, 24:40].sum(0) == 2).all()
    assert not canny(np.full((64, 64, 3), 90, np.uint8)).any()
    # Edges of the colour that differ little are none.
    assert not canny(square(60, 50)).any()


def test_a_sketch_lies_on_the_darker_side_whatever_the_light() -> None:
    lines = sketch(square())
    assert lines.dtype == np.float32 and lines.min() == 0 and lines.max() <= 1
    assert lines[32, 19] > 0.7 and lines[32, 44] > 0.7
    assert not lines[24:40, 24:40].any() and not lines[:10].any() and not lines[:, 54:].any()
    assert sketch(square(40, 220))[32, 20] > 0.7
    dim = sketch(square(110, 20))
    assert abs(dim[32, 19] - lines[32, 19]) < 0.15
    assert sketch(square(60, 50))[32, 19] < lines[32, 19]
    assert not sketch(np.full((64, 64, 3), 90, np.uint8)).any()


@pytest.mark.parametrize("kind", ["canny", "sketch"])
def test_pictures_of_a_batch_become_lines_in_their_order(kind: Any) -> None:
    photos = [data.chelsea()[:96, 200:328], data.coffee()[40:136, 100:228]]
    batch = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).float() / 127.5 - 1
    lines = control_image(batch, kind)
    assert lines.shape == (2, 1, 96, 128) and lines.dtype == torch.float32
    for photo, drawn in zip(photos, lines, strict=True):
        expected = {"canny": canny, "sketch": sketch}[kind](np.ascontiguousarray(photo))
        np.testing.assert_array_equal(drawn[0].numpy(), expected)
        assert 0.005 < (drawn > 0.5).float().mean() < 0.5


@pytest.mark.parametrize("kind", ["canny", "sketch"])
def test_a_drawing_keeps_its_thin_lines_when_it_shrinks(kind: Any) -> None:
    drawing = np.zeros((120, 160), np.float32)
    drawing[:, 77] = 1
    small = fit_drawing(drawing, (30, 40), kind)
    assert small.shape == (1, 1, 30, 40) and small.dtype == torch.float32
    assert (small[0, 0].sum(1) == 1).all() and (small[..., 19] == 1).all()
    large = fit_drawing(drawing, (240, 320), kind)
    assert large.shape == (1, 1, 240, 320) and (large.max(-1).values[..., 2:-2] > 0.7).all()
    np.testing.assert_array_equal(fit_drawing(drawing, (120, 160), kind)[0, 0], drawing)


def test_strokes_of_a_pen_become_as_thin_as_cannys_where_the_adapter_knows_those() -> None:
    drawing = np.zeros((64, 64), np.float32)
    drawing[30:37, 4:60] = 0.9
    thin = fit_drawing(drawing, (64, 64), "canny")[0, 0]
    assert set(thin.unique().tolist()) == {0.0, 1.0}
    assert (thin[:, 10:54].sum(0) == 1).all() and thin[33, 10:54].all()
    np.testing.assert_array_equal(fit_drawing(drawing, (64, 64), "sketch")[0, 0], drawing)


# --- Adapters and what a U-Net makes of them ------------------------------------------------


@functools.cache
def backbone_of(name: str) -> Backbone:
    return load_backbone("embedded", device="cpu") if name == "embedded" else loaded(name)


def adapter_of(backbone: Backbone, seed: int = 0, **changes: Any) -> ControlAdapter:
    """An untrained adapter whose features are large enough to matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = new_adapter(backbone)
        if changes:
            network = T2IAdapter.from_config(network.config, **changes)
    network.requires_grad_(False)
    return ControlAdapter(network, backbone, name="untrained", hasher=lambda: "")


def drawing(backbone: Backbone, seed: int = 0, rows: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    side = 16 * backbone.multiple
    return (torch.rand(rows, 1, side, side, generator=generator) > 0.8).float()


def inputs(backbone: Backbone, rows: int = 1) -> tuple[torch.Tensor, Any, Any]:
    """z, mask and masked latent at the size of drawing()."""
    generator = torch.Generator().manual_seed(7)
    side = 16 * backbone.multiple // backbone.factor
    z, seen = torch.randn(2, rows, backbone.latent_channels, side, side, generator=generator)
    if backbone.kind == "plain":
        return z, None, None
    mask = torch.zeros(rows, 1, side, side)
    mask[..., side // 4 : side // 2] = 1
    return z, mask, seen


@torch.no_grad()
def literal(backbone: Backbone, z: Any, t: int, text: Any, features: Any, *masks: Any) -> Any:
    """diffusers' own call, one row."""
    fed = torch.cat([x for x in (z, *masks) if x is not None], 1)
    return backbone.unet(
        fed,
        t,
        text.hidden,
        added_cond_kwargs=text.added,
        down_intrablock_additional_residuals=[level.clone() for level in features],
    ).sample


@pytest.mark.parametrize("name", NAMES)
def test_a_prediction_with_features_is_diffusers_own(name: str) -> None:
    backbone = backbone_of(name)
    z, mask, seen = inputs(backbone)
    side = 16 * backbone.multiple
    cond, uncond = (backbone.embed([text], (side, side)) for text in ("a cat", ""))
    features = adapter_of(backbone).features(drawing(backbone), 0.9)
    kept = list(features)
    expected = literal(backbone, z, 401, cond, features, mask, seen)
    got = raw(backbone, z, 401, cond, mask, seen, control=features)
    torch.testing.assert_close(got, expected, **CLOSE)
    assert all(one is other for one, other in zip(features, kept, strict=True))
    assert not torch.allclose(got, raw(backbone, z, 401, cond, mask, seen), atol=1e-3)
    # Every level counts, the middle's too, which is passed over where its shape is not right.
    for number in range(len(features)):
        less = [level * (place != number) for place, level in enumerate(features)]
        other = raw(backbone, z, 401, cond, mask, seen, control=less)
        assert not torch.allclose(got, other, atol=1e-5)
    # Both rows of a guided batch see them, and the timestep may be a tensor.
    other = literal(backbone, z, 401, uncond, features, mask, seen)
    guided, _ = predictions(backbone, z, 401, cond, uncond, 1.5, mask, seen, control=features)
    output, kind = other + 1.5 * (expected - other), backbone.prediction_type
    wanted = backbone.levels[401].estimates(output, z, kind)[0]
    torch.testing.assert_close(guided, wanted, **CLOSE)
    many = raw(backbone, z, torch.tensor([401]), cond, mask, seen, control=features)
    torch.testing.assert_close(many, got, **CLOSE)


@pytest.mark.parametrize("name", ["sd1", "sdxl_inpaint", "embedded"])
def test_two_rows_of_features_stay_with_their_latents(name: str) -> None:
    backbone = backbone_of(name)
    z, mask, seen = inputs(backbone, rows=2)
    side = 16 * backbone.multiple
    cond = backbone.embed(["a cat", "two cups"], (side, side))
    uncond = backbone.embed([""], (side, side))
    features = adapter_of(backbone).features(drawing(backbone, rows=2))
    both, x0 = predictions(backbone, z, 300, cond, uncond, 1.5, mask, seen, control=features)
    for row, prompt in enumerate(["a cat", "two cups"]):
        part = slice(row, row + 1)
        alone, alone_x0 = predictions(
            backbone, z[part], 300, backbone.embed([prompt], (side, side)), uncond, 1.5,
            *(None if x is None else x[part] for x in (mask, seen)),
            control=[level[part] for level in features],
        )  # fmt: skip
        torch.testing.assert_close(both[part], alone, **CLOSE)
        torch.testing.assert_close(x0[part], alone_x0, **CLOSE)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "embedded"])
def test_either_branch_of_a_distillation_has_its_own_features(name: str) -> None:
    backbone = backbone_of(name)
    z, mask, seen = inputs(backbone)
    side = 16 * backbone.multiple
    adapter, t, guidance = adapter_of(backbone), 300, 1.5
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    level = backbone.levels[t]
    noisy = level.add_noise(z, noise)
    uncond = backbone.embed([""], (side, side))
    branches, slow = [], []
    for seed, prompt in enumerate(("something", "something else")):
        cond, features = (
            backbone.embed([prompt], (side, side)),
            adapter.features(drawing(backbone, seed)),
        )
        told = Conditions(cond, uncond, guidance, mask=mask, masked_latent=seen, control=features)
        branches.append(Side(z, told))
        rows = [literal(backbone, noisy, t, text, features, mask, seen) for text in (uncond, cond)]
        output = rows[0] + guidance * (rows[1] - rows[0])
        slow.append(level.estimates(output, noisy, backbone.prediction_type)[0])
    sizes: list[int] = []
    handle = backbone.unet.register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    try:
        g, known = delta(backbone.denoiser, *branches, level, noise)
        again, _ = delta(backbone.denoiser, *branches, level, noise, known)
    finally:
        handle.remove()
    assert sizes == [4, 2]
    torch.testing.assert_close(known, slow[0], **CLOSE)
    torch.testing.assert_close(g, slow[1] - slow[0], **CLOSE)
    torch.testing.assert_close(again, g, **CLOSE)
    bare = Side(z, replace(told, control=None))
    with pytest.raises(ValueError, match="control"):
        delta(backbone.denoiser, bare, branches[1], level, noise)


def test_three_channels_are_the_lines_in_white() -> None:
    backbone = loaded("sd1")
    adapter = adapter_of(backbone, in_channels=3)
    lines = drawing(backbone)
    for got, expected in zip(
        adapter.features(lines, 0.5), adapter.network(torch.cat([lines] * 3, 1)), strict=True
    ):
        torch.testing.assert_close(got, 0.5 * expected)


SD15 = {
    "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768,
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
}  # fmt: skip
SDXL = {
    "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("unet", "adapter", "middle"),
    [
        (SD15, {"adapter_type": "full_adapter"}, False),
        (SD15, {"adapter_type": "light_adapter", "channels": [320, 640, 1280]}, False),
        (SDXL, {"adapter_type": "full_adapter_xl", "downscale_factor": 16}, True),
    ],
    ids=["sd15", "sd15-light", "sdxl"],
)
def test_what_the_published_adapters_make_is_what_their_unets_take(
    unet: dict[str, Any], adapter: dict[str, Any], middle: bool
) -> None:
    """In their real widths, on no device: shapes alone."""
    with torch.device("meta"):
        network = UNet2DConditionModel(**unet, layers_per_block=1)
        made = T2IAdapter(**adapter)(torch.zeros(1, 3, 512, 768))
    shapes = feature_shapes(network, 64, 96)
    assert [tuple(level.shape[1:]) for level in made] == shapes[: None if middle else -1]


# --- Files ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter for sd1 as diffusers saves one; free to be broken."""
    adapter_of(loaded("sd1")).network.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_folder_loads_frozen_and_as_it_was_saved(folder: Path) -> None:
    backbone = loaded("sd1")
    expected, adapter = adapter_of(backbone), load_branch(ControlAdapter, str(folder), backbone)
    lines = drawing(backbone)
    pairs = zip(adapter.features(lines, 0.9), expected.features(lines, 0.9), strict=True)
    assert all(torch.equal(got, wanted) for got, wanted in pairs)
    assert not any(p.requires_grad for p in adapter.network.parameters())
    assert len(adapter.hash) == 64
    half = load_branch(ControlAdapter, str(folder), loaded("sd1", "bfloat16"))
    assert {p.dtype for p in half.network.parameters()} == {torch.bfloat16}
    other = copy.deepcopy(expected.network)
    next(other.parameters()).add_(1)
    other.save_pretrained(folder.parent / "other")
    assert load_branch(ControlAdapter, str(folder.parent / "other"), backbone).hash != adapter.hash


def test_a_cached_hub_id_loads_offline(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    root = tmp_path / "hub" / "models--someone--an-adapter"
    shutil.copytree(folder, root / "snapshots" / "0123abcd")
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0123abcd")
    adapter = load_branch(ControlAdapter, "someone/an-adapter", loaded("sd1"))
    assert adapter.name == "someone/an-adapter"
    with pytest.raises(InputError, match=r"^The adapter someone/another is not in the local"):
        load_branch(ControlAdapter, "someone/another", loaded("sd1"))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut_short(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (cut_short, "truncated"),
        (pickled, "pickle"),
        (lambda f: (f / WEIGHTS).unlink(), "holds no weights"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "not readable JSON"),
        (lambda f: edit(f, _class_name="ControlNetModel"), "is a ControlNetModel"),
        (lambda f: edit(f, adapter_type="heavy_adapter"), "could not be loaded"),
        (lambda f: edit(f, num_res_blocks=3), "lacks"),
        (lambda f: edit(f, channels=[16, 16, 32, 48]), "could not be loaded"),
    ],
)
def test_what_is_wrong_with_a_folder_is_one_sentence(folder: Path, spoil: Any, says: str) -> None:
    spoil(folder)
    with pytest.raises(InputError, match=says) as error:
        load_branch(ControlAdapter, str(folder), loaded("sd1"))
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "no such folder", "a/b/c", "adapter.safetensors", "\0"])
def test_names_that_name_nothing_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="neither 'embedded', a folder nor a hub id"):
        load_branch(ControlAdapter, name, loaded("sd1"))


def test_an_adapter_for_another_model_is_refused(folder: Path) -> None:
    for name in ("sdxl", "embedded"):
        with pytest.raises(InputError, match="does not fit the model"):
            load_branch(ControlAdapter, str(folder), backbone_of(name))
    with pytest.raises(InputError, match="does not fit the model"):
        adapter_of(loaded("sd1"), downscale_factor=16)
    with pytest.raises(InputError, match="reads 4 channels"):
        adapter_of(loaded("sd1"), in_channels=4)
    # A whole checkpoint is no adapter.
    with pytest.raises(InputError, match=r"no config\.json"):
        load_branch(ControlAdapter, str(built("sd1")), loaded("sd1"))


@pytest.mark.parametrize("name", NAMES)
def test_features_fit_a_picture_of_any_multiple(name: str) -> None:
    """Those of SDXL begin with squares of 16 pixels, where its latent has pixels of 8."""
    backbone = backbone_of(name)
    step = backbone.multiple
    height, width = 5 * step, 7 * step
    features = adapter_of(backbone).features(torch.ones(1, 1, height, width))
    latent = height // backbone.factor, width // backbone.factor
    shapes = feature_shapes(backbone.unet, *latent)
    assert [tuple(x.shape[1:]) for x in features] in (shapes, shapes[:-1])
