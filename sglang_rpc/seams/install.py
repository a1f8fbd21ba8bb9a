"""Puts the hooks of `table.py` on SGLang, all or none: SGLang's own loader logs a failed hook and goes on, and a
server would then run uncompressed, or half hooked, in silence."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from sglang_rpc.errors import SeamError
from sglang_rpc.seams.table import SEAMS, Seam

_installed: set[Seam] = set()


def install(seams: Iterable[Seam] = SEAMS) -> None:
    """Hook every seam; those hooked before are left alone.

    Raises:
        SeamError: a target is missing or can't be hooked; the sentence names it.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookSource, HookType

    new = [seam for seam in seams if seam not in _installed]
    for seam in new:
        require_target(seam)
    source = HookSource(plugin_name="rpc", dist_name="sglang-rpc")
    for seam in new:
        module, _, function = seam.hook.partition(":")
        hook = getattr(importlib.import_module(f"sglang_rpc.seams.{module}"), function)
        # Not `register` and `apply_hooks`: those skip, in silence, a target that another plugin has hooked before
        # (SGLang itself brings such a plugin). Applied one by one, ours wraps what is there.
        HookRegistry._apply_target(seam.target, [(HookType(seam.kind), hook, source)])
        _installed.add(seam)


def installed() -> frozenset[Seam]:
    """The seams hooked in this process."""
    return frozenset(_installed)


def require_target(seam: Seam) -> None:
    """Raises SeamError if the target does not exist."""
    import pkgutil

    try:
        pkgutil.resolve_name(seam.target)
    except (ImportError, AttributeError) as error:
        raise SeamError(
            f"this SGLang has no {seam.target}, which RPC needs ({seam.reason}): {error}; "
            "install sglang==0.5.23, or start with --disable-rpc"
        ) from error
