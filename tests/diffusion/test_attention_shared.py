"""Shared and hidden keys and values against literal references, layer by layer and as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from checkpoints import loaded
from inlay.diffusion.attention import (
    AttentionRule,
    FirstLayer,
    HiddenRegion,
    Layer,
    SharedSource,
    change_attention,
    self_attention_from,
    unet_layers,
)
from inlay.diffusion.sample import CLEAN, Level


def begun(rule: HiddenRegion | SharedSource, samples: int = 2) -> AttentionRule:
    """For guided batches: [source, target] twice, or the target twice."""
    rule.begin(CLEAN, samples, True)
    return rule


def self_attention(layer: Attention) -> Layer:
    return Layer("a.attn1.processor", "self", True, layer)


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16),
        layers_per_block=1, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=12,
        attention_head_dim=2, norm_num_groups=4,
    ).eval()  # fmt: skip


def half_mask(side: int = 8) -> Tensor:
    mask = torch.zeros(1, 1, side, side)
    mask[..., : side // 2, : side // 2] = 1
    return mask


Weights = Callable[[int, int, int, int], float]


def literal(layer: Attention, hidden: Tensor, seen: list[int], dropped: Weights) -> Tensor:
    """Attention query by query, key by key: row r reads row seen[r], less the keys `dropped`."""
    q, k, v = layer.to_q(hidden), layer.to_k(hidden), layer.to_v(hidden)
    width = q.shape[-1] // layer.heads
    out = torch.zeros_like(q)
    for row in range(len(hidden)):
        for head in range(layer.heads):
            part = slice(head * width, (head + 1) * width)
            for i in range(q.shape[1]):
                scores = [
                    -math.inf
                    if dropped(row, head, i, j)
                    else float(q[row, i, part] @ k[seen[row], j, part]) / math.sqrt(width)
                    for j in range(k.shape[1])
                ]
                weights = torch.tensor(scores).softmax(-1)
                out[row, i, part] = weights @ v[seen[row], :, part]
    return layer.to_out[0](out)


@torch.no_grad()
def test_a_layer_whose_target_rows_do_not_see_the_hole() -> None:
    torch.manual_seed(1)
    layer = Attention(query_dim=8, heads=2, dim_head=4).eval()
    hidden = torch.randn(4, 16, 8)
    rule, own = begun(HiddenRegion(half_mask())), self_attention(layer)
    assert rule.layers([own, Layer("b.attn2.processor", "cross", True, layer)]) == [own]
    got = rule.run(own, hidden, None)
    # The 8 x 8 mask of 4 x 4 ones at a layer of 4 x 4: its first 2 x 2 corner.
    inside = {0, 1, 4, 5}
    expected = literal(
        layer, hidden, [0, 1, 2, 3], lambda row, head, i, j: row in (1, 3) and j in inside
    )
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert (expected - layer(hidden))[1].abs().max() > 1e-3
    torch.testing.assert_close(expected[0], layer(hidden)[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_layer_whose_target_rows_read_the_source() -> None:
    torch.manual_seed(2)
    layer = Attention(query_dim=8, heads=2, dim_head=4).eval()
    hidden = torch.randn(4, 9, 8)
    rule, own = SharedSource(first_call=1), self_attention(layer)
    # Not yet at the first call of the network.
    early = begun(rule).run(own, hidden, None)
    torch.testing.assert_close(early, layer(hidden), atol=1e-5, rtol=1e-5)
    expected = literal(layer, hidden, [0, 0, 2, 2], lambda *_: False)
    for _ in range(2):
        got = begun(rule).run(own, hidden, None)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert (expected - layer(hidden))[[1, 3]].abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("hides", [True, False])
def test_a_rule_acts_from_its_timestep_and_its_call_on(hides: bool) -> None:
    torch.manual_seed(2)
    layer = Attention(query_dim=8, heads=2, dim_head=4).eval()
    hidden, gate = torch.randn(4, 16, 8), {"t_min": 300, "first_call": 2}
    rule = HiddenRegion(half_mask(), **gate) if hides else SharedSource(**gate)
    # The first two calls do not count, whatever their timestep.
    for call, t in enumerate((400, 400, 299, 300, 301, 999, 0)):
        rule.begin(Level(0.8, 0.6, t), 2, True)
        changed = (rule.run(self_attention(layer), hidden, None) - layer(hidden))[[1, 3]]
        assert (changed.abs().max() > 1e-4) == (call >= 2 and t >= 300)


class _Slow:
    """A whole layer with explicit scores, each target row's keys and values chosen by hand."""

    def __init__(self, seen: list[int], mask: Tensor | None) -> None:
        self.seen, self.mask = seen, mask

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: None = None, **_: Any
    ) -> Tensor:
        rows, tokens, _channels = hidden_states.shape
        q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        width = q.shape[-1] // attn.heads
        result = torch.zeros_like(q)
        for row in range(rows):
            bias = torch.zeros(tokens)
            if self.mask is not None and row in (1, 3):
                side = math.isqrt(tokens)
                small = torch.nn.functional.interpolate(self.mask, (side, side), mode="bilinear")
                bias[small.reshape(-1) > 0.1] = -math.inf
            for head in range(attn.heads):
                part = slice(head * width, (head + 1) * width)
                scores = q[row, :, part] @ k[self.seen[row], :, part].T / math.sqrt(width)
                result[row, :, part] = (scores + bias).softmax(-1) @ v[self.seen[row], :, part]
        return attn.to_out[0](result)


