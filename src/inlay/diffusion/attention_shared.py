"""Self-attention in which some rows of a batch see other keys and values than their own.

Both rules are for a batch of [source, target], or of the target alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from inlay.diffusion.attention import AttentionRule, Layer, attention_mask_at
from inlay.diffusion.sample import Level

FirstLayer = int | Literal["decoder"]


def self_attention_from(layers: Sequence[Layer], first: FirstLayer) -> list[Layer]:
    """The self-attention layers from index `first` on (0 runs first), or those of the decoder."""
    own = [layer for layer in layers if layer.kind == "self"]
    return [layer for layer in own if layer.decoder] if first == "decoder" else own[first:]


@dataclass(frozen=True)
class View:
    """What some rows of a batch see: queries of `rows` attend to keys and values of `seen`.

    `keep`, bool (tokens,), drops the keys and values where it is False; None drops none.
    """

    rows: Sequence[int]
    seen: Sequence[int]
    keep: Tensor | None = None


class _Views(AttentionRule):
    """Each view one fused call; together they cover each row once."""

    first_layer: FirstLayer
    samples: int = 0
    halves: int = 1

    def layers(self, layers: Sequence[Layer]) -> list[Layer]:
        return self_attention_from(layers, self.first_layer)

    def begin(self, level: Level, samples: int, guided: bool) -> None:
        if samples not in (1, 2):
            raise ValueError(f"a batch is [source, target] or the target, not {samples} samples")
        self.samples, self.halves = samples, 1 + guided

    def targets(self, rows: int) -> list[int]:
        """The target's row, or its rows where guidance has one in either half of the batch."""
        if rows != self.samples * self.halves:
            raise ValueError(f"{rows} rows in a batch of {self.halves} x {self.samples} samples")
        return list(range(self.samples - 1, rows, self.samples))

    def views(self, rows: int, tokens: int) -> list[View]:
        raise NotImplementedError

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.heads(query, key, value, 0, query.shape[2])

    def heads(self, query: Tensor, key: Tensor, value: Tensor, start: int, tokens: int) -> Tensor:
        """attend() where the picture's `tokens` begin at `start` of the sequence (rows, heads, n,
        width). The others are text, of which each row sees its own.
        """
        heads, end = torch.empty_like(query), start + tokens
        for view in self.views(len(query), tokens):
            rows, seen = (torch.tensor(x, device=query.device) for x in (view.rows, view.seen))
            both = []
            for x in (key, value):
                picture, text = x[seen][:, :, start:end], x[rows]
                if view.keep is not None:
                    # Dropped, not masked: fewer keys also make the call cheaper.
                    picture = picture[:, :, view.keep.to(x.device)]
                both.append(torch.cat([text[:, :, :start], picture, text[:, :, end:]], 2))
            heads[rows] = functional.scaled_dot_product_attention(query[rows], both[0], both[1])
        return heads


@dataclass(eq=False)
class HiddenRegion(_Views):
    """Target rows do not see what lies inside a mask.

    From the self-attention layer `first_layer` on, keys and values inside M are dropped, M being
    the latent mask (1, 1, h, w) resized bilinearly to the layer and thresholded at `threshold`:
    what is in the hole must then be explained by its surroundings. Where M covers a whole layer
    nothing is dropped. Source: Chen et al. 2024 (FreeCompose, arXiv 2407.04947), object removal.
    """

    mask: Tensor
    first_layer: FirstLayer = "decoder"
    threshold: float = 0.1
    _kept: dict[int, Tensor | None] = field(default_factory=dict, init=False, repr=False)

    def views(self, rows: int, tokens: int) -> list[View]:
        targets = self.targets(rows)
        rest = [row for row in range(rows) if row not in targets]
        views = [View(rest, rest)] if rest else []
        return [*views, View(targets, targets, self._keep(tokens))]

    def _keep(self, tokens: int) -> Tensor | None:
        if tokens not in self._kept:
            keep = attention_mask_at(self.mask, tokens, "bilinear") <= self.threshold
            self._kept[tokens] = keep if keep.any() and not keep.all() else None
        return self._kept[tokens]


@dataclass(eq=False)
class SharedSource(_Views):
    """Target rows attend to their source row's keys and values instead of their own.

    Unconditional rows share with unconditional ones. It acts from the self-attention layer
    `first_layer` on, and from call number `first_call` (0 is the first) of the network on. Source:
    FreeCompose (arXiv 2407.04947), semantic composition, after MasaCtrl (Cao et al. 2023, arXiv
    2304.08465).
    """

    first_layer: FirstLayer = "decoder"
    first_call: int = 0
    _call: int = field(default=-1, init=False, repr=False)

    def begin(self, level: Level, samples: int, guided: bool) -> None:
        super().begin(level, samples, guided)
        self._call += 1

    def views(self, rows: int, tokens: int) -> list[View]:
        seen = list(range(rows))
        if self._call >= self.first_call:
            if self.samples == 1:
                raise ValueError("a target row has no source row before it to share with")
            for row in self.targets(rows):
                seen[row] = row - 1
        return [View(range(rows), seen)]
