"""SGLang as these tests import it runs on a CPU."""

from __future__ import annotations

import inspect
import pkgutil

import pytest

from sglang_rpc.contract import versions
from sglang_rpc.hooks import install
from sglang_rpc.startup import cpu


@pytest.fixture(autouse=True, scope="session")
def sglang_on_a_cpu():
    cpu.prepare()


@pytest.fixture(autouse=True)
def no_hooks(monkeypatch):
    """SGLang's methods as they are: an engine test before in this process may have left our hooks on them."""
    for hook in install.installed():
        owner_path, _, name = versions.current().here(hook).target.rpartition(".")
        owner = pkgutil.resolve_name(owner_path)
        if isinstance(owner, type) and inspect.isfunction(raw := inspect.getattr_static(owner, name)):
            monkeypatch.setattr(owner, name, inspect.unwrap(raw))
