"""The import rule, read from the source:

types, config, errors <- policy | scoring | memory <- backends <- runtime <- trace
                                  <- contract <- hooks <- startup <- launch_server, engine, doctor

and no circles, at whatever depth an import stands.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "sglang_rpc"
BASE = {"types", "config", "errors", "kinds"}
MIDDLE = {"policy", "scoring", "memory"}
BELOW_SGLANG = BASE | MIDDLE | {"backends", "runtime", "trace"}
SGLANG = ("contract", "hooks", "startup")

#: first part of a module's name under sglang_rpc -> what it may import of sglang_rpc. Whatever is not listed is on top:
#: it may import everything, and nothing listed may import it.
MAY_IMPORT = {
    **{layer: BASE for layer in BASE},
    **{layer: BASE | {layer} for layer in MIDDLE},
    "backends": BASE | MIDDLE | {"backends"},
    "runtime": BASE | MIDDLE | {"backends", "runtime"},
    "trace": BASE | {"runtime", "trace"},
    **{layer: BELOW_SGLANG | {*SGLANG[: index + 1]} for index, layer in enumerate(SGLANG)},
}
MAY_IMPORT_SGLANG = {*SGLANG, "launch_server", "engine", "doctor"}
#: layers, or modules -> packages that must not appear in them
WITHOUT = {
    "policy": {"triton", "flashinfer", "numpy"},
    "policy.budget": {"torch"},
    "config": {"torch"},
    "errors": {"torch"},
    "runtime": {"triton", "flashinfer"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, is_package: bool) -> list[tuple[int, str]]:
    """(line, absolute name) of every import, at whatever depth; `from a import b` counts as a.b."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                parents = package[: len(package) - node.level + 1]
                origin = ".".join([*parents, origin]) if origin else ".".join(parents)
            found += [(node.lineno, f"{origin}.{alias.name}") for alias in node.names]
    return found


def circles(sources: dict[str, tuple[str, bool]]) -> list[list[str]]:
    """Modules that import each other, at whatever depth: {module: (source, whether it is a package)}."""
    imported = {}
    for module, (source, is_package) in sources.items():
        names = [name for _, name in imports(source, module, is_package)]
        imported[module] = {name if name in sources else name.rpartition(".")[0] for name in names} & set(sources)
    reached: dict[str, set[str]] = {}
    for module in sources:
        reached[module], todo = set(), [module]
        while todo:
            new = imported[todo.pop()] - reached[module]
            reached[module] |= new
            todo += new
    in_a_circle = [module for module in sources if module in reached[module]]
    rings = {frozenset(other for other in reached[module] if module in reached[other]) for module in in_a_circle}
    return sorted(sorted(ring) for ring in rings)


def broken_rules(source: str, module: str, is_package: bool = False) -> list[str]:
    """One sentence for each import that breaks the rule."""
    layer = module.partition(".")[2].partition(".")[0]
    broken = []
    for line, name in imports(source, module, is_package):
        root, _, rest = name.partition(".")
        target = rest.split(".")[0]
        where = f"{module}:{line} imports {name}"
        if root == "sglang_rpc" and target and target not in MAY_IMPORT.get(layer, {target}):
            broken.append(f"{where}: {layer} may import only {', '.join(sorted(MAY_IMPORT[layer]))}")
        if root in ("sglang", "sgl_kernel") and layer not in MAY_IMPORT_SGLANG:
            broken.append(f"{where}: only {', '.join(sorted(MAY_IMPORT_SGLANG))} may import it")
        broken += [
            f"{where}: {p} does without it" for p in {layer, module.partition(".")[2]} if root in WITHOUT.get(p, ())
        ]
    return broken


@pytest.mark.parametrize("path", MODULES, ids=[module_name(p) for p in MODULES])
def test_imports_point_downwards(path):
    source = path.read_text(encoding="utf-8")
    assert broken_rules(source, module_name(path), path.name == "__init__.py") == []


