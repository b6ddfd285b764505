"""LoRA and its kin merged into small checkpoints, against the formulas of their papers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from checkpoints import WIDTH, _ldm_unet_key, built, loaded
from inlay.checkpoints.load import load_backbone
from inlay.diffusion.backbone import Backbone
from inlay.errors import InputError

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONVOLUTION = "mid_block.resnets.0.conv1"
TEXT = "encoder.layers.0.self_attn.q_proj"


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 4


def saved(
    path: Path, tensors: dict[str, torch.Tensor], header: dict[str, str] | None = None
) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, header)
    return path


def kohya(layer: str) -> str:
    return "lora_unet_" + layer.replace(".", "_")


def merged(path: Path, scale: float = 1.0, model: str = "sd1") -> Backbone:
    return load_backbone(built(model), device="cpu", loras=[(path, scale)])


def weight(b: Backbone, layer: str) -> torch.Tensor:
    if layer == TEXT:
        encoder = b.text.encoders[0]
        return getattr(encoder, "text_model", encoder).get_submodule(TEXT).weight.detach()
    return b.unet.get_submodule(layer).weight.detach()


def check(b: Backbone, layer: str, update: torch.Tensor, model: str = "sd1") -> None:
    """That one layer has the update, and no other layer of the U-Net has changed."""
    before = loaded(model)
    expected = weight(before, layer) + update.reshape(weight(before, layer).shape)
    torch.testing.assert_close(weight(b, layer), expected, atol=1e-5, rtol=1e-5)
    others = before.unet.state_dict()
    for name, value in b.unet.state_dict().items():
        assert name == f"{layer}.weight" or torch.equal(value, others[name]), name


@pytest.mark.parametrize(("layer", "shape"), [(LINEAR, (16, 16)), (CONVOLUTION, (32, 32, 3, 3))])
@pytest.mark.parametrize("of", ["output", "input", "peft"])
def test_dora_has_the_magnitudes_of_its_file(
    tmp_path: Path, layer: str, shape: tuple[int, ...], of: str
) -> None:
    """W' = m (W + s B A) / |W + s B A| (arXiv 2402.09353, equation 5), row by row."""
    out, ins, *kernel = shape
    up, down = draw(out, 2), draw(2, ins, *kernel, seed=1)
    name, plain = kohya(layer), weight(loaded("sd1"), layer).double().numpy()
    moved = plain + 0.5 * np.tensordot(up.double(), down.double(), 1)
    axis = 1 if of == "input" else 0
    magnitude = draw(shape[axis], seed=2).abs() + 0.5
    expected = np.empty_like(plain)
    for n in range(shape[axis]):
        row = np.take(moved, n, axis)
        row = float(magnitude[n]) * row / np.sqrt((row**2).sum())
        expected[(slice(None),) * axis + (n,)] = row
    ones = [1] * len(shape)
    ones[axis] = shape[axis]
    if of == "peft":
        tensors = {
            f"unet.{layer}.lora_A.weight": down,
            f"unet.{layer}.lora_B.weight": up.reshape(out, 2, *[1] * len(kernel)),
            f"unet.{layer}.lora_magnitude_vector": magnitude.reshape(
                (1, -1, 1, 1) if kernel else (-1,)
            ),
            f"unet.{layer}.alpha": torch.tensor(1.0),
        }
    else:
        tensors = {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up.reshape(out, 2, *[1] * len(kernel)),
            f"{name}.alpha": torch.tensor(1.0),
            f"{name}.dora_scale": magnitude.reshape(ones),
        }
    path = saved(tmp_path / "dora.safetensors", tensors)
    update = torch.from_numpy(expected - plain).float()
    check(merged(path), layer, update)
    check(merged(path, 0.25), layer, 0.25 * update)


