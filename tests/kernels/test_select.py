"""Pooling and selection, index for index."""

from __future__ import annotations

import pytest
import torch

from sglang_rpc.scoring import reference
from sglang_rpc.scoring.triton_select import select
from sglang_rpc.types import Compression, CompressionBatch
from tests.kernels.cases import DEVICE


def batch(sizes: list[tuple[int, int]]) -> CompressionBatch:
    made = [Compression(row=0, generated=n + 1, window=1, begin=1, end=n + 2, keep=keep) for n, keep in sizes]
    assert [c.candidates for c in made] == [n for n, _ in sizes]
    return CompressionBatch.of(made, DEVICE)


def scores(sizes: list[tuple[int, int]], layers: int, heads: int, distinct: bool = True) -> torch.Tensor:
    """Whole numbers, so that sums over neighbours are exact and their ties are the reference's ties."""
    most = max(n for n, _ in sizes)
    made = torch.Generator().manual_seed(most)
    found = torch.zeros(layers, len(sizes), heads, most)
    for index, (n, _) in enumerate(sizes):
        shape = (layers, heads, n)
        found[:, index, :, :n] = torch.rand(shape, generator=made) if distinct else torch.ones(shape)
    return found.to(DEVICE)


def check(sizes, layers=2, heads=2, kernel_size=7, pooling="avg"):
    given = scores(sizes, layers, heads)
    kept = select(given, batch(sizes), kernel_size, pooling)
    for layer in range(layers):
        for index, (n, keep) in enumerate(sizes):
            own = given[layer, index, :, :n]
            ours = kept[layer, index, :, :keep].long()
            assert (ours.diff(dim=1) > 0).all()
            assert ours.min() >= 0
            assert ours.max() < n
            expected = reference.select(own, keep, kernel_size, pooling)
            pooled = reference.pool(own, kernel_size, pooling)
            if pooling in ("avg", "pairs"):
                assert torch.equal(ours, expected)
            else:  # neighbours share their maximum, so ties are everywhere: what is kept must score as much
                assert torch.equal(pooled.gather(1, ours).sort().values, pooled.gather(1, expected).sort().values)


@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("kernel_size", [1, 3, 7, 31])
def test_equal_to_the_reference(pooling, kernel_size):
    check([(90, 16), (40, 40), (1, 1), (500, 123)], kernel_size=kernel_size, pooling=pooling)


def test_pairs_equal_to_the_reference():
    check([(90, 70), (40, 30), (1, 1), (2, 1), (1500, 1100)], kernel_size=2, pooling="pairs")  # halves are kept too


@pytest.mark.parametrize("n", [1, 2, 3, 255, 256, 257, 2047, 2048, 2049, 5000])
def test_any_number_of_candidates(n):
    check([(n, max(1, n // 4))], layers=1)
    check([(n, n)], layers=1, heads=1)
    check([(n, 1)], layers=1, heads=1)


def test_of_equal_scores_the_earlier_is_kept():
    sizes = [(100, 37), (3000, 2999)]
    kept = select(scores(sizes, 1, 1, distinct=False), batch(sizes), 1, "avg")
    for index, (_, keep) in enumerate(sizes):
        assert torch.equal(kept[0, index, 0, :keep].cpu(), torch.arange(keep, dtype=torch.int32))


def test_ties_around_the_threshold():
    given = torch.tensor([3.0, 1.0, 2.0, 2.0, 5.0, 2.0, 0.0, 2.0], device=DEVICE).view(1, 1, 1, 8)
    kept = select(given, batch([(8, 4)]), 1, "avg")
    assert kept.flatten().tolist() == [0, 2, 3, 4]


def test_scores_that_are_no_numbers_do_not_change_the_count():
    given = scores([(300, 50)], 1, 1)
    given[0, 0, 0, 7:90] = float("nan")
    given[0, 0, 0, 120] = float("inf")
    kept = select(given, batch([(300, 50)]), 7, "avg").flatten()
    assert (kept.diff() > 0).all()
    assert kept.min() >= 0
    assert kept.max() < 300


def test_what_stands_behind_the_candidates_is_not_looked_at():
    given = scores([(50, 10), (90, 20)], 1, 1)
    given[0, 0, 0, 50:] = 1e9
    kept = select(given, batch([(50, 10), (90, 20)]), 7, "avg")
    assert torch.equal(kept[0, 0, 0, :10].long(), reference.select(given[0, 0, :, :50], 10, 7, "avg")[0])
