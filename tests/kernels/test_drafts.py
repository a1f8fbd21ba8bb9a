"""A draft's row, compressed by the kernels, against the same in PyTorch."""

from __future__ import annotations

import pytest
import torch

from sglang_rpc.backends.triton_backend import TritonBackend
from tests.kernels.cases import DEVICE
from tests.loops.draft_row import Case, compression


@pytest.mark.parametrize("policy", ["rpc", "peak"])
@pytest.mark.parametrize("aggregation", ["all", "group"])
@pytest.mark.parametrize("more", [{}, {"query_before": False}], ids=["aligned", "no query"])
def test_keeps_what_the_reference_keeps(aggregation, policy, more):
    found = Case(aggregation, policy, backend=TritonBackend, device=DEVICE)
    wanted, c = Case(aggregation, policy), compression(**more)
    before = wanted.draft[0].values.clone()
    for case in (found, wanted):
        case.compress(c)
    assert not torch.equal(wanted.draft[0].values, before)
    for layer, reference in zip((*found.model, *found.draft), (*wanted.model, *wanted.draft), strict=True):
        slots = wanted.table[1, : c.new_end].long()  # what lies after them is nobody's
        for buffer, expected in ((layer.keys, reference.keys), (layer.values, reference.values)):
            assert torch.equal(buffer.cpu()[slots], expected[slots])
