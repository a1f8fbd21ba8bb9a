"""A retracted request's recurrent state: saved with its KV, or not at all, and back before the next token."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace

import pytest
import torch

from sglang_rpc.contract.layers import recurrent_states
from sglang_rpc.hooks import backups, result_in_flight, resume
from sglang_rpc.memory.host_backup import HostBackup
from tests.fakes import memory
from tests.fakes.requests import Req
from tests.fakes.runtime import Runtime
from tests.fakes.scheduler import Scheduler
from tests.unit.host_backup.pool import AMPLE, CHUNK, ENTRY, bytes_of, held, pool, scattered
from tests.unit.recurrence.test_states import HybridLinearKVPool, UnifiedHybridLinearKVPool, pool_of, request

SLOTS = 6
PROMPT, GENERATED, EVICTED = 10, 7, 5  # as `request` makes them
ENTRIES = PROMPT + GENERATED - 1 - EVICTED


def states(seed: int = 0) -> list[torch.Tensor]:
    """Of three recurrent layers: a convolution's in half precision, with strides as on a CPU with AMX, and a matrix."""
    generator = torch.Generator().manual_seed(seed)
    conv = torch.randn(3, SLOTS, 4, 5, generator=generator).to(torch.bfloat16).transpose(2, 3)
    return [conv, torch.randn(3, SLOTS, 2, 8, 8, generator=generator)]


def test_a_state_comes_back_byte_by_byte_in_another_slot():
    layers, buffers = pool(), states()
    made = HostBackup(layers, AMPLE, states=buffers, chunk_bytes=CHUNK)
    assert made.has_states
    backup = made.save(scattered(20, seed=1), 12, "key", None, torch.tensor([4]))
    assert made.used == held(12 * made.entry_bytes, 8 * made.entry_bytes, sum(b[:, 0].nbytes for b in buffers))
    was, kv = [buffer.clone() for buffer in buffers], bytes_of(layers)
    for buffer, other in zip(buffers, states(seed=1), strict=True):
        buffer.copy_(other)
    others = [buffer.clone() for buffer in buffers]
    made.load_state(backup, torch.tensor([2]))
    for buffer, before, other in zip(buffers, was, others, strict=True):
        assert torch.equal(buffer[:, 2], before[:, 4])
        untouched = [slot for slot in range(SLOTS) if slot != 2]
        assert torch.equal(buffer[:, untouched], other[:, untouched])
    assert all(torch.equal(now, before) for now, before in zip(bytes_of(layers), kv, strict=True))
    made.drop(backup)
    assert made.used == 0


def test_a_state_without_room_is_not_saved():
    needed = held(ENTRY, ENTRY, sum(buffer[:, 0].nbytes for buffer in states()))
    for limit in (needed, needed - CHUNK):
        made = HostBackup(pool(), limit, states=states(), chunk_bytes=CHUNK)
        saved = made.save(scattered(2, seed=1), 1, "key", None, torch.tensor([4]))
        assert (saved is None) == (limit < needed)
        assert made.used in (0, needed)


def test_the_states_are_those_of_the_models_own_pool():
    conv, temporal = states()
    rows = memory.HybridReqToTokenPool(mamba_pool=memory.StatePool(memory.StateBuffers([conv], temporal)))
    hybrid = memory.Allocator(kvcache=HybridLinearKVPool(pool_of(1), {0: 0}))
    found = recurrent_states(hybrid, rows)
    assert [buffer.data_ptr() for buffer in found] == [conv.data_ptr(), temporal.data_ptr()]
    rows.mamba_pool.mamba_cache.temporal = torch.zeros(0)  # short convolutions
    assert len(recurrent_states(hybrid, rows)) == 1
    unknown = memory.Allocator(kvcache=UnifiedHybridLinearKVPool(pool_of(1), {0: 0}))
    assert recurrent_states(unknown, rows) == ()
    assert recurrent_states(memory.Allocator(kvcache=pool_of(1)), memory.ReqToTokenPool()) == ()


class Alone(Runtime):
    """No forward runs beside it."""

    def fence(self) -> None:
        pass


def retracted(ahead: int, buffers: list[torch.Tensor]) -> tuple[Runtime, Req]:
    """A compressed request whose state is of `ahead` tokens more than its outputs say, but for the newest."""
    table = torch.arange(64, dtype=torch.int32).view(2, 32)
    scheduler = Scheduler(req_to_token_pool=memory.ReqToTokenPool(req_to_token=table))
    runtime = Alone(scheduler, backups=HostBackup(pool(), 10**8, states=buffers))
    req = request(PROMPT, EVICTED)
    req.kv.req_pool_idx, req.kv.kv_committed_len = 1, ENTRIES + ahead
    req.kv.mamba_pool_idx = torch.tensor(3)
    return runtime, req


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("recurrent", [True, False])
def test_a_backup_has_a_state_of_its_own_length_or_is_not_made(recurrent, ahead):
    runtime, req = retracted(ahead, states() if recurrent else [])
    backup = backups.save(runtime, req, req.rpc)
    assert (backup is None) == (recurrent and ahead == 1)
    if backup is not None:
        assert backup.tokens == ENTRIES
        assert (len(backup.state.chunks) > 0) == recurrent


def test_what_is_loaded_is_the_requests_own_not_the_prompts():
    buffers = states()
    runtime, req = retracted(0, buffers)
    backup = backups.save(runtime, req, req.rpc)
    own = [buffer[:, 3].clone() for buffer in buffers]
    req.kv.mamba_pool_idx, req.kv.mamba_cow_src_index, req.kv.mamba_needs_clear = (
        torch.tensor(5),
        torch.tensor([1]),
        True,
    )
    resume._load_state(runtime, req, backup)
    assert (req.kv.mamba_cow_src_index, req.kv.mamba_needs_clear) == (None, False)
    assert all(torch.equal(buffer[:, 5], before) for buffer, before in zip(buffers, own, strict=True))


@pytest.mark.parametrize("queue", [["a result"], []])
@pytest.mark.parametrize(
    ("recurrent", "limit", "known", "enabled", "waits"),
    [
        (True, 10**8, True, True, True),
        (True, 0, True, True, False),  # no backups
        (True, 10**8, True, False, False),  # never compressed: computed again
        (True, 10**8, False, False, False),
        (False, 10**8, True, True, False),
    ],
)
def test_a_retraction_waits_for_the_state_that_can_be_saved(recurrent, limit, known, enabled, waits, queue):
    runtime = Runtime(
        Scheduler(result_queue=deque(queue)),
        step=5,
        backups=HostBackup(pool(), limit, states=states() if recurrent else []),
    )
    req = request(evicted=0, enabled=enabled) if known else Req()
    assert result_in_flight.would_be_lost(runtime, [req]) == (waits and bool(queue))


def test_an_admission_that_fails_gives_the_state_slots_back():
    runtime, req = retracted(0, states())
    freed: list[str] = []
    rows = SimpleNamespace(
        free_mamba_cache=lambda req: freed.append(f"states of row {req.kv.req_pool_idx}"),
        free=lambda req: freed.append("row"),
    )
    runtime.scheduler = SimpleNamespace(tree_cache=SimpleNamespace(free_kv_row=lambda *_: None), req_to_token_pool=rows)
    resume.undo_restore(runtime, req, req.rpc, matched=4)
    assert freed == ["states of row 1", "row"]  # the tracked ones are found through the row
    assert req.prefix_len == 4
