"""The server's rows against SGLang itself."""

from __future__ import annotations

import argparse
import re
from types import SimpleNamespace

import pytest

from sglang_rpc.contract import versions, windows
from sglang_rpc.contract.refusals.facts import DECODE_ROW_POOLS, KV_POOLS, ROW_POOLS
from sglang_rpc.contract.refusals.model import ALLOCATORS, MODEL_ROWS, TREES
from sglang_rpc.contract.refusals.server import ATTENTION_BACKENDS, SERVER_ROWS, refuse_server_args
from sglang_rpc.errors import UnsupportedError
from tests.unit.refusals.examples import (
    PLAIN,
    SERVER_CASES,
    refuse_arguments,
    split_environment,
)


def test_real_defaults_pass(sglang_arguments):
    """Every predicate runs, so every argument that a row reads exists."""
    refuse_server_args(sglang_arguments(model_path="dummy"))


def test_real_resolved_arguments_pass(resolved):
    refuse_server_args(resolved)


@pytest.mark.parametrize(("row", "given", "named"), SERVER_CASES)
def test_server_row_on_real_arguments(row, given, named, sglang_arguments, monkeypatch):
    given = split_environment(monkeypatch, given)
    if versions.current().absent_arguments.keys() & given:
        with pytest.raises(TypeError):
            sglang_arguments(model_path="dummy", **given)
        return
    server_args = sglang_arguments(model_path="dummy", **given)
    with pytest.raises(UnsupportedError) as caught:
        refuse_server_args(server_args)
    assert named in str(caught.value)
    assert row.why in str(caught.value)


def test_what_sglang_resolved_counts_not_what_was_typed(sglang_arguments):
    from sglang.srt.arg_groups.overrides import declare_resolution

    server_args = sglang_arguments(model_path="dummy")
    declare_resolution(server_args, "test", attention_backend="trtllm_mha")
    assert server_args.attention_backend is None
    with pytest.raises(UnsupportedError, match="trtllm_mha"):
        refuse_server_args(server_args)


def test_flags_and_variables_are_sglangs(sglang_arguments):
    from sglang.srt.environ import envs

    parser = argparse.ArgumentParser()
    sglang_arguments.add_cli_args(parser)
    text = " ".join([*(r.switches + " " + r.way_out for r in SERVER_ROWS), *(r.way_out for r in MODEL_ROWS)])
    text += " " + " ".join(named for _, _, named in (case.values for case in SERVER_CASES))
    flags = {flag for flag in re.findall(r"--[a-z0-9-]+", text) if not flag.startswith("--rpc-")}
    known = set(parser._option_string_actions)
    if versions.current() is not list(versions.VERSIONS.values())[-1]:
        known |= {f"--{name.replace('_', '-')}" for name in versions.current().absent_arguments}
        known.add("--enable-hicache")  # another name of --enable-hierarchical-cache since 0.5.23
    assert flags <= known, flags - known
    for variable in re.findall(r"SGLANG_[A-Z0-9_]+", text):
        assert hasattr(envs, variable) or variable in versions.current().absent_variables


def test_every_choice_of_sglangs_is_decided(sglang_arguments):
    from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES

    assert set(ATTENTION_BACKENDS) <= set(ATTENTION_BACKEND_CHOICES)
    for name in set(ATTENTION_BACKEND_CHOICES) - set(ATTENTION_BACKENDS):
        with pytest.raises(UnsupportedError, match=name):
            refuse_arguments(SimpleNamespace(**{**PLAIN, "attention_backend": name}))


def test_classes_are_sglangs(sglang_arguments):
    from sglang.srt.disaggregation import decode
    from sglang.srt.mem_cache import allocator, memory_pool, swa_memory_pool, unified_radix_cache
    from sglang.srt.mem_cache.allocator import swa

    own, decode_rows = {windows.POOL}, {"DecodeReqToTokenPool"}
    for names, module in (
        ({*KV_POOLS, *ROW_POOLS} - own - decode_rows, memory_pool),
        ({*DECODE_ROW_POOLS}, decode),
        (own, swa_memory_pool),
        ({*ALLOCATORS} - {windows.ALLOCATOR}, allocator),
        ({windows.ALLOCATOR}, swa),
        (TREES, unified_radix_cache),
    ):
        for name in names:
            assert hasattr(module, name), name
