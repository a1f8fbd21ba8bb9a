"""Models whose window layers have a KV pool of their own: rows that are retracted, and prompts that come again."""

from __future__ import annotations

import random

import pytest
import torch

from sglang_rpc import RPCConfig
from tests.engine.engines import engine, flush, greedy, look_inside
from tests.engine.oracle import Rule
from tests.engine.replay import ReplayJudge, events_of, traced
from tests.engine.test_random import SELECTION_TOLERANCE
from tests.engine.window_pool import FAMILIES, assert_both_pools_balanced, generate, write_both
from tests.engine.windows import TOLERANCE

torch.set_num_threads(1)  # more threads on these tiny tensors only fight the server for the cores

#: What takes rows from requests: arguments, environment, and whether admission knows how long they get.
RETRACTIONS = {
    "page 1": (dict(page_size=1), "16", True),
    "page 16": (dict(page_size=16), "16", True),
    "memory is short": (dict(page_size=1, max_total_tokens=700, schedule_conservativeness=0.02), None, False),
}


@pytest.mark.parametrize(
    "how", ["memory is short", *(pytest.param(f"page {n}", marks=pytest.mark.long) for n in (1, 16))]
)
def test_retracted_and_prefilled_again(how, tmp_path, monkeypatch):
    """Without a host backup: a row is built anew, uncompressed, and compressed late. Or early, to spare one that."""
    args, every, known = RETRACTIONS[how]
    served, judged = write_both(tmp_path, "mellum")
    monkeypatch.setenv("SGLANG_SWA_EVICTION_INTERVAL", "1")
    if every is not None:
        monkeypatch.setenv("SGLANG_TEST_RETRACT", "1")
        monkeypatch.setenv("SGLANG_TEST_RETRACT_INTERVAL", every)
    folder, reach = tmp_path / "trace", FAMILIES["mellum"].reach
    rpc = RPCConfig(interval=64, window=8, ratio=2, scope="all", window_pool="swa", trace=str(folder))
    with engine(served, rpc, **args, chunked_prefill_size=32, enable_mixed_chunk=True) as running:
        prompts, options, results = generate(running, reach, args["page_size"], ignore_eos=known)
        assert_both_pools_balanced(look_inside(running, tmp_path, prompts[0]))
        flush(running)
    receipts = [result["meta_info"]["rpc"] for result in results]
    traces = traced(folder, sum(receipt["compressions"] > 0 for receipt in receipts))
    judge, right, again, early = ReplayJudge(judged, reach), 0, 0, 0
    for prompt, rpc, result, receipt in zip(prompts, options, results, receipts, strict=True):
        events = events_of(traces.get(tuple(prompt), []))
        rebuilt = sum(event.keep is None for event in events)
        rule = Rule(rpc.get("interval", 1), rpc.get("window", 1), rpc.get("ratio", 1))
        expected, closest = judge.replayed(prompt, result["output_ids"], rule, events)
        actual = torch.tensor([logprob for logprob, _, _ in result["meta_info"]["output_token_logprobs"]])
        off = (actual - expected).abs().max()
        print(rpc, f"off {off:.1e} closest cut {closest:.1e} rebuilt {rebuilt}", receipt)
        # A row that was built anew twice between two compressions, or after the last, is not told by its trace.
        if closest > SELECTION_TOLERANCE and (receipt["retractions"] == rebuilt or not events):
            assert off < TOLERANCE, receipt
            right, again, early = right + 1, again + rebuilt, early + receipt["early"]
    assert right > len(prompts) // 2
    assert again > 2 if known else early > 2


def test_the_same_prompt_again(tmp_path):
    """What a compressed request leaves in the tree is as much as an uncompressed one does, and right."""
    served, _ = write_both(tmp_path, "mellum")
    rng = random.Random(3)
    prompt = [rng.randrange(20, 500) for _ in range(50)]
    compressing = {"interval": 32, "window": 8, "ratio": 2}
    with engine(served, RPCConfig(interval=64, window=8, ratio=2, scope="all", window_pool="swa")) as running:
        seen = {}
        for name, rpc in (("uncompressed", {"enabled": False}), ("compressed", compressing)):
            runs = []
            for text in (prompt, prompt, [*prompt, 9, 8, 7]):
                result = running.generate(input_ids=text, sampling_params=greedy(150, rpc=rpc))
                runs.append((result["output_ids"], result["meta_info"]["cached_tokens"]))
            fresh = []
            for text in (prompt, [*prompt, 9, 8, 7]):
                flush(running)
                fresh.append(running.generate(input_ids=text, sampling_params=greedy(150, rpc=rpc))["output_ids"])
            assert [output for output, _ in runs] == [fresh[0], fresh[0], fresh[1]]
            seen[name] = [cached for _, cached in runs]
            flush(running)
        assert seen["compressed"] == seen["uncompressed"]
        assert min(seen["compressed"][1:]) >= 40, seen
        assert_both_pools_balanced(look_inside(running, tmp_path, prompt))
