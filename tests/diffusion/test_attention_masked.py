"""Masked attention against the literal formula: explicit softmax, Hadamard mask, product."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, get_args

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from checkpoints import loaded
from inlay.checkpoints.load import load_backbone
from inlay.diffusion.attention import Layer, change_attention, self_attention_from, unet_layers
from inlay.diffusion.attention_masked import (
    MaskedAttention,
    Preset,
    Region,
    inside_at,
    masked_layers,
    regional_attention,
    released_tokens,
)
from inlay.diffusion.backbone import Backbone
from inlay.diffusion.conditions import Conditions

PRESETS: tuple[Preset, ...] = get_args(Preset)
FORMATS = ("sd1", "sd1_inpaint", "sd2_v", "sdxl", "sdxl_inpaint", "embedded")


@functools.cache
def backbone_of(name: str) -> Backbone:
    return load_backbone(name, device="cpu") if name == "embedded" else loaded(name)


def sd_layout(side: int = 8, layers: int = 2) -> UNet2DConditionModel:
    """Stable Diffusion's arrangement of layers at widths of a toy, two heads each."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, cross_attention_dim=12,
        attention_head_dim=2, sample_size=side, layers_per_block=layers,
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    ).eval()  # fmt: skip


def box(height: int, width: int, top: int, left: int, bottom: int, right: int) -> Tensor:
    mask = torch.zeros(1, 1, height, width)
    mask[..., top:bottom, left:right] = 1
    return mask


