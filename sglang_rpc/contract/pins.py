"""What each place in SGLang that RPC needs looked like when it was proven, and how it differs now. No printing here.

A pin holds of its target:

* kind: function, method, classmethod, staticmethod, property or class, and whether it is async;
* signature: the parameters' names and kinds, and which have a default. Of a class: the attributes RPC reads;
* fingerprint: sha256 of its source in a normal form, decorators included; comments, formatting, docstrings and
  annotations don't count. Of a class: of the statements that make those attributes.

The normal form is written here rather than by `ast.dump` or `ast.unparse`, whose texts differ between Python 3.11, 3.12
and 3.13. Hooks, ours included, are looked through: they leave the original in `__wrapped__`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from sglang_rpc.contract.assumptions import Assumption
from sglang_rpc.contract.targets import Hook
from sglang_rpc.errors import IncompatibleSGLangError

Need = Hook | Assumption
ASSUMPTIONS = "relied upon"


class State(Enum):
    """How a target compares with its pin."""

    OK = "ok"
    BODY = "body changed"
    MISSING = "missing"
    KIND = "kind changed"
    SIGNATURE = "signature changed"
    UNPINNED = "not pinned"

    @property
    def breaks(self) -> bool:
        """Whether RPC refuses to start; a changed body is a warning."""
        return self not in (State.OK, State.BODY)


@dataclass(frozen=True)
class Pin:
    """One target as it was. `use` is the kind of hook, or "relied upon"; `files` are relative to site-packages."""

    target: str
    use: str
    kind: str
    signature: str
    fingerprint: str | None  #: None: it has no Python source
    files: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Pins:
    """The pins of one SGLang version, and the sha256 of every file they were read from."""

    version: str
    files: Mapping[str, str]
    pins: tuple[Pin, ...]

    def of(self, target: str) -> Pin | None:
        return self._by_target.get(target)

    @functools.cached_property
    def _by_target(self) -> dict[str, Pin]:
        return {pin.target: pin for pin in self.pins}


@dataclass(frozen=True)
class Finding:
    """One need compared with its pin; `detail` is empty where all is well."""

    need: Need
    state: State
    detail: str = ""


# ---- comparing ----------------------------------------------------------------------------------------------


def compare(pins: Pins, needs: Iterable[Need]) -> list[Finding]:
    """Every need against its pin. Imports the targets' modules.

    A file whose bytes are those that were pinned isn't parsed: that is what makes it cheap enough for the start of
    every process.
    """
    sources = Sources()
    return [_compare(pins, need, sources) for need in needs]


def _compare(pins: Pins, need: Need, sources: Sources) -> Finding:
    try:
        now = find(need.target)
    except LookupError as error:
        return Finding(need, State.MISSING, str(error))
    pin = pins.of(need.target)
    if pin is None:
        return Finding(need, State.UNPINNED, "run `python -m sglang_rpc.doctor --pin`")
    if now.kind != pin.kind:
        return Finding(need, State.KIND, f"is a {now.kind}, pinned a {pin.kind}")
    attributes = _attributes(need)
    signature = now.signature(attributes)
    if signature != pin.signature:
        return Finding(need, State.SIGNATURE, f"takes {signature}, pinned {pin.signature}")
    files = sources.files(now)
    if files == pin.files and all(sources.digest(file) == pins.files.get(file) for file in files):
        return Finding(need, State.OK)
    try:
        fingerprint = sources.fingerprint(now, attributes)
    except LookupError as error:
        return Finding(need, State.MISSING, str(error))
    if fingerprint != pin.fingerprint:
        return Finding(need, State.BODY, f"in {', '.join(files) or 'no file'}")
    return Finding(need, State.OK)


def take(version: str, needs: Iterable[Need]) -> Pins:
    """Pins of what is installed here.

    Raises:
        IncompatibleSGLangError: a target, or an attribute of one, does not exist.
    """
    sources, pins, used = Sources(), [], set()
    for need in needs:
        try:
            now = find(need.target)
            fingerprint = sources.fingerprint(now, _attributes(need))
        except LookupError as error:
            raise IncompatibleSGLangError(f"{need.target} can't be pinned ({need.reason}): {error}") from error
        files = sources.files(now)
        used.update(files)
        use = need.kind if isinstance(need, Hook) else ASSUMPTIONS
        signature = now.signature(_attributes(need))
        pins.append(Pin(need.target, use, now.kind, signature, fingerprint, files, need.reason))
    return Pins(version, {file: sources.digest(file) for file in sorted(used)}, tuple(pins))


def _attributes(need: Need) -> tuple[str, ...]:
    return need.attributes if isinstance(need, Assumption) else ()


# ---- reading and writing ------------------------------------------------------------------------------------


def directory() -> Path:
    """Where the pins lie: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_patches"
    return installed if installed.is_dir() else package.parent / "patches"


