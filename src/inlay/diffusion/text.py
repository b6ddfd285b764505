"""From prompts to what a U-Net attends to: one CLIP text encoder, or SDXL's two."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from inlay.errors import InputError, show

_log = logging.getLogger("inlay")

# In the released layout the object's prompt has the places 1 to 38, the background's 39 to 76.
HALF = 38
# A prompt's parts: a sign that is meant as it stands, a bracket, text. How much a pair weighs.
_PART = re.compile(r"\\[][()\\]|[([]|\]|:\s*(\d*\.?\d+)\s*\)|\)|[^][()\\:]+|.", re.DOTALL)
_MORE = 1.1


def weighted(prompt: str) -> list[tuple[str, float]]:
    """A prompt's parts with their weights, in the syntax of AUTOMATIC1111's web UI.

    "(a cat)" weighs 1.1 and "[a cat]" 1 / 1.1, "(a cat:1.4)" as much as it says; inside of each
    other they multiply. "\\(" is a bracket, and so is one without its other half.
    """
    parts: list[list[Any]] = []
    starts: list[tuple[str, int]] = []
    for match in _PART.finditer(prompt):
        part, told = match[0], match[1]
        pair = "[" if part == "]" else "(" if part[-1] == ")" and part[0] != "\\" else ""
        if pair and starts and starts[-1][0] == pair:
            _, start = starts.pop()
            parts[start][0] = ""
            for each in parts[start:]:
                each[1] *= 1 / _MORE if pair == "[" else float(told) if told else _MORE
            continue
        if part in ("(", "["):
            starts.append((part, len(parts)))
        parts.append([part[1:] if part[0] == "\\" and part[1:] else part, 1.0])
    joined: list[tuple[str, float]] = []
    for text, weight in parts:
        if joined and (weight == joined[-1][1] or not text):
            joined[-1] = joined[-1][0] + text, joined[-1][1]
        else:
            joined.append((text, weight))
    return [each for each in joined if each[0]]


def plain_text(prompt: str) -> str:
    """A prompt without its weights."""
    return "".join(text for text, _ in weighted(prompt))


@dataclass(frozen=True, eq=False)
class Embedding:
    """Embedded prompts, one row each.

    hidden is (N, 77, D), of long prompts (N, n * 77, D). added is None but for SDXL, where it holds
    text_embeds (N, P) and time_ids (N, 6). blank gives what stands beside a longer prompt, (1, 77,
    D). The tensors may be shared with a cache: do not write into them.
    """

    hidden: Tensor
    added: dict[str, Tensor] | None = None
    blank: Callable[[], Tensor] | None = None

    def __len__(self) -> int:
        return int(self.hidden.shape[0])

    def rows(self, count: int) -> Embedding:
        """These rows as `count` rows: as they are, or the only one repeated (a view)."""
        if len(self) == count:
            return self
        if len(self) != 1:
            raise ValueError(f"{len(self)} rows of conditioning cannot serve {count} latents")
        added = self.added and {
            key: value.expand(count, *value.shape[1:]) for key, value in self.added.items()
        }
        return replace(self, hidden=self.hidden.expand(count, -1, -1), added=added)

    def filled(self, tokens: int) -> Tensor:
        """hidden with blanks up to so many tokens; where there are none, with zeros."""
        missing = tokens - self.hidden.shape[1]
        if not missing or self.blank is None:
            return functional.pad(self.hidden, (0, 0, 0, missing)) if missing else self.hidden
        blank = self.blank()
        rest = blank.repeat(len(self), missing // blank.shape[1], 1)
        return torch.cat([self.hidden, rest], 1)


def join(*parts: Embedding) -> Embedding:
    """Stack conditionings, in order, into one batch."""
    keys, longest = parts[0].added, max(part.hidden.shape[1] for part in parts)
    added = keys and {key: torch.cat([(part.added or {})[key] for part in parts]) for key in keys}
    hidden = torch.cat([part.filled(longest) for part in parts])
    return Embedding(hidden, added, parts[0].blank)


class TextStack:
    """The tokenizers and text encoders of a checkpoint, with a cache of what they made.

    One encoder gives its last hidden state, after the final layer norm (SD 1.x, SD 2.x). Of two
    (SDXL; Podell et al. 2023, arXiv 2307.01952, section 2.1) the last hidden states but one are
    joined along the width, and the last encoder's projected pooled output goes along. With
    `empty_is_zero` an empty prompt embeds to zeros, which is what SDXL was trained on in place of
    captions that were dropped. `learns` is whether the encoders do: then nothing is kept, and
    gradients flow. Prompts have weights, see weighted(), and long ones are read in chunks, both as
    compel does it: what a part adds to the embedding of an empty prompt is multiplied, and less
    than 1 is on the way to the prompt without the part.
    """

    # Whether more is read than an encoder's length, and weights count.
    chunks = True

    def __init__(
        self,
        tokenizers: Sequence[Any],
        encoders: Sequence[Any],
        *,
        empty_is_zero: bool = False,
        cache_size: int = 64,
    ) -> None:
        self.tokenizers, self.encoders = list(tokenizers), list(encoders)
        self.empty_is_zero, self.cache_size = empty_is_zero, cache_size
        # Where the encoders run, wherever their weights are in between.
        self.device = self.encoders[0].device
        self.learns = False
        # A textual inversion of n vectors is n tokens, of which a prompt names only the first:
        # for each tokenizer, that token's id and the ids it stands for.
        self.expansions: list[dict[int, list[int]]] = [{} for _ in self.tokenizers]
        self.clear()

    def clear(self) -> None:
        """Forget what was embedded; needed after any change to an encoder or a tokenizer."""
        self._kept = lru_cache(self.cache_size)(self._row)

    def embed(self, prompts: Sequence[str], size: tuple[int, int], skip: int = 0) -> Embedding:
        """One row a prompt; `size` is the (height, width) in pixels that SDXL is told of, `skip`
        how many of the encoders' last layers are left out. Raises InputError for all of them.

        The same prompt gives the same row, from a cache of the `cache_size` prompts used last.
        """
        if not prompts:
            raise ValueError("embed() needs at least one prompt")
        told = (encoder.config.get_text_config() for encoder in self.encoders)
        layers = min(int(config.num_hidden_layers) for config in told)
        if skip >= layers:
            raise InputError(f"clip_skip is {skip}; expected less than the {layers} layers.")
        row = self._row if self.learns else self._kept
        rows = [row(prompt, skip) for prompt in prompts]
        pooled = [each[1] for each in rows if each[1] is not None]
        added = self._added(pooled, size) if pooled else None
        blank = self.chunks and (lambda: row("", skip)[0])
        if len(rows) == 1:
            return Embedding(rows[0][0], added, blank or None)
        joined = join(*(Embedding(each[0], None, blank or None) for each in rows))
        return replace(joined, added=added)

    def _added(self, pooled: Sequence[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        # Original size, crop offset, target size: what SDXL was told of its training pictures.
        # In float32: bfloat16 cannot hold such numbers.
        ids = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32, device=pooled[0].device)
        return {"text_embeds": torch.cat(list(pooled)), "time_ids": ids.expand(len(pooled), -1)}

    def _row(self, prompt: str, skip: int = 0) -> tuple[Tensor, Tensor | None]:
        with torch.set_grad_enabled(self.learns and torch.is_grad_enabled()):
            hidden, pooled = row = self._encode(prompt, skip)
        if self.empty_is_zero and prompt == "":
            return torch.zeros_like(hidden), pooled if pooled is None else torch.zeros_like(pooled)
        return row

    def _encode(self, prompt: str, skip: int) -> tuple[Tensor, Tensor | None]:
        outputs = self._outputs(prompt)
        hidden = [self._read(number, output, skip) for number, output in enumerate(outputs)]
        parts = weighted(prompt)
        if any(weight != 1 for _, weight in parts) or self._told(prompt):
            hidden = [self._weighted(number, parts, skip) for number in range(len(outputs))]
        pooled = getattr(outputs[-1], "text_embeds", None) if len(outputs) > 1 else None
        return torch.cat(hidden, -1), pooled

    def _read(self, number: int, output: Any, skip: int) -> Tensor:
        """Of what encoder `number` gave, what the network reads."""
        if len(self.encoders) == 1 and skip == 0:
            last: Tensor = output.last_hidden_state
            return last
        hidden: Tensor = output.hidden_states[-min(2, len(self.encoders)) - skip]
        encoder = self.encoders[number]
        if len(self.encoders) == 1:
            hidden = getattr(encoder, "text_model", encoder).final_layer_norm(hidden)
        return hidden

    def _weighted(self, number: int, parts: Sequence[tuple[str, float]], skip: int) -> Tensor:
        """The weighted parts of a prompt as encoder `number` embeds them, (1, n * 77, D)."""
        from compel.embeddings_provider import EmbeddingsProvider, SplitLongTextMode

        encoder, expand = self.encoders[number], self.expansions[number]

        def encode(ids: Tensor, mask: Tensor | None = None, **_: Any) -> Any:
            output = encoder(ids, mask, output_hidden_states=True)
            return SimpleNamespace(last_hidden_state=self._read(number, output, skip))

        class Encoder(SimpleNamespace):
            __call__ = staticmethod(encode)

        def expanded(ids: list[int]) -> list[int]:
            return [part for token in ids for part in expand.get(token, (token,))]

        name = "expand_textual_inversion_token_ids_if_necessary"
        provider = EmbeddingsProvider(
            self.tokenizers[number],
            Encoder(device=self.device, dtype=encoder.dtype),
            SimpleNamespace(**{name: expanded}),
            truncate=False,
            split_long_text_mode=SplitLongTextMode.SENTENCES,
            model_max_length=self.length(number),
        )
        texts, weights = ([each[i] for each in parts] for i in (0, 1))
        embed: Any = provider.get_embeddings_for_weighted_prompt_fragments
        hidden: Tensor = embed([texts], [weights], device=self.device)
        return hidden

    def _outputs(self, prompt: str) -> list[Any]:
        """What each encoder makes of a prompt, its hidden states included."""
        return [
            encoder(
                torch.tensor([self.token_ids(prompt, number)], device=self.device),
                output_hidden_states=True,
            )
            for number, encoder in enumerate(self.encoders)
        ]

    def word_ids(self, word: str, number: int = 0, special: bool = False) -> list[int]:
        """The ids of a word as it stands inside a prompt, for encoder `number`; with `special`
        between those of start and end.
        """
        tokenizer, expand = self.tokenizers[number], self.expansions[number]
        plain = tokenizer(word, add_special_tokens=special, verbose=False).input_ids
        return [part for token in plain for part in expand.get(token, (token,))]

    def token_ids(self, prompt: str, number: int = 0) -> list[int]:
        """The ids that encoder `number` is fed at first, start, end and padding included."""
        text = plain_text(prompt)
        length, ids = self.length(number), self.word_ids(text, number, special=True)
        if len(ids) > length:
            if told := self.unread(prompt):
                _log.warning(told)
            ids = [*ids[: length - 1], ids[-1]]
        ids += [int(self.tokenizers[number].pad_token_id)] * (length - len(ids))
        if max(ids) >= (most := self.encoders[number].get_input_embeddings().num_embeddings):
            raise InputError(
                f"the model's tokenizer makes token {max(ids)} of the prompt {show(prompt)}, but "
                f"its text encoder knows {most}: fetch the tokenizer's files again."
            )
        return ids

    def length(self, number: int) -> int:
        """How many ids encoder `number` is fed."""
        tokenizer, encoder = self.tokenizers[number], self.encoders[number]
        # Some tokenizers in the wild carry no length of their own.
        return min(int(tokenizer.model_max_length), int(encoder.config.max_position_embeddings))

    def unread(self, prompt: str) -> str:
        """How much of a prompt is read, in words; empty where all of it is."""
        return "" if self.chunks else self._told(prompt)

    def _told(self, prompt: str) -> str:
        """How much of a prompt is read at once; empty where an encoder reads all of it."""
        text, numbers = plain_text(prompt), range(len(self.encoders))
        lengths = [(self.length(n), len(self.word_ids(text, n, special=True))) for n in numbers]
        if any(ids <= length for length, ids in lengths):
            return ""
        length, ids = lengths[-1]
        return f"only the first {length} of the {ids} tokens of the prompt {show(prompt)} are read"


def embed_prompt(
    text: TextStack,
    prompt: str,
    size: tuple[int, int],
    layout: str = "plain",
    background: str = "background",
) -> Embedding:
    """A prompt for pictures of (height, width), one row, hidden (1, 77, D), in either layout.

    "released": the places 0 to 38 are those of the prompt, and 39 to 76 the first 38 words of
    `background`, padding included; released_tokens() says which of them are read. A text encoder
    of CLIP's looks back only, so the object's half is what the prompt alone gives. Raises
    InputError for a prompt that is too long for its half, or an encoder without 77 places.
    """
    whole = text.embed([prompt], size)
    if layout == "plain":
        return whole
    if whole.hidden.shape[1] != 2 * HALF + 1:
        raise InputError(
            f"layout is released, which is for text encoders of {2 * HALF + 1} tokens, but this "
            f"checkpoint's reads {whole.hidden.shape[1]}; use layout=plain."
        )
    for part in (prompt, background):
        # Without start and end, by the tokenizer that needs most.
        numbers = range(len(text.tokenizers))
        if max(sum(len(text.word_ids(w, n)) for w in part.split()) for n in numbers) > HALF:
            raise InputError(
                f"the prompt {part!r} is longer than the {HALF} tokens that the released layout "
                "has for it; use a shorter one or layout=plain."
            )
    second = text.embed([background], size)
    hidden = torch.cat([whole.hidden[:, : HALF + 1], second.hidden[:, 1 : HALF + 1]], 1)
    return Embedding(hidden, whole.added)
