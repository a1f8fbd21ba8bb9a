"""`chat_template_kwargs.rpc`: what is moved, what stays, and what is refused."""

from types import SimpleNamespace

import pytest

from sglang_rpc import RPCConfig
from sglang_rpc.contract.settings import attach
from sglang_rpc.hooks import alias

OPTIONS = {"interval": 32}


def validated(custom_params, kwargs, config: RPCConfig | None = RPCConfig()):  # noqa: B008 (frozen)
    """The sentence, if any, and the chat as SGLang reads it after the hook."""
    server_args = SimpleNamespace()
    attach(server_args, config)
    serving = SimpleNamespace(tokenizer_manager=SimpleNamespace(server_args=server_args))
    chat = SimpleNamespace(custom_params=custom_params, chat_template_kwargs=kwargs)
    return alias.move_alias(lambda serving, chat: "SGLang's", serving, chat), chat


@pytest.mark.parametrize("custom_params", [None, {"other": 1}, {"rpc": OPTIONS}, {"rpc": {"interval": 32.0}}])
def test_the_alias_is_moved_and_the_template_is_not_given_it(custom_params):
    kwargs = {"rpc": OPTIONS, "enable_thinking": True}
    said, chat = validated(custom_params, kwargs)
    assert said == "SGLang's"
    assert chat.custom_params == {**(custom_params or {}), "rpc": OPTIONS}
    assert chat.chat_template_kwargs == {"enable_thinking": True}
    assert kwargs == {"rpc": OPTIONS, "enable_thinking": True}, "the dict may be a client's"


def test_without_other_arguments_the_template_has_none():
    assert validated(None, {"rpc": OPTIONS})[1].chat_template_kwargs is None


@pytest.mark.parametrize("kwargs", [None, {}, {"enable_thinking": False}])
@pytest.mark.parametrize("custom_params", [None, {"other": 1}, {"rpc": OPTIONS}])
def test_without_the_alias_nothing_changes(custom_params, kwargs):
    said, chat = validated(custom_params, kwargs)
    assert said == "SGLang's"
    assert chat.custom_params is custom_params
    assert chat.chat_template_kwargs is kwargs


def test_with_rpc_off_the_template_is_given_what_the_request_says():
    said, chat = validated(None, {"rpc": OPTIONS}, config=None)
    assert (said, chat.custom_params, chat.chat_template_kwargs) == ("SGLang's", None, {"rpc": OPTIONS})


@pytest.mark.parametrize("other", [{"interval": 64}, {}, None, "on"])
def test_both_and_different_is_one_sentence(other):
    said, _ = validated({"rpc": other}, {"rpc": OPTIONS})
    assert said == (
        "custom_params.rpc and chat_template_kwargs.rpc are one and the same, and here they differ; "
        "send one of them [request.alias]"
    )


@pytest.mark.parametrize("malformed", [5, None, "on", {"ratio": 1}])
def test_what_is_malformed_is_left_for_the_check_of_custom_params(malformed):
    said, chat = validated(None, {"rpc": malformed})
    assert said == "SGLang's"
    assert chat.custom_params == {"rpc": malformed}
