"""A draft's own queries: of which steps, where, for how many bytes, and what of them a backup has."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.refusals.facts import DEEPSEEK
from sglang_rpc.errors import UnsupportedError
from sglang_rpc.hooks import capture, draft_queries, query_slots
from sglang_rpc.memory.host_backup import HostBackup
from sglang_rpc.memory.query_ring import DraftQueries, QueryRing
from sglang_rpc.types import KVLayer
from tests.fakes.batches import ForwardBatch, ForwardMode
from tests.fakes.memory import ReqToTokenPool
from tests.fakes.models import AttentionLayer, KVCacheConfigurator, ModelConfig, ModelRunner, SpecAuxConfig, server_args

DRAFTS = 4
OWN = dict(layers=3, heads=2, head_dim=5, dtype=torch.float32)


def ring(window: int = 4, slots: int = 2) -> QueryRing:
    made = QueryRing(layers=1, heads=1, head_dim=1, dtype=torch.float32, slots=slots, rows=4, window=window,
                     device="cpu", drafts=DRAFTS)  # fmt: skip
    DraftQueries(made, **OWN)
    return made


def step(mode: ForwardMode, length: int, row: int = 3) -> ForwardBatch:
    """Of `row`, and of a row of padding."""
    positions = torch.arange(length, length + DRAFTS)
    return ForwardBatch(mode, torch.tensor([row, 0]), torch.cat([positions, positions * 0]))


def run(made: QueryRing, batch: ForwardBatch, accepted: int = DRAFTS, graph: bool = False) -> None:
    """A query is its position; of a row that was not accepted, -1."""
    of_row = torch.where(torch.arange(DRAFTS) < accepted, batch.positions[:DRAFTS].float(), -1.0)
    queries = torch.cat([of_row, of_row * 0])[:, None].expand(-1, 10)
    for layer in range(3):
        capture.DraftCapture(made.draft, layer, lambda: graph)(None, (queries + layer, None, None, batch), {})


@given(st.integers(1, 9), st.integers(0, 50), st.data())
def test_its_window_is_of_accepted_tokens_and_so_is_the_query_before(window, prompt, data):
    made, length = ring(window), prompt
    slot = made.acquire(3)
    while length < prompt + 3 * window + 3:
        accepted = data.draw(st.integers(1, DRAFTS))
        run(made, step(ForwardMode.DRAFT_EXTEND_V2, length), accepted)
        length += accepted
        for end in (length, length - 1):  # with its newest entry, and without
            if end - window >= prompt:
                last = made.draft.last(slot, end, window)
                for layer in range(3):
                    wanted = torch.arange(end - window, end).float() + layer
                    assert torch.equal(last[layer], wanted[:, None, None].expand(-1, 2, 5))


@pytest.mark.parametrize("mode", [ForwardMode.DECODE, ForwardMode.TARGET_VERIFY, ForwardMode.EXTEND])
def test_tokens_that_nobody_has_accepted_are_not_recorded(mode):
    made = ring()
    made.acquire(3)
    run(made, step(mode, 7))
    assert not made.draft.buffer.any()


@pytest.mark.parametrize("graph", [False, True])
def test_a_graph_stores_though_nobody_records(graph):
    made = ring()
    run(made, step(ForwardMode.DRAFT_EXTEND_V2, 7), graph=graph)
    assert bool(made.draft.buffer[:, 0].any()) is graph
    assert not made.draft.buffer[:, 1:].any()


def test_its_model_records_no_step_of_it():
    made = ring()
    made.acquire(3)
    hook = capture.Capture(made, 0, lambda: False)
    hook(None, (torch.ones(2 * DRAFTS, 1), None, None, step(ForwardMode.DRAFT_EXTEND_V2, 7)), {})
    assert not made.buffer.any()


def test_a_backup_has_the_drafts_queries_too():
    made = ring()
    made.buffer.normal_()
    made.draft.buffer.normal_()
    wanted = [held.clone() for held in made.of(1)]
    assert [held.shape for held in wanted] == [(1, 8, 1, 1), (3, 8, 2, 5)]
    layer = KVLayer(torch.zeros(20, 1, 2), torch.zeros(20, 1, 2), torch.float32, 1.0)
    backups = HostBackup([layer], 10**6, chunk_bytes=4096)
    backup = backups.save(torch.arange(10), 4, "key", made.of(1))
    for held in made.of(1):
        held.zero_()
    backups.load_queries(backup, made.of(2))
    assert all(map(torch.equal, made.of(2), wanted))
    assert not any(held.any() for held in made.of(1))


def test_a_slot_has_room_for_both(monkeypatch):
    """By the draft's configuration: its pool is made after the model's."""
    monkeypatch.setattr(query_slots.ranks, "tensor_parallel_group", lambda: None)
    monkeypatch.setattr(query_slots, "drafts_of", lambda args: DRAFTS)
    monkeypatch.setattr(query_slots, "decoder_layers", lambda model: [AttentionLayer()])
    config = RPCConfig(window=4, query_slots=2)
    draft = SpecAuxConfig(3, ModelConfig(num_attention_heads=2, head_dim=5))
    asked = KVCacheConfigurator(server_args(config), "cpu", model_dtype=torch.float32, spec_aux_config=draft)
    left = query_slots.leave_room(10**8, asked, 80)
    made = ring()
    assert 10**8 - left == made.nbytes == made.buffer.nbytes + made.draft.buffer.nbytes
    latent = ModelConfig(
        SimpleNamespace(name="MLA"), num_attention_heads=2, head_dim=9, kv_lora_rank=3, qk_rope_head_dim=2
    )
    asked.spec_aux_config = SpecAuxConfig(3, latent)  # whose absorbed queries have a size of their own
    assert 10**8 - query_slots.leave_room(10**8, asked, 80) == made.nbytes
    asked.spec_aux_config = SpecAuxConfig()  # drafts come from no model
    assert query_slots.leave_room(10**8, asked, 80) - left == made.draft.buffer.nbytes


class MHATokenToKVPool:
    def __init__(self, layers: int):
        self.k_buffer = [torch.zeros(9, 1, 5) for _ in range(layers)]
        self.v_buffer = [torch.zeros(9, 1, 5) for _ in range(layers)]
        self.dtype, self.start_layer, self.kv_cache_layout = torch.float32, 0, "nhd"


class HybridLinearKVPool:
    def __init__(self, number: dict[int, int]):
        self.full_kv_pool, self.full_attention_layer_id_mapping = MHATokenToKVPool(2), number


class Layer(AttentionLayer, torch.nn.Module):
    def __init__(self, **fields):
        torch.nn.Module.__init__(self)
        AttentionLayer.__init__(self, **fields)

    __hash__ = torch.nn.Module.__hash__


def draft_runner(monkeypatch, pool: object, **of_last: int) -> ModelRunner:
    layers = [Layer(layer_id=i, tp_q_head_num=2, qk_head_dim=5, scaling=0.5, k_scale_float=2.0) for i in range(2)]
    for name, value in of_last.items():
        setattr(layers[-1], name, value)
    monkeypatch.setattr(draft_queries, "decoder_layers", lambda model: layers)
    rows = ReqToTokenPool(rpc_ring=ring())
    return ModelRunner(is_draft_worker=True, server_args=server_args(RPCConfig()), req_to_token_pool=rows,
                       model=torch.nn.ModuleList(layers), token_to_kv_pool=pool)  # fmt: skip


def test_its_layers_are_recorded_and_found_in_its_own_pool(monkeypatch):
    pool = MHATokenToKVPool(2)
    runner = draft_runner(monkeypatch, pool)
    draft_queries.install_draft_queries(None, runner)
    made = runner.rpc_draft
    assert made.queries is runner.req_to_token_pool.rpc_ring.draft
    assert made.queries.buffer.shape == (2, 3, 4 + DRAFTS, 2, 5)
    assert [layer.keys is k for layer, k in zip(made.layers, pool.k_buffer, strict=True)] == [True, True]
    assert {layer.scaling for layer in made.layers} == {1.0}
    found = draft_queries.decoder_layers(None)
    assert all(len(layer._forward_pre_hooks) == 1 for layer in found)


class MLATokenToKVPool:
    kv_lora_rank = 3

    def __init__(self, layers: int):
        self.kv_buffer = [torch.zeros(9, 1, 5) for _ in range(layers)]
        self.dtype, self.start_layer, self.kv_cache_dim = torch.float32, 0, 5


class Latent(torch.nn.Module):
    """As DeepSeek's, with `mqa` for its latents."""

    def __init__(self, mqa: torch.nn.Module):
        super().__init__()
        self.attn_mqa, self.attn_mha, self.kv_lora_rank = mqa, torch.nn.Module(), 3

    def dispatch_attn_forward_method(self, forward_batch: object) -> None: ...


