"""A retraction waits for a result that could not be computed again.

Under overlap the scheduler plans step i while the result of forward i-1 is in flight. Retracting a request in that
moment throws the result away, and SGLang computes its token again when the request comes back. That is exact as long
as the KV is what forward i-1 attended to. It is not for a request that was compressed in this very step: the entries
that forward i-1 saw are evicted, so the token would come out of a smaller context, and the output would differ from a
run that was never retracted.

Nor is it beside recurrent layers: forward i-1 has changed the request's state, and no state steps back. One that is
going to be backed up must be that of the newest token which is known.

And while a step in flight verifies drafts, nobody knows how long its rows are: those that could be compressed early, so
that nothing has to be retracted, cannot be yet.

Such a retraction is put off by one step, in which nothing is launched:

* `update_running_batch` is where SGLang retracts, and the only place where it asks `check_decode_mem` about a whole
  batch with a result in flight that a retraction would lose. `check` raises there, before anything has been retracted;
  until then SGLang has only removed ended requests from the batch, which it would do in the next step as well.
* SGLang takes None for "nothing to run", processes the result in its queue, and plans again. Then no result is in
  flight, so the next retraction loses nothing: the wait never lasts longer than one step.
* Nothing was launched, so no slot is written and no length advances; what was compressed stays compressed.
"""

from collections.abc import Callable, Iterable

from sglang_rpc.contract.sglang.batches import ScheduleBatch
from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.sglang.scheduler import Scheduler
from sglang_rpc.contract.targets import AROUND, hook
from sglang_rpc.hooks import backups, rows
from sglang_rpc.hooks.runtime import SchedulerRPC, runtime_of


class ResultInFlight(Exception):
    """A retraction of `batch` has to wait: in the next step the result is there."""

    def __init__(self, batch: ScheduleBatch):
        super().__init__()
        self.batch = batch


def would_be_lost(runtime: SchedulerRPC, reqs: Iterable[Req]) -> bool:
    """Whether retracting one of `reqs` now would lose a result that can't be computed again."""
    if not _in_flight(runtime.scheduler):
        return False
    saves_states = runtime.backups.has_states and runtime.backups.limit > 0
    return any(
        req.rpc is not None
        and (req.rpc.hooks.compacted_in == runtime.step or (saves_states and backups.is_worth_it(req.rpc)))
        for req in reqs
    )


@hook(
    AROUND,
    "sglang.srt.managers.scheduler.Scheduler.update_running_batch",
    "retracting a request throws away the result in flight; just compressed, it could not be computed again",
)
def wait_for_result(
    original: Callable[..., ScheduleBatch | None], scheduler: Scheduler, batch: ScheduleBatch
) -> ScheduleBatch | None:
    """AROUND Scheduler.update_running_batch, once per decode step that is planned: launch nothing in a step that would
    lose a result."""
    from sglang.srt.managers import scheduler as module

    runtime = runtime_of(scheduler)
    if runtime is None or not _in_flight(scheduler):
        return original(scheduler, batch)
    # SGLang's own test switch retracts whether or not memory is short.
    runtime.retraction_is_certain = bool(
        module.TEST_RETRACT and scheduler.forward_ct % module.TEST_RETRACT_INTERVAL == 0
    )
    try:
        return original(scheduler, batch)
    except ResultInFlight:
        # As SGLang does where it lets ended requests free their KV first: the next step may admit others.
        batch.batch_is_full = False
        if runtime.decode_server:
            raise  # to `decode_steps.plan_step`: there SGLang takes no None
        return None
    finally:
        runtime.retraction_is_certain = None


def check(runtime: SchedulerRPC, batch: ScheduleBatch, enough: bool) -> None:
    """Raise ResultInFlight if the scheduler is about to retract, and a result of `batch` would be lost.

    Args:
        enough: whether the next step fits the pool.
    """
    certain = runtime.retraction_is_certain
    if certain is not None and (certain or not enough) and would_be_lost(runtime, batch.reqs):
        raise ResultInFlight(batch)


def check_lengths(runtime: SchedulerRPC, batch: ScheduleBatch) -> None:
    """Raise ResultInFlight if the scheduler is about to retract, and rows of `batch` whose windows are recorded, which
    may be compressed before that, are longer than is known: a step in flight verifies drafts of them."""
    if runtime.retraction_is_certain is None or runtime.speculative is None or not runtime.speculative.lag:
        return
    if any(_may_be_recorded(req, lag) for req in batch.reqs if (lag := rows.lag(runtime, req))):
        raise ResultInFlight(batch)


def _may_be_recorded(req: Req, lag: int) -> bool:
    """Whether the whole window of `req` may be recorded by now, of whose tokens up to `lag` are not known yet."""
    state = req.rpc
    if state is None or state.recording.slot is None:
        return False
    return rows.generated(req, state) + lag >= state.recording.complete_at(state.options.window)


def _in_flight(scheduler: Scheduler) -> bool:
    """Whether a result is in flight; without overlap none ever is."""
    return bool(scheduler.result_queue)
