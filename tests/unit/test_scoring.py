"""Selection against the authors' recorded one, and against a second way of writing the formula."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from sglang_rpc.policy import rpc
from sglang_rpc.policy.budget import Budget
from sglang_rpc.scoring import reference

CASES = ("gqa_all_first", "gqa_all_third", "gqa_group_second", "mha_max")


@pytest.mark.parametrize("name", CASES)
def test_selection_equals_the_official_code_index_for_index(goldens, name):
    with safe_open(goldens / "compress_kv" / f"{name}.safetensors", "pt") as file:
        case = {key: json.loads(value) for key, value in file.metadata().items()}
        k, q, kept = (file.get_tensor(key) for key in ("k", "q", "kept"))
    prompt, window = case["prompt"], case["R"]
    candidates = k.shape[1] - prompt - window
    event = case["num_comp"] + 1
    keep = Budget(case["P"], window, int(case["P"] / case["c"])).kept(event)
    group = case["agg"] == "group"

    # The steps of `Compressor`: region from the row, queries from the ring ([R, heads, head_dim]), sums, mean, select.
    queries = rpc.selector_queries(q.transpose(0, 1), "official")
    keys = k.transpose(0, 1)[prompt : prompt + candidates]
    scores = reference.head_scores(queries, keys, case["D"] ** -0.5, group=group)
    mean = scores / (case["H"] // case["KV"] if group else case["H"])
    chosen = reference.select(mean, keep, case["ks"], case["pool"].removesuffix("pool"))

    own = torch.cat([torch.arange(prompt), torch.arange(k.shape[1] - window, k.shape[1])])
    for head in range(case["KV"]):
        mine = chosen[head if group else 0] + prompt
        assert torch.equal(torch.cat([own[:prompt], mine, own[prompt:]]), kept[head])
    assert chosen.shape == (case["KV"] if group else 1, keep)


def by_einsum(queries, keys, scaling, logit_cap, group):
    """The formula once more: keys repeated for every query head, all heads at once, in float64."""
    per_group = queries.shape[1] // keys.shape[1]
    keys = keys.double().repeat_interleave(per_group, dim=1)
    logits = torch.einsum("ihd,jhd->hij", queries.double(), keys) * scaling
    if logit_cap:
        logits = logit_cap * (logits / logit_cap).tanh()
    weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
    by_head = weights.sum(1)
    if group:
        return by_head.view(-1, per_group, by_head.shape[-1]).sum(1)
    return by_head.sum(0, keepdim=True)


def tensors(window, candidates, heads, kv_heads, dim, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(window, heads, dim, generator=generator).to(dtype)
    keys = torch.randn(candidates, kv_heads, dim, generator=generator).to(dtype)
    return queries, keys


@pytest.mark.parametrize("group", [False, True], ids=["all", "group"])
@pytest.mark.parametrize("selector", ["official", "paper"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 2), (6, 1), (1, 1)])
@pytest.mark.parametrize("logit_cap", [0.0, 1.5])
def test_scores_equal_an_einsum(group, selector, heads, kv_heads, logit_cap):
    queries, keys = tensors(8, 57, heads, kv_heads, 16)
    rows = list(range(8)) if selector == "paper" else [1, 2, 3, 4, 5, 6, 7, 7]
    wanted = by_einsum(queries[rows], keys, 0.25, logit_cap, group)
    got = reference.head_scores(rpc.selector_queries(queries, selector), keys, 0.25, logit_cap, group)
    assert got.dtype == torch.float32
    assert got.shape == (kv_heads if group else 1, 57)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)
    # Every query of every head gives away exactly one.
    torch.testing.assert_close(got.sum(), torch.tensor(8.0 * heads))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scored_in_float32(dtype):
    queries, keys = tensors(8, 40, 4, 2, 32, dtype)
    got = reference.head_scores(queries, keys, 32**-0.5)
    assert torch.equal(got, reference.head_scores(queries.float(), keys.float(), 32**-0.5))
    assert got.dtype == torch.float32


def test_large_logits_do_not_overflow():
    queries, keys = tensors(4, 20, 2, 1, 8)
    got = reference.head_scores(queries * 1e4, keys * 1e4, 1.0)
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got.sum(), torch.tensor(8.0))


def test_a_logit_cap_changes_the_scores_and_a_large_one_does_not():
    queries, keys = tensors(4, 20, 2, 1, 8)
    plain = reference.head_scores(queries, keys, 1.0)
    assert not torch.allclose(plain, reference.head_scores(queries, keys, 1.0, 0.5))
    torch.testing.assert_close(plain, reference.head_scores(queries, keys, 1.0, 1e4))


def test_the_official_selector_counts_the_newest_twice():
    queries = torch.arange(5.0).view(5, 1, 1)
    assert rpc.selector_queries(queries, "official").flatten().tolist() == [1, 2, 3, 4, 4]
    assert rpc.selector_queries(queries, "paper").flatten().tolist() == [0, 1, 2, 3, 4]
    assert rpc.selector_queries(queries[4:], "official").flatten().tolist() == [4]


def pooled_by_hand(scores: list[float], kernel: int, pooling: str) -> list[float]:
    half, result = kernel // 2, []
    for middle in range(len(scores)):
        seen = scores[max(0, middle - half) : middle + half + 1]
        result.append(max(seen) if pooling == "max" else sum(seen) / kernel)
    return result


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=40, unique=True),
    st.sampled_from([1, 3, 5, 7, 9, 21, 101]),  # wider than the row, too
    st.sampled_from(["avg", "max"]),
)
def test_pooling_by_hand(values, kernel, pooling):
    scores = torch.tensor([values, values[::-1]], dtype=torch.float32)
    pooled = reference.pool(scores, kernel, pooling)
    for row, own in zip(pooled, (values, values[::-1]), strict=True):
        torch.testing.assert_close(row, torch.tensor(pooled_by_hand(own, kernel, pooling), dtype=torch.float32))


@given(st.integers(1, 50), st.sampled_from([1, 3, 7, 51]), st.sampled_from(["avg", "max"]), st.data())
def test_selected_are_the_best_pooled_ascending(candidates, kernel, pooling, data):
    values = data.draw(st.permutations(range(candidates)))
    keep = data.draw(st.integers(1, candidates))
    scores = torch.tensor([values], dtype=torch.float32)
    chosen = reference.select(scores, keep, kernel, pooling)
    assert chosen.dtype == torch.int64
    assert chosen.shape == (1, keep)
    assert (chosen.diff() > 0).all()
    # Pooling makes ties; which of equals is kept is open, that nothing better was dropped is not.
    pooled = reference.pool(scores, kernel, pooling)[0]
    assert pooled[chosen[0]].sort().values.tolist() == pooled.sort().values[-keep:].tolist()


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_all_but_one_is_kept(kernel):
    scores = torch.tensor([[5.0, 1.0, 4.0, 2.0, 9.0, 8.0, 7.5, 6.0]])
    dropped = int(reference.pool(scores, kernel, "avg").argmin())
    chosen = reference.select(scores, 7, kernel, "avg")
    assert chosen.tolist() == [[i for i in range(8) if i != dropped]]


def test_one_candidate_and_a_kernel_wider_than_it():
    assert reference.select(torch.tensor([[3.0]]), 1, 7, "avg").tolist() == [[0]]
    assert reference.pool(torch.tensor([[7.0]]), 7, "avg").tolist() == [[1.0]]
    assert reference.pool(torch.tensor([[7.0]]), 7, "max").tolist() == [[7.0]]


def test_rows_select_for_themselves():
    scores = torch.tensor([[9.0, 1.0, 8.0, 2.0], [1.0, 9.0, 2.0, 8.0]])
    assert reference.select(scores, 2, 1, "avg").tolist() == [[0, 2], [1, 3]]


def test_sums_over_ranks_are_the_whole():
    queries, keys = tensors(8, 57, 8, 4, 16)
    whole = reference.head_scores(queries, keys, 0.25)
    parts = [
        reference.head_scores(queries[:, 4 * rank : 4 * rank + 4], keys[:, 2 * rank : 2 * rank + 2], 0.25)
        for rank in range(2)
    ]
    torch.testing.assert_close(sum(parts), whole)
