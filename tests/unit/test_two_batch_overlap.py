"""A step that runs as two halves: which steps may, and where the halves' queries go."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.hooks import capture
from sglang_rpc.hooks.step import carrying
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.runtime.request_state import RequestState
from tests.fakes.batches import ForwardMode, ScheduleBatch
from tests.fakes.requests import Req

MODE = 7


def request(slot: int | None) -> Req:
    state = RequestState(RequestOptions.from_custom_params(None, RPCConfig(scope="all")))
    state.recording.slot = slot
    return Req(rpc=state)


def vote(batch: ScheduleBatch | None, sglangs: bool = True) -> tuple[bool, int]:
    return capture.whole_while_recording(lambda preparer, batch: (sglangs, MODE), None, batch)


@pytest.mark.parametrize("slots", [[None, None], [None, 3], []])
def test_an_extend_runs_as_halves_unless_a_row_is_recorded(slots):
    reqs = [request(slot) for slot in slots] + [Req(rpc=None)]
    assert vote(ScheduleBatch(reqs, ForwardMode.EXTEND)) == (3 not in slots, MODE)
    assert vote(ScheduleBatch(reqs, ForwardMode.EXTEND), sglangs=False) == (False, MODE)


def test_decode_steps_and_idle_ranks_vote_as_sglang_does():
    for sglangs in (False, True):
        assert vote(ScheduleBatch([request(3)], ForwardMode.DECODE), sglangs) == (sglangs, MODE)
        assert vote(None, sglangs) == (sglangs, MODE)


def halves_of_a_decode_step(monkeypatch, rows: list[int], positions: list[int], cut: int):
    """A decode step of SGLang's with this many rows in its first half, cut by SGLang."""
    from sglang.srt.batch_overlap import two_batch_overlap
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

    monkeypatch.setattr(
        two_batch_overlap, "get_parallel", lambda: SimpleNamespace(attn_tp_size=1, moe_dense_tp_size=None)
    )
    count = len(rows)
    batch = carrying(ForwardBatch)(
        forward_mode=ForwardMode.DECODE,
        batch_size=count,
        input_ids=torch.arange(count),
        req_pool_indices=torch.tensor(rows),
        seq_lens=torch.tensor(positions) + 1,
        seq_lens_cpu=torch.tensor(positions) + 1,
        out_cache_loc=torch.arange(count),
        seq_lens_sum=sum(positions) + count,
    )
    # After SGLang has made the batch: what a row has lost is counted in.
    batch.positions = torch.tensor(positions)
    children = [
        two_batch_overlap.TboForwardBatchPreparer.filter_batch(
            batch,
            start_token_index=start,
            end_token_index=end,
            start_seq_index=start,
            end_seq_index=end,
            out_num_token_non_padded=torch.tensor(end - start),
        )
        for start, end in ((0, cut), (cut, count))
    ]
    assert not any("rpc" in (field.name for field in dataclasses.fields(child)) for child in children)
    batch.tbo_children = children
    return batch


@pytest.mark.parametrize("whole_layers", [0, 1], ids=["from the first layer on", "after a whole layer"])
@pytest.mark.parametrize("padding", [0, 2])
def test_both_halves_store_their_rows_queries_in_every_layer(monkeypatch, whole_layers, padding):
    """DeepSeek's first layers, which are dense, run whole; the others as halves, whose turns alternate."""
    ring = QueryRing(layers=3, slots=2, rows=8, window=4, heads=1, head_dim=2, dtype=torch.float32, device="cpu")
    slots = {5: ring.acquire(5), 2: ring.acquire(2)}
    hooks = [capture.Capture(ring, layer, lambda: False) for layer in range(3)]
    rows, positions = [5, 3, 2], [9, 30, 14]
    batch = halves_of_a_decode_step(monkeypatch, rows, positions, cut=1)
    queries = torch.randn(3, 3, 2)
    for layer, hook in enumerate(hooks):
        if layer < whole_layers:
            hook(None, (queries[layer], None, None, batch), {})
            continue
        for child, part in zip(batch.tbo_children, queries[layer].split([1, 2]), strict=True):
            padded = torch.cat([part, torch.full((padding, 2), 77.0)])
            hook(None, (), {"q": padded, "forward_batch": child})
    for layer in range(3):
        assert torch.equal(ring.buffer[layer, slots[5], 9 % 4, 0], queries[layer, 0])
        assert torch.equal(ring.buffer[layer, slots[2], 14 % 4, 0], queries[layer, 2])
    assert not (ring.buffer == 77.0).any()
