"""What a draft keeps: what its model would keep in its place, of the tokens that its model has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sglang_rpc.backends.draft_backend import DraftBackend
from sglang_rpc.backends.reference_backend import ReferenceBackend
from sglang_rpc.config import RPCConfig
from sglang_rpc.memory.query_ring import DraftQueries, QueryRing
from sglang_rpc.policy.resolve import find_policy
from sglang_rpc.runtime.compressor import Compressor
from sglang_rpc.types import Compression, KVLayer

POOL, PROMPT, WINDOW, DIM, DRAFTS = 400, 4, 4, 8, 3
TOKENS = 69  #: of the text, its prompt among them
KEEP = 15


def compression(**more) -> Compression:
    """Of a row whose newest token has no entry yet."""
    end = TOKENS - 1
    c = Compression(row=1, slot=1, prompt_length=PROMPT, generated=end - PROMPT, window=WINDOW, begin=PROMPT, end=end,
                    keep=KEEP, query_before=True)  # fmt: skip
    return replace(c, **more)


class Case:
    """A model and a draft with the model's weights, in effect: keys, values and queries of a token are the same in
    both. Values name tokens; the draft has each of them one entry earlier."""

    def __init__(self, aggregation: str = "all", policy: str = "rpc", layers: int = 2, kv_heads: int = 2):
        self.random = torch.Generator().manual_seed(2)
        self.config = RPCConfig(interval=40, window=WINDOW, ratio=4, aggregation=aggregation, policy=policy)
        self.table = torch.zeros(3, 80, dtype=torch.int32)
        self.table[1] = torch.randperm(POOL - 1, generator=self.random)[:80] + 1
        heads = 2 * kv_heads
        shape = dict(heads=heads, head_dim=DIM, dtype=torch.float32)
        self.ring = QueryRing(layers=layers, slots=1, rows=3, window=WINDOW, device="cpu", drafts=DRAFTS, **shape)
        DraftQueries(self.ring, layers=layers, **shape)
        self.keys = torch.randn(layers, TOKENS, kv_heads, DIM, generator=self.random)
        self.queries = 3 * torch.randn(layers, TOKENS, heads, DIM, generator=self.random)
        self.model, self.draft = self._filled(self.ring, 0), self._filled(self.ring.draft, 1)

    def _filled(self, queries, ahead: int) -> list[KVLayer]:
        """Layers whose entry i is of token i + `ahead`; of their queries the newest R + 1, else noise."""
        tokens = torch.arange(TOKENS - 1) + ahead
        slots, found = self.table[1, : TOKENS - 1].long(), []
        for layer in range(self.keys.shape[0]):
            keys = torch.randn(POOL, *self.keys.shape[2:], generator=self.random)
            values = torch.zeros(POOL, self.keys.shape[2], 2)
            keys[slots], values[slots] = self.keys[layer, tokens], tokens[:, None, None].float()
            found.append(KVLayer(keys, values, torch.float32, 0.3))
            queries.buffer[layer].normal_(generator=self.random)
            newest = torch.arange(TOKENS - 1 - WINDOW - 1, TOKENS - 1)
            where = self.ring.where(torch.ones_like(newest), newest)
            queries.store(layer, (torch.ones_like(newest), where[1]), self.queries[layer, newest + ahead])
        return found

    def compress(self, c: Compression, drafts: Compression | None = None) -> None:
        policy, rest = find_policy(self.config.policy), (self.table, None)
        ReferenceBackend(self.config, policy, self.model, self.ring, *rest).compress([c])
        own = ReferenceBackend(self.config, policy, self.draft, self.ring.draft, *rest)
        DraftBackend(own, self.draft, self.table).compress([drafts or c])

    def tokens(self, layer: KVLayer, head: int, upto: int) -> list[int]:
        return layer.values[self.table[1, :upto].long(), head, 0].long().tolist()


@pytest.mark.parametrize("policy", ["rpc", "streaming", "peak"])
@pytest.mark.parametrize("aggregation", ["all", "group"])
def test_each_layer_keeps_what_the_models_would_if_the_prompt_were_a_token_longer(aggregation, policy):
    case, c = Case(aggregation, policy), compression()
    longer = replace(c, prompt_length=PROMPT + 1, begin=PROMPT + 1, generated=c.generated - 1, keep=KEEP - 1)
    case.compress(longer, c)
    chosen = set()
    for model, draft in zip(case.model, case.draft, strict=True):
        for head in range(2):
            kept, drafted = (case.tokens(layer, head, c.new_end) for layer in (model, draft))
            assert drafted[:PROMPT] == kept[1 : PROMPT + 1] == list(range(1, PROMPT + 1))
            assert drafted[-WINDOW - 1 :] == list(range(TOKENS - WINDOW - 1, TOKENS))
            if policy == "peak":  # whose weights are over all that is seen, and the draft does not see token 0
                assert len(set(drafted) & set(kept)) >= len(kept) - 3
            else:
                assert drafted == [*kept[1:], TOKENS - 1]
            chosen.add(tuple(kept))
    assert len(chosen) > 1 or policy == "streaming"  # layers keep different tokens, or this says little


@pytest.mark.parametrize("more", [{"query_before": False}, {"keep": 1}], ids=["no query", "keeps one"])
def test_else_its_newest_entry_is_in_the_window(more):
    case, c = Case(), compression(**more)
    case.compress(c)
    for draft in case.draft:
        kept = case.tokens(draft, 0, c.new_end)
        assert kept[-WINDOW:] == list(range(TOKENS - WINDOW, TOKENS))
        assert PROMPT < kept[PROMPT] < TOKENS - WINDOW
        assert kept == sorted(set(kept))


def test_what_was_not_moved_keeps_its_bytes():
    case, c = Case(), compression()
    before = [(layer.keys.clone(), layer.values.clone()) for layer in case.draft]
    case.compress(c)
    moved = torch.zeros(POOL, dtype=torch.bool)
    moved[case.table[1, c.begin : c.new_end].long()] = True
    for index, (layer, (keys, values)) in enumerate(zip(case.draft, before, strict=True)):
        assert torch.equal(layer.keys[~moved], keys[~moved])
        assert torch.equal(layer.values[~moved], values[~moved])
        for slot in case.table[1, : c.new_end].long().tolist():  # each key lies beside its value
            token = int(layer.values[slot, 0, 0])
            assert torch.equal(layer.keys[slot], case.keys[index, token])


def test_a_compressor_moves_both_in_their_own_shapes():
    """A draft of other heads, layers and dim, which the model's queries could not score."""
    case, other = Case(), Case(layers=1, kv_heads=1)
    DraftQueries(case.ring, layers=1, heads=2, head_dim=DIM, dtype=torch.float32).buffer.normal_()
    compressor = Compressor(case.config, case.model, case.ring, case.table, drafts=other.draft)
    before = [layer.values.clone() for layer in (*case.model, *other.draft)]
    compressor.compress([compression()])
    assert compressor.implementations == ("reference", "reference")
    for layer, values in zip((*case.model, *other.draft), before, strict=True):
        assert not torch.equal(layer.values, values)
