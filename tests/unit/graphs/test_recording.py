"""Queries are recorded by graphs that are captured once and replayed for whatever rows come."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
import torch

from sglang_rpc.hooks import capture
from sglang_rpc.hooks.positions import make_logical
from sglang_rpc.memory import triton_ring
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.startup import cpu
from tests.unit.graphs import broken, kernel, stand_in
from tests.unit.graphs.memory import Freed
from tests.unit.graphs.stand_in import NotInCapture

if TYPE_CHECKING:
    from tests.unit.graphs.served import Served

#: Requests at once: more than the largest graph takes.
REQUESTS, SLOTS, WINDOW = 11, 3, 4


@pytest.fixture(scope="module")
def server_args(goldens):
    if not cpu.prepare():
        pytest.skip("an accelerator is there; tests/kernels/test_ring.py captures with its own graphs")
    from tests.unit.graphs.runner import arguments

    return arguments(str(goldens / "gqa_all_p64"))


@pytest.fixture
def serving(server_args, monkeypatch):
    """Opens a server with captured graphs. Parts of RPC may be broken."""
    from tests.unit.graphs import small_model
    from tests.unit.graphs.runner import Runner
    from tests.unit.graphs.served import Served

    @contextlib.contextmanager
    def opened(
        *,
        latent: bool = False,
        on_gpu: bool = False,
        hook: type = capture.Capture,
        ring_class: type = QueryRing,
        logical: Callable = make_logical,
    ) -> Iterator[Served]:
        device = stand_in.install(monkeypatch)
        monkeypatch.setattr(triton_ring, "_store_kernel", kernel.Launched(device, kernel.store))
        model = small_model.SmallModel(latent)
        shape = dict(layers=small_model.LAYERS, window=WINDOW, heads=small_model.HEADS, head_dim=model.head_dim)
        ring = ring_class(slots=SLOTS, rows=REQUESTS + 1, dtype=torch.float32, device="cpu", **shape)
        if on_gpu:
            ring._kernel = triton_ring.store
        capture.record_queries(ring, list(model.attention), hook)
        with Runner(server_args, model, device, REQUESTS) as runner:
            assert not ring.buffer[:, 1:].any()  # a capture and its warm-ups write nothing but the dummy slot
            yield Served(runner, model, ring, REQUESTS, logical)

    return opened


@pytest.mark.parametrize("on_gpu", [False, True], ids=["index_put", "kernel"])
@pytest.mark.parametrize("latent", [False, True], ids=["heads", "latent"])
def test_the_ring_holds_every_recorded_query(serving, latent, on_gpu):
    with serving(latent=latent, on_gpu=on_gpu) as served:
        served.play(176)
        assert set(served.runner.graph_steps) == set(range(1, served.runner.graphs.max_bs + 1))
        assert len(served.seen) == 11
        assert min(served.seen.values()) > 1, served.seen
        assert 0 not in served.owners  # what padding points at
        assert not (on_gpu and served.ring.buffer[:, 0].any())  # rows without a slot write nothing


BROKEN = {
    "writes in no warm-up": (dict(hook=broken.InNoWarmUp), NotInCapture),
    "writes in no capture": (dict(hook=broken.InNoCapture), AssertionError),
    "decides on the host whether to write": (dict(hook=broken.OnlyWhileRecording), AssertionError),
    "layers after the first read what a warm-up allocated": (dict(hook=broken.WhereOfAWarmUp), Freed),
    "where is kept, by batch size": (dict(ring_class=broken.CachedWhere), AssertionError),
    "the table is replaced": (dict(ring_class=broken.ReplacedTable), Freed),
    "the table is replaced, and the old one kept": (dict(ring_class=broken.KeptTable), AssertionError),
    "reads a tensor of each step's own": (dict(ring_class=broken.OwnPositions, logical=broken.own_positions), Freed),
    "positions are physical": (dict(logical=broken.physical), AssertionError),
    "the hook counts physically": (dict(hook=broken.PhysicalHook), AssertionError),
    "padding owns a row": (dict(ring_class=broken.RowsFromOne), AssertionError),
    "waits: a branch on data": (dict(ring_class=broken.BranchOnData), NotInCapture),
    "waits: copies to the host": (dict(ring_class=broken.CopiesToTheHost), NotInCapture),
    "waits: a mask": (dict(ring_class=broken.Masked), NotInCapture),
    "copies from the host": (dict(ring_class=broken.FromTheHost), NotInCapture),
    "reads the host's memory": (dict(hook=broken.HostLengths), NotInCapture),
}


@pytest.mark.parametrize(("parts", "error"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_seen(serving, parts, error):
    with pytest.raises(error), serving(on_gpu=True, **parts) as served:
        served.play(88)


def test_padding_that_is_left_as_it_was_is_seen(serving):
    from sglang.srt.model_executor.cuda_graph_buffer_registry import PaddingPolicy

    with serving(on_gpu=True) as served:
        served.runner.graphs.buffer_registry.get_slot("req_pool_indices").padding_policy = PaddingPolicy.KEEP_PAD
        with pytest.raises(AssertionError):
            served.play(88)
