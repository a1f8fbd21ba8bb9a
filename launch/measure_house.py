"""How the source of sglang-rpc is built, in numbers: a Markdown table with one column per checkout.

    python launch/measure_house.py                    this checkout
    python launch/measure_house.py BEFORE AFTER       two others, side by side
    python launch/measure_house.py --engines          also counts the engines that one default test run starts

Needs the standard library only; `--engines` needs an environment with the test requirements.

| row | rule |
|---|---|
| lines | newline characters of every `*.py` file of the package, blank lines and comments included |
| files over 400 lines | the same count per file |
| functions over 50 lines | from `def` to the last line of the body, docstring and nested functions included |
| lines that name `Any` | lines with the word `Any`, imports included; `seams` was all three packages in one |
| import circles | groups of modules that import each other, also inside functions; not under `TYPE_CHECKING` |
| engines started per test run | see `pytest_collection_finish` |
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Set
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = "sglang_rpc"
LONG_FILE, LONG_FUNCTION = 400, 50  #: lines
#: What stood in one package, `seams`, stands in these now: they are compared with it as a sum.
TOUCHES_SGLANG = ("contract", "hooks", "startup", "seams")
#: Functions of tests/engine that start an engine or a server; a helper that calls one of them is another.
STARTERS = frozenset({"Engine", "engine", "server", "run_to_exit"})
TOP = "(top level)"

Rows = dict[str, str]


def main(argv: list[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="measure_house.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkouts", nargs="*", type=Path, metavar="CHECKOUT", help="default: this one")
    parser.add_argument("--engines", action="store_true", help="collect the tests too, and count engine starts")
    given = parser.parse_args(argv)
    checkouts = given.checkouts or [Path(__file__).resolve().parents[1]]
    for checkout in checkouts:
        if not (checkout / PACKAGE).is_dir():
            parser.error(f"{checkout} must be a checkout of sglang-rpc; it has no folder {PACKAGE}")
    columns = [measure(checkout) for checkout in checkouts]
    if given.engines:
        for column, checkout in zip(columns, checkouts, strict=True):
            column["engines started per test run"] = str(engines(checkout))
    print(table(columns, [commit(checkout) for checkout in checkouts]))
    return 0


def table(columns: list[Rows], names: list[str]) -> str:
    """Markdown: one line per row that any column has, in the order of the last one; a dash where one lacks it."""
    rows = sorted(dict.fromkeys(row for column in reversed(columns) for row in column), key=_is_package, reverse=True)
    lines = ["| | " + " | ".join(names) + " |", "|---" + "|---:" * len(names) + "|"]
    return "\n".join([*lines, *(f"| {row} | " + " | ".join(c.get(row, "-") for c in columns) + " |" for row in rows)])


def _is_package(row: str) -> bool:
    return row.startswith("lines, ")


def measure(checkout: Path) -> Rows:
    """Every row that needs no test environment."""
    files = {path.relative_to(checkout / PACKAGE): path.read_text("utf-8") for path in sources(checkout / PACKAGE)}
    rows = {f"lines, {PACKAGE}": str(sum(map(lines, files.values())))}
    for package, members in sorted(by_package(files).items()):
        rows[f"lines, {package}"] = f"{sum(map(lines, members))} in {len(members)} files"
    trees = {path: ast.parse(source) for path, source in files.items()}
    touching = [source for path, source in files.items() if path.parts[0] in TOUCHES_SGLANG]
    others = [path.read_text("utf-8") for folder in ("eval", "launch", "tests") for path in sources(checkout / folder)]
    circles = import_circles(import_graph(trees))
    return {
        **rows,
        f"files over {LONG_FILE} lines, {PACKAGE}": str(sum(lines(source) > LONG_FILE for source in files.values())),
        f"files over {LONG_FILE} lines, eval, launch, tests": str(sum(lines(s) > LONG_FILE for s in others)),
        f"functions over {LONG_FUNCTION} lines, {PACKAGE}": str(sum(map(long_functions, trees.values()))),
        "lines that name `Any`, contract + hooks + startup": str(sum(map(lines_naming_any, touching))),
        **any_in_hooks(files),
        "import circles": "; ".join([str(len(circles)), *(" + ".join(circle) for circle in circles)]),
        "README lines": str(lines((checkout / "README.md").read_text("utf-8"))),
    }


def any_in_hooks(files: Mapping[Path, str]) -> Rows:
    """No row for a checkout that has no hooks/ yet."""
    hooks = [source for path, source in files.items() if path.parts[0] == "hooks"]
    return {"lines that name `Any`, hooks alone": str(sum(map(lines_naming_any, hooks)))} if hooks else {}


def commit(checkout: Path) -> str:
    """Short name of the commit, with a plus where files differ from it; the folder's name where there is no git."""
    done = subprocess.run(
        ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--exclude=*"], capture_output=True, text=True
    )
    return done.stdout.strip() or checkout.resolve().name


def sources(folder: Path) -> list[Path]:
    """Python files below `folder`, in order of their names."""
    return sorted(folder.rglob("*.py"))


