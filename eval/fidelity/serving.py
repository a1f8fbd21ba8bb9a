"""Texts through a server: a request each, all at once, and what must hold of every answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from eval.accuracy.errors import EvalError
from eval.bench import client
from eval.bench.errors import ServerDied
from eval.bench.server import Server
from eval.compare.arms import FULL, Arm
from eval.fidelity import forced
from eval.fidelity.rows import compressions
from eval.fidelity.texts import Text

#: What a server needs for it.
FLAGS = ("--enable-custom-logit-processor", "--disable-overlap-schedule", "--skip-tokenizer-init", "--rpc-scope", "all")


@dataclass(frozen=True)
class Files:
    """Where the measurements of one directory lie."""

    out: Path

    def tokens(self, arm: Arm, text: Text) -> Path:
        return self.out / "tokens" / arm.name / f"{text.name}.f64"

    def logits(self, text: Text) -> Path:
        return self.out / "logits" / f"{text.name}.f32"


def measure(server: Server, arm: Arm, texts: Sequence[Text], files: Files) -> None:
    """Write every text's file of tokens under one arm, and under `full` its logits.

    Raises EvalError if an answer is not what was asked for, ServerDied if none comes.
    """
    for text in texts:
        forced.begin(files.tokens(arm, text), len(text.tokens))
        if arm.policy == FULL:
            files.logits(text).parent.mkdir(parents=True, exist_ok=True)
            files.logits(text).write_bytes(b"")
    try:
        answers = asyncio.run(_ask(server.url, [_request(arm, text, files) for text in texts]))
    except (aiohttp.ClientError, OSError) as error:
        raise ServerDied(
            f"{server.url} ended while it measured {arm.name} ({type(error).__name__}); "
            f"the last lines of {server.log}:\n{server.last_lines()}"
        ) from error
    for text, (status, answer) in zip(texts, answers, strict=True):
        check(arm, text, status, answer)
        _check_file(files.tokens(arm, text))


def check(arm: Arm, text: Text, status: int, answer: Any) -> None:
    """Raises EvalError if the text was not what was generated, or other compressions came than were due."""
    here = f"{arm.name}, {text.name}"
    if status != 200:
        raise EvalError(f"{here}: the server answered {status}: {str(answer)[:300]}")
    made = answer["output_ids"]
    if made != text.tokens:
        same = next((i for i, (a, b) in enumerate(zip(made, text.tokens, strict=False)) if a != b), len(made))
        raise EvalError(
            f"{here}: the server generated {len(made)} tokens, of which {same} are the text's {len(text.tokens)}; "
            f"it ended with {answer['meta_info'].get('finish_reason')}"
        )
    receipt = answer["meta_info"].get("rpc")
    if receipt is None:
        raise EvalError(f"{here}: the answer has no receipt of RPC; the server must run with it")
    due = compressions(arm, len(text.tokens))
    odd = {name: receipt[name] for name in ("early", "late", "retractions") if receipt[name]}
    if receipt["compressions"] != due or odd:
        raise EvalError(
            f"{here}: {due} compressions were due, and the receipt has {receipt['compressions']}"
            + "".join(f", {count} {name}" for name, count in odd.items())
            + (f" ({receipt['reason']})" if receipt.get("reason") else "")
            + "; give the server memory for all texts at once (--server-flags), or fewer texts"
        )


def _check_file(path: Path) -> None:
    rows = forced.read(path)
    missing = int(np.isnan(rows).any(1).sum())
    if missing:
        raise EvalError(f"{path} lacks {missing} of {len(rows)} tokens: the server must run on this machine")


def _request(arm: Arm, text: Text, files: Files) -> dict[str, Any]:
    """The JSON of /generate."""
    measured, logits = files.tokens(arm, text), files.logits(text)
    custom = {"rpc": arm.rpc, **forced.params(text.tokens, measured, logits, arm.policy == FULL)}
    body = client.body(text.prompt, len(text.tokens), 1, 0, 0, custom)
    return {**body, "custom_logit_processor": forced.processor()}


async def _ask(url: str, requests: Sequence[dict[str, Any]]) -> list[tuple[int, Any]]:
    """Status and answer of each."""

    async def one(http: aiohttp.ClientSession, request: dict[str, Any]) -> tuple[int, Any]:
        async with http.post("/generate", json=request) as response:
            answer = await response.json() if response.status == 200 else await response.text()
            return response.status, answer[0] if isinstance(answer, list) else answer

    async with client.session(url) as http:
        return list(await asyncio.gather(*(one(http, request) for request in requests)))
