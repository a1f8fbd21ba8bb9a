"""Gemma 3 270M, a real model with windows in five layers of six: served, judged, and compared with stock SGLang."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from openai import BadRequestError, OpenAI
from transformers import AutoTokenizer

from tests.engine.oracle import Rule
from tests.engine.servers import Server, server
from tests.engine.test_random import SELECTION_TOLERANCE
from tests.engine.test_text import sensible
from tests.engine.windows import TOLERANCE, Judge

# A download of 238 MB and ten minutes of a core; windows of small models are judged in each run (test_windows.py).
pytestmark = pytest.mark.long
torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent.parent
REACH = 511  #: entries before its own that a token of a window layer sees
P, R, C = 64, 32, 4
KEPT = REACH - R  #: the least that leaves windows whole
#: The first date whose candidates are more than KEPT is P * 8 + R, the second P more.
TOKENS, COMPRESSIONS, EVICTED = 620, 2, 512 - KEPT + P
STORY = "The keeper of the lighthouse had lived alone on the island for eleven years when, one autumn evening,"
PROMPTS = (
    STORY,
    "Chapter 1. How rivers shape the land\n\nWater that falls as rain in the mountains",
    "Recipe for a vegetable soup that serves six people.\n\nIngredients:\n",
)
#: They begin as earlier ones did, or do not.
LATER = (*PROMPTS, STORY * 6, STORY * 6, STORY * 6 + " a ship came in", STORY[:50], "Once upon a time", STORY * 6)
FLAGS = "--dtype float32 --context-length 2048 --max-total-tokens 8192 --random-seed 0 --enable-cache-report"
RPC_FLAGS = f"--rpc-interval {P} --rpc-window {R} --rpc-ratio {C} --rpc-min-kept {KEPT} --rpc-scope all"


@pytest.fixture(scope="module")
def model() -> Path:
    folder = ROOT / ".cache" / "gemma-model"
    command = [sys.executable, "-m", "tests.engine.gemma_model", str(folder)]
    subprocess.run(command, check=True, timeout=900, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def stock_hits(model, tmp_path_factory) -> list[int]:
    flags = ("--model-path", str(model), *FLAGS.split())
    with server(tmp_path_factory.mktemp("stock"), *flags, module="tests.engine.stock_server") as running:
        cached_tokens(running, PROMPTS)
        return cached_tokens(running, LATER)


@pytest.fixture(scope="module")
def running(model, stock_hits, tmp_path_factory):
    """After the stock server has ended: each holds a gigabyte of weights."""
    flags = ("--model-path", str(model), *FLAGS.split(), *RPC_FLAGS.split())
    with server(tmp_path_factory.mktemp("server"), *flags) as started:
        yield started


@pytest.fixture(scope="module")
def client(running) -> OpenAI:
    return OpenAI(base_url=running.url + "/v1", api_key="none", timeout=900)


@pytest.fixture(scope="module")
def written(running) -> list[dict]:
    """Answers to PROMPTS, drawn from the most probable tokens; a model as small as this repeats itself otherwise."""
    sampling = {"temperature": 1, "top_k": 30, "max_new_tokens": TOKENS, "ignore_eos": True}
    body = {"text": list(PROMPTS), "sampling_params": sampling, "return_logprob": True}
    status, answers = running.call("/generate", body, timeout=1500)
    assert status == 200, answers
    return answers


def cached_tokens(running: Server, prompts: Sequence[str]) -> list[int]:
    """Of each prompt, once eight tokens answered the one before it."""
    sampling = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
    answers = [running.call("/generate", {"text": text, "sampling_params": sampling}) for text in prompts]
    assert [status for status, _ in answers] == [200] * len(prompts), answers
    return [answer["meta_info"]["cached_tokens"] for _, answer in answers]


def test_the_text_is_sensible_and_the_receipts_are_as_planned(written):
    for answer in written:
        sensible(answer["text"])
        receipt = answer["meta_info"]["rpc"]
        assert receipt["compressions"] == COMPRESSIONS, receipt
        assert receipt["evicted"] == EVICTED, receipt
        assert receipt["held"] == TOKENS - EVICTED, receipt
        assert receipt["late"] == 0, receipt


def test_each_token_has_the_probability_that_the_judge_gives_it(written, model):
    """The judge keeps all KV, and hides from layers with full attention alone what was evicted."""
    judge, tokenizer = Judge(model, REACH), AutoTokenizer.from_pretrained(model)
    assert len(judge.full) == 3
    judged = 0
    for prompt, answer in zip(PROMPTS, written, strict=True):
        ids, output = tokenizer(prompt).input_ids, answer["output_ids"]
        expected, _, closest = judge.logprobs(ids, output, Rule(P, R, C), KEPT)
        assert judge.events == COMPRESSIONS
        actual = torch.tensor([logprob for logprob, _, _ in answer["meta_info"]["output_token_logprobs"]])
        off = (actual - expected).abs()
        uncompressed, _, _ = judge.logprobs(ids, output, None)
        apart = (actual - uncompressed).abs()
        print(f"off {off.max():.1e} from the judge, {apart.max():.1e} from full KV, closest cut {closest:.1e}")
        first = P * 8 + R
        assert apart[:first].max() < TOLERANCE
        assert apart[first:].max() > 1e-2  # the judge tells the two apart
        if closest > SELECTION_TOLERANCE:
            assert off.max() < TOLERANCE, (int(off.argmax()), closest)
            judged += 1
    assert judged > len(PROMPTS) // 2


def test_prefixes_are_hit_as_in_stock(running, stock_hits, written, model):
    """After answers to PROMPTS that were compressed: their prompts are there, as if nothing had happened."""
    assert cached_tokens(running, LATER) == stock_hits
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert stock_hits[: len(PROMPTS)] == [len(tokenizer(prompt).input_ids) - 1 for prompt in PROMPTS]


def test_the_openai_client_gets_text_and_refusals(client):
    chosen = {"model": "default", "prompt": STORY, "max_tokens": 24, "temperature": 0}
    answer = client.completions.create(**chosen)
    assert answer.usage.completion_tokens == 24
    off = client.completions.create(**chosen, extra_body={"custom_params": {"rpc": {"enabled": False}}})
    assert off.choices[0].text == answer.choices[0].text  # no compression came in so few tokens
    short = {"custom_params": {"rpc": {"interval": P, "window": R, "ratio": C, "min_kept": 0}}}
    with pytest.raises(BadRequestError, match=f"interval {C * KEPT} or min_kept {KEPT} would do"):
        client.completions.create(**chosen, extra_body=short)


def test_nothing_is_left(running):
    assert running.alive()
    assert running.call("/server_info")[1]["internal_states"][0]["rpc"]["query_slots_in_use"] == 0
