"""The fake package on disk, and with no hooks installed."""

import importlib
import shutil
import sys
from types import SimpleNamespace

import pytest

from sglang_rpc.contract import pins
from sglang_rpc.hooks import install as installer
from tests.unit.pins.fake_engine import CORE, needs


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the source of the package `fake_engine` and imports it anew."""
    package = tmp_path / "fake_engine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    def write_source(text):
        (package / "core.py").write_text(text)
        shutil.rmtree(package / "__pycache__", ignore_errors=True)  # two writes within a second look alike to Python
        forget()
        importlib.invalidate_caches()

    def forget():
        for name in [name for name in sys.modules if name.partition(".")[0] == "fake_engine"]:
            del sys.modules[name]

    yield write_source
    forget()


@pytest.fixture
def engine(write, monkeypatch):
    """The fake package, a stand-in for `import sglang` that knows its version, and no hooks installed."""
    write(CORE)
    monkeypatch.setitem(sys.modules, "sglang", SimpleNamespace(__version__="1.0"))
    monkeypatch.setattr(installer, "_installed", set())
    monkeypatch.delenv(installer.ALLOW_VERSION_ENV, raising=False)
    monkeypatch.setenv(installer._WARNED_ENV, "")
    put_on = []
    monkeypatch.setattr(installer, "_put_on", put_on.append)
    monkeypatch.setattr(installer, "assumptions", lambda when: here.assumed if when == "serving" else ())
    monkeypatch.setattr(pins, "load", lambda version: here.pins)
    here = SimpleNamespace(write=write, put_on=put_on, pins=pins.take("1.0", needs()), assumed=())
    return here
