"""Speculative decoding over the OpenAI API: stop strings, grammars, log probabilities, and what a server says of it."""

from __future__ import annotations

import json

import pytest
from openai import OpenAI

from sglang_rpc import RPCConfig
from tests.engine.engines import engine
from tests.engine.servers import server
from tests.engine.speculative import AHEAD, speculating
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


def test_stop_strings_and_grammars_under_overlap(model):  # noqa: F811
    """Of requests that run together, so that a step that one has to wait for is the others' step too."""
    common = dict(skip_tokenizer_init=False, grammar_backend="xgrammar", constrained_json_disable_any_whitespace=True)
    config = RPCConfig(interval=32, window=8, ratio=4, scope="all")
    greedy = {"temperature": 0, "max_new_tokens": 250, "ignore_eos": True}
    params = [
        greedy,
        {**greedy, "stop": ["carrots"]},
        {**greedy, "stop": [" the"], "max_new_tokens": 120},
        {**greedy, "ignore_eos": False, "json_schema": json.dumps(SCHEMA)},
        {**greedy, "max_new_tokens": 32 + 8 + 1},
    ]
    prompts = ["List vegetables, one by one:", "Vegetables: potatoes,", "Once upon a time", "Numbers:", "A poem:"]
    found = []
    for context in (
        engine(model, config, disable_overlap_schedule=True, **common),
        speculating(model, config, model, 4, **AHEAD, **common),
    ):
        with context as running:
            found.append(running.generate(prompt=prompts, sampling_params=params))
    plain, ahead = found
    for result, expected in zip(ahead, plain, strict=True):
        assert result["text"] == expected["text"]
        assert result["meta_info"]["finish_reason"] == expected["meta_info"]["finish_reason"]
    assert plain[2]["meta_info"]["finish_reason"]["type"] == "stop"
    assert 30 <= len(json.loads(plain[3]["text"])) <= 40
    assert sum(result["meta_info"].get("rpc", {}).get("compressions", 0) for result in ahead) > 8
