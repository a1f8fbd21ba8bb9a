"""launch/measure_house.py on small checkouts of which every number is known."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from launch import measure_house as house

SCRIPT = Path(house.__file__)


@pytest.fixture
def checkout(tmp_path):
    """A checkout with these files, relative to its root; every package gets its `__init__.py`."""

    def write(files: dict[str, str], name: str = "checkout") -> Path:
        root = tmp_path / name
        for path, source in {"README.md": "one\ntwo\n", "sglang_rpc/__init__.py": "", **files}.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(source)
        return root

    return write


def test_lines_are_counted_by_package(checkout):
    rows = house.measure(checkout({"sglang_rpc/config.py": "a = 1\n\n# b\n", "sglang_rpc/hooks/a.py": "b = 2\n"}))
    assert rows["lines, sglang_rpc"] == "4"
    assert rows["lines, (top level)"] == "3 in 2 files"
    assert rows["lines, hooks"] == "1 in 1 files"
    assert rows["README lines"] == "2"


@pytest.mark.parametrize(("length", "count"), [(400, "0"), (401, "1")])
def test_a_long_file_has_more_than_400_lines(checkout, length, count):
    root = checkout({"sglang_rpc/a.py": "x = 1\n" * length, "tests/b.py": "x = 1\n" * length})
    rows = house.measure(root)
    assert rows["files over 400 lines, sglang_rpc"] == count
    assert rows["files over 400 lines, eval, launch, tests"] == count


@pytest.mark.parametrize(("body", "count"), [(49, "0"), (50, "1")])
@pytest.mark.parametrize("head", ["def f():\n", "async def f():\n", "class C:\n    def f(self):\n"])
def test_a_long_function_has_more_than_50_lines_from_its_def_on(checkout, head, body, count):
    indent = "        " if "class" in head else "    "
    rows = house.measure(checkout({"sglang_rpc/a.py": head + f"{indent}x = 1\n" * body}))
    assert rows["functions over 50 lines, sglang_rpc"] == count


def test_any_is_counted_in_the_packages_that_touch_sglang(checkout):
    source = "from typing import Any\ndef f(a: Any, b: Any) -> None: ...\nAnyOther = 1\n"  # two lines name it
    new = {"sglang_rpc/hooks/a.py": source, "sglang_rpc/contract/b.py": source, "sglang_rpc/policy/c.py": source}
    rows = house.measure(checkout(new))
    assert rows["lines that name `Any`, contract + hooks + startup"] == "4"
    assert rows["lines that name `Any`, hooks alone"] == "2"
    old = house.measure(checkout({"sglang_rpc/seams/a.py": source}, "old"))
    assert old["lines that name `Any`, contract + hooks + startup"] == "2"
    assert "lines that name `Any`, hooks alone" not in old


CIRCLES = {
    "at the top": ({"a": "from sglang_rpc import b\n", "b": "import sglang_rpc.a\n"}, "1; a + b"),
    "in functions": (
        {"a": "def f():\n    from sglang_rpc.b import g\n", "b": "def g():\n    import sglang_rpc.a\n"},
        "1; a + b",
    ),
    "relative": ({"p/a": "from . import b\n", "p/b": "from ..p.a import x\n", "p/__init__": ""}, "1; p.a + p.b"),
    "of three": (
        {"a": "import sglang_rpc.b\n", "b": "import sglang_rpc.c\n", "c": "from sglang_rpc.a import x\n"},
        "1; a + b + c",
    ),
    "two of them": (
        {
            **{"a": "import sglang_rpc.b\n", "b": "import sglang_rpc.a\nimport sglang_rpc.c\n"},
            **{"c": "import sglang_rpc.d\n", "d": "import sglang_rpc.c\n"},
        },
        "2; a + b; c + d",
    ),
    "none": ({"a": "from sglang_rpc import b\n", "b": "import torch\n", "c": "from sglang_rpc.b import a\n"}, "0"),
    "for the type checker alone": (
        {"a": "import sglang_rpc.b\n", "b": "if TYPE_CHECKING:\n    import sglang_rpc.a\n"},
        "0",
    ),
}


@pytest.mark.parametrize(("files", "circles"), CIRCLES.values(), ids=CIRCLES)
def test_import_circles_are_found_at_any_depth(checkout, files, circles):
    rows = house.measure(checkout({f"sglang_rpc/{name}.py": source for name, source in files.items()}))
    assert rows["import circles"] == circles


ENGINES = {
    "conftest.py": "import pytest\n@pytest.fixture(scope='session')\ndef shared():\n    yield engine()\n",
    "helpers.py": "def engine(): ...\ndef loaded():\n    return engine()\ndef idle(): ...\n",
    "test_a.py": """
import pytest
from helpers import engine, idle, loaded

@pytest.fixture(scope="module", params=[1, 2, 3])
def running(request):
    yield loaded()

def test_one(running): ...
@pytest.mark.parametrize("n", [0, 1])
def test_two(running, n): ...
def test_three(shared): ...
@pytest.mark.parametrize("n", [0, 1])
def test_four(n):
    engine()
def test_five():
    idle()
""",
    "test_b.py": "def test_six(shared): ...\n",
}


def test_an_engine_is_counted_once_for_each_start(checkout):
    """Three for the fixture's parameters, two for the test that starts its own; one for the run."""
    root = checkout({f"tests/engine/{name}": source for name, source in ENGINES.items()})
    assert house.engines(root) == 3 + 2 + 1


def test_a_folder_without_tests_ends_in_pytests_own_words(checkout):
    with pytest.raises(SystemExit, match="counted nothing"):
        house.engines(checkout({}))


def test_checkouts_stand_side_by_side(checkout):
    old = checkout({"sglang_rpc/seams/a.py": "x = 1\n"}, "old")
    new = checkout({"sglang_rpc/hooks/a.py": "x = 1\n" * 2}, "new")
    done = subprocess.run([sys.executable, SCRIPT, old, new], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "| | old | new |"
    assert "| lines, seams | 1 in 1 files | - |" in lines
    assert "| lines, hooks | - | 2 in 1 files |" in lines


def test_what_is_no_checkout_is_refused(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{tmp_path} must be a checkout of sglang-rpc; it has no folder sglang_rpc" in done.stderr


def test_it_needs_the_standard_library_alone():
    tree = ast.parse(SCRIPT.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    roots = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert {root.partition(".")[0] for root in roots} <= set(sys.stdlib_module_names)