def test_there_are_no_circles():
    sources = {module_name(p): (p.read_text(encoding="utf-8"), p.name == "__init__.py") for p in MODULES}
    assert circles(sources) == []


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        ({"p.a": "from p import b", "p.b": "def f():\n    import p.a"}, [["p.a", "p.b"]]),
        ({"p.a": "from p.b import x", "p.b": "from p.c import x", "p.c": "from .a import y"}, [["p.a", "p.b", "p.c"]]),
        ({"p.a": "from p.b import x", "p.b": "from p.c import x", "p.c": "import os"}, []),
        ({"p": "from p.a import x", "p.a": "from p import b", "p.b": ""}, []),
        ({"p": "from p.a import x", "p.a": "from p import b, y", "p.b": ""}, [["p", "p.a"]]),
        ({"p": "from p.a import x", "p.a": "import p\nfrom p import b", "p.b": ""}, [["p", "p.a"]]),
    ],
)
def test_a_circle_is_seen(sources, found):
    assert circles({module: (source, module == "p") for module, source in sources.items()}) == found


def test_every_layer_is_there():
    layers = {module_name(path).split(".")[1] for path in MODULES if "." in module_name(path)}
    assert set(MAY_IMPORT) | {"engine", "launch_server"} <= layers


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sglang_rpc.config", "from sglang_rpc.policy import rpc"),
        ("sglang_rpc.policy.budget", "import torch"),
        ("sglang_rpc.policy.rpc", "import triton"),
        ("sglang_rpc.policy.rpc", "from sglang_rpc.memory.query_ring import QueryRing"),
        ("sglang_rpc.scoring.reference", "import sglang_rpc.policy.rpc"),
        ("sglang_rpc.memory.compaction", "from sglang_rpc import scoring"),
        ("sglang_rpc.memory.compaction", "from ..scoring import reference"),
        ("sglang_rpc.memory.compaction", "from .. import runtime"),
        ("sglang_rpc.runtime.compressor", "def f():\n    from sglang_rpc.contract import settings"),
        ("sglang_rpc.runtime.compressor", "import sglang.srt.plugins"),
        ("sglang_rpc.scoring.reference", "if True:\n    from sglang import Engine"),
        ("sglang_rpc.startup.flags", "from sglang_rpc.launch_server import main"),
        ("sglang_rpc.startup.flags", "from sglang_rpc import engine"),
        ("sglang_rpc.contract.settings", "def f():\n    from sglang_rpc.hooks.install import install"),
        ("sglang_rpc.contract.settings", "from sglang_rpc.startup.process import run_with_rpc"),
        ("sglang_rpc.hooks.capture", "from sglang_rpc.startup import process"),
        ("sglang_rpc.new_module", "import sglang"),
        ("sglang_rpc", "from sglang import Engine"),
    ],
)
def test_a_broken_rule_is_seen(module, source):
    assert broken_rules(source, module) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sglang_rpc.policy.rpc", "import math\nfrom sglang_rpc.config import RPCConfig"),
        ("sglang_rpc.runtime.compressor", "import torch\nfrom sglang_rpc.memory.compaction import move_kept"),
        ("sglang_rpc.startup.flags", "import sglang\nfrom sglang_rpc.runtime import compressor"),
        ("sglang_rpc.startup.process", "from sglang_rpc.hooks.install import install"),
        ("sglang_rpc.hooks.capture", "from sglang_rpc.contract import settings"),
        ("sglang_rpc.startup.flags", "from .process import switch_on"),
        ("sglang_rpc.launch_server", "from sglang_rpc.startup import flags\nimport sglang"),
        ("sglang_rpc.memory.compaction", "from sglang_rpc import types"),
    ],
)
def test_an_allowed_import_passes(module, source):
    assert broken_rules(source, module) == []


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("sglang_rpc", ("torch", "sglang")),
        ("sglang_rpc.config", ("torch", "sglang")),
        ("sglang_rpc.policy.budget", ("torch", "sglang")),
        ("sglang_rpc.policy.resolve", ("sglang", "triton")),
        ("sglang_rpc.runtime.compressor", ("sglang",)),
    ],
)
def test_importing_it_loads_neither(module, without):
    code = f"import {module}, sys; print([m for m in {without!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.returncode) == ("[]\n", 0), result.stderr
