"""The query ring: its share of SGLang's memory budget, and which queries a step stores."""

from types import SimpleNamespace

import pytest
import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.seams import capture, settings


def configurator(config, device="cuda", draft=False):
    arguments = SimpleNamespace()
    settings.attach(arguments, config)
    return SimpleNamespace(server_args=arguments, device=device, is_draft_worker=draft)


@pytest.mark.parametrize(
    ("given", "left"),
    [
        (configurator(RPCConfig()), 990_000),
        (configurator(None), None),  # SGLang's own number
        (configurator(RPCConfig(), device="cpu"), None),
        (configurator(RPCConfig(), draft=True), None),
    ],
    ids=["rpc", "off", "cpu", "draft"],
)
def test_the_ring_comes_out_of_the_pools_memory(given, left):
    assert capture.leave_room(1_000_000, given, 80) == left


def test_the_ring_takes_no_more_than_was_left_for_it():
    # What was left is 1 % of the budget; the ring is sized as 1 % of the pool that the rest of the budget became.
    available = 10**9
    pool_bytes = capture.leave_room(available, configurator(RPCConfig()))
    assert capture.POOL_SHARE * pool_bytes <= available - pool_bytes


def decode_step(rows, positions):
    return SimpleNamespace(
        forward_mode=SimpleNamespace(is_decode=lambda: True),
        req_pool_indices=torch.tensor(rows),
        positions=torch.tensor(positions),
    )


def test_an_eager_step_stores_only_while_somebody_records():
    ring = QueryRing(layers=2, slots=2, rows=4, window=4, heads=2, head_dim=3, dtype=torch.float32, device="cpu")
    hooks = [capture._Capture(ring, layer) for layer in range(2)]
    queries = torch.randn(2, 6)
    step = decode_step([2, 3], [9, 14])
    for hook in hooks:
        hook(None, (queries, None, None, step), {})
    assert not ring.buffer.any() and not hasattr(step, "rpc_where")

    slot = ring.acquire(3)
    for hook in hooks:
        hook(None, (), {"q": queries, "forward_batch": step})
    for layer in range(2):
        assert torch.equal(ring.buffer[layer, slot, 14 % 4], queries[1].view(2, 3))
        others = ring.buffer[layer, slot].clone()
        others[14 % 4] = 0
        assert not others.any() and not ring.buffer[layer, [s for s in (1, 2) if s != slot]].any()


def test_of_an_extend_only_the_rows_of_one_token_are_stored_once():
    ring = QueryRing(layers=1, slots=2, rows=4, window=4, heads=1, head_dim=2, dtype=torch.float32, device="cpu")
    slot = ring.acquire(1)
    extend = SimpleNamespace(forward_mode=SimpleNamespace(is_decode=lambda: False))
    queries = torch.arange(10.0).view(5, 2)
    ring.extend_step = torch.tensor([4]), ring.where(torch.tensor([1]), torch.tensor([6]))
    hook = capture._Capture(ring, 0)
    hook(None, (queries, None, None, extend), {})
    assert torch.equal(ring.buffer[0, slot, 2, 0], queries[4]) and ring.extend_step is None
    before = ring.buffer.clone()
    hook(None, (queries + 1, None, None, extend), {})
    assert torch.equal(ring.buffer, before)