def test_loha_is_the_product_of_two_low_ranks(tmp_path: Path) -> None:
    """(w1a w1b) * (w2a w2b), number by number (arXiv 2108.06098, equation 3)."""
    for layer, out, ins in ((LINEAR, 16, 16), (CONVOLUTION, 32, 32 * 9)):
        a1, b1, a2, b2 = (
            draw(out, 2),
            draw(2, ins, seed=1),
            draw(out, 2, seed=2),
            draw(2, ins, seed=3),
        )
        names = [f"{kohya(layer)}.hada_w{n}_{x}" for n in "12" for x in "ab"]
        tensors = dict(zip(names, (a1, b1, a2, b2), strict=True))
        path = saved(
            tmp_path / "loha.safetensors", tensors | {f"{kohya(layer)}.alpha": torch.tensor(1.0)}
        )
        check(merged(path, 0.7), layer, 0.7 / 2 * torch.mul(a1 @ b1, a2 @ b2))


@pytest.mark.parametrize("split", [False, True])
def test_lokr_is_a_kronecker_product(tmp_path: Path, split: bool) -> None:
    """Block (i, j) is w1[i, j] w2 (arXiv 2309.14859); alpha counts where one of them is split."""
    one = draw(4, 2)
    for layer, block in ((LINEAR, (4, 8)), (CONVOLUTION, (8, 16, 3, 3))):
        name = kohya(layer)
        a, b = draw(block[0], 2, seed=1), draw(2, int(np.prod(block[1:])), seed=2)
        two = (a @ b).reshape(block)
        rows = [torch.cat([one[i, j] * two for j in range(2)], 1) for i in range(4)]
        tensors = {f"{name}.lokr_w1": one, f"{name}.alpha": torch.tensor(3.0)}
        pair = {f"{name}.lokr_w2_a": a, f"{name}.lokr_w2_b": b}
        path = saved(
            tmp_path / "k.safetensors", tensors | (pair if split else {f"{name}.lokr_w2": two})
        )
        check(merged(path), layer, torch.cat(rows) * (3 / 2 if split else 1))


def test_a_convolution_of_lycoris_has_a_core(tmp_path: Path) -> None:
    up, core, down = draw(32, 2, 1, 1), draw(2, 3, 3, 3, seed=1), draw(3, 32, 1, 1, seed=2)
    name = kohya(CONVOLUTION)
    tensors = {"lora_up.weight": up, "lora_mid.weight": core, "lora_down.weight": down}
    path = saved(tmp_path / "c.safetensors", {f"{name}.{end}": t for end, t in tensors.items()})
    update = torch.zeros(32, 32, 3, 3)
    for i in range(2):
        for j in range(3):
            update += (
                up[:, i, 0, 0][:, None, None, None] * core[i, j] * down[j].reshape(1, 32, 1, 1)
            )
    check(merged(path), CONVOLUTION, update)


def halves(name: str, width: int = 16) -> dict[str, torch.Tensor]:
    return {
        f"{name}.lora_A.weight": draw(2, width),
        f"{name}.lora_B.weight": draw(width, 2, seed=1),
    }


UPDATE = draw(16, 2, seed=1) @ draw(2, 16)


def test_pefts_own_files_are_weighed_by_the_config_beside_them(tmp_path: Path) -> None:
    path = saved(tmp_path / "adapter_model.safetensors", halves(f"base_model.model.{LINEAR}"))
    check(merged(path), LINEAR, UPDATE)
    alone = merged(path).hash
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": "(.*)*(.*)*X"}
    beside = tmp_path / "adapter_config.json"
    for more, factor in (
        ({}, 3),
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"alpha_pattern": {"attn1.to_q": 8, "to_k": 1}}, 4),
    ):
        beside.write_text(json.dumps(config | more))
        check(merged(path), LINEAR, factor * UPDATE)
    # What is read counts, so it is in the fingerprint.
    assert merged(path).hash != alone
    for wrong, words in (
        (config | {"peft_type": "LOHA"}, "LOHA"),
        (config | {"lora_alpha": "six"}, "no number"),
        (config | {"alpha_pattern": 7}, "no number"),
        ([], "JSON object"),
    ):
        beside.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=words):
            merged(path)


