"""What each policy keeps: by formulas written another way, and by what must be true of it."""

import math
import re
import sys
from dataclasses import replace
from importlib import import_module
from types import ModuleType, SimpleNamespace

import pytest
import torch

from sglang_rpc.backends import choose as paths
from sglang_rpc.config import RPCConfig
from sglang_rpc.contract import settings
from sglang_rpc.errors import ConfigError, UnsupportedError
from sglang_rpc.memory.compaction import move_kept
from sglang_rpc.policy import rkv
from sglang_rpc.policy.resolve import NAMES, POLICIES, find_policy
from sglang_rpc.scoring.accumulated import accumulate
from sglang_rpc.types import KVLayer
from tests.conftest import ROOT
from tests.loops.decode_loop import Loop


def config(policy: str, **others) -> RPCConfig:
    return RPCConfig(interval=16, window=4, ratio=4, scope="all", policy=policy, **others)


def kept(loop: Loop, steps: int = 52) -> list[list[list[int]]]:
    """What a request of 5 prompt tokens holds after two compressions (at 20 and 36) and 16 more tokens."""
    request = loop.add()
    loop.run(steps)
    assert [generated for generated, _, _ in request.done] == [20, 36, 52]
    return loop.held(request)


def loop(policy: str, **others) -> Loop:
    return Loop(config(policy, **others), check=policy == "rpc")


def attention(made: Loop, row: int, layer: int, queries: list[int], keys: list[int]) -> torch.Tensor:
    """Softmax over `keys`, float64: [query heads, queries, keys]. Positions are of the whole sequence."""
    k = made.keys[row, layer, keys].double().repeat_interleave(made.per_group, 1)
    q = made.queries[row, layer, queries].double()
    return (torch.einsum("ihd,jhd->hij", q, k) * made.scaling).softmax(-1)


def replay(made: Loop, score, steps: int = 52) -> list[list[list[int]]]:
    """The positions behind the prompt that remain, if `score(layer, head positions, candidates, newest)` chooses."""
    prompt, result = 5, []
    for layer in range(2):
        held = list(range(20))
        for generated in (20, 36, 52):
            held += range(max(held) + 1, generated)
            candidates, budget = held[:-4], (generated - 4) // 16 * 4
            scores = score(layer, [prompt + p for p in candidates], [prompt + p for p in held[-4:]])
            best = sorted(scores.topk(budget).indices.tolist())
            held = [candidates[i] for i in best] + held[-4:]
        result.append([held] * made.keys.shape[3])
    return result


def test_tova_asks_the_newest_query():
    made = loop("tova")
    assert kept(made) == replay(
        made, lambda layer, those, newest: attention(made, 1, layer, newest[-1:], those).sum((0, 1))
    )


def test_snapkv_takes_the_maximum_of_neighbours():
    made = loop("snapkv", kernel_size=3)

    def score(layer, those, newest):
        summed = attention(made, 1, layer, newest, those).sum((0, 1))
        return torch.nn.functional.max_pool1d(summed[None, None], 3, 1, 1)[0, 0]

    # Neighbours of a maximum tie, so that only the scores that are kept are certain.
    request = made.add(row=1)
    made.run(20)
    those, newest = [5 + p for p in range(16)], [21, 22, 23, 24]
    for layer, held in enumerate(made.held(request)):
        scores = score(layer, those, newest)
        chosen = scores[held[0][:4]].sort().values
        torch.testing.assert_close(chosen, scores.topk(4).values.sort().values, rtol=1e-5, atol=1e-7)


def test_streaming_keeps_the_newest():
    made = loop("streaming")
    assert kept(made) == [[list(range(36, 52))] * 2] * 2


@pytest.mark.parametrize("prompt", [0, 1, 3, 4, 9])
def test_streaming_keeps_the_first_tokens_of_the_sequence(prompt):
    made = loop("streaming")
    request = made.add(prompt=prompt)
    made.run(36)
    sinks = max(0, 4 - prompt)
    wanted = list(range(sinks)) + list(range(32 - (8 - sinks), 36))
    assert made.held(request) == [[wanted] * 2] * 2


