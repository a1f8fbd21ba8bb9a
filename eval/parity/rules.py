"""What is kept, written once more from the formulas: scores of the candidates, one function per policy.

    rpc    a_ij = softmax_j( q_i . k_j * scale )     over the candidates j
           s_j  = pool( mean over heads of the sum over queries i of a_ij )
    peak   a_ij = softmax_j( q_i . k_j * scale )     over all entries that query i sees: prompt, candidates, newest
           s_j  = sum over KV heads of |v_j| * the sum over its query heads of the maximum over queries i of a_ij

`rpc` is the paper's and the authors' code's (arXiv 2505.13866, section 3.2). No code of the package's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Method:
    """P, R, c, F and the variant, by the names of the server's configuration."""

    interval: int
    window: int
    ratio: float
    kernel_size: int = 7
    pooling: str = "avg"
    aggregation: str = "all"
    selector: str = "official"
    policy: str = "rpc"
    min_kept: int = 0

    def kept(self, compressions: int) -> int:
        """Candidates that stay after so many compressions, if there are that many."""
        return max(self.min_kept, compressions * int(self.interval / self.ratio))


@dataclass(frozen=True)
class Layer:
    """What one attention layer holds, of requests whose rows are equally long; float32.

    Rows are [0, begin) prompt and whatever is not scored, [begin, end - R) candidates, [end - R, end) newest.
    """

    queries: torch.Tensor  #: [requests, R, heads, dim], of the newest entries in their order
    keys: torch.Tensor  #: [requests, kv_heads, entries, dim]
    values: torch.Tensor  #: as the keys
    begin: int  #: of the candidates
    scaling: float

    @property
    def candidates(self) -> slice:
        return slice(self.begin, self.keys.shape[2] - self.queries.shape[1])

    def logits(self, queries: torch.Tensor, entries: slice) -> torch.Tensor:
        """[requests, kv_heads, query heads of each, queries, entries]."""
        grouped = queries.unflatten(2, (self.keys.shape[1], -1))
        return torch.einsum("brkgd,bknd->bkgrn", grouped, self.keys[:, :, entries]) * self.scaling


def rpc(layer: Layer, method: Method) -> torch.Tensor:
    """[requests, kv_heads or 1, candidates]."""
    queries = layer.queries
    if method.selector == "official":  # the newest R-1, the newest of them twice
        queries = torch.cat([queries[:, 1:], queries[:, -1:]], 1)
    weights = layer.logits(queries, layer.candidates).softmax(-1).sum(3)
    scores = weights.mean(2) if method.aggregation == "group" else weights.mean((1, 2))[:, None]
    pool = functional.avg_pool1d if method.pooling == "avg" else functional.max_pool1d
    return pool(scores, method.kernel_size, 1, method.kernel_size // 2)


def peak(layer: Layer, method: Method) -> torch.Tensor:
    """[requests, kv_heads or 1, candidates]."""
    logits = layer.logits(layer.queries, slice(None))
    window = layer.queries.shape[1]
    later = torch.ones(window, window, dtype=torch.bool, device=logits.device).triu(1)  # [query, newest entry]
    logits[..., -window:].masked_fill_(later, -torch.inf)
    hardest = logits.softmax(-1)[..., layer.candidates].amax(3)
    scores = hardest.sum(2) * layer.values[:, :, layer.candidates].norm(dim=-1)
    return scores if method.aggregation == "group" else scores.sum(1, keepdim=True)


RULES: dict[str, Callable[[Layer, Method], torch.Tensor]] = {"rpc": rpc, "peak": peak}
