"""A CLIP tokenizer of our own: byte-level BPE learned from captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

__all__ = ["train_tokenizer"]

_START, _END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Sequence[str], vocab_size: int = 1200) -> CLIPTokenizer:
    """Learn a vocabulary from captions; bytes are its base, so any text can be encoded."""
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    raw = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    raw.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                tokenizers.Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"),
                behavior="removed",
                invert=True,
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(alphabet),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    raw.train_from_iterator(captions, trainer)
    import json

    learned = json.loads(raw.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    # CLIP's order: the bytes, the bytes that end a word, the merges, the two special tokens.
    base = sorted(alphabet)
    words = [*base, *[b + "</w>" for b in base], *["".join(m) for m in merges], _START, _END]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=_END,
        bos_token=_START,
        eos_token=_END,
        pad_token=_END,
        model_max_length=77,
    )
