"""A draft model's queries, and its KV, which lies in a pool of its own, in the slots of the model it drafts for.

A compression chooses in each of its layers, by its own queries, as in the model's. Both keep equally many entries, at
the same row positions. SGLang shows a draft each token one position early: its entry i is of the token that the model
has at i + 1. So its candidates, and its window, are one token newer than the model's. If a draft's KV did not move,
outputs would be the same, and fewer drafts would be accepted.
"""

from collections.abc import Mapping, Sequence
from typing import cast

from sglang_rpc.contract.layers import HYBRID_POOL, decoder_layers, window_of
from sglang_rpc.contract.refused import ends_if_refused
from sglang_rpc.contract.settings import config_of
from sglang_rpc.contract.sglang.memory import HybridPool, KVPool
from sglang_rpc.contract.sglang.model import AttentionLayer, ModelRunner
from sglang_rpc.contract.targets import AFTER, SPECULATIVE, hook
from sglang_rpc.errors import UnsupportedError
from sglang_rpc.hooks.capture import DraftCapture, load_kernels, record_queries
from sglang_rpc.hooks.model import DraftRPC
from sglang_rpc.memory.query_ring import DraftQueries, QueryRing
from sglang_rpc.types import KVLayer

#: Exactly this class: a subclass may store K/V in another layout.
POOL = "MHATokenToKVPool"


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
    pool, number = _pool_of(model_runner, layers)
    shapes = {(layer.tp_q_head_num, layer.qk_head_dim) for layer in layers}
    if type(pool).__name__ != POOL or pool.kv_cache_layout != "nhd" or any(map(window_of, layers)) or len(shapes) > 1:
        raise UnsupportedError(
            f"a draft model with a KV pool of the class {type(pool).__name__}, with sliding windows, or with layers of "
            "several shapes, does not work with RPC: a compression moves its KV, which has been checked for full "
            "attention alone; use another --speculative-draft-model-path, or start with --disable-rpc",
            "unsupported.draft_layers",
        )
    heads, head_dim = shapes.pop()
    queries = DraftQueries(ring, layers=len(layers), heads=heads, head_dim=head_dim, dtype=model_runner.dtype)
    record_queries(queries, layers, DraftCapture)
    load_kernels(queries)
    model_runner.rpc_draft = DraftRPC(queries, [_layer(pool, number[layer.layer_id], layer) for layer in layers])


def _pool_of(model_runner: ModelRunner, layers: Sequence[AttentionLayer]) -> tuple[KVPool, Mapping[int, int]]:
    """The pool of a draft's attention layers, and the number of each there, by layer id.

    What a model with recurrent layers brings along has attention alone, and a pool as the model has. A whole model with
    recurrent layers would keep its states in slots that are the model's: that is left as a pool of another class.
    """
    pool = model_runner.token_to_kv_pool
    if type(pool).__name__ == HYBRID_POOL and model_runner.server_args.speculative_algorithm != "STANDALONE":
        hybrid = cast("HybridPool", pool)
        return hybrid.full_kv_pool, hybrid.full_attention_layer_id_mapping
    first = 0 if type(pool).__name__ != POOL else pool.start_layer
    return pool, {layer.layer_id: layer.layer_id - first for layer in layers}


def _layer(pool: KVPool, index: int, layer: AttentionLayer) -> KVLayer:
    # Keys quantised to FP8 are stored divided by k_scale.
    scaling = layer.scaling * (1.0 if layer.k_scale_float is None else layer.k_scale_float)
    return KVLayer(pool.k_buffer[index], pool.v_buffer[index], pool.dtype, scaling, layer.logit_cap or 0.0)
