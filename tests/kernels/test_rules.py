"""Every score rule in the kernels, against the oracle in float64; and policy peak in a played decode loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sglang_rpc.backends.triton_backend import TritonBackend
from sglang_rpc.config import RPCConfig
from sglang_rpc.memory import triton_compaction
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.policy import peak, rpc
from sglang_rpc.policy.resolve import find_policy
from sglang_rpc.scoring import reference, triton_scores, triton_select
from sglang_rpc.scoring.key_table import KeyTable, ValueTable
from sglang_rpc.scoring.triton_scores import candidate_scores, log_sum_exp
from sglang_rpc.scoring.triton_select import select
from sglang_rpc.types import ScoreRule
from tests.kernels.cases import DEVICE, Case, case
from tests.kernels.test_scores import CAPPED, EX2, EXPONENTIALS, ROUNDING, ROUNDINGS
from tests.loops import decode_loop, rule_oracle

RULES = {
    f"{softmax}, {over_queries} over queries, {over_heads} over heads": ScoreRule(softmax, over_queries, over_heads)
    for softmax in ("candidates", "visible")
    for over_queries in ("sum", "max", "squares")
    for over_heads in ("sum", "max")
}
PEAK = peak.RULE
RELATIVES = {"peak": peak.peak.rule, "grouped": peak.grouped.rule, "squares": peak.squares.rule}


def gathered(made: Case, index: int, layer: int, selector: str):
    """Queries [R, heads, dim], keys of the whole row and values of the candidates, as stored numbers in float32."""
    c, kv = made.compressions[index], made.layers[layer]
    length, ring = c.prompt_length + c.generated, made.queries.shape[2]
    entries = torch.arange(length - c.window, length, device=DEVICE) % ring
    row = made.req_to_token[c.row, : c.end].long()
    candidates = row[c.begin : c.end - c.window]
    queries = rpc.selector_queries(made.queries[layer, c.slot, entries], selector)
    keys, values = kv.keys[row].view(kv.dtype), kv.values[candidates].view(kv.dtype)
    return queries.float(), keys.float(), values.float()


def exact(made: Case, index: int, layer: int, rule: ScoreRule, selector: str) -> torch.Tensor:
    """float64 [kv_heads, N]; positions are places in the row."""
    c, kv = made.compressions[index], made.layers[layer]
    queries, keys, values = (tensor.cpu() for tensor in gathered(made, index, layer, selector))
    group = queries.shape[1] // keys.shape[1]
    return torch.stack(
        [
            rule_oracle.scores(
                rule,
                queries=queries[:, head * group : (head + 1) * group],
                at=list(range(c.end - c.window, c.end)),
                keys=keys[:, head],
                positions=list(range(c.end)),
                candidates=list(range(c.begin, c.end - c.window)),
                norms=values[:, head].double().norm(dim=-1),
                scaling=kv.scaling,
                logit_cap=kv.logit_cap,
            )
            for head in range(keys.shape[1])
        ]
    )


def in_kernels(made: Case, rule: ScoreRule, group: bool, selector: str = "paper") -> torch.Tensor:
    return candidate_scores(
        KeyTable(made.layers),
        made.queries,
        made.req_to_token,
        made.batch,
        selector=selector,
        group=group,
        rule=rule,
        values=ValueTable.of(made.layers) if rule.value_power else None,
    )


def check(made: Case, rule: ScoreRule, group: bool = False, selector: str = "paper") -> None:
    compare(made, in_kernels(made, rule, group, selector), rule, group, selector)


def compare(made: Case, found: torch.Tensor, rule: ScoreRule, group: bool = False, selector: str = "paper") -> None:
    """`found` is as exact as float32 and a GPU's exponentials allow; see test_scores.compare."""
    for layer, kv in enumerate(made.layers):
        for index, c in enumerate(made.compressions):
            queries, keys, values = gathered(made, index, layer, selector)
            wanted = exact(made, index, layer, rule, selector)
            wanted = wanted if group else wanted.sum(0, keepdim=True)
            over = keys if rule.visible else keys[c.begin : c.end - c.window]
            float32 = reference.head_scores(
                queries, over, kv.scaling, kv.logit_cap, group, rule=rule, before=c.begin, values=values
            ).cpu()
            grouped = keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
            largest = float((torch.einsum("ihd,jhd->hij", queries, grouped) * kv.scaling).abs().max())
            largest += float(torch.tensor(float(c.end)).log())  # of a log-sum-exp
            relative = (EXPONENTIALS + CAPPED * kv.logit_cap) * EX2 + ROUNDINGS * largest * ROUNDING
            relative *= 2 if rule.over_queries == "squares" else 1
            relative += rule.value_power * values.shape[2] * ROUNDING
            bound = 2 * (float32 - wanted).abs().max() + relative * wanted.max()
            ours = found[layer, index, :, : c.candidates].cpu()
            assert (ours - wanted).abs().max() <= bound, (layer, index, c)
            assert (found[layer, index, :, c.candidates :] == 0).all()


