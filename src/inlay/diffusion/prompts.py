"""How a prompt for a concept is laid out over a text encoder's places."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inlay.diffusion.text import Conditioning, TextStack
from inlay.errors import InputError

__all__ = ["embedded_prompt"]

# In the released layout the object's prompt has the places 1 to 38, the background's 39 to 76.
_HALF = 38


def embedded_prompt(
    text: TextStack,
    prompt: str,
    size: tuple[int, int],
    layout: str = "plain",
    background: str = "background",
) -> Conditioning:
    """A prompt for pictures of (height, width), one row, hidden (1, 77, D), in either layout.

    "released": the places 0 to 38 are those of the prompt, and 39 to 76 the first 38 words of
    `background`, padding included; released_tokens() says which of them are read. A text encoder
    of CLIP's looks back only, so the object's half is what the prompt alone gives. Raises
    InputError for a prompt that is too long for its half, or an encoder without 77 places.
    """
    whole = text.embed([prompt], size)
    if layout == "plain":
        return whole
    if whole.hidden.shape[1] != 2 * _HALF + 1:
        raise InputError(
            f"layout is released, which is for text encoders of {2 * _HALF + 1} tokens, but this "
            f"checkpoint's reads {whole.hidden.shape[1]}; use layout=plain."
        )
    for part in (prompt, background):
        if _length(text, part) > _HALF:
            raise InputError(
                f"the prompt {part!r} is longer than the {_HALF} tokens that the released layout "
                "has for it; use a shorter one or layout=plain."
            )
    second = text.embed([background], size)
    hidden = torch.cat([whole.hidden[:, : _HALF + 1], second.hidden[:, 1 : _HALF + 1]], 1)
    return Conditioning(hidden, whole.added)


def _length(text: TextStack, prompt: str) -> int:
    """Tokens of a prompt, without start and end, for the tokenizer that needs most."""
    words: Sequence[str] = prompt.split()
    numbers = range(len(text.tokenizers))
    return max((sum(len(text.word_ids(w, n)) for w in words) for n in numbers), default=0)
