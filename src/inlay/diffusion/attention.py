"""Changes to a network's attention: a rule says in which layers, and what these do instead.

`with backbone.attention(rule):` is the one way to put a rule in force.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from inlay.diffusion.sample import Level


FirstLayer = int | Literal["decoder"]

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
        """Query, key and value (rows, heads, tokens, width) of what goes into the layer, (rows,
        tokens, channels); context is the text, None in self-attention.
        """
        attn, context = self.attn, hidden if context is None else context
        query, key, value = attn.to_q(hidden), attn.to_k(context), attn.to_v(context)
        return self.split(query), self.split(key), self.split(value)

    def split(self, x: Tensor) -> Tensor:
        """What is projected, (rows, tokens, channels), by heads: (rows, heads, tokens, width)."""
        return x.reshape(len(x), x.shape[1], self.attn.heads, -1).transpose(1, 2)

    def finish(self, heads: Tensor) -> Tensor:
        """What the layer makes of its heads' output (rows, heads, tokens, width)."""
        project, dropout = self.attn.to_out
        output: Tensor = dropout(project(heads.transpose(1, 2).flatten(2)))
        return output


class AttentionRule(ABC):
    """A change to attention. A rule is for one run at a time, and may keep what it needs of it."""

    @abstractmethod
    def layers(self, layers: Sequence[Layer]) -> Iterable[Layer]:
        """Of a network's layers, in the order in which they run, those that the rule is for."""

    def begin(self, level: Level, samples: int, guided: bool) -> None:  # noqa: B027
        """A denoiser is about to run the network at a level, for some samples. Where it is guided
        the rows are [unconditional, conditional], all samples in either half.
        """

    @abstractmethod
    def run(self, layer: Layer, hidden: Tensor, context: Tensor | None) -> Tensor:
        """What a whole layer makes of what goes into it, (rows, tokens, channels)."""


class HeadsRule(AttentionRule):
    """A rule for what a layer does between its projections."""

    @abstractmethod
    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The heads' output (rows, heads, tokens, width) of a layer's query, key and value."""

    def run(self, layer: Layer, hidden: Tensor, context: Tensor | None) -> Tensor:
        return layer.finish(self.attend(layer, *layer.project(hidden, context)))


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

    def process(layer: Layer, attn: Any, hidden_states: Tensor, **shown: Any) -> Tensor:
        return rule.run(layer, hidden_states, shown.get("encoder_hidden_states"))

    return {layer.name: partial(process, layer) for layer in rule.layers(layers)}


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
class LocalizedPrompt(HeadsRule):
    """Steers words to the inside or the outside of a mask, on conditional rows only.

    mask is a latent one (1, 1, h, w); inside and outside are bool (keys,), the tokens named for
    either, `weights` how strongly each are steered; sigma is the noise over the signal.
    """

    mask: Tensor
    inside: Tensor
    outside: Tensor
    weights: Sequence[float]
    sigma: float = 0.0

    def layers(self, layers: Sequence[Layer]) -> Iterable[Layer]:
        return [layer for layer in layers if layer.kind == "cross"]

    def begin(self, level: Level, samples: int, guided: bool) -> None:
        self.sigma = level.sigma

    def bonus(self, scores: Tensor) -> Tensor:
        """Paint-with-Words' bonus for the scores (heads, queries, keys) of one conditional row:
        weight * log(1 + sigma) * max(scores) at the named tokens, inside or outside of the mask.
        Source: Balaji et al. 2022 (eDiff-I, arXiv 2211.01324, section 5).
        """
        mask = attention_mask_at(self.mask, scores.shape[1]).to(scores)[None, :, None]
        # Infinite sigma (zero terminal SNR) would drown the prompt: stop at SD's own largest.
        noise = math.log1p(min(self.sigma, 15.0))
        most = [weight * noise * scores.max() for weight in self.weights]
        # Of a long prompt words are found in the first chunk.
        rest = (0, scores.shape[-1] - len(self.inside))
        own, other = (functional.pad(x.to(scores), rest) for x in (self.inside, self.outside))
        return most[0] * mask * own + most[1] * (1 - mask) * other

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
    """Which of a prompt's tokens spell the given words: bool (tokens,); `text` is a TextStack.
    Raises LookupError naming the first word that is not in what the encoder reads of the prompt.
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


def self_attention_from(layers: Sequence[Layer], first: FirstLayer) -> list[Layer]:
    """The self-attention layers from index `first` on (0 runs first), or those of the decoder."""
    own = [layer for layer in layers if layer.kind == "self"]
    return [layer for layer in own if layer.decoder] if first == "decoder" else own[first:]


