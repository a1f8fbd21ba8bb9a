"""What a draft keeps: the tokens that its model keeps, each of which it has one entry before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sglang_rpc.backends.reference_backend import ReferenceBackend
from sglang_rpc.config import RPCConfig
from sglang_rpc.memory.compaction import for_heads, one_ahead
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.types import Compression, KVLayer, LayersByKind

POOL, PROMPT = 200, 4


@given(st.data())
def test_each_entry_holds_the_token_of_its_models_next_one(data):
    """Over several compressions: a draft's entry i is of the token that the model has at i + 1, but where the oldest
    that was kept is missing."""
    candidates, window = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 6))
    model = list(range(PROMPT + candidates + window))  # the token of each entry
    draft = [token + 1 for token in model]
    for _ in range(3):
        begin, n = PROMPT, len(model) - PROMPT - window
        if n < 1:
            break
        keep = data.draw(st.integers(1, n))
        kept = sorted(data.draw(st.permutations(range(n)))[:keep])
        ahead = one_ahead(torch.tensor([kept]), keep, n)[0].tolist()
        assert all(a >= j for j, a in enumerate(ahead))  # entries only move to the front
        assert ahead == sorted(set(ahead))
        model = model[:begin] + [model[begin + k] for k in kept] + model[begin + n :]
        draft = draft[:begin] + [draft[begin + k] for k in ahead] + draft[begin + n :]
        assert draft[begin:-1] == model[begin + 1 :]
        model += [model[-1] + 1 + i for i in range(5)]
        draft += [token + 1 for token in model[-5:]]


def test_several_compressions_at_once():
    kept = torch.tensor([[[[1, 4, 6, 9]], [[0, 5, -7, -7]]]], dtype=torch.int32)
    keeps, candidates = (torch.tensor(each, dtype=torch.int32)[:, None, None] for each in ([4, 2], [12, 8]))
    ahead = one_ahead(kept, keeps, candidates)
    assert ahead.dtype == torch.int32
    assert (ahead[0, 0, 0].tolist(), ahead[0, 1, 0, :2].tolist()) == ([3, 5, 8, 11], [4, 7])


def test_heads_of_a_draft_take_those_in_the_same_part_of_the_model():
    kept = torch.arange(12).view(4, 3)
    assert for_heads(kept, 2)[:, 0].tolist() == [0, 6]
    assert for_heads(kept, 8)[:, 0].tolist() == [0, 0, 3, 3, 6, 6, 9, 9]
    assert for_heads(kept[:1], 8) is not None
    assert for_heads(kept[:1], 8).shape == (1, 3)
    assert for_heads(kept, 4) is kept


@pytest.mark.parametrize("aggregation", ["all", "group"])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_its_layers_follow_the_last_scored_one(aggregation, heads):
    """Values name their slots; the draft's heads are not the model's in number."""
    random = torch.Generator().manual_seed(2)

    def layer(kv_heads: int, draft: bool = False) -> KVLayer:
        keys = torch.randn(POOL, kv_heads, 8, generator=random)
        values = torch.arange(POOL, dtype=torch.float32)[:, None, None].repeat(1, kv_heads, 2)
        return KVLayer(keys, values, torch.float32, 0.3, draft=draft)

    layers = [layer(2), layer(heads, draft=True), layer(2), layer(heads, draft=True)]
    assert len(LayersByKind.of(layers).full) == len(LayersByKind.of(layers).drafts) == 2
    ring = QueryRing(layers=2, slots=1, rows=3, window=4, heads=4, head_dim=8, dtype=torch.float32, device="cpu")
    ring.buffer.normal_(generator=random)
    table = torch.zeros(3, 80, dtype=torch.int32)
    table[1] = torch.randperm(POOL, generator=random)[:80]
    config = RPCConfig(interval=40, window=4, ratio=4, aggregation=aggregation)
    c = Compression(row=1, slot=1, prompt_length=PROMPT, generated=64, window=4, begin=PROMPT, end=PROMPT + 64, keep=15)
    before = table[1, : c.end].long()
    seen = []
    from sglang_rpc.policy.resolve import find_policy

    backend = ReferenceBackend(config, find_policy(config.policy), layers, ring, table, None)
    backend.observer = lambda compressions, kept: seen.append(kept[:, 0])
    backend.compress([c])
    region, last = before[c.begin :], seen[0][-1]
    ahead = one_ahead(for_heads(last, heads), c.keep, c.candidates)
    for moved in LayersByKind.of(layers).drafts:
        for head in range(heads):
            kept = ahead[head if len(ahead) > 1 else 0]
            wanted = torch.cat([region[kept], region[c.candidates :]])
            assert torch.equal(moved.values[region[: c.keep + c.window], head, 0].long(), wanted)
