"""Which prompts are given known ids where they are tokenized, and which outputs are learned."""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.settings import attach
from sglang_rpc.contract.targets import TEXTS
from sglang_rpc.hooks import reporting, texts
from sglang_rpc.startup import process
from tests import small_tokenizers

ON = RPCConfig(reuse="share", reuse_text=1)
PROMPT, OUTPUT = "What is a licence?", " It is a work of words, and so on."


@dataclass
class State:
    obj: Any
    text: str = ""
    output_ids: list[int] = field(default_factory=list)

    def get_text(self) -> str:
        return self.text


class Manager:
    """A tokenizer manager that tokenizes, and is told outputs."""

    def __init__(self, config: RPCConfig | None = ON, tokenizer: Any = None):
        self.server_args = SimpleNamespace()
        attach(self.server_args, config)
        self.tokenizer = tokenizer or small_tokenizers.plain()
        self.context_len = 1000
        self.rid_to_state: dict[str, State] = {}

    async def _tokenize_texts(self, text, is_cross_encoder=False):
        return self.tokenizer.encode(text), None

    async def _tokenize_one_request(self, obj):
        ids = obj.input_ids if obj.input_ids is not None else self.tokenizer.encode(obj.text)
        return SimpleNamespace(input_ids=array("q", ids))

    async def _handle_batch_output(self, recv_obj):
        for rid, reason, text, ids in zip(
            recv_obj.rids, recv_obj.finished_reasons, recv_obj.output_strs, recv_obj.output_ids, strict=True
        ):
            self.rid_to_state[rid].text += text
            self.rid_to_state[rid].output_ids += ids
            if reason is not None:
                del self.rid_to_state[rid]


def io():
    """SGLang's requests, which are imported once its CPU mode is prepared."""
    from sglang.srt.managers import io_struct

    return io_struct


def request(text=PROMPT, sampling=None, **more) -> Any:
    made = io().GenerateReqInput(text=text, sampling_params={} if sampling is None else sampling, rid="r", **more)
    made.normalize_batch_and_arguments()
    return made


def tokenized(manager, obj) -> list[int]:
    own = obj.input_ids
    made = asyncio.run(texts.take_known_ids(Manager._tokenize_one_request, manager, obj))
    assert obj.input_ids is own
    return list(made.input_ids)


def letters(text):
    tokenizer = small_tokenizers.plain()
    return [i for character in text for i in tokenizer.encode(character)]


def answer(manager, obj, output=OUTPUT, ids=None, reason=None) -> State:
    """The output of a request in two pieces, of which the second ends it."""
    tokenized(manager, obj)
    state = manager.rid_to_state["r"] = State(obj)
    ids = letters(output) if ids is None else ids
    for part, shown, why in ((ids[:3], output[:3], None), (ids[3:], output[3:], reason or {"type": "length"})):
        batch = SimpleNamespace(rids=["r"], finished_reasons=[why], output_strs=[shown], output_ids=[part])
        asyncio.run(texts.learn_outputs(Manager._handle_batch_output, manager, batch))
    return state


def plain(text):
    return small_tokenizers.plain().encode(text)


AGAIN = PROMPT + OUTPUT + " Go on."
KNOWN = [*plain(PROMPT), *letters(OUTPUT), *plain(" Go on.")]


def test_a_text_that_comes_back_has_the_ids_that_were_generated():
    manager = Manager()
    answer(manager, request())
    again = request(AGAIN)
    assert tokenized(manager, again) == KNOWN != plain(AGAIN)
    known = len(plain(PROMPT + "")) + len(letters(OUTPUT))
    assert reporting.prompt_of(State(again)).reused == known
    assert tokenized(manager, request("Another text.")) == plain("Another text.")
    told = manager.rpc_texts
    assert (told.reused, told.reused_tokens) == (1, known)


def test_the_receipt_says_how_many(monkeypatch):
    manager, meta = Manager(), {}
    answer(manager, request())
    again = request(AGAIN)
    tokenized(manager, again)
    for obj, more in ((again, {"reused_text": len(KNOWN) - len(plain(" Go on."))}), (SimpleNamespace(), {})):
        reporting.add_receipt(lambda *_: None, manager, meta, State(obj), {"rpc": [[{"held": 3}]]}, 0, None)
        assert meta["rpc"] == {"held": 3, **more}


