"""The rules between rpc and peak: each is one change away from the next, and a policy that any server takes."""

from itertools import pairwise

import pytest

from eval.compare import ablation
from eval.compare.arms import label
from sglang_rpc.config import RPCConfig
from sglang_rpc.policy.resolve import find_policy
from sglang_rpc.testing import check_policy, made_up_layer

OUTSIDE = [name for name in ablation.ROWS if ":" in name]
CONFIG = RPCConfig()


def said(name):
    """What a row is made of: the rule's fields, whom it asks, and how it pools."""
    found = find_policy(name)
    return {**vars(found.rule), "selector": found.selector_in(CONFIG), "pooling": found.pooling_in(CONFIG)}


def changes(one, other):
    a, b = said(one), said(other)
    return {name for name in a if a[name] != b[name]}


@pytest.mark.parametrize("name", OUTSIDE, ids=label)
def test_each_keeps_the_rules_of_policies(name):
    check_policy(name)


def test_each_step_from_rpc_to_peak_changes_one_thing():
    way = ablation.ROWS[: ablation.ROWS.index("peak") + 1]
    steps = [changes(a, b) for a, b in pairwise(way)]
    assert steps == [{"pooling"}, {"selector"}, {"softmax"}, {"over_queries"}, {"value_power"}]


def test_the_others_are_one_step_from_peak():
    rest = ablation.ROWS[ablation.ROWS.index("peak") + 1 :]
    assert [changes("peak", name) for name in rest] == [
        {"pooling"}, {"softmax"}, {"over_queries"}, {"over_heads"}, {"over_queries", "value_power"},
    ]  # fmt: skip
    assert said("eval.compare.ablation:pool_3")["pooling"] == (3, "avg")


@pytest.mark.parametrize("name", OUTSIDE, ids=label)
def test_each_scores_as_no_other_does(name):
    layer = made_up_layer(before=9)
    scores = find_policy(name).scores(layer, CONFIG)
    same = [
        other
        for other in ablation.ROWS
        if find_policy(other).pooling_in(CONFIG) == find_policy(name).pooling_in(CONFIG)
        and find_policy(other).scores(layer, CONFIG).equal(scores)
    ]
    assert same == [name]
