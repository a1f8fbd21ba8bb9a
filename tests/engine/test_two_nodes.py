"""One server on two nodes: two launchers on the loopback, a rank each."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.bench.server import free_port
from tests.engine.engines import Golden, six_requests
from tests.engine.oracle import Oracle, Rule
from tests.engine.servers import START_SECONDS, Server, started, wait_for

RULE = {"interval": 64, "window": 8, "ratio": 4, "scope": "all"}
ON = ("--rpc-config", json.dumps(RULE))


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


@contextlib.contextmanager
def two_nodes(folder: Path, model: Path, *rpc: tuple[str, ...]) -> Iterator[list[Server]]:
    """Both nodes, started at once with these flags each; the first one serves."""
    flags = "--skip-tokenizer-init --dtype float32 --max-total-tokens 4096 --context-length 2048"
    shape = f"--device cpu --nnodes 2 --tp-size 2 --dist-init-addr 127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                started(
                    folder / f"node{rank}.log",
                    *("--model-path", str(model), "--node-rank", str(rank), *flags.split(), *shape.split(), *own),
                )
            )
            for rank, own in enumerate(rpc)
        ]


@pytest.fixture(scope="module")
def running(golden, tmp_path_factory) -> Iterator[Server]:
    with two_nodes(tmp_path_factory.mktemp("nodes"), golden.path, ON, ON) as (first, _second):
        wait_for(first)
        yield first


def test_six_requests_at_once_give_what_one_server_gives(running, golden):
    """Each is compressed at other times than the others, for they come one after another and have other prompts."""
    requests = six_requests(golden)
    results: dict[int, dict] = {}

    def ask(index: int) -> None:
        results[index] = running.generate(*requests[index])

    threads = [threading.Timer(0.2 * index, ask, (index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    oracle, rule = Oracle(golden.path), Rule(64, 8, 4)
    for index, (prompt, _) in enumerate(requests):
        output = results[index]["output_ids"]
        assert results[index]["meta_info"]["rpc"]["compressions"] == (len(output) - 1 - 8) // 64
        if prompt == golden.prompt:
            assert output == golden.output[: len(output)]
        else:
            assert max(oracle.gaps(prompt, output, rule)[0]) < 1e-3


def test_nothing_is_left(running):
    state = running.call("/server_info")[1]["internal_states"][0]["rpc"]
    assert state["query_slots_in_use"] == 0
    assert state["compressions"] > 0


def ends(node: Server) -> str:
    """What the node logged, once it has ended. Fails if it does not end, or not with an error."""
    try:
        code = node.process.wait(START_SECONDS)
    except subprocess.TimeoutExpired:
        pytest.fail(f"it does not end:\n{node.log.read_text(errors='replace')[-3000:]}")
    assert code != 0
    return node.log.read_text(errors="replace")


def sentence(log: str) -> str:
    (said,) = {line for line in log.splitlines() if line.startswith("sglang-rpc: ")}
    return said


def test_nodes_with_other_flags_end_with_a_sentence(golden, tmp_path):
    other = ("--rpc-config", json.dumps({**RULE, "interval": 128}))
    with two_nodes(tmp_path, golden.path, ON, other) as nodes:
        for rank, log in enumerate(map(ends, nodes)):
            said = sentence(log)
            assert said.startswith(f"sglang-rpc: every rank must have the same RPC settings: rank {1 - rank} of 2 has ")
            assert said.endswith("[config.ranks_differ]")
            assert '"interval": 128' in said
            assert "Traceback" not in log


# Waits half a minute for the node that says nothing; tests/unit/test_agreement.py waits half a second.
@pytest.mark.long
def test_a_node_without_rpc_ends_the_others_with_a_sentence(golden, tmp_path):
    with two_nodes(tmp_path, golden.path, ON, ("--disable-rpc",)) as (with_rpc, without):
        log = ends(with_rpc)
        assert sentence(log).startswith("sglang-rpc: rank 1 of 2 said no RPC settings within 30 s of the start")
        assert "Traceback" not in log
        ends(without)  # SGLang's own words: it has lost its peer
