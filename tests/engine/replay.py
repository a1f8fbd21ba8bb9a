"""A judge of requests that were retracted and prefilled again: it compresses when their traces say that they were."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from tests.engine.oracle import Rule
from tests.engine.windows import Judge


@dataclass(frozen=True)
class Event:
    """What happens to a row once `generated` tokens are known."""

    generated: int
    keep: int | None = None  #: candidates that a compression keeps; None: the row is built anew from its tokens


def events_of(lines: list[dict[str, Any]]) -> list[Event]:
    """The compressions of a trace's lines, and the retractions before them: after these less is missing than before.

    A row that is built anew is compressed once a window is recorded, unless nothing has been due yet. Then nothing was
    missing either.
    """
    events, missing = [], 0
    for line in lines:
        before = line["prompt_length"] + line["generated"] - line["end"]
        if before < missing:
            assert before == 0, line
            events.append(Event(line["generated"] - line["window"]))
        events.append(Event(line["generated"], line["keep"]))
        candidates = line["end"] - line["begin"] - line["window"]
        missing = before + candidates - line["keep"]
    return events


def traced(folder: Path, requests: int) -> dict[tuple[int, ...], list[dict[str, Any]]]:
    """The compressions' lines, by prompt, of so many requests once all have ended."""
    for _ in range(100):
        files = [[json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")]
        if len(files) == requests and all(lines[-1]["kind"] == "end" for lines in files):
            break
        time.sleep(0.1)
    return {tuple(lines[0]["prompt"]): lines[1:-1] for lines in files}


class ReplayJudge(Judge):
    """Judges by events instead of due dates."""

    @torch.inference_mode()
    def replayed(self, prompt: list[int], output: list[int], rule: Rule, events: list[Event]):
        """Log probability of each output token, and the closest cut."""
        tokens, predicted, closest = prompt + output, {}, 1.0
        self.evicted = {layer: torch.zeros(len(tokens), dtype=torch.bool) for layer in self.full}
        self.queries, self.keys, self.scale = {}, {}, {}
        cache, at = DynamicCache(), 0
        for event in [*events, Event(len(output))]:
            until = len(prompt) + event.generated
            if event.keep is None and event.generated < len(output):
                cache, at = self._up_to(until, at, tokens, cache, predicted)
                for hidden in self.evicted.values():
                    hidden[:] = False
                again: dict[int, torch.Tensor] = {}
                cache, at = self._up_to(until, 0, tokens, DynamicCache(), again)
                predicted[until] = again[until]
                continue
            cache, at = self._up_to(until, at, tokens, cache, predicted)
            if event.keep is not None:
                closest = min(closest, self._compress(rule, len(prompt), event.generated, event.keep))
        logits = torch.stack([predicted[len(prompt) + index] for index in range(len(output))])
        return logits.log_softmax(-1).gather(1, torch.tensor(output)[:, None])[:, 0], closest

    def _up_to(
        self, until: int, at: int, tokens: list[int], cache: DynamicCache, predicted: dict[int, torch.Tensor]
    ) -> tuple[DynamicCache, int]:
        """Feed tokens [at, until); what follows each is predicted."""
        if until > at:
            ids = torch.tensor([tokens[at:until]])
            positions = torch.arange(at, until)[None]
            logits = self.model(ids, past_key_values=cache, use_cache=True, position_ids=positions).logits[0]
            predicted.update(zip(range(at + 1, until + 1), logits, strict=True))
        return cache, max(at, until)