@pytest.mark.parametrize(
    "name",
    [
        f"unet.{LINEAR.replace('.to_q', '.processor.to_q_lora')}",
        f"{LINEAR.replace('.to_q', '.processor.to_q_lora')}",
        f"unet.{LINEAR}.lora",
        f"unet.{LINEAR}.lora_linear_layer",
    ],
)
def test_the_first_names_of_diffusers(tmp_path: Path, name: str) -> None:
    tensors = {f"{name}.down.weight": draw(2, 16), f"{name}.up.weight": draw(16, 2, seed=1)}
    check(merged(saved(tmp_path / "old.safetensors", tensors)), LINEAR, UPDATE)


@pytest.mark.parametrize(
    "name",
    [
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        f"text_encoder.text_model.{TEXT}",
        f"text_encoder.text_model.{TEXT.replace('q_proj', 'to_q_lora')}",
        f"base_model.model.text_model.{TEXT}",
    ],
)
def test_a_file_for_the_text_encoder_alone(tmp_path: Path, name: str) -> None:
    ends = ("down", "up") if "to_q" in name else ("lora_A", "lora_B")
    if name.startswith("lora_te"):
        ends = ("lora_down", "lora_up")
    pair = (draw(2, WIDTH), draw(WIDTH, 2, seed=1))
    tensors = {f"{name}.{end}.weight": half for end, half in zip(ends, pair, strict=True)}
    check(merged(saved(tmp_path / "text.safetensors", tensors)), TEXT, pair[1] @ pair[0])


@pytest.mark.parametrize(
    "layer",
    [
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "down_blocks.1.resnets.0.conv2",
        "down_blocks.0.downsamplers.0.conv",
        "mid_block.attentions.0.proj_in",
        "up_blocks.0.resnets.1.conv_shortcut",
        "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0",
    ],
)
def test_kohyas_names_for_sdxl_are_those_of_its_own_code(tmp_path: Path, layer: str) -> None:
    """Block by block of the original layout, as checkpoints in one file have it."""
    shape = weight(loaded("sdxl"), layer).shape
    name = kohya(_ldm_unet_key(layer + ".", 1).rstrip("."))
    up, down = draw(shape[0], 2, *[1] * (len(shape) - 2)), draw(2, *shape[1:], seed=1)
    tensors = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
    other = kohya(_ldm_unet_key("mid_block.attentions.0.transformer_blocks.0.ff.net.2.", 1)[:-1])
    tensors |= {f"{other}.lora_up.weight": draw(32, 2), f"{other}.lora_down.weight": draw(2, 128)}
    b = merged(saved(tmp_path / "xl.safetensors", tensors), model="sdxl")
    assert not b.notes
    expected = weight(loaded("sdxl"), layer) + torch.tensordot(up.flatten(1), down, 1)
    torch.testing.assert_close(weight(b, layer), expected, atol=1e-5, rtol=1e-5)


def test_layers_that_do_not_fit_are_named(tmp_path: Path) -> None:
    wide, gone = LINEAR.replace("to_q", "to_k"), LINEAR.replace("down_blocks.0", "down_blocks.7")
    bad = halves(f"unet.{wide}", 24) | halves(f"unet.{gone}")
    b = merged(saved(tmp_path / "half.safetensors", bad | halves(f"unet.{LINEAR}")))
    check(b, LINEAR, UPDATE)
    (note,) = b.notes
    assert f"unet.{wide}" in note and f"unet.{gone}" in note and "2 of 3" in note
    with pytest.raises(InputError, match=r"another model: no layer fits.*down_blocks\.7"):
        merged(saved(tmp_path / "none.safetensors", bad))


