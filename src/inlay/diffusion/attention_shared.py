"""Self-attention in which some rows of a batch see other keys and values than their own.

Both changes go in through attention.swapped_processors(), so they are undone with its block. Rows
are named by the sampler: each is "source" or "target", in the order of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from inlay.diffusion.attention import attention_mask_at, finished, projected

__all__ = [
    "HiddenRegion",
    "Layers",
    "Role",
    "SharedSource",
    "View",
    "chosen_layers",
    "self_attention_layers",
]

Role = Literal["source", "target"]
Layers = int | Literal["decoder"]

_ORDER = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}


def self_attention_layers(unet: Any) -> list[str]:
    """Names of a U-Net's self-attention processors in the order in which they run."""
    names = [name for name in unet.attn_processors if name.endswith("attn1.processor")]
    # The U-Net registers its middle after its decoder, but runs it before.
    return sorted(names, key=lambda name: _ORDER[name.split(".")[0]])


def chosen_layers(unet: Any, layers: Layers) -> frozenset[str]:
    """The self-attention layers from index `layers` on (0 is the first), or "decoder"."""
    names = self_attention_layers(unet)
    if layers == "decoder":
        return frozenset(name for name in names if name.startswith("up_blocks"))
    return frozenset(names[layers:])


@dataclass(frozen=True)
class View:
    """What some rows of a batch see: queries of `rows` attend to keys and values of `seen`.

    `keep`, bool (tokens,), drops the keys and values where it is False; None drops none.
    """

    rows: Sequence[int]
    seen: Sequence[int]
    keep: Tensor | None = None


class _Rule(Protocol):
    def views(self, rows: int, tokens: int) -> list[View]:
        """Together the views must cover each row once."""
        ...


@dataclass
class HiddenRegion:
    """Target rows do not see what lies inside a mask.

    In the layers of `layers`, keys and values inside M are dropped, M being the latent mask
    (1, 1, h, w) resized bilinearly to the layer and thresholded at `threshold`: what is in the hole
    must then be explained by its surroundings. Where M covers a whole layer nothing is dropped.
    `roles` is set by the sampler before each call. Source: Chen et al. 2024 (FreeCompose,
    arXiv 2407.04947), object removal.
    """

    mask: Tensor
    layers: frozenset[str]
    threshold: float = 0.1
    roles: Sequence[Role] = ()
    _kept: dict[int, Tensor | None] = field(default_factory=dict, repr=False)

    def processor(self, name: str, original: Any) -> Any | None:
        """For swapped_processors()."""
        return _SharingProcessor(self) if name in self.layers else None

    def views(self, rows: int, tokens: int) -> list[View]:
        targets = _targets(self.roles, rows)
        rest = [row for row in range(rows) if row not in targets]
        views = [View(rest, rest)] if rest else []
        return [*views, View(targets, targets, self._keep(tokens))]

    def _keep(self, tokens: int) -> Tensor | None:
        if tokens not in self._kept:
            keep = attention_mask_at(self.mask, tokens, "bilinear") <= self.threshold
            self._kept[tokens] = keep if keep.any() and not keep.all() else None
        return self._kept[tokens]


@dataclass
class SharedSource:
    """Target rows attend to their source row's keys and values instead of their own.

    Each target row takes those of the source row before it in the batch, so unconditional rows
    share with unconditional ones. It acts in the layers of `layers`, and only while `on`; roles
    and `on` are set by the sampler before each call. Source: FreeCompose (arXiv 2407.04947),
    semantic composition, after MasaCtrl (Cao et al. 2023, arXiv 2304.08465).
    """

    layers: frozenset[str]
    roles: Sequence[Role] = ()
    on: bool = True

    def processor(self, name: str, original: Any) -> Any | None:
        """For swapped_processors()."""
        return _SharingProcessor(self) if name in self.layers else None

    def views(self, rows: int, tokens: int) -> list[View]:
        everyone = list(range(rows))
        if not self.on:
            return [View(everyone, everyone)]
        targets, seen = _targets(self.roles, rows), list(everyone)
        for row in targets:
            before = [source for source in range(row) if source not in targets]
            if not before:
                raise ValueError("a target row has no source row before it to share with")
            seen[row] = before[-1]
        return [View(everyone, seen)]


def _targets(roles: Sequence[Role], rows: int) -> list[int]:
    if len(roles) != rows:
        raise ValueError(f"{len(roles)} roles for a batch of {rows} rows")
    return [row for row, role in enumerate(roles) if role == "target"]


class _SharingProcessor:
    """diffusers' self-attention by a rule's views, each one fused call."""

    def __init__(self, rule: _Rule) -> None:
        self.rule = rule

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        query, key, value = projected(attn, hidden_states)
        heads = torch.empty_like(query)
        for view in self.rule.views(len(query), query.shape[2]):
            rows = torch.tensor(view.rows, device=query.device)
            seen = torch.tensor(view.seen, device=query.device)
            k, v = key[seen], value[seen]
            if view.keep is not None:
                # Dropped, not masked: fewer keys also make the call cheaper.
                keep = view.keep.to(key.device)
                k, v = k[:, :, keep], v[:, :, keep]
            heads[rows] = functional.scaled_dot_product_attention(query[rows], k, v)
        return finished(attn, heads, hidden_states)
