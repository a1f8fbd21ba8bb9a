"""The tables of a server that speculates: where steps are cut, and what positions lack."""

import pytest
import torch

from sglang_rpc.memory.speculative_rows import SpeculativeRows
from sglang_rpc.types import NEVER


@pytest.fixture
def table():
    return SpeculativeRows(6, drafts=4, device="cpu")


def accepted(*lens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As a verify of chains of 4 leaves them."""
    index = torch.full((len(lens), 4), -1, dtype=torch.int32)
    for request, count in enumerate(lens):
        index[request, :count] = torch.arange(4 * request, 4 * request + count)
    return torch.tensor(lens, dtype=torch.int32), index


@pytest.mark.parametrize("left", range(1, 6))
@pytest.mark.parametrize("count", range(1, 5))
def test_a_step_ends_on_its_stop(table, left, count):
    table.stop_at(3, 100 + left)
    rows, lengths = torch.tensor([3, 5]), torch.tensor([100, 7])
    lens, index = table.cut(rows, lengths, *accepted(count, 4))
    assert lens.tolist() == [min(count, left), 4]
    assert (lens.dtype, index.dtype) == (torch.int32, torch.int32)
    kept = min(count, left)
    assert index.tolist() == [[*range(kept), *[-1] * (4 - kept)], [4, 5, 6, 7]]
    assert table.was_cut(3, 100 + left) == (count > left)
    assert not table.was_cut(3, 101 + left)
    assert not table.was_cut(5, 7)


def test_a_row_that_is_given_back_is_forgotten(table):
    table.stop_at(2, 10)
    table.evict(2, 48)
    table.cut(torch.tensor([2]), torch.tensor([8]), *accepted(4))
    assert table.was_cut(2, 10)
    table.release(2)
    assert table.stops == {}
    assert not table.was_cut(2, 10)
    assert table.evicted.tolist() == [0] * 6
    assert table.stop.tolist() == [NEVER] * 6


def test_a_row_on_its_stop_goes_on_by_a_token(table):
    """None is launched there. If one were, a step of no tokens would have no newest one to go on from."""
    table.stop_at(3, 100)
    lens, index = table.cut(torch.tensor([3]), torch.tensor([100]), *accepted(4))
    assert lens.tolist() == [1]
    assert index.tolist() == [[0, -1, -1, -1]]


def test_tokens_of_a_row_lack_what_it_has_lost(table):
    table.evict(1, 48)
    table.evict(4, 3)
    assert table.lacking(torch.tensor([4, 0, 1]), 2).tolist() == [3, 3, 0, 0, 48, 48]
