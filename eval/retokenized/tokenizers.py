"""What is needed of a tokenizer, of Hugging Face's files or of a tiktoken file of Qwen's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from eval.accuracy.errors import EvalError

#: Qwen's pattern of words, that of Qwen 2, 2.5 and 3 too. Their vocabularies are one.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Tokenizer(Protocol):
    """Text to ids and back."""

    def ids(self, text: str) -> list[int]:
        """What a server makes of a text whose special tokens are written out."""

    def text(self, ids: Sequence[int]) -> str:
        """What a server shows of generated ids: without special tokens; U+FFFD for bytes that are no character."""

    def chat(self, messages: Sequence[Mapping[str, str]], answer: bool) -> str:
        """The chat template's rendering; `answer`: up to where the next answer begins."""


class HuggingFace:
    """A directory of Hugging Face's."""

    def __init__(self, path: Path):
        from transformers import AutoTokenizer

        self._made: Any = AutoTokenizer.from_pretrained(path)

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self._made.encode(text, add_special_tokens=False)
        return ids

    def text(self, ids: Sequence[int]) -> str:
        text: str = self._made.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def chat(self, messages: Sequence[Mapping[str, str]], answer: bool) -> str:
        text: str = self._made.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        return text


class Qwen:
    """A file of ranks, with Qwen's pattern of words and no special tokens."""

    def __init__(self, path: Path):
        import tiktoken
        from tiktoken.load import load_tiktoken_bpe

        ranks = load_tiktoken_bpe(str(path))
        self._made = tiktoken.Encoding(path.stem, pat_str=QWEN_WORDS, mergeable_ranks=ranks, special_tokens={})

    def ids(self, text: str) -> list[int]:
        return self._made.encode(text)

    def text(self, ids: Sequence[int]) -> str:
        return self._made.decode(list(ids))

    def chat(self, messages: Sequence[Mapping[str, str]], answer: bool) -> str:
        raise EvalError("a tiktoken file has no chat template; give a directory")


def of(path: Path) -> Tokenizer:
    """Raises EvalError if there is nothing."""
    if not path.exists():
        raise EvalError(f"--tokenizer {path} is not there; name a directory or a .tiktoken file")
    return Qwen(path) if path.suffix == ".tiktoken" else HuggingFace(path)
