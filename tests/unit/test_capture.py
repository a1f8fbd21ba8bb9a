"""The query ring's share of SGLang's memory budget."""

from types import SimpleNamespace

import pytest

from sglang_rpc.config import RPCConfig
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
