"""Settings that a scheduler has published, and requests whose backup is forgotten."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sglang_rpc.hooks import backups, resume
from tests.unit.adder.pool import sgl


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    """Settings that only a started scheduler has published."""
    monkeypatch.setattr(sgl().schedule_policy, "_use_exact_chunk_fill", lambda: False)
    published = SimpleNamespace(
        features=SimpleNamespace(enable_encoder_swa_bounded_replay=False),
        mamba=SimpleNamespace(enable_mamba_extra_buffer=False),
    )
    monkeypatch.setattr(sgl().schedule_policy, "get_exec", lambda: published)


@pytest.fixture
def forgetful(monkeypatch):
    def forget(runtime, req):
        req.rpc.hooks.saved = None

    monkeypatch.setattr(backups, "forget", forget)
    monkeypatch.setattr(resume, "admitted", lambda runtime, req, state: None)