@torch.no_grad()
@pytest.mark.parametrize("layers", ["decoder", 0, 3, 5])
@pytest.mark.parametrize("hides", [True, False])
def test_a_whole_unet_is_the_literal_one(layers: FirstLayer, hides: bool) -> None:
    unet = tiny_unet()
    x, text = torch.randn(4, 4, 8, 8), torch.randn(4, 5, 12)
    chosen = self_attention_from(unet_layers(unet), layers)
    if hides:
        rule, slow = (
            begun(HiddenRegion(half_mask(), first_layer=layers)),
            _Slow([0, 1, 2, 3], half_mask()),
        )
    else:
        rule, slow = begun(SharedSource(first_layer=layers)), _Slow([0, 0, 2, 2], None)
    before = unet(x, 10, text).sample
    with change_attention(unet, rule, unet_layers(unet)):
        got = unet(x, 10, text).sample
    originals = dict(unet.attn_processors)
    unet.set_attn_processor({**originals, **{layer.name: slow for layer in chosen}})
    expected = unet(x, 10, text).sample
    unet.set_attn_processor(originals)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert (got - before)[[1, 3]].abs().max() > 1e-5
    torch.testing.assert_close(got[[0, 2]], before[[0, 2]], atol=1e-5, rtol=1e-5)
    assert torch.equal(unet(x, 10, text).sample, before)


@torch.no_grad()
def test_the_unet_is_bit_identical_after_an_error_inside_the_block() -> None:
    unet = tiny_unet()
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 12)
    processors, before = dict(unet.attn_processors), unet(x, 10, text).sample
    rule = begun(HiddenRegion(half_mask()))
    with (
        pytest.raises(ValueError, match="2 rows in a batch of 2 x 2 samples"),
        change_attention(unet, rule, unet_layers(unet)),
    ):
        unet(x, 10, text)
    assert torch.equal(unet(x, 10, text).sample, before)
    assert all(unet.attn_processors[name] is processors[name] for name in processors)


def test_layers_are_counted_in_the_order_in_which_they_run() -> None:
    unet = tiny_unet()
    ran: list[str] = []

    class Spy(AttentionRule):
        def layers(self, layers: Sequence[Layer]) -> list[Layer]:
            return self_attention_from(layers, 0)

        def run(self, layer: Layer, hidden: Tensor, context: Tensor | None) -> Tensor:
            ran.append(layer.name)
            return hidden

    layers = unet_layers(unet)
    with torch.no_grad(), change_attention(unet, Spy(), layers):
        unet(torch.randn(1, 4, 8, 8), 3, torch.randn(1, 5, 12))
    assert [layer.name for layer in self_attention_from(layers, 0)] == ran
    assert [layer.name for layer in self_attention_from(layers, 3)] == ran[3:]
    decoder = [layer.name for layer in self_attention_from(layers, "decoder")]
    assert decoder == [name for name in ran if name.startswith("up_")]


def test_sd_has_sixteen_layers_of_which_nine_are_the_decoder() -> None:
    """Counted in the published layout: two layers a level."""
    unet = UNet2DConditionModel(
        block_out_channels=(4, 4, 4, 4), norm_num_groups=2, cross_attention_dim=4,
        attention_head_dim=2, sample_size=8,
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    )  # fmt: skip
    names = [layer.name for layer in self_attention_from(unet_layers(unet), 0)]
    assert len(names) == 16
    assert [name.split("_")[0] for name in names] == ["down"] * 6 + ["mid"] + ["up"] * 9


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_real_formats_have_a_decoder_to_change(name: str) -> None:
    layers = loaded(name).layers()
    assert 0 < len(self_attention_from(layers, "decoder")) < len(self_attention_from(layers, 0))


@torch.no_grad()
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_mask_of_nothing_or_of_everything_drops_nothing(value: float) -> None:
    torch.manual_seed(3)
    layer = Attention(query_dim=8, heads=2, dim_head=4).eval()
    hidden = torch.randn(2, 16, 8)
    rule = begun(HiddenRegion(torch.full((1, 1, 4, 4), value)), 1)
    got = rule.run(self_attention(layer), hidden, None)
    torch.testing.assert_close(got, layer(hidden), atol=1e-6, rtol=1e-6)


@torch.no_grad()
@given(
    st.lists(st.booleans(), min_size=16, max_size=16).filter(lambda m: any(m) and not all(m)),
    st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_what_is_hidden_has_no_influence_on_target_rows(mask: list[bool], seed: int) -> None:
    """Property: other features inside M leave what the queries outside M get as it was."""
    torch.manual_seed(4)
    layer = Attention(query_dim=8, heads=2, dim_head=4).eval()
    hidden = torch.randn(2, 16, 8)
    inside = torch.tensor(mask)
    rule = begun(HiddenRegion(inside.float().reshape(1, 1, 4, 4)), 1)
    other = hidden.clone()
    noise = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(seed))
    other[:, inside] = noise[:, inside]
    first, second = (rule.run(self_attention(layer), x, None) for x in (hidden, other))
    assert torch.equal(first[:, ~inside], second[:, ~inside])


def test_a_target_without_a_source_is_refused() -> None:
    rule = SharedSource()
    begun(rule, 1)
    with pytest.raises(ValueError, match="no source row"):
        rule.views(2, 16)
    with pytest.raises(ValueError, match="not 3 samples"):
        begun(rule, 3)