@pytest.mark.parametrize(
    ("name", "power"),
    [(name, 1) for name in RULES] + [(name, 0) for name, rule in RULES.items() if rule.over_queries != "squares"],
)
def test_every_rule_equals_the_oracle(name, power):
    rule = replace(RULES[name], value_power=power)
    for group in (False, True):
        check(case([(90, 16), (1, 1), (33, 20)], heads=6, window=5, layers=1), rule, group)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule.visible])
def test_candidates_only_rules_take_the_newest_twice(name):
    check(case([(40, 16)], layers=1), RULES[name], selector="official")


SHAPES = {
    "bfloat16": dict(dtype=torch.bfloat16),
    "float16, narrow values": dict(dtype=torch.float16, value_dim=24),
    "float8": dict(dtype=torch.float8_e5m2),
    "pages": dict(page=16),
    "soft cap": dict(cap=2.0),
    "as many KV heads": dict(heads=4, kv_heads=4),
    "seven heads of one": dict(heads=7, kv_heads=1, window=3),
    "window of one": dict(window=1),
    "several tiles of queries": dict(heads=4, window=70),
    "several tiles of dims": dict(head_dim=288, value_dim=130, heads=2, kv_heads=1),
}


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        *((shape, "peak") for shape in SHAPES),
        *(
            (shape, name)
            for shape in ("seven heads of one", "several tiles of queries")
            for name in ("grouped", "squares")
        ),
    ],
)
def test_shapes(shape, name):
    check(case([(70, 16), (9, 2)], **{"layers": 1, "window": 4, **SHAPES[shape]}), RELATIVES[name])


def test_latents_whose_values_are_a_part_of_the_keys():
    made = case([(40, 16)], heads=16, kv_heads=1, head_dim=72, layers=1, window=3)
    made.layers = [replace(layer, values=layer.keys[..., :64]) for layer in made.layers]
    check(made, PEAK)


@pytest.mark.filterwarnings("ignore:divide by zero")  # the interpreter's log of a split of which a query sees nothing
@pytest.mark.parametrize("candidates", [1, 63, 64, 65, 1019, 1020, 1021, 1024, 2100])
def test_any_number_of_columns_in_splits(candidates):
    # The last split may hold only columns that the older queries do not see.
    made = case([(candidates, 1)], layers=1, kv_heads=1, heads=2, window=4, head_dim=16)
    c = replace(made.compressions[0], begin=0, prompt_length=0, end=candidates + 4)
    made.compressions = [c]
    lse = log_sum_exp(
        KeyTable(made.layers), made.queries, made.req_to_token, made.batch, selector="paper", visible=True
    )
    assert lse.isfinite().all()
    check(made, PEAK)


@pytest.mark.filterwarnings("ignore:divide by zero")  # the interpreter's log of an empty split
def test_rows_of_very_different_lengths():
    check(case([(1500, 9), (5, 2)], layers=1, window=4, heads=2, head_dim=16), PEAK)


