"""Captures the queries of the requests that are about to be compressed, inside the forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any

import torch

from sglang_rpc.contract.layers import (
    decoder_layers,
    full_attention,
    kv_layer,
    kv_pool,
    latent_attentions,
    moved_layers,
    pool_bytes,
)
from sglang_rpc.contract.refusals import model as refusals
from sglang_rpc.contract.refusals.facts import drafts_branch, gather_facts
from sglang_rpc.contract.refused import ends_if_refused
from sglang_rpc.contract.settings import config_of
from sglang_rpc.contract.sglang.batches import ForwardBatch, ScheduleBatch
from sglang_rpc.contract.sglang.model import (
    AttentionLayer,
    HookableLayer,
    LatentAttention,
    ModelRunner,
    PrefillCudaGraphRunner,
)
from sglang_rpc.contract.targets import AFTER, AROUND, LATENT, hook, hook_of
from sglang_rpc.contract.windows import full_slots_free
from sglang_rpc.hooks import ranks
from sglang_rpc.hooks.accumulate import Accumulate, accumulating
from sglang_rpc.hooks.install import install
from sglang_rpc.hooks.model import ModelRPC, model_rpc
from sglang_rpc.hooks.query_slots import count_slots, drafts_of, ring_shape, slot_bytes_of
from sglang_rpc.hooks.runtime import is_recorded
from sglang_rpc.hooks.step import attention_call, decodes, single_rows
from sglang_rpc.hooks.window_pool import window_pool_of
from sglang_rpc.memory.query_ring import DraftQueries, QueryRing, TreeQueries
from sglang_rpc.memory.speculative_rows import SpeculativeRows
from sglang_rpc.policy.resolve import accumulates
from sglang_rpc.types import LayersByKind


@hook(
    AFTER,
    "sglang.srt.model_executor.model_runner.ModelRunner.init_attention_backends",
    "the query ring must exist before CUDA graphs are captured",
)
@ends_if_refused
def install_query_ring(_result: object, model_runner: ModelRunner) -> None:
    """AFTER ModelRunner.init_attention_backends: build the ring, hook each attention layer.

    Runs once per model runner, after the pool is built and before CUDA graphs are captured.

    Ends the process with a sentence if the model or its pool is of a kind RPC cannot compress.
    """
    config = config_of(model_runner.server_args)
    if config is None or model_runner.is_draft_worker:
        return
    refusals.refuse_model_runner(gather_facts(model_runner), config)
    split = absorbing(model_runner.model)
    layers = decoder_layers(model_runner.model)
    recorded = full_attention(layers)
    drafts = drafts_of(model_runner.server_args)
    shape = ring_shape(config, recorded, model_runner.dtype, drafts)
    rows = model_runner.req_to_token_pool.req_to_token.shape[0]
    allocator = model_runner.token_to_kv_pool_allocator  # of which nothing is taken yet
    everyone = ranks.every_rank()
    slots = count_slots(
        config,
        tokens=full_slots_free(allocator),
        rows=rows - 1,
        slot_bytes=slot_bytes_of(model_runner.server_args, model_runner.spec_aux_config, config, shape),
        pool_bytes=pool_bytes(kv_pool(allocator)),
    )
    slots = slots.lowered(ranks.least(slots.slots, everyone), config.window)
    ring = QueryRing(slots=slots.slots, rows=rows, device=model_runner.device, **shape)
    if drafts_branch(model_runner.server_args):
        TreeQueries(ring)
    earlier = ranks.on_earlier_stages(len(recorded), everyone)
    moved = moved_layers(model_runner, layers)
    kv_layers = [replace(kv_layer(model_runner, layer), earlier=earlier) for layer in moved]
    every_step = accumulates(config.policy)
    if every_step:
        kv_layers = [layer if layer.window else accumulating(layer) for layer in kv_layers]
    record_queries(ring, recorded, Capture)
    if every_step:
        for layer, kv in zip(recorded, LayersByKind.of(kv_layers).full, strict=True):
            layer.register_forward_hook(Accumulate(model_runner, kv), with_kwargs=True)
    speculative = SpeculativeRows(rows, drafts, model_runner.device) if drafts else None
    if drafts:
        model_runner.req_to_token_pool.rpc_ring = ring  # for the draft model, whose runner comes next
    model_runner.rpc = ModelRPC(ring, kv_layers, every_step, slots, window_pool_of(model_runner), speculative)
    load_kernels(ring, split)


def absorbing(model: torch.nn.Module) -> int | None:
    """Have a model with latent attention (MLA) absorb the queries that are recorded. The dims of each that belong to
    the latent, before those with rope; None of another model."""
    latent = latent_attentions(model)
    if not latent:
        return None
    install([hook_of(absorb)])
    return latent[0].kv_lora_rank


def record_queries(ring: QueryRing | DraftQueries, layers: Sequence[HookableLayer], capture: type["Capture"]) -> None:
    """Hook each attention layer, so that what it attends with is stored in `ring`."""
    from sglang.srt.model_executor.runner_utils.capture_mode import get_is_capture_mode

    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(capture(ring, index, get_is_capture_mode), with_kwargs=True)


def load_kernels(ring: QueryRing | DraftQueries, split: int | None = None) -> None:
    """Load the kernels of the write here, not in the first step that records, while requests wait."""
    row_0 = torch.zeros(1, dtype=torch.int64, device=ring.buffer.device)
    query = torch.zeros_like(ring.buffer[0, 0, :1])
    ring.store(0, ring.where(row_0, row_0), query)
    if split is not None:  # some backends give a latent's queries in two parts
        ring.store(0, ring.where(row_0, row_0), *query.tensor_split([split], -1))


@hook(
    AROUND,
    "sglang.srt.model_executor.runner.prefill_cuda_graph_runner.PrefillCudaGraphRunner.can_run_graph",
    "a replayed prefill would not record the queries of rows that go on decoding",
)
def eager_while_recording(
    original: Callable[..., bool], runner: PrefillCudaGraphRunner, forward_batch: ForwardBatch
) -> bool:
    """AROUND PrefillCudaGraphRunner.can_run_graph: a replayed prefill runs no hooks of modules, so rows of one token
    would not be recorded. Runs before each extend step."""
    model, rows = model_rpc(runner.model_runner), single_rows(forward_batch)
    if (model is not None and model.every_step) or (rows is not None and rows.where is not None):
        return False
    return original(runner, forward_batch)


@hook(
    AROUND,
    "sglang.srt.batch_overlap.two_batch_overlap.TboDPAttentionPreparer.prepare_all_gather",
    "what single rows of an extend step record travels with the whole step, and each half has a batch of its own",
)
def whole_while_recording(
    original: Callable[..., tuple[bool, int]], preparer: object, local_batch: ScheduleBatch | None
) -> tuple[bool, int]:
    """AROUND TboDPAttentionPreparer.prepare_all_gather: this rank's vote for two-batch overlap in the next step.

    One rank's no is everybody's. Runs in every step of a server whose ranks keep pace, after compressions are decided.
    """
    can_run, forward_mode = original(preparer, local_batch)
    if can_run and local_batch is not None and local_batch.forward_mode.is_extend():
        can_run = not any(map(is_recorded, local_batch.reqs))
    return can_run, forward_mode


@hook(
    AROUND,
    "sglang.srt.models.deepseek_v2.DeepseekV2AttentionMLA.dispatch_attn_forward_method",
    "queries are recorded as the latents are read, absorbed, also where a prefill would expand the latents",
    LATENT,
)
def absorb(original: Callable[..., Enum], attention: LatentAttention, forward_batch: ForwardBatch) -> Enum:
    """AROUND DeepseekV2AttentionMLA.dispatch_attn_forward_method: a step with rows to record takes the absorbed way,
    whose queries are those that latents are scored with. After a long prefix SGLang would expand the latents.

    So does every step on a CPU, where SGLang would expand and then attend to what the pool holds, the latents.
    Decode steps labelled as extends do, too: decoding, SGLang never expands.
    """
    method = original(attention, forward_batch)
    if not method.name.startswith("MHA"):
        return method
    rows = single_rows(forward_batch)
    as_decoding = decodes(forward_batch) or (rows is not None and rows.where is not None)
    if not as_decoding and attention.current_attention_backend != "torch_native":
        return method
    return type(method)["MLA"]


class Capture:
    """A forward pre-hook of one attention layer: stores the step's queries, one per row; n where rows verify drafts.

    A CUDA graph records the write once and replays it with its static rows and positions, so the write must be in
    every captured graph. It is in the warm-ups before each capture too, which compile and load what it needs. An eager
    step skips it while no request holds a query slot. Of an extend step only the `SingleRows` are stored, which travel
    with the forward batch.
    """

    def __init__(self, ring: QueryRing | DraftQueries, index: int, for_a_graph: Callable[[], bool]):
        """`for_a_graph` says whether this forward is a capture, or a warm-up of one."""
        self.ring = ring
        self.index = index
        self.for_a_graph = for_a_graph
        #: How many rows of each request a step has, all of which are stored; 0 if it is not such a step.
        self.rows_each: Callable[[ForwardBatch], int] = self.drafted if ring.drafts else decodes

    def drafted(self, forward_batch: ForwardBatch) -> int:
        """`rows_each` of a server that speculates."""
        if forward_batch.forward_mode.is_target_verify():
            return self.ring.drafts
        return int(decodes(forward_batch))

    def __call__(self, _layer: AttentionLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Store the queries of rows that are being recorded in the ring."""
        forward_batch, query = attention_call(args, kwargs)
        queries = [query]
        if kwargs.get("q_rope") is not None:
            queries.append(kwargs["q_rope"])
        each = self.rows_each(forward_batch)
        trees = self.ring.trees if each > 1 else None
        if each:
            if not self.ring.in_use and not self.for_a_graph():
                return
            if self.index == 0:
                # Rows and positions are the same in every layer: work out where to write once a step. Each capture
                # works it out anew, for a graph must not read what a warm-up allocated. The halves of a step that
                # overlap may begin at a later layer.
                for batch in (forward_batch, *(forward_batch.tbo_children or ())):
                    # Labelled an extend, the step is padded in tokens alone, after its rows.
                    rows = batch.req_pool_indices
                    if trees is not None:
                        batch.rpc_where = trees.where(rows)
                        continue
                    if each > 1:
                        rows = rows[:, None].expand(-1, each).reshape(-1)
                    batch.rpc_where = self.ring.where(rows, batch.positions[: len(rows)])
            where = forward_batch.rpc_where
            # A half is padded to a multiple of the ranks, after its rows.
            ring = self.ring if trees is None else trees
            ring.store(self.index, where, *(part[: len(where[0])] for part in queries))
            return
        single = single_rows(forward_batch)
        if single is not None and single.where is not None:
            self.ring.store(self.index, single.where, *(part[single.tokens] for part in queries))


class DraftCapture(Capture):
    """The same of a draft model, in the step that follows a verify: it runs on the tokens that were accepted, first,
    and on those after them. Its other steps run on tokens that nobody has accepted yet."""

    def drafted(self, forward_batch: ForwardBatch) -> int:
        """See `Capture`."""
        return self.ring.drafts if forward_batch.forward_mode.is_draft_extend_v2() else 0