def test_random_is_the_same_for_the_same_text_and_seed_only():
    def held(**others):
        output = others.pop("output", None)
        made = loop("random", **others)
        request = made.add(output=output)
        made.run(36)
        return made.held(request)

    first = held()
    assert first == held()
    assert first != held(policy_seed=1)
    assert first != held(output=[1] * 17 + [2] * 100)
    assert first[0] != first[1]  # layers draw on their own
    assert first[0][0] == first[0][1]  # and heads together


def test_random_is_fair():
    """Of 16 candidates 4 are kept: each in about a quarter of many draws."""
    counts = torch.zeros(16)
    for seed in range(200):
        made = loop("random", policy_seed=seed)
        request = made.add()
        made.run(20)
        for layer in made.held(request):
            counts[layer[0][:4]] += 1
    expected, deviation = 400 / 4, math.sqrt(400 * 0.25 * 0.75)
    assert ((counts - expected).abs() < 4.5 * deviation).all(), counts


def test_rkv_drops_what_is_like_a_later_key():
    made = loop("rkv")
    # The keys of the first eight candidates are one key, said again and again.
    made.keys[1, :, 5:13] = made.keys[1, :, 5:6]
    request = made.add()
    made.run(20)
    for layer in made.held(request):
        assert sum(position < 8 for position in layer[0][:4]) <= 1, layer


@pytest.mark.parametrize("at_once", [2**24, 1, 7 * 20])
@pytest.mark.parametrize("group", [False, True])
def test_rkv_by_loops(group, at_once, monkeypatch):
    monkeypatch.setattr(rkv, "MAX_SIMILARITIES", at_once)  # blocks of all, one and seven rows
    made = loop("rkv", aggregation="group" if group else "all")
    request = made.add()
    made.run(20)
    for index, layer in enumerate(made.held(request)):
        scores = torch.stack([rkv_by_loops(made, index, head) for head in range(2)])
        rows = scores if group else scores.sum(0, keepdim=True).expand(2, -1)
        for head in range(2):
            assert layer[head][:4] == sorted(rows[head].topk(4).indices.tolist())


def rkv_by_loops(made: Loop, layer: int, head: int) -> torch.Tensor:
    keys = made.keys[1, layer, 5:25, head].double()  # 16 candidates and the window
    group = made.queries[1, layer, 21:25].double().unflatten(1, (2, -1))[:, head]
    per_query = []
    for query in range(4):
        logits = [max(float(q @ k) for q in group[query]) * made.scaling for k in keys[:16]]
        per_query.append(torch.tensor(logits).double().softmax(0))
    mean = torch.stack(per_query).mean(0)
    pooled = torch.tensor([float(mean[max(0, i - 3) : i + 4].max()) for i in range(16)])
    like = [
        [0.0 if i == j else float(torch.cosine_similarity(keys[i], keys[j], dim=0)) for j in range(20)]
        for i in range(20)
    ]
    for row in like:
        alike = [j for j, cosine in enumerate(row) if cosine > 0.5]
        row[max(alike, default=0)] = 0.0
    redundant = torch.tensor([sum(row[j] for row in like) / 20 for j in range(20)]).softmax(0)
    return 0.1 * pooled - 0.9 * redundant[:16]


