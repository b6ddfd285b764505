"""Attention adapters against literal references, and that they leave no trace."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

from checkpoints import loaded
from inlay.diffusion.attention import (
    AttentionRule,
    Layer,
    LocalizedPrompt,
    attention_mask_at,
    change_attention,
    token_positions,
    unet_layers,
)


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16),
        layers_per_block=1, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=12,
        attention_head_dim=2, norm_num_groups=4,
    ).eval()  # fmt: skip


def test_bonus_is_the_formula_entry_by_entry() -> None:
    generator = torch.Generator().manual_seed(1)
    heads, queries, keys, sigma = 3, 16, 7, 2.5
    scores = torch.randn(heads, queries, keys, generator=generator)
    mask = (torch.rand(1, 1, 4, 4, generator=generator) > 0.5).float()
    inside = torch.tensor([0, 1, 1, 0, 0, 0, 0], dtype=torch.bool)
    outside = torch.tensor([0, 0, 0, 0, 1, 0, 0], dtype=torch.bool)
    got = LocalizedPrompt(mask, inside, outside, (0.7, 0.2), sigma).bonus(scores)
    largest = max(float(s) for s in scores.reshape(-1))
    for h in range(heads):
        for q in range(queries):
            for k in range(keys):
                m = float(mask[0, 0, q // 4, q % 4])
                steered = 0.7 * m if inside[k] else 0.2 * (1 - m) if outside[k] else 0.0
                expected = math.log(1 + sigma) * largest * steered
                assert float(got.expand_as(scores)[h, q, k]) == pytest.approx(expected, abs=1e-5)
    assert not LocalizedPrompt(mask, inside, outside, (0.0, 0.0), sigma).bonus(scores).any()


def test_localized_attention_layer_is_literal_attention_with_the_bonus() -> None:
    torch.manual_seed(2)
    layer = Attention(query_dim=8, cross_attention_dim=12, heads=2, dim_head=4).eval()
    hidden, text = torch.randn(2, 16, 8), torch.randn(2, 5, 12)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 4:8] = 1
    inside = torch.tensor([0, 0, 1, 0, 0], dtype=torch.bool)
    prompt = LocalizedPrompt(mask, inside, torch.zeros(5, dtype=torch.bool), (0.9, 0.9), 3.0)
    cross, own = Layer("a", "cross", False, layer), Layer("b", "self", False, layer)
    assert list(prompt.layers([own, cross])) == [cross]
    with torch.no_grad():
        got = prompt.run(cross, hidden, text)
        plain = layer(hidden, text)
        # Literal: row 0 is unconditional and must be untouched, row 1 has the bonus.
        q, k, v = layer.to_q(hidden)[1], layer.to_k(text)[1], layer.to_v(text)[1]
        raw = torch.stack([q[:, :4] @ k[:, :4].T, q[:, 4:] @ k[:, 4:].T])
        small = torch.nn.functional.avg_pool2d(mask, 2).reshape(-1)
        bonus = torch.zeros_like(raw)
        bonus[:, :, 2] = 0.9 * math.log(1 + 3.0) * raw.max() * small
        weights = ((raw + bonus) / math.sqrt(4)).softmax(-1)
        heads = torch.cat([weights[0] @ v[:, :4], weights[1] @ v[:, 4:]], -1)
        expected = layer.to_out[0](heads)
    torch.testing.assert_close(got[0], plain[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[1], expected, atol=1e-5, rtol=1e-5)
    assert (got[1] - plain[1]).abs().max() > 1e-3


def test_weight_zero_changes_nothing_in_a_whole_unet() -> None:
    unet = tiny_unet()
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 12)
    none = torch.zeros(5, dtype=torch.bool)
    prompt = LocalizedPrompt(torch.ones(1, 1, 8, 8), none, none, (1.0, 1.0), 1.0)
    with torch.no_grad():
        before = unet(x, 10, text).sample
        with change_attention(unet, prompt, unet_layers(unet)):
            inside = unet(x, 10, text).sample
    torch.testing.assert_close(inside, before, atol=1e-5, rtol=1e-5)


def test_processors_come_back_even_when_the_body_raises() -> None:
    class Cross(AttentionRule):
        def layers(self, layers: Sequence[Layer]) -> list[Layer]:
            return [layer for layer in layers if layer.kind == "cross"]

        def run(
            self, layer: Layer, hidden: torch.Tensor, context: torch.Tensor | None
        ) -> torch.Tensor:
            return hidden

    unet = tiny_unet()
    before = dict(unet.attn_processors)
    with (
        pytest.raises(RuntimeError, match="stop"),
        change_attention(unet, Cross(), unet_layers(unet)),
    ):
        changed = unet.attn_processors
        assert all((changed[n] is before[n]) == ("attn1" in n) for n in before)
        raise RuntimeError("stop")
    after = unet.attn_processors
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


@pytest.mark.parametrize(("shape", "tokens"), [((32, 32), 64), ((12, 20), 60), ((9, 7), 20)])
def test_mask_at_a_layer(shape: tuple[int, int], tokens: int) -> None:
    mask = torch.zeros(1, 1, *shape)
    mask[..., : shape[0] // 2, :] = 1
    small = attention_mask_at(mask, tokens)
    assert small.shape == (tokens,)
    assert small.mean().item() == pytest.approx(mask.mean().item(), abs=0.08)
    assert torch.equal(attention_mask_at(torch.ones(1, 1, *shape), tokens), torch.ones(tokens))


def test_a_layer_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="no halving"):
        attention_mask_at(torch.ones(1, 1, 8, 8), 17)


def test_words_are_found_in_the_prompt() -> None:
    text = loaded("sd1").text
    prompt = "a red hat on a table"
    found = token_positions(text, prompt, ["hat", "table"])
    tokens = text.tokenizers[0].convert_ids_to_tokens(text.token_ids(prompt))
    spelled = "".join(t for t, f in zip(tokens, found, strict=True) if f)
    assert spelled.replace("</w>", " ").split() == ["hat", "table"]
    assert found.shape == (77,)
    with pytest.raises(LookupError, match="zebra"):
        token_positions(text, "a red hat", ["zebra"])