def latent_runner(monkeypatch, kind: type[Latent] = Latent) -> ModelRunner:
    runner = draft_runner(monkeypatch, MLATokenToKVPool(2))
    runner.model = torch.nn.ModuleList([kind(layer) for layer in draft_queries.decoder_layers(None)])
    module, _, Latent.__qualname__ = DEEPSEEK.rpartition(".")
    monkeypatch.setattr(Latent, "__module__", module)
    return runner


def test_latents_of_a_draft_are_recorded_absorbed_and_found_in_its_own_pool(monkeypatch):
    put_on = []
    monkeypatch.setattr(capture, "install", put_on.extend)
    runner = latent_runner(monkeypatch)
    draft_queries.install_draft_queries(None, runner)
    assert [hook.target for hook in put_on] == [f"{DEEPSEEK}.dispatch_attn_forward_method"]
    for layer, latents in zip(runner.rpc_draft.layers, runner.token_to_kv_pool.kv_buffer, strict=True):
        assert layer.latent
        assert layer.keys is latents
        assert torch.equal(layer.values, latents[..., :3])
        assert layer.buffers == (latents,)
        assert layer.scaling == 0.5  # latents are stored as they are, but for triton


def test_a_latent_draft_that_expands_by_rules_of_its_own_ends_the_start(monkeypatch):
    class Other(Latent):
        def dispatch_attn_forward_method(self, forward_batch: object) -> None: ...

    with pytest.raises(UnsupportedError, match="of its own kind"):
        draft_queries.install_draft_queries.__wrapped__(None, latent_runner(monkeypatch, Other))


