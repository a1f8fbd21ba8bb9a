"""Token ids as the pieces of text they add, fit to be shown.

A piece is what a token adds to the text before it. A token that ends within a character (byte-level vocabularies split
rare ones) adds nothing; the one that completes the character adds it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: What a decoder writes for bytes that are no whole character.
INCOMPLETE = "\ufffd"
#: Tokens that one character may be spread over; more have lost its beginning.
LONGEST = 8


def load_tokenizer(path: str) -> Any | None:
    """The tokenizer of a local folder, or of a name that has been downloaded before; None if there is none.

    Nothing is downloaded, and no code of the model's is run.
    """
    from transformers import AutoTokenizer

    if Path(path).is_absolute() and not Path(path).is_dir():
        return None
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception:  # whatever a broken or foreign folder raises, there is no tokenizer in it
        return None


def pieces(ids: Sequence[int], tokenizer: Any | None) -> list[str]:
    """One text an id; empty where a character is not complete. Without a tokenizer, and for ids it has not, the id."""
    if tokenizer is None:
        return [f"{i} " for i in ids]
    known = len(tokenizer)
    found: list[str] = []
    begin = read = 0  # tokens from `begin` on give a piece its context; those up to `read` have been shown
    for index, token in enumerate(ids):
        if not 0 <= token < known:  # an image's placeholder, say
            found.append(f"\u27e8{token}\u27e9")
            begin = read = index + 1
            continue
        before, now = _decode(tokenizer, ids[begin:read]), _decode(tokenizer, ids[begin : index + 1])
        if now.endswith(INCOMPLETE) and index - read < LONGEST and index + 1 < len(ids):
            found.append("")
            continue
        found.append(now[len(before) :])
        begin, read = read, index + 1
    return found


def visible(piece: str) -> str:
    """`piece` with what cannot be seen, or would reorder the text around it, spelled out; line ends stay."""
    return "".join(map(_visible, piece))


def _visible(character: str) -> str:
    if character == "\n":
        return "\u21b5\n"
    if character == "\t":
        return "\u21e5\t"
    # Controls, formats such as the bidirectional overrides, surrogates; but joiners make emoji and scripts.
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in "\u200c\u200d":
        return f"\u27e8U+{ord(character):04X}\u27e9"
    return character


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
