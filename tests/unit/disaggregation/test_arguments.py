"""Which half of the work a server does, and what its arguments become."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract import settings
from sglang_rpc.contract.settings import attach, attach_and_refuse, config_of, options_of
from sglang_rpc.errors import ConfigError, UnsupportedError
from sglang_rpc.hooks import requests as request_hooks
from sglang_rpc.startup import cpu, process
from tests.fakes.models import ServerArgs

CONFIG = RPCConfig(interval=64, window=8)


@pytest.fixture
def declared(monkeypatch):
    """What is declared beside the arguments, as SGLang does; they are taken as resolved."""
    cpu.prepare()
    from sglang.srt.arg_groups import overrides

    fields: dict = {}
    monkeypatch.setattr(overrides, "resolving_view", lambda args: args)
    monkeypatch.setattr(overrides, "declare_resolution", lambda _args, source, **given: fields.update({source: given}))
    for name in ("_refuse_model", "refuse_server_args", "_refuse_text_without_tokenizer"):
        monkeypatch.setattr(settings, name, lambda *_: None)
    return fields


def checked(config: RPCConfig | None, **given) -> ServerArgs:
    args = ServerArgs(**given)
    attach(args, config)
    attach_and_refuse(None, args)
    return args


def test_a_prefill_server_has_rpc_off_and_says_so_in_one_line(declared, caplog):
    with caplog.at_level(logging.INFO):
        args = checked(CONFIG, disaggregation_mode="prefill")
    assert config_of(args) is None
    assert options_of(args) == CONFIG
    assert [record.getMessage() for record in caplog.records] == [
        "RPC: nothing is compressed on a prefill server; give the decode server the same --rpc-* flags"
    ]
    assert declared == {}


def test_a_prefill_server_without_rpc_says_nothing(declared, caplog):
    args = checked(None, disaggregation_mode="prefill")
    assert (config_of(args), options_of(args)) == (None, None)
    assert caplog.records == []


@pytest.mark.parametrize("named", [None, "none", "cpu_tensor"])
def test_a_decode_server_backs_rows_up_as_tensors_unless_told_otherwise(declared, named):
    args = checked(CONFIG, disaggregation_mode="decode", disaggregation_decode_retraction_backup=named)
    assert config_of(args) == options_of(args) == CONFIG
    chosen = {"sglang-rpc": {"disaggregation_decode_retraction_backup": "cpu_tensor"}}
    assert declared == (chosen if named is None else {})


def test_another_server_is_left_as_it_is(declared):
    assert config_of(checked(CONFIG)) == CONFIG
    assert declared == {}


def test_sums_of_attention_are_not_backed_up(declared):
    with pytest.raises(UnsupportedError, match="--rpc-policy h2o does not work with --disaggregation-mode decode"):
        checked(RPCConfig(policy="h2o"), disaggregation_mode="decode", device="cpu")
    checked(RPCConfig(policy="h2o"), device="cpu")


def test_a_prefill_server_checks_the_options_of_requests(declared):
    asked = SimpleNamespace(sampling_params={"custom_params": {"rpc": {"ratio": 1}}})
    manager = SimpleNamespace(server_args=checked(CONFIG, disaggregation_mode="prefill"))
    with pytest.raises(ConfigError, match=r"custom_params\.rpc\.ratio must be"):
        request_hooks.validate(manager, asked)


def launched(args: ServerArgs) -> object:
    """What the scheduler's process would run."""
    return process.carry_into_schedulers(lambda _cls, _args, _ports, run: run, None, args, None, sorted)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_its_scheduler_has_no_hook_but_what_a_cpu_needs(declared, monkeypatch, on_cpu):
    monkeypatch.setattr(process.sys, "path", [cpu.STAND_IN] if on_cpu else [])
    monkeypatch.setenv(process.APP_VARIABLE, "")
    run = launched(checked(CONFIG, disaggregation_mode="prefill"))
    if not on_cpu:
        assert run is sorted
        return
    put_on = []
    monkeypatch.setattr(process, "install", lambda hooks: put_on.extend(hooks))
    assert run([2, 1]) == [1, 2]
    assert [hook.target for hook in put_on] == ["sglang.srt.disaggregation.common.conn.CommonKVSender.__init__"]


def test_what_is_sent_from_a_cpu_is_not_pinned():
    from sglang_rpc.startup.cpu.transfers import send_arrays

    class Sender:
        supports_host_tensor_indices = True

    sender = Sender()
    send_arrays(None, sender, "manager", "address")
    assert not sender.supports_host_tensor_indices
    assert Sender.supports_host_tensor_indices
