"""What may differ between the SGLang versions that RPC supports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sglang_rpc.contract.targets import Assumption, Hook


@dataclass(frozen=True)
class Version:
    """One SGLang version, where it is not like the others. All else that RPC needs is the same in all of them."""

    name: str
    #: Arguments that the refusals read and this version lacks, with the value of a server that does not use them.
    absent_arguments: Mapping[str, Any]
    #: Targets of hooks, as declared, that this version has elsewhere -> where.
    moved_targets: Mapping[str, str]
    #: What RPC needs of this version alone, in every process of a server.
    assumptions: tuple[Assumption, ...]
    #: `answer_waiting(scheduler, abort_req, req)` sends the answer of a request that ends while it waits in the queue.
    answer_waiting: Callable[[Any, Any, Any], None]

    def here(self, hook: Hook) -> Hook:
        """The hook with the target that it has in this version."""
        return replace(hook, target=self.moved_targets.get(hook.target, hook.target))
