"""A forward in flight reads rows and writes entries: whatever a retraction or a return reads or writes comes after."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.hooks import backups, resume
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.runtime.recording import Recorder
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.runtime.totals import Counters
from sglang_rpc.types import KVLayer
from tests.fakes import memory
from tests.fakes.requests import Req, ids
from tests.fakes.runtime import Runtime
from tests.fakes.scheduler import Scheduler
from tests.unit.host_backup.pool import CHUNK, POOL, backups_of, buffers, pool

ROW, PROMPT = 1, 6


class Stream(TorchDispatchMode):
    """Records, in the order of issue, what reads and writes `memory` on the scheduler's stream, and the fences there.

    Stands in for a stream: the device does things in the order in which the host issues them.
    """

    def __init__(self, memory: dict[str, list[torch.Tensor]]):
        super().__init__()
        self.names = {t.untyped_storage().data_ptr(): name for name, ts in memory.items() for t in ts}
        self.events: list[str] = []

    def fence(self) -> None:
        self.events.append("fence")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        for argument, value in zip(func._schema.arguments, args, strict=False):
            for tensor in value if isinstance(value, list | tuple) else [value]:
                name = isinstance(tensor, torch.Tensor) and self.names.get(tensor.untyped_storage().data_ptr())
                if not name or views:  # a view touches no bytes
                    continue
                written = argument.alias_info is not None and argument.alias_info.is_write
                self.events.append(f"{'write' if written else 'read'} {name}")
        return func(*args, **(kwargs or {}))

    def touched(self) -> set[str]:
        return set(self.events) - {"fence"}


class Allocator(memory.Allocator):
    def alloc(self, need_size: int) -> torch.Tensor | None:
        return torch.arange(40, 40 + need_size)

    def evict_to_free_tokens(self, tree_cache: memory.Tree, num_tokens: int) -> bool | None:
        return None


class Rows(memory.ReqToTokenPool):
    def alloc(self, reqs: list[Req]) -> list[int] | None:
        reqs[0].kv.req_pool_idx = ROW
        return [ROW]


@dataclass(eq=False)
class Fenced(Runtime):
    """A runtime whose fence is `stream`'s."""

    stream: Any = None

    def fence(self) -> None:
        self.stream.fence()


def a_runtime(layers: list[KVLayer], limit: int = 10**5) -> Fenced:
    rows = Rows(torch.arange(4 * 40, dtype=torch.int32).view(4, 40) % POOL)
    scheduler = Scheduler(req_to_token_pool=rows, token_to_kv_pool_allocator=Allocator())
    ring = QueryRing(layers=2, slots=2, rows=4, window=4, heads=2, head_dim=3, dtype=torch.float32, device="cpu")
    runtime = Fenced(scheduler, ring=ring, backups=backups_of(layers, limit))
    runtime.compressor = SimpleNamespace(recorder=Recorder(ring), counters=Counters(), layers=layers)
    runtime.stream = Stream(
        {
            "rows": [rows.req_to_token],
            "entries": buffers(layers),
            "queries": [ring.buffer],
            "query slots": [ring.slot_of_row],
        }
    )
    return runtime


def a_request(generated: int = 20) -> Req:
    options = RequestOptions.from_custom_params(None, RPCConfig(scope="all"), knows_markers=False)
    req = Req(ids(range(PROMPT)), ids(range(generated)), RequestState(options))
    req.kv.req_pool_idx, req.kv.kv_committed_len = 2, PROMPT + generated
    return req


def recorded(runtime: Fenced, req: Req) -> None:
    runtime.compressor.recorder.record(req.rpc.recording, req.kv.req_pool_idx, 15)
    runtime.ring.buffer.normal_()


def test_what_leaves_is_read_after_the_forward_in_flight():
    runtime, req = a_runtime(pool()), a_request()
    recorded(runtime, req)
    with runtime.stream:
        backup = backups.save(runtime, req, req.rpc)
    assert backup.tokens == PROMPT + 19
    assert backup.queries is not None
    assert runtime.stream.events[0] == "fence"
    assert runtime.stream.touched() == {"read rows", "read entries", "read queries"}


@pytest.mark.parametrize("recording", [True, False])
def test_what_comes_back_is_written_after_the_forward_in_flight(recording):
    """Its row, its slots and its query slot may all have belonged to requests that ended under that forward."""
    layers = pool()
    runtime, req = a_runtime(layers), a_request()
    if recording:
        recorded(runtime, req)
    queries = runtime.ring.buffer[:, req.rpc.recording.slot or 0].clone()
    slots = runtime.scheduler.req_to_token_pool.req_to_token[2, : PROMPT + 19].long()
    was = [buffer[slots].clone() for buffer in buffers(layers)]
    saved = req.rpc.save(backups.save(runtime, req, req.rpc))
    runtime.compressor.recorder.release(req.rpc.recording)
    for tensor in (*buffers(layers), runtime.ring.buffer):
        tensor.zero_()
    runtime.stream.events.clear()
    with runtime.stream:
        assert resume.restore(runtime, req, req.rpc, saved)
    assert runtime.stream.events[0] == "fence"
    written = {"write rows", "write entries"} | ({"write queries", "write query slots"} if recording else set())
    assert runtime.stream.touched() == written
    row = runtime.scheduler.req_to_token_pool.req_to_token[ROW, : PROMPT + 19].long()
    assert row.tolist() == list(range(40, 40 + PROMPT + 19))
    for buffer, old in zip(buffers(layers), was, strict=True):
        assert torch.equal(buffer[row].view(torch.uint8), old.view(torch.uint8))
    if recording:
        assert torch.equal(runtime.ring.buffer[:, req.rpc.recording.slot], queries)


def test_a_full_arena_refuses_and_says_how_full_it_is(caplog):
    runtime, req = a_runtime(pool(), limit=9 * CHUNK), a_request()
    assert backups.save(runtime, req, req.rpc) is None
    assert runtime.compressor.counters.backups_refused == 1
    assert (runtime.backups.used, runtime.backups.limit) == (0, 9 * CHUNK)
    assert "no room for its KV among the host backups" in caplog.text


def test_what_finds_no_query_slot_free_has_the_next_one_kept_for_it():
    runtime, req = a_runtime(pool()), a_request()
    recorded(runtime, req)
    saved = req.rpc.save(backups.save(runtime, req, req.rpc))
    recorder = runtime.compressor.recorder
    recorder.release(req.rpc.recording)
    others = [a_request(), a_request()]
    for row, other in enumerate(others):
        assert recorder.record(other.rpc.recording, row, 5)
    assert not resume.restore(runtime, req, req.rpc, saved)
    recorder.release(others[0].rpc.recording)
    assert not recorder.record(a_request().rpc.recording, 0, 5)
    assert resume.restore(runtime, req, req.rpc, saved)
