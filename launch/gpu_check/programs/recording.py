"""Eight requests of one recorded run in a real engine: seven with RPC, one without. Are the tokens the recorded ones?

Kernels of another backend sum in another order, and a model of random weights has near ties. So what must hold is that
the oracle would have chosen each token too; how far the tokens are equal is shown beside it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.gpu_check.programs import say
from tests.engine import engines
from tests.engine.oracle import Oracle
from tests.engine.test_oracle import rule_of

#: A token's logit may lie this far below the oracle's best.
TOLERANCE = 5e-3
WITH_RPC = 7


@dataclass(frozen=True)
class Run:
    results: list[dict[str, Any]]  #: those with RPC, then the one without
    scoring: str
    seen: dict[str, Any]  #: of `engines.look_inside`
    start_seconds: float


def main(name: str, page_size: int, device: str) -> None:
    from tests.conftest import ROOT

    folder = Path(os.environ.get("SGLANG_RPC_GOLDENS") or ROOT.parent / "shared" / "goldens")
    golden = engines.Golden.load(folder / name)
    found = run(golden, page_size, device)
    say(
        f"{name}, pages of {page_size}: an engine in {found.start_seconds:.0f} s, scoring {found.scoring}, "
        f"decode steps {found.seen['decodes']}"
    )
    judge(golden, found, device)
    say(f"{name}: OK, {len(golden.output)} tokens, {golden.compressions} compressions per request")


def run(golden: engines.Golden, page_size: int, device: str) -> Run:
    n, began = len(golden.output), time.monotonic()
    started = engines.engine(golden.path, golden.config, device=device, page_size=page_size)
    with started as running, tempfile.TemporaryDirectory() as folder:
        start_seconds = time.monotonic() - began
        off = engines.greedy(n, rpc={"enabled": False})
        results = running.generate(
            input_ids=[golden.prompt] * (WITH_RPC + 1), sampling_params=[*[engines.greedy(n)] * WITH_RPC, off]
        )
        scoring = running.get_server_info()["internal_states"][0]["rpc"]["scoring"]
        return Run(results, scoring, engines.look_inside(running, Path(folder), [1]), start_seconds)


def judge(golden: engines.Golden, found: Run, device: str) -> None:
    """Says what was found, then raises AssertionError where it is not what it must be."""
    oracle, n = Oracle(golden.path), len(golden.output)
    with_rpc, alone = found.results[:WITH_RPC], found.results[WITH_RPC]
    rule = rule_of(golden)
    gap = max(max(oracle.gaps(golden.prompt, result["output_ids"], rule)[0]) for result in with_rpc)
    gap_alone = max(oracle.gaps(golden.prompt, alone["output_ids"], None)[0])
    receipts = [result["meta_info"]["rpc"] for result in with_rpc]
    first = [equal(result["output_ids"], golden.output) for result in with_rpc]
    say(f"with RPC: tokens equal up to {first} of {n}, the oracle's largest gap {gap:.2g}")
    say(
        f"with RPC: compressions {[receipt['compressions'] for receipt in receipts]}, recorded {golden.compressions}; "
        f"late {sum(receipt['late'] for receipt in receipts)}"
    )
    say(f"without: equal up to {equal(alone['output_ids'], golden.full)} of {n}, largest gap {gap_alone:.2g}")
    engines.assert_balanced(found.seen)
    assert all(receipt["compressions"] == golden.compressions for receipt in receipts), "a compression is missing"
    assert not any(receipt["late"] for receipt in receipts), "compressions came late: too few query slots?"
    if device == "cuda":
        assert found.scoring == "triton", "the Triton kernels are not used; the log says why"
        assert found.seen["decodes"]["eager"] == 0, "decode steps ran outside of CUDA graphs"
    assert gap_alone < TOLERANCE, (
        "without RPC there are tokens that the oracle would not have chosen: is SGLang itself right?"
    )
    assert gap < TOLERANCE, "with RPC, tokens were chosen that the oracle would not have"


def equal(ours: list[int], theirs: list[int]) -> int:
    """How many tokens are equal from the beginning on."""
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))


if __name__ == "__main__":  # needed: SGLang spawns its scheduler
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--page-size", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    given = parser.parse_args()
    main(given.name, given.page_size, given.device)
