"""Where the configuration comes from: the environment, a file, JSON."""

import dataclasses
import json

import pytest

from sglang_rpc.config import CONFIG_ENV, RPCConfig
from tests.unit.config.sentences import INTERVAL_UP_TO, NAN, refusal


def test_a_mapping_lies_over_its_base():
    base = RPCConfig(interval=64, window=8, pooling="max")
    assert RPCConfig.from_mapping({"window": 4}, base) == RPCConfig(interval=64, window=4, pooling="max")
    assert RPCConfig.from_mapping({}, base) == base
    assert RPCConfig.from_mapping({}) == RPCConfig()


@pytest.mark.parametrize("name", ["intervall", "Interval", "P", "", 1, None, "budget_step", "x" * 500], ids=repr)
def test_an_unknown_setting_names_the_known_ones(name):
    message = refusal(RPCConfig.from_mapping, {name: 1})
    shown = repr(name) if len(repr(name)) <= 80 else repr(name)[:77] + "..."
    assert message.startswith(f"unknown RPC setting {shown}; the settings are interval, window, ratio,")
    assert all(field.name in message for field in dataclasses.fields(RPCConfig))


@pytest.mark.parametrize("values", [None, [], [["interval", 64]], "interval=64", 64, True, NAN], ids=repr)
def test_only_an_object_is_a_configuration(values):
    assert refusal(RPCConfig.from_mapping, values) == f"the RPC configuration must be a JSON object, got {values!r}"


def test_json_text_and_file(tmp_path):
    wanted = RPCConfig(interval=512, ratio=2.5, think_end="</think>")
    text = '  {"interval": 512, "ratio": 2.5, "think_end": "</think>"}\n'
    assert RPCConfig.parse(text) == wanted
    (tmp_path / "rpc.json").write_text(text)
    assert RPCConfig.parse(str(tmp_path / "rpc.json")) == wanted
    assert RPCConfig.parse('{"window": 16}', wanted) == dataclasses.replace(wanted, window=16)


def test_a_file_in_the_home_folder(tmp_path, monkeypatch):
    (tmp_path / "rpc.json").write_text('{"interval": 99}')
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RPCConfig.parse("~/rpc.json").interval == 99


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not valid JSON"),
        (b"interval: 64", "not valid JSON"),
        (b'{"interval": 64,}', "not valid JSON"),
        (b"[1]", "must be a JSON object, got [1]"),
        (b"null", "must be a JSON object, got None"),
        (b'{"interval": NaN}', "interval must be an integer"),
        (b'{"ratio": Infinity}', "ratio must be a number"),
        (b"\xff\xfe\x00", "must be a JSON object or the path of a readable JSON file"),
    ],
)
def test_a_wrong_file(tmp_path, content, said):
    path = tmp_path / "rpc.json"
    path.write_bytes(content)
    assert said in refusal(RPCConfig.parse, str(path))


@pytest.mark.parametrize("text", ["", "   ", "/no/such/file.json", ".", "on", "1", "null", "a\0b"], ids=repr)
def test_neither_json_nor_a_file(text):
    message = refusal(RPCConfig.parse, text)
    assert message.startswith("the RPC configuration must be a JSON object or the path of a readable JSON file, got ")
    assert repr(text) in message


@pytest.mark.parametrize("text", ["{", '{"interval" 64}', "{'interval': 64}", '{"interval": 0x40}', '{"window": 1}}'])
def test_wrong_json_is_shown(text):
    message = refusal(RPCConfig.parse, text)
    assert message.startswith(f"the RPC configuration {text!r} is not valid JSON: ")


@pytest.mark.parametrize("text", [None, "", "  \n"])
def test_an_environment_that_asks_for_nothing(monkeypatch, text):
    if text is not None:
        monkeypatch.setenv(CONFIG_ENV, text)
    assert RPCConfig.from_env() is None


def test_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv(CONFIG_ENV, "{}")
    assert RPCConfig.from_env() == RPCConfig()
    (tmp_path / "rpc.json").write_text('{"interval": 77}')
    monkeypatch.setenv(CONFIG_ENV, str(tmp_path / "rpc.json"))
    assert RPCConfig.from_env() == RPCConfig(interval=77)
    monkeypatch.setenv(CONFIG_ENV, '{"interval": 0}')
    assert refusal(RPCConfig.from_env) == f"{CONFIG_ENV}: interval must be an integer {INTERVAL_UP_TO}, got 0"


def test_round_trip():
    config = RPCConfig(interval=100, ratio=3, scope="all", think_start=7, query_slots=3)
    assert RPCConfig.from_mapping(config.as_dict()) == config
    assert json.loads(config.to_json()) == config.as_dict()
    assert list(config.as_dict()) == [field.name for field in dataclasses.fields(RPCConfig)]
