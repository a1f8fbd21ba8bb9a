"""Gist tokens in the configuration, and options that LightThinker has no use for."""

from __future__ import annotations

import pytest

from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.contract.settings import _refuse_gists
from sglang_rpc.errors import ConfigError
from tests.unit.lightthinker.gists import config


@pytest.mark.parametrize("name", ["interval", "window", "ratio"])
def test_a_request_has_no_budget_to_choose(name):
    with pytest.raises(ConfigError, match=rf"custom_params\.rpc\.{name} has no meaning here"):
        RequestOptions.from_custom_params({"rpc": {name: 8}}, config())
    assert RequestOptions.from_custom_params({"rpc": {"enabled": False}}, config()).enabled is False


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (dict(gist_tokens=None), "needs the model's gist tokens; name them with --rpc-gist-tokens"),
        (dict(interval=64), "and so has no interval; leave --rpc-interval out"),
        (dict(when="pressure"), "and so has no when; leave --rpc-when out"),
        (dict(max_ratio=8), "and so has no max_ratio; leave --rpc-max-ratio out"),
        (dict(policy="rpc"), "gist_tokens and gist_resume are policy lightthinker's, and the policy is rpc"),
        (dict(policy="rpc", gist_tokens=None), "gist_tokens and gist_resume are policy lightthinker's"),
    ],
)
def test_what_does_not_go_together_is_refused(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        _refuse_gists(RPCConfig(**{**config().as_dict(), **given}))
    _refuse_gists(config())
    _refuse_gists(RPCConfig())


@pytest.mark.parametrize("value", [[], "91", 91, [""], [-1], [True], [1.5], [None]])
def test_gist_tokens_are_texts_or_ids(value):
    with pytest.raises(ConfigError, match="gist_tokens must be"):
        RPCConfig(gist_tokens=value)


def test_gist_tokens_come_as_json_has_them():
    result = RPCConfig.parse('{"policy": "lightthinker", "gist_tokens": ["<o>", 7], "gist_resume": 9}')
    assert result.gist_tokens == ("<o>", 7)
    assert RPCConfig.parse(result.to_json()) == result
