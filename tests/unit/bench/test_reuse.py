"""The benchmark of reuse: pools that every arm can be asked in, and ratios of the same repetition."""

from __future__ import annotations

import pytest

from eval.bench import reuse
from eval.bench.reuse_loads import Sizes

SIZES = Sizes(prompt=10, thought=100, forks=8, own=20, turns=5, step=30, result=5, chunk=16, chunks=6, at_once=4)


def test_the_widest_load_holds_each_thought_once():
    assert SIZES.widest == 4 * (10 + 100 + 8 * 21)
    assert SIZES.longest == 10 + 5 * 35


@pytest.mark.parametrize("shape", sorted(reuse.PRESETS))
def test_the_smallest_pool_holds_the_longest_text_whole(shape):
    sizes, _ = reuse.PRESETS[shape]
    found = reuse.pools(sizes)
    assert found["ample"] > sizes.widest
    assert sizes.longest + 64 <= found["quarter"] < sizes.widest / 3


def row(arm: str, repetition: int, **numbers: float) -> dict[str, str]:
    values = {name: 1.0 for name in (*reuse.COMPARED, "reused_requests", "compressions")} | numbers
    key = {"load": "fork", "pool": "ample", "arm": arm, "repetition": str(repetition)}
    return {**key, **{name: str(value) for name, value in values.items()}}


def test_ratios_are_of_the_same_repetition():
    """One of the machine's speeds twice the other's: the ratio is 0.5 in both, and of the medians it would not be."""
    rows = [row("stock", 0, first_token_ms=100), row("share", 0, first_token_ms=50)]
    rows += [row("stock", 1, first_token_ms=1000), row("share", 1, first_token_ms=500)]
    (line,) = [line for line in reuse.summary(rows).splitlines() if "| share |" in line]
    assert "275 (0.50)" in line


def test_a_number_that_was_not_read_is_no_ratio():
    rows = [row("stock", 0), row("rpc", 0)]
    rows[0]["kv_peak"] = ""
    (line,) = [line for line in reuse.summary(rows).splitlines() if "| rpc |" in line]
    assert line.count("(") == len(reuse.COMPARED) - 1
