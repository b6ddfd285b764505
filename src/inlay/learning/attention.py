"""Attention of a U-Net in training: the same sums as in use, in fewer and larger calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from inlay.diffusion.attention import finished, projected
from inlay.diffusion.attention_masked import MaskedAttention, Region

__all__ = ["PlainTraining", "TrainedAttention"]

# On CPUs the fused kernel's backward pass is slow, but beyond so many scores a row the explicit
# one's memory costs more than it saves.
_EXPLICIT = 1 << 21
# Sequences are filled up to one of so many lengths: kernels are made anew for every shape.
_LENGTHS = 8


def _attended(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(scale * Q K^T) V of (rows, heads, tokens, width), all three of one dtype."""
    scores = query.shape[1] * query.shape[2] * key.shape[2]
    if query.device.type != "cpu" or scores > _EXPLICIT:
        return functional.scaled_dot_product_attention(query, key, value, scale=scale)
    weights = (query * scale @ key.transpose(-1, -2)).softmax(-1)
    return weights @ value


class PlainTraining:
    """diffusers' attention, explicit on CPUs where that is faster to learn with."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        query, key, value = projected(attn, hidden_states, encoder_hidden_states)
        heads = _attended(query, key, value, attn.scale)
        return finished(attn, heads, hidden_states)


class TrainedAttention:
    """A MaskedAttention's processors for swapped_processors(), faster where a batch has one prompt.

    In cross-attention all rows then read the same keys, so the queries inside of all holes are one
    sequence, whatever their number in each row, and keys and values are made once.
    """

    def __init__(self, rule: MaskedAttention) -> None:
        self.rule = rule

    def processor(self, name: str, original: Any) -> Any | None:
        """For swapped_processors()."""
        masked = self.rule.processor(name, original)
        if masked is None or not name.endswith("attn2.processor"):
            return masked
        return _OnePrompt(self.rule, masked)


class _OnePrompt:
    """Cross-attention of rows that all read one prompt."""

    def __init__(self, rule: MaskedAttention, otherwise: Any) -> None:
        self.rule, self.otherwise = rule, otherwise

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        rows, tokens, _ = hidden_states.shape
        context = encoder_hidden_states
        regions = self.rule.regions(tokens, True, hidden_states.device)
        # A row repeated by expand() is one by its stride.
        one_prompt = context is not None and (len(context) == 1 or context.stride(0) == 0)
        local = attn.group_norm is None and not attn.residual_connection
        if (
            context is None
            or not (one_prompt and local)
            or len(regions) != rows
            or any(len(those) > 1 for those in regions)
        ):
            result: Tensor = self.otherwise(attn, hidden_states, context, attention_mask, temb)
            return result
        chosen = [(row, region) for row, those in enumerate(regions) for region in those]
        flat = hidden_states.reshape(1, rows * tokens, -1)
        everywhere = _finished_zeros(attn, flat).expand(-1, rows * tokens, -1)
        if chosen:
            parts = [_queries(region, tokens, flat.device) + r * tokens for r, region in chosen]
            at = torch.cat(parts)
            padded = functional.pad(at, (0, -len(at) % max(1, rows * tokens // _LENGTHS)))
            read = _read(attn, flat.index_select(1, padded), context[:1], chosen[0][1].keys)
            everywhere = everywhere.index_copy(1, at, read[:, : len(at)])
        return everywhere.reshape(rows, tokens, -1)


def _queries(region: Region, tokens: int, device: torch.device) -> Tensor:
    return torch.arange(tokens, device=device) if region.queries is None else region.queries


def _read(attn: Any, hidden: Tensor, context: Tensor, keys: Tensor | None) -> Tensor:
    """What a layer makes of queries (1, n, channels) that read a prompt's `keys`, None for all."""
    query, key, value = projected(attn, hidden, context)
    if keys is not None:
        value = value.masked_fill(~keys[:, None], 0)
    return finished(attn, _attended(query, key, value, attn.scale), hidden)


def _finished_zeros(attn: Any, hidden: Tensor) -> Tensor:
    """What a layer makes (1, 1, channels) of a query that reads nothing."""
    width = attn.to_out[0].in_features // attn.heads
    return finished(attn, hidden.new_zeros(1, attn.heads, 1, width), hidden[:, :1])
