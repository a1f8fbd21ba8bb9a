"""Steps that are planned while the last one runs: when its result is waited for, and what a launch is told."""

from __future__ import annotations

from collections import deque

import pytest
import torch

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.hooks import compaction, result_in_flight, rows, speculative_overlap
from sglang_rpc.memory.speculative_rows import SpeculativeRows
from sglang_rpc.runtime.recording import Recording
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.types import Compression
from tests.fakes.batches import ForwardMode, ScheduleBatch
from tests.fakes.requests import Req, ReqKvInfo, ids
from tests.fakes.runtime import Runtime
from tests.fakes.scheduler import Scheduler

N, PROMPT, ROW = 4, 10, 3


def request(row: int = ROW, generated: int = 50, recording: Recording | None = None) -> Req:
    options = RequestOptions.from_custom_params(None, RPCConfig(window=8, scope="all"), knows_markers=False)
    state = RequestState(options, stride=2 * N)
    if recording is not None:
        state.recording = recording
    kv = ReqKvInfo(req_pool_idx=row, kv_committed_len=PROMPT + generated)
    return Req(origin_input_ids=ids(range(PROMPT)), kv=kv, rpc=state)


class Server:
    """A scheduler with a batch of one request to launch, and the result of `before`, which has that too, in flight."""

    def __init__(self, ahead: bool = True, before: ForwardMode | None = ForwardMode.DECODE, **of_request):
        self.req = request(**of_request)
        self.batch = ScheduleBatch([request(row=5), self.req])
        queue = [] if before is None else [(ScheduleBatch([self.req], before), "a result")]
        self.scheduler = Scheduler(result_queue=deque(queue))
        self.table = SpeculativeRows(8, drafts=N, device="cpu")
        if ahead:
            self.table.schedule_ahead()
        self.runtime = Runtime(self.scheduler, speculative=self.table, retraction_is_certain=False)
        self.scheduler.rpc = self.runtime

    def waits(self, disabled: bool = False) -> bool | None:
        return speculative_overlap.wait_for_lengths(disabled, self.scheduler, self.batch, last_batch=None)


@pytest.mark.parametrize("left", range(0, 8))
def test_the_result_of_a_row_near_its_date_is_waited_for(left):
    server = Server()
    server.table.stop_at(ROW, PROMPT + 50 + left)
    assert server.waits() == (True if left <= N else None)


@pytest.mark.parametrize(
    "server",
    [Server(ahead=False), Server(before=None), Server(before=ForwardMode.EXTEND)],
    ids=["no overlap", "nothing in flight", "its prefill in flight"],
)
def test_what_is_known_is_not_waited_for(server):
    server.table.stop_at(ROW, PROMPT + 51)
    assert server.waits() is None
    assert rows.lag(server.runtime, server.req) == 0


def test_another_rows_date_a_prefill_and_an_idle_scheduler_are_not_waited_for():
    server = Server()
    server.table.stop_at(6, PROMPT + 51)
    assert server.waits() is None
    server.table.stop_at(5, PROMPT + 51)  # in the batch, but not in flight
    assert server.waits() is None
    server.table.stop_at(ROW, PROMPT + 51)
    server.batch.forward_mode = ForwardMode.EXTEND
    assert server.waits() is None
    server.batch = None
    assert server.waits() is None


def test_rows_are_compressed_before_a_launch_where_nothing_is_in_flight(monkeypatch):
    asked = []
    monkeypatch.setattr(speculative_overlap, "compress_in", lambda runtime, batch: asked.append(batch))
    in_flight, known, synchronous = Server(), Server(before=None), Server(ahead=False, before=None)
    for server in (in_flight, known, synchronous):
        speculative_overlap.compress_before_launch(server.scheduler, server.batch)
    assert asked == [known.batch]
    known.batch.forward_mode = ForwardMode.EXTEND
    speculative_overlap.compress_before_launch(known.scheduler, known.batch)
    assert asked == [known.batch]


def test_the_next_launch_is_told_the_new_lengths():
    server = Server(before=None)
    lengths = server.scheduler.future_map.new_seq_lens_buf
    lengths[:] = 77
    made = [Compression(row, 50, 8, PROMPT, 60, keep) for row, keep in ((ROW, 16), (5, 20))]
    compaction._relay(server.runtime, made)
    assert server.scheduler.future_map.published == [[ROW, 5]]
    assert lengths[[ROW, 5]].tolist() == [PROMPT + 16 + 8, PROMPT + 20 + 8]
    assert lengths[[0, 4, 6]].tolist() == [77] * 3
    assert lengths.dtype == torch.int64


class TestEarly:
    """A compression before a retraction needs the length of its row."""

    @pytest.mark.parametrize("since", range(40, 52))
    def test_it_waits_for_the_result_if_the_window_may_be_recorded(self, since):
        server = Server(recording=Recording(slot=1, since=since))
        if since + 8 <= 50 + N:
            with pytest.raises(result_in_flight.ResultInFlight):
                result_in_flight.check_lengths(server.runtime, server.batch)
        else:
            result_in_flight.check_lengths(server.runtime, server.batch)

    @pytest.mark.parametrize(
        "server",
        [
            Server(recording=Recording(slot=1, since=0), before=None),
            Server(recording=Recording(slot=1, since=0), ahead=False),
            Server(),
        ],
        ids=["nothing in flight", "no overlap", "nothing recorded"],
    )
    def test_otherwise_it_does_not(self, server):
        result_in_flight.check_lengths(server.runtime, server.batch)

    def test_nor_where_nothing_is_about_to_be_retracted(self):
        server = Server(recording=Recording(slot=1, since=0))
        server.runtime.retraction_is_certain = None
        result_in_flight.check_lengths(server.runtime, server.batch)
