"""Policy peak and its relatives: by an oracle in float64 by position, and by what the rule is meant to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sglang_rpc.backends.policy_scores import policy_layer
from sglang_rpc.config import RPCConfig
from sglang_rpc.errors import ConfigError
from sglang_rpc.policy.base import attention_policy
from sglang_rpc.policy.peak import RULE
from sglang_rpc.policy.resolve import POLICIES, find_policy
from sglang_rpc.scoring import reference
from sglang_rpc.testing import check_policy, keeps, made_up_layer
from sglang_rpc.types import KVLayer, ScoreRule
from tests.loops import decode_loop
from tests.loops.rule_oracle import RuleOracle, scores
from tests.unit.compressor.checks import assert_all_slots_are_back

PAIRED = "sglang_rpc.policy.peak:paired"
RELATIVES = ("peak", "sglang_rpc.policy.peak:grouped", "sglang_rpc.policy.peak:squares", PAIRED)
CONFIG = RPCConfig()


def Loop(policy: str = "peak", *, slots: int = 8, interval: int = 16, aggregation: str = "all", **others):
    settings = decode_loop.config(interval=interval, policy=policy, aggregation=aggregation)
    return decode_loop.Loop(settings, slots=slots, oracle=RuleOracle, **others)


# --- what is kept, checked entry by entry by the loop's oracle -------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["all", "group"])
@pytest.mark.parametrize("policy", RELATIVES)
def test_what_is_kept_equals_the_oracle(policy, aggregation):
    loop = Loop(policy, aggregation=aggregation)
    first, second = loop.add(row=1), loop.add(row=2, prompt=0, window=2, interval=10)
    third = loop.add(row=3, prompt=30, ratio=2)
    loop.run(75)
    assert all(len(request.done) >= 4 for request in (first, second, third))
    layers = loop.held(first)
    assert layers[0] != layers[1]
    assert (layers[0][0] == layers[0][1]) == (aggregation == "all")


@pytest.mark.parametrize("policy", RELATIVES)
@pytest.mark.parametrize("shape", [dict(heads=4, kv_heads=4), dict(heads=8, kv_heads=1), dict(heads=1, kv_heads=1)])
def test_other_head_layouts_and_a_logit_cap(policy, shape):
    loop = Loop(policy, logit_cap=0.8, **shape)
    loop.add()
    loop.run(60)
    assert len(loop.requests[0].done) == 3


def test_a_latents_norm_is_its_values():
    loop = Loop(heads=4, kv_heads=1, latent=True)
    request = loop.add()
    loop.run(60)
    assert len(request.done) == 3


def test_early_late_and_restored_selections_equal_the_oracle_too():
    loop = Loop(slots=1, interval=40)
    early, late = loop.add(0), loop.add(1)
    loop.run(20)
    assert loop.record_ahead(early)
    loop.run(10)
    loop.evict_early(early, 4)
    assert early.early == [(30, 4 + 6)]
    loop.run(40)
    assert late.done[0][2]
    loop.retract(late)
    loop.run(40)
    assert len(late.done) > 2
    assert_all_slots_are_back(loop)


def test_scores_are_added_over_ranks():
    """One rank with half of the heads, given the other half's scores, keeps what one with all of them does."""
    shape = dict(heads=8, kv_heads=4)
    own: list[torch.Tensor] = []
    for half in (slice(0, 2), slice(2, 4)):
        loop = Loop(heads_of=half, check=False, reduce=lambda score: own.append(score) or score, **shape)
        loop.add()
        loop.run(20)
    both = own[0] + own[1]
    rank, whole = Loop(heads_of=slice(0, 2), check=False, reduce=lambda _: both, **shape), Loop(**shape)
    for loop in (rank, whole):
        loop.add()
        loop.run(20)
    assert [layer[0] for layer in rank.held(rank.requests[0])] == [layer[0] for layer in whole.held(whole.requests[0])]


@pytest.mark.parametrize("policy", RELATIVES)
@pytest.mark.parametrize("aggregation", ["all", "group"])
def test_the_relatives_conform(policy, aggregation):
    check_policy(policy, RPCConfig(aggregation=aggregation))


# --- by what the rule is meant to do ---------------------------------------------------------------------------------


