"""Traces of a real engine: what they say was kept is what an oracle keeps, and they add up to the receipts."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from eval.trace_view import holdings, reader
from tests.engine.engines import Golden, assert_balanced, engine, greedy, look_inside
from tests.engine.oracle import Oracle, Rule


class WatchedOracle(Oracle):
    """Notes which candidates stay, [layer][KV head], at each compression: told from the keys that are left."""

    def gaps(self, prompt, output, rule):
        self.kept: list[list[list[list[int]]]] = []
        return super().gaps(prompt, output, rule)

    def _compress(self, rule, prompt, keep, cache, recent):
        before = [keys for keys, _ in cache]
        closest = super()._compress(rule, prompt, keep, cache, recent)
        self.kept.append(
            [
                [self._left(old[prompt : len(old) - rule.window, head], new[:, head]) for head in range(old.shape[1])]
                for old, (new, _) in zip(before, cache, strict=True)
            ]
        )
        return closest

    @staticmethod
    def _left(candidates, keys) -> list[int]:
        return (candidates[:, None] == keys[None]).all(-1).any(1).nonzero().flatten().tolist()


def traces(folder: Path, wanted: int) -> dict[str, reader.Trace]:
    """By rid; the writer is a thread in another process, so wait until `wanted` of them have their last line."""
    for _ in range(200):
        found = [reader.read(file) for file in folder.iterdir()]
        if sum(trace.receipt is not None for trace in found) >= wanted and not any(trace.cut for trace in found):
            return {trace.header["rid"]: trace for trace in found}
        time.sleep(0.1)
    raise AssertionError(f"of {len(found)} traces too few are finished")


def check(trace: reader.Trace, result: dict) -> holdings.Holdings:
    receipt = result["meta_info"]["rpc"]
    assert trace.receipt == receipt
    assert trace.output == result["output_ids"]
    found = holdings.compose(trace)
    end = found.stages[-1]
    assert (len(trace.compressions), end.held, end.evicted) == tuple(
        receipt[name] for name in ("compressions", "held", "evicted")
    )
    assert (found.held(len(found.stages) - 1).sum(1) == receipt["held"]).all()
    return found


def assert_kept_by_the_oracle(trace: reader.Trace, golden: Golden) -> None:
    c, oracle = golden.config, WatchedOracle(golden.path)
    rule = Rule(c.interval, c.window, c.ratio, c.kernel_size, c.pooling, c.aggregation == "group")
    oracle.gaps(trace.prompt, trace.output, rule)
    assert len(oracle.kept) == len(trace.compressions) > 2
    assert trace.heads == (oracle.kv_heads if c.aggregation == "group" else 1)
    for wanted, compression in zip(oracle.kept, trace.compressions, strict=True):
        found = compression.kept.reshape(trace.layers, trace.heads, -1)
        for layer, heads in enumerate(wanted):
            for head in range(trace.heads):
                assert np.flatnonzero(found[layer, head]).tolist() == heads[head], (compression.event, layer, head)


def test_each_head_has_its_own(goldens, tmp_path):
    golden = Golden.load(goldens / "gqa_group_p64")
    with engine(golden.path, replace(golden.config, trace=str(tmp_path / "traces"))) as running:
        prompts = [golden.prompt, golden.prompt[:9]]
        results = running.generate(input_ids=prompts, sampling_params=greedy(len(golden.output)))
        running.generate(input_ids=golden.prompt, sampling_params=greedy(40))  # never compressed: no file
        found = traces(tmp_path / "traces", len(results))
        assert_balanced(look_inside(running, tmp_path, [1]))
    assert results[0]["output_ids"] == golden.output
    assert len(found) == len(results)
    for result in results:
        trace = found[result["meta_info"]["id"]]
        check(trace, result)
        assert_kept_by_the_oracle(trace, golden)


def test_retracted_restored_and_aborted_in_pages(goldens, tmp_path, monkeypatch):
    monkeypatch.setenv("SGLANG_TEST_RETRACT", "1")
    golden = Golden.load(goldens / "gqa_all_p64")
    folder = tmp_path / "traces"
    with engine(golden.path, replace(golden.config, trace=str(folder)), page_size=16) as running:
        prompts = [golden.prompt, golden.prompt[:-2]]
        results = running.generate(input_ids=prompts, sampling_params=greedy(len(golden.output)))
        assert sum(result["meta_info"]["rpc"]["restored"] for result in results) > 5
        found = traces(folder, len(results))

        async def abort_one() -> None:
            asked = running.async_generate(input_ids=golden.prompt, sampling_params=greedy(1500), rid="../../gone")
            task = asyncio.create_task(asked)
            for _ in range(600):
                await asyncio.sleep(0.1)
                if any(file.name.endswith("-gone.jsonl") for file in folder.iterdir()):
                    break
            running.tokenizer_manager.abort_request(rid="../../gone")
            await asyncio.gather(task, return_exceptions=True)

        running.loop.run_until_complete(abort_one())
        assert_balanced(look_inside(running, tmp_path, [1]))
        time.sleep(1)
        aborted = traces(folder, len(results))["../../gone"]
    for result in results:
        trace = found[result["meta_info"]["id"]]
        assert len(check(trace, result).epochs) == 1  # what came back was what had left
        assert_kept_by_the_oracle(trace, golden)
    assert aborted.finish is None or aborted.finish["type"] == "abort"
    assert holdings.compose(aborted).stages[1].evicted > 0
    assert aborted.output


def test_retracted_and_prefilled_again(goldens, tmp_path, monkeypatch):
    monkeypatch.setenv("SGLANG_TEST_RETRACT", "1")
    monkeypatch.setenv("SGLANG_TEST_RETRACT_INTERVAL", "40")  # so that compressions come between
    golden = Golden.load(goldens / "gqa_all_p64")
    rpc = replace(golden.config, trace=str(tmp_path / "traces"), host_backup_gb=0, interval=24, window=2, ratio=3)
    with engine(golden.path, rpc) as running:
        prompts = [golden.prompt[:n] for n in (23, 9)]
        results = running.generate(input_ids=prompts, sampling_params=greedy(300))
        found = traces(tmp_path / "traces", len(results))
    epochs = 0
    for result in results:
        epochs += len(check(found[result["meta_info"]["id"]], result).epochs)
    assert epochs > len(results)  # rebuilt rows, and everything held again
