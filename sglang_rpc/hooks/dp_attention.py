"""DP attention: ranks that serve other requests, and yet run every step together.

A rank that records queries in an extend step runs it without a graph, for a replayed prefill runs no hooks of modules.
Its peers meet it in the collectives of each layer, so they must run theirs without a graph too. SGLang has them vote
before each step whether all may replay. A no is everybody's. It also keeps decode steps from becoming extends of one
token, which would be replayed beside the peers' prefills.
"""

from collections.abc import Callable

from sglang_rpc.contract.sglang.batches import ScheduleBatch
from sglang_rpc.contract.targets import AROUND, hook
from sglang_rpc.hooks.runtime import is_recorded, runtime_of


@hook(
    AROUND,
    "sglang.srt.managers.scheduler_components.dp_attn._local_prefill_cuda_graph_vote",
    "a step that records runs without a prefill graph, and no peer may replay one beside it",
)
def eager_together(original: Callable[..., bool], *, local_batch: ScheduleBatch | None, **kwargs: object) -> bool:
    """AROUND _local_prefill_cuda_graph_vote, once per step: whether this rank's next batch may be part of replays.

    The compressions that come before the step have been decided, so what it records is known. None: it has no batch.
    """
    if not original(local_batch=local_batch, **kwargs):
        return False
    if local_batch is None or (runtime := runtime_of(local_batch.req_to_token_pool)) is None:
        return True
    return not (runtime.every_step or any(map(is_recorded, local_batch.reqs)))
