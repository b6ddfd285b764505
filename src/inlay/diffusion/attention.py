"""Changes to a U-Net's attention, scoped by `with` and undone even when the body raises."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "LocalizedPrompt",
    "attention_mask_at",
    "finished",
    "localized_bonus",
    "projected",
    "swapped_processors",
    "token_positions",
]


@contextmanager
def swapped_processors(unet: Any, make: Callable[[str, Any], Any | None]) -> Iterator[None]:
    """Replace attention processors inside a `with` block.

    `make(name, original)` returns a processor for the layer `name` (ending in attn1.processor for
    self-attention and attn2.processor for cross-attention), or None to keep it. The original
    objects go back in on leaving.
    """
    originals = dict(unet.attn_processors)
    replaced = {}
    for name, processor in originals.items():
        new = make(name, processor)
        replaced[name] = processor if new is None else new
    try:
        unet.set_attn_processor(dict(replaced))
        yield
    finally:
        unet.set_attn_processor(originals)


def projected(
    attn: Any, hidden: Tensor, context: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (rows, heads, tokens, width) of one of diffusers' attention layers.

    hidden is (rows, tokens, channels) as a processor gets it; context is the text of a
    cross-attention layer, None in self-attention.
    """
    if attn.group_norm is not None:
        hidden = attn.group_norm(hidden.transpose(1, 2)).transpose(1, 2)
    if context is None:
        context = hidden
    elif attn.norm_cross:
        context = attn.norm_encoder_hidden_states(context)

    def split(x: Tensor) -> Tensor:
        return x.reshape(len(x), x.shape[1], attn.heads, -1).transpose(1, 2)

    return split(attn.to_q(hidden)), split(attn.to_k(context)), split(attn.to_v(context))


def finished(attn: Any, heads: Tensor, residual: Tensor) -> Tensor:
    """What a layer makes of its heads' output (rows, heads, tokens, width).

    `residual` is what went into the layer.
    """
    rows, _, tokens, _ = heads.shape
    hidden = heads.transpose(1, 2).reshape(rows, tokens, -1)
    hidden = attn.to_out[1](attn.to_out[0](hidden))
    if attn.residual_connection:
        hidden = hidden + residual
    output: Tensor = hidden / attn.rescale_output_factor
    return output


def attention_mask_at(mask: Tensor, tokens: int, mode: str = "area") -> Tensor:
    """A latent mask (1, 1, h, w) at an attention layer of `tokens` = h' * w' queries: (tokens,).

    The layer's shape is the latent's halved (rounded up) until the product fits; `mode` is how
    torch's interpolate() gets there. ValueError for a number that no halving gives.
    """
    height, width = int(mask.shape[-2]), int(mask.shape[-1])
    while height * width > tokens and (height > 1 or width > 1):
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    if height * width != tokens:
        raise ValueError(f"no halving of {tuple(mask.shape[-2:])} has {tokens} pixels")
    return functional.interpolate(mask.float(), (height, width), mode=mode).reshape(-1)


def localized_bonus(scores: Tensor, mask: Tensor, tokens: Tensor, weight: float) -> Tensor:
    """Paint-with-Words' score bonus: weight * max(scores) * mask at the named tokens.

    scores is (heads, queries, keys) of one picture, mask (queries,), tokens bool (keys,);
    `weight` already holds w * log(1 + sigma). Returns (1, queries, keys). Source: Balaji et al.
    2022 (eDiff-I, arXiv 2211.01324, section 5), as used by Cross-domain Compositing.
    """
    return weight * scores.max() * mask[None, :, None] * tokens.to(scores.dtype)[None, None, :]


@dataclass
class LocalizedPrompt:
    """Steers words to the inside or the outside of a mask, on conditional rows only.

    mask is (1, 1, h, w) at latent resolution; inside and outside are bool (keys,), the tokens
    named for either; `sigma` is the current noise level, set by the sampler before each call.
    """

    mask: Tensor
    inside: Tensor
    outside: Tensor
    weight: float
    sigma: float = 0.0

    def processor(self, name: str, original: Any) -> Any | None:
        """For swapped_processors(): cross-attention layers only."""
        return _LocalizedProcessor(self) if "attn2" in name else None

    def bonus(self, scores: Tensor) -> Tensor:
        """The bonus for the scores (heads, queries, keys) of one conditional row."""
        mask = attention_mask_at(self.mask, scores.shape[1]).to(scores)
        # Infinite sigma (zero terminal SNR) would drown the prompt: stop at SD's own largest.
        strength = self.weight * math.log1p(min(self.sigma, 15.0))
        result = localized_bonus(scores, mask, self.inside.to(scores.device), strength)
        return result + localized_bonus(scores, 1 - mask, self.outside.to(scores.device), strength)


class _LocalizedProcessor:
    """diffusers' attention with explicit scores, plus the bonus on the last half of the rows."""

    def __init__(self, prompt: LocalizedPrompt) -> None:
        self.prompt = prompt

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        query, key, value = projected(attn, hidden_states, encoder_hidden_states)
        rows = len(query)
        # Scaled before the product and in float32: half precision overflows otherwise.
        scores = (query * attn.scale).float() @ key.transpose(-1, -2).float()
        # The rows are [unconditional, conditional], or conditional alone without guidance.
        first = rows // 2 if rows > 1 else 0
        bonus = torch.stack([self.prompt.bonus(row) for row in scores[first:]])
        scores = torch.cat([scores[:first], scores[first:] + bonus])
        hidden = scores.softmax(-1).to(value.dtype) @ value
        return finished(attn, hidden, hidden_states)


def token_positions(text: Any, prompt: str, words: Sequence[str]) -> Tensor:
    """Which of a prompt's tokens spell the given words: bool (tokens,).

    `text` is a backbone's TextStack. Raises LookupError naming the first word that the part of
    the prompt the encoder reads does not hold.
    """
    ids = text.token_ids(prompt)
    found = torch.zeros(len(ids), dtype=torch.bool)
    for word in words:
        piece = text.word_ids(word)
        starts = [i for i in range(len(ids)) if ids[i : i + len(piece)] == piece]
        if not piece or not starts:
            raise LookupError(word)
        for start in starts:
            found[start : start + len(piece)] = True
    return found
