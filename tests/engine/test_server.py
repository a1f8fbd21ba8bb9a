"""A server as a user runs it, over HTTP, on a golden model: refusals of requests, receipts, metrics, pausing."""

from __future__ import annotations

import json
import threading
import time

import pytest

from tests.engine.engines import Golden
from tests.engine.servers import server

MALFORMED = [
    5, "yes", [], [1], True, None, 1.5,
    {"enabled": 1}, {"enabled": "true"}, {"enabled": None}, {"enabled": []},
    {"interval": 0}, {"interval": -1}, {"interval": 1.5}, {"interval": "64"}, {"interval": True}, {"interval": None},
    {"interval": 2**40}, {"interval": [64]},
    {"window": 0}, {"window": -3}, {"window": 9}, {"window": 4096}, {"window": "8"}, {"window": 4.5}, {"window": False},
    {"ratio": 1}, {"ratio": 0}, {"ratio": -4}, {"ratio": "4"}, {"ratio": True}, {"ratio": None}, {"ratio": 65},
    {"ratio": 1e300}, {"interval": 8, "ratio": 9}, {"ratio": [4]},
    {"scope": "thinking"}, {"scope": ""}, {"scope": None}, {"scope": 1}, {"scope": "think"},
    {"aggregation": "group"}, {"intervall": 64}, {"": 1}, {"interval": 64, "P": 64},
]  # fmt: skip


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


@pytest.fixture(scope="module")
def running(golden, tmp_path_factory):
    flags = "--skip-tokenizer-init --dtype float32 --max-total-tokens 4096 --context-length 2048 --enable-metrics"
    config = json.dumps({"interval": 64, "window": 8, "ratio": 4, "scope": "all"})
    with server(
        tmp_path_factory.mktemp("server"),
        *("--model-path", str(golden.path), "--rpc-config", config, "--log-level", "debug", *flags.split()),
        as_users_do=True,
    ) as started:
        yield started


def info(running) -> dict:
    return running.call("/server_info")[1]["internal_states"][0]["rpc"]


@pytest.mark.parametrize("options", MALFORMED, ids=json.dumps)
def test_malformed_options_are_400_with_one_sentence(running, golden, options):
    sampling = {"max_new_tokens": 4, "custom_params": {"rpc": options}}
    status, answer = running.call("/generate", {"input_ids": golden.prompt, "sampling_params": sampling})
    assert status == 400, answer
    message = answer["error"]["message"]
    assert "custom_params.rpc" in message
    assert "\n" not in message
    assert len(message) < 300
    assert running.alive()


def test_the_golden_run_and_its_receipt(running, golden):
    result = running.generate(golden.prompt, len(golden.output))
    assert result["output_ids"] == golden.output
    assert result["meta_info"]["rpc"] == {
        "compressions": 6, "generated": 400, "held": 112, "evicted": 288, "slots_freed": 288, "late": 0,
        "early": 0, "retractions": 0, "restored": 0,
        "interval": 64, "window": 8, "ratio": 4, "min_kept": 0, "scope": "all",
    }  # fmt: skip


def test_streamed_the_receipt_comes_last(running, golden):
    import urllib.request

    body = {
        "input_ids": golden.prompt,
        "sampling_params": {"temperature": 0, "max_new_tokens": 100, "ignore_eos": True},
        "stream": True,
    }
    request = urllib.request.Request(
        running.url + "/generate", data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        lines = [line[6:] for line in response.read().decode().splitlines() if line.startswith("data: ")]
    chunks = [json.loads(line) for line in lines if line != "[DONE]"]
    assert ["rpc" in chunk["meta_info"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["meta_info"]["rpc"]["compressions"] == 1


def test_samples_of_one_prompt_each_have_a_receipt(running, golden):
    results = running.generate(golden.prompt, 150, n=8)
    assert [r["output_ids"] for r in results] == [golden.output[:150]] * 8
    assert [r["meta_info"]["rpc"]["compressions"] for r in results] == [2] * 8
    assert [r["meta_info"]["cached_tokens"] for r in results] == [len(golden.prompt) - 1] * 8


def test_not_asked_and_not_compressed_there_is_no_receipt(running, golden):
    assert "rpc" not in running.generate(golden.prompt, 10)["meta_info"]


def test_metrics_and_server_info_count_what_was_done(running, golden):
    def metric(name: str) -> float:
        text = running.call("/metrics")[1]
        lines = [line for line in text.splitlines() if line.startswith(f"sglang:{name}{{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    before = {name: metric(name) for name in ("rpc_compressions_total", "rpc_evicted_tokens_total")}
    counted = info(running)
    running.generate(golden.prompt, 400)
    assert metric("rpc_compressions_total") == before["rpc_compressions_total"] + 6
    assert metric("rpc_evicted_tokens_total") == before["rpc_evicted_tokens_total"] + 288
    assert metric("rpc_query_slots_in_use") == 0
    running.generate(golden.prompt, 68)  # finishes while its queries are being held
    assert metric("rpc_query_slots_in_use") == 0
    now = info(running)
    assert now["compressions"] == counted["compressions"] + 6
    assert now["requests_compressed"] == counted["requests_compressed"] + 1
    assert now["config"]["interval"] == 64
    assert now["scope_in_effect"] == "all"


def test_the_log_says_what_is_on_and_what_was_done(running, golden):
    running.generate(golden.prompt, 80)
    log = running.log.read_text()
    assert log.count("RPC on: ") == 1
    assert '"interval": 64' in log
    assert "compression 1 at 72 generated tokens, 72 -> 24 entries, 48 slots freed" in log


@pytest.mark.parametrize("mode", ["in_place", "retract", "abort"])
def test_paused_amid_a_run(running, golden, mode):
    """In place: the same tokens. Retracted: it comes back and finishes. Aborted: it says so. Nothing is left."""
    results: list[dict] = []
    thread = threading.Thread(target=lambda: results.append(running.generate(golden.prompt, 400)))
    before = info(running)["compressions"]
    thread.start()
    while info(running)["compressions"] == before:  # the first of six comes at 72 of 400 tokens
        assert thread.is_alive(), "the run was over before it was seen"
    assert running.call("/pause_generation", {"mode": mode})[0] == 200
    time.sleep(0.5)
    assert running.call("/continue_generation", {})[0] == 200
    thread.join(timeout=120)
    assert not thread.is_alive()
    (result,) = results
    meta = result["meta_info"]
    if mode == "in_place":
        assert result["output_ids"] == golden.output
    elif mode == "retract":
        assert len(result["output_ids"]) == 400
        assert meta["num_retractions"] == 1
        assert meta["rpc"]["late"] <= 1
    else:
        assert meta["finish_reason"]["type"] == "abort"
    assert running.generate(golden.prompt, 400)["output_ids"] == golden.output


def test_flushed_when_idle(running, golden):
    running.generate(golden.prompt, 200)
    for _ in range(20):
        if running.call("/flush_cache", method="POST")[0] == 200:
            break
        time.sleep(0.2)
    result = running.generate(golden.prompt, 200)
    assert result["meta_info"]["cached_tokens"] == 0
    assert result["output_ids"] == golden.output[:200]
