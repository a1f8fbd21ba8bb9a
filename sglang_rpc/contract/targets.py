"""How a place in SGLang is named where it is needed: a hook above its function, an assumption above its Protocol.

A hook is attached to its target; of an assumption, RPC calls it, reads it, or takes for granted what it does. Pins in
`patches/` say what each looked like when RPC was proven; `docs/hooks.md` shows the hooks together.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, ClassVar, TypeVar

BEFORE, AFTER, AROUND = "before", "after", "around"

#: When hooks are put on, and assumptions compared: SERVING in every process of a server with RPC; LATENT when a model
#: with latent attention (MLA) is met, whose code other models' processes do not import; REUSE in the schedulers of a
#: server with --rpc-reuse, and SPECULATIVE in those of a server that speculates, for others must not pay for it in each
#: step; TEXTS in the processes that tokenize for a server with --rpc-reuse-text; COMMAND_LINE before SGLang parses its
#: arguments, RPC on or off, so that it must work in any SGLang.
SERVING, LATENT, REUSE, SPECULATIVE, TEXTS = "serving", "latent", "reuse", "speculative", "texts"
COMMAND_LINE = "command line"
#: Those that are put on later than a server with RPC starts, where they are needed.
LATER = (LATENT, REUSE, SPECULATIVE, TEXTS)

#: How the names begin that RPC itself puts on SGLang's objects: `rpc`, `rpc_ring`, ...
OURS = "rpc"

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Hook:
    """`function` is attached to `target`, a function or method of SGLang, in the manner of `kind`."""

    target: str
    kind: str
    reason: str
    function: Callable[..., Any]
    when: str = SERVING
    attributes: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Assumption:
    """A function, method, class or value of SGLang, and what RPC needs of it."""

    target: str
    reason: str
    attributes: tuple[str, ...] = ()  #: of a class: what RPC reads of its objects; the rest may change
    when: str = SERVING


Need = Hook | Assumption


def hook(kind: str, target: str, reason: str, when: str = SERVING) -> Callable[[F], F]:
    """Decorate a function that is attached to `target`, and to others if stacked. The function stays as it is."""

    def declare(function: F) -> F:
        others = vars(function).get("rpc_hooks", ())
        setattr(function, "rpc_hooks", (Hook(target, kind, reason, function, when), *others))  # noqa: B010
        return function

    return declare


def hook_of(function: Callable[..., Any]) -> Hook:
    """The hook that was declared above this function, which has no other."""
    declared: Hook
    (declared,) = vars(function)["rpc_hooks"]
    return declared


def hooks_in(*modules: ModuleType) -> tuple[Hook, ...]:
    """The hooks declared in these modules, in the order in which they are written."""
    return tuple(
        declared
        for module in modules
        for value in vars(module).values()
        # A function that is imported from elsewhere is declared there.
        if isinstance(value, FunctionType) and value.__module__ == module.__name__
        for declared in vars(value).get("rpc_hooks", ())
    )


def assumed(target: str, reason: str, when: str = SERVING) -> Callable[[T], T]:
    """Decorate a Protocol that declares what RPC reads, calls and writes of objects of SGLang's class `target`.

    Its annotated names are the class's attributes, but for those that RPC puts there itself. Each method is an
    assumption of its own, whose docstring is the reason; it may be inherited, and is then looked up through the class.
    """

    def declare(protocol: T) -> T:
        methods = [
            Assumption(f"{target}.{name}", inspect.cleandoc(member.__doc__ or reason), when=when)
            for name, member in vars(protocol).items()
            if isinstance(member, FunctionType | staticmethod) and not name.startswith("__")
        ]
        annotated = inspect.get_annotations(protocol)  # type: ignore[arg-type]
        attributes = tuple(sorted(name for name in annotated if not name.startswith(OURS)))
        whole = [Assumption(target, reason, attributes, when)] if attributes else []
        others = vars(protocol).get("rpc_assumed", ())
        setattr(protocol, "rpc_assumed", (*whole, *methods, *others))  # noqa: B010
        return protocol

    return declare


def assumptions_in(*modules: ModuleType) -> Iterable[Assumption]:
    """The assumptions declared in these modules, in the order in which they are written."""
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__:
                yield from vars(value).get("rpc_assumed", ())
