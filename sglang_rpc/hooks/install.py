"""Puts the hooks of `table.py` on SGLang, all or none: SGLang's own loader logs a failed hook and goes on, and a
server would then run uncompressed, or half hooked, in silence.

Before the first hook is put on, everything RPC needs is compared with `patches/`: what is missing or takes other
arguments stops the process; what only works differently inside is a warning.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import pkgutil
from collections.abc import Iterable
from typing import Any

from sglang_rpc.contract import pins as pinned
from sglang_rpc.contract.assumptions import ASSUMPTIONS, Assumption
from sglang_rpc.contract.pins import Finding, Pins, State
from sglang_rpc.contract.targets import CLI_HOOKS, HOOKS, Hook
from sglang_rpc.errors import ConfigError, IncompatibleSGLangError

logger = logging.getLogger(__name__)

#: "1" lets RPC run in an SGLang that is not the pinned one, if every seam is there and takes the same arguments.
ALLOW_VERSION_ENV = "SGLANG_RPC_ALLOW_VERSION"
#: Set by the first process that warns of changed bodies; the processes it spawns inherit it and stay silent.
_WARNED_ENV = "SGLANG_RPC_DRIFT_WARNED"

_installed: set[Hook] = set()


def install(
    seams: Iterable[Hook] = HOOKS, *, pins: Pins | None = None, assumptions: Iterable[Assumption] = ASSUMPTIONS
) -> None:
    """Hook every seam, or none; those hooked before are left alone.

    Args:
        pins: what to compare with; None: what `patches/` holds for this SGLang.
        assumptions: what else to compare, unless all `seams` are of the command line.

    Raises:
        IncompatibleSGLangError: a target is missing, or is not what was pinned, or this SGLang's version is not
            pinned; the sentence names it.
        ConfigError: SGLANG_RPC_ALLOW_VERSION is neither 0 nor 1.
    """
    new = [seam for seam in seams if seam not in _installed]
    if not new:
        return
    _check(new, pins, assumptions)
    hooks = []
    for seam in new:
        module, _, function = seam.hook.partition(":")
        hooks.append(getattr(importlib.import_module(f"sglang_rpc.{module}"), function))
    # Nothing has been changed up to here, and nothing below can fail for a target that was found.
    for seam, hook in zip(new, hooks, strict=True):
        _put_on(seam, hook)
        _installed.add(seam)


def installed() -> frozenset[Hook]:
    """The seams hooked in this process."""
    return frozenset(_installed)


def require_target(seam: Hook | Assumption) -> None:
    """Raises IncompatibleSGLangError if the target does not exist."""
    try:
        pinned.find(seam.target)
    except LookupError as error:
        raise IncompatibleSGLangError(_sentence(Finding(seam, State.MISSING, str(error)))) from error


def allowed_version(version: str, pins: Pins) -> bool:
    """Whether RPC may run in this version of SGLang.

    Raises:
        ConfigError: SGLANG_RPC_ALLOW_VERSION is neither 0 nor 1.
    """
    allow = os.environ.get(ALLOW_VERSION_ENV, "").strip()
    if allow not in ("", "0", "1"):
        raise ConfigError(f"{ALLOW_VERSION_ENV} must be 0 or 1, got {allow!r}")
    return pinned.public(version) == pins.version or allow == "1"


def _check(new: list[Hook], pins: Pins | None, assumptions: Iterable[Assumption]) -> None:
    import sglang

    pins = pinned.load(sglang.__version__) if pins is None else pins
    needs: list[pinned.Need] = list(new)
    # The command line's seams go on with --disable-rpc too, which must work in any SGLang.
    if not set(new) <= set(CLI_HOOKS):
        if not allowed_version(sglang.__version__, pins):
            raise IncompatibleSGLangError(
                f"SGLang {sglang.__version__} is installed, and RPC is proven on {pins.version}; "
                f"install sglang=={pins.version}, set {ALLOW_VERSION_ENV}=1 to try it all the same, "
                "or start with --disable-rpc"
            )
        needs += assumptions
    findings = pinned.compare(pins, needs)
    for finding in findings:
        if finding.state.breaks:
            raise IncompatibleSGLangError(_sentence(finding, pins.version))
    changed = [finding.need.target for finding in findings if finding.state is State.BODY]
    if changed and not os.environ.get(_WARNED_ENV):
        os.environ[_WARNED_ENV] = "1"
        logger.warning(
            "RPC: not the code that RPC was proven with (SGLang %s): %s; "
            "`python -m sglang_rpc.doctor` tells what RPC relies on there",
            pins.version,
            ", ".join(changed),
        )


def _sentence(finding: Finding, version: str | None = None) -> str:
    need = finding.need
    what = {
        State.MISSING: f"this SGLang has no {need.target}, which RPC needs ({need.reason}): {finding.detail}",
        State.UNPINNED: f"{need.target} ({need.reason}) is not in RPC's pins: {finding.detail}",
    }.get(
        finding.state,
        f"SGLang's {need.target} is not what RPC needs ({need.reason}): {finding.state.value}: it {finding.detail}",
    )
    if finding.state is State.UNPINNED:
        return what
    install_it = f"install sglang=={version}" if version else "install the SGLang that RPC requires"
    # --disable-rpc is read by the very hooks that can't be put on.
    return f"{what}; {install_it}" + ("" if need in CLI_HOOKS else ", or start with --disable-rpc")


def _put_on(seam: Hook, hook: Any) -> None:
    """Wrap what is there, which another plugin may have hooked before us.

    Not by `HookRegistry.register` and `apply_hooks`: those skip, in silence, a target that another plugin has hooked
    already (SGLang brings such a plugin), log a failure and go on, and search every module for copies of each target,
    60 ms a hook. A method has no copies; the registry is left to functions of a module, which may.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookSource, HookType, _wrap_fn

    owner_path, _, name = seam.target.rpartition(".")
    owner = pkgutil.resolve_name(owner_path)
    if not isinstance(owner, type):
        source = HookSource(plugin_name="rpc", dist_name="sglang-rpc")
        HookRegistry._apply_target(seam.target, [(HookType(seam.kind), hook, source)])
        return
    raw = inspect.getattr_static(owner, name)
    binding = type(raw) if isinstance(raw, classmethod | staticmethod) else None
    wrapped = _wrap_fn(raw if binding is None else raw.__func__, hook, HookType(seam.kind))
    setattr(owner, name, wrapped if binding is None else binding(wrapped))
    logger.debug("RPC: %s %s", seam.kind, seam.target)
