"""Pins: what counts as a difference; and installing all hooks or none."""

import importlib
import inspect
import os
import re
import shutil
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from sglang_rpc import doctor
from sglang_rpc.contract import pins, source, versions
from sglang_rpc.contract.pins import State
from sglang_rpc.contract.source import find
from sglang_rpc.contract.targets import AFTER, BEFORE, COMMAND_LINE, Assumption, Hook, hook, hook_of, hooks_in
from sglang_rpc.errors import ConfigError, IncompatibleSGLangError
from sglang_rpc.hooks import install as installer

ROOT = Path(__file__).resolve().parents[2]
PATCHES = ROOT / "patches"

CORE = '''
import functools

LIMIT = 64


def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper


def plan(batch, /, limit=3, *rest, wait, **more):
    """Doc."""
    return batch


class Base:
    inherited: int = 0


class Loop(Base):
    depth: int = 1

    def __init__(self, size):
        self.size, self.spare = size, 0

    def step(self, batch, *, up_to):
        # a comment
        return batch + up_to

    @logged
    def decorated(self, batch):
        return batch

    @classmethod
    def make(cls, size):
        return cls(size)

    @staticmethod
    def add(a, b=2):
        return a + b

    @property
    def full(self):
        return self.spare == 0

    async def serve(self):
        return None
'''


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


def nothing(*_args):
    """What the hooks here do."""


def on(name, kind=AFTER, when="serving"):
    return Hook(f"fake_engine.core.{name}", kind, f"why {name}", nothing, when)


def needs():
    methods = ("Loop.step", "Loop.decorated", "Loop.make", "Loop.add", "plan", "Loop.serve")
    attributes = ("depth", "full", "inherited", "size", "step")
    return [
        *map(on, methods),
        Assumption("fake_engine.core.Loop", "its fields", attributes),
        Assumption("fake_engine.core.LIMIT", "a value of the module"),
    ]


def states(pinned):
    return {finding.need.target.removeprefix("fake_engine.core."): finding for finding in compare(pinned)}


def compare(pinned):
    return pins.compare(pinned, needs())


# ---- finding ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "signature"),
    [
        ("plan", "function", "(batch, /, limit=..., *rest, wait, **more)"),
        ("Loop.step", "method", "(self, batch, *, up_to)"),
        ("Loop.decorated", "method", "(self, batch)"),
        ("Loop.make", "classmethod", "(cls, size)"),
        ("Loop.add", "staticmethod", "(a, b=...)"),
        ("Loop.full", "property", "(self)"),
        ("Loop.serve", "async method", "(self)"),
        ("Loop", "class", "{}"),
        ("LIMIT", "value", "{LIMIT}"),
    ],
)
def test_kind_and_signature(write, name, kind, signature):
    write(CORE)
    found = find(f"fake_engine.core.{name}")
    assert (found.kind, found.signature) == (kind, signature)


@pytest.mark.parametrize("target", ["fake_engine.core.Loop.gone", "fake_engine.gone.f", "gone_engine.f"])
def test_what_is_not_there_is_named(write, target):
    write(CORE)
    with pytest.raises(LookupError, match="gone"):
        find(target)


def test_a_module_that_cannot_be_imported_is_a_lookup_error(write):
    write("raise RuntimeError('no driver')")
    with pytest.raises(LookupError, match="RuntimeError: no driver"):
        find("fake_engine.core.f")


# ---- comparing ----------------------------------------------------------------------------------------------


def test_nothing_changed(write):
    write(CORE)
    assert {finding.state for finding in compare(pins.take("1.0", needs()))} == {State.OK}


def test_a_touched_module_with_the_same_code(write):
    write(CORE)
    pinned = pins.take("1.0", needs())
    write("# Moves every line.\n" + CORE.replace("class Base", "class Other:\n    pass\n\n\nclass Base"))
    assert {finding.state for finding in compare(pinned)} == {State.OK}


def test_indentation_in_common_does_not_count(write):
    write(CORE)
    pinned = pins.take("1.0", needs())
    write(CORE.replace("class Loop(Base):", "if True:\n  class Loop(Base):").replace("\n    ", "\n      "))
    found = states(pinned)
    assert {found[name].state for name in ("Loop.add", "Loop.serve", "Loop")} == {State.OK}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return a + b", "return b + a"),
        ("def add(a, b=2)", "def add(a, b=3)"),
        ("def add(a, b=2)", "def add(a, b: int = 2)"),
        ("return a + b", "return a + b  # unless it overflows"),
    ],
)
def test_what_counts_is_the_source(write, old, new):
    write(CORE)
    pinned = pins.take("1.0", needs())
    assert CORE.count(old) == 1
    write(CORE.replace(old, new))
    assert states(pinned)["Loop.add"].state is State.BODY


