"""The query ring: its share of SGLang's memory budget, and which queries a step stores."""

import enum
from types import SimpleNamespace

import pytest
import torch

from sglang_rpc.backends.base import SCRATCH_BYTES
from sglang_rpc.config import RPCConfig
from sglang_rpc.contract import settings
from sglang_rpc.hooks import capture, query_slots
from sglang_rpc.hooks.step import SingleRows
from sglang_rpc.memory.query_ring import QueryRing


def configurator(config, device="cuda", draft=False):
    arguments = SimpleNamespace()
    settings.attach(arguments, config)
    return SimpleNamespace(
        server_args=arguments, device=device, is_draft_worker=draft, model=None, model_dtype=torch.bfloat16
    )


@pytest.fixture(autouse=True)
def two_layers(monkeypatch):
    layer = SimpleNamespace(tp_q_head_num=3, qk_head_dim=5)
    monkeypatch.setattr(query_slots, "decoder_layers", lambda model: [layer, layer])


AVAILABLE = 10**10


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (configurator(RPCConfig()), AVAILABLE // 100 + SCRATCH_BYTES),
        (configurator(RPCConfig(query_slots=7, window=4)), 8 * (2 * 4 * 3 * 5 * 2) + SCRATCH_BYTES),
    ],
    ids=["1 %", "as many slots as asked for, and the bin"],
)
def test_what_rpc_takes_comes_out_of_the_pools_memory(given, taken):
    assert query_slots.leave_room(AVAILABLE, given, 80) == AVAILABLE - taken


@pytest.mark.parametrize(
    "given",
    [configurator(None), configurator(RPCConfig(), device="cpu"), configurator(RPCConfig(), draft=True)],
    ids=["off", "cpu", "draft"],
)
def test_elsewhere_the_pool_is_as_large_as_sglangs(given):
    assert query_slots.leave_room(AVAILABLE, given, 80) is None


@pytest.mark.parametrize("slot_bytes", [10, 999_999, 10**6, 10**7])
def test_the_ring_with_its_bin_takes_no_more_than_its_share(slot_bytes):
    # 1 % of the pool, not of the budget; and at least one slot, however small the pool is.
    pool_bytes = 10**8
    buffers = SimpleNamespace(k_buffer=[SimpleNamespace(nbytes=pool_bytes)], v_buffer=[])
    runner = SimpleNamespace(device="cuda", token_to_kv_pool_allocator=SimpleNamespace(get_kvcache=lambda: buffers))
    slots = query_slots.count_slots(RPCConfig(), runner, 10**9, slot_bytes)
    assert slots == 1 or (slots + 1) * slot_bytes <= pool_bytes // 100 < (slots + 2) * slot_bytes


def decode_step(rows, positions):
    return SimpleNamespace(
        forward_mode=SimpleNamespace(is_decode=lambda: True),
        req_pool_indices=torch.tensor(rows),
        positions=torch.tensor(positions),
    )


def test_an_eager_step_stores_only_while_somebody_records():
    ring = QueryRing(layers=2, slots=2, rows=4, window=4, heads=2, head_dim=3, dtype=torch.float32, device="cpu")
    hooks = [capture.Capture(ring, layer) for layer in range(2)]
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


def extend_step(ring, tokens, row, position):
    """An extend step in which the single row of `row` decodes."""
    where = None if ring is None else ring.where(torch.tensor([row]), torch.tensor([position]))
    none = torch.empty(0)
    rows = SingleRows(tokens=torch.tensor(tokens), rows=none, logical_lengths=none, where=where)
    return SimpleNamespace(forward_mode=SimpleNamespace(is_decode=lambda: False), rpc=rows)


def test_of_an_extend_only_the_rows_of_one_token_are_stored():
    ring = QueryRing(layers=1, slots=2, rows=4, window=4, heads=1, head_dim=2, dtype=torch.float32, device="cpu")
    slot = ring.acquire(1)
    queries = torch.arange(10.0).view(5, 2)
    hook = capture.Capture(ring, 0)
    hook(None, (queries, None, None, extend_step(ring, [4], 1, 6)), {})
    assert torch.equal(ring.buffer[0, slot, 2, 0], queries[4])
    before = ring.buffer.clone()
    hook(None, (queries + 1, None, None, extend_step(None, [4], 1, 6)), {})  # nobody records
    prefill = SimpleNamespace(forward_mode=SimpleNamespace(is_decode=lambda: False), rpc=None)
    hook(None, (queries + 1, None, None, prefill), {})
    assert torch.equal(ring.buffer, before)


def test_absorbed_and_roped_queries_make_one_entry():
    ring = QueryRing(layers=1, slots=1, rows=3, window=4, heads=2, head_dim=7, dtype=torch.float32, device="cpu")
    slot = ring.acquire(1)
    # As the absorbing product leaves them: heads outermost in memory.
    absorbed, roped = torch.randn(2, 2, 5).transpose(0, 1), torch.randn(2, 2, 2)
    hook = capture.Capture(ring, 0)
    hook(None, (absorbed, None, None, decode_step([2, 1], [8, 3])), {"q_rope": roped})
    assert torch.equal(ring.buffer[0, slot, 3], torch.cat([absorbed, roped], -1)[1])

    hook(None, (absorbed, None, None, extend_step(ring, [0], 1, 4)), {"q_rope": roped})
    assert torch.equal(ring.buffer[0, slot, 0], torch.cat([absorbed, roped], -1)[0])


class Method(enum.Enum):
    MHA = 1
    MHA_ONE_SHOT = 2
    MLA = 3
    MLA_FUSED_ROPE_CPU = 4


STEPS = {
    "no single rows": (SimpleNamespace(rpc=None), False),
    "single rows, nothing recorded": (SimpleNamespace(rpc=SimpleNamespace(where=None)), False),
    "rows to record": (SimpleNamespace(rpc=SimpleNamespace(where=(0, 0))), True),
    "made for a capture": (SimpleNamespace(), False),
}


@pytest.mark.parametrize(("step", "recording"), STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("method", Method)
def test_latents_are_not_expanded_in_a_step_with_rows_to_record(step, recording, method):
    attention = SimpleNamespace(current_attention_backend="fa3")
    absorbed = Method.MLA if method.name.startswith("MHA") else method
    assert capture.absorb(lambda *_: method, attention, step) is (absorbed if recording else method)
    attention.current_attention_backend = "torch_native"
    assert capture.absorb(lambda *_: method, attention, step) is absorbed


@pytest.mark.parametrize(("step", "recording"), STEPS.values(), ids=STEPS)
def test_a_prefill_with_rows_to_record_replays_no_graph(step, recording):
    def asked(model):
        return capture.eager_while_recording(lambda *_: True, SimpleNamespace(model_runner=model), step)

    assert asked(SimpleNamespace(rpc=SimpleNamespace(every_step=False))) is not recording
    assert asked(SimpleNamespace(rpc=SimpleNamespace(every_step=True))) is False
    assert asked(SimpleNamespace()) is True
