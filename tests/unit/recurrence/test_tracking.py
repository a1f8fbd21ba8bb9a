"""What SGLang's result processor notes of copied states, on made-up batches: strategy `extra_buffer` needs a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.hooks import recurrence
from sglang_rpc.runtime.request_state import RequestState
from sglang_rpc.startup import cpu

INTERVAL = 16
PROMPT = 10


@pytest.fixture
def processor(monkeypatch):
    """SGLang's, of a server that copies each request's state every `INTERVAL` tokens."""
    cpu.prepare()
    from sglang.srt.managers.scheduler_components import batch_result_processor as module

    served = SimpleNamespace(mamba=SimpleNamespace(enable_mamba_extra_buffer_lazy=False))
    monkeypatch.setattr(module, "get_exec", lambda: served)
    monkeypatch.setattr(
        module, "get_disagg", lambda: SimpleNamespace(disaggregation_decode_enable_offload_kvcache=False)
    )
    monkeypatch.setattr(module, "mamba_track_grid", lambda page: INTERVAL)
    cls = module.SchedulerBatchResultProcessor
    monkeypatch.setattr(cls, "_maybe_collect_customized_info", lambda *_: None)
    made = cls.__new__(cls)
    object.__setattr__(made, "tree_cache", SimpleNamespace(page_size=1))
    return made


def request(generated: int, evicted: int, lookahead: int) -> SimpleNamespace:
    """After `generated` tokens; `lookahead` steps have been planned since the one whose result is processed."""
    options = RequestOptions.from_custom_params(None, RPCConfig(scope="all"), knows_markers=False)
    state = RequestState(options)
    state.clock.evicted = evicted
    kv = SimpleNamespace(
        kv_committed_len=PROMPT + generated - 1 + lookahead - evicted,
        mamba_ping_pong_track_buffer=[7, 8],
        mamba_next_track_idx=0,
        mamba_last_track_idx=None,
        mamba_last_track_seqlen=None,
        mamba_prev_track_seqlen=None,
    )
    return SimpleNamespace(
        rid="a",
        rpc=state,
        kv=kv,
        origin_input_ids=list(range(PROMPT)),
        output_ids=list(range(generated)),
        decode_batch_idx=5 + lookahead,
        finished=lambda: False,
    )


def batch_of(req: SimpleNamespace, lookahead: int) -> SimpleNamespace:
    """The batch as SGLang planned it: masks by the KV length of the step, and of the one after it."""
    length = req.kv.kv_committed_len - lookahead
    return SimpleNamespace(
        reqs=[req],
        mamba_track_mask_cpu=[length % INTERVAL == 0],
        mamba_track_mask_next_cpu=[length % INTERVAL == INTERVAL - 1],
        mamba_decode_batch_idx_cpu=[5],
        mamba_track_buffer_indices=[0],
        spec_algorithm=SimpleNamespace(is_none=lambda: True),
        req_to_token_pool=SimpleNamespace(get_mamba_ping_pong_other_idx=lambda index: 1 - index),
    )


def process(processor, req, batch, hooked: bool) -> tuple[int | None, int]:
    """The length that a copied state is noted for, and the place that is written next."""
    if hooked:
        recurrence.track_no_state(processor, batch, None)
    processor._handle_finish_state_updated_req(req, batch, None, 0, None)
    return req.kv.mamba_last_track_seqlen, req.kv.mamba_next_track_idx


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("generated", range(20, 42))
def test_of_a_compressed_request_nothing_is_noted_and_nothing_is_asserted(processor, generated, lookahead):
    req = request(generated, evicted=9, lookahead=lookahead)
    assert process(processor, req, batch_of(req, lookahead), hooked=True) == (None, 0)


@pytest.mark.parametrize("lookahead", [0, 1])
def test_without_the_hook_the_first_copy_after_a_compression_ends_the_server(processor, lookahead):
    """A boundary of the KV length, 32: 9 entries are evicted of 42 tokens, of which the newest has none yet."""
    req = request(generated=32, evicted=9, lookahead=lookahead)
    batch = batch_of(req, lookahead)
    assert batch.mamba_track_mask_cpu == [True]
    if lookahead:
        batch.mamba_track_mask_next_cpu = [True]  # the one that SGLang notes under overlap
        req.kv.kv_committed_len = 2 * INTERVAL
    with pytest.raises(AssertionError, match="overlap lookahead wider than assumed"):
        process(processor, req, batch, hooked=False)


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("lookahead", [0, 1])
def test_before_its_first_compression_a_request_is_tracked_as_without_rpc(processor, lookahead, hooked):
    tracked = {}
    for generated in range(20, 42):
        req = request(generated, evicted=0, lookahead=lookahead)
        tracked[generated] = process(processor, req, batch_of(req, lookahead), hooked)
    at = {generated: noted for generated, noted in tracked.items() if noted != (None, 0)}
    assert at
    assert tracked[23] == ((32, 1) if lookahead == 0 else (32, 0))  # 32 tokens of KV, the newest has none


@pytest.mark.parametrize("lookahead", [0, 1])
def test_a_step_launched_before_the_compression_and_processed_after_it_notes_nothing(processor, lookahead):
    req = request(generated=23, evicted=0, lookahead=lookahead)
    batch = batch_of(req, lookahead)
    assert batch.mamba_track_mask_cpu == [True]
    req.rpc.clock.evict(9, 23)
    req.kv.kv_committed_len -= 9
    assert process(processor, req, batch, hooked=True) == (None, 0)


def verified(processor, evicted: int, accepted: int, hooked: bool) -> tuple[int | None, int]:
    """The same after a verify that accepted so many tokens, the last of them the 36th with KV."""
    req = request(generated=27, evicted=evicted, lookahead=0)
    req.seqlen = PROMPT + 27
    batch = batch_of(req, 0)
    batch.spec_algorithm.is_none = lambda: False
    result = SimpleNamespace(
        num_correct_drafts_per_req_cpu=[accepted - 1], num_non_draft_tokens_per_req=1, grammar_retained_tokens=None
    )
    update = processor._mamba_prefix_cache_update
    if hooked:
        original = type(processor)._mamba_prefix_cache_update
        recurrence.track_no_state_of_drafts(original, processor, req, batch, result, 0)
    else:
        update(req, batch, result, 0)
    return req.kv.mamba_last_track_seqlen, req.kv.mamba_next_track_idx


@pytest.mark.parametrize("hooked", [False, True])
def test_a_verify_that_passes_a_boundary_is_noted_before_the_first_compression(processor, hooked):
    assert verified(processor, 0, accepted=5, hooked=hooked) == (32, 1)
    assert verified(processor, 0, accepted=4, hooked=hooked) == (None, 0)


def test_of_a_compressed_request_no_verify_is_noted(processor):
    """SGLang would note one after 32 tokens, where none was copied: by the KV length, from 22 to 27, none is due."""
    assert verified(processor, 9, accepted=5, hooked=False) == (32, 1)
    assert verified(processor, 9, accepted=5, hooked=True) == (None, 0)
