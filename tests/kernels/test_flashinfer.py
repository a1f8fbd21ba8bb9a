"""FlashInfer's log-sum-exp against ours; on a GPU only.

The package is imported by each test, so that one which is missing or broken fails these alone.
"""

from __future__ import annotations

import pytest
import torch

from sglang_rpc.scoring.key_table import KeyTable
from sglang_rpc.scoring.triton_scores import candidate_scores, log_sum_exp
from tests.kernels.cases import case


@pytest.mark.parametrize("selector", ["official", "paper"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_equal_within_the_dtypes_rounding(dtype, head_dim, selector):
    from sglang_rpc.scoring.flashinfer_lse import FlashInferLSE

    made = case([(700, 16), (33, 9), (2000, 100)], dtype=dtype, head_dim=head_dim)
    made.layers = [layer.__class__(layer.keys, layer.values, dtype, head_dim**-0.5) for layer in made.layers]
    table = KeyTable(made.layers)
    arguments = (table, made.queries, made.req_to_token, made.batch)
    ours = log_sum_exp(*arguments, selector=selector)
    theirs = FlashInferLSE(made.layers, made.queries)(made.compressions, made.req_to_token, selector=selector)
    rows = made.compressions[0].window * 2  # query heads a KV head
    torch.testing.assert_close(theirs[..., :rows], ours[..., :rows], atol=2e-2, rtol=0)
    scores = [
        candidate_scores(*arguments, selector=selector, group=False, lse=lse[..., : ours.shape[-1]].contiguous())
        for lse in (ours, theirs)
    ]
    torch.testing.assert_close(scores[1], scores[0], rtol=3e-2, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_whole_rows_log_sum_exp_is_causal_in_the_newest_columns(dtype):
    from sglang_rpc.scoring.flashinfer_lse import FlashInferLSE

    made = case([(700, 16), (33, 9), (2000, 100)], dtype=dtype, head_dim=64)
    made.layers = [layer.__class__(layer.keys, layer.values, dtype, 64**-0.5) for layer in made.layers]
    # Newest keys that are like later queries: seen where they must not be, they would show.
    for c in made.compressions:
        own = made.req_to_token[c.row, c.end - c.window : c.end].long()
        for layer in made.layers:
            layer.keys[own] *= 4
    arguments = (KeyTable(made.layers), made.queries, made.req_to_token, made.batch)
    lse = FlashInferLSE(made.layers, made.queries)
    ours = log_sum_exp(*arguments, selector="paper", visible=True)
    theirs = lse(made.compressions, made.req_to_token, selector="paper", visible=True)
    rows = made.compressions[0].window * 2  # query heads a KV head
    torch.testing.assert_close(theirs[..., :rows], ours[..., :rows], atol=2e-2, rtol=0)
    with pytest.raises(AssertionError, match="another token"):
        lse(made.compressions, made.req_to_token, selector="official", visible=True)


def test_what_flashinfer_has_no_kernel_for_is_refused():
    from sglang_rpc.scoring.flashinfer_lse import FlashInferLSE

    made = case([(20, 4)], dtype=torch.float32)
    with pytest.raises(ValueError, match="no kernel"):
        FlashInferLSE(made.layers, made.queries)