def test_scores_equal_the_weights_that_transformers_attends_by():
    """Of a first compression, before which nothing was evicted."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.qwen2 import modeling_qwen2

    recorded = []

    def attend(module, query, key, value, attention_mask, scaling, dropout=0.0, **others):
        out, weights = modeling_qwen2.eager_attention_forward(
            module, query, key, value, attention_mask, scaling, dropout, **others
        )
        recorded.append((query[0], key[0], value[0], weights[0].double(), scaling))
        return out, weights

    transformers.AttentionInterface.register("peak_test", attend)
    transformers.AttentionMaskInterface.register(
        "peak_test", transformers.masking_utils.ALL_MASK_ATTENTION_FUNCTIONS["eager"]
    )
    torch.manual_seed(0)
    shape = dict(hidden_size=48, intermediate_size=32, num_attention_heads=6, num_key_value_heads=2)
    config = transformers.Qwen2Config(vocab_size=50, num_hidden_layers=2, attn_implementation="peak_test", **shape)
    model = transformers.Qwen2ForCausalLM(config).eval()
    prompt, window, tokens = 7, 6, 40
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)  # sharp attention
        model(torch.randint(50, (1, tokens)))
    assert len(recorded) == 2
    for query, key, value, weights, scaling in recorded:
        kv = KVLayer(key.transpose(0, 1), value.transpose(0, 1), torch.float32, scaling)
        newest = query[:, -window:].transpose(0, 1)
        seen = policy_layer(kv, newest, torch.arange(tokens), index=0, before=prompt, seed=0, group=False)
        peaks = weights[:, -window:, prompt:-window].amax(1)  # [heads, N]
        norms = value[:, prompt:-window].double().norm(dim=-1).repeat_interleave(3, 0)
        torch.testing.assert_close(POLICIES["peak"].scores(seen, CONFIG)[0].double(), (norms * peaks).sum(0))


def layer(keys: torch.Tensor, queries: torch.Tensor, before: int, values: torch.Tensor | None = None):
    """One KV head and query head; keys and queries [.., dim], logits their products."""
    values = torch.ones(len(keys), 1, 1) if values is None else values
    kv = KVLayer(keys[:, None], values, torch.float32, 1.0)
    return policy_layer(kv, queries[:, None], torch.arange(len(keys)), index=0, before=before, seed=0, group=False)


def test_the_scale_of_all_values_changes_nothing_and_a_larger_value_only_helps():
    torch.manual_seed(1)
    keys, queries, values = torch.randn(40, 4), torch.randn(5, 4), torch.rand(40, 1, 3) + 0.1
    before = keeps("peak", layer(keys, queries, 6, values), 8)[0]
    for scale in (0.25, 8.0):  # as FP8's scale, one for a layer
        assert keeps("peak", layer(keys, queries, 6, scale * values), 8)[0] == before
    for candidate in range(29):
        raised = values.clone()
        raised[6 + candidate] *= 50
        after = keeps("peak", layer(keys, queries, 6, raised), 8)[0]
        assert candidate in after
        assert set(after) - {candidate} <= set(before)


def rows_with(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and queries whose softmax is `weights` [R, entries], by logits that are their logarithms. The queries' own
    entries come after these, and get none."""
    window = len(weights)
    return torch.cat([weights.T.log(), torch.full((window, window), -99.0)]), torch.eye(window)


SUMMED = attention_policy("summed", replace(RULE, over_queries="sum"))
ALONE = attention_policy("alone", replace(RULE, softmax="candidates"))


def test_one_query_that_looks_hard_beats_many_that_glance():
    # One query gives 0.9 to candidate 0, and five give 0.3 to candidate 1; the prompt has most of the rest.
    weights = torch.tensor([[0.05, 0.9, 0.05], *[[0.65, 0.05, 0.3]] * 5])
    seen = layer(*rows_with(weights), before=1)
    torch.testing.assert_close(POLICIES["peak"].scores(seen, CONFIG)[0], torch.tensor([0.9, 0.3]))
    assert keeps("peak", seen, 1) == [[0]]
    assert keeps(SUMMED, seen, 1) == [[1]]


def test_a_query_that_looks_at_the_prompt_has_no_say():
    # The first query has all its attention on the prompt, and of what is left most on candidate 0.
    weights = torch.tensor([[0.98, 0.019, 0.001], [0.3, 0.2, 0.5]])
    seen = layer(*rows_with(weights), before=1)
    torch.testing.assert_close(POLICIES["peak"].scores(seen, CONFIG)[0], torch.tensor([0.2, 0.5]))
    assert keeps("peak", seen, 1) == [[1]]
    assert keeps(ALONE, seen, 1) == [[0]]


