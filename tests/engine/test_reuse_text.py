"""`--rpc-reuse-text`, served: text that comes back has the ids that were generated, and takes over what they thought.

A model with random weights writes what no tokenizer would make of its text.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.request
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sglang_rpc.contract import versions
from sglang_rpc.contract.refusals.server import APP_VARIABLE
from tests import small_tokenizers
from tests.engine.dense import Dims, write_model
from tests.engine.servers import server

P, R = 64, 8
FLAGS = (
    *("--dtype", "float32", "--max-total-tokens", "4096", "--context-length", "2048", "--log-level", "warning"),
    *("--rpc-interval", str(P), "--rpc-window", str(R), "--rpc-scope", "all", "--rpc-reuse", "continue"),
    *("--max-running-requests", "8", "--rpc-query-slots", "8"),
)
PROMPT = "What does the License say of derivative works?\n"
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
#: No special token, whose text would be hidden.
PLAIN = {"logit_bias": {"0": -100, "1": -100}}


def write_llama(path: Path) -> Path:
    """A Llama of random weights with a tokenizer of its own, which text can be sent to."""
    write_model(path, dims=Dims(hidden=128, wide=128, vocabulary=512))
    weights = load_file(path / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.endswith(".bias")}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False}
    (path / "config.json").write_text(json.dumps(config))
    tokenizer = small_tokenizers.plain()
    tokenizer.save_pretrained(path)
    (path / "chat.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llama"))


def started(model, folder, *flags):
    return server(folder, "--model-path", str(model), "--chat-template", str(model / "chat.jinja"), *FLAGS, *flags)


@pytest.fixture(scope="module")
def running(model, tmp_path_factory):
    with started(model, tmp_path_factory.mktemp("on"), "--rpc-reuse-text", "16") as server_:
        yield server_


def ask(running, prompt, tokens, rpc=None, **more):
    """One greedy request for text, or for a list of texts, or for ids."""
    kind = "text" if isinstance(prompt, str) or isinstance(prompt[0], str) else "input_ids"
    own = {name: more.pop(name) for name in ("stop", "n") if name in more}
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True, **PLAIN, **own}
    sampling["custom_params"] = {"rpc": rpc or {}}
    status, result = running.call("/generate", {kind: prompt, "sampling_params": sampling, **more})
    assert status == 200, result
    return result


def flush(running):
    while running.call("/flush_cache", method="POST")[0] != 200:
        time.sleep(0.1)


def receipt(result):
    return result["meta_info"]["rpc"]


def ids_of(text):
    return small_tokenizers.plain().encode(text)


def test_a_thought_that_comes_back_as_text_is_taken_over(running):
    first = ask(running, PROMPT, 150)
    thought, text = first["output_ids"], PROMPT + first["text"] + " Go on."
    assert ids_of(text) != [*ids_of(PROMPT), *thought, *ids_of(" Go on.")]
    by_text = ask(running, text, 40)
    assert receipt(by_text)["continued"] == 150
    assert receipt(by_text)["reused"] == 136
    assert receipt(by_text)["reused_text"] == len(ids_of(PROMPT)) + 150
    by_ids = ask(running, [*ids_of(PROMPT), *thought, *ids_of(" Go on.")], 40)
    assert by_text["output_ids"] == by_ids["output_ids"]
    assert by_text["meta_info"]["prompt_tokens"] == by_ids["meta_info"]["prompt_tokens"]
    assert "reused_text" not in receipt(by_ids)
    again = ask(running, text + by_text["text"], 40)
    assert receipt(again)["continued"] == 190


def test_samples_streams_and_batches_of_text_take_over_too(running):
    first = ask(running, PROMPT + "Be brief.", 150)
    text = PROMPT + "Be brief." + first["text"]
    known = len(ids_of(PROMPT + "Be brief.")) + 150
    one = ask(running, text + "!", 20)
    for samples in (ask(running, text + "!", 20, n=3), ask(running, [text + "!", text + "?"], 20)):
        assert samples[0]["output_ids"] == one["output_ids"]
        assert {receipt(each)["reused_text"] for each in samples} <= {known, known + 1}, "and what was asked of it"
        assert all(receipt(each)["continued"] == 150 for each in samples)
    body = {"text": text + "#", "stream": True, "sampling_params": {"temperature": 0, "max_new_tokens": 90, **PLAIN}}
    body["sampling_params"] |= {"custom_params": {"rpc": {}}, "ignore_eos": True}
    request = urllib.request.Request(
        running.url + "/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        lines = [line for line in response.read().decode().splitlines() if line.startswith("data: {")]
    streamed = json.loads(lines[-1][6:])
    assert receipt(streamed)["continued"] == 150
    after = ask(running, text + "#" + streamed["text"], 20)
    assert receipt(after)["continued"] == 240


def test_a_part_of_a_thought_and_one_that_was_trimmed_give_their_ids(running):
    prompt = PROMPT + "In one word?"
    whole = ask(running, prompt, 150)
    part = whole["text"][: len(whole["text"]) * 95 // 100]
    shorter = ask(running, prompt + part + " So.", 20)
    assert receipt(shorter)["reused"] == 136
    assert receipt(shorter)["reused_text"] > len(ids_of(prompt)) + 136
    at = max(i for i in range(len(whole["text"]) - 3) if whole["text"].find(whole["text"][i : i + 4]) == i)
    flush(running)
    trimmed = ask(running, prompt, 150, stop=[whole["text"][at : at + 4]])
    assert trimmed["text"] == whole["text"][:at]
    shown = small_tokenizers.plain().decode(trimmed["output_ids"])
    assert shown.startswith(trimmed["text"])
    assert shown != trimmed["text"]
    after = ask(running, prompt + trimmed["text"] + " So.", 20)
    own = len(trimmed["output_ids"])
    assert own - 6 < receipt(after)["reused_text"] - len(ids_of(prompt)) < own
    assert receipt(after)["continued"] > P + R


def test_a_chat_that_is_rendered_again_goes_on_from_its_answers(running):
    messages = [{"role": "user", "content": "Think of a licence."}]

    def chat(tokens, **more):
        body = {"model": "m", "messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        body |= {"custom_params": {"rpc": {}}, "return_meta_info": True, "logit_bias": PLAIN["logit_bias"], **more}
        status, result = running.call("/v1/chat/completions", body)
        assert status == 200, result
        return result["choices"]

    (first,) = chat(150)
    assert first["meta_info"]["rpc"]["reused_text"] == 0
    messages += [{"role": "assistant", "content": first["message"]["content"]}]
    cut = [{**messages[0]}, {"role": "assistant", "content": first["message"]["content"][:-1]}]
    messages += [{"role": "user", "content": "And now?"}]
    for choice in [*chat(20), *chat(20, n=2)]:
        assert choice["meta_info"]["rpc"]["continued"] == 150
        assert choice["meta_info"]["rpc"]["reused_text"] >= 150
    messages = cut
    (goes_on,) = chat(20, continue_final_message=True)
    assert goes_on["meta_info"]["rpc"]["continued"] > 136


def test_texts_are_known_to_those_who_share_a_cache(running):
    prompt = PROMPT + "Whose is it?"
    first = ask(running, prompt, 150, cache_salt="mine")
    text = prompt + first["text"] + " Go on."
    known = len(ids_of(prompt)) + 150
    assert receipt(ask(running, text, 4, cache_salt="mine"))["reused_text"] == known
    for other in ({}, {"cache_salt": "theirs"}, {"cache_salt": "mine", "extra_key": "k"}):
        result = ask(running, text, 4, **other)
        assert receipt(result)["reused_text"] == receipt(result)["reused"] == 0
        assert result["meta_info"]["prompt_tokens"] == len(ids_of(text))
    for rpc in ({"enabled": False}, {"reuse": "off"}):
        result = ask(running, text, 4, rpc, cache_salt="mine")
        assert "reused_text" not in receipt(result)
        assert result["meta_info"]["prompt_tokens"] == len(ids_of(text))


def test_the_server_says_what_it_knows(running):
    def state():
        return running.call("/server_info")[1]["internal_states"][0]["rpc"]

    before, prompt = state(), PROMPT + "How many?"
    text = prompt + ask(running, prompt, 20)["text"]
    ask(running, text, 4)
    after = state()
    assert after["known_texts"] - before["known_texts"] == 1, "the longer one alone"
    assert after["reused_texts"] - before["reused_texts"] == 1
    assert after["reused_text_tokens"] - before["reused_text_tokens"] == len(ids_of(prompt)) + 20
    assert 0 < after["known_text_bytes"] < 16e6


def test_without_it_text_is_the_tokenizers(model, running, tmp_path):
    """The same first output; and nothing is taken over of one that comes back as other ids."""
    prompt = PROMPT + "Off?"
    with started(model, tmp_path) as off:
        first = ask(off, prompt, 150)
        second = ask(off, prompt + first["text"] + " Go on.", 4)
        assert "known_texts" not in off.call("/server_info")[1]["internal_states"][0]["rpc"]
    assert first["output_ids"] == ask(running, prompt, 150)["output_ids"]
    assert receipt(second)["reused"] == 0
    assert "reused_text" not in receipt(second)
    assert second["meta_info"]["prompt_tokens"] == len(ids_of(prompt + first["text"] + " Go on."))


@pytest.mark.long
@pytest.mark.skipif(APP_VARIABLE in versions.current().absent_variables, reason="workers import an app without a name")
def test_each_of_several_workers_knows_what_it_has_served(model, tmp_path):
    """Requests of one connection are one worker's."""
    with started(model, tmp_path, "--rpc-reuse-text", "16", "--tokenizer-worker-num", "2") as several:
        connection = http.client.HTTPConnection(several.url.removeprefix("http://"))

        def generate(text):
            sampling = {
                "temperature": 0,
                "max_new_tokens": 150,
                "ignore_eos": True,
                "custom_params": {"rpc": {}},
                **PLAIN,
            }
            body = json.dumps({"text": text, "sampling_params": sampling})
            connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
            return json.loads(connection.getresponse().read())

        text = PROMPT + generate(PROMPT)["text"]
        again = generate(text + " Go on.")
        assert receipt(again)["reused_text"] == len(ids_of(PROMPT)) + 150
        assert receipt(again)["continued"] == 150