def path_of(version: str, folder: Path) -> Path:
    return folder / f"sglang-{public(version)}.json"


def public(version: str) -> str:
    """A version without what a distributor appended (`0.5.23+cu130`): that is a build of the same source."""
    return version.partition("+")[0]


def load(version: str, folder: Path | None = None) -> Pins:
    """The pins of this version, else those of the newest one pinned: see `Pins.version`.

    Raises:
        IncompatibleSGLangError: there are none, or the file can't be read.
    """
    folder = directory() if folder is None else folder
    path = path_of(version, folder)
    if not path.is_file():
        path = max(folder.glob("sglang-*.json"), key=lambda other: _order(other.stem), default=path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        pins = tuple(Pin(**{**entry, "files": tuple(entry["files"])}) for entry in raw["pins"])
        return Pins(raw["sglang"], raw["files"], pins)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IncompatibleSGLangError(
            f"the pins of SGLang can't be read from {path}: {error}; install sglang-rpc again"
        ) from error


def _order(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", name))


def save(pins: Pins, folder: Path) -> Path:
    """Write them where `load` looks; returns the file. Raises IncompatibleSGLangError if it can't be written."""
    content = {"sglang": public(pins.version), "files": dict(pins.files), "pins": [asdict(pin) for pin in pins.pins]}
    path = path_of(pins.version, folder)
    try:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise IncompatibleSGLangError(f"the pins can't be written to {path}: {error}") from error
    return path


# ---- looking at what is there -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A target as Python sees it now."""

    kind: str
    item: Any  #: the function below every hook and decorator, or the class

    def signature(self, attributes: tuple[str, ...]) -> str:
        if isinstance(self.item, type):
            return "{" + ", ".join(attributes) + "}"
        try:
            parameters = inspect.signature(self.item, follow_wrapped=False).parameters.values()
        except (TypeError, ValueError):
            return "(?)"
        return _signature(parameters)


def find(target: str) -> Found:
    """The target. Imports its module.

    Raises:
        LookupError: it is not there; the message says what is missing.
    """
    owner_path, _, name = target.rpartition(".")
    try:
        owner = pkgutil.resolve_name(owner_path)
    except Exception as error:  # an import may raise anything
        raise LookupError(f"{owner_path} can't be imported: {type(error).__name__}: {error}") from error
    try:
        raw = inspect.getattr_static(owner, name)
    except AttributeError as error:
        raise LookupError(f"{owner_path} has no {name}") from error
    item, kind = raw, "value"
    if isinstance(raw, type):
        return Found("class", raw)
    if isinstance(raw, classmethod | staticmethod):
        item, kind = raw.__func__, type(raw).__name__
    elif isinstance(raw, property | functools.cached_property):
        item, kind = (raw.fget if isinstance(raw, property) else raw.func), "property"
    elif callable(raw):
        kind = "function" if isinstance(owner, ModuleType) else "method"
    if callable(item):
        item = inspect.unwrap(item)
        if inspect.iscoroutinefunction(item) or inspect.isasyncgenfunction(item):
            kind = f"async {kind}"
    return Found(kind, item)


def _signature(parameters: Iterable[inspect.Parameter]) -> str:
    """Names, kinds and which have a default; the defaults themselves belong to the body."""
    shown, seen = [], set()
    parameters = list(parameters)
    for index, parameter in enumerate(parameters):
        if parameter.kind is parameter.KEYWORD_ONLY and not seen & {parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL}:
            shown.append("*")
        seen.add(parameter.kind)
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        shown.append(star + parameter.name + ("" if parameter.default is parameter.empty else "=..."))
        following = parameters[index + 1].kind if index + 1 < len(parameters) else None
        if parameter.kind is parameter.POSITIONAL_ONLY and following is not parameter.POSITIONAL_ONLY:
            shown.append("/")
    return f"({', '.join(shown)})"


@dataclass
class Sources:
    """Source files, each read, hashed and parsed at most once."""

    _bytes: dict[str, bytes] = field(default_factory=dict)
    _paths: dict[str, str] = field(default_factory=dict)  #: as written in pins -> on this machine
    _indexes: dict[str, _Index] = field(default_factory=dict)

    def files(self, found: Found) -> tuple[str, ...]:
        """The files that define it, as written in pins; empty if it has no Python source."""
        if isinstance(found.item, type):
            return tuple(dict.fromkeys(self._name(path, cls.__module__) for cls, path in _classes(found.item)))
        if not isinstance(found.item, FunctionType):
            return ()
        return (self._name(found.item.__code__.co_filename, found.item.__module__),)

    def _name(self, path: str, module: str) -> str:
        """Relative to where its top-level package lies; the whole path for what comes from somewhere else."""
        package = sys.modules.get(module.partition(".")[0])
        origin = getattr(package, "__file__", None)
        root = None if origin is None else Path(origin).parent.parent if hasattr(package, "__path__") else Path(origin)
        name = path
        if root is not None and Path(path).is_relative_to(root):
            name = Path(path).relative_to(root).as_posix()
        self._paths[name] = path
        return name

    def digest(self, file: str) -> str:
        """sha256 of a file that `files` named; empty if it can't be read."""
        content = self._read(self._paths[file])
        return "" if content is None else hashlib.sha256(content).hexdigest()

    def _read(self, path: str) -> bytes | None:
        if path not in self._bytes:
            try:
                self._bytes[path] = Path(path).read_bytes()
            except OSError:
                return None
        return self._bytes[path]

    def fingerprint(self, found: Found, attributes: tuple[str, ...] = ()) -> str | None:
        """sha256 of the normal form; None if there is no Python source.

        Raises:
            LookupError: the class makes no attribute of a name in `attributes`.
        """
        if isinstance(found.item, type):
            nodes = self._attribute_statements(found.item, attributes)
        elif isinstance(found.item, FunctionType):
            nodes = self._function(found.item)
        else:
            return None
        return hashlib.sha256("\n".join(map(normal_form, nodes)).encode()).hexdigest() if nodes else None

    def _index(self, path: str) -> _Index:
        if path not in self._indexes:
            content = self._read(path)
            self._indexes[path] = _Index(ast.parse(content) if content is not None else ast.Module([], []))
        return self._indexes[path]

    def _function(self, function: FunctionType) -> list[ast.AST]:
        code = function.__code__
        node = self._index(code.co_filename).functions.get((code.co_name, code.co_firstlineno))
        return [] if node is None else [node]

    def _attribute_statements(self, cls: type, attributes: tuple[str, ...]) -> list[ast.AST]:
        wanted, statements, made = set(attributes), [], set()
        for base, path in _classes(cls):
            for node in self._index(path).classes.get(base.__name__, ()):
                for statement, names in _makes(node):
                    if names & wanted:
                        statements.append(statement)
                        made |= names
        if absent := sorted(wanted - made):
            raise LookupError(f"its objects have no {', '.join(absent)}")
        return statements


class _Index:
    """The functions of a file by name and first line, its classes by name."""

    def __init__(self, tree: ast.Module):
        self.functions: dict[tuple[str, int], ast.AST] = {}
        self.classes: dict[str, list[ast.ClassDef]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                # A decorated function's code begins at its first decorator.
                begin = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                self.functions[node.name, begin] = node
            elif isinstance(node, ast.ClassDef):
                self.classes.setdefault(node.name, []).append(node)


def _classes(cls: type) -> Iterator[tuple[type, str]]:
    """The class and those of its bases that come from the same top-level package, each with its file."""
    package = cls.__module__.partition(".")[0]
    for base in cls.__mro__:
        path = getattr(sys.modules.get(base.__module__), "__file__", None)
        if path is not None and base.__module__.partition(".")[0] == package:
            yield base, path


def _makes(cls: ast.ClassDef) -> Iterator[tuple[ast.AST, set[str]]]:
    """The statements that give a class's objects attributes, each with the names."""
    for statement in cls.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            yield statement, {statement.name}
            for inner in ast.walk(statement):
                if isinstance(inner, ast.Assign | ast.AnnAssign | ast.AugAssign):
                    stored = (
                        n for n in ast.walk(inner) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)
                    )
                    yield inner, {n.attr for n in stored if isinstance(n.value, ast.Name) and n.value.id == "self"}
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield statement, {name.id for name in targets if isinstance(name, ast.Name)}


# ---- the normal form ----------------------------------------------------------------------------------------

#: Fields that don't say what the code does, or that only some Python versions have.
_IGNORED = frozenset({"annotation", "returns", "type_comment", "type_params", "type_ignores", "ctx", "kind"})
_WITH_DOCSTRING = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)


def normal_form(node: Any) -> str:
    """A syntax tree as one line of text, the same on every Python from 3.11 on."""
    if isinstance(node, list):
        return f"[{' '.join(map(normal_form, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = [type(node).__name__]
    for name, value in ast.iter_fields(node):
        if name in _IGNORED:
            continue
        if name == "body" and isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            value = value[1:]
        if isinstance(node, ast.JoinedStr):
            value = list(_merged(value))
        if value is not None and value != []:
            parts.append(f"{name}={normal_form(value)}")
    return f"({' '.join(parts)})"


def _merged(values: list[ast.expr]) -> Iterator[ast.expr]:
    """The pieces of an f-string; Python versions differ in how they split and join its literal ones."""
    text = ""
    for value in values:
        if isinstance(value, ast.Constant):
            text += str(value.value)
            continue
        if text:
            yield ast.Constant(text)
        text = ""
        yield value
    if text:
        yield ast.Constant(text)
