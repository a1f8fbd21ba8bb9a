"""What a draft keeps: what its model would keep in its place, of the tokens that its model has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sglang_rpc.memory.query_ring import DraftQueries
from sglang_rpc.runtime.compressor import Compressor
from tests.loops.draft_row import DIM, KEEP, POOL, PROMPT, TOKENS, WINDOW, Case, compression


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


def test_ranks_add_up_the_scores_of_a_drafts_layers_where_only_these_are_shared():
    """As of a draft's latents, beside a model whose heads stay apart; and the other way round."""
    summed: dict[str, list[torch.Size]] = {"model": [], "draft": []}

    def reduce(of: str):
        return lambda scores: summed[of].append(scores.shape) or scores

    for given in ("reduce", "reduce_drafts"):
        case = Case("group")
        of = "model" if given == "reduce" else "draft"
        compressor = Compressor(
            case.config, case.model, case.ring, case.table, drafts=case.draft, **{given: reduce(of)}
        )
        assert compressor.reduces
        compressor.compress([compression()])
    assert len(summed["model"]) == len(summed["draft"]) > 0
