"""Attention in which an object's box and the rest of the picture do not mix.

DreamCom masks the attention map AFTER the softmax, without normalising it again. Such a map need
never be built: (M o A) V, with M constant over the queries of a region, is A (V o m) for them,
where m is M's row. So each region's queries make one call of the fused kernel with masked values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from inlay.diffusion.attention import AttentionRule, Layer, attention_mask_at
from inlay.diffusion.text import HALF

# Queries of cross-attention that are run at once on a CPU, without gradients.
_AT_ONCE = 256

Preset = Literal["paper", "released", "a", "b", "c", "d"]


def masked_layers(
    layers: Sequence[Layer], preset: Preset = "paper", cross: bool = True
) -> list[Layer]:
    """Of a network's attention layers those that are masked: self-attention by preset, and with
    `cross` all cross-attention.

    The supplement's variants, section 1: "a" no self-attention layer, "b" all, "c" the decoder's
    outer layers alone, "d" all but these. The outer ones are the last 6 of 9 in SD 1.x and 2.x,
    the last two thirds (rounded) in other decoders. "paper" is "d"; "released", the authors' code,
    masks the last 5 of the decoder. Raises ValueError for another preset. Source: Lu et al. 2023
    (DreamCom, arXiv 2309.15508, sections 4.2 and 4.3).
    """
    if preset not in get_args(Preset):
        known = ", ".join(get_args(Preset))
        raise ValueError(f"{preset!r} is no preset of masked self-attention; these are: {known}")
    own = [layer for layer in layers if layer.kind == "self"]
    decoder = [layer for layer in own if layer.decoder]
    outer = decoder[len(decoder) - round(2 * len(decoder) / 3) :]
    inner = [layer for layer in own if layer not in outer]
    sets = {"a": [], "b": own, "c": outer, "d": inner, "paper": inner, "released": decoder[-5:]}
    chosen = sets[preset]
    return [layer for layer in layers if layer in chosen or (cross and layer.kind == "cross")]


def released_tokens(keys: int = 77) -> Tensor:
    """The tokens that are read in the released layout, bool (keys,): those of the object's prompt;
    the start of the text and the background's prompt are muted for all queries.
    """
    place = torch.arange(keys)
    return (place >= 1) & (place <= HALF)


def inside_at(mask: Tensor, tokens: int) -> Tensor:
    """Latent masks (N, 1, h, w) at an attention layer of `tokens` queries: bool (N, tokens).

    A query is inside where the mask covers at least half of what it stands for. A mask so thin
    that it nowhere does keeps the queries it covers most; one that is empty has none.
    """
    rows = torch.stack([attention_mask_at(one[None], tokens) for one in mask])
    most = rows.amax(1, keepdim=True)
    # Less a little, as the same share of cells of several sizes rounds to several numbers.
    return (rows >= most.clamp(max=0.5) - 1e-5) & (most > 0)


@dataclass(frozen=True)
class Region:
    """Queries, by index (n,), and the keys, bool (keys,), whose values they get; None is all."""

    queries: Tensor | None
    keys: Tensor | None = None

    def kept(self, value: Tensor) -> Tensor:
        """Values (rows, heads, keys, width), 0 at all keys but those of the region."""
        return value if self.keys is None else value.masked_fill(~self.keys[:, None], 0)


def regional_attention(
    query: Tensor, key: Tensor, value: Tensor, regions: Sequence[Region], scale: float | None = None
) -> Tensor:
    """(M o softmax(scale * Q K^T)) V, where M is 1 for the queries and keys of a region.

    query, key and value are (rows, heads, tokens, width). No query may be in two regions; one in
    none gets zeros. `scale` is 1 / sqrt(width) by default. The attention map is not built.
    """
    result = query.new_zeros(*query.shape[:3], value.shape[-1])
    for region in regions:
        own = query if region.queries is None else query.index_select(2, region.queries)
        kept = region.kept(value)
        part = functional.scaled_dot_product_attention(own, key, kept, scale=scale)
        if region.queries is None:
            return part
        result.index_copy_(2, region.queries, part)
    return result


@dataclass(eq=False)
class MaskedAttention(AttentionRule):
    """Masked cross- and self-attention, in the layers of masked_layers().

    mask is (1 or N, 1, h, w) at latent resolution, 1 in the object's box; row r of a batch is under
    mask r modulo N, which is right for N latents and for [N unconditional, N conditional].
    ValueError for another layout.

    Cross-attention (eq. 2): queries inside read all tokens, or those of `inside`, bool (keys,);
    queries outside none. Self-attention (section 4.3): what is inside and what is outside do not
    see each other. Both hold for unconditional rows, too. Source: DreamCom (arXiv 2309.15508).
    """

    mask: Tensor
    preset: Preset = "paper"
    cross: bool = True
    inside: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mask.ndim != 4 or self.mask.shape[1] != 1 or not self.mask.numel():
            raise ValueError(f"a latent mask is (N, 1, h, w), not {tuple(self.mask.shape)}")
        self._regions: dict[tuple[int, bool, torch.device], list[list[Region]]] = {}

    def layers(self, layers: Sequence[Layer]) -> list[Layer]:
        return masked_layers(layers, self.preset, self.cross)

    def run(self, layer: Layer, hidden: Tensor, context: Tensor | None) -> Tensor:
        regions = self.regions(hidden.shape[1], context is not None, hidden.device)
        count = len(regions)
        if len(hidden) % count:
            raise ValueError(f"{count} masks do not share out {len(hidden)} rows of a batch")
        parts = [
            _run(layer, hidden[i::count], None if context is None else context[i::count], part)
            for i, part in enumerate(regions)
        ]
        return parts[0] if count == 1 else torch.stack(parts, 1).flatten(0, 1)

    def regions(self, tokens: int, cross: bool, device: torch.device) -> list[list[Region]]:
        """For each mask, the regions of a layer of `tokens` queries."""
        place = (tokens, cross, device)
        if place not in self._regions:
            # Kept for later calls, which may be of training: inference tensors cannot be.
            with torch.inference_mode(False), torch.no_grad():
                rows = inside_at(self.mask, tokens).to(device)
                self._regions[place] = [self._of(row, cross) for row in rows]
        return self._regions[place]

    def _of(self, inside: Tensor, cross: bool) -> list[Region]:
        pairs = [(inside, self.inside)] if cross else [(inside, inside), (~inside, ~inside)]
        # What stands for everything is None, so that it costs nothing.
        return [
            Region(
                None if queries.all() else queries.nonzero()[:, 0],
                None if keys is None or keys.all() else keys.to(inside.device),
            )
            for queries, keys in pairs
            if queries.any()
        ]


def _run(layer: Layer, hidden: Tensor, context: Tensor | None, regions: Sequence[Region]) -> Tensor:
    """A whole attention layer for rows under one mask; hidden is (rows, tokens, channels)."""
    queries = regions[0].queries if regions else None
    if context is None or queries is None:
        projected = layer.project(hidden, context)
        return layer.finish(regional_attention(*projected, regions, layer.attn.scale))
    # Only some queries of a cross-attention layer read something. All others come out as zeros do,
    # so the layer, projections included, is run for these alone; on a CPU without gradients a part
    # of them at a time, as what that needs stays in the cache.
    blank, key, value = layer.project(hidden[:, :1], context)
    value = regions[0].kept(value)
    unread = layer.finish(torch.zeros_like(blank))
    result = unread.expand(-1, hidden.shape[1], -1).clone()
    in_parts = hidden.device.type == "cpu" and not torch.is_grad_enabled()
    for part in queries.split(_AT_ONCE if in_parts else len(queries)):
        query = layer.split(layer.attn.to_q(hidden.index_select(1, part)))
        heads = functional.scaled_dot_product_attention(query, key, value, scale=layer.attn.scale)
        result.index_copy_(1, part, layer.finish(heads))
    return result
