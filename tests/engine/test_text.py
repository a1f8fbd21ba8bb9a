"""Real text: a small language model behind the OpenAI API, with a reasoning parser, and the example programs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from openai import OpenAI

from tests.engine.servers import server

ROOT = Path(__file__).resolve().parent.parent.parent
P, R = 32, 8
QUESTION = (
    "A farmer has a garden of 12 by 8 metres and wants to grow tomatoes, beans, carrots and potatoes. "
    "Explain step by step how the ground should be divided and when each of them is sown."
)


@pytest.fixture(scope="module")
def model() -> Path:
    folder = ROOT / ".cache" / "text-model"
    script = Path(__file__).with_name("text_model.py")
    subprocess.run([sys.executable, str(script), str(folder)], check=True, timeout=600)
    return folder


@pytest.fixture(scope="module")
def running(model, tmp_path_factory):
    flags = "--dtype float32 --context-length 2048 --max-total-tokens 8192 --reasoning-parser deepseek-r1"
    with server(
        tmp_path_factory.mktemp("server"),
        *("--model-path", str(model), "--chat-template", str(model / "think_template.jinja"), *flags.split()),
        *("--rpc-interval", str(P), "--rpc-window", str(R), "--enable-cache-report"),
    ) as started:
        yield started


@pytest.fixture(scope="module")
def client(running) -> OpenAI:
    return OpenAI(base_url=running.url + "/v1", api_key="none", timeout=300)


def ask(client: OpenAI, tokens: int, rpc: dict | None = None, **more):
    extra = {"return_meta_info": not more.get("stream", False)}
    if rpc is not None:
        extra["custom_params"] = {"rpc": rpc}
    return client.chat.completions.create(
        model="default",
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=tokens,
        temperature=0,
        extra_body=extra,
        **more,
    )


def sensible(text: str) -> None:
    """Prose, not loops and not garbage."""
    words = text.lower().split()
    assert len(words) > 40, text
    assert len(set(words)) > len(words) / 4, text
    assert sum(character.isascii() for character in text) > 0.95 * len(text), text


def test_eight_samples_of_one_prompt(client):
    ask(client, 1)
    answer = ask(client, 120, n=8)
    for choice in answer.choices:
        assert choice.model_extra["meta_info"]["cached_tokens"] == answer.usage.prompt_tokens - 1
        sensible(choice.message.reasoning_content)
        receipt = choice.model_extra["meta_info"]["rpc"]
        assert receipt["compressions"] == (119 - R) // P
        assert receipt["generated"] == 120
        assert receipt["held"] == 120 - receipt["evicted"]


def test_streamed_and_whole_are_the_same_and_split_as_without(client):
    whole = ask(client, 100).choices[0].message
    thoughts, answer = [], []
    for chunk in ask(client, 100, stream=True):
        if chunk.choices:
            thoughts.append(getattr(chunk.choices[0].delta, "reasoning_content", None) or "")
            answer.append(chunk.choices[0].delta.content or "")
    assert "".join(thoughts) == whole.reasoning_content
    assert "".join(answer) == (whole.content or "")
    # Until the first compression every token is the one SGLang gives, on either side of the split.
    off = ask(client, 100, rpc={"enabled": False}).choices[0]
    assert off.message.reasoning_content[:100] == whole.reasoning_content[:100]
    assert off.model_extra["meta_info"]["rpc"]["reason"] == "switched off by the request"


def test_the_answer_is_never_compressed(client, running):
    """A prompt whose think segment is closed: no template opens one in /v1/completions."""
    prompt = f"{QUESTION}\n<think>\nEasy.\n</think>\nFirst"
    body = {"prompt": prompt, "model": "default", "max_tokens": 90, "temperature": 0}
    status, plain = running.call("/v1/completions", {**body, "custom_params": {"rpc": {"enabled": False}}})
    assert status == 200
    status, gated = running.call("/v1/completions", body)
    assert gated["choices"][0]["text"] == plain["choices"][0]["text"]
    status, all_of_it = running.call("/v1/completions", {**body, "custom_params": {"rpc": {"scope": "all"}}})
    assert all_of_it["choices"][0]["text"] != plain["choices"][0]["text"]


def test_malformed_options_are_400_on_every_endpoint(running):
    params = {"custom_params": {"rpc": {"ratio": 0}}}
    chat = {"model": "default", "messages": [{"role": "user", "content": "hi"}]}
    for path, body in (
        ("/generate", {"text": "hi", "sampling_params": params}),
        ("/v1/completions", {"model": "default", "prompt": "hi", **params}),
        ("/v1/chat/completions", {**chat, **params}),
        ("/v1/chat/completions", {**chat, **params, "stream": True}),
    ):
        status, answer = running.call(path, body)
        assert status == 400, (path, answer)
        assert "custom_params.rpc.ratio must be a number above 1" in str(answer)


INTEGERS = '{"type": "array", "items": {"type": "integer"}, "minItems": 30, "maxItems": 40}'


@pytest.mark.parametrize("constraint", [{"regex": r"([a-z]{2,8} ){40,60}end\."}, {"json_schema": INTEGERS}])
def test_grammars_hold_across_compressions(running, constraint):
    body = {
        "text": f"{QUESTION}\n<think>",
        "sampling_params": {"temperature": 0, "max_new_tokens": 160, **constraint, "custom_params": {"rpc": {}}},
    }
    status, answer = running.call("/generate", body)
    assert status == 200, answer
    assert answer["meta_info"]["rpc"]["compressions"] >= 1, answer
    if answer["meta_info"]["finish_reason"]["type"] == "stop":
        if "regex" in constraint:
            assert re.fullmatch(constraint["regex"], answer["text"])
        else:
            assert all(isinstance(number, int) for number in json.loads(answer["text"]))


def test_a_stop_string_around_the_boundary(running):
    """The text up to the stop string is the same whether the request is compressed just before, at, or after it."""
    body = {"text": f"{QUESTION}\n<think>", "sampling_params": {"temperature": 0, "max_new_tokens": 60}}
    free = running.call("/generate", {**body, "return_logprob": True})[1]
    tokens = len(free["meta_info"]["output_token_logprobs"])
    word = free["text"].split()[20]
    texts = set()
    for interval in range(12, tokens - R, 4):
        params = {**body["sampling_params"], "stop": [word], "custom_params": {"rpc": {"interval": interval}}}
        answer = running.call("/generate", {**body, "sampling_params": params})[1]
        if answer["meta_info"]["rpc"]["compressions"] == 0:
            texts.add(answer["text"])
    assert len(texts) == 1
    assert free["text"].startswith(texts.pop())


@pytest.mark.parametrize("example", ["openai_client.py", "frontend_program.py"])
def test_the_examples_run(running, example):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example), "--base-url", running.url],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    if example == "openai_client.py":
        assert "'compressions': " in done.stdout
        assert "refused: " in done.stdout
    else:
        assert done.stdout.rstrip().splitlines()[-1] in ("answer: yes", "answer: no")


def test_nothing_is_left(running):
    """Every test above ended; the strict checks would have stopped the server."""
    assert running.alive()
    info = running.call("/server_info")[1]["internal_states"][0]
    assert info["rpc"]["query_slots_in_use"] == 0
