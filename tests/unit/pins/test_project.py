"""The pins of this project: files, and that they are current."""

import inspect
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from sglang_rpc import doctor
from sglang_rpc.contract import pins, versions
from sglang_rpc.contract.targets import BEFORE, Assumption
from sglang_rpc.errors import IncompatibleSGLangError
from tests.unit.pins.fake_engine import CORE, needs

ROOT = Path(__file__).resolve().parents[3]
PATCHES = ROOT / "patches"


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
        assert pin.modules, pin.target
        assert set(pin.modules) <= set(pinned.modules), pin.target
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
