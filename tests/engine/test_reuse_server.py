"""A server with `--rpc-reuse share` as a user runs it: the example program, metrics, a flush, and a storm of forks in a
pool that is too small for all of them."""

from __future__ import annotations

import random
import runpy
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sglang_rpc.runtime.aliases import FIRST_VIRTUAL
from tests.engine.engines import Golden
from tests.engine.servers import server

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = runpy.run_path(str(ROOT / "examples" / "fork_thoughts.py"))
P, R = 64, 8
FLAGS = (
    *("--skip-tokenizer-init", "--dtype", "float32", "--max-total-tokens", "1200", "--context-length", "2048"),
    *("--rpc-interval", str(P), "--rpc-window", str(R), "--rpc-scope", "all", "--rpc-reuse", "share"),
    *("--enable-metrics", "--enable-cache-report", "--chunked-prefill-size", "64", "--enable-mixed-chunk"),
    *("--max-running-requests", "8", "--log-level", "warning", "--rpc-query-slots", "8"),
)


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


@pytest.fixture(scope="module")
def running(golden, tmp_path_factory):
    strict = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1", "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1"}
    with server(tmp_path_factory.mktemp("reuse"), "--model-path", str(golden.path), *FLAGS, env=strict) as started:
        yield started


def flush(running) -> None:
    deadline = time.monotonic() + 60
    while running.call("/flush_cache", method="POST")[0] != 200:
        assert time.monotonic() < deadline, "the server does not become idle"
        time.sleep(0.2)


def counted(running, name: str) -> float:
    text = running.call("/metrics")[1]
    lines = [line for line in text.splitlines() if line.startswith(f"sglang:rpc_{name}{{")]
    assert len(lines) == 1, name
    return float(lines[0].split()[-1])


def state(running) -> dict:
    return running.call("/server_info")[1]["internal_states"][0]["rpc"]


def test_the_example_forks_one_thought(running, golden):
    before = counted(running, "reused_requests_total"), counted(running, "reused_tokens_total")
    angles = [[40 + i, 7, 9] for i in range(8)]
    thought, forks = EXAMPLE["think_and_fork"](running.url, golden.prompt, angles, 180, 12, ignore_eos=True)
    assert thought["output_ids"] == golden.output[:180]
    # The first computes the thought's last token too, which the others find.
    lines = [EXAMPLE["receipt_line"](fork) for fork in forks]
    assert lines == [f"136 tokens taken over as 40 KV entries; tokens prefilled: {n}" for n in (4, *[3] * 7)]
    assert counted(running, "reused_requests_total") - before[0] == 8
    assert counted(running, "reused_tokens_total") - before[1] == 8 * 136
    assert counted(running, "aliases") == state(running)["aliases"] >= 1
    assert EXAMPLE["receipt_line"](thought).startswith("nothing taken over (its prompt begins with nothing")


def test_after_a_flush_it_is_prefilled_whole(running, golden):
    thought = running.generate(golden.prompt, 180)
    flush(running)
    assert counted(running, "aliases") == 0
    text = [*golden.prompt, *thought["output_ids"], 7]
    result = running.generate(text, 4, custom_params={"rpc": {}})
    assert result["meta_info"]["cached_tokens"] == 0
    assert result["meta_info"]["rpc"]["reused"] == 0


@pytest.mark.parametrize("rpc", [{}, {"reuse": "off"}, {"enabled": False}], ids=str)
def test_ids_that_are_no_tokens_are_refused(running, golden, rpc):
    """Whatever the request wants: what names another's compressed KV would find it."""
    params = {"max_new_tokens": 4, "custom_params": {"rpc": rpc}}
    for foreign in (-1, 512, FIRST_VIRTUAL):
        body = {"input_ids": [*golden.prompt, foreign, 7], "sampling_params": params}
        status, said = running.call("/generate", body)
        assert status == 400
        assert said["error"]["message"] == f"input_ids must be from 0 to 511, got {foreign} [request.input_ids]"
    assert running.alive()


@pytest.mark.parametrize("mode", ["retract", "in_place"])
def test_paused_while_a_fork_runs(running, golden, mode):
    """After `retract` all of its KV is computed again, from real ids."""
    flush(running)
    thought = running.generate(golden.prompt, 180)
    text = [*golden.prompt, *thought["output_ids"], 7]
    undisturbed = running.generate(text, 400, custom_params={"rpc": {}})
    with ThreadPoolExecutor(1) as pool:
        fork = pool.submit(running.generate, text, 400, custom_params={"rpc": {}})
        time.sleep(0.4)
        assert running.call("/pause_generation", {"mode": mode})[0] == 200
        assert running.call("/continue_generation", {})[0] == 200
        result = fork.result(timeout=120)
    receipt = result["meta_info"]["rpc"]
    assert len(result["output_ids"]) == 400
    assert (receipt["retractions"] > 0) == (mode == "retract")
    assert result["meta_info"]["prompt_tokens"] == len(text)
    if receipt["retractions"] == 0:
        assert result["output_ids"] == undisturbed["output_ids"]
        assert receipt["reused"] == 136
    else:
        assert receipt["reused"] == 0
        assert receipt["not_reused"] == "a pause had its KV computed again"


def test_a_storm_of_forks_leaves_nothing_behind(running, golden):
    """Chains and forks of random lengths: more than the pool holds, some of them aborted, evicting each other."""
    rng = random.Random(11)
    before = state(running)

    def chain(number: int) -> list[dict]:
        draw = random.Random(number)
        text, results = [20 + number % 5, *golden.prompt], []
        for turn in range(4):
            rid = f"chain-{number}-{turn}"
            body = {
                "rid": rid,
                "input_ids": [*text, *(draw.randrange(20, 500) for _ in range(draw.randint(0, 9)))],
                "sampling_params": {
                    "temperature": 0,
                    "ignore_eos": True,
                    "max_new_tokens": draw.randint(1, 170),
                    "custom_params": {"rpc": {"enabled": draw.random() < 0.9}},
                },
            }
            result = running.call("/generate", body)[1]
            if result["meta_info"]["finish_reason"]["type"] == "length":
                text = [*body["input_ids"], *result["output_ids"]]
                assert len(result["output_ids"]) == body["sampling_params"]["max_new_tokens"]
                assert result["meta_info"]["prompt_tokens"] == len(body["input_ids"])
            results.append(result)
        return results

    with ThreadPoolExecutor(7) as pool:  # of more at once, each would evict what another is about to go on from
        chains = [pool.submit(chain, number) for number in range(24)]
        for _ in range(12):
            time.sleep(rng.uniform(0.2, 0.8))
            number, turn = rng.randrange(24), rng.randrange(4)
            running.call("/abort_request", {"rid": f"chain-{number}-{turn}"})
        results = [result for one in chains for result in one.result(timeout=300)]
    assert running.alive()
    assert len(results) == 96
    after = state(running)
    assert after["reused_requests"] - before["reused_requests"] > 5
    assert after["stale_aliases"] - before["stale_aliases"] > 0
    assert (after["host_backup_bytes"], after["query_slots_in_use"]) == (0, 0)
    flush(running)
    used = [line for line in running.call("/metrics")[1].splitlines() if line.startswith("sglang:num_used_tokens{")]
    assert [float(line.split()[-1]) for line in used] == [0.0] * len(used)
