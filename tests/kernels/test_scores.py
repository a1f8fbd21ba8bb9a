"""Scores read from the pool in place, against the reference on gathered copies."""

from __future__ import annotations

import pytest
import torch

from sglang_rpc.policy import rpc
from sglang_rpc.scoring.key_table import KeyTable
from sglang_rpc.scoring.triton_scores import candidate_scores, log_sum_exp
from tests.kernels.cases import Case, case

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def expected(made: Case, index: int, layer: int, selector: str, group: bool, dtype: torch.dtype) -> torch.Tensor:
    """The reference's scores, computed in `dtype`: [1 or kv_heads, candidates]."""
    c, kv = made.compressions[index], made.layers[layer]
    length, ring = c.prompt_length + c.generated, made.queries.shape[2]
    entries = torch.arange(length - c.window, length, device=made.queries.device) % ring
    queries = rpc.selector_queries(made.queries[layer, c.slot, entries], selector).to(dtype)
    keys = kv.keys[made.slots(c)[: c.candidates]].view(kv.dtype).to(dtype)
    return _attention(queries, keys, kv, group)


def _attention(queries, keys, kv, group):
    # reference.head_scores, which is float32, in any dtype.
    _, heads, dim = keys.shape
    grouped = queries.view(queries.shape[0], heads, -1, dim).transpose(0, 1).reshape(heads, -1, dim)
    logits = grouped @ keys.permute(1, 2, 0) * kv.scaling
    if kv.logit_cap:
        logits = kv.logit_cap * torch.tanh(logits / kv.logit_cap)
    scores = logits.softmax(-1).sum(1)
    return scores if group else scores.sum(0, keepdim=True)


def check(made: Case, selector: str = "official", group: bool = False, largest_logit: float = 16) -> None:
    table = KeyTable(made.layers)
    found = candidate_scores(table, made.queries, made.req_to_token, made.batch, selector=selector, group=group)
    assert found.shape[2] == (table.kv_heads if group else 1)
    for layer in range(len(made.layers)):
        for index, c in enumerate(made.compressions):
            exact = expected(made, index, layer, selector, group, torch.float64)
            float32 = expected(made, index, layer, selector, group, torch.float32)
            # What float32 makes of it, and the rounding of a logit and of a log-sum-exp, which are exponents here.
            bound = 2 * (float32 - exact).abs().max() + largest_logit * 2**-23 * exact.max()
            ours = found[layer, index, :, : c.candidates]
            assert (ours - exact).abs().max() <= bound, (layer, index, c)
            assert (found[layer, index, :, c.candidates :] == 0).all()


@pytest.mark.parametrize("selector", ["official", "paper"])
@pytest.mark.parametrize("group", [False, True])
def test_equal_to_the_reference(selector, group):
    check(case([(90, 16), (1, 1), (64, 20)]), selector, group)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, *FP8], ids=str)
def test_every_dtype_accumulates_in_float32(dtype):
    # Against float64 on the same stored values: what is rounded is the arithmetic, not the keys.
    check(case([(130, 16), (50, 9)], dtype=dtype, layers=1))


def test_float8_keys_under_float32_queries():
    check(case([(70, 16)], dtype=torch.float8_e4m3fn, queries=torch.float32, layers=1))


@pytest.mark.parametrize("page", [1, 16, 64])
def test_pages(page):
    check(case([(100, 16), (37, 9)], page=page))


@pytest.mark.parametrize("head_dim", [16, 40, 64, 128, 256, 288])
def test_head_dims(head_dim):
    # 288 is more than one tile, and no multiple of one: the latent of MLA is 576.
    check(case([(70, 16)], head_dim=head_dim, layers=1, value_dim=8))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (7, 1), (12, 2), (128, 1)])
def test_heads(heads, kv_heads):
    check(case([(33, 8), (80, 8)], heads=heads, kv_heads=kv_heads, window=4, layers=1))


@pytest.mark.parametrize("window", [1, 2, 32])
@pytest.mark.parametrize("selector", ["official", "paper"])
def test_windows(window, selector):
    check(case([(40, 8)], window=window, layers=1), selector)


def test_a_soft_cap_on_logits():
    check(case([(90, 16)], cap=2.0))


@pytest.mark.parametrize("candidates", [1, 2, 63, 64, 65, 1023, 1024, 1025, 5000])
def test_any_number_of_candidates(candidates):
    check(case([(candidates, 1)], layers=1, kv_heads=1, heads=2, window=4))


@pytest.mark.filterwarnings("ignore:divide by zero")  # the interpreter's log of an empty split
def test_splits_of_requests_that_are_much_shorter():
    # The short request has no candidates in the long one's later splits.
    made = case([(2100, 9), (5, 2)], layers=1, window=4)
    found = log_sum_exp(KeyTable(made.layers), made.queries, made.req_to_token, made.batch, selector="paper")
    assert found.isfinite().all()
    check(made)


def test_large_logits_do_not_overflow():
    made = case([(90, 16)], layers=1)
    made.queries.mul_(300)
    check(made, largest_logit=4000)


def test_keys_of_different_shapes_are_refused():
    made, other = case([(20, 4)], layers=1), case([(20, 4)], layers=1, head_dim=64)
    with pytest.raises(ValueError, match="one shape"):
        KeyTable([*made.layers, *other.layers])