def test_h2o_adds_up_every_step():
    """Against a list of every step's attention, through two compactions."""
    torch.manual_seed(0)
    kv_heads, dim, pool = 2, 8, 64
    layer = KVLayer(
        torch.randn(pool, kv_heads, dim), torch.randn(pool, kv_heads, 3), torch.float32, 0.3, 0.0,
        torch.zeros(pool, kv_heads, 1),
    )  # fmt: skip
    rows = {0: torch.randperm(31)[:12] + 1, 1: torch.randperm(31)[:7] + 32}
    got = {row: torch.zeros(len(slots), kv_heads) for row, slots in rows.items()}
    for step in range(6):
        if step == 3:  # row 0 is compacted: entries 1, 4 and 5 of its first eight stay
            stay = torch.tensor([[1, 4, 5]])
            move_kept(layer.buffers, rows[0], stay, 8)
            rows[0] = rows[0][: 3 + 4]
            got[0] = torch.cat([got[0][stay[0]], got[0][8:]])
        lengths = torch.tensor([len(rows[0]), len(rows[1])])
        slots = torch.zeros(2, int(lengths.max()), dtype=torch.int32)
        for row, own in rows.items():
            slots[row, : len(own)] = own
        queries = torch.randn(2, 6, dim)
        accumulate(layer, queries, slots, lengths)
        for row, own in rows.items():
            for head in range(6):
                kv_head = head // 3
                weights = (layer.keys[own, kv_head] @ queries[row, head] * 0.3).softmax(0)
                got[row][:, kv_head] += weights
    for row, own in rows.items():
        torch.testing.assert_close(layer.accumulated[own, :, 0], got[row])


def test_h2o_keeps_what_has_got_most():
    made = loop("h2o")
    totals = [torch.rand(1024, 2, 1) for _ in range(2)]
    made.layers[:] = [replace(layer, accumulated=each) for layer, each in zip(made.layers, totals, strict=True)]
    request = made.add()
    made.run(19)
    before = [each.clone() for each in totals]
    slots = made.slots(request)[5:]
    made.run(1)
    for index, layer in enumerate(made.held(request)):
        got = before[index][slots[:16]].sum((1, 2))
        assert layer[0][:4] == sorted(got.topk(4).indices.tolist())
        # What was accumulated has moved along.
        assert torch.equal(totals[index][slots[:4]], before[index][slots[layer[0][:4]]])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("aggregation", ["all", "group"])
def test_every_policy_keeps_to_the_budget_and_the_window(policy, aggregation):
    made = loop(policy, aggregation=aggregation)
    if POLICIES[policy].accumulates:
        made.layers[:] = [replace(layer, accumulated=torch.rand(1024, 2, 1)) for layer in made.layers]
    requests = [made.add(row=1), made.add(row=2, prompt=0, interval=10, window=2), made.add(row=3, prompt=30, ratio=2)]
    made.run(75)
    for request in requests:
        assert len(request.done) >= 4
    for layer in made.held(requests[0]):
        for head in layer:
            assert len(head) == 4 * 4 + 4 + 75 - 68
            assert head[-11:] == list(range(64, 75))


@pytest.mark.parametrize("policy", [name for name, policy in POLICIES.items() if policy.rule is None])
@pytest.mark.parametrize("scoring", ["triton", "flashinfer"])
def test_kernels_that_do_not_know_a_policy_are_refused(policy, scoring):
    with pytest.raises(ConfigError, match=f"scoring '{scoring}' is not available under policy '{policy}'; use 'auto'"):
        paths.make_backend(config(policy, scoring=scoring), [], None, torch.zeros(1, 1), None)


def test_every_policy_has_its_own_name_and_a_known_pooling():
    for name, policy in POLICIES.items():
        assert policy.name == name
        assert policy.pooling in (None, "avg", "max", "config")


PAGE = (ROOT / "docs" / "policies.md").read_text()


def test_the_page_has_a_row_per_policy_in_the_order_of_the_table():
    table = PAGE.partition("| `--rpc-policy`")[2].partition("\n\n")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert [row[0].strip("|` ") for row in rows] == list(NAMES)
    for name, row in zip(NAMES, rows, strict=True):
        assert len(row) == 4
        assert all(cell.strip("| ") for cell in row)
        if name in POLICIES:
            numbers = re.findall(r"\d{4}\.\d{5}", import_module(f"sglang_rpc.policy.{name}").__doc__)
            assert re.findall(r"\[(\d{4}\.\d{5})\]\(https://arxiv\.org/abs/\1\)", row[2]) == numbers, name


