"""A plain transformers decode loop with compression: what the server's answers are compared with.

No code of the package's: the same model through another library, and the method written once more (rules.py). After
the n-th compression each layer keeps the max(F, n * int(P / c)) best candidates, and the newest R.

Requests whose prompts are equally long are decoded together. Their rows stay equally long as long as they are
compressed in the same steps; where they are not, the batch splits. So nothing is ever padded or masked.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, DynamicCache

from eval.parity.rules import RULES, Layer, Method

RECORDING = "recording_attention"


@dataclass(frozen=True)
class Thoughts:
    """Token ids of the think markers, and whether the prompt leaves a segment open. None: everything is compressed."""

    start: int | None
    end: int
    open: bool


@dataclass(frozen=True)
class Generated:
    ids: list[int]
    gaps: list[float]  #: of each token, how far the second-best logit lay below the best
    compressions: int
    held: int  #: generated KV entries at the end


@dataclass
class Request:
    """One request while it is decoded."""

    number: int  #: its place among the prompts
    first: int | None  #: where the compressible region begins, in generated tokens; None: not yet
    ids: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    closed: bool = False  #: its thoughts have ended
    compressions: int = 0

    def watch(self, thoughts: Thoughts) -> None:
        """Note whether the newest token opens or closes the thoughts; call it once per token."""
        if self.first is None and self.ids[-1] == thoughts.start:
            self.first = len(self.ids)
        self.closed |= self.ids[-1] == thoughts.end

    def due(self, method: Method) -> tuple[int, int] | None:
        """(where its region begins, n) if its n-th compression is due now."""
        if self.first is None or self.closed:
            return None
        due, rest = divmod(len(self.ids) - self.first - method.window, method.interval)
        return (self.first, due) if due >= 1 and rest == 0 else None


@dataclass
class Batch:
    """Requests with equally many tokens in equally long rows of the cache."""

    requests: list[Request]
    cache: DynamicCache
    logits: torch.Tensor  #: [requests, vocabulary], of the next token
    newest: deque[list[torch.Tensor]]  #: queries of the last R tokens, of each layer [requests, heads, dim]

    def part(self, rows: Sequence[int]) -> Batch:
        """Those requests of it; itself if these are all."""
        if len(rows) == len(self.requests):
            return self
        at = torch.tensor(rows, device=self.logits.device)
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        cache.batch_select_indices(at)
        newest = deque(([queries[at] for queries in step] for step in self.newest), self.newest.maxlen)
        return Batch([self.requests[row] for row in rows], cache, self.logits[at], newest)

    def parts(self, key: Callable[[Request], object]) -> Iterator[tuple[Any, Batch]]:
        """Those of one key together."""
        rows: dict[object, list[int]] = {}
        for row, request in enumerate(self.requests):
            rows.setdefault(key(request), []).append(row)
        for value, mine in rows.items():
            yield value, self.part(mine)


def attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float, dropout: float = 0.0, **_: Any
) -> tuple[torch.Tensor, None]:
    """transformers' attention function; what it is given last stays with the module, for the score."""
    module.newest = (query[:, :, -1], scaling)  # [requests, heads, dim]
    groups = query.shape[1] // key.shape[1]
    out = functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(groups, 1),
        value.repeat_interleave(groups, 1),
        is_causal=query.shape[2] > 1,
        scale=scaling,
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(RECORDING, attend)


@torch.inference_mode()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    most: int,
    stop: set[int],
    method: Method | None,
    thoughts: Thoughts | None,
) -> list[Generated]:
    """Greedy decoding of at most `most` tokens after each of `prompts`, which are equally long.

    The model must have been loaded with RECORDING attention.
    """
    length = len(prompts[0])
    first = 0 if thoughts is None or thoughts.open else None
    cache = DynamicCache(config=model.config)
    logits = _forward(model, prompts, range(length), cache)
    requests = [Request(number, first) for number in range(len(prompts))]
    batches = [Batch(requests, cache, logits, deque(maxlen=method.window if method else 1))]
    done: dict[int, Generated] = {}
    while batches:
        batch = batches.pop()
        _choose(batch)
        for ended, part in batch.parts(lambda request: request.ids[-1] in stop or len(request.ids) == most):
            if ended:
                held = part.cache.layers[0].keys.shape[2] - length
                done |= {r.number: Generated(r.ids, r.gaps, r.compressions, held) for r in part.requests}
            else:
                batches += _step(model, part, length, method, thoughts)
    return [done[number] for number in range(len(prompts))]


def _choose(batch: Batch) -> None:
    tokens, best = batch.logits.argmax(-1).tolist(), batch.logits.float().topk(2).values.tolist()
    for request, token, (first, second) in zip(batch.requests, tokens, best, strict=True):
        request.ids.append(token)
        request.gaps.append(first - second)


def _step(model: Any, batch: Batch, length: int, method: Method | None, thoughts: Thoughts | None) -> Iterator[Batch]:
    """Computes the newest tokens, and compresses whose date it is."""
    position = length + len(batch.requests[0].ids) - 1
    tokens = [[request.ids[-1]] for request in batch.requests]
    batch.logits = _forward(model, tokens, [position], batch.cache)
    if method is None:
        yield batch
        return
    attentions = [layer.self_attn for layer in model.model.layers]
    batch.newest.append([attention.newest[0] for attention in attentions])
    if thoughts is not None:
        for request in batch.requests:
            request.watch(thoughts)
    for due, part in batch.parts(lambda request: request.due(method)):
        if due:
            _compress(part, length, *due, method, [attention.newest[1] for attention in attentions])
        yield part


def _forward(model: Any, tokens: Sequence[Sequence[int]], positions: Sequence[int], cache: DynamicCache) -> Any:
    """Logits after the last of `tokens`: [requests, vocabulary]."""
    where = torch.tensor([list(positions)] * len(tokens), device=model.device)
    ids = torch.tensor(tokens, device=model.device)
    made = model(input_ids=ids, position_ids=where, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return made.logits[:, -1]


def _compress(batch: Batch, length: int, first: int, due: int, method: Method, scalings: Sequence[float]) -> None:
    begin = length + first
    for index, scaling in enumerate(scalings):
        held = batch.cache.layers[index]
        queries = torch.stack([step[index] for step in batch.newest], 1)
        layer = Layer(queries.float(), held.keys.float(), held.values.float(), begin, scaling)
        scores = RULES[method.policy](layer, method)
        keep = min(method.kept(due), scores.shape[2])
        chosen = scores.topk(keep).indices.sort(-1).values.expand(-1, held.keys.shape[1], -1)[..., None] + begin
        for name in ("keys", "values"):
            whole = getattr(held, name)
            kept = whole.gather(2, chosen.expand(-1, -1, -1, whole.shape[3]))
            parts = [whole[:, :, :begin], kept, whole[:, :, layer.candidates.stop :]]
            setattr(held, name, torch.cat(parts, 2))
    for request in batch.requests:
        request.compressions = due
