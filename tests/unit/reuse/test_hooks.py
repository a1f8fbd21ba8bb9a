"""Reuse's own hooks: what others would pay for in each step, or per request, is only there where it is asked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.targets import REUSE, SERVING
from sglang_rpc.startup import process


@pytest.mark.parametrize(("reuse", "occasions"), [("off", {SERVING}), ("share", {SERVING, REUSE})])
def test_a_scheduler_has_them_with_reuse_alone(monkeypatch, reuse, occasions):
    put_on = []
    monkeypatch.setattr(process, "install", put_on.extend)
    monkeypatch.setattr(process, "config_of", lambda server_args: RPCConfig(reuse=reuse))
    process._prepare_scheduler(SimpleNamespace(speculative_algorithm=None))
    assert {hook.when for hook in put_on} == occasions
    own = {hook.function.__name__ for hook in put_on if hook.when == REUSE}
    every = {"count_prompt", "count_reuse", "forget_aliases", "real_ids_if_evicted"}
    every |= {"compress_at_the_end", "of_real_ids", "take_over_in_queue"}
    assert own == (set() if reuse == "off" else every)
