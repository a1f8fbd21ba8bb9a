"""Scores read from the pool in place, against the reference on gathered copies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder

from sglang_rpc.policy import rpc
from sglang_rpc.scoring.key_table import KeyTable
from sglang_rpc.scoring.triton_scores import candidate_scores, log_sum_exp
from tests.kernels.cases import FLOAT8, Case, case, float8_dtypes
from tests.kernels.conftest import INTERPRETED

#: Half a unit in the last place of float32: the relative error of one rounding.
ROUNDING = 2.0**-24
#: Relative error of ex2.approx, 2 units in the last place: on a GPU, Triton's exp(x) is ex2.approx(x * log2(e)).
EX2 = 2.0**-22
#: A score's weights are exp(logit - lse), and lse is the logarithm of two sums of such exponentials, one over a split
#: and one over splits; a running maximum that rises adds another factor to the first.
EXPONENTIALS = 4
#: Roundings of an exponent, relative to the largest logit or lse: 4 by the tensor cores, which truncate a sum every 16
#: dims; 1 by the scaling; 2 by both steps of lse; 1 by the difference; 1 by the product with log2(e), and a quarter of
#: one by that constant's own last place.
ROUNDINGS = 9.25
#: In exponentials: the soft cap's tanh, from one of them and a quotient of up to 2 with an error of 2 units, times cap.
CAPPED = 4


def expected(
    made: Case, index: int, layer: int, selector: str, group: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, float]:
    """The reference's scores, computed in `dtype`: [1 or kv_heads, candidates]; and the largest logit or lse."""
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
    largest = float(logits.abs().max())
    if kv.logit_cap:
        logits = kv.logit_cap * torch.tanh(logits / kv.logit_cap)
    scores = logits.softmax(-1).sum(1)
    return scores if group else scores.sum(0, keepdim=True), max(largest, float(logits.logsumexp(-1).abs().max()))


def check(made: Case, selector: str = "official", group: bool = False) -> None:
    table = KeyTable(made.layers)
    found = candidate_scores(table, made.queries, made.req_to_token, made.batch, selector=selector, group=group)
    assert found.shape[2] == (table.kv_heads if group else 1)
    compare(made, found, selector, group)


def compare(made: Case, found: torch.Tensor, selector: str = "official", group: bool = False) -> None:
    """`found` is as exact as float32 and a GPU's exponentials allow."""
    for layer, kv in enumerate(made.layers):
        for index, c in enumerate(made.compressions):
            exact, largest = expected(made, index, layer, selector, group, torch.float64)
            float32, _ = expected(made, index, layer, selector, group, torch.float32)
            relative = (EXPONENTIALS + CAPPED * kv.logit_cap) * EX2 + ROUNDINGS * largest * ROUNDING
            # Beside that, what float32 makes of the products and sums, whose order is free.
            bound = 2 * (float32 - exact).abs().max() + relative * exact.max()
            ours = found[layer, index, :, : c.candidates]
            assert (ours - exact).abs().max() <= bound, (layer, index, c)
            assert (found[layer, index, :, c.candidates :] == 0).all()


@pytest.mark.parametrize("selector", ["official", "paper"])
@pytest.mark.parametrize("group", [False, True])
def test_equal_to_the_reference(selector, group):
    check(case([(90, 16), (1, 1), (64, 20)]), selector, group)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, *FLOAT8], ids=str)
def test_every_dtype_accumulates_in_float32(dtype):
    # Against float64 on the same stored values: what is rounded is the arithmetic, not the keys.
    check(case([(130, 16), (50, 9)], dtype=dtype, layers=1))


def test_float8_keys_under_float32_queries():
    check(case([(70, 16)], dtype=FLOAT8[0], queries=torch.float32, layers=1))


def test_gpus_before_ada_have_no_e4m3():
    assert float8_dtypes((8, 0)) == (torch.float8_e5m2,)
    assert float8_dtypes((8, 9)) == float8_dtypes((9, 0)) == float8_dtypes(None)
    assert float8_dtypes(None) == (torch.float8_e4m3fn, torch.float8_e5m2)


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
    check(made)


def test_keys_of_different_shapes_are_refused():
    made, other = case([(20, 4)], layers=1), case([(20, 4)], layers=1, head_dim=64)
    with pytest.raises(ValueError, match="one shape"):
        KeyTable([*made.layers, *other.layers])


# ---- the bound ----------------------------------------------------------------------------------------------


def gpus_exponential(sign: int):
    """numpy's exp in float32 as a GPU computes it, with ex2.approx off by all that it may be in one direction."""

    def exp(x: np.ndarray) -> np.ndarray:
        powers = np.exp2((x.astype(np.float32) * np.float32(math.log2(math.e))).astype(np.float64))
        return np.where(x == 0, 1, powers * (1 + sign * EX2)).astype(np.float32)

    return exp


def small_logits() -> Case:
    """Nothing but the exponentials can be off: logits near 0, and few of them."""
    made = case([(3, 1)], layers=1)
    made.queries.mul_(1e-3)
    return made


CASES = {
    "small logits": small_logits,
    "usual": lambda: case([(90, 16), (64, 20)]),
    "many candidates": lambda: case([(2100, 1)], layers=1, kv_heads=1, heads=2, window=4),
    "bfloat16": lambda: case([(130, 16)], dtype=torch.bfloat16, layers=1),
    "soft cap": lambda: case([(90, 16)], cap=2.0, layers=1),
}


@pytest.mark.skipif(not INTERPRETED, reason="a GPU has exponentials of its own")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_bound_has_room_for_a_gpus_exponentials(monkeypatch, name, sign):
    made = CASES[name]()
    arguments = (KeyTable(made.layers), made.queries, made.req_to_token, made.batch)

    def exponentials(sign: int) -> None:
        monkeypatch.setattr(InterpreterBuilder, "create_exp", lambda of, x: of.unary_op(x, gpus_exponential(sign)))

    exponentials(sign)
    lse = log_sum_exp(*arguments, selector="official")
    exponentials(-sign)  # the worst: what the weights are divided by errs in the other direction
    compare(made, candidate_scores(*arguments, selector="official", group=False, lse=lse))


@pytest.mark.parametrize("name", CASES)
def test_the_bound_sees_an_error_in_the_fifth_digit(name):
    made = CASES[name]()
    scores = candidate_scores(
        KeyTable(made.layers), made.queries, made.req_to_token, made.batch, selector="official", group=False
    )
    compare(made, scores)
    with pytest.raises(AssertionError):
        compare(made, scores * (1 + 1e-5))


def test_the_bound_sees_products_in_tf32():
    made, rounded = case([(90, 16)], layers=1), case([(90, 16)], layers=1)
    for tensor in (rounded.queries, rounded.layers[0].keys):
        tensor.copy_((tensor.view(torch.int32) & ~0x1FFF).view(torch.float32))
    table = KeyTable(rounded.layers)
    arguments = (rounded.queries, rounded.req_to_token, rounded.batch)
    scores = candidate_scores(table, *arguments, selector="official", group=False)
    compare(rounded, scores)
    with pytest.raises(AssertionError):
        compare(made, scores)
