"""How many query slots a server has, and the query ring's share of SGLang's memory budget."""

import logging

import pytest
import torch

from sglang_rpc.backends.base import SCRATCH_BYTES
from sglang_rpc.config import RPCConfig
from sglang_rpc.errors import ConfigError
from sglang_rpc.hooks import query_slots
from sglang_rpc.hooks.query_slots import QuerySlots, count_slots
from tests.fakes.models import AttentionLayer, KVCacheConfigurator, server_args

AVAILABLE = 10**10  #: bytes, of 10**7 tokens
SLOT = 2 * 32 * 3 * 5 * 2  #: bytes: layers, window, heads, head size, bfloat16


@pytest.fixture(autouse=True)
def two_layers(monkeypatch):
    layer = AttentionLayer(tp_q_head_num=3, qk_head_dim=5)
    monkeypatch.setattr(query_slots, "decoder_layers", lambda model: [layer, layer])


def configurator(config: RPCConfig | None, device="cuda", draft=False, requests=None) -> KVCacheConfigurator:
    return KVCacheConfigurator(server_args(config), device, draft, requests=requests)


@pytest.mark.parametrize(
    ("given", "slots"),
    [
        (configurator(RPCConfig()), 10**7 // 4096),
        (configurator(RPCConfig(interval=512)), 4096),
        (configurator(RPCConfig(query_slots=10**5)), 4096),
        (configurator(RPCConfig(interval=512), requests=9000), 9000),
        (configurator(RPCConfig(interval=512), requests=300), 300),
        (configurator(RPCConfig(query_slots=7)), 7),
        (configurator(RPCConfig(query_slots=700), requests=300), 300),
    ],
    ids=[
        "every interval in the pool",
        "no more than SGLang runs",
        "nor if asked for",
        "more where it runs more",
        "every request",
        "as many as asked for",
        "no more than requests",
    ],
)
@pytest.mark.parametrize(("device", "scratch"), [("cuda", SCRATCH_BYTES), ("cpu", 0)])
def test_the_ring_and_the_dummy_slot_come_out_of_the_pools_memory(given, slots, device, scratch):
    given.device = device
    assert query_slots.leave_room(AVAILABLE, given, 80) == AVAILABLE - (slots + 1) * SLOT - scratch


@pytest.mark.parametrize("given", [configurator(None), configurator(RPCConfig(), draft=True)], ids=["off", "draft"])
def test_elsewhere_the_pool_is_as_large_as_sglangs(given):
    assert query_slots.leave_room(AVAILABLE, given, 80) is None


def test_a_ring_that_is_too_large_is_cut_to_a_tenth_of_the_pool():
    given = configurator(RPCConfig(interval=2, ratio=1.5), requests=10**6)
    left = query_slots.leave_room(AVAILABLE, given, 80) + SCRATCH_BYTES
    assert AVAILABLE * 0.9 <= left < AVAILABLE * 0.9 + SLOT


@pytest.mark.parametrize("token_bytes", [700, 1000, 57_344])
@pytest.mark.parametrize("interval", [2, 64, 4096])
@pytest.mark.parametrize("requests", [None, 40])
def test_the_ring_never_outgrows_the_room_that_was_left_for_it(token_bytes, interval, requests):
    config = RPCConfig(interval=interval, ratio=1.5)
    given = configurator(config, device="cpu", requests=requests)
    given.token_bytes = token_bytes
    left = query_slots.leave_room(AVAILABLE, given, 80)
    tokens = left // token_bytes
    ring = (count_slots(config, tokens, min(requests or 4096, tokens // 2), SLOT, left).slots + 1) * SLOT
    assert 0.9 * (AVAILABLE - left) - SLOT <= ring <= AVAILABLE - left


# A 7B model's slot and token (28 layers, 28 query and 4 KV heads of 128, bfloat16), and its pool.
SLOT_7B, TOKEN_7B = 28 * 32 * 28 * 128 * 2, 28 * 2 * 4 * 128 * 2


@pytest.mark.parametrize(
    ("config", "tokens", "rows", "expected"),
    [
        (RPCConfig(), 100_000, 2048, QuerySlots(24, 24, 0)),
        (RPCConfig(interval=1024), 100_000, 2048, QuerySlots(88, 97, 33)),
        (RPCConfig(interval=1024), 526_000, 256, QuerySlots(256, 256, 0)),
        (RPCConfig(interval=512), 100_000, 2048, QuerySlots(88, 195, 2 * 33)),
        (RPCConfig(interval=1024, query_slots=8), 526_000, 128, QuerySlots(8, 128, 15 * 33)),
        (RPCConfig(interval=1024, query_slots=500), 526_000, 128, QuerySlots(128, 128, 0)),
        (RPCConfig(policy="lightthinker", gist_tokens=(1,)), 526_000, 128, QuerySlots(1, 0, 0)),
    ],
    ids=lambda value: None,
)
def test_a_7b_models_slots(config, tokens, rows, expected):
    assert count_slots(config, tokens, rows, SLOT_7B, tokens * TOKEN_7B) == expected


def test_the_log_says_whether_there_are_enough():
    assert QuerySlots(24, 24, 0).sentence == "enough for all requests that can be due together"
    short = QuerySlots(8, 128, 495).sentence
    assert short.startswith("128 requests can be due together: the last would be compressed 495 steps late")
    assert "--rpc-query-slots" in short


def test_slots_are_counted_in_the_queries_own_dtype():
    shape = query_slots.ring_shape(RPCConfig(), [AttentionLayer(tp_q_head_num=3, qk_head_dim=5)] * 2, torch.bfloat16)
    assert query_slots.QueryRing.slot_bytes(**shape) == SLOT


def test_more_slots_than_there_is_memory_for_are_refused_with_the_most_that_fit():
    most = 5 * 10**6 // SLOT - 1
    given = configurator(RPCConfig(query_slots=most), device="cpu")
    given.token_bytes = 100
    assert query_slots.leave_room(10**7, given, 80) == 10**7 - (most + 1) * SLOT
    given = configurator(RPCConfig(query_slots=most + 1), device="cpu")
    given.token_bytes = 100
    with pytest.raises(ConfigError, match=f"query_slots {most + 1} take .* name at most {most}, or none"):
        query_slots.leave_room.__wrapped__(10**7, given, 80)


def test_of_window_layers_no_query_is_recorded(monkeypatch):
    layer, window = AttentionLayer(tp_q_head_num=3, qk_head_dim=5), AttentionLayer(sliding_window_size=100)
    monkeypatch.setattr(query_slots, "decoder_layers", lambda model: [window, layer, window, layer, window])
    left = query_slots.leave_room(AVAILABLE, configurator(RPCConfig(query_slots=7)), 80)
    assert left == AVAILABLE - 8 * SLOT - SCRATCH_BYTES
    monkeypatch.setattr(query_slots, "decoder_layers", lambda model: [window])  # refused later, with a sentence
    assert query_slots.leave_room(AVAILABLE, configurator(RPCConfig()), 80) is None


class Counts(KVCacheConfigurator):
    """Each of its answers is a collective of a pipeline's stages."""

    asked = 0

    def config_from_budget(self, budget_bytes):
        self.asked += 1
        return super().config_from_budget(budget_bytes)


@pytest.mark.parametrize("windows", [[], [100], [100, -1]], ids=["none", "windows", "both"])
def test_every_stage_of_a_pipeline_asks_how_many_tokens_fit(monkeypatch, windows):
    layers = [AttentionLayer(tp_q_head_num=3, qk_head_dim=5, sliding_window_size=window) for window in windows]
    monkeypatch.setattr(query_slots, "decoder_layers", lambda model: layers)
    given = Counts(server_args(RPCConfig()))
    query_slots.leave_room(AVAILABLE, given, 80)
    assert given.asked == 1


def test_with_another_ranks_slots_who_is_due_may_wait():
    own = QuerySlots(256, 256, 0)
    assert own.lowered(256, 32) == own
    assert own.lowered(128, 32) == QuerySlots(128, 256, 33)


class Warns(KVCacheConfigurator):
    """Warns where SGLang does: through its own logger, and through the root's."""

    def config_from_budget(self, budget_bytes):
        logging.warning("max_total_tokens is larger than the profiled value")
        return super().config_from_budget(budget_bytes)

    def resolve_max_num_reqs(self, token_capacity):
        logging.getLogger("sglang.srt.mem_cache").warning("max_running_requests was reduced")
        if self.requests == 0:
            raise RuntimeError
        return super().resolve_max_num_reqs(token_capacity)


@pytest.mark.parametrize("requests", [None, 0])
def test_sglangs_warnings_of_the_pools_size_are_left_to_sglang(caplog, requests):
    given = Warns(server_args(RPCConfig()), "cpu", requests=requests)
    if requests is None:
        query_slots.leave_room(AVAILABLE, given, 80)
    else:
        with pytest.raises(RuntimeError):
            query_slots.leave_room(AVAILABLE, given, 80)
    assert not caplog.records
    given.config_from_budget(AVAILABLE)  # SGLang's own question
    assert len(caplog.records) == 1