@pytest.mark.parametrize(
    "more",
    [
        {"image_data": "a.png"},
        {"session_params": {"id": "s"}},
        {"custom_logit_processor": "a"},
        {"cache_salt": "theirs"},
        {"extra_key": "theirs"},
        {"lora_path": "theirs"},
        {"return_logprob": True, "logprob_start_len": 0},
        {"positional_embed_overrides": "places"},
        {"sampling": {"custom_params": {"rpc": {"enabled": False}}}},
        {"sampling": {"custom_params": {"rpc": {"reuse": "off"}}}},
    ],
    ids=str,
)
def test_others_are_left_alone(more):
    manager = Manager()
    answer(manager, request())
    assert tokenized(manager, request(AGAIN, **more)) == plain(AGAIN)
    assert tokenized(manager, request(AGAIN)) == KNOWN


@pytest.mark.parametrize(
    "rpc", [{"custom_params": {"rpc": 5}}, {"custom_params": "odd"}, {"custom_params": None}], ids=str
)
def test_malformed_options_are_for_others_to_refuse(rpc):
    assert tokenized(Manager(), request(sampling=rpc)) == plain(PROMPT)


def test_what_another_namespace_generated_changes_nothing_of_mine():
    manager = Manager()
    answer(manager, request(cache_salt="mine"))
    answer(manager, request(cache_salt="theirs"), ids=plain(OUTPUT))
    assert tokenized(manager, request(AGAIN, cache_salt="mine")) == KNOWN
    theirs = [*plain(PROMPT), *plain(OUTPUT), *plain(" Go on.")]
    assert tokenized(manager, request(AGAIN, cache_salt="theirs")) == theirs


def test_embeddings_pass():
    manager = Manager()
    answer(manager, request())
    obj = io().EmbeddingReqInput(text=AGAIN)
    obj.normalize_batch_and_arguments()
    assert tokenized(manager, obj) == plain(AGAIN)


@pytest.mark.parametrize("config", [None, RPCConfig(reuse="share")])
def test_without_the_flag_nothing_is_known(config):
    manager = Manager(config)
    state = answer(manager, request())
    assert manager.rpc_texts is None
    assert reporting.prompt_of(state) is None
    assert tokenized(manager, request(AGAIN)) == plain(AGAIN)


@pytest.mark.parametrize("says", [{"is_fast": False}, {}], ids=["slow", "SGLang's own"])
def test_without_a_fast_tokenizer_nothing_is_known(caplog, says):
    manager = Manager(tokenizer=SimpleNamespace(encode=plain, **says))
    tokenized(manager, request())
    assert manager.rpc_texts is None
    assert "--rpc-reuse-text does nothing" in caplog.text


def test_a_prompt_that_may_have_been_cut_short_is_not_known():
    manager = Manager()
    manager.context_len = len(plain(PROMPT))
    answer(manager, request())
    assert len(manager.rpc_texts.known) == 0


def test_ids_that_would_say_another_text_are_not_given():
    manager = Manager()
    answer(manager, request(), ids=letters(OUTPUT.replace("words", "wordS")))
    assert len(manager.rpc_texts.known) == 1
    assert tokenized(manager, request(AGAIN)) == plain(AGAIN)
    assert manager.rpc_texts.reused == 0


@pytest.mark.parametrize(
    ("reason", "more", "sampling"),
    [
        ({"type": "stop", "matched": 1}, [1], {}),
        ({"type": "stop", "matched": letters("x")[0]}, letters("x"), {}),
        ({"type": "stop", "matched": "xyz"}, [*letters("xyz")], {}),
        ({"type": "abort"}, [*letters("xy")], {}),
        ({"type": "length"}, [0, *letters("xyz")], {}),
        ({"type": "length"}, [], {"skip_special_tokens": False}),
    ],
    ids=str,
)
def test_what_the_text_does_not_show_is_not_known(reason, more, sampling):
    """End token, another stop token, stop string, an id after the text, a hidden special token and what follows it."""
    manager = Manager()
    answer(manager, request(sampling=sampling), ids=[*letters(OUTPUT), *more], reason=reason)
    assert tokenized(manager, request(AGAIN)) == KNOWN


