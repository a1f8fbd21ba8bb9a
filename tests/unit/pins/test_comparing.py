"""Finding a target, and what counts as a difference."""

import importlib
from pathlib import Path

import pytest

from sglang_rpc.contract import pins, source
from sglang_rpc.contract.pins import State
from sglang_rpc.contract.source import find
from sglang_rpc.errors import IncompatibleSGLangError
from tests.unit.pins.fake_engine import CORE, compare, needs, states

ROOT = Path(__file__).resolve().parents[3]
PATCHES = ROOT / "patches"


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
