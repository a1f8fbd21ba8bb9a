"""Pins: the normal form, what counts as a difference, and installing all hooks or none."""

import ast
import hashlib
import importlib
import inspect
import os
import re
import shutil
import sys
import textwrap
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sglang_rpc.contract import pins
from sglang_rpc.contract.assumptions import ASSUMPTIONS, LATENT_ASSUMPTIONS, Assumption
from sglang_rpc.contract.pins import State
from sglang_rpc.contract.targets import AFTER, BEFORE, CLI_HOOKS, HOOKS, LATENT_HOOKS, Hook
from sglang_rpc.errors import ConfigError, IncompatibleSGLangError
from sglang_rpc.hooks import install as installer

ROOT = Path(__file__).resolve().parents[2]
PATCHES = ROOT / "patches"

CORE = '''
import functools


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

    def write_source(source):
        (package / "core.py").write_text(source)
        shutil.rmtree(package / "__pycache__", ignore_errors=True)  # two writes within a second look alike to Python
        forget()
        importlib.invalidate_caches()

    def forget():
        for name in [name for name in sys.modules if name.partition(".")[0] == "fake_engine"]:
            del sys.modules[name]

    yield write_source
    forget()


def seam(name, kind=AFTER):
    return Hook(f"fake_engine.core.{name}", kind, "hooks.tree:forget_row", f"why {name}")


def needs():
    methods = ("Loop.step", "Loop.decorated", "Loop.make", "Loop.add", "plan", "Loop.serve")
    attributes = ("depth", "full", "inherited", "size", "step")
    return [*map(seam, methods), Assumption("fake_engine.core.Loop", "its fields", attributes)]


def states(pinned):
    return {finding.need.target.removeprefix("fake_engine.core."): finding for finding in compare(pinned)}


def compare(pinned):
    return pins.compare(pinned, needs())


# ---- the normal form ----------------------------------------------------------------------------------------


def form(source):
    return pins.normal_form(ast.parse(textwrap.dedent(source)).body[0])


def test_normal_form_is_the_same_text_on_every_python():
    source = '''
    @wraps(g)
    async def f(a, b: int = 1, *c, d=None, **e) -> str:
        """Doc."""
        def inner():
            "doc"
        x: list[int] = [1, 2.5, b"x", ..., -1]
        with open(a) as h, b:
            return f"{a!r:>{b}}" f" {{ {c = }" "tail" f"{d['k']}" if a not in x else {**e, 'k': lambda y: y[1:, ...]}
    '''
    digest = hashlib.sha256(form(source).encode()).hexdigest()
    # Written down, so that the run on each Python version compares with the others.
    assert digest == "a327890d71b58a5d50bb069b6302f55e3cb8015e7c970853a9aebc4323c7c6fe"


@pytest.mark.parametrize(
    "other",
    [
        "def f(a, b=1):\n    return a + b  # a comment",
        'def f(a, b=1):\n    """Docstring."""\n    return a + b',
        "def f(a: int, b: int = 1) -> int:\n\n    return (a\n            + b)",
        "def f(\n    a,\n    b=1,\n):\n    return a + b",
    ],
)
def test_what_does_not_count(other):
    assert form(other) == form("def f(a, b=1):\n    return a + b")


@pytest.mark.parametrize(
    "other",
    [
        "def f(a, b=2):\n    return a + b",
        "def f(a, b=1):\n    return a - b",
        "def f(a, b=1):\n    'no docstring', a\n    return a + b",
        "@g\ndef f(a, b=1):\n    return a + b",
        "async def f(a, b=1):\n    return a + b",
    ],
)
def test_what_counts(other):
    assert form(other) != form("def f(a, b=1):\n    return a + b")


def test_split_literals_of_f_strings_do_not_count():
    assert form('x = f"a{b}c" "d"') == form('x = f"a" f"{b}cd"')
    assert form('x = f"a{b}c"') != form('x = f"a{b}d"')


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
    ],
)
def test_kind_and_signature(write, name, kind, signature):
    write(CORE)
    found = pins.find(f"fake_engine.core.{name}")
    assert (found.kind, found.signature(())) == (kind, signature)


@pytest.mark.parametrize("target", ["fake_engine.core.Loop.gone", "fake_engine.gone.f", "gone_engine.f"])
def test_what_is_not_there_is_named(write, target):
    write(CORE)
    with pytest.raises(LookupError, match="gone"):
        pins.find(target)


def test_a_module_that_cannot_be_imported_is_a_lookup_error(write):
    write("raise RuntimeError('no driver')")
    with pytest.raises(LookupError, match="RuntimeError: no driver"):
        pins.find("fake_engine.core.f")


# ---- comparing ----------------------------------------------------------------------------------------------


def test_nothing_changed(write):
    write(CORE)
    assert {finding.state for finding in compare(pins.take("1.0", needs()))} == {State.OK}


def test_a_touched_file_with_the_same_code(write):
    write(CORE)
    pinned = pins.take("1.0", needs())
    write(
        "# Moves every line.\n" + CORE.replace('"""Doc."""', '"""Other."""').replace("up_to):", "up_to: int) -> int:")
    )
    assert {finding.state for finding in compare(pinned)} == {State.OK}


def test_every_difference_is_told_apart(write):
    write(CORE)
    pinned = pins.take("1.0", needs())
    changed = (
        CORE.replace("# a comment", "# another")
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
    }
    assert "has no decorated" in found["Loop.decorated"].detail
    assert found["Loop.make"].detail == "is a method, pinned a classmethod"
    assert found["Loop.add"].detail == "takes (a), pinned (a, b=...)"
    assert found["plan"].detail == "in fake_engine/core.py"
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
        ("return cls(size)", "return cls(size + 1)", State.OK),  # no attribute of it is relied upon
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


def test_an_unchanged_file_is_not_parsed(write, monkeypatch):
    write(CORE)
    pinned = pins.take("1.0", needs())
    monkeypatch.setattr(pins.ast, "parse", lambda *_: pytest.fail("parsed"))
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


@pytest.mark.parametrize("content", [None, "not json", "{}", '{"sglang": "1.0", "files": {}, "pins": [{"a": 1}]}'])
def test_no_pins_is_an_error_that_names_the_file(tmp_path, content):
    if content is not None:
        (tmp_path / "sglang-1.0.json").write_text(content)
    with pytest.raises(IncompatibleSGLangError, match=re.escape(str(tmp_path / "sglang-1.0.json"))):
        pins.load("1.0", tmp_path)


# ---- the pins of this project ---------------------------------------------------------------------------------


def project_pins():
    (path,) = PATCHES.glob("sglang-*.json")
    return pins.load(path.stem.removeprefix("sglang-"), PATCHES)


def test_pins_and_tables_are_in_step():
    """`python -m sglang_rpc.doctor --pin` after a change of a table."""
    wanted = Counter((need.target, need.kind, need.reason) for need in (*CLI_HOOKS, *HOOKS, *LATENT_HOOKS))
    wanted += Counter((need.target, pins.ASSUMPTIONS, need.reason) for need in (*ASSUMPTIONS, *LATENT_ASSUMPTIONS))
    assert Counter((pin.target, pin.use, pin.reason) for pin in project_pins().pins) == wanted


def test_attributes_are_pinned():
    pinned = project_pins()
    for need in (*ASSUMPTIONS, *LATENT_ASSUMPTIONS):
        if need.attributes:
            assert pinned.of(need.target).signature == "{" + ", ".join(need.attributes) + "}"
            assert list(need.attributes) == sorted(set(need.attributes)), need.target


def test_every_pin_has_a_source():
    pinned = project_pins()
    for pin in pinned.pins:
        assert re.fullmatch(r"[0-9a-f]{64}", pin.fingerprint or ""), pin.target
        assert pin.files and set(pin.files) <= set(pinned.files), pin.target
        assert all(file.startswith("sglang/") for file in pin.files), pin.target


def test_the_pinned_version_is_the_required_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert f"sglang=={project_pins().version}" in project["project"]["dependencies"]


@pytest.mark.parametrize(
    "hooked", (*CLI_HOOKS, *HOOKS, *LATENT_HOOKS), ids=lambda hooked: hooked.target.rpartition(".")[2]
)
def test_every_hook_takes_what_its_target_takes(hooked):
    """SGLang's calls reach a hook as they are: by position what can be, the rest by name."""
    module, _, name = hooked.hook.partition(":")
    hook = getattr(importlib.import_module(f"sglang_rpc.{module}"), name)
    scope: dict = {}
    # A pinned signature is Python's own notation, with `...` for a default.
    exec(f"def target{project_pins().of(hooked.target).signature}: ...", scope)
    parameters = inspect.signature(scope["target"]).parameters.values()
    first = () if hooked.kind == BEFORE else (None,)
    for optional in (False, True):
        given = [p for p in parameters if optional or p.default is p.empty]
        positional = [None for p in given if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        by_name = {p.name: None for p in given if p.kind is p.KEYWORD_ONLY}
        inspect.signature(hook).bind(*first, *positional, **by_name)


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
    monkeypatch.setattr(installer, "_put_on", lambda seam, hook: put_on.append(seam))
    return SimpleNamespace(write=write, put_on=put_on, pins=pins.take("1.0", needs()))


SEAMS_HERE = [seam("Loop.step"), seam("Loop.add")]


def install(engine, **options):
    installer.install(SEAMS_HERE, **{"pins": engine.pins, "assumptions": (), **options})


def test_installs_each_seam_once(engine):
    install(engine)
    install(engine)
    assert engine.put_on == SEAMS_HERE
    assert installer.installed() == frozenset(SEAMS_HERE)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("def add", "def plus", r"no fake_engine\.core\.Loop\.add, which RPC needs \(why Loop\.add\)"),
        ("def add(a, b=2)", "def add(a)", r"Loop\.add is not what .*signature changed: it takes \(a\), pinned \(a, b="),
        ("    @staticmethod\n", "", r"Loop\.add is not what .*kind changed: it is a method, pinned a staticmethod"),
    ],
)
def test_all_hooks_or_none(engine, old, new, told):
    """The first seam is fine, the second isn't: nothing is hooked, and the sentence names the second and a way out."""
    assert CORE.count(old) == 1
    engine.write(CORE.replace(old, new))
    with pytest.raises(IncompatibleSGLangError, match=told + r".*install sglang==1\.0, or start with --disable-rpc"):
        install(engine)
    assert engine.put_on == []
    assert installer.installed() == frozenset()


def test_what_is_relied_upon_is_required_too(engine):
    engine.write(CORE.replace("self.size, ", "self.length, "))
    with pytest.raises(
        IncompatibleSGLangError, match=r"fake_engine\.core\.Loop, which RPC needs \(its fields\).* have no size"
    ):
        install(engine, assumptions=needs()[-1:])
    assert engine.put_on == []


def test_a_seam_without_a_pin_is_refused(engine):
    with pytest.raises(
        IncompatibleSGLangError, match=r"Loop\.full .*not in RPC's pins: run `python -m sglang_rpc\.doctor --pin`"
    ):
        installer.install([seam("Loop.full")], pins=engine.pins, assumptions=())
    assert engine.put_on == []


def test_changed_bodies_are_one_warning_a_server(engine, caplog):
    engine.write(CORE.replace("return a + b", "return b + a").replace("batch + up_to", "up_to + batch"))
    install(engine)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "fake_engine.core.Loop.step, fake_engine.core.Loop.add" in record.getMessage()
    assert engine.put_on == SEAMS_HERE
    # A process that this one spawns inherits the environment.
    assert os.environ[installer._WARNED_ENV] == "1"
    installer._installed.clear()
    install(engine)
    assert len(caplog.records) == 1


def test_another_version_is_refused_unless_allowed(engine, monkeypatch):
    other = replace(engine.pins, version="0.9")
    told = r"SGLang 1\.0 is installed.*proven on 0\.9.*sglang==0\.9.*SGLANG_RPC_ALLOW_VERSION=1.*--disable-rpc"
    with pytest.raises(IncompatibleSGLangError, match=told):
        install(engine, pins=other)
    assert engine.put_on == []
    monkeypatch.setenv(installer.ALLOW_VERSION_ENV, "1")
    install(engine, pins=other)
    assert engine.put_on == SEAMS_HERE


def test_an_allowed_version_must_still_fit(engine, monkeypatch):
    monkeypatch.setenv(installer.ALLOW_VERSION_ENV, "1")
    engine.write(CORE.replace("def add", "def plus"))
    with pytest.raises(IncompatibleSGLangError, match=r"Loop\.add"):
        install(engine, pins=replace(engine.pins, version="0.9"))
    assert engine.put_on == []


def test_a_distributors_build_is_the_same_version(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "sglang", SimpleNamespace(__version__="1.0+cu130"))
    install(engine)
    assert engine.put_on == SEAMS_HERE


def test_a_wrong_switch_is_not_ignored(engine, monkeypatch):
    monkeypatch.setenv(installer.ALLOW_VERSION_ENV, "yes")
    with pytest.raises(ConfigError, match="SGLANG_RPC_ALLOW_VERSION must be 0 or 1, got 'yes'"):
        install(engine)


def test_the_command_line_goes_on_in_any_version(engine, monkeypatch):
    """--disable-rpc is read by these hooks; it must get an unpinned SGLang going."""
    monkeypatch.setattr(installer, "CLI_HOOKS", tuple(SEAMS_HERE))
    install(engine, pins=replace(engine.pins, version="0.9"), assumptions=[Assumption("fake_engine.gone", "not asked")])
    assert engine.put_on == SEAMS_HERE


def test_the_way_out_of_a_broken_command_line_is_not_a_flag_of_it():
    finding = pins.Finding(CLI_HOOKS[0], State.MISSING, "gone")
    assert "--disable-rpc" not in installer._sentence(finding, "1.0")


def test_require_target(engine):
    installer.require_target(seam("Loop.step"))
    with pytest.raises(
        IncompatibleSGLangError, match=r"no fake_engine\.core\.Loop\.gone, which RPC needs \(why Loop\.gone\)"
    ):
        installer.require_target(seam("Loop.gone"))