def test_the_true_reason_is_given(tmp_path: Path) -> None:
    good = halves(f"unet.{LINEAR}")
    name = f"unet.{LINEAR}"
    cases: list[tuple[dict[str, torch.Tensor], str]] = [
        ({f"{name}.oft_blocks": draw(2, 2)}, "oft_blocks, which cannot be merged"),
        ({f"{name}.lora_A.weight": draw(2, 16)}, "lacks up"),
        ({f"{name}.hada_w1_a": draw(16, 2)}, "lacks hada_w1_b"),
        (
            {f"{name}.lora_A.weight": draw(0, 16), f"{name}.lora_B.weight": draw(16, 0)},
            "no layer fits",
        ),
        (good | {f"{name}.alpha": torch.zeros(2)}, "no number"),
        (good | {f"{name}.alpha": torch.tensor(float("nan"))}, "infinite or no number"),
        (good | {f"{name}.lora_A.weight": torch.full((2, 16), float("inf"))}, "infinite"),
        ({f"{name}.lora_A.weight": draw(5), f"{name}.lora_B.weight": draw(16, 2)}, "no layer fits"),
        (
            {f"{name}.lora_A.weight": draw(2, 8, 2), f"{name}.lora_B.weight": draw(16, 3)},
            "no layer fits",
        ),
        ({"a\x1b[31m" + "x" * 5000: draw(1)}, "no part of a LoRA"),
        ({}, "no layer fits"),
    ]
    for tensors, words in cases:
        with pytest.raises(InputError, match=words) as error:
            merged(saved(tmp_path / "bad.safetensors", tensors))
        text = str(error.value)
        assert "bad.safetensors" in text and text.isprintable() and len(text) < 600
    for header in (
        "[1]",
        "{",
        "[" * 100_000,
        '{"unet.lora_alpha": "x"}',
        '{"unet.lora_alpha": [1]}',
    ):
        path = saved(tmp_path / "head.safetensors", good, {"lora_adapter_metadata": header})
        with pytest.raises(InputError, match="head"):
            merged(path)


def test_no_pattern_of_a_header_is_run(tmp_path: Path) -> None:
    """A regular expression that takes years on a layer's name."""
    header = {"unet.r": 2, "unet.lora_alpha": 2, "unet.target_modules": "(.*)*(.*)*(.*)*(.*)*X"}
    said = {"lora_adapter_metadata": json.dumps(header)}
    check(merged(saved(tmp_path / "a.safetensors", halves(f"unet.{LINEAR}"), said)), LINEAR, UPDATE)
    header["unet.alpha_pattern"] = {"^mid_block.x": 5, f"^{LINEAR}": 6, "to_q": 8}
    said = {"lora_adapter_metadata": json.dumps(header)}
    path = saved(tmp_path / "b.safetensors", halves(f"unet.{LINEAR}"), said)
    check(merged(path), LINEAR, 3 * UPDATE)
    header["unet.alpha_pattern"] = {"(.*)*(.*)*(.*)*X": 9}
    said = {"lora_adapter_metadata": json.dumps(header)}
    with pytest.raises(InputError, match="no number or no name"):
        merged(saved(tmp_path / "c.safetensors", halves(f"unet.{LINEAR}"), said))


def test_products_are_made_only_where_they_fit(tmp_path: Path) -> None:
    """Small files whose product would take terabytes."""
    name = kohya(LINEAR)
    big = torch.zeros(2000, 2000, dtype=torch.uint8)
    cases = [
        {f"{name}.lokr_w1": big, f"{name}.lokr_w2": big.clone()},
        {
            f"{name}.lora_up.weight": torch.zeros(10**6, 1),
            f"{name}.lora_down.weight": torch.zeros(1, 10**6),
        },
    ]
    for tensors in cases:
        with pytest.raises(InputError, match="no layer fits"):
            merged(saved(tmp_path / "big.safetensors", tensors))


