"""Which rows of SGLang's batches RPC may touch between two steps."""

from collections.abc import Iterable

from sglang_rpc.contract.sglang.batches import ScheduleBatch
from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.sglang.scheduler import Scheduler
from sglang_rpc.hooks.runtime import SchedulerRPC
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.runtime.totals import Steps


def decode_batches(running_batch: ScheduleBatch, last_batch: ScheduleBatch | None) -> list[ScheduleBatch]:
    """The batches whose rows may decode next: the running one, and the last one if it was an extend.

    That one is merged only later in the step; it holds the decode rows of a mixed step, and restored requests.
    """
    if last_batch is None or last_batch is running_batch or not last_batch.forward_mode.is_extend():
        return [running_batch]
    return [running_batch, last_batch]


def rows_to_check(batch: ScheduleBatch) -> list[tuple[int, Req, RequestState]]:
    """The rows, by index, whose length has reached the one at which to poll again.

    Those that wait for a query slot come first, in turn: polled in the batch's order, the last would wait forever.
    """
    found = [
        (i, req, req.rpc)
        for i, req in enumerate(batch.reqs)
        # The comparison first: it is all that most rows cost in most steps.
        if req.rpc is not None and req.kv.kv_committed_len >= req.rpc.clock.check_at and _decodes(req)
    ]
    return sorted(found, key=lambda row: row[2].recording.turn)


def prefilling(scheduler: Scheduler, last_batch: ScheduleBatch | None) -> tuple[Req | None, Req | None]:
    """Requests that are still being prefilled, in chunks; a batch may list them all the same.

    With a pipeline, the last chunk may be another micro-batch's, and SGLang takes the request out of `last_batch`,
    which ran an earlier one, only later in the step. It may have output: prefilled again, after a retraction.
    """
    extended = last_batch is not None and last_batch.forward_mode.is_extend()
    return scheduler.chunked_req, last_batch.chunked_req if extended and last_batch is not None else None


def decoding(reqs: Iterable[Req]) -> list[tuple[Req, RequestState]]:
    """Requests of `reqs` that RPC knows and that decode."""
    return [(req, req.rpc) for req in reqs if req.rpc is not None and _decodes(req)]


def generated(req: Req, state: RequestState) -> int:
    """Logical entries of its region."""
    return state.clock.generated(req.kv.kv_committed_len, state.front(len(req.origin_input_ids)))


def known(req: Req, state: RequestState) -> int:
    """Tokens of its region that are known: the newest may have no entry yet."""
    return state.inherited + len(req.output_ids)


def ahead(runtime: SchedulerRPC, req: Req) -> int:
    """Slots after its entries that its row has for its next steps; none where a step takes its slot itself."""
    return 0 if runtime.speculative is None else req.kv.kv_allocated_len - req.kv.kv_committed_len


def lag(runtime: SchedulerRPC, req: Req) -> int:
    """Tokens that `req` may have beside those that are known: a step in flight verifies drafts of it.

    Under overlap alone, and not while the result in flight is that of its prefill, which adds no entry unknown.
    """
    if runtime.speculative is None or not runtime.speculative.lag:
        return 0
    launched = (batch for batch, _ in runtime.scheduler.result_queue if batch.forward_mode.is_decode())
    return runtime.speculative.lag if any(req in batch.reqs for batch in launched) else 0


def steps(req: Req) -> Steps:
    """Its steps in which drafts were verified, and the tokens that they gave: the accepted drafts, and one each."""
    return Steps(req.spec_verify_ct, req.spec_num_correct_drafts + req.spec_verify_ct)


def row_of(req: Req) -> int:
    """The row of a request that holds one."""
    row = req.kv.req_pool_idx
    assert row is not None, f"{req.rid} holds no row"
    return row


def _decodes(req: Req) -> bool:
    # Finished or retracted rows are filtered out later in the step; their KV is no longer theirs. A row that is no
    # longer than its prompt has just been prefilled, or is still being.
    state, fixed = req.rpc, len(req.origin_input_ids)
    if state is not None and (state.continued is not None or state.stride > 1):
        # Its region has entries before it decodes, and may be due right after its prefill; or its first step may add so
        # many entries that queries must be recorded from the first on.
        fixed = state.fixed(fixed) - 1
    return req.kv.kv_committed_len > fixed and req.kv.holds_kv and not req.finished() and not req.is_retracted
