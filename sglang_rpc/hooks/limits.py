"""How many tokens a request may generate: never more than the pool, empty but for it, has room for."""

from collections.abc import Callable
from dataclasses import replace

from sglang_rpc.contract.sglang.requests import Req
from sglang_rpc.contract.sglang.scheduler import Scheduler
from sglang_rpc.errors import ConfigError
from sglang_rpc.hooks import rows
from sglang_rpc.hooks.runtime import runtime_of
from sglang_rpc.runtime.admission import Forecast, Plan, largest, longest, refuse_unfit
from sglang_rpc.runtime.request_state import RequestState


def capacity_after(scheduler: Scheduler, entries: int) -> int:
    """KV entries that the empty pool has after `entries`, in whole pages, and beside the slots that a row has for
    drafts; 2 slots are the PrefillAdder's margin."""
    page, runtime = scheduler.page_size, runtime_of(scheduler)
    ahead = 0 if runtime is None else runtime.reserve
    return (scheduler.max_total_num_tokens - 2) // page * page - entries - ahead


def refuse_prompt(scheduler: Scheduler, req: Req) -> None:
    """Raises ConfigError for a prompt that leaves no room for a token: SGLang would have it wait forever."""
    prompt = len(req.origin_input_ids)
    room = capacity_after(scheduler, prompt)
    if prompt < scheduler.max_req_input_len and room < (req.sampling_params.max_new_tokens > 0):
        raise ConfigError(
            f"the prompt of {prompt} tokens leaves no room for an answer in the KV pool of "
            f"{scheduler.max_total_num_tokens} slots: shorten it to {prompt + room - 1}, or start the server with more "
            "memory",
            "request.prompt",
        )


def fit_to_pool(scheduler: Scheduler, req: Req, state: RequestState, asked: int | None, at_least: int) -> None:
    """Set the most tokens that a new `req`, of `state`, may generate. Raises ConfigError if it asked for too many."""
    state.hooks.fitted_for = None if state.start is None else (state.start, True)
    prompt = len(req.origin_input_ids)
    if prompt >= scheduler.max_req_input_len or req.to_finish is not None:
        return  # SGLang refuses it itself
    room = capacity_after(scheduler, prompt)
    limit = scheduler.model_config.context_len - prompt - 2
    if scheduler.max_new_tokens_limit:
        limit = min(limit, scheduler.max_new_tokens_limit)
    if asked is None:
        tokens = max(1, longest(limit, room, state.options, state.page))  # of none, `refuse_prompt` speaks
    else:
        tokens = min(asked, limit)
        refuse_unfit(tokens, prompt, room, scheduler.max_total_num_tokens, state.options, state.page)
    params = req.sampling_params
    params.max_new_tokens = max(0, tokens)
    params.min_new_tokens = min(at_least, params.max_new_tokens)


def refit(scheduler: Scheduler, req: Req, state: RequestState, generated: int) -> None:
    """Its limit once more, when more is known of its thinking than on arrival, where it was taken to begin at once and
    to last to the end: it begins only now, or has not yet, or has ended and what follows is not compressed.

    Without this a request that outgrows the pool alone would be aborted; with it it ends by length.
    """
    params, known = req.sampling_params, (state.start, state.active)
    never = state.segment is None or not state.options.enabled or state.refused is not None
    if never or known == state.hooks.fitted_for:
        return
    if state.active and state.thoughts is not None:
        return  # nobody knows what it will hold, and SGLang's clip stands
    output, answer = len(req.output_ids), _answer_room(scheduler, req)
    if not state.active:
        state.hooks.fitted_for = known
        lower(req, output + max(1, answer))
        return
    prompt = len(req.origin_input_ids)
    tokens = most(
        scheduler,
        max(0, params.max_new_tokens + state.inherited - generated),
        lambda n: state.plan(generated, n, True, prompt),
    )
    lower(req, max(output + 1, generated - state.inherited + tokens))
    if state.start is not None:
        state.hooks.fitted_for = known
        return
    # From its first thought to its first compression it holds all of it: the last poll must come before that.
    ahead = answer - state.budget.next_due(0) - state.stride + 1
    if ahead < 1:
        lower(req, output + max(1, answer))
    else:
        state.clock.check_by(generated + ahead, prompt)


def most(scheduler: Scheduler, want: int, plan: Callable[[int], Plan]) -> int:
    """The largest n <= `want` such that `plan(n)`, of n tokens more, fits the empty pool; 0 if none does."""

    def fits(tokens: int) -> bool:
        planned = replace(plan(tokens), shared=0)  # where a copy does not fit, it goes on without one
        room = capacity_after(scheduler, planned.prompt + planned.held)
        return Forecast([planned], scheduler.page_size).peak <= room

    return largest(want, fits)


def _answer_room(scheduler: Scheduler, req: Req) -> int:
    """Entries left for `req`, none of whose next ones are compressed. A step may be under way."""
    runtime = runtime_of(scheduler)
    ahead = 0 if runtime is None else rows.ahead(runtime, req)
    return capacity_after(scheduler, req.kv.kv_allocated_len - ahead) - scheduler.page_size


def lower(req: Req, tokens: int) -> None:
    """Let `req` generate no more than `tokens` in all.

    SGLang compares `max_new_tokens` with the output after each token, so a change counts from the next one on.
    """
    params = req.sampling_params
    params.max_new_tokens = min(params.max_new_tokens, tokens)
    params.min_new_tokens = min(params.min_new_tokens, params.max_new_tokens)
