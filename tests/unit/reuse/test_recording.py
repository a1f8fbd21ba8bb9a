"""A request that goes on close to a due date: the earlier request's queries, and those of what it prefills."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from sglang_rpc.config import RequestOptions
from sglang_rpc.hooks import recording
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.runtime.continued import ParkedQueries, Thought, go_on
from sglang_rpc.runtime.recording import Recorder
from sglang_rpc.runtime.request_state import RequestState

P, R = 64, 8
TEXT = array("q", range(100, 200))  #: a prompt of 30 tokens, and 70 that were generated


@dataclass
class Situation:
    """A request that goes on with TEXT, one token of which is prefilled."""

    given: int = 0  #: tokens that its prompt adds
    generated: int = 70
    slots: int = 2

    def __post_init__(self) -> None:
        shape = dict(layers=1, window=R, heads=1, head_dim=1, dtype=torch.float32, device="cpu")
        self.ring = QueryRing(slots=self.slots, rows=4, **shape)
        self.recorder = Recorder(self.ring)
        slot = self.ring.acquire(1)
        self.ring.buffer[0, slot, :, 0, 0] = torch.arange(64.0, 64 + R)
        queries = ParkedQueries(self.ring.park(slot), since=64, upto=self.generated - 1)
        text = TEXT[: 30 + self.generated] + array("q", [7] * self.given)
        thought = Thought(30, (), 0, 0, 0, TEXT[30 + self.generated - 1 : 30 + self.generated], queries)
        self.state = RequestState(RequestOptions(True, P, R, 4, "all", reuse="continue"))
        self.state.go_on(go_on(thought, 30 + self.generated - 1, [], 0, text))
        self.req = SimpleNamespace(
            rid="it", rpc=self.state, origin_input_ids=text, extend_end=len(text), extend_len=1 + self.given,
            kv=SimpleNamespace(req_pool_idx=2),
        )  # fmt: skip
        self.runtime = SimpleNamespace(
            ring=self.ring, compressor=SimpleNamespace(recorder=self.recorder), fence=lambda: None
        )

    def begin(self) -> RequestState:
        recording.begin(self.runtime, self.req, self.state)
        return self.state


def test_it_has_the_queries_of_the_tokens_before_and_records_what_it_prefills():
    each = Situation()
    slot = each.begin().recording.slot
    assert each.state.recording.since == 64
    assert each.ring.buffer[0, slot, :, 0, 0].tolist() == list(range(64, 64 + R))
    assert recording.going_on(each.req)
    assert each.state.recording.complete_at(R) == P + R, "its due date: in time"


@pytest.mark.parametrize("taken", [1, 2])
def test_parked_queries_are_there_until_every_other_slot_is_taken(taken):
    each = Situation(slots=2)
    for row in range(taken):
        each.ring.acquire(row)
    assert each.ring.free == 2 - taken
    slot = each.begin().recording.slot
    assert (slot is None) == (taken == 2)
    if slot is not None:  # it was given the slot itself
        assert each.ring.buffer[0, slot, :, 0, 0].tolist() == list(range(64, 64 + R))


def test_once_another_has_the_slot_they_are_not_taken_for_its_own():
    each = Situation(slots=2)
    for row in (0, 1):
        each.ring.release(each.ring.acquire(row))
    others = [each.ring.acquire(row) for row in (0, 1)]
    each.ring.release(others[1])
    assert each.begin().recording.since == 69, "what it prefills, and nothing before"


def test_text_that_is_put_between_has_no_queries():
    each = Situation(given=3)
    assert each.begin().recording.slot is None
    assert not recording.going_on(each.req)


@pytest.mark.parametrize(("generated", "recorded"), [(64, False), (65, True)])
def test_far_from_its_due_date_it_waits_as_others_do(generated, recorded):
    assert (Situation(generated=generated).begin().recording.slot is not None) == recorded
