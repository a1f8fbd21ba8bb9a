"""Where the SGLang versions that RPC supports differ: a module for each, and the choice between them.

The rest of RPC asks `current()` for what differs, and nowhere compares versions. `patches/README.md` says how another
version is added.
"""

from __future__ import annotations

from collections.abc import Mapping

from sglang_rpc.contract.pins import public
from sglang_rpc.contract.versions import v0_5_22, v0_5_23
from sglang_rpc.contract.versions.base import Version

#: By name, the newest last. `patches/` has pins for each of them.
VERSIONS: Mapping[str, Version] = {module.VERSION.name: module.VERSION for module in (v0_5_22, v0_5_23)}
#: For a sentence: "0.5.22 or 0.5.23".
SUPPORTED = " or ".join(VERSIONS)


def of(version: str) -> Version:
    """What differs in this version of SGLang; of one that is not supported, what differs in the newest that is."""
    return VERSIONS.get(public(version)) or list(VERSIONS.values())[-1]


def current() -> Version:
    """What differs in the SGLang that is installed. Imports `sglang`, nothing of `sglang.srt`."""
    import sglang

    return of(sglang.__version__)
