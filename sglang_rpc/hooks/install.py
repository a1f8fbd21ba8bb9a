"""Puts hooks on SGLang, all or none: SGLang's own loader logs a failed hook and goes on, and a server would then run
uncompressed, or half hooked, in silence.

Before the first hook is put on, everything RPC needs is compared with `patches/`: what is missing or takes other
arguments stops the process; what only works differently inside is a warning.
"""

import inspect
import logging
import os
import pkgutil
from collections.abc import Iterable

from sglang_rpc.contract import pins as pinned
from sglang_rpc.contract import versions
from sglang_rpc.contract.assumptions import assumptions
from sglang_rpc.contract.pins import Finding, Pins, State
from sglang_rpc.contract.targets import COMMAND_LINE, Hook, Need
from sglang_rpc.errors import ConfigError, IncompatibleSGLangError

logger = logging.getLogger(__name__)

#: "1" lets RPC run in an SGLang that is not pinned, if every target is there and takes the same arguments.
ALLOW_VERSION_ENV = "SGLANG_RPC_ALLOW_VERSION"
#: Set by the first process that warns of changed bodies; the processes it spawns inherit it and stay silent.
_WARNED_ENV = "SGLANG_RPC_DRIFT_WARNED"

_installed: set[Hook] = set()


def install(hooks: Iterable[Hook]) -> None:
    """Put every hook on its target, or none; those put on before are left alone.

    Raises:
        IncompatibleSGLangError: a target is missing, or is not what was pinned, or this SGLang's version is not
            pinned; the sentence names it.
        ConfigError: SGLANG_RPC_ALLOW_VERSION is neither 0 nor 1.
    """
    new = [hook for hook in hooks if hook not in _installed]
    if not new:
        return
    here = [versions.current().here(hook) for hook in new]
    _check(here)
    # Nothing has been changed up to here, and nothing below can fail for a target that was found.
    for hook in here:
        _put_on(hook)
    _installed.update(new)


def installed() -> frozenset[Hook]:
    """The hooks put on in this process."""
    return frozenset(_installed)


def allowed_version(version: str, pins: Pins) -> bool:
    """Whether RPC may run in this SGLang. Raises ConfigError if SGLANG_RPC_ALLOW_VERSION is neither 0 nor 1."""
    allow = os.environ.get(ALLOW_VERSION_ENV, "").strip()
    if allow not in ("", "0", "1"):
        raise ConfigError(f"{ALLOW_VERSION_ENV} must be 0 or 1, got {allow!r}")
    return pinned.public(version) == pins.version or allow == "1"


def _check(new: list[Hook]) -> None:
    import sglang

    pins = pinned.load(sglang.__version__)
    occasions = dict.fromkeys(hook.when for hook in new)
    # The command line's hooks go on with --disable-rpc too, which must work in any SGLang.
    if any(when != COMMAND_LINE for when in occasions) and not allowed_version(sglang.__version__, pins):
        raise IncompatibleSGLangError(
            f"SGLang {sglang.__version__} is installed, and RPC is proven on {versions.SUPPORTED}; "
            f"install one of these, set {ALLOW_VERSION_ENV}=1 to try it all the same, or start with --disable-rpc"
        )
    assumed = (assumption for when in occasions for assumption in assumptions(when))
    needs: list[Need] = [*new, *assumed]
    findings = pinned.compare(pins, needs)
    for finding in findings:
        if finding.state.breaks:
            raise IncompatibleSGLangError(_sentence(finding, pins.version))
    changed = [finding.need.target for finding in findings if finding.state is State.BODY]
    if changed and not os.environ.get(_WARNED_ENV):
        os.environ[_WARNED_ENV] = "1"
        logger.warning(
            "RPC: not the code that RPC was proven with (SGLang %s): %s; "
            "`python -m sglang_rpc.doctor` tells what RPC needs there",
            pins.version,
            ", ".join(changed),
        )


def _sentence(finding: Finding, version: str) -> str:
    need, state = finding.need, finding.state
    if state is State.UNPINNED:
        return f"{need.target} ({need.reason}) is not in RPC's pins: {finding.detail}"
    if state is State.MISSING:
        what = f"this SGLang has no {need.target}, which RPC needs ({need.reason}): {finding.detail}"
    else:
        what = f"SGLang's {need.target} is not what RPC needs ({need.reason}): {state.value}: it {finding.detail}"
    # --disable-rpc is read by the very hooks that can't be put on.
    way_out = "" if need.when == COMMAND_LINE else ", or start with --disable-rpc"
    return f"{what}; install sglang=={version}{way_out}"


def _put_on(hook: Hook) -> None:
    """Wrap what is there, which another plugin may have hooked before us.

    Not by `HookRegistry.register` and `apply_hooks`: those skip, in silence, a target that another plugin has hooked
    already (SGLang brings such a plugin), log a failure and go on, and search every module for copies of each target,
    60 ms a hook. A method has no copies; the registry is left to functions of a module, which may.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookSource, HookType, _wrap_fn

    owner_path, _, name = hook.target.rpartition(".")
    owner = pkgutil.resolve_name(owner_path)
    if not isinstance(owner, type):
        source = HookSource(plugin_name="rpc", dist_name="sglang-rpc")
        HookRegistry._apply_target(hook.target, [(HookType(hook.kind), hook.function, source)])
        return
    raw = inspect.getattr_static(owner, name)
    binding = type(raw) if isinstance(raw, classmethod | staticmethod) else None
    wrapped = _wrap_fn(raw if binding is None else raw.__func__, hook.function, HookType(hook.kind))
    setattr(owner, name, wrapped if binding is None else binding(wrapped))
    logger.debug("RPC: %s %s", hook.kind, hook.target)