def test_large_logits_do_not_overflow():
    made = case([(90, 16)], layers=1)
    made.queries.mul_(30)
    for layer in made.layers:
        layer.values.mul_(1000)
    found = in_kernels(made, PEAK, group=False)
    assert found.isfinite().all()
    compare(made, found, PEAK)


@pytest.mark.parametrize("name", RELATIVES)
def test_the_bound_sees_an_error_in_the_fourth_digit(name):
    made = case([(90, 16)], layers=1)
    found = in_kernels(made, RELATIVES[name], group=False)
    compare(made, found, RELATIVES[name])
    with pytest.raises(AssertionError):
        compare(made, found * (1 + 1e-4), RELATIVES[name])


def test_where_the_ring_begins_and_in_which_order_requests_come_does_not_matter():
    made = case([(90, 16), (20, 5), (64, 20)], layers=1)
    found = in_kernels(made, PEAK, group=False)
    turned = replace(made, queries=made.queries.roll(3, 2))
    turned.compressions = [replace(c, generated=c.generated + 3) for c in made.compressions]
    assert torch.equal(in_kernels(turned, PEAK, group=False), found)
    made.compressions.reverse()
    assert torch.equal(in_kernels(made, PEAK, group=False), found.flip(1))


LARGER = dict(sizes=[(300, 75), (64, 20)], layers=2, window=6)
OTHERS = {
    "bfloat16": dict(sizes=[(90, 20)], dtype=torch.bfloat16, layers=1, window=6, page=16),
    "float8": dict(sizes=[(90, 20)], dtype=torch.float8_e5m2, layers=1, window=6),
    "seven heads of one, a soft cap": dict(sizes=[(90, 20)], heads=7, kv_heads=1, layers=1, window=5, cap=3.0),
}


@pytest.mark.parametrize(
    ("name", "group", "shape"),
    [
        *((name, group, LARGER) for name in RELATIVES for group in (False, True)),
        *(("peak", False, shape) for shape in OTHERS.values()),
    ],
)
def test_kernels_keep_what_the_reference_keeps_index_for_index(name, group, shape):
    made, rule = case(**shape), RELATIVES[name]
    kept = select(in_kernels(made, rule, group), made.batch, 1, "max")
    for layer, kv in enumerate(made.layers):
        for index, c in enumerate(made.compressions):
            queries, keys, values = gathered(made, index, layer, "paper")
            scores = reference.head_scores(
                queries, keys, kv.scaling, kv.logit_cap, group, rule=rule, before=c.begin, values=values
            )
            ranked = scores.sort(descending=True).values
            assert ((ranked[:, c.keep - 1] - ranked[:, c.keep]) > 1e-5 * ranked[:, c.keep - 1]).all(), "a near tie"
            wanted = reference.select(scores, c.keep, 1, "max")
            assert torch.equal(kept[layer, index, :, : c.keep].long(), wanted)


def test_values_that_kernels_would_misread_are_refused():
    made, other = case([(20, 4)], layers=1), case([(20, 4)], layers=1, value_dim=16)
    with pytest.raises(ValueError, match="values of one shape"):
        ValueTable.of([*made.layers, *other.layers])
    (layer,) = made.layers
    with pytest.raises(ValueError, match="neighbours in memory"):
        ValueTable.of([replace(layer, values=layer.values[..., ::2])])
    with pytest.raises(ValueError, match="begin on 16 bytes"):
        ValueTable.of([replace(layer, values=layer.values[..., 1:])])
    with pytest.raises(AssertionError):
        candidate_scores(
            KeyTable(made.layers), made.queries, made.req_to_token, made.batch, selector="paper", group=False, rule=PEAK
        )


# ---- the whole backend ----------------------------------------------------------------------------------------------


def Loop(policy: str, aggregation: str = "all", **others) -> decode_loop.Loop:
    settings = decode_loop.config(policy=policy, aggregation=aggregation, scoring="triton")
    return decode_loop.Loop(settings, oracle=rule_oracle.RuleOracle, device=DEVICE, **others)


