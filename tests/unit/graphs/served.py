"""Decode steps of a server whose requests come, go, are recorded, and are compressed; and what the ring then holds."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.hooks.model import ModelRPC
from sglang_rpc.hooks.positions import make_logical
from sglang_rpc.hooks.query_slots import QuerySlots
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.runtime.clock import Clock
from sglang_rpc.runtime.request_state import RequestState
from tests.fakes.batches import ScheduleBatch
from tests.fakes.models import ModelRunner
from tests.fakes.requests import Req, ReqKvInfo
from tests.unit.graphs.runner import SIZES, Runner
from tests.unit.graphs.small_model import VOCAB, SmallModel

OPTIONS = RequestOptions.from_custom_params(None, RPCConfig(scope="all"), knows_markers=False)


@dataclass(eq=False)
class Request:
    req: Req
    length: int  #: logical
    slot: int | None = None

    @property
    def row(self) -> int:
        assert self.req.kv.req_pool_idx is not None
        return self.req.kv.req_pool_idx

    @property
    def evicted(self) -> int:
        assert self.req.rpc is not None
        return self.req.rpc.evicted


class Served:
    """Rows come from SGLang's own table of rows, positions through RPC's own hook."""

    def __init__(self, runner: Runner, model: SmallModel, ring: QueryRing, rows: int, logical=make_logical):
        self.runner, self.model, self.ring, self.logical = runner, model, ring, logical
        self.model_runner = ModelRunner(
            rpc=ModelRPC(ring, [], every_step=False, query_slots=QuerySlots(ring.slots, rows, 0))
        )
        self.pool = ReqToTokenPool(rows, 8, "cpu", False)
        self.requests: list[Request] = []
        self.random = random.Random(5)
        self.expected = ring.buffer[:, 1:].clone()
        self.seen: Counter[str] = Counter()  #: steps, or rows of steps, of each kind
        self.owners: Counter[int] = Counter()  #: requests that each row has had

    def begin(self) -> None:
        """A request whose prompt was just prefilled."""
        (row,) = self.pool.alloc_rows(1)
        self.owners[row] += 1
        state = RequestState(OPTIONS, clock=Clock(evicted=0))
        self.requests.append(Request(Req(rpc=state, kv=ReqKvInfo(row)), self.random.randint(1, 90)))

    def end(self, request: Request) -> None:
        self.stop(request)
        self.requests.remove(request)
        self.pool.free(request.req)

    def record(self, request: Request) -> None:
        if request.slot is None:
            request.slot = self.ring.acquire(request.row)

    def stop(self, request: Request) -> None:
        if request.slot is not None:
            self.ring.release(request.slot)
            request.slot = None

    def compress(self, request: Request) -> None:
        """Leave at least one entry."""
        request.req.rpc.clock.evicted += self.random.randint(0, request.length - request.evicted - 1)

    def step(self) -> None:
        """One decode step of every request, and what it must have left in the ring."""
        self.random.shuffle(self.requests)
        tokens = [self.random.randrange(VOCAB) for _ in self.requests]
        for request in self.requests:
            request.length += 1
        in_graphs = len(self.runner.graph_steps)
        logits = self.runner.logits(self._forward_batch(tokens))
        self._count(len(self.runner.graph_steps) > in_graphs)
        for request, token, row in zip(self.requests, tokens, logits, strict=True):
            queries, own = self.model.expected(token, request.length - 1)
            assert torch.equal(row, own)
            if request.slot is not None:
                self.expected[:, request.slot - 1, (request.length - 1) % self.ring.window] = queries
        assert torch.equal(self.ring.buffer[:, 1:], self.expected)

    def play(self, steps: int) -> None:
        """Steps between which anything may happen. Every eighth begins with nobody recorded, and of another number of
        requests, until each number has been there."""
        sizes = self.random.sample(range(1, self.pool.size + 1), self.pool.size)
        for number in range(steps):
            if number % 8 == 0:
                for request in self.requests:
                    self.stop(request)
            many = sizes[number // 8 % len(sizes)]
            for request in list(self.requests):
                self._happens(request)
            for request in self.requests[many:]:
                self.end(request)
            while len(self.requests) < many:
                self.begin()
            self.step()

    def _happens(self, request: Request) -> None:
        for chance, happening in ((0.2, self.record), (0.06, self.stop), (0.06, self.compress), (0.04, self.end)):
            if self.random.random() < chance:
                happening(request)
                return

    def _forward_batch(self, tokens: list[int]) -> Any:
        lengths = torch.tensor([request.length for request in self.requests], dtype=torch.int32)
        physical = lengths.long() - torch.tensor([request.evicted for request in self.requests])

        def init_new(cls: type[ForwardBatch], _batch: object, _model_runner: object) -> Any:
            """SGLang's, of a decode step: positions come from seq_lens."""
            return cls(
                forward_mode=ForwardMode.DECODE,
                batch_size=len(tokens),
                input_ids=torch.tensor(tokens),
                req_pool_indices=torch.tensor([request.row for request in self.requests]),
                seq_lens=physical,
                seq_lens_cpu=physical.clone(),
                seq_lens_sum=int(physical.sum()),
                orig_seq_lens=lengths,
                out_cache_loc=torch.zeros(len(tokens), dtype=torch.int64),
                positions=physical - 1,
                capture_hidden_mode=CaptureHiddenMode.NULL,
                spec_algorithm=SpeculativeAlgorithm.NONE,
            )

        batch = ScheduleBatch([request.req for request in self.requests])
        return self.logical(init_new, ForwardBatch, batch, self.model_runner)

    def _count(self, in_graph: bool) -> None:
        recorded = [request for request in self.requests if request.slot is not None]
        where = "graph" if in_graph else "eager"
        self.seen[f"{where} steps, {'somebody' if recorded else 'nobody'} recorded"] += 1
        self.seen["padded steps, somebody recorded"] += bool(in_graph and recorded and len(self.requests) not in SIZES)
        self.seen[f"{where}: recorded rows"] += len(recorded)
        self.seen[f"{where}: recorded rows, compressed before"] += sum(r.evicted > 0 for r in recorded)
        self.seen["rows without a slot beside recorded ones"] += len(self.requests) - len(recorded) if recorded else 0
        self.seen["recorded rows of a later owner"] += sum(self.owners[r.row] > 1 for r in recorded)
