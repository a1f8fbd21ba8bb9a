"""Speculative decoding over the OpenAI API: stop strings, grammars, log probabilities, and what a server says of it."""

from __future__ import annotations

import json

import pytest
from openai import OpenAI

from tests.engine.servers import server
from tests.engine.test_text import ask, model  # noqa: F401

pytestmark = pytest.mark.long
SCHEMA = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 99},
    "minItems": 30,
    "maxItems": 40,
}
FLAGS = (
    *["--dtype", "float32", "--context-length", "2048", "--max-total-tokens", "8192", "--disable-overlap-schedule"],
    *["--rpc-interval", "32", "--rpc-window", "8", "--rpc-scope", "all", "--enable-metrics"],
    "--constrained-json-disable-any-whitespace",
)


def answers(running) -> list:
    """Texts, reasons and tokens of requests that end in different ways."""
    client = OpenAI(base_url=running.url + "/v1", api_key="none", timeout=600)
    said = []
    for more in (
        {"tokens": 120},
        {"tokens": 120, "stop": ["carrots"]},
        {"tokens": 120, "logprobs": True, "top_logprobs": 2},
        {"tokens": 250, "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}}},
    ):
        answer = ask(client, **more)
        choice = answer.choices[0]
        tokens = None if choice.logprobs is None else [each.token for each in choice.logprobs.content]
        said.append((choice.message.content, choice.finish_reason, tokens))
    return said


@pytest.mark.parametrize("drafts", [4])
def test_as_without_drafts(model, tmp_path_factory, drafts):  # noqa: F811
    folder = tmp_path_factory.mktemp("servers")
    speculation = (
        *("--speculative-algorithm", "STANDALONE", "--speculative-draft-model-path", str(model)),
        *("--speculative-num-steps", str(drafts - 1), "--speculative-eagle-topk", "1"),
        *("--speculative-num-draft-tokens", str(drafts)),
    )
    for name in ("plain", "drafting"):
        (folder / name).mkdir()
    with server(folder / "plain", "--model-path", str(model), *FLAGS) as running:
        expected = answers(running)
    with server(folder / "drafting", "--model-path", str(model), *FLAGS, *speculation) as running:
        found = answers(running)
        _, metrics = running.call("/metrics")
        _, info = running.call("/server_info")
    assert found == expected
    assert 30 <= len(json.loads(found[3][0])) <= 40
    assert found[1][1] == "stop"
    counts = {
        line.split("{")[0]: float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("sglang:rpc_")
    }
    assert counts["sglang:rpc_speculative_tokens_total"] > counts["sglang:rpc_speculative_steps_total"] > 0
    assert counts["sglang:rpc_speculative_tokens_compressed_total"] > 0
    assert counts["sglang:rpc_speculative_cuts_total"] == info["internal_states"][0]["rpc"]["speculative_cuts"] > 0
