"""In the server: the text's own tokens are generated, and what the model would have said is written down first.

SGLang applies custom logit processors to the logits before it samples, and takes the log probabilities that it returns
from what they leave. So the processor is the last that sees what the model predicts: it measures, then forces. It runs
between a step's forward pass and its compression: a prediction is of the KV entries that were held before.

It keeps nothing between steps. Which token is next is asked of the request, so that a request that was retracted, or
whose prompt came in chunks, writes the same place again. SGLang must not overlap steps, or the newest token would not
be known yet.

A file of tokens has a row of float64 for each of a text's tokens after its prompt: KL, agree, loss, held. `held` counts
the KV entries after the prompt that the prediction could see. A file of logits has the full KV cache's of each of these
tokens, float32.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.fidelity.measures import measure

COLUMNS = ("kl", "agree", "loss", "held")
_ROW = 8 * len(COLUMNS)  # bytes


class Forced:
    """A custom logit processor of SGLang. Its requests have `custom_params` of `params`."""

    def __call__(self, logits: torch.Tensor, custom_param_list: list[dict[str, Any]] | None = None) -> torch.Tensor:
        for row, params in enumerate(custom_param_list or []):
            _step(logits[row], params)
        return logits


def processor() -> str:
    """What a request's `custom_logit_processor` must be; the server imports this module."""
    return json.dumps({"callable": pickle.dumps(Forced).hex()})


def params(tokens: list[int], measured: Path, logits: Path, record: bool) -> dict[str, Any]:
    """`custom_params` of a request that generates `tokens`.

    Args:
        tokens: ids after the prompt.
        measured: file of tokens; `begin` has made it.
        logits: file of logits: written if `record`, else read.
    """
    return {
        "forced": tokens,
        "files": {"measured": str(measured.resolve()), "logits": str(logits.resolve()), "record": record},
    }


def begin(measured: Path, tokens: int) -> None:
    """Make a file of tokens in which nothing is measured yet."""
    measured.parent.mkdir(parents=True, exist_ok=True)
    np.full((tokens, len(COLUMNS)), np.nan).tofile(measured)


def read(measured: Path) -> np.ndarray:
    """[tokens, columns] of a file of tokens; nan where nothing was measured."""
    return np.fromfile(measured).reshape(-1, len(COLUMNS))


def _step(logits: torch.Tensor, params: dict[str, Any]) -> None:
    """Measure one request's next token, and leave it no other; `logits` [vocabulary] is changed in place."""
    request, files = params["__req__"], params["files"]
    index = len(request.output_ids)
    token = params["forced"][index]
    place = index * logits.numel() * 4
    if files["record"]:
        full = logits
        _write(files["logits"], place, logits.float().cpu().numpy().tobytes())
    else:
        full = _read(files["logits"], place, logits)
    found = measure(logits, full, token)
    held = request.kv.kv_committed_len - len(request.origin_input_ids)
    row = np.array([found.kl, found.agree, found.loss, held])
    _write(files["measured"], index * _ROW, row.tobytes())
    logits.fill_(-torch.inf)
    logits[token] = 0.0


def _read(path: str, place: int, like: torch.Tensor) -> torch.Tensor:
    found = np.fromfile(path, np.float32, like.numel(), offset=place)
    return torch.from_numpy(found).to(like.device)


def _write(path: str, place: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(content)
