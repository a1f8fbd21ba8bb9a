"""The query ring's write, against indexing."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch

from sglang_rpc.memory import triton_ring
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.memory.triton_ring import store
from tests.kernels.cases import DEVICE
from tests.kernels.conftest import INTERPRETED
from tests.unit.graphs import stand_in
from tests.unit.graphs.kernel import Launched


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


@pytest.fixture
def captured(monkeypatch):
    """Captures a function in a CUDA graph, or in the stand-in for one, and returns the replay."""
    device = None
    if INTERPRETED:
        device = stand_in.install(monkeypatch)
        kernel = triton_ring._store_kernel
        launched = Launched(device, lambda grid, **arguments: kernel[grid](**arguments))
        monkeypatch.setattr(triton_ring, "_store_kernel", launched)

    def capture(work: Callable[[], None]) -> Callable[[], None]:
        with nullcontext() if device is None else device.warming_up():
            work()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay

    return capture


@pytest.mark.parametrize("latent", [False, True], ids=["heads", "latent"])
def test_a_captured_write_serves_whatever_rows_come(captured, latent):
    layers, batch, heads, window, dim = 2, 4, 3, 4, 64
    shape = dict(layers=layers, window=window, heads=heads, head_dim=dim, dtype=torch.float32, device=DEVICE)
    ring = QueryRing(slots=3, rows=8, **shape)
    ring._kernel = store
    rows, positions = torch.zeros(2, batch, dtype=torch.int64, device=DEVICE)
    queries = torch.zeros(layers, batch, heads * dim, device=DEVICE)

    def parts(of_layer: torch.Tensor) -> list[torch.Tensor]:
        return list(of_layer.view(batch, heads, dim).split([48, 16], -1)) if latent else [of_layer]

    def step() -> None:
        where = ring.where(rows, positions)
        for layer in range(layers):
            ring.store(layer, where, *parts(queries[layer]))

    replay = captured(step)
    made, expected, slots = random.Random(1), ring.buffer.clone(), {}
    for _ in range(40):
        for row in made.sample(range(1, 8), 2):
            if row in slots:
                ring.release(slots.pop(row))
            elif ring.free:
                slots[row] = ring.acquire(row)
        own = made.sample(range(1, 8), made.randint(1, batch))
        at = [made.randrange(100) for _ in own]
        padding = [0] * (batch - len(own))
        rows.copy_(torch.tensor(own + padding))
        positions.copy_(torch.tensor(at + padding))
        queries.copy_(torch.randn(queries.shape))
        replay()
        for index, (row, position) in enumerate(zip(own, at, strict=True)):
            if row in slots:
                expected[:, slots[row], position % window] = queries[:, index].view(layers, heads, dim)
        assert torch.equal(ring.buffer, expected)


def check(queries: torch.Tensor, ring: torch.Tensor) -> None:
    slots = torch.tensor([0, 3, 0, 1, 4, 0], device=DEVICE)
    entries = torch.tensor([1, 2, 2, 0, 1, 0], device=DEVICE)
    expected = ring.clone()
    own = slots > 0
    expected[slots[own], entries[own]] = queries[own].to(ring.dtype)
    store(ring, slots, entries, queries)
    assert torch.equal(ring, expected)  # the dummy slot too: rows without a slot write nothing
