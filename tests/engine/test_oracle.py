"""The oracle itself agrees with the authors' code."""

import pytest

from tests.engine.engines import GOLDENS, Golden
from tests.engine.oracle import Oracle, Rule


def rule_of(golden: Golden) -> Rule:
    c = golden.config
    return Rule(c.interval, c.window, c.ratio, c.kernel_size, c.pooling, c.aggregation == "group")


@pytest.mark.parametrize("name", GOLDENS)
def test_the_oracle_knows_the_goldens(goldens, name):
    golden = Golden.load(goldens / name)
    oracle = Oracle(golden.path)
    assert max(oracle.gaps(golden.prompt, golden.output, rule_of(golden))[0]) == 0
    assert max(oracle.gaps(golden.prompt, golden.full, None)[0]) == 0
    assert max(oracle.gaps(golden.prompt, golden.output, None)[0]) > 0.01  # it can tell the two apart