def test_what_follows_a_name_is_kept_with_it_once_all_harder_looks_are():
    # The last candidate is looked at less than half as hard as the first, after which stands its number.
    weights = torch.tensor([[0.05, 0.6, 0.01, 0.05, 0.04, 0.25]])
    seen = layer(*rows_with(weights), before=1)
    assert [keeps("peak", seen, count)[0] for count in (1, 2, 3)] == [[0], [0, 4], [0, 2, 4]]
    assert [keeps(PAIRED, seen, count)[0] for count in (1, 2, 3)] == [[0], [0, 1], [0, 1, 4]]
    # Here more than half as hard.
    harder = torch.tensor([[0.05, 0.5, 0.01, 0.05, 0.04, 0.35]])
    seen = layer(*rows_with(harder), before=1)
    assert [keeps(PAIRED, seen, count)[0] for count in (1, 2, 3)] == [[0], [0, 4], [0, 1, 4]]


def test_a_query_does_not_see_newer_entries():
    """Its own entry and what came before it are in its softmax; what came after it is not, however alike."""
    torch.manual_seed(2)
    keys, queries = torch.randn(20, 4), torch.randn(6, 4)
    expected = POLICIES["peak"].scores(layer(keys, queries, 3), CONFIG)
    for number in range(6):
        changed = keys.clone()
        changed[14 + number] = 9 * queries[: number + 1].sum(0)
        weights = reference.head_scores(
            queries[:, None], changed[:, None], 1.0, rule=ScoreRule(softmax="visible", over_queries="max"), before=3
        )
        own = scores(
            replace(RULE, value_power=0), queries=queries[:, None], at=list(range(14, 20)), keys=changed,
            positions=list(range(20)), candidates=list(range(3, 14)), norms=torch.ones(11), scaling=1.0,
        )  # fmt: skip
        torch.testing.assert_close(weights[0].double(), own, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(weights, expected)


def test_query_slots_pool_slots_and_the_order_of_requests_do_not_matter():
    results = []
    for rows, moved in (((1, 2), 0), ((2, 1), 0), ((1, 2), 3)):
        loop = Loop()
        for row in range(moved):
            loop.ring.acquire(row)  # other query slots
            loop.free.insert(0, loop.free.pop())  # other pool slots
        requests = {row: loop.add(row=row, prompt=5 + row) for row in rows}
        loop.run(60)
        results.append([loop.held(requests[row]) for row in (1, 2)])
    assert results[0] == results[1] == results[2]


# --- the rules as a table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"), [("softmax", "all"), ("over_queries", "mean"), ("over_heads", "squares"), ("value_power", 3)]
)
def test_a_rule_of_no_such_choice_is_refused(field, value):
    with pytest.raises(ConfigError, match=f"{field} of a score rule must be one of .*, got {value!r}"):
        ScoreRule(**{field: value})


def test_a_visible_softmax_takes_every_query_once():
    with pytest.raises(ConfigError, match=r"selector of policy 'mine' must be one of \('paper',\) under softmax 'visi"):
        attention_policy("mine", RULE, selector="config")
    with pytest.raises(ConfigError, match=r"must be one of \('paper', 'official', 'config'\), got 'newest'"):
        attention_policy("mine", ScoreRule(), selector="newest")


def test_relatives_are_found_by_their_paths():
    for name in RELATIVES:
        found = find_policy(name)
        assert found.name == name
        assert found.rule.visible
        assert found.whole_groups == (found.rule.over_heads == "max")


@pytest.mark.parametrize("over_queries", ["sum", "max", "squares"])
@pytest.mark.parametrize("over_heads", ["sum", "max"])
@pytest.mark.parametrize("softmax", ["candidates", "visible"])
@pytest.mark.parametrize("value_power", [0, 1, 2])
def test_every_rule_equals_the_oracle_and_leaves_the_layer(over_queries, over_heads, softmax, value_power):
    rule = ScoreRule(softmax, over_queries, over_heads, value_power)
    torch.manual_seed(3)
    keys, values, queries = torch.randn(50, 2, 8), torch.randn(50, 2, 5), torch.randn(6, 6, 8)
    kv = KVLayer(keys, values, torch.float32, 0.5, 3.0)
    seen = policy_layer(kv, queries, torch.arange(50), index=0, before=4, seed=0, group=True)
    own = torch.stack(
        [
            scores(
                rule, queries=queries[:, 3 * head : 3 * head + 3], at=list(range(44, 50)), keys=keys[:, head],
                positions=list(range(50)), candidates=list(range(4, 44)), norms=values[4:44, head].norm(dim=-1),
                scaling=0.5, logit_cap=3.0,
            )
            for head in range(2)
        ]
    )  # fmt: skip
    torch.testing.assert_close(seen.score(rule).double(), own, rtol=1e-4, atol=1e-7)


def test_a_made_up_layers_values_are_of_its_candidates():
    made = made_up_layer(30, before=3)
    assert made.values.shape == (30, 4, 16)
    assert not torch.equal(made.values, made.keys)
