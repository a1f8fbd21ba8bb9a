"""What a draft's steps, and a verify, attend to on a CPU: the request's entries, and what their branch has written."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from sglang_rpc.startup.cpu import drafts

HEADS, KV_HEADS, DIM, SLOTS = 4, 2, 8, 60
LENGTHS = torch.tensor([7, 3])


@pytest.fixture
def pool():
    made = torch.Generator().manual_seed(5)
    keys, values = (torch.randn(SLOTS, KV_HEADS, DIM, generator=made) for _ in "kv")

    def write(_layer, loc, k, v):
        keys[loc.loc], values[loc.loc] = k, v

    return SimpleNamespace(
        get_key_buffer=lambda _: keys, get_value_buffer=lambda _: values, set_kv_buffer=write, keys=keys, values=values
    )


@pytest.mark.parametrize("branches", [1, 3])
def test_each_branch_sees_its_own(pool, branches):
    made, steps = torch.Generator().manual_seed(7), 4
    table = torch.randperm(SLOTS, generator=made)[:40].view(2, 20).to(torch.int32)
    before = table.clone()
    rows = torch.tensor([1, 0])
    layer = SimpleNamespace(
        tp_q_head_num=HEADS, tp_k_head_num=KV_HEADS, qk_head_dim=DIM, v_head_dim=DIM, layer_id=0, scaling=0.3,
        is_cross_attention=False, sliding_window_size=-1,
    )  # fmt: skip
    runner = SimpleNamespace(
        device="cpu",
        token_to_kv_pool=pool,
        req_to_token_pool=SimpleNamespace(req_to_token=table),
        sliding_window_size=None,
    )
    backends = drafts._steps_class()(runner, steps).attn_backends
    assert len(backends) == steps - 1
    # As SGLang lays them out: of each request, a branch's slots lie one after the other.
    after = LENGTHS[:, None, None] + torch.arange(branches)[:, None] * steps + torch.arange(steps)
    slots = table[rows[:, None, None], after].long().view(-1, steps)
    loaded = slots.new_empty(2 * branches)  # one for all steps, as SGLang's runner has it
    for step, backend in enumerate(backends):
        loaded.copy_(slots[:, step])
        q = torch.randn(2 * branches, HEADS * DIM, generator=made)
        k, v = (torch.randn(2 * branches, KV_HEADS, DIM, generator=made) for _ in "kv")
        batch = SimpleNamespace(
            out_cache_loc=loaded, encoder_out_cache_loc=None, req_pool_indices=rows, seq_lens=LENGTHS,
            encoder_lens=None,
        )  # fmt: skip
        found = backend.forward_decode(q, k, v, layer, batch)
        for query, (request, branch) in enumerate((r, b) for r in range(2) for b in range(branches)):
            own = slots[request * branches + branch, : step + 1]
            seen = torch.cat([table[rows[request], : LENGTHS[request]].long(), own])
            keys, values = (each[seen].movedim(0, 1)[None] for each in (pool.keys, pool.values))
            wanted = scaled_dot_product_attention(
                q[query].view(1, HEADS, 1, DIM), keys, values, enable_gqa=True, scale=0.3
            )
            torch.testing.assert_close(found[query], wanted.flatten())
    assert torch.equal(table, before)  # the requests' own rows are left as they are


@pytest.mark.parametrize("window", [None, -1, 0, 2, 4])
def test_a_verify_sees_its_branch_within_the_window(pool, window):
    """Row 0 is the root of drafts 1 and 2; 3 comes after 1. A window counts tokens of the text before a row's own."""
    made, n = torch.Generator().manual_seed(9), 4
    ancestors = [[0], [0, 1], [0, 2], [0, 1, 3]]
    mask = torch.zeros(2, n, n, dtype=torch.bool)
    for row, own in enumerate(ancestors):
        mask[:, row, own] = True
    table = torch.randperm(SLOTS, generator=made)[:40].view(2, 20).to(torch.int32)
    rows = torch.tensor([1, 0])
    layer = SimpleNamespace(
        tp_q_head_num=HEADS, tp_k_head_num=KV_HEADS, qk_head_dim=DIM, v_head_dim=DIM, layer_id=0, scaling=0.3,
        sliding_window_size=window,
    )  # fmt: skip
    backend = SimpleNamespace(
        token_to_kv_pool=pool, swa_out_cache_loc=None, req_to_token_pool=SimpleNamespace(req_to_token=table)
    )
    written = table[rows[:, None], LENGTHS[:, None] + torch.arange(n)].long()
    batch = SimpleNamespace(
        forward_mode=SimpleNamespace(is_target_verify=lambda: True), out_cache_loc=written.flatten(),
        spec_info=SimpleNamespace(draft_token_num=n, custom_mask=mask.flatten()), req_pool_indices=rows,
        seq_lens=LENGTHS,
    )  # fmt: skip
    q = torch.randn(2 * n, HEADS * DIM, generator=made)
    k, v = (torch.randn(2 * n, KV_HEADS, DIM, generator=made) for _ in "kv")
    found = drafts.see_the_tree(None, backend, q, k, v, layer, batch)
    for request, length in enumerate(LENGTHS.tolist()):
        for row, own in enumerate(ancestors):
            text = [*table[rows[request], :length].tolist(), *written[request, own].tolist()]
            seen = text if window in {None, -1} else text[-window - 1 :]
            keys, values = (each[seen].movedim(0, 1)[None] for each in (pool.keys, pool.values))
            query = q[request * n + row].view(1, HEADS, 1, DIM)
            wanted = scaled_dot_product_attention(query, keys, values, enable_gqa=True, scale=0.3)
            torch.testing.assert_close(found[request * n + row], wanted.flatten())
