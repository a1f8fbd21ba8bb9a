"""Tokenizers of three kinds, trained in a moment on a text that does not change."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LICENSE = Path(__file__).resolve().parents[1] / "LICENSE"
ASCII = [chr(code) for code in (10, *range(32, 127))]
START, END = "<s>", "</s>"
WORDS = r"\s*\w+|\s*[^\s\w]+|\s+"


@functools.cache
def plain(size: int = 512) -> PreTrainedTokenizerFast:
    """Of ASCII characters: every sequence of its ids is text. `size` ids, each of which has one."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), "isolated")
    made.decoder = decoders.Fuse()
    return _trained(made, size, ASCII)


@functools.cache
def byte_level() -> PreTrainedTokenizerFast:
    """As Qwen's and Llama 3's: a character may be several tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return _trained(made, 600, pre_tokenizers.ByteLevel.alphabet())


@functools.cache
def with_blank_in_front() -> PreTrainedTokenizerFast:
    """As Llama 2's and Mistral's: a text begins with a special token, and as if with a blank."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    trained = _trained(made, 600, [*ASCII, "▁"])
    start = trained.convert_tokens_to_ids(START)
    trained.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", pair=f"{START} $A $B", special_tokens=[(START, start)]
    )
    return trained


def _trained(made: Any, size: int, alphabet: list[str]) -> PreTrainedTokenizerFast:
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[START, END], initial_alphabet=alphabet, show_progress=False
    )
    made.train([str(LICENSE)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=START, eos_token=END)
