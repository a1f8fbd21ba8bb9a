"""Compression in Triton: six launches for all layers of all requests that are due."""

from collections.abc import Callable, Iterator, Sequence

import torch

from sglang_rpc.backends.base import SCRATCH_BYTES, Reduce
from sglang_rpc.config import RPCConfig
from sglang_rpc.memory.queries import Queries
from sglang_rpc.memory.triton_compaction import SliceTable, move_kept
from sglang_rpc.policy.base import Policy
from sglang_rpc.scoring.key_table import KeyTable, ValueTable
from sglang_rpc.scoring.reference import PLAIN
from sglang_rpc.scoring.triton_scores import candidate_scores, scratch_bytes
from sglang_rpc.scoring.triton_select import select
from sglang_rpc.types import Compression, CompressionBatch, KVLayer, LayersByKind, Observer


class TritonBackend:
    """The backend of kernels, with FlashInfer's log-sum-exp if that is asked for."""

    def __init__(
        self,
        config: RPCConfig,
        policy: Policy | None,
        layers: Sequence[KVLayer],
        ring: Queries,
        req_to_token: torch.Tensor,
        reduce: Reduce | None,
    ):
        """Arguments: see ReferenceBackend. Raises ValueError if no kernel takes these layers."""
        self._config = config
        self._policy = policy
        scored = LayersByKind.of(layers).full
        #: None under lightthinker, which scores nothing.
        self._keys = None if policy is None else KeyTable(scored)
        self._rule = PLAIN if policy is None or policy.rule is None else policy.rule
        self._values = ValueTable.of(scored) if self._rule.value_power else None
        self._slices = SliceTable(layers)
        self._layer_count = len(scored)
        self._ring = ring
        self._req_to_token = req_to_token
        self._reduce = reduce
        self._group = config.aggregation == "group"
        self._lse: Callable[..., torch.Tensor] | None = None  # of FlashInfer
        self.observer: Observer | None = None
        self.name = "triton"
        if config.scoring == "flashinfer":
            from sglang_rpc.scoring.flashinfer_lse import FlashInferLSE

            self._lse = FlashInferLSE(scored, ring.buffer)
            self.name = "flashinfer"
        self._warm_up()

    def _warm_up(self) -> None:
        """Compile the kernels now: the first compression would stop the server for seconds.

        Row 0 is no request's yet, so its slots are the pool's padding; query slot 0 is the dummy slot.
        """
        c = Compression(row=0, generated=3, window=1, begin=0, end=3, keep=1)
        reduce, self._reduce = self._reduce, None
        self._compress([c])
        self._reduce = reduce

    def compress(self, compressions: Sequence[Compression]) -> None:
        """Score, select and move, on the current stream, without waiting for the device."""
        for part in self._parts(compressions):
            self._compress(part)

    def _compress(self, compressions: Sequence[Compression]) -> None:
        batch = CompressionBatch.of(compressions, self._req_to_token.device)
        kept = self._kept(compressions, batch)
        if self.observer is not None:
            self.observer(compressions, kept)
        move_kept(self._slices, self._req_to_token, batch, kept)

    def _kept(self, compressions: Sequence[Compression], batch: CompressionBatch) -> torch.Tensor:
        """The candidates that stay where they are scored, ascending: int32 [layers, B, 1 or kv_heads, most_kept]."""
        policy = self._policy
        if policy is None or self._keys is None:  # nothing of a thought is kept, and a kernel's array is never empty
            return torch.zeros(self._layer_count, batch.size, 1, 1, dtype=torch.int32, device=batch.rows.device)
        selector, lse = policy.selector_in(self._config), None
        if self._lse is not None:
            lse = self._lse(compressions, self._req_to_token, selector=selector, visible=self._rule.visible)
        scores = candidate_scores(
            self._keys,
            self._ring.buffer,
            self._req_to_token,
            batch,
            selector=selector,
            group=self._group,
            rule=self._rule,
            values=self._values,
            lse=lse,
        )
        if self._reduce is not None:
            # One collective; every rank then selects from equal scores.
            scores = self._reduce(scores.flatten()).view_as(scores)
        return select(scores, batch, *policy.pooling_in(self._config))

    def _parts(self, compressions: Sequence[Compression]) -> Iterator[list[Compression]]:
        """Split into requests of like lengths, as many as the scratch memory holds: arrays are as wide as the longest.

        The order depends on host numbers that are equal on all ranks, so their collectives pair up.
        """
        part: list[Compression] = []
        for c in sorted(compressions, key=lambda c: -c.candidates):
            widest, longest = (part or [c])[0].candidates, max(each.end for each in (*part, c))
            if part and (len(part) + 1) * self._bytes(widest, longest) > SCRATCH_BYTES:
                yield part
                part = []
            part.append(c)
        yield part

    def _bytes(self, candidates: int, end: int) -> int:
        """Of a request of so many candidates in a row of length `end`.

        Scores and log-sum-exps; pooled scores; kept indices, at most as many; the sums over ranks.
        """
        if self._keys is None:
            return 0
        pooled = 4 * self._keys.count * candidates * (self._keys.kv_heads if self._group else 1)
        others = (2 if self._reduce is None else 3) * pooled
        columns = end if self._rule.visible else candidates
        return scratch_bytes(self._keys, self._ring.buffer, candidates, columns, self._group) + others
