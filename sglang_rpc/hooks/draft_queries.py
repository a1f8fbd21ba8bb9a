"""A draft model's queries, and its KV, which lies in a pool of its own, in the slots of the model it drafts for.

A compression chooses in each of its layers, by its own queries, as in the model's. Both keep equally many entries, at
the same row positions. SGLang shows a draft each token one position early: its entry i is of the token that the model
has at i + 1. So its candidates, and its window, are one token newer than the model's. If a draft's KV did not move,
outputs would be the same, and fewer drafts would be accepted.
"""

import torch

from sglang_rpc.contract.layers import decoder_layers, hybrid_in, is_latent, kv_layer, window_of
from sglang_rpc.contract.refusals.draft import DRAFT_ROWS, POOLS, DraftFacts
from sglang_rpc.contract.refusals.facts import latents_of_own_kind, speculation
from sglang_rpc.contract.refusals.row import refuse
from sglang_rpc.contract.refused import ends_if_refused
from sglang_rpc.contract.settings import config_of
from sglang_rpc.contract.sglang.memory import KVPool
from sglang_rpc.contract.sglang.model import ModelRunner
from sglang_rpc.contract.targets import AFTER, SPECULATIVE, hook
from sglang_rpc.hooks.capture import DraftCapture, absorbing, load_kernels, record_queries
from sglang_rpc.hooks.model import DraftRPC
from sglang_rpc.memory.query_ring import DraftQueries, QueryRing


@hook(
    AFTER,
    "sglang.srt.model_executor.model_runner.ModelRunner.init_attention_backends",
    "a draft's queries need their place before CUDA graphs of its steps are captured",
    SPECULATIVE,
)
@ends_if_refused
def install_draft_queries(_result: object, model_runner: ModelRunner) -> None:
    """AFTER ModelRunner.init_attention_backends, of a draft model, once its model's ring is there: hook its layers.

    Ends the process with a sentence if RPC cannot move or score its KV.
    """
    if config_of(model_runner.server_args) is None or not model_runner.is_draft_worker:
        return
    ring = model_runner.req_to_token_pool.rpc_ring
    assert isinstance(ring, QueryRing), "a model's runner is set up before its draft's"
    layers = decoder_layers(model_runner.model)
    pool = _pool_of(model_runner)
    shapes = {(layer.tp_q_head_num, layer.qk_head_dim) for layer in layers}
    kind = type(pool).__name__
    known = kind in POOLS
    refuse(
        DRAFT_ROWS,
        DraftFacts(
            pool=kind,
            layout=pool.kv_cache_layout if known and not is_latent(pool) else "nhd",
            windows=sum(window_of(layer) > 0 for layer in layers),
            shapes=len(shapes),
            latents=known and is_latent(pool),
            own_dispatch=latents_of_own_kind(model_runner.model),
            rocm=torch.version.hip is not None,
        ),
    )
    heads, head_dim = shapes.pop()
    queries = DraftQueries(ring, layers=len(layers), heads=heads, head_dim=head_dim, dtype=model_runner.dtype)
    record_queries(queries, layers, DraftCapture)
    load_kernels(queries, absorbing(model_runner.model))
    model_runner.rpc_draft = DraftRPC(queries, [kv_layer(model_runner, layer) for layer in layers])


def _pool_of(model_runner: ModelRunner) -> KVPool:
    """The pool of a draft's attention layers.

    What a model with recurrent layers brings along has attention alone, and a pool as the model has. A whole model with
    recurrent layers would keep its states in slots that are the model's: that is left as a pool of another class.
    """
    pool, args = model_runner.token_to_kv_pool, speculation(model_runner.server_args)
    hybrid = None if args.speculative_algorithm == "STANDALONE" else hybrid_in(pool)
    return pool if hybrid is None else hybrid.full_kv_pool