def test_a_latent_draft_on_rocm_ends_the_start(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(UnsupportedError, match="on ROCm"):
        draft_queries.install_draft_queries.__wrapped__(None, latent_runner(monkeypatch))


def test_what_a_model_with_recurrent_layers_brings_along_has_a_pool_like_the_models(monkeypatch):
    pool = HybridLinearKVPool({0: 1, 1: 0})
    runner = draft_runner(monkeypatch, pool)
    draft_queries.install_draft_queries(None, runner)
    inside = pool.full_kv_pool
    assert [layer.keys is k for layer, k in zip(runner.rpc_draft.layers, inside.k_buffer[::-1], strict=True)] == [
        True
    ] * 2
    assert [layer.values is v for layer, v in zip(runner.rpc_draft.layers, inside.v_buffer[::-1], strict=True)] == [
        True
    ] * 2


def test_a_whole_model_with_recurrent_layers_is_no_draft(monkeypatch):
    """Its states would be in the slots of the model."""
    runner = draft_runner(monkeypatch, HybridLinearKVPool({0: 0, 1: 1}))
    runner.server_args.speculative_algorithm = "STANDALONE"
    with pytest.raises(Exception, match="a KV pool of the class HybridLinearKVPool"):
        draft_queries.install_draft_queries.__wrapped__(None, runner)


@pytest.mark.parametrize(
    ("pool", "last", "named"),
    [
        (SimpleNamespace(), {}, "a KV pool of the class SimpleNamespace"),
        (MHATokenToKVPool(2), {"sliding_window_size": 8}, "1 sliding-window layers"),
        (MHATokenToKVPool(2), {"qk_head_dim": 7}, "attention layers of 2 shapes"),
    ],
    ids=["another pool", "a window", "two shapes"],
)
def test_a_draft_that_cannot_be_scored_ends_the_start(monkeypatch, pool, last, named):
    with pytest.raises(UnsupportedError, match=f"a draft model with {named}"):
        draft_queries.install_draft_queries.__wrapped__(None, draft_runner(monkeypatch, pool, **last))


def test_a_model_and_a_server_without_rpc_are_left_alone():
    for runner in (ModelRunner(server_args=server_args(RPCConfig())), ModelRunner(is_draft_worker=True)):
        draft_queries.install_draft_queries(None, runner)
        assert runner.rpc_draft is None
