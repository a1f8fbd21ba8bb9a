"""Two HTTP workers (`--tokenizer-worker-num 2`): each checks options and adds receipts, and both count alike."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from sglang_rpc.contract import versions
from sglang_rpc.contract.refusals.server import APP_VARIABLE
from tests.engine.engines import Golden
from tests.engine.servers import Server, run_to_exit, server

FIXED_APP = APP_VARIABLE in versions.current().absent_variables
RULE = {"interval": 64, "window": 8, "ratio": 4, "scope": "all"}
FLAGS = "--skip-tokenizer-init --dtype float32 --max-total-tokens 4096 --context-length 2048 --tokenizer-worker-num 2"


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


@pytest.fixture(scope="module")
def running(golden, tmp_path_factory) -> Iterator[Server]:
    if FIXED_APP:
        pytest.skip("this SGLang's HTTP workers import an app that cannot be named")
    with server(
        tmp_path_factory.mktemp("server"),
        *("--model-path", str(golden.path), "--rpc-config", json.dumps(RULE), "--enable-metrics", *FLAGS.split()),
        # A worker that is stopped answers nobody, and shall not be replaced for it.
        env={"SGLANG_UVICORN_WORKER_HEALTHCHECK_TIMEOUT": "600"},
        as_users_do=True,
    ) as started:
        yield started


@pytest.fixture(params=[0, 1])
def one_worker(request, running) -> Iterator[Server]:
    """The server, of whose two workers only this one runs."""
    workers, until = workers_of(running), time.monotonic() + 60
    while len(workers) < 2 and time.monotonic() < until:  # one answers as soon as it is up, the other may not be yet
        time.sleep(0.5)
        workers = workers_of(running)
    assert len(workers) == 2
    other = workers[1 - request.param]
    other.send_signal(signal.SIGSTOP)
    try:
        yield running
    finally:
        other.send_signal(signal.SIGCONT)


def workers_of(running: Server) -> list[psutil.Process]:
    children = psutil.Process(running.process.pid).children()
    return sorted((child for child in children if "tokenizer_worker" in title(child)), key=lambda child: child.pid)


def title(process: psutil.Process) -> str:
    return " ".join(process.cmdline())


def test_each_worker_refuses_a_malformed_option_and_adds_the_receipt(one_worker, golden):
    for options in ({"ratio": 1}, {"intervall": 64}, 5):
        sampling = {"max_new_tokens": 4, "custom_params": {"rpc": options}}
        status, answer = one_worker.call("/generate", {"input_ids": golden.prompt, "sampling_params": sampling})
        assert status == 400, answer
        assert answer["error"]["message"].startswith("custom_params.rpc")
    result = one_worker.generate(golden.prompt, len(golden.output))
    assert result["output_ids"] == golden.output
    assert result["meta_info"]["rpc"]["compressions"] == 6
    assert "rpc" not in one_worker.generate(golden.prompt, 10)["meta_info"]


def test_requests_at_once_are_counted_once(running, golden):
    def count() -> tuple[float, int]:
        name = "sglang:rpc_compressions_total{"
        lines = [line for line in running.call("/metrics")[1].splitlines() if line.startswith(name)]
        state = running.call("/server_info")[1]["internal_states"][0]["rpc"]
        assert state["query_slots_in_use"] == 0
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines), state["compressions"]

    before, results = count(), []
    threads = [
        threading.Timer(0.1 * i, lambda: results.append(running.generate(golden.prompt, len(golden.output))))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert [result["output_ids"] for result in results] == [golden.output] * 8
    assert [result["meta_info"]["rpc"]["compressions"] for result in results] == [6] * 8
    for _ in range(4):  # whichever worker answers
        assert count() == (before[0] + 48, before[1] + 48)


def test_where_the_workers_app_is_another_one_the_server_is_refused(golden):
    code, output = run_to_exit(
        *("--model-path", str(golden.path), *FLAGS.split()), env={APP_VARIABLE: "tests.engine.preloaded:app"}
    )
    assert code == 1
    last = output.rstrip().splitlines()[-1]
    assert last.startswith("sglang-rpc: --tokenizer-worker-num 2 with ")
    assert last.endswith("[unsupported.tokenizer_workers]")