def test_the_page_says_which_policies_run_in_kernels_and_which_need_every_step():
    kernels = [name for name, policy in POLICIES.items() if policy.rule is not None]
    *others, last = (f"`{name}`" for name in kernels)
    assert f"{', '.join(others)} and {last} run in the Triton kernels" in PAGE
    (name,) = (name for name, policy in POLICIES.items() if policy.accumulates)
    assert f"`{name}` reads every decode step's attention" in " ".join(PAGE.split())


def test_the_page_has_the_table_of_rules():
    table = PAGE.partition("| `--rpc-policy` | softmax over")[2].partition("\n\n")[0]
    rows = [[cell.strip("` ") for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:]]
    assert [row[0] for row in rows if row[0] in POLICIES] == [
        name for name, p in POLICIES.items() if p.rule is not None
    ]
    for name, *cells in rows:
        policy = find_policy(name)
        rule = policy.rule
        selector = {"config": "--rpc-selector", "paper": "each once"}[policy.selector]
        pooling = {"config": "--rpc-pooling", None: "-"}.get(policy.pooling, policy.pooling)
        own = [rule.softmax, rule.over_queries, rule.over_heads, str(rule.value_power), selector, pooling]
        assert cells == own, name


def test_the_guide_is_the_example(tmp_path, monkeypatch):
    """What docs/policies.md shows is what examples/policy_package holds, and it keeps the longest keys."""
    example = ROOT / "examples" / "policy_package"
    policy, points, test = re.findall(r"```(?:python|toml)\n(.*?)```", PAGE, re.S)
    assert policy == (example / "long_keys.py").read_text()
    assert points == (example / "pyproject.toml").read_text()
    assert test == (example / "test_long_keys.py").read_text()
    monkeypatch.syspath_prepend(str(example))
    made = loop("long_keys:scores", kernel_size=1)
    request = made.add()
    made.run(20)
    for layer, held in enumerate(made.held(request)):
        lengths = made.keys[1, layer, 5:21].norm(dim=-1).sum(1)
        assert held[0][:4] == sorted(lengths.topk(4).indices.tolist())


@pytest.mark.parametrize("graphs", [None, "full", "disabled"])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_h2o_is_refused_under_cuda_graphs_alone(device, graphs, monkeypatch):
    """By the arguments as SGLang resolved them: the record itself still says what the user gave."""
    resolved = SimpleNamespace(
        device=device,
        enable_two_batch_overlap=False,
        disaggregation_mode="null",
        cuda_graph_config=graphs and SimpleNamespace(decode=SimpleNamespace(backend=graphs)),
    )
    overrides = ModuleType("sglang.srt.arg_groups.overrides")
    overrides.resolving_view = lambda given: resolved
    monkeypatch.setitem(sys.modules, overrides.__name__, overrides)
    given = SimpleNamespace(device=None, cuda_graph_config=None)
    if device == "cuda" and graphs != "disabled":
        with pytest.raises(UnsupportedError, match="add --cuda-graph-backend-decode disabled"):
            settings._refuse_policy(given, config("h2o"))
    else:
        settings._refuse_policy(given, config("h2o"))
    settings._refuse_policy(given, config("rkv"))
    with pytest.raises(ConfigError, match="policy must be one of rpc, random"):
        settings._refuse_policy(given, config("bogus"))


def test_a_pipelines_stage_draws_for_its_layers_what_one_rank_does():
    """Of two layers the second one, alone on its stage, though it is the first one there."""
    whole, stage = kept(loop("random")), loop("random")
    layers = [replace(layer, earlier=1) for layer in stage.layers]
    stage.compressor._backend = paths.make_backend(stage.config, layers, stage.ring, stage.req_to_token, None)
    first, second = whole
    assert first != second
    assert kept(stage)[0] == second
