"""Hooks are declared above their functions, and put on all or none."""

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from sglang_rpc import doctor
from sglang_rpc.contract import pins, versions
from sglang_rpc.contract.pins import State
from sglang_rpc.contract.targets import BEFORE, COMMAND_LINE, Assumption, Hook, hook, hook_of, hooks_in
from sglang_rpc.errors import ConfigError, IncompatibleSGLangError
from sglang_rpc.hooks import install as installer
from tests.unit.pins.fake_engine import CORE, needs, nothing, on

ROOT = Path(__file__).resolve().parents[3]
PATCHES = ROOT / "patches"


HOOKS_HERE = [on("Loop.step"), on("Loop.add")]


def install():
    installer.install(iter(HOOKS_HERE))


def test_installs_each_hook_once(engine):
    install()
    install()
    assert engine.put_on == HOOKS_HERE
    assert installer.installed() == frozenset(HOOKS_HERE)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("def add", "def plus", r"no fake_engine\.core\.Loop\.add, which RPC needs \(why Loop\.add\)"),
        ("def add(a, b=2)", "def add(a)", r"Loop\.add is not what .*signature changed: it takes \(a\), pinned \(a, b="),
        ("    @staticmethod\n", "", r"Loop\.add is not what .*kind changed: it is a method, pinned a staticmethod"),
    ],
)
def test_all_hooks_or_none(engine, old, new, told):
    """The first hook is fine, the second isn't: nothing is hooked, and the sentence names the second and a way out."""
    assert CORE.count(old) == 1
    engine.write(CORE.replace(old, new))
    with pytest.raises(IncompatibleSGLangError, match=told + r".*install sglang==1\.0, or start with --disable-rpc"):
        install()
    assert engine.put_on == []
    assert installer.installed() == frozenset()


def test_what_is_assumed_is_required_too(engine):
    engine.assumed = needs()[-2:]
    engine.write(CORE.replace("self.size, ", "self.length, "))
    with pytest.raises(
        IncompatibleSGLangError, match=r"fake_engine\.core\.Loop, which RPC needs \(its fields\).* have no size"
    ):
        install()
    assert engine.put_on == []


def test_a_hook_without_a_pin_is_refused(engine):
    with pytest.raises(
        IncompatibleSGLangError, match=r"Loop\.full .*not in RPC's pins: run `python -m sglang_rpc\.doctor --pin`"
    ):
        installer.install([on("Loop.full")])
    assert engine.put_on == []


def test_changed_bodies_are_one_warning_a_server(engine, caplog):
    engine.write(CORE.replace("return a + b", "return b + a").replace("batch + up_to", "up_to + batch"))
    install()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "fake_engine.core.Loop.step, fake_engine.core.Loop.add" in record.getMessage()
    assert engine.put_on == HOOKS_HERE
    # A process that this one spawns inherits the environment.
    assert os.environ[installer._WARNED_ENV] == "1"
    installer._installed.clear()
    install()
    assert len(caplog.records) == 1


def test_another_version_is_refused_unless_allowed(engine, monkeypatch):
    engine.pins = replace(engine.pins, version="0.9")
    told = rf"SGLang 1\.0 is installed.*proven on {versions.SUPPORTED}; .*SGLANG_RPC_ALLOW_VERSION=1.*--disable-rpc"
    with pytest.raises(IncompatibleSGLangError, match=told):
        install()
    assert engine.put_on == []
    monkeypatch.setenv(installer.ALLOW_VERSION_ENV, "1")
    install()
    assert engine.put_on == HOOKS_HERE


def test_an_allowed_version_must_still_fit(engine, monkeypatch):
    monkeypatch.setenv(installer.ALLOW_VERSION_ENV, "1")
    engine.write(CORE.replace("def add", "def plus"))
    engine.pins = replace(engine.pins, version="0.9")
    with pytest.raises(IncompatibleSGLangError, match=r"Loop\.add"):
        install()
    assert engine.put_on == []


def test_a_distributors_build_is_the_same_version(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "sglang", SimpleNamespace(__version__="1.0+cu130"))
    install()
    assert engine.put_on == HOOKS_HERE


def test_a_wrong_switch_is_not_ignored(engine, monkeypatch):
    monkeypatch.setenv(installer.ALLOW_VERSION_ENV, "yes")
    with pytest.raises(ConfigError, match="SGLANG_RPC_ALLOW_VERSION must be 0 or 1, got 'yes'"):
        install()


def test_the_command_line_goes_on_in_any_version(engine):
    """--disable-rpc is read by these hooks; it must get an unpinned SGLang going."""
    engine.pins, engine.assumed = replace(engine.pins, version="0.9"), [Assumption("fake_engine.gone", "not asked")]
    hooks = [on("Loop.step", when=COMMAND_LINE), on("Loop.add", when=COMMAND_LINE)]
    installer.install(hooks)
    assert engine.put_on == hooks


def test_the_way_out_of_a_broken_command_line_is_not_a_flag_of_it():
    for when, named in ((COMMAND_LINE, False), ("serving", True), ("latent", True)):
        finding = pins.Finding(on("Loop.step", when=when), State.MISSING, "gone")
        assert ("--disable-rpc" in installer._sentence(finding, "1.0")) is named


def test_a_hook_is_declared_above_its_function():
    @hook(BEFORE, "fake_engine.core.Loop.step", "why", COMMAND_LINE)
    def prepare(loop, batch):
        return loop, batch

    assert prepare(1, 2) == (1, 2)
    assert hook_of(prepare) == Hook("fake_engine.core.Loop.step", BEFORE, "why", prepare, COMMAND_LINE)
    module = ModuleType(__name__)
    module.prepare, module.other = prepare, nothing
    assert hooks_in(module) == (hook_of(prepare),)
    elsewhere = ModuleType("elsewhere")  # which imports it
    elsewhere.prepare = prepare
    assert hooks_in(elsewhere) == ()


def test_every_declared_hook_is_found():
    """Those that the doctor knows are as many as are written in the source."""
    written = sum(
        len(re.findall(r"^@hook\(", path.read_text(encoding="utf-8"), re.MULTILINE))
        for path in (ROOT / "sglang_rpc").rglob("*.py")
    )
    # One per target and occasion: what reuse adds to a target stands beside what every server has there.
    assert len(doctor.every_hook()) == len({(found.target, found.when) for found in doctor.every_hook()}) == written
