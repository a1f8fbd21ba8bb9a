"""The import rule, read from the source:

types, config, errors <- policy | scoring | memory <- backends <- runtime <- trace <- contract, hooks, startup
                                                                  <- launch_server, engine, doctor
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "sglang_rpc"
BASE = {"types", "config", "errors"}
MIDDLE = {"policy", "scoring", "memory"}
BELOW_SGLANG = BASE | MIDDLE | {"backends", "runtime", "trace"}
SGLANG = {"contract", "hooks", "startup"}

#: first part of a module's name under sglang_rpc -> what it may import of sglang_rpc. Whatever is not listed is on top:
#: it may import everything, and nothing listed may import it.
MAY_IMPORT = {
    **{layer: BASE for layer in BASE},
    **{layer: BASE | {layer} for layer in MIDDLE},
    "backends": BASE | MIDDLE | {"backends"},
    "runtime": BASE | MIDDLE | {"backends", "runtime"},
    "trace": BASE | {"runtime", "trace"},
    **{layer: BELOW_SGLANG | SGLANG for layer in SGLANG},
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
    """(line, absolute name) of every import, at whatever depth; `from a import b` counts as both a and a.b."""
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
            found += [(node.lineno, origin), *((node.lineno, f"{origin}.{alias.name}") for alias in node.names)]
    return found


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
        ("sglang_rpc.startup.flags", "from .settings import attach"),
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
        ("sglang_rpc.policy.table", ("sglang", "triton")),
        ("sglang_rpc.runtime.compressor", ("sglang",)),
    ],
)
def test_importing_it_loads_neither(module, without):
    code = f"import {module}, sys; print([m for m in {without!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.returncode) == ("[]\n", 0), result.stderr
