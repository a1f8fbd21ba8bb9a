"""The queries of a request that goes on with another's region close to its due date.

Its window then holds tokens that the earlier request generated, whose queries that one has parked, and the last of its
prompt, which are prefilled: they are recorded as those of decode steps are.
"""

from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.hooks import rows
from sglang_rpc.hooks.runtime import SchedulerRPC, is_recorded
from sglang_rpc.runtime.request_state import RequestState


def begin(runtime: SchedulerRPC, req: Req, state: RequestState) -> None:
    """Before the step that prefills the last of its prompt: record from the earlier request's queries on, if its due
    date needs them and a query slot is free. Tokens that its prompt adds were not generated, and none is recorded."""
    continued, ring = state.continued, runtime.ring
    if continued is None or not _last_of_prompt(req, state) or not continued.whole or not state.active:
        return
    if state.recording.slot is not None or state.inherited <= state.due(state.clock.events) - state.options.window:
        return
    recorder, queries = runtime.compressor.recorder, continued.thought.queries
    if recorder.keeps_free or not ring.free:
        return  # it is compressed late
    since = max(0, state.inherited - req.extend_len)
    parked = None if queries is None else ring.parked(queries.ticket)
    if queries is None or parked is None or not queries.since <= since <= queries.upto:
        parked = None
    else:
        since = queries.since
    runtime.fence()  # the forward in flight may record in the slot for a row that has given it back
    slot = recorder.resume(state.recording, rows.row_of(req), since)
    if parked is not None and parked != slot:
        ring.buffer[:, slot].copy_(ring.buffer[:, parked])


def going_on(req: Req) -> bool:
    """Whether the queries of what this step prefills of its prompt are recorded."""
    return is_recorded(req) and req.rpc is not None and _last_of_prompt(req, req.rpc)


def _last_of_prompt(req: Req, state: RequestState) -> bool:
    return state.shares_region and req.extend_end == len(req.origin_input_ids)
