"""Positions of extend steps that hold rows of one token: decode rows, restored requests, and chunks of a prompt."""

import torch

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.runtime.clock import Clock
from sglang_rpc.runtime.request_state import RequestState
from tests.fakes.batches import ForwardMode
from tests.fakes.requests import Req, ids
from tests.unit.steps import step

OPTIONS = RequestOptions.from_custom_params(None, RPCConfig(scope="all"), knows_markers=False)


def request(prompt: int, output: int, end: int, evicted: int | None = 0) -> Req:
    """`end`: physical length of the row after the step; `evicted` None: a request that RPC does not know."""
    state = None if evicted is None else RequestState(OPTIONS, clock=Clock(evicted=evicted))
    return Req(
        ids(range(prompt)),
        ids(range(100, 100 + output)),
        state,
        full_untruncated_fill_ids=ids(range(end)),
        extend_end=end,
    )


def test_a_restored_request_counts_its_text(ring):
    restored = request(prompt=10, output=50, end=31, evicted=29)
    restored.rpc.recording.slot = 1
    result = step(ForwardMode.EXTEND, [(request(7, 0, 7), 7), (restored, 1)], ring)
    assert result.positions.tolist() == [*range(7), 59]
    assert result.rpc_lengths.tolist() == [7, 60]
    assert result.rpc.rows.tolist() == [1]
    tokens, (slots, entries) = result.rpc.tokens, result.rpc.where
    assert (tokens.tolist(), slots.tolist(), entries.tolist()) == ([7], [1], [59 % 4])


def test_a_step_records_only_if_one_of_its_own_requests_does(ring):
    restored = request(prompt=10, output=50, end=31, evicted=29)  # the slot that is taken is another one's
    result = step(ForwardMode.EXTEND, [(restored, 1)], ring)
    assert result.positions.tolist() == [59]
    assert result.rpc.where is None


def test_its_ids_are_whole_again_once_the_step_is_built(ring):
    restored = request(prompt=10, output=50, end=31, evicted=29)
    step(ForwardMode.EXTEND, [(restored, 1)], ring)
    assert restored.full_untruncated_fill_ids == restored.origin_input_ids + restored.output_ids


def test_a_chunk_of_one_token_in_the_middle_of_a_prompt_keeps_its_position(ring):
    chunk = request(prompt=100, output=0, end=41)
    result = step(ForwardMode.EXTEND, [(chunk, 1), (request(10, 50, 31, evicted=29), 1)], ring)
    assert result.positions.tolist() == [40, 59]
    assert result.rpc.tokens.tolist() == [1]


def test_the_last_chunk_of_one_token_and_an_uncompressed_row_do_too(ring):
    result = step(ForwardMode.EXTEND, [(request(100, 0, 100), 1), (request(10, 5, 15, evicted=None), 1)], ring)
    assert result.positions.tolist() == [99, 14]


def test_nothing_is_touched_when_nobody_is_compressed_or_recorded():
    idle = QueryRing(layers=1, slots=2, rows=8, window=4, heads=1, head_dim=2, dtype=torch.float32, device="cpu")
    result = step(ForwardMode.EXTEND, [(request(7, 0, 7), 7)], idle)
    assert result.rpc is None


def test_decode_rows_count_their_text(ring):
    rows = [(request(10, 20, 30), 1), (request(10, 50, 31, evicted=29), 1)]
    assert step(ForwardMode.DECODE, rows, ring).positions.tolist() == [29, 59]


def test_all_axes_of_mrope_count_the_text(ring):
    """After an image of 7 tokens that takes 3 positions, SGLang counts 4 less on each axis."""
    uncompressed, compressed = request(10, 20, 30), request(10, 50, 31, evicted=29)
    given = torch.tensor([[25, 26]] * 3)
    result = step(ForwardMode.DECODE, [(uncompressed, 1), (compressed, 1)], ring, given)
    assert result.positions.tolist() == [29, 59]
    assert result.mrope_positions.tolist() == [[25, 26 + 29]] * 3
    assert given.tolist() == [[25, 26]] * 3


def test_mrope_of_a_mixed_step_moves_the_rows_that_decode(ring):
    """The axes of a prompt's chunk differ: they stay as they are, and the rows around it move."""
    chunk = [[3, 3, 3, 4], [3, 3, 4, 4], [3, 4, 3, 4]]
    given = torch.tensor([[30, *axis, 26] for axis in chunk])
    rows = [(request(10, 50, 31, evicted=29), 1), (request(9, 0, 9), 4), (request(10, 50, 31, evicted=7), 1)]
    result = step(ForwardMode.EXTEND, rows, ring, given)
    assert result.mrope_positions.tolist() == [[59, *axis, 33] for axis in chunk]
    assert result.positions.tolist() == [59, 5, 6, 7, 8, 37]
    assert given[:, 0].tolist() == [30] * 3