# Queries of some rows see keys and values of others, without those tokens where a mask is False.
View = tuple[Sequence[int], Sequence[int], Tensor | None]


@dataclass(eq=False, kw_only=True)
class _Views(HeadsRule):
    """Each view one fused call; together they cover each row once.

    A rule acts from the self-attention layer `first_layer` on, from call number `first_call` (0 is
    the first) of the network on, and at timesteps from `t_min` on.
    """

    first_layer: FirstLayer = "decoder"
    first_call: int = 0
    t_min: int = 0
    # Of the call that is about to be made.
    samples, halves, acts, _call = 0, 1, False, -1

    def layers(self, layers: Sequence[Layer]) -> list[Layer]:
        return self_attention_from(layers, self.first_layer)

    def begin(self, level: Level, samples: int, guided: bool) -> None:
        if samples not in (1, 2):
            raise ValueError(f"a batch is [source, target] or the target, not {samples} samples")
        self.samples, self.halves, self._call = samples, 1 + guided, self._call + 1
        self.acts = self._call >= self.first_call and float(level.timestep) >= self.t_min

    def targets(self, rows: int) -> list[int]:
        """The target's row, or its rows where guidance has one in either half of the batch."""
        if rows != self.samples * self.halves:
            raise ValueError(f"{rows} rows in a batch of {self.halves} x {self.samples} samples")
        return list(range(self.samples - 1, rows, self.samples))

    @abstractmethod
    def views(self, rows: int, tokens: int) -> list[View]: ...

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.heads(query, key, value, 0, query.shape[2])

    def heads(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        start: int,
        tokens: int,
        mask: Tensor | None = None,
    ) -> Tensor:
        """attend() where the picture's `tokens` begin at `start` of the sequence (rows, heads, n,
        width). The others are text, of which each row sees its own; mask, bool (rows, 1, 1, n), is
        False where a text has ended.
        """
        heads, end = torch.empty_like(query), start + tokens
        for *pair, keep in self.views(len(query), tokens):
            rows, seen = (torch.tensor(x, device=query.device) for x in pair)
            both = []
            for x in (key, value):
                picture, text = x[seen][:, :, start:end], x[rows]
                if keep is not None:
                    # Dropped, not masked: fewer keys also make the call cheaper.
                    picture = picture[:, :, keep.to(x.device)]
                both.append(torch.cat([text[:, :, :start], picture, text[:, :, end:]], 2))
            there = None
            if mask is not None:
                ends = mask[rows][..., :start], mask[rows][..., end:]
                gap = both[0].shape[2] - ends[0].shape[-1] - ends[1].shape[-1]
                there = torch.cat([ends[0], mask.new_ones(len(rows), 1, 1, gap), ends[1]], -1)
            heads[rows] = functional.scaled_dot_product_attention(
                query[rows], both[0], both[1], there
            )
        return heads


@dataclass(eq=False)
class HiddenRegion(_Views):
    """Target rows do not see what lies inside a mask.

    Keys and values inside M are dropped, M being the latent mask (1, 1, h, w) resized bilinearly to
    the layer and thresholded at `threshold`. Where M covers a whole layer nothing is dropped.
    Source: Chen et al. 2024 (FreeCompose, arXiv 2407.04947), object removal.
    """

    mask: Tensor
    threshold: float = 0.1
    _kept: dict[int, Tensor | None] = field(default_factory=dict, init=False, repr=False)

    def views(self, rows: int, tokens: int) -> list[View]:
        targets = self.targets(rows)
        rest = [row for row in range(rows) if row not in targets]
        views: list[View] = [(rest, rest, None)] if rest else []
        return [*views, (targets, targets, self._keep(tokens) if self.acts else None)]

    def _keep(self, tokens: int) -> Tensor | None:
        if tokens not in self._kept:
            keep = attention_mask_at(self.mask, tokens, "bilinear") <= self.threshold
            self._kept[tokens] = keep if keep.any() and not keep.all() else None
        return self._kept[tokens]


@dataclass(eq=False)
class SharedSource(_Views):
    """Target rows attend to their source row's keys and values instead of their own.

    Unconditional rows share with unconditional ones. Source: FreeCompose (arXiv 2407.04947),
    semantic composition, after MasaCtrl (Cao et al. 2023, arXiv 2304.08465).
    """

    def views(self, rows: int, tokens: int) -> list[View]:
        seen = list(range(rows))
        if self.acts:
            if self.samples == 1:
                raise ValueError("a target row has no source row before it to share with")
            for row in self.targets(rows):
                seen[row] = row - 1
        return [(range(rows), seen, None)]
