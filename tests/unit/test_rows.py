"""Which rows are polled between two steps, and in what order."""

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.hooks import rows
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.types import NEVER
from tests.fakes.batches import ForwardMode, ScheduleBatch
from tests.fakes.requests import Req, ReqKvInfo, ids
from tests.fakes.scheduler import Scheduler


def decoding(rid: str, turn: int = NEVER, check_at: int = 0) -> Req:
    state = RequestState(RequestOptions.from_custom_params(None, RPCConfig(scope="all")))
    state.recording.turn, state.clock.check_at = turn, check_at
    req = Req(rid=rid, origin_input_ids=ids([1] * 5), kv=ReqKvInfo(1, kv_committed_len=20, kv_allocated_len=20))
    req.rpc = state
    return req


def polled(*reqs: Req) -> list[str]:
    return [req.rid for _, req, _ in rows.rows_to_check(ScheduleBatch(list(reqs)))]


def test_who_waits_for_a_query_slot_comes_first_in_turn_then_the_batchs_order():
    batch = decoding("a"), decoding("b", turn=7), decoding("c"), decoding("d", turn=2)
    assert polled(*batch) == ["d", "b", "a", "c"]


def test_rows_that_need_not_be_polled_are_left_out():
    assert polled(decoding("a", check_at=21), decoding("b", check_at=20), decoding("c", check_at=NEVER)) == ["b"]


def test_whose_prefill_goes_on_is_named_though_the_last_extend_lists_it():
    one, other = decoding("a"), decoding("b")
    extend = ScheduleBatch([one], ForwardMode.EXTEND, chunked_req=one)
    assert rows.prefilling(Scheduler(chunked_req=other), extend) == (other, one)
    # What a batch decodes that was an extend once is nobody's prefill any more.
    assert rows.prefilling(Scheduler(), ScheduleBatch([one], ForwardMode.DECODE, chunked_req=one)) == (None, None)
    assert rows.prefilling(Scheduler(), None) == (None, None)


def test_each_row_keeps_its_index():
    batch = [decoding("a"), decoding("b", turn=7)]
    assert [(i, req.rid) for i, req, _ in rows.rows_to_check(ScheduleBatch(batch))] == [(1, "b"), (0, "a")]
