"""Plain text files as token ids of the model: a prompt, and the tokens that are forced after it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from eval.accuracy.errors import EvalError


@dataclass(frozen=True)
class Text:
    name: str
    prompt: list[int]
    tokens: list[int]  #: the text's, after the prompt
    sha256: str  #: of the whole file


@dataclass(frozen=True)
class Model:
    """What must be known of a model before a server has it."""

    tokenizer: Any
    vocabulary: int  #: logits of one prediction
    positions: int | None  #: that it can count; None where its configuration does not say


def model(path: str, trust: bool = False) -> Model:
    """Of a folder or a hub's name; `trust`: run the code that comes with it. Raises EvalError."""
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust).get_text_config()
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise EvalError(
            f"--model-path {path} holds no model and tokenizer that transformers loads: {reason}"
        ) from error
    return Model(tokenizer, config.vocab_size, getattr(config, "max_position_embeddings", None))


def read(path: Path, model: Model, prompt: int, tokens: int) -> Text:
    """The first `prompt` tokens of a file, those that the tokenizer puts first included, and the next `tokens`.

    Raises EvalError if the file holds no text, or too little, or the tokenizer is another model's.
    """
    try:
        content = path.read_bytes()
        ids = model.tokenizer(content.decode("utf-8"), verbose=False).input_ids
    except (OSError, ValueError) as error:
        raise EvalError(f"{path} is no text in UTF-8: {error}; give plain text files") from error
    if len(ids) < prompt + tokens:
        raise EvalError(
            f"{path} is too short: it has {len(ids)} tokens, and --prompt-tokens {prompt} and --tokens {tokens} take "
            f"{prompt + tokens}; give a longer text, or --tokens {max(0, len(ids) - prompt)} at most"
        )
    ids = ids[: prompt + tokens]
    if max(ids) >= model.vocabulary:
        raise EvalError(
            f"the tokenizer makes token {max(ids)} of {path}, and the model has {model.vocabulary} only: "
            "the tokenizer in --model-path must be the model's own"
        )
    return Text(path.stem, ids[:prompt], ids[prompt:], hashlib.sha256(content).hexdigest())


def read_all(paths: Sequence[Path], model: Model, prompt: int, tokens: int) -> list[Text]:
    """Raises EvalError like `read`, and for two texts of one name or more positions than the model has."""
    names = [path.stem for path in paths]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise EvalError(f"two of --texts are named {twice}; a text's name is its file's, so rename one")
    if model.positions is not None and prompt + tokens > model.positions:
        raise EvalError(
            f"--prompt-tokens {prompt} and --tokens {tokens} make {prompt + tokens} positions, and the model has "
            f"{model.positions}; give --tokens {model.positions - prompt} at most"
        )
    return [read(path, model, prompt, tokens) for path in paths]
