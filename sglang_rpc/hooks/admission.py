"""Admission by what requests will really hold: a PrefillAdder that reserves the peak, not the length."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from sglang_rpc.contract.targets import AFTER, hook
from sglang_rpc.hooks import result_in_flight, resume, rows
from sglang_rpc.hooks.runtime import SchedulerRPC, runtime_of
from sglang_rpc.runtime.admission import Forecast, Plan
from sglang_rpc.runtime.request_state import RequestState, Saved

if TYPE_CHECKING:
    from enum import Enum

    from sglang_rpc.contract.sglang.requests import Req
    from sglang_rpc.contract.sglang.scheduler import PrefillAdder, Scheduler
    from sglang_rpc.contract.sglang.scheduler import PrefillAdder as Base
    from sglang_rpc.contract.sglang.windows import WindowBudget
else:
    Base = object  # SGLang's class is chosen at run time: see `_adder_class`


@hook(
    AFTER,
    "sglang.srt.managers.scheduler.Scheduler.get_prefill_adder_class",
    "SGLang's own extension point for admission, which otherwise reserves full lengths",
)
def adder_that_knows(adder_class: type[PrefillAdder], scheduler: Scheduler) -> type[PrefillAdder]:
    """AFTER Scheduler.get_prefill_adder_class, once per attempt to admit; returns the same class each time."""
    runtime = runtime_of(scheduler)
    if runtime is None:
        return adder_class
    if runtime.adder_class is None:
        runtime.adder_class = _adder_class(adder_class, runtime)
    return runtime.adder_class


def plan_of(req: Req, generated: int, tokens: int, ends: bool) -> Plan:
    """The plan of a request with `generated` logical entries in its region that may generate `tokens` more."""
    prompt = len(req.origin_input_ids)
    if req.rpc is None:
        return Plan(generated, generated, tokens, ends, prompt=prompt)
    return req.rpc.plan(generated, tokens, ends, prompt)


class PeakAdder(Base):
    """Adds up slots where SGLang adds up tokens still to come.

    `memory_budget.total_offset` holds the forecast's peak instead of a sum of lengths, and a candidate costs what it
    raises that peak by. SGLang makes one adder per attempt to admit, and drops it after.
    """

    _rpc: SchedulerRPC  #: set by `_adder_class`
    _forecast: Forecast
    _built = False  #: SGLang's constructor asks for a sum before there is a forecast
    _cost = 0
    _asked = 0  #: new tokens that the request being costed may have in all

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._taken: list[Plan] = []
        self._forecast, self._built = self._forecast_of_running(), True
        self.memory_budget.total_offset += self._forecast.peak

    def _get_running_request_total_token_offset(self, req: Req) -> int:
        if not self._built:
            return 0
        return Forecast([self._running(req)], self.page_size).peak

    # `args`, `kwargs`: what else SGLang passes, handed on as it came.
    def add_one_req(self, req: Req, *args: Any, **kwargs: Any) -> Enum:
        """As SGLang's, at the cost of the forecast; a request with a backup is restored first."""
        state = req.rpc
        if state is not None and state.hooks.saved is not None:
            return self._add_restored(req, state, state.hooks.saved, *args, **kwargs)
        plan = self._waiting(req)
        with self._costing_what_it_adds(req, plan):
            result = super().add_one_req(req, *args, **kwargs)
            self._book(req, plan, partly=self.new_chunked_req is req)
        return result

    def _add_restored(self, req: Req, state: RequestState, saved: Saved, *args: Any, **kwargs: Any) -> Enum:
        """Bring back a retracted request whose KV waits on the host, then have its newest token prefilled."""
        from sglang.srt.managers.schedule_policy import AddReqResult

        no_token: Enum = AddReqResult.NO_TOKEN
        other: Enum = AddReqResult.OTHER
        plan = self._restored(req, state, saved)
        cost = self._forecast.peak_with(plan) - self._forecast.peak
        with self._lock_node(req.last_node):
            entries = saved.backup.tokens + 1
            if self._pages(entries) - req.prefix_len + cost + 1 >= self.rem_total_tokens:
                return no_token
            matched = req.prefix_len
            if not resume.restore(self._rpc, req, state, saved):
                return other
            resume.load_nothing_back(req)
        with self._costing_what_it_adds(req, plan):
            result = super().add_one_req(req, *args, **kwargs)
            self._book(req, plan, partly=False)
        if req in self.can_run_list:
            resume.admitted(self._rpc, req, state)
        else:
            resume.undo_restore(self._rpc, req, state, matched)
        return result

    def add_chunked_req(self, req: Req) -> Req | None:
        """As SGLang's, at the cost of the forecast."""
        plan = self._waiting(req)
        with self._costing_what_it_adds(req, plan):
            unfinished = super().add_chunked_req(req)
            self._book(req, plan, partly=unfinished is not None)
        return unfinished

    def _select_prefill_admission(self, req: Req, *, total_tokens: int, **kwargs: object) -> object:
        # SGLang asks for the tokens, no more than CLIP_MAX_NEW_TOKENS of those to come, and a page for rounding.
        # Asked for here: the pages it takes, of which its cost is already counted in whole ones, and a slot.
        now, prefix = len(req.full_untruncated_fill_ids), req.prefix_len
        asked = now - prefix + _clip(max(0, self._cost)) + self.per_req_token_overhead
        needed = self._pages(now) - self._pages(prefix) + self._cost + 1
        return super()._select_prefill_admission(req, total_tokens=total_tokens - asked + needed, **kwargs)

    def _swa_new_tokens(self, req: Req) -> int:
        # Of window layers with a KV pool of their own SGLang reserves at most a window, by tokens to come. There
        # compressions spare no slots, so it hears of the tokens that were asked for, not of the cost.
        return _clip(max(0, self._asked - len(req.output_ids)))

    def _pages(self, entries: int) -> int:
        """Slots of the pages that so many entries lie in."""
        return self.ceil_paged_tokens(entries)

    def preempt_to_schedule(self, req: Req) -> bool:
        """As SGLang's, but not while a result in flight would be lost; the forecast is made anew."""
        if self.running_batch is not None and result_in_flight.would_be_lost(self._rpc, self.running_batch.reqs):
            return False  # in the next step
        with self._costing_what_it_adds(req, self._waiting(req)):
            offset = self.memory_budget.total_offset
            preempted = super().preempt_to_schedule(req)
            self.memory_budget.total_offset = offset
        if preempted:
            before, self._forecast = self._forecast.peak, self._forecast_of_running()
            self.memory_budget.total_offset += self._forecast.peak - before
        return preempted

    @contextlib.contextmanager
    def _costing_what_it_adds(self, req: Req, plan: Plan) -> Iterator[None]:
        """Inside, the request asks for as many new tokens as it raises the peak by, and SGLang's arithmetic holds.

        `ignore_eos` would lead to SGLang's own forecast, which credits a finishing request with its length.
        """
        self._cost = self._forecast.peak_with(plan) - self._forecast.peak
        params = req.sampling_params
        asked = params.max_new_tokens, params.ignore_eos
        self._asked = params.max_new_tokens
        params.max_new_tokens, params.ignore_eos = len(req.output_ids) + self._cost, False
        try:
            yield
        finally:
            params.max_new_tokens, params.ignore_eos = asked

    def _book(self, req: Req, plan: Plan, partly: bool) -> None:
        """If `req` was taken: book what it costs instead of the clipped length that SGLang booked."""
        if not self.can_run_list or self.can_run_list[-1] is not req:
            return
        booked = 0 if partly else _clip(req.sampling_params.max_new_tokens)
        self.memory_budget.total_offset += self._cost - booked
        if self._rpc.own_windows and not partly:
            self._book_windows(req, booked)
        self._taken.append(plan)
        self._forecast.add(plan)

    def _book_windows(self, req: Req, booked: int) -> None:
        """What window layers will hold, of all tokens to come, instead of those that SGLang `booked`."""
        budget, prefilled = cast("WindowBudget", self.memory_budget), self.ceil_paged_tokens(req.extend_len)
        before, after = (budget.swa_tokens(prefilled, tokens) for tokens in (booked, self._swa_new_tokens(req)))
        budget.swa_offset += after - before

    def _forecast_of_running(self) -> Forecast:
        own = [] if self.running_batch is None else self.running_batch.reqs
        others = self._rpc.in_micro_batches()
        if others:  # where a prefill that goes on may be listed, which is planned as it is added
            added = {*self.can_run_list, self._rpc.scheduler.chunked_req}
            own = list(dict.fromkeys([*own, *(req for req in others if req not in added)]))
        plans = [self._running(r) for r in own if r.kv.holds_kv] + self._taken
        return Forecast(plans, self.page_size, self._rpc.ring.slots)

    def _running(self, req: Req) -> Plan:
        state, prompt = req.rpc, len(req.origin_input_ids)
        ahead = rows.ahead(self._rpc, req)
        entries = req.kv.kv_allocated_len - ahead
        if state is None:
            generated = max(0, entries - prompt)
        else:
            generated = max(state.inherited, state.clock.generated(entries, state.front(prompt)))
        return self._drafting(plan_of(req, generated, *self._to_come(req, self.new_token_ratio)), ahead)

    def _waiting(self, req: Req) -> Plan:
        known = len(req.output_ids) if req.rpc is None else rows.known(req, req.rpc)
        return self._drafting(plan_of(req, known, *self._to_come(req, 1.0)))  # its prefill covers the output it has

    def _restored(self, req: Req, state: RequestState, saved: Saved) -> Plan:
        prompt = len(req.origin_input_ids)  # its prefill covers the newest token
        return self._drafting(state.plan_saved(saved, rows.known(req, state), *self._to_come(req, 1.0), prompt))

    def _drafting(self, plan: Plan, ahead: int = 0) -> Plan:
        """`plan` with the slots that each step has for drafts, of which its row has `ahead` now."""
        return replace(plan, ahead=self._rpc.reserve, ahead_now=ahead) if self._rpc.reserve else plan

    def _to_come(self, req: Req, ratio: float) -> tuple[int, bool]:
        """Tokens to plan for and whether it ends there: a fixed length, or as far ahead as SGLang reserves."""
        tokens = max(0, req.sampling_params.max_new_tokens - len(req.output_ids))
        if req.sampling_params.ignore_eos:
            return tokens, True
        return int(_clip(tokens) * ratio), False


def _clip(tokens: int) -> int:
    """As far ahead as SGLang reserves."""
    from sglang.srt.managers.schedule_policy import CLIP_MAX_NEW_TOKENS

    return min(tokens, int(CLIP_MAX_NEW_TOKENS))


def _adder_class(base: type[PrefillAdder], runtime: SchedulerRPC) -> type[PrefillAdder]:
    """PeakAdder on top of SGLang's own adder, or another plugin's."""
    return type("PeakAdder", (PeakAdder, base), {"_rpc": runtime})
