"""Changes to a network's attention: a rule says in which layers, and what these do instead.

`with backbone.attention(rule):` is the one way to put a rule in force.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from inlay.diffusion.sample import Level


_ORDER = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}


@dataclass(frozen=True, eq=False)
class Layer:
    """An attention layer of a network.

    name is that of its processor; kind is "self" where the picture attends to itself, "cross" where
    it attends to the text; decoder says whether it lies on the network's way back up; attn is
    diffusers' module.
    """

    name: str
    kind: Literal["self", "cross"]
    decoder: bool
    attn: Any

    def project(self, hidden: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value (rows, heads, tokens, width) of what goes into the layer.

        hidden is (rows, tokens, channels); context is the text of a cross-attention layer, None in
        self-attention.
        """
        attn = self.attn
        if attn.group_norm is not None:
            hidden = attn.group_norm(hidden.transpose(1, 2)).transpose(1, 2)
        if context is None:
            context = hidden
        elif attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        query, key, value = attn.to_q(hidden), attn.to_k(context), attn.to_v(context)
        return self.split(query), self.split(key), self.split(value)

    def split(self, x: Tensor) -> Tensor:
        """What is projected, (rows, tokens, channels), by heads: (rows, heads, tokens, width)."""
        return x.reshape(len(x), x.shape[1], self.attn.heads, -1).transpose(1, 2)

    def finish(self, heads: Tensor, residual: Tensor) -> Tensor:
        """What the layer makes of its heads' output (rows, heads, tokens, width).

        `residual` is what went into the layer.
        """
        attn, (rows, _, tokens, _) = self.attn, heads.shape
        hidden = heads.transpose(1, 2).reshape(rows, tokens, -1)
        hidden = attn.to_out[1](attn.to_out[0](hidden))
        if attn.residual_connection:
            hidden = hidden + residual
        output: Tensor = hidden / attn.rescale_output_factor
        return output


class AttentionRule:
    """A change to attention. A rule is for one run at a time, and may keep what it needs of it."""

    def layers(self, layers: Sequence[Layer]) -> Iterable[Layer]:
        """Of a network's layers, in the order in which they run, those that the rule is for."""
        raise NotImplementedError

    def begin(self, level: Level, samples: int, guided: bool) -> None:
        """A denoiser is about to run the network at a level, for some samples. Where it is guided
        the rows are [unconditional, conditional], all samples in either half.
        """

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The heads' output (rows, heads, tokens, width) of a layer's query, key and value."""
        raise NotImplementedError

    def run(self, layer: Layer, hidden: Tensor, context: Tensor | None) -> Tensor:
        """What a whole layer makes of what goes into it, (rows, tokens, channels)."""
        return layer.finish(self.attend(layer, *layer.project(hidden, context)), hidden)


@dataclass(frozen=True, eq=False)
class _Processor:
    """A rule in one layer, with the call of diffusers' attention processors."""

    rule: AttentionRule
    layer: Layer

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        return self.rule.run(self.layer, hidden_states, encoder_hidden_states)


def unet_layers(unet: Any) -> list[Layer]:
    """The attention layers of diffusers' U-Net in the order in which they run."""
    # The U-Net registers its middle after its decoder, but runs it before.
    names = sorted(unet.attn_processors, key=lambda name: _ORDER[name.split(".")[0]])
    return [
        Layer(
            name,
            "cross" if name.endswith("attn2.processor") else "self",
            name.startswith("up_blocks"),
            unet.get_submodule(name.removesuffix(".processor")),
        )
        for name in names
    ]


def processors(rule: AttentionRule, layers: Sequence[Layer]) -> dict[str, Any]:
    """A rule as diffusers' attention processors, by the names of those layers that it is for."""
    return {layer.name: _Processor(rule, layer) for layer in rule.layers(layers)}


@contextmanager
def change_attention(network: Any, rule: AttentionRule, layers: Sequence[Layer]) -> Iterator[None]:
    """Inside, the layers that a rule is for go by it; then the original processors are back."""
    originals = dict(network.attn_processors)
    try:
        network.set_attn_processor({**originals, **processors(rule, layers)})
        yield
    finally:
        network.set_attn_processor(originals)


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


@dataclass
class LocalizedPrompt(AttentionRule):
    """Steers words to the inside or the outside of a mask, on conditional rows only.

    mask is (1, 1, h, w) at latent resolution; inside and outside are bool (keys,), the tokens
    named for either; sigma is the noise over the signal of the sample that is denoised.
    """

    mask: Tensor
    inside: Tensor
    outside: Tensor
    weight: float
    sigma: float = 0.0

    def layers(self, layers: Sequence[Layer]) -> Iterable[Layer]:
        return [layer for layer in layers if layer.kind == "cross"]

    def begin(self, level: Level, samples: int, guided: bool) -> None:
        self.sigma = level.sigma

    def bonus(self, scores: Tensor) -> Tensor:
        """Paint-with-Words' bonus for the scores (heads, queries, keys) of one conditional row:
        weight * log(1 + sigma) * max(scores) at the named tokens, inside or outside of the mask.

        Source: Balaji et al. 2022 (eDiff-I, arXiv 2211.01324, section 5), as used by Cross-domain
        Compositing.
        """
        mask = attention_mask_at(self.mask, scores.shape[1]).to(scores)[None, :, None]
        # Infinite sigma (zero terminal SNR) would drown the prompt: stop at SD's own largest.
        most = self.weight * math.log1p(min(self.sigma, 15.0)) * scores.max()
        return most * mask * self.inside.to(scores) + most * (1 - mask) * self.outside.to(scores)

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """With explicit scores, and the bonus on the last half of the rows."""
        rows = len(query)
        # Scaled before the product and in float32: half precision overflows otherwise.
        scores = (query * layer.attn.scale).float() @ key.transpose(-1, -2).float()
        # The rows are [unconditional, conditional], or conditional alone without guidance.
        first = rows // 2 if rows > 1 else 0
        bonus = torch.stack([self.bonus(row) for row in scores[first:]])
        scores = torch.cat([scores[:first], scores[first:] + bonus])
        return scores.softmax(-1).to(value.dtype) @ value


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
