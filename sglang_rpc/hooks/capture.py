"""Captures the queries of the requests that are about to be compressed, inside the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sglang_rpc.backends.choose import SCRATCH_BYTES
from sglang_rpc.config import RPCConfig
from sglang_rpc.contract import refusals
from sglang_rpc.contract.assumptions import LATENT_ASSUMPTIONS
from sglang_rpc.contract.layers import decoder_layers, kv_layer, latent_attentions, pool_bytes
from sglang_rpc.contract.settings import config_of
from sglang_rpc.contract.targets import LATENT_HOOKS
from sglang_rpc.hooks.accumulate import Accumulate, accumulating
from sglang_rpc.hooks.install import install
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.policy import lightthinker
from sglang_rpc.policy.table import accumulates
from sglang_rpc.startup.process import ends_if_refused

#: On a CPU the pool is small and memory is not the point: enough slots that no test run waits for one.
CPU_SLOTS = 64
#: Elsewhere the ring takes at most this share of the KV pool's bytes.
POOL_SHARE = 0.01


def leave_room(available: int, configurator: Any, *_args: Any, **_kwargs: Any) -> int | None:
    """AFTER KVCacheConfigurator._profile_available_bytes: bytes for the KV pool, less what RPC takes on a GPU."""
    config = config_of(configurator.server_args)
    on_cpu = str(configurator.device).startswith("cpu")
    if config is None or configurator.is_draft_worker or on_cpu:
        return None
    ring = int(POOL_SHARE * available)
    if config.query_slots is not None:
        ring = (config.query_slots + 1) * QueryRing.slot_bytes(
            **_ring_shape(config, decoder_layers(configurator.model), configurator.model_dtype)
        )
    available -= ring + SCRATCH_BYTES
    if accumulates(config.policy):
        # 4 bytes beside each KV head's key and value, which are at least a head dim of bytes each.
        available -= available * 4 // (4 + 2 * decoder_layers(configurator.model)[0].qk_head_dim)
    return available


@ends_if_refused
def install_query_ring(_result: Any, model_runner: Any) -> None:
    """AFTER ModelRunner.init_attention_backends: build the ring, hook each attention layer.

    Ends the process with a sentence if the model or its pool is of a kind RPC cannot compress.
    """
    config = config_of(model_runner.server_args)
    if config is None or model_runner.is_draft_worker:
        return
    refusals.refuse_model_runner(refusals.gather_facts(model_runner), config)
    latent = latent_attentions(model_runner.model)
    if latent:
        install(LATENT_HOOKS, assumptions=LATENT_ASSUMPTIONS)
    layers = decoder_layers(model_runner.model)
    shape = _ring_shape(config, layers, model_runner.dtype)
    rows = model_runner.req_to_token_pool.req_to_token.shape[0]
    slots = _slots(config, model_runner, rows - 1, QueryRing.slot_bytes(**shape))
    ring = QueryRing(slots=slots, rows=rows, device=model_runner.device, **shape)
    kv_layers = [kv_layer(model_runner, layer) for layer in layers]
    ring.every_step = accumulates(config.policy)
    if ring.every_step:
        kv_layers = [accumulating(layer) for layer in kv_layers]
    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(_Capture(ring, index), with_kwargs=True)
        if kv_layers[index].accumulated is not None:
            layer.register_forward_hook(Accumulate(model_runner, ring, kv_layers[index]), with_kwargs=True)
    for attention in latent:
        attention.rpc_ring = ring
    model_runner.rpc_ring, model_runner.rpc_layers = ring, kv_layers
    # The kernels of the write are loaded here, not in the middle of a graph capture.
    row_0 = torch.zeros(1, dtype=torch.int64, device=model_runner.device)
    query = torch.zeros_like(ring.buffer[0, 0, :1])
    ring.store(0, ring.where(row_0, row_0), query)
    if latent:  # some backends give them in two parts
        ring.store(0, ring.where(row_0, row_0), *query.tensor_split([latent[0].kv_lora_rank], -1))


def eager_while_recording(original: Callable, runner: Any, forward_batch: Any) -> bool:
    """AROUND PrefillCudaGraphRunner.can_run_graph: a replayed prefill runs no hooks of modules, so rows of one token
    would not be recorded."""
    ring = getattr(runner.model_runner, "rpc_ring", None)
    if ring is not None and (ring.extend_step is not None or ring.every_step):
        return False
    return original(runner, forward_batch)


def absorb(original: Callable, attention: Any, forward_batch: Any) -> Any:
    """AROUND DeepseekV2AttentionMLA.dispatch_attn_forward_method: a step with rows to record takes the absorbed way,
    whose queries are those that latents are scored with. Behind a long prefix SGLang would expand the latents.

    So does every step on a CPU, where SGLang would expand and then attend to what the pool holds, the latents.
    """
    method = original(attention, forward_batch)
    ring = getattr(attention, "rpc_ring", None)
    if ring is None or not method.name.startswith("MHA"):
        return method
    if ring.extend_step is None and attention.current_attention_backend != "torch_native":
        return method
    return type(method).MLA


def _ring_shape(config: RPCConfig, layers: list[Any], dtype: torch.dtype) -> dict[str, Any]:
    heads, head_dim = layers[0].tp_q_head_num, layers[0].qk_head_dim
    return dict(layers=len(layers), window=config.window, heads=heads, head_dim=head_dim, dtype=dtype)


def _slots(config: RPCConfig, model_runner: Any, rows: int, slot_bytes: int) -> int:
    if config.policy == lightthinker.NAME:
        return 1  # nobody takes it
    if config.query_slots is not None:
        return min(config.query_slots, rows)
    if str(model_runner.device).startswith("cpu"):
        return min(CPU_SLOTS, rows)
    pool = model_runner.token_to_kv_pool_allocator.get_kvcache()
    return max(1, min(rows, int(POOL_SHARE * pool_bytes(pool)) // slot_bytes - 1))  # one more is the bin


class _Capture:
    """A forward pre-hook of one attention layer: stores the step's queries, one a row.

    A CUDA graph records the write once and replays it with its static rows and positions, so the write must be in
    every captured graph; an eager step skips it while no request holds a query slot. SGLang runs a mixed step as
    a plain extend, on a copy of the batch: `positions.make_logical`, which sees it before, leaves on the ring what to
    store.
    """

    def __init__(self, ring: QueryRing, index: int):
        self.ring = ring
        self.index = index
        self.on_gpu = ring.buffer.is_cuda

    def __call__(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward_batch = kwargs["forward_batch"] if "forward_batch" in kwargs else args[3]
        queries = [kwargs["q"] if "q" in kwargs else args[0]]
        if kwargs.get("q_rope") is not None:
            queries.append(kwargs["q_rope"])
        if forward_batch.forward_mode.is_decode():
            if not self.ring.in_use and not (self.on_gpu and torch.cuda.is_current_stream_capturing()):
                return
            if self.index == 0:
                # Rows and positions are the same in every layer: work out where to write once a step.
                forward_batch.rpc_where = self.ring.where(forward_batch.req_pool_indices, forward_batch.positions)
            self.ring.store(self.index, forward_batch.rpc_where, *queries)
        elif self.ring.extend_step is not None:
            tokens, where = self.ring.extend_step
            self.ring.store(self.index, where, *(part[tokens] for part in queries))
            if self.index == self.ring.buffer.shape[0] - 1:
                self.ring.extend_step = None  # it is this step's alone