def test_every_difference_is_told_apart(write):
    write(CORE)
    pinned = pins.take("1.0", needs())
    changed = (
        CORE.replace("LIMIT = 64", "LIMIT = 32")
        .replace("def decorated", "def renamed")
        .replace("    @classmethod\n    def make(cls", "    def make(cls")
        .replace("def add(a, b=2)", "def add(a)")
        .replace("return batch\n\n\nclass", "return [batch]\n\n\nclass")
        .replace("async def serve", "def serve")
    )
    write(changed)
    found = states(pinned)
    assert {name: finding.state for name, finding in found.items()} == {
        "Loop.step": State.OK,
        "Loop.decorated": State.MISSING,
        "Loop.make": State.KIND,
        "Loop.add": State.SIGNATURE,
        "plan": State.BODY,
        "Loop.serve": State.KIND,
        "Loop": State.OK,
        "LIMIT": State.BODY,
    }
    assert "has no decorated" in found["Loop.decorated"].detail
    assert found["Loop.make"].detail == "is a method, pinned a classmethod"
    assert found["Loop.add"].detail == "takes (a), pinned (a, b=...)"
    assert found["plan"].detail == "in fake_engine.core"
    assert [state for state in State if not state.breaks] == [State.OK, State.BODY]


def test_a_changed_decorator_is_a_changed_body(write):
    write(CORE)
    pinned = pins.take("1.0", needs())
    write(CORE.replace("    @logged\n", "    @logged\n    @logged\n"))
    assert states(pinned)["Loop.decorated"].state is State.BODY


@pytest.mark.parametrize(
    ("old", "new", "state"),
    [
        ("self.size, self.spare = size, 0", "self.length, self.spare = size, 0", State.MISSING),
        ("self.size, self.spare = size, 0", "self.size, self.spare = size // 2, 0", State.BODY),
        ("return self.spare == 0", "return self.spare < 1", State.BODY),
        ("inherited: int = 0", "inherited: int = 1", State.BODY),
        ("inherited: int = 0", "other: int = 0", State.MISSING),
        ("return cls(size)", "return cls(size + 1)", State.OK),  # nothing it makes is read
    ],
)
def test_attributes_of_a_class(write, old, new, state):
    write(CORE)
    pinned = pins.take("1.0", needs())
    assert old in CORE
    write(CORE.replace(old, new))
    assert states(pinned)["Loop"].state is state


def test_a_missing_attribute_is_named(write):
    write(CORE.replace("depth: int = 1", "deepness: int = 1"))
    with pytest.raises(IncompatibleSGLangError, match=r"fake_engine\.core\.Loop .*its objects have no depth"):
        pins.take("1.0", needs())


def test_hooks_are_looked_through(write):
    """By a wrapper that leaves `__wrapped__`, as SGLang's hooks do."""
    write(CORE)
    pinned = pins.take("1.0", needs())
    core = importlib.import_module("fake_engine.core")
    core.Loop.step = core.logged(core.Loop.step)
    core.Loop.make = classmethod(core.logged(core.Loop.__dict__["make"].__func__))
    assert {finding.state for finding in compare(pinned)} == {State.OK}


def test_a_replaced_function_does_not_pass_for_the_original(write):
    write(CORE)
    pinned = pins.take("1.0", needs())
    core = importlib.import_module("fake_engine.core")

    def step(self, batch, *, up_to):
        return None

    core.Loop.step = step
    assert states(pinned)["Loop.step"].state is State.BODY


def test_a_need_without_a_pin_is_refused(write):
    write(CORE)
    pinned = pins.take("1.0", needs()[1:])
    assert states(pinned)["Loop.step"].state is State.UNPINNED


def test_a_callable_without_source_is_another_body(write):
    write(CORE)
    pinned = pins.take("1.0", needs())
    importlib.import_module("fake_engine.core").plan = len
    assert states(pinned)["plan"].state is State.SIGNATURE
    importlib.import_module("fake_engine.core").plan = print
    assert find("fake_engine.core.plan").modules == ()
    assert source.Sources().fingerprint(find("fake_engine.core.plan")) is None


