"""A place in SGLang as it is now: what kind of thing, what it takes, and the lines of source that make it.

Hooks, ours included, are looked through: they leave the original in `__wrapped__`.
"""

import ast
import functools
import hashlib
import inspect
import pkgutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Assignment = ast.Assign | ast.AnnAssign | ast.AugAssign


@dataclass(frozen=True)
class Found:
    """A target as Python sees it now. Of a plain value, `item` is its module."""

    kind: str
    item: Any  #: the function below every hook and decorator; the class; the module of a value
    names: tuple[str, ...] = ()  #: what is read of the class, or the value's name

    @property
    def signature(self) -> str:
        """In Python's notation, with `...` for each default: the defaults themselves belong to the body."""
        if isinstance(self.item, type | ModuleType):
            return "{" + ", ".join(self.names) + "}"
        try:
            parameters = inspect.signature(self.item, follow_wrapped=False).parameters.values()
        except (TypeError, ValueError):
            return "(?)"
        bare = [p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else ...) for p in parameters]
        return str(inspect.Signature(bare)).replace("=Ellipsis", "=...")

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules whose source makes it; of a class, with those of its bases in the same top-level package."""
        if isinstance(self.item, FunctionType):
            return (self.item.__globals__["__name__"],)
        if isinstance(self.item, ModuleType):
            return (self.item.__name__,)
        return tuple(dict.fromkeys(base.__module__ for base in self.bases))

    @property
    def bases(self) -> list[type]:
        """The class and those of its bases that come from the same top-level package."""
        if not isinstance(self.item, type):
            return []  # a callable without Python source
        package = self.item.__module__.partition(".")[0]
        return [base for base in self.item.__mro__ if base.__module__.partition(".")[0] == package]


def find(target: str, names: tuple[str, ...] = ()) -> Found:
    """The target. Imports its module. Raises LookupError, which says what is missing, if it is not there."""
    owner_path, _, name = target.rpartition(".")
    try:
        owner = pkgutil.resolve_name(owner_path)
    except Exception as error:  # an import may raise anything
        raise LookupError(f"{owner_path} can't be imported: {type(error).__name__}: {error}") from error
    try:
        raw = inspect.getattr_static(owner, name)
    except AttributeError as error:
        raise LookupError(f"{owner_path} has no {name}") from error
    if isinstance(raw, type):
        return Found("class", raw, names)
    item, kind = raw, "function" if isinstance(owner, ModuleType) else "method"
    if isinstance(raw, classmethod | staticmethod):
        item, kind = raw.__func__, type(raw).__name__
    elif isinstance(raw, property | functools.cached_property):
        item, kind = (raw.fget if isinstance(raw, property) else raw.func), "property"
    if not callable(item):
        return Found("value", owner, (name,))
    item = inspect.unwrap(item)
    if inspect.iscoroutinefunction(item) or inspect.isasyncgenfunction(item):
        kind = f"async {kind}"
    return Found(kind, item)


class Sources:
    """Source of modules, each read, hashed and parsed at most once."""

    def __init__(self) -> None:
        self._bytes = functools.cache(_read)
        self.digest = functools.cache(lambda module: hashlib.sha256(self._bytes(module)).hexdigest())
        self._lines = functools.cache(lambda module: self._bytes(module).decode().split("\n"))
        self._tree = functools.cache(lambda module: ast.parse(self._bytes(module)))

    def fingerprint(self, found: Found) -> str | None:
        """sha256 of its source lines, decorators included, without their common indentation; None if it has none.

        Of a class: of the statements that make the names read of its objects. Of a value: of its assignment.
        Raises LookupError if nothing makes one of the names.
        """
        makes = [
            (module, name, node)
            for module, owner in self._owners(found)
            for name, node in _makes(owner)
            if name in found.names
        ]
        if isinstance(found.item, FunctionType):
            (module,), code = found.modules, found.item.__code__
            makes = [
                (module, code.co_name, node)
                for node in ast.walk(self._tree(module))
                if isinstance(node, _Function) and (node.name, _begin(node)) == (code.co_name, code.co_firstlineno)
            ]
        elif absent := sorted(set(found.names) - {name for _, name, _ in makes}):
            raise LookupError(f"its objects have no {', '.join(absent)}")
        places = dict.fromkeys((module, _begin(node), node.end_lineno) for module, _, node in makes)
        texts = [textwrap.dedent("\n".join(self._lines(module)[a - 1 : b])) for module, a, b in places]
        return hashlib.sha256("\n".join(texts).encode()).hexdigest() if texts else None

    def _owners(self, found: Found) -> Iterator[tuple[str, ast.Module | ast.ClassDef]]:
        """The bodies in which names of a class or module are made."""
        if isinstance(found.item, ModuleType):
            yield found.item.__name__, self._tree(found.item.__name__)
        for base in found.bases:
            for node in ast.walk(self._tree(base.__module__)):
                if isinstance(node, ast.ClassDef) and node.name == base.__name__:
                    yield base.__module__, node


def _read(module: str) -> bytes:
    path = getattr(sys.modules.get(module), "__file__", None)
    try:
        return b"" if path is None else Path(path).read_bytes()
    except OSError:
        return b""


def _begin(node: ast.stmt) -> int:
    """The first line; a decorated function's code begins at its first decorator."""
    decorators = node.decorator_list if isinstance(node, _Function | ast.ClassDef) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _makes(owner: ast.Module | ast.ClassDef) -> Iterator[tuple[str, ast.stmt]]:
    """Each name that the module has, or that the class or one of its methods gives an object, with its statement."""
    for statement in owner.body:
        if isinstance(statement, _Function):
            yield statement.name, statement
        for inner in ast.walk(statement):
            if isinstance(inner, _Assignment):
                for node in ast.walk(inner):
                    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                        if isinstance(node.value, ast.Name) and node.value.id == "self":
                            yield node.attr, inner
                    elif inner is statement and isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                        yield node.id, statement
