"""Positions and lengths of rows whose prompt was taken over: those of the text, in every kind of step."""

from __future__ import annotations

import pytest
import torch

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.hooks import positions
from sglang_rpc.runtime.aliases import Alias, Span
from sglang_rpc.runtime.clock import Clock
from sglang_rpc.runtime.request_state import RequestState, Taken
from tests.fakes.batches import ForwardMode
from tests.fakes.requests import Req, ids
from tests.unit.steps import step

OPTIONS = RequestOptions.from_custom_params(None, RPCConfig(scope="all"), knows_markers=False)
TEXT = ids(range(100, 160))
ALIAS = Alias((Span(10, 50, 1, 12),))  # 40 of 60 tokens held as 12 entries
PROMPT = 60 - ALIAS.offset


def taken_over(output: int = 0, end: int | None = None, evicted: int = 0) -> Req:
    """`end`: physical length of the row after the step."""
    key = ALIAS.key(TEXT)
    state = RequestState(OPTIONS, clock=Clock(evicted=evicted), taken=Taken(ALIAS, TEXT, key, -1))
    end = len(key) if end is None else end
    return Req(key, ids(range(output)), state, full_untruncated_fill_ids=ids(range(end)), extend_end=end)


def plain(prompt: int, output: int = 0, evicted: int = 0) -> Req:
    end = prompt + output - evicted
    state = RequestState(OPTIONS, clock=Clock(evicted=evicted))
    return Req(ids(range(prompt)), ids(range(output)), state, full_untruncated_fill_ids=ids(range(end)), extend_end=end)


def test_a_prefill_counts_the_text(ring):
    result = step(ForwardMode.EXTEND, [(plain(7), 7), (taken_over(), 5)], ring)
    assert result.positions.tolist() == [*range(7), *range(55, 60)]
    assert result.orig_seq_lens.tolist() == [7, 60]
    assert result.rpc_lengths.tolist() == [7, 60]
    assert result.rpc is None


def test_so_does_each_of_its_chunks(ring):
    result = step(ForwardMode.EXTEND, [(taken_over(end=PROMPT - 3), 4)], ring)
    assert result.positions.tolist() == [53, 54, 55, 56]
    assert result.rpc_lengths.tolist() == [57]


def test_and_a_last_token_alone_which_is_nobodys_decode_row(ring):
    result = step(ForwardMode.EXTEND, [(taken_over(), 1), (taken_over(end=PROMPT - 1), 1)], ring)
    assert result.positions.tolist() == [59, 58]
    assert result.rpc is None


def test_a_mixed_step_moves_each_row_by_what_it_lacks(ring):
    rows = [
        (taken_over(), 3),
        (taken_over(output=30, end=PROMPT + 30 - 9, evicted=9), 1),
        (plain(10, 20, evicted=4), 1),
    ]
    result = step(ForwardMode.EXTEND, rows, ring)
    assert result.positions.tolist() == [57, 58, 59, 89, 29]
    assert result.rpc.rows.tolist() == [1, 2]
    assert result.rpc.tokens.tolist() == [3, 4]
    assert result.rpc_lengths.tolist() == [60, 90, 30]


def test_decode_rows_count_what_was_taken_over_and_what_was_evicted(ring):
    rows = [(taken_over(output=5, end=PROMPT + 5), 1), (taken_over(output=30, end=PROMPT + 21, evicted=9), 1)]
    result = step(ForwardMode.DECODE, rows, ring)
    assert result.positions.tolist() == [64, 89]


@pytest.mark.parametrize("mode", [ForwardMode.EXTEND, ForwardMode.DECODE])
def test_every_axis_of_mrope(ring, mode):
    """A text-only request of a model with mrope, whose axes count alike."""
    row = taken_over() if mode is ForwardMode.EXTEND else taken_over(output=1, end=PROMPT + 1)
    length = 4 if mode is ForwardMode.EXTEND else 1
    physical = torch.arange(row.extend_end - length, row.extend_end).repeat(3, 1)
    result = step(mode, [(row, length)], ring, physical)
    assert result.mrope_positions.tolist() == [(physical[0] + ALIAS.offset).tolist()] * 3


def test_the_sampler_draws_by_logical_lengths(ring):
    result = step(ForwardMode.EXTEND, [(taken_over(), 5), (plain(7), 7)], ring)
    seen = positions.sample_at_logical(lambda runner, logits, batch: batch.seq_lens, None, None, result)
    assert seen.tolist() == [60, 7]
    untouched = step(ForwardMode.EXTEND, [(plain(7), 7)], ring)
    seen = positions.sample_at_logical(lambda runner, logits, batch: batch, None, None, untouched)
    assert seen is untouched


def test_with_its_real_ids_back_it_lacks_nothing(ring):
    req = taken_over(end=60)
    req.origin_input_ids = TEXT
    result = step(ForwardMode.EXTEND, [(req, 60)], ring)
    assert result.positions.tolist() == list(range(60))
    assert result.rpc_lengths is None