def test_an_unchanged_module_is_not_parsed(write, monkeypatch):
    write(CORE)
    pinned = pins.take("1.0", needs())
    monkeypatch.setattr(source.ast, "parse", lambda *_: pytest.fail("parsed"))
    assert {finding.state for finding in compare(pinned)} == {State.OK}


# ---- files --------------------------------------------------------------------------------------------------


def test_saved_and_loaded(write, tmp_path):
    write(CORE)
    pinned = pins.take("1.0+cu130", needs())
    assert pins.save(pinned, tmp_path) == tmp_path / "sglang-1.0.json"
    assert pins.load("1.0+rocm7", tmp_path) == replace(pinned, version="1.0")


def test_an_unpinned_version_gets_the_newest_pins(tmp_path):
    for version in ("0.5.9", "0.5.23"):
        pins.save(pins.Pins(version, {}, ()), tmp_path)
    assert pins.load("0.6.1", tmp_path).version == "0.5.23"
    assert pins.load("0.5.9", tmp_path).version == "0.5.9"


@pytest.mark.parametrize("content", [None, "not json", "{}", '{"sglang": "1.0", "modules": {}, "pins": [{"a": 1}]}'])
def test_no_pins_is_an_error_that_names_the_file(tmp_path, content):
    if content is not None:
        (tmp_path / "sglang-1.0.json").write_text(content)
    with pytest.raises(IncompatibleSGLangError, match=re.escape(str(tmp_path / "sglang-1.0.json"))):
        pins.load("1.0", tmp_path)


# ---- the pins of this project ---------------------------------------------------------------------------------


@pytest.fixture(params=versions.VERSIONS)
def version(request):
    """Each SGLang version that is supported."""
    return request.param


def project_pins(version):
    pinned = pins.load(version, PATCHES)
    assert pinned.version == version
    return pinned


def test_pins_and_declarations_are_in_step(version):
    """`python -m sglang_rpc.doctor --pin` after a change of a declaration, with each version of SGLang."""
    wanted = Counter((need.target, pins.use_of(need), need.reason) for need in doctor.needs(version))
    assert Counter((pin.target, pin.use, pin.reason) for pin in project_pins(version).pins) == wanted


def test_attributes_are_pinned(version):
    pinned = project_pins(version)
    for need in doctor.needs(version):
        if isinstance(need, Assumption) and need.attributes:
            assert pinned.of(need.target).signature == "{" + ", ".join(need.attributes) + "}"
            assert list(need.attributes) == sorted(set(need.attributes)), need.target


def test_every_pin_has_a_source(version):
    pinned = project_pins(version)
    for pin in pinned.pins:
        assert re.fullmatch(r"[0-9a-f]{64}", pin.fingerprint or ""), pin.target
        assert pin.modules and set(pin.modules) <= set(pinned.modules), pin.target
        assert all(module.startswith("sglang.") for module in pin.modules), pin.target


@pytest.mark.parametrize("hooked", doctor.every_hook(), ids=lambda hooked: hooked.target.rpartition(".")[2])
def test_every_hook_takes_what_its_target_takes(hooked, version):
    """SGLang's calls reach a hook as they are: by position what can be, the rest by name."""
    scope: dict = {}
    # A pinned signature is Python's own notation, with `...` for a default.
    exec(f"def target{project_pins(version).of(versions.of(version).here(hooked).target).signature}: ...", scope)
    parameters = inspect.signature(scope["target"]).parameters.values()
    first = () if hooked.kind == BEFORE else (None,)
    for optional in (False, True):
        given = [p for p in parameters if optional or p.default is p.empty]
        positional = [None for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        by_name = {p.name: None for p in given if p.kind is p.KEYWORD_ONLY}
        inspect.signature(hooked.function).bind(*first, *positional, **by_name)


# ---- installing ---------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(installer, "assumptions", lambda when, version: here.assumed if when == "serving" else ())
    monkeypatch.setattr(pins, "load", lambda version: here.pins)
    here = SimpleNamespace(write=write, put_on=put_on, pins=pins.take("1.0", needs()), assumed=())
    return here


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


# ---- declaring ----------------------------------------------------------------------------------------------


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
    assert len(doctor.every_hook()) == len({found.target for found in doctor.every_hook()}) == written
