"""For which models RPC chooses the plain KV pool, where SGLang would have another for their windows."""

from __future__ import annotations

import inspect
import logging
from types import SimpleNamespace

import pytest

from sglang_rpc.config import CONFIG_ENV, RPCConfig
from sglang_rpc.contract import settings
from sglang_rpc.hooks.plain_pool import SERVED_FROM_EITHER, choose_plain_pool
from sglang_rpc.startup import cpu

OWN = [("SGLang's", {"dtype": "bfloat16"})]


@pytest.fixture
def arguments():
    """Of a server with RPC."""
    cpu.prepare()
    from sglang.srt.server_args import ServerArgs

    made = ServerArgs(model_path="dummy")
    settings.attach(made, RPCConfig())
    return made


def config_of(architecture: str) -> SimpleNamespace:
    opts_in = architecture == "Spark2_5ForCausalLM"  # by its configuration
    return SimpleNamespace(architectures=[architecture], sliding_window=128, is_hybrid_swa=opts_in)


@pytest.mark.parametrize("architecture", SERVED_FROM_EITHER)
def test_chosen_beside_sglangs_own_settings_and_said_once(architecture, arguments, caplog):
    with caplog.at_level(logging.WARNING):
        declared = choose_plain_pool(OWN, architecture, arguments, config_of(architecture))
    assert declared == [*OWN, ("sglang-rpc", {"disable_hybrid_swa_memory": True})]
    (line,) = caplog.messages
    assert line.startswith(f"RPC: --disable-hybrid-swa-memory is on: {architecture} is served from the plain KV pool")
    assert line.endswith("; --rpc-window-pool swa leaves it off")


@pytest.mark.parametrize(
    "architecture", ["Gemma4ForCausalLM", "MiMoV2ForCausalLM", "Step3p5ForCausalLM", "Llama4ForConditionalGeneration"]
)
def test_not_where_rpc_would_not_be_exact(architecture, arguments):
    assert choose_plain_pool(OWN, architecture, arguments, config_of(architecture)) is None


def test_not_where_there_is_no_window(arguments):
    config = config_of("LagunaForCausalLM")
    config.sliding_window = 0
    assert choose_plain_pool(OWN, "LagunaForCausalLM", arguments, config) is None


def test_not_where_rpc_is_off_or_the_user_has_chosen(arguments, monkeypatch):
    cases = dict(architecture="GptOssForCausalLM", hf_config=config_of("GptOssForCausalLM"))
    settings.attach(arguments, None)
    monkeypatch.setenv(CONFIG_ENV, "{}")
    assert choose_plain_pool(OWN, server_args=arguments, **cases) is None
    unattached = type(arguments)(model_path="dummy")
    assert choose_plain_pool(OWN, server_args=unattached, **cases) is not None
    monkeypatch.delenv(CONFIG_ENV)
    assert choose_plain_pool(OWN, server_args=unattached, **cases) is None
    settings.attach(arguments, RPCConfig(window_pool="swa"))
    assert choose_plain_pool(OWN, server_args=arguments, **cases) is None
    chosen = type(arguments)(model_path="dummy", disable_hybrid_swa_memory=True)
    settings.attach(chosen, RPCConfig())
    assert choose_plain_pool(OWN, server_args=chosen, **cases) is None


def test_sglang_heeds_it(arguments, tmp_path, monkeypatch):
    """SGLang's own resolution of the arguments of a small Mellum, with the hook's answer and without."""
    from sglang.srt.arg_groups import model_hook
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.configs.model_config import ModelConfig
    from transformers import AutoConfig

    kinds = ["sliding_attention", "full_attention"]
    own = dict(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, vocab_size=512)
    AutoConfig.for_model("mellum", **own, layer_types=kinds, architectures=["MellumForCausalLM"]).save_pretrained(
        tmp_path
    )
    # Whatever hooks another test has put on it.
    original = inspect.unwrap(model_hook.collect_model_override_declarations)

    def collect(*given):
        declared = original(*given)
        return choose_plain_pool(declared, *given) or declared

    for rpc, function in ((False, original), (True, collect)):
        monkeypatch.setattr(model_hook, "collect_model_override_declarations", function)
        given = type(arguments)(model_path=str(tmp_path), skip_tokenizer_init=True, **cpu.server_defaults())
        settings.attach(given, RPCConfig())
        given.resolve_once()
        assert resolving_view(given).disable_hybrid_swa_memory is rpc
        assert ModelConfig.from_server_args(given).is_hybrid_swa is not rpc
