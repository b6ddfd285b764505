"""From prompts to what a U-Net attends to: one CLIP text encoder, or SDXL's two."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from inlay.errors import InputError, show

_log = logging.getLogger("inlay")

# In the released layout the object's prompt has the places 1 to 38, the background's 39 to 76.
HALF = 38


@dataclass(frozen=True, eq=False)
class Embedding:
    """Embedded prompts, one row each.

    hidden is (N, 77, D). added is None but for SDXL, where it holds text_embeds (N, P) and
    time_ids (N, 6). The tensors may be shared with a cache: do not write into them.
    """

    hidden: Tensor
    added: dict[str, Tensor] | None = None

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
        return Embedding(self.hidden.expand(count, -1, -1), added)


def join(*parts: Embedding) -> Embedding:
    """Stack conditionings, in order, into one batch."""
    keys = parts[0].added
    added = keys and {key: torch.cat([(part.added or {})[key] for part in parts]) for key in keys}
    return Embedding(torch.cat([part.hidden for part in parts]), added)


class TextStack:
    """The tokenizers and text encoders of a checkpoint, with a cache of what they made.

    One encoder gives its last hidden state, after the final layer norm (SD 1.x, SD 2.x). Of two
    (SDXL; Podell et al. 2023, arXiv 2307.01952, section 2.1) the last hidden states but one are
    joined along the width, and the last encoder's projected pooled output goes along. With
    `empty_is_zero` an empty prompt embeds to zeros, which is what SDXL was trained on in place of
    captions that were dropped. `learns` is whether the encoders do: then nothing is kept, and
    gradients flow.
    """

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
        self.learns = False
        # A textual inversion of n vectors is n tokens, of which a prompt names only the first:
        # for each tokenizer, that token's id and the ids it stands for.
        self.expansions: list[dict[int, list[int]]] = [{} for _ in self.tokenizers]
        self.clear()

    def clear(self) -> None:
        """Forget what was embedded; needed after any change to an encoder or a tokenizer."""
        self._kept = lru_cache(self.cache_size)(self._row)

    def embed(self, prompts: Sequence[str], size: tuple[int, int]) -> Embedding:
        """One row a prompt; `size` is the (height, width) in pixels that SDXL is told of.

        Prompts beyond the encoder's length are cut, and the log says so. The same prompt gives
        the same row, from a cache of the `cache_size` prompts used last.
        """
        if not prompts:
            raise ValueError("embed() needs at least one prompt")
        row = self._row if self.learns else self._kept
        rows = [row(prompt) for prompt in prompts]
        hidden = rows[0][0] if len(rows) == 1 else torch.cat([row[0] for row in rows])
        pooled = [row[1] for row in rows if row[1] is not None]
        return Embedding(hidden, self._added(pooled, size) if pooled else None)

    def _added(self, pooled: Sequence[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        # Original size, crop offset, target size: what SDXL was told of its training pictures.
        # In float32: bfloat16 cannot hold such numbers.
        ids = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32, device=pooled[0].device)
        return {"text_embeds": torch.cat(list(pooled)), "time_ids": ids.expand(len(pooled), -1)}

    def _row(self, prompt: str) -> tuple[Tensor, Tensor | None]:
        with torch.set_grad_enabled(self.learns and torch.is_grad_enabled()):
            hidden, pooled = row = self._encode(prompt)
        if self.empty_is_zero and prompt == "":
            return torch.zeros_like(hidden), pooled if pooled is None else torch.zeros_like(pooled)
        return row

    def _encode(self, prompt: str) -> tuple[Tensor, Tensor | None]:
        outputs = self._outputs(prompt)
        if len(outputs) == 1:
            return outputs[0].last_hidden_state, None
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        return hidden, getattr(outputs[-1], "text_embeds", None)

    def _outputs(self, prompt: str) -> list[Any]:
        """What each encoder makes of a prompt, its hidden states included."""
        return [
            encoder(
                torch.tensor([self.token_ids(prompt, number)], device=encoder.device),
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
        """The ids that encoder `number` is fed, start, end and padding included."""
        length, ids = self.length(number), self.word_ids(prompt, number, special=True)
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
        """How much of a prompt is read, in words; empty where an encoder reads all of it."""
        numbers = range(len(self.encoders))
        lengths = [(self.length(n), len(self.word_ids(prompt, n, special=True))) for n in numbers]
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