class Literal:
    """The formula as the paper writes it, on whole attention maps; one mask for each row."""

    def __init__(self, masks: Tensor, inside: Tensor | None) -> None:
        self.masks, self.inside = masks, inside

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        width, keys = q.shape[-1] // attn.heads, k.shape[1]
        rows = []
        for row in range(len(q)):
            area = self.at(self.masks[row % len(self.masks)], q.shape[1])
            if encoder_hidden_states is None:
                allowed = torch.outer(area, area) + torch.outer(1 - area, 1 - area)
            else:
                read = torch.ones(keys) if self.inside is None else self.inside.float()
                allowed = torch.outer(area, read)
            heads = []
            for head in range(attn.heads):
                part = slice(head * width, (head + 1) * width)
                weights = (q[row, :, part] @ k[row, :, part].T / math.sqrt(width)).softmax(-1)
                heads.append((allowed.to(weights) * weights) @ v[row, :, part])
            rows.append(torch.cat(heads, -1))
        result: Tensor = attn.to_out[0](torch.stack(rows))
        return result

    @staticmethod
    def at(mask: Tensor, tokens: int) -> Tensor:
        """The mask of a layer, cell by cell: 1 where its mean is 0.5, or else the largest."""
        height, width = mask.shape[-2:]
        while height * width > tokens:
            height, width = (height + 1) // 2, (width + 1) // 2
        small = torch.zeros(height, width)
        for y in range(height):
            for x in range(width):
                ys = slice(y * mask.shape[-2] // height, -(-(y + 1) * mask.shape[-2] // height))
                xs = slice(x * mask.shape[-1] // width, -(-(x + 1) * mask.shape[-1] // width))
                small[y, x] = mask[0, ys, xs].mean()
        return (small >= min(0.5, float(small.max())) - 1e-5).float().reshape(-1)


@contextmanager
def by_literal(unet: Any, slow: Literal, layers: Sequence[Layer]) -> Iterator[None]:
    """Inside, the formula is in some layers of a U-Net."""
    originals = dict(unet.attn_processors)
    unet.set_attn_processor({**originals, **{layer.name: slow for layer in layers}})
    try:
        yield
    finally:
        unet.set_attn_processor(originals)


def run_layer(
    rule: MaskedAttention, attn: Attention, hidden: Tensor, text: Tensor | None = None
) -> Tensor:
    return rule.run(Layer("x", "self" if text is None else "cross", True, attn), hidden, text)


def in_both_ways(
    unet: Any, rule: MaskedAttention, x: Tensor, text: Tensor, **more: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """What a U-Net makes plainly, under the rule, and under the literal formula."""
    slow = Literal(rule.mask, rule.inside)

    def run() -> Tensor:
        output: Tensor = unet(x, 10, text, **more).sample
        return output

    plain, layers = run(), unet_layers(unet)
    with change_attention(unet, rule, layers):
        ours = run()
    with by_literal(unet, slow, rule.layers(layers)):
        expected = run()
    return plain, ours, expected


@torch.no_grad()
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(8, 8), (17, 11)])
def test_every_preset_is_the_literal_formula(preset: Preset, size: tuple[int, int]) -> None:
    unet = sd_layout()
    mask = box(*size, 1, 2, size[0] - 2, size[1] // 2 + 2)
    rule = MaskedAttention(mask, preset)
    x, text = torch.randn(2, 4, *size), torch.randn(2, 77, 12)
    plain, ours, expected = in_both_ways(unet, rule, x, text)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert (ours - plain).abs().max() > 1e-4
    assert torch.equal(unet(x, 10, text).sample, plain)


@torch.no_grad()
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_the_literal_formula(name: str) -> None:
    """Guided batches of two latents, with a mask each, by the backbone that methods call."""
    backbone = backbone_of(name)
    unet, channels = backbone.network, backbone.latent_channels
    torch.manual_seed(1)
    masks = torch.cat([box(16, 24, 2, 2, 10, 12), box(16, 24, 4, 8, 16, 24)])
    z, picture = torch.randn(2, 2, channels, 16, 24)
    text, negative = (backbone.embed([words], (128, 192)) for words in ("a photo of a cat", ""))
    told = Conditions(text, negative, 3.0, mask=masks, masked_latent=picture)
    denoiser, rule = backbone.denoiser(told), MaskedAttention(masks)

    def run() -> Tensor:
        return denoiser(z, backbone.levels[500])[0]

    plain = run()
    with backbone.attention(rule):
        ours = run()
    with by_literal(unet, Literal(masks, None), rule.layers(backbone.layers())):
        expected = run()
    # The guidance multiplies what rounding leaves.
    torch.testing.assert_close(ours, expected, atol=5e-5, rtol=0)
    assert (ours - plain).abs().max() > 1e-3
    assert torch.equal(run(), plain)


@torch.no_grad()
@pytest.mark.parametrize("chosen", [False, True])
def test_a_large_box_is_the_literal_formula_too(chosen: bool) -> None:
    """More queries than are run at once, in two rows that read different prompts."""
    torch.manual_seed(3)
    layer = Attention(query_dim=8, cross_attention_dim=12, heads=2, dim_head=4).eval()
    hidden, text = torch.randn(2, 32 * 32, 8), torch.randn(2, 77, 12)
    inside = released_tokens() if chosen else None
    rule = MaskedAttention(box(32, 32, 3, 2, 30, 31), inside=inside)
    expected = Literal(rule.mask, rule.inside)(layer, hidden, text)
    got = run_layer(rule, layer, hidden, text)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_what_a_cross_attention_layer_gives_outside_of_the_box_is_its_bias() -> None:
    """Equation 2 has only zeros there; the prompt has no part in it."""
    torch.manual_seed(2)
    layer = Attention(query_dim=8, cross_attention_dim=12, heads=2, dim_head=4).eval()
    hidden, text = torch.randn(2, 16, 8), torch.randn(2, 77, 12)
    mask = box(4, 4, 1, 1, 3, 3)
    got, plain = run_layer(MaskedAttention(mask), layer, hidden, text), layer(hidden, text)
    inside = mask.reshape(-1) > 0
    assert torch.equal(got[:, ~inside], layer.to_out[0].bias.expand(2, 12, 8))
    torch.testing.assert_close(got[:, inside], plain[:, inside], atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("inside", [released_tokens(), torch.arange(77) > 60])
def test_chosen_tokens_are_the_literal_formula(inside: Tensor) -> None:
    unet = sd_layout()
    rule = MaskedAttention(box(8, 8, 2, 2, 7, 5), "a", inside=inside)
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 12)
    _, ours, expected = in_both_ways(unet, rule, x, text)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    # Tokens that no query reads have a part in the softmax, but their values have none.
    layer = Attention(query_dim=8, cross_attention_dim=12, heads=2, dim_head=4).eval()
    layer.to_k.weight.zero_()
    hidden, changed = torch.randn(1, 64, 8), text.clone()
    changed[:, [0, *range(39, 61)]] += 1
    first, second = (run_layer(rule, layer, hidden, words) for words in (text, changed))
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    assert (first - layer(hidden, text)).abs().max() > 1e-3


def test_the_released_layout_reads_tokens_1_to_38() -> None:
    assert released_tokens().nonzero()[:, 0].tolist() == list(range(1, 39))
    assert len(released_tokens()) == 77


def test_gradients_are_those_of_the_literal_formula() -> None:
    """With a mask for each row, as a training batch has, and checkpointed blocks."""
    unet = sd_layout(layers=1).train()
    masks = torch.cat([box(9, 9, 1, 1, 5, 6), box(9, 9, 3, 0, 9, 9)])
    x, text = torch.randn(2, 4, 9, 9), torch.randn(2, 77, 12)

    def gradients(changed: AbstractContextManager[None]) -> dict[str, Tensor]:
        unet.zero_grad()
        with changed:
            unet(x, 10, text).sample.square().mean().backward()
        return {k: p.grad.clone() for k, p in unet.named_parameters() if p.grad is not None}

    rule, layers = MaskedAttention(masks, "b"), unet_layers(unet)
    expected = gradients(by_literal(unet, Literal(masks, None), layers))
    # A preview between two steps leaves nothing behind that a backward pass would refuse.
    with torch.inference_mode(), change_attention(unet, rule, layers):
        unet(x, 10, text)
    ours = gradients(change_attention(unet, rule, layers))
    unet.enable_gradient_checkpointing()
    again = gradients(change_attention(unet, rule, layers))
    assert expected.keys() == ours.keys() == again.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(again[name], ours[name], atol=1e-7, rtol=1e-5)
    assert any("attn2.to_v" in name and bool(g.any()) for name, g in ours.items())


@torch.no_grad()
@pytest.mark.parametrize("cross", [True, False])
def test_bfloat16_is_near_to_float32(cross: bool) -> None:
    torch.manual_seed(3)
    layer = Attention(16, 12 if cross else None, heads=2, dim_head=8).eval()
    hidden, text = torch.randn(2, 64, 16), torch.randn(2, 77, 12) if cross else None
    rule = MaskedAttention(box(8, 8, 2, 1, 6, 7))
    full = run_layer(rule, layer, hidden, text)
    words = None if text is None else text.bfloat16()
    half = run_layer(rule, layer.bfloat16(), hidden.bfloat16(), words)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, atol=0.03, rtol=0)


@torch.no_grad()
@given(st.integers(1, 9), st.integers(1, 9), st.data())
@settings(max_examples=30, deadline=None)
def test_any_regions_are_the_literal_formula(height: int, width: int, data: st.DataObject) -> None:
    """Property, on any mask of any odd or even size: nothing and everything, too."""
    n = height * width
    inside = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    q, k, v = torch.randn(3, 2, 3, n, 5, generator=torch.Generator().manual_seed(n))
    regions = [Region(part.nonzero()[:, 0], part) for part in (inside, ~inside) if part.any()]
    allowed = (inside[:, None] == inside[None]).float()
    expected = (allowed * (q @ k.transpose(-1, -2) / math.sqrt(5)).softmax(-1)) @ v
    torch.testing.assert_close(regional_attention(q, k, v, regions), expected, atol=1e-5, rtol=0)
    assert not regional_attention(q, k, v, []).any()


@torch.no_grad()
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_mask_of_nothing_or_of_everything(value: float) -> None:
    """Self-attention is as it was; with an empty box no query reads the prompt."""
    torch.manual_seed(4)
    own = Attention(query_dim=8, heads=2, dim_head=4).eval()
    words = Attention(query_dim=8, cross_attention_dim=12, heads=2, dim_head=4).eval()
    hidden, text = torch.randn(2, 16, 8), torch.randn(2, 77, 12)
    rule = MaskedAttention(torch.full((1, 1, 4, 4), value))
    assert torch.equal(run_layer(rule, own, hidden), own(hidden))
    expected = words(hidden, text) if value else words.to_out[0].bias.expand(2, 16, 8)
    assert torch.equal(run_layer(rule, words, hidden, text), expected)


def test_a_thin_mask_is_kept_at_every_layer() -> None:
    line = box(64, 48, 9, 0, 10, 48)
    for tokens, row, width in ((64 * 48, 9, 48), (32 * 24, 4, 24), (16 * 12, 2, 12), (8 * 6, 1, 6)):
        places = inside_at(line, tokens)[0].nonzero()[:, 0].tolist()
        assert places == list(range(row * width, (row + 1) * width))
    pixel = box(63, 47, 62, 46, 63, 47)
    for tokens in (63 * 47, 32 * 24, 16 * 12, 8 * 6):
        assert inside_at(pixel, tokens)[0].nonzero().tolist() == [[tokens - 1]]
    assert not inside_at(torch.zeros(1, 1, 8, 8), 16).any()


def test_half_covered_queries_are_inside() -> None:
    # Columns 0 to 2 of 8: the first cell of 2 x 2 is covered whole, the second by half.
    got = inside_at(torch.cat([box(8, 8, 0, 0, 8, 3), box(8, 8, 0, 5, 8, 8)]), 16)
    assert got[0].reshape(4, 4)[0].tolist() == [True, True, False, False]
    assert got[1].reshape(4, 4)[3].tolist() == [False, False, True, True]


def test_the_presets_by_hand_in_stable_diffusion() -> None:
    """16 self-attention layers: 6 of the encoder, 1 in the middle, 9 of the decoder."""
    layers = unet_layers(sd_layout())
    own = self_attention_from(layers, 0)
    crossing = {layer.name for layer in layers if layer.kind == "cross"}
    assert len(crossing) == 16
    expected = {
        "a": [], "b": own, "c": own[10:], "d": own[:10], "paper": own[:10], "released": own[11:],
    }  # fmt: skip
    for preset in PRESETS:
        assert masked_layers(layers, preset, cross=False) == expected[preset]
        names = {layer.name for layer in expected[preset]}
        assert {layer.name for layer in masked_layers(layers, preset)} == names | crossing
    # The paper's last 6 are the two finest resolutions.
    assert {layer.name.split(".")[1] for layer in own[10:]} == {"2", "3"}
    with pytest.raises(ValueError, match="'e' is no preset"):
        masked_layers(layers, "e")  # type: ignore[arg-type]


def test_other_decoders_keep_the_last_two_thirds() -> None:
    for name, count, outer in (("sd1", 6, 4), ("sdxl", 6, 4), ("embedded", 4, 3)):
        layers = backbone_of(name).layers()
        decoder = self_attention_from(layers, "decoder")
        assert len(decoder) == count
        assert masked_layers(layers, "c", cross=False) == decoder[-outer:]
        assert masked_layers(layers, "released", cross=False) == decoder[-5:]


@torch.no_grad()
def test_a_mask_leaves_no_trace_and_bad_ones_are_refused() -> None:
    unet = sd_layout(layers=1)
    x, text = torch.randn(3, 4, 8, 8), torch.randn(3, 77, 12)
    processors, layers = dict(unet.attn_processors), unet_layers(unet)
    first, second = box(8, 8, 0, 0, 4, 4), box(8, 8, 4, 4, 8, 8)
    plain = unet(x, 10, text).sample
    with change_attention(unet, MaskedAttention(first), layers):
        assert not torch.equal(unet(x, 10, text).sample, plain)
    with (
        pytest.raises(ValueError, match="2 masks do not share out 3 rows"),
        change_attention(unet, MaskedAttention(torch.cat([first, second])), layers),
    ):
        unet(x, 10, text)
    assert torch.equal(unet(x, 10, text).sample, plain)
    assert all(unet.attn_processors[name] is processors[name] for name in processors)
    with pytest.raises(ValueError, match=r"is \(N, 1, h, w\), not \(8, 8\)"):
        MaskedAttention(torch.ones(8, 8))