def lines(text: str) -> int:
    return text.count("\n")


def by_package(files: Mapping[Path, str]) -> dict[str, list[str]]:
    """Sources by the first folder of their path; modules at the top belong together."""
    packages: dict[str, list[str]] = {}
    for path, source in files.items():
        packages.setdefault(path.parts[0] if len(path.parts) > 1 else TOP, []).append(source)
    return packages


def long_functions(tree: ast.Module) -> int:
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return sum((node.end_lineno or node.lineno) - node.lineno + 1 > LONG_FUNCTION for node in functions)


def lines_naming_any(source: str) -> int:
    return sum(re.search(r"\bAny\b", line) is not None for line in source.splitlines())


# --- import circles ---------------------------------------------------------------------------------------------


def import_graph(trees: Mapping[Path, ast.Module]) -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, at whatever depth.

    `from a import b` counts as an import of a.b where that is a module, and of a otherwise.
    """
    names = {module_name(path): (path, tree) for path, tree in trees.items()}
    graph: dict[str, set[str]] = {}
    for name, (path, tree) in names.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        graph[name] = {target for target in _imported(tree, package, names.keys()) if target != name}
    return graph


def module_name(path: Path) -> str:
    parts = (PACKAGE, *path.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(node: ast.AST, package: str, known: Set[str]) -> Iterator[str]:
    for child in _executed(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names if alias.name in known)
        elif isinstance(child, ast.ImportFrom):
            origin = child.module or ""
            if child.level:
                parent = package.rsplit(".", child.level - 1)[0] if child.level > 1 else package
                origin = f"{parent}.{origin}" if origin else parent
            for alias in child.names:
                full = f"{origin}.{alias.name}"
                if full in known or origin in known:
                    yield full if full in known else origin


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, but for blocks that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _executed(child)


def import_circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of two or more modules each of which reaches all others, without the package's name, sorted."""
    reached = {name: _reachable(graph, name) for name in graph}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in graph
        if name in reached[name]
    }
    return [[name.removeprefix(f"{PACKAGE}.") for name in group] for group in sorted(groups) if len(group) > 1]


def _reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += graph.get(name, ())
    return seen


# --- engines ----------------------------------------------------------------------------------------------------


def engines(checkout: Path) -> int:
    """Engine and server starts of one default test run: pytest collects, this file is its plugin and counts.

    Raises SystemExit with pytest's own words if the tests cannot be collected.
    """
    path = [str(Path(__file__).resolve().parent), str(checkout.resolve()), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", Path(__file__).stem, "tests/engine"]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    counted = re.search(r"^ENGINES (\d+)$", done.stdout, re.MULTILINE)
    if counted is None or done.returncode:
        raise SystemExit(f"{' '.join(command)} in {checkout} counted nothing:\n{(done.stdout + done.stderr)[-2000:]}")
    return int(counted[1])


def pytest_collection_finish(session: Any) -> None:
    """As a pytest plugin: print how many engines the selected tests start.

    A test that calls a starter counts once per parameter set. A fixture that calls one counts once per parameter and
    lifetime: per test, class, module or run. A start inside a loop counts once, so the number is a lower bound.
    """
    starts: set[object] = set()
    for item in session.items:
        if calls(item.path, item.originalname, item.path.parent):
            starts.add(item.nodeid)
        for name, definitions in item._fixtureinfo.name2fixturedefs.items():
            fixture = definitions[-1]
            home = Path(fixture.func.__code__.co_filename)
            if calls(home, fixture.func.__name__, item.path.parent):
                lifetime = {"module": item.path, "session": "", "package": ""}.get(fixture.scope, item.nodeid)
                indices = getattr(getattr(item, "callspec", None), "indices", {})
                starts.add((home, name, lifetime, indices.get(name, 0)))
    print("ENGINES", len(starts))


@cache
def starters(folder: Path) -> set[str]:
    """STARTERS, and every function in `folder` that is no test and no fixture and calls one, directly or not."""
    found = set(STARTERS)
    helpers = {
        node.name: called_names(node)
        for path in sources(folder)
        for node in _tree(path).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("test_") and not _is_fixture(node)
    }
    while grown := {name for name, called in helpers.items() if called & found} - found:
        found |= grown
    return found


@cache
def calls(path: Path, function: str, folder: Path) -> bool:
    """Whether the function of that name in the file `path` calls one of the starters of `folder`."""
    return any(
        isinstance(node, ast.FunctionDef) and node.name == function and called_names(node) & starters(folder)
        for node in ast.walk(_tree(path))
    )


def called_names(node: ast.AST) -> set[str]:
    """Last part of the name of everything that is called below `node`."""
    called = (call.func for call in ast.walk(node) if isinstance(call, ast.Call))
    return {f.attr if isinstance(f, ast.Attribute) else f.id for f in called if isinstance(f, ast.Attribute | ast.Name)}


def _is_fixture(node: ast.FunctionDef) -> bool:
    return any("fixture" in ast.unparse(decorator) for decorator in node.decorator_list)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


if __name__ == "__main__":
    sys.exit(main())
