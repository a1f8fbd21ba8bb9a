"""Which steps of a rank with DP attention may be replayed: none that records, and so none of its peers' beside it."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.contract.refusals import model
from sglang_rpc.contract.refusals.facts import ServingFacts
from sglang_rpc.errors import UnsupportedError
from sglang_rpc.hooks import capture, dp_attention
from sglang_rpc.hooks.accumulate import Accumulate
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.startup import cpu
from tests.fakes.batches import ForwardBatch, ForwardMode, ScheduleBatch
from tests.fakes.memory import ReqToTokenPool
from tests.fakes.requests import Req
from tests.unit.host_backup.pool import pool


def request(slot: int | None) -> Req:
    state = RequestState(RequestOptions.from_custom_params(None, RPCConfig(scope="all")))
    state.recording.slot = slot
    return Req(rpc=state)


def batch(slots: list[int | None], mode: ForwardMode, rpc: bool = True, every_step: bool = False) -> ScheduleBatch:
    rows = ReqToTokenPool()
    rows.rpc = SimpleNamespace(every_step=every_step) if rpc else None
    return ScheduleBatch([*map(request, slots), Req(rpc=None)], mode, req_to_token_pool=rows)


def vote(local_batch: ScheduleBatch | None, sglangs: bool = True) -> bool:
    def original(*, local_batch, num_tokens):
        return sglangs

    return dp_attention.eager_together(original, local_batch=local_batch, num_tokens=3)


@pytest.mark.parametrize("mode", ForwardMode)
def test_a_batch_of_whom_one_is_recorded_votes_no(mode):
    """Of a decode step too: beside a peer's prefill it would become an extend of one token a row, and be replayed."""
    assert not vote(batch([None, 3], mode))
    assert vote(batch([None, None], mode))
    assert not vote(batch([None], mode), sglangs=False)


def test_idle_ranks_and_servers_without_rpc_vote_as_sglang_does():
    for sglangs in (False, True):
        assert vote(None, sglangs) == sglangs
        assert vote(ScheduleBatch(), sglangs) == sglangs
        assert vote(batch([3], ForwardMode.DECODE, rpc=False), sglangs) == sglangs


def test_sglang_asks_by_name_and_takes_the_least_of_all_votes():
    cpu.prepare()
    from sglang.srt.managers.scheduler_components import dp_attn

    parameters = inspect.signature(inspect.unwrap(dp_attn._local_prefill_cuda_graph_vote)).parameters.values()
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}
    assert "self.can_run_prefill_cuda_graph = " in inspect.getsource(dp_attn.MLPSyncBatchInfo.all_gather)


@pytest.mark.parametrize("slots", [[None, 3], [None, None]])
@pytest.mark.parametrize("every_step", [False, True])
def test_what_runs_without_a_graph_has_voted_no(slots, every_step):
    """The rule of the step itself (`capture.eager_while_recording`) never says no where the vote said yes."""
    step = SimpleNamespace(rpc=SimpleNamespace(where=object() if 3 in slots else None))
    runner = SimpleNamespace(model_runner=SimpleNamespace(rpc=SimpleNamespace(every_step=every_step)))
    eager = not capture.eager_while_recording(lambda runner, forward_batch: True, runner, step)
    assert eager == (not vote(batch(slots, ForwardMode.EXTEND, every_step=every_step)))


@pytest.mark.parametrize("labelled", [False, True])
def test_attention_is_added_up_in_a_decode_step_that_is_labelled_an_extend(labelled):
    (layer,) = pool(torch.float32, accumulated=True)[:1]
    for buffer in (layer.keys, layer.values):
        buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(1)))
    rows = ReqToTokenPool(req_to_token=torch.arange(30).view(3, 10))
    padding = 2 if labelled else 0
    mode, before = (ForwardMode.EXTEND, ForwardMode.DECODE) if labelled else (ForwardMode.DECODE, None)
    step = ForwardBatch(
        mode,
        torch.tensor([1, 2]),
        seq_lens=torch.tensor([4, 6]),
        out_cache_loc=torch.tensor([13, 25] + [0] * padding),
        _original_forward_mode=before,
    )
    heads, dim = 4, layer.keys.shape[2]
    queries = torch.randn(2, heads * dim, generator=torch.Generator().manual_seed(2))
    padded = torch.cat([queries, torch.full((padding, heads * dim), 1e3)])
    layer.accumulated.zero_()
    hook = Accumulate(SimpleNamespace(req_to_token_pool=rows), layer)
    shape = SimpleNamespace(tp_q_head_num=heads, qk_head_dim=dim)
    hook(shape, (padded, None, None, step), {}, None)
    per_row = [layer.accumulated[slots].sum().item() for slots in (torch.arange(10, 14), torch.arange(20, 26))]
    assert per_row == pytest.approx([heads, heads])


FACTS = ServingFacts(dp_size=2, tp_size=1, query_heads=4, total_query_heads=4)


@pytest.mark.parametrize(
    "facts",
    [
        {},  # each rank has every head
        dict(tp_size=2, query_heads=2),  # two ranks a group
        dict(dp_size=1, query_heads=2),  # no DP attention: the other ranks have the other heads
        dict(total_query_heads=0),  # unknown
    ],
)
def test_models_whose_groups_have_every_head_are_served(facts):
    model.refuse_model_runner(ServingFacts(**{**vars(FACTS), **facts}), RPCConfig())


def test_a_model_whose_groups_lack_heads_is_refused():
    with pytest.raises(UnsupportedError, match="which has no DP attention in SGLang, does not work with RPC"):
        model.refuse_model_runner(ServingFacts(**{**vars(FACTS), "query_heads": 2}), RPCConfig())


@pytest.mark.parametrize("shape", [dict(dp_size=2), dict(stages=2)])
def test_what_has_memory_of_two_kinds_is_refused_with_either(shape):
    for kind in (dict(row_pool="HybridReqToTokenPool"), dict(kv_pool="SWAKVPool")):
        model.refuse_model_runner(ServingFacts(**kind), RPCConfig(interval=4096))
        with pytest.raises(UnsupportedError, match="whose layers have memory of two kinds, does not work with RPC"):
            model.refuse_model_runner(ServingFacts(**kind, **shape), RPCConfig(interval=4096))
    model.refuse_model_runner(ServingFacts(**shape), RPCConfig())