def test_a_special_token_that_shows_is_known():
    manager, shown = Manager(), OUTPUT + "</s>"
    sampling = {"skip_special_tokens": False}
    answer(manager, request(sampling=sampling), shown, [*letters(OUTPUT), 1])
    assert tokenized(manager, request(PROMPT + shown + "Go.")) == [*plain(PROMPT), *letters(OUTPUT), 1, *plain("Go.")]


def test_a_delimiter_that_was_written_in_other_tokens_is_not_handed_to_anybody():
    """Its text is a special token's; a user who had a model write it would decide where others' turns end."""
    manager, text = Manager(), PROMPT + "</s>" + "Go."
    answer(manager, request(), "</s>", letters("</s>"))
    asked = [*plain(PROMPT), 1, *plain("Go.")]
    assert plain(text) == asked
    assert letters("</s>") != [1]
    assert tokenized(manager, request(text)) == asked


def test_a_chat_and_another_prompt_of_its_text_are_apart():
    """One has the special tokens that its template writes, and the other those that the tokenizer puts in front."""
    manager = Manager(tokenizer=small_tokenizers.with_blank_in_front())
    encode = manager.tokenizer.encode
    chat = request(None, input_ids=encode(PROMPT, add_special_tokens=False))
    chat.rpc_text = PROMPT
    answer(manager, chat, ids=encode(OUTPUT, add_special_tokens=False))
    assert len(manager.rpc_texts.known) == 1
    assert tokenized(manager, request(AGAIN)) == encode(AGAIN)
    assert manager.rpc_texts.reused == 0


def test_what_a_tokenizer_cannot_do_ends_nothing(caplog, monkeypatch):
    manager = Manager()
    monkeypatch.setattr(texts, "_learn", lambda *_: 1 / 0)
    state = answer(manager, request())
    assert state.text == OUTPUT
    assert "a text is not remembered" in caplog.text


@pytest.mark.parametrize("receipt", [{"compressions": 1}, {"compressions": 0, "reused": 5}, {"compressions": 0}])
def test_whether_kv_is_compressed_is_known_of_its_text(receipt):
    manager, obj = Manager(), request()
    tokenized(manager, obj)
    reporting.add_receipt(lambda *_: None, manager, {}, State(obj), {"rpc": [[receipt]]}, 0, None)
    assert reporting.prompt_of(State(obj)).compressed == (receipt != {"compressions": 0})


def test_a_chat_has_its_text_beside_its_ids(monkeypatch):
    """In each of its samples, and with an answer that it goes on with."""
    tokenizer = small_tokenizers.plain()

    def convert(serving, prefix):
        ids = texts.note_rendered(lambda _, text: tokenizer.encode(text), tokenizer, PROMPT)
        if prefix:
            ids = texts.note_prefix(lambda _, ids, more: [*ids, *tokenizer.encode(more)], serving, ids, prefix)
        return io().GenerateReqInput(input_ids=ids, sampling_params={"n": 2}), "chat"

    for prefix in ("", " So"):
        made, chat = texts.keep_rendered(convert, object(), prefix)
        assert chat == "chat"
        made.normalize_batch_and_arguments()
        sample = made[0]
        texts.hand_on(sample, made, 0)
        assert (made.rpc_text, sample.rpc_text) == (PROMPT + prefix, PROMPT + prefix)
        assert texts._text_of(sample) == PROMPT + prefix
    other = texts.keep_rendered(lambda *_: (io().GenerateReqInput(input_ids=[5]), "chat"), object(), "")[0]
    assert texts._text_of(other) is None


def test_a_chat_of_other_ids_than_were_rendered_has_no_text():
    def convert(_serving):
        texts.note_rendered(lambda *_: [5, 6], None, PROMPT)
        return io().GenerateReqInput(input_ids=[5, 7]), "chat"

    assert texts._text_of(texts.keep_rendered(convert, object())[0]) is None


@pytest.mark.parametrize(("config", "there"), [(ON, True), (RPCConfig(reuse="share"), False), (None, False)])
def test_its_hooks_are_put_on_with_the_flag_alone(monkeypatch, config, there):
    put_on = []
    monkeypatch.setattr(process, "install", put_on.extend)
    process.know_texts(Manager(config))
    names = {hook.function.__name__ for hook in put_on}
    every = {hook.function.__name__ for hook in process.declared_hooks() if hook.when == TEXTS}
    assert names == (every if there else set())
    assert {"take_known_ids", "learn_outputs", "keep_rendered", "add_text_info"} <= every