@pytest.mark.parametrize(
    ("policy", "aggregation"),
    [
        pytest.param("peak", "all", marks=pytest.mark.long),
        ("peak", "group"),
        pytest.param("sglang_rpc.policy.peak:grouped", "all", marks=pytest.mark.long),
        ("sglang_rpc.policy.peak:paired", "all"),
        pytest.param("sglang_rpc.policy.peak:paired", "group", marks=pytest.mark.long),
    ],
)
def test_keeps_what_the_oracle_keeps(policy, aggregation):
    loop = Loop(policy, aggregation)
    assert loop.compressor.scoring == "triton"
    first = loop.add(row=1)
    loop.run(7)
    second = loop.add(row=2, prompt=9, window=2, interval=10)
    assert loop.record_ahead(first)
    loop.run(8)
    loop.evict_early(first, 4)
    loop.run(30)
    assert first.early
    assert len(first.done) >= 2
    assert len(second.done) >= 2


def test_latents_in_the_whole_backend():
    loop = Loop("peak", heads=4, kv_heads=1, latent=True)
    loop.add()
    loop.run(40)
    assert len(loop.requests[0].done) == 2


def launches(monkeypatch, policy: str) -> int:
    """Kernels that one compression of two requests launches."""
    made = case([(9, 4), (5, 2)], layers=1, heads=2, head_dim=16, window=2)
    ring = QueryRing(layers=1, slots=4, rows=8, window=2, heads=2, head_dim=16, dtype=torch.float32, device=DEVICE)
    backend = TritonBackend(RPCConfig(policy=policy), find_policy(policy), made.layers, ring, made.req_to_token, None)
    counted = []
    for module in (triton_scores, triton_select, triton_compaction):
        for name, kernel in vars(module).copy().items():
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, Counted(kernel, counted))
    backend.compress(made.compressions)
    return len(counted)


class Counted:
    def __init__(self, kernel, counted):
        self.kernel, self.counted = kernel, counted

    def __getitem__(self, grid):
        self.counted.append(self.kernel)
        return self.kernel[grid]


@pytest.mark.parametrize("policy", ["rpc", "peak", "sglang_rpc.policy.peak:squares"])
def test_a_compression_takes_six_launches_under_every_rule(monkeypatch, policy):
    assert launches(monkeypatch, policy) == 6


def test_scratch_memory_counts_the_whole_row_where_the_softmax_does():
    made = case([(9, 2)], layers=1)
    ring = QueryRing(layers=1, slots=1, rows=2, window=4, heads=4, head_dim=32, dtype=torch.float32, device=DEVICE)

    def more(policy: str) -> int:
        """Bytes that 50 splits of prompt add."""
        given = (RPCConfig(policy=policy), find_policy(policy), made.layers, ring, made.req_to_token, None)
        backend = TritonBackend(*given)
        return backend._bytes(100, 100 + 50 * triton_scores.SPLIT) - backend._bytes(100, 100)

    assert more("rpc") == 0
    assert more("peak") == 50 * 4 * 4 * 4  # float32, window, heads


def test_requests_that_are_cut_into_parts_each_have_their_longest_row(monkeypatch):
    """Short candidates in a long row, beside long candidates in a short one."""
    made = case([(40, 2), (9, 2)], layers=1, window=4)
    ring = QueryRing(layers=1, slots=4, rows=8, window=4, heads=4, head_dim=32, dtype=torch.float32, device=DEVICE)
    backend = TritonBackend(RPCConfig(policy="peak"), find_policy("peak"), made.layers, ring, made.req_to_token, None)
    long, short = made.compressions
    short = replace(short, begin=500, end=513)
    asked = []
    monkeypatch.setattr(backend, "_bytes", lambda candidates, end: asked.append((candidates, end)) or 0)
    assert list(backend._parts([long, short])) == [[long, short]]
    assert asked == [(40, 513)]
