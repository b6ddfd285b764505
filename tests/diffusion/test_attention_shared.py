"""Shared and hidden keys and values against literal references, layer by layer and as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from checkpoints import loaded
from inlay.diffusion.attention import swapped_processors
from inlay.diffusion.attention_shared import (
    HiddenRegion,
    Role,
    SharedSource,
    chosen_layers,
    self_attention_layers,
)

FOUR: tuple[Role, ...] = ("source", "target", "source", "target")
TWO: tuple[Role, ...] = ("target", "target")


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
    rule = HiddenRegion(half_mask(), frozenset({"a.attn1.processor"}), roles=FOUR)
    processor = rule.processor("a.attn1.processor", None)
    assert rule.processor("b.attn1.processor", None) is None
    # The 8 x 8 mask of 4 x 4 ones at a layer of 4 x 4: its first 2 x 2 corner.
    inside = {0, 1, 4, 5}
    expected = literal(
        layer, hidden, [0, 1, 2, 3], lambda row, head, i, j: row in (1, 3) and j in inside
    )
    torch.testing.assert_close(processor(layer, hidden), expected, atol=1e-5, rtol=1e-5)
    assert (expected - layer(hidden))[1].abs().max() > 1e-3
    torch.testing.assert_close(expected[0], layer(hidden)[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_layer_whose_target_rows_read_the_source() -> None:
    torch.manual_seed(2)
    layer = Attention(query_dim=8, heads=2, dim_head=4).eval()
    hidden = torch.randn(4, 9, 8)
    rule = SharedSource(frozenset({"a.attn1.processor"}), roles=FOUR)
    processor = rule.processor("a.attn1.processor", None)
    expected = literal(layer, hidden, [0, 0, 2, 2], lambda *_: False)
    torch.testing.assert_close(processor(layer, hidden), expected, atol=1e-5, rtol=1e-5)
    assert (expected - layer(hidden))[[1, 3]].abs().max() > 1e-3
    rule.on = False
    torch.testing.assert_close(processor(layer, hidden), layer(hidden), atol=1e-5, rtol=1e-5)


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
def test_a_whole_unet_is_the_literal_one(layers: Any, hides: bool) -> None:
    unet = tiny_unet()
    x, text = torch.randn(4, 4, 8, 8), torch.randn(4, 5, 12)
    names = chosen_layers(unet, layers)
    rule: Any
    if hides:
        rule, slow = HiddenRegion(half_mask(), names, roles=FOUR), _Slow([0, 1, 2, 3], half_mask())
    else:
        rule, slow = SharedSource(names, roles=FOUR), _Slow([0, 0, 2, 2], None)
    before = unet(x, 10, text).sample
    with swapped_processors(unet, rule.processor):
        got = unet(x, 10, text).sample
    with swapped_processors(unet, lambda name, _: slow if name in names else None):
        expected = unet(x, 10, text).sample
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert (got - before)[[1, 3]].abs().max() > 1e-5
    torch.testing.assert_close(got[[0, 2]], before[[0, 2]], atol=1e-5, rtol=1e-5)
    assert torch.equal(unet(x, 10, text).sample, before)


@torch.no_grad()
def test_the_unet_is_bit_identical_after_an_error_inside_the_block() -> None:
    unet = tiny_unet()
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 12)
    processors, before = dict(unet.attn_processors), unet(x, 10, text).sample
    rule = HiddenRegion(half_mask(), chosen_layers(unet, "decoder"), roles=FOUR)
    with (
        pytest.raises(ValueError, match="4 roles for a batch of 2"),
        swapped_processors(unet, rule.processor),
    ):
        unet(x, 10, text)
    assert torch.equal(unet(x, 10, text).sample, before)
    assert all(unet.attn_processors[name] is processors[name] for name in processors)


def test_layers_are_counted_in_the_order_in_which_they_run() -> None:
    unet = tiny_unet()
    ran: list[str] = []

    def spy(name: str, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            ran.append(name)
            result: Tensor = original(*args, **kwargs)
            return result

        return call if "attn1" in name else None

    with torch.no_grad(), swapped_processors(unet, spy):
        unet(torch.randn(1, 4, 8, 8), 3, torch.randn(1, 5, 12))
    assert self_attention_layers(unet) == ran
    assert chosen_layers(unet, 3) == set(ran[3:])
    assert chosen_layers(unet, "decoder") == {name for name in ran if name.startswith("up_")}


def test_sd_has_sixteen_layers_of_which_nine_are_the_decoder() -> None:
    """Counted in the published layout: two layers a level."""
    names = self_attention_layers(
        UNet2DConditionModel(
            block_out_channels=(4, 4, 4, 4), norm_num_groups=2, cross_attention_dim=4,
            attention_head_dim=2, sample_size=8,
            down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
            up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        )
    )  # fmt: skip
    assert len(names) == 16
    assert [name.split("_")[0] for name in names] == ["down"] * 6 + ["mid"] + ["up"] * 9


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_real_formats_have_a_decoder_to_change(name: str) -> None:
    unet = loaded(name).unet
    assert 0 < len(chosen_layers(unet, "decoder")) < len(self_attention_layers(unet))


@torch.no_grad()
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_mask_of_nothing_or_of_everything_drops_nothing(value: float) -> None:
    torch.manual_seed(3)
    layer = Attention(query_dim=8, heads=2, dim_head=4).eval()
    hidden = torch.randn(2, 16, 8)
    rule = HiddenRegion(torch.full((1, 1, 4, 4), value), frozenset({"x"}), roles=TWO)
    got = rule.processor("x", None)(layer, hidden)
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
    rule = HiddenRegion(inside.float().reshape(1, 1, 4, 4), frozenset({"x"}), roles=TWO)
    processor = rule.processor("x", None)
    other = hidden.clone()
    noise = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(seed))
    other[:, inside] = noise[:, inside]
    first, second = processor(layer, hidden), processor(layer, other)
    assert torch.equal(first[:, ~inside], second[:, ~inside])


def test_a_target_without_a_source_is_refused() -> None:
    rule = SharedSource(frozenset(), roles=TWO)
    with pytest.raises(ValueError, match="no source row"):
        rule.views(2, 16)
