"""The query ring's write, against indexing."""

from __future__ import annotations

import pytest
import torch

from sglang_rpc.memory.triton_ring import store
from tests.kernels.cases import DEVICE


@pytest.mark.parametrize(("heads", "dim"), [(1, 1), (4, 64), (7, 40), (28, 128), (16, 576)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_equal_to_indexing(heads, dim, dtype):
    made = torch.Generator().manual_seed(heads)
    queries = torch.randn(6, heads, dim, generator=made).to(dtype).to(DEVICE)
    check(queries, torch.randn(5, 3, heads, dim, generator=made).to(dtype).to(DEVICE))


def test_queries_that_are_a_part_of_a_wider_tensor():
    qkv = torch.randn(6, 8 * 32, device=DEVICE)
    check(qkv[:, : 4 * 32].view(6, 4, 32), torch.zeros(5, 3, 4, 32, device=DEVICE))
    check(qkv.view(6, 8, 32)[:, ::2], torch.zeros(5, 3, 4, 32, device=DEVICE))


def test_another_dtype_is_converted():
    check(torch.randn(6, 4, 32, device=DEVICE), torch.zeros(5, 3, 4, 32, dtype=torch.float16, device=DEVICE))


def test_a_part_of_each_head_leaves_the_rest():
    whole = torch.zeros(5, 3, 16, 48, device=DEVICE)
    absorbed = torch.randn(16, 6, 32, device=DEVICE).transpose(0, 1)
    check(absorbed, whole[..., :32])
    check(torch.randn(6, 16, 16, device=DEVICE), whole[..., 32:])


def check(queries: torch.Tensor, ring: torch.Tensor) -> None:
    slots = torch.tensor([0, 3, 0, 1, 4, 0], device=DEVICE)
    entries = torch.tensor([1, 2, 2, 0, 1, 0], device=DEVICE)
    expected = ring.clone()
    own = slots > 0
    expected[slots[own], entries[own]] = queries[own].to(ring.dtype)
    store(ring, slots, entries, queries)
    assert torch.equal(ring, expected)  # the bin too: rows without a slot write nothing
