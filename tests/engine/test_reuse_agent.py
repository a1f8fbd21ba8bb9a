"""The example agent: each turn goes on with what the turns before thought, by the OpenAI client and `input_ids`."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from openai import OpenAI

from tests.engine.servers import server

ROOT = Path(__file__).resolve().parents[2]
AGENT = runpy.run_path(str(ROOT / "examples" / "agent_loop.py"))
P, R, TOKENS = 64, 8, 100
RESULT = [9, 11, 13, 17]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    flags = ("--rpc-interval", str(P), "--rpc-window", str(R), "--rpc-scope", "all", "--rpc-reuse", "continue")
    model = ("--model-path", str(ROOT / "eval" / "reasoner" / "model"), "--dtype", "float32")
    sizes = ("--max-total-tokens", "2048", "--context-length", "2048", "--log-level", "warning")
    with server(tmp_path_factory.mktemp("agent"), *model, *sizes, *flags) as started:
        yield OpenAI(base_url=started.url + "/v1", api_key="none", timeout=300)


def test_each_turn_goes_on_with_the_thoughts_before(client):
    seen = []

    def act(text: str) -> list[int] | None:
        seen.append(text)
        return RESULT if len(seen) < 4 else None

    turns = AGENT["run"](client, list(range(5, 45)), act, 6, TOKENS, ignore_eos=True)
    assert [len(turn.output_ids) for turn in turns] == [TOKENS] * 4
    receipts = [turn.meta["rpc"] for turn in turns]
    assert [receipt["continued"] for receipt in receipts] == [0, 100, 200, 300]
    assert sum(receipt["compressions"] for receipt in receipts) == (4 * TOKENS - 1 - R) // P
    computed = [turn.meta["prompt_tokens"] - turn.meta["cached_tokens"] for turn in turns]
    assert computed[1:] == [len(RESULT) + 1] * 3, "the newest token of the turn before, and the tool's result"
    assert turns[3].line.endswith(f"tokens prefilled: {len(RESULT) + 1}")


def test_its_tool_and_how_it_is_called():
    call = '<tool_call>{"name": "calculate", "arguments": {"expression": "17 * 23 - 4 * 19"}}</tool_call>'
    assert AGENT["called"](f"I think {call} that") == "17 * 23 - 4 * 19"
    assert AGENT["called"]("<tool_call>nothing that can be read</tool_call>") is None
    assert AGENT["calculate"]("17 * 23 - 4 * 19") == "315"
    assert AGENT["calculate"]("__import__('os')") == "not an expression of numbers"