def test_plain_differences_of_weights_biases_and_norms(tmp_path: Path) -> None:
    """LyCORIS' full and norm kinds: what is added, times the scale."""
    norm = "mid_block.resnets.0.norm1"
    full, bias, gain = draw(32, 32, 3, 3), draw(32, seed=1), draw(32, seed=2)
    tensors = {
        f"{kohya(CONVOLUTION)}.diff": full,
        f"{kohya(CONVOLUTION)}.diff_b": bias,
        f"{kohya(norm)}.w_norm": gain,
    }
    b, plain = merged(saved(tmp_path / "full.safetensors", tensors), 0.5), loaded("sd1")
    assert not b.notes
    layer, before = b.unet.get_submodule(CONVOLUTION), plain.unet.get_submodule(CONVOLUTION)
    torch.testing.assert_close(layer.weight, before.weight + 0.5 * full)
    torch.testing.assert_close(layer.bias, before.bias + 0.5 * bias)
    torch.testing.assert_close(weight(b, norm), weight(plain, norm) + 0.5 * gain)


def test_a_dora_of_a_text_encoder_in_half_precision(tmp_path: Path) -> None:
    name = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    up, down = draw(WIDTH, 2).bfloat16(), draw(2, WIDTH, seed=1).bfloat16()
    magnitude = (draw(WIDTH, 1, seed=2).abs() + 0.5).bfloat16()
    tensors = {"lora_up.weight": up, "lora_down.weight": down, "dora_scale": magnitude}
    path = saved(tmp_path / "t.safetensors", {f"{name}.{end}": x for end, x in tensors.items()})
    moved = weight(loaded("sd1"), TEXT) + up.float() @ down.float()
    rows = [float(m) * row / row.norm() for m, row in zip(magnitude, moved, strict=True)]
    check(merged(path), TEXT, torch.stack(rows) - weight(loaded("sd1"), TEXT))


@pytest.mark.parametrize(
    "name",
    [
        f"base_model.model.{LINEAR}",
        f"diffusion_model.{LINEAR}",
        f"lycoris_{LINEAR.replace('.', '_')}",
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q",
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    ],
)
def test_names_that_other_programs_give(tmp_path: Path, name: str) -> None:
    tensors = {f"{name}.lora_A.mine.weight": draw(2, 16)}
    tensors[f"{name}.lora_B.mine.weight"] = draw(16, 2, seed=1)
    check(merged(saved(tmp_path / "named.safetensors", tensors)), LINEAR, UPDATE)


def test_one_strange_name_of_sdxl_spoils_no_other(tmp_path: Path) -> None:
    good = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    width = len(weight(loaded("sdxl"), layer))
    each = int(loaded("sdxl").unet.config.layers_per_block) + 1
    good = good.replace("_4_1_", f"_{each + 1}_1_")
    tensors = halves(good, width)
    for name in ("lora_unet_input_blocks_x_1", "lora_unet_middle_block_9_y", "lora_unet_z"):
        tensors |= halves(name)
    b = merged(saved(tmp_path / "xl.safetensors", tensors), model="sdxl")
    update = draw(width, 2, seed=1) @ draw(2, width)
    torch.testing.assert_close(weight(b, layer), weight(loaded("sdxl"), layer) + update)
    assert "3 of 4 layers" in b.notes[0]


def test_a_header_without_end_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    length = 1 << 26
    path.write_bytes(length.to_bytes(8, "little") + b"{" + b" " * (length - 2) + b"}")
    with pytest.raises(InputError, match="not a whole"):
        merged(path)


def test_more_tensors_than_any_model_has_are_refused(tmp_path: Path) -> None:
    tensors = {f"unet.x{number}.lora_A.weight": torch.zeros(0) for number in range(20_001)}
    with pytest.raises(InputError, match="holds 20001 tensors"):
        merged(saved(tmp_path / "many.safetensors", tensors))
