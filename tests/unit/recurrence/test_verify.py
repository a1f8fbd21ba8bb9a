"""CPU stand-ins for a verify of gated delta nets: each row's state is that of a prefill of its path."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from sglang_rpc.startup.cpu import recurrent_ops as ops
from sglang_rpc.startup.cpu import recurrent_verify as verify

HEADS, VALUE_HEADS, KEY, VALUE, CHANNELS, WIDTH = 2, 4, 8, 6, 5, 4
N, SLOTS, PLACES = 5, torch.tensor([4, 0]), torch.tensor([0, 1], dtype=torch.int32)
#: Of each request, which row each row follows; links to first child and next sibling that say so.
CHAIN = [[0, 1, 2, 3], [0, 1, 2, 3]]
TREE = [[0, 0, 1, 1], [0, 1, 0, 3]]
CHILDREN = torch.tensor([[1, 3, -1, -1, -1], [1, 2, -1, 4, -1]])
SIBLINGS = torch.tensor([[-1, 2, -1, 4, -1], [-1, 3, -1, -1, -1]])
BRANCHING = pytest.mark.parametrize("branch", [False, True])


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(3)


def path_to(row: int, parents: list[int]) -> list[int]:
    path = [row]
    while path[0]:
        path.insert(0, parents[path[0] - 1])
    return path


def links(branch: bool) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    return (CHILDREN, SIBLINGS, torch.empty(2, N, dtype=torch.int64)) if branch else (None, None, None)


@BRANCHING
def test_the_row_that_each_row_follows(branch):
    children, siblings, _ = links(branch)
    parents = verify.parents_of(children, siblings, 2, N)
    assert parents[:, 1:].tolist() == (TREE if branch else CHAIN)


def test_a_row_that_nothing_links_to_follows_the_first():
    nothing = torch.full((1, 3), -1)
    assert verify.parents_of(nothing, nothing, 1, 3).tolist() == [[0, 0, 0]]


@BRANCHING
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_of_drafts_is_that_of_each_path(rng, branch, bias):
    x, weight = torch.randn(2, CHANNELS, N, generator=rng), torch.randn(CHANNELS, WIDTH, generator=rng)
    offset = torch.randn(CHANNELS, generator=rng) if bias else None
    states = torch.randn(5, CHANNELS, WIDTH - 1, generator=rng)
    before, windows = states.clone(), torch.full((3, N, CHANNELS, WIDTH - 1), 9.0)
    children, siblings, parents = links(branch)
    out = verify.convolve(
        pytest.fail, x, states, weight, offset, "silu", conv_state_indices=SLOTS, intermediate_conv_window=windows,
        intermediate_state_indices=PLACES, retrieve_next_token=children, retrieve_next_sibling=siblings,
        retrieve_parent_token=parents,
    )  # fmt: skip
    for request, slot in enumerate(SLOTS.tolist()):
        for row in range(N):
            path = path_to(row, (TREE if branch else CHAIN)[request])
            inputs = torch.cat([before[slot], x[request][:, path]], 1)
            y = torch.nn.functional.conv1d(inputs[None], weight[:, None], offset, groups=CHANNELS)[0, :, -1]
            assert_close(out[request, :, row], torch.nn.functional.silu(y))
            assert_close(windows[request, row], inputs[:, -(WIDTH - 1) :])
    assert torch.equal(states, before)
    assert (windows[2] == 9).all()
    if parents is not None:
        assert parents[:, 1:].tolist() == TREE


def test_a_decode_step_is_left_to_sglangs_operator():
    given = {}

    def operator(*args, **kwargs):
        given.update(kwargs)
        return args[0]

    assert verify.convolve(operator, 1, 2, 3, None, "silu", conv_state_indices=SLOTS) == 1
    assert given == {"conv_state_indices": SLOTS}


@BRANCHING
def test_the_state_after_each_row_is_that_of_its_path(rng, branch):
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    q, k, v = draw(1, 2 * N, HEADS, KEY), draw(1, 2 * N, HEADS, KEY), draw(1, 2 * N, VALUE_HEADS, VALUE)
    a, b, decay, bias = draw(2 * N, VALUE_HEADS), draw(2 * N, VALUE_HEADS), draw(VALUE_HEADS), draw(VALUE_HEADS)
    pool, after = draw(6, VALUE_HEADS, VALUE, KEY), torch.full((3, N, VALUE_HEADS, VALUE, KEY), 9.0)
    before = pool.clone()
    parents = verify.parents_of(CHILDREN, SIBLINGS, 2, N) if branch else None
    out = ops.fused_sigmoid_gating_delta_rule_update_cpu(
        decay, bias, q, k, v, a, b, pool, SLOTS, torch.tensor([0, N, 2 * N]), True, 1.0, 20.0,
        disable_state_update=True, intermediate_states_buffer=after, intermediate_state_indices=PLACES,
        cache_steps=N, retrieve_parent_token=parents,
    )  # fmt: skip
    assert torch.equal(pool, before)
    g, beta = ops.fused_gdn_gating_cpu(decay, a, b, bias)
    for request, slot in enumerate(SLOTS.tolist()):
        for row in range(N):
            path = [request * N + each for each in path_to(row, (TREE if branch else CHAIN)[request])]
            own, ends = before[slot][None].clone(), torch.tensor([0, len(path)])
            prefilled, _ = ops.chunk_gated_delta_rule_cpu(
                *(each[:, path] for each in (q, k, v, g, beta)), own, True, ends, False, True, torch.tensor([0])
            )
            assert_close(out[0, request * N + row], prefilled[0, -1])
            assert_close(after[request, row], own[0])
    assert (after[2] == 9).all()


@pytest.mark.parametrize("tracked", [False, True])
def test_a_request_gets_the_state_after_its_last_accepted_row(tracked):
    after = torch.arange(2.0 * 3 * N).view(2, 3, N, 1, 1, 1)
    windows = [-after.view(2, 3, N, 1, 1)]
    states = SimpleNamespace(
        temporal=torch.full((2, 6, 1, 1, 1), 99.0),
        conv=[torch.full((2, 6, 1, 1), 99.0)],
        intermediate_ssm=after,
        intermediate_conv_window=windows,
    )
    slots, steps = (torch.tensor([2, 5]), torch.tensor([-1, 1])) if tracked else (None, None)
    verify.accept_states(states, SLOTS, torch.tensor([3, 0]), slots, steps)
    expected = torch.full((2, 6), 99.0)
    for layer in range(2):
        expected[layer, 4], expected[layer, 0] = after[layer, 0, 3].item(), after[layer, 1, 0].item()
        if tracked:
            expected[layer, 5] = after[layer, 1, 1].item()
    assert torch.equal(states.temporal.flatten(1), expected)
    assert torch.equal(states.conv[0].flatten(1), torch.where(expected == 99, expected, -expected))
