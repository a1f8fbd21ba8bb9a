"""SGLang as these tests import it runs on a CPU."""

from __future__ import annotations

import inspect
import pkgutil

import pytest

from sglang_rpc.contract import versions
from sglang_rpc.hooks import install
from sglang_rpc.startup import cpu
from tests.unit.reuse.life import PROMPT, TAIL, D, World


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


@pytest.fixture(params=[1, 16], ids=["page 1", "page 16"])
def world(request, monkeypatch):
    made = World(request.param, monkeypatch)
    yield made
    made.assert_balanced()


@pytest.fixture
def thought(world):
    """A request compressed twice, and a tail after that."""
    return world.think(PROMPT, D + TAIL)
