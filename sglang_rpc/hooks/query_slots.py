"""How many query slots there are, and the memory that RPC takes out of the KV pool's."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from sglang_rpc.backends.base import SCRATCH_BYTES
from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.layers import decoder_layers, full_attention, query_dim
from sglang_rpc.contract.refusals.facts import drafts_branch
from sglang_rpc.contract.refused import ends_if_refused
from sglang_rpc.contract.settings import config_of
from sglang_rpc.contract.sglang.model import AttentionLayer, KVCacheConfigurator, SpecAuxConfig
from sglang_rpc.contract.sglang.server import ServerArgs
from sglang_rpc.contract.targets import AFTER, hook
from sglang_rpc.errors import ConfigError
from sglang_rpc.hooks import ranks
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.policy import lightthinker
from sglang_rpc.policy.resolve import accumulates
from sglang_rpc.runtime.slot_waits import affordable_slots, due_together, longest_wait


@dataclass(frozen=True)
class QuerySlots:
    """How many query slots a server has, and what that means for its requests."""

    slots: int
    needed: int  #: requests that can be due together
    wait: int  #: steps that the last of these waits for a slot

    def lowered(self, slots: int, window: int) -> "QuerySlots":
        """With `slots`, what another rank has room for: all must put off the same compressions."""
        return replace(self, slots=slots, wait=longest_wait(self.needed, slots, window))

    @property
    def sentence(self) -> str:
        """For the log at start-up."""
        if self.wait == 0:
            return "enough for all requests that can be due together"
        return (
            f"{self.needed} requests can be due together: the last would be compressed {self.wait} steps late; "
            "name more with --rpc-query-slots, or fewer requests with --max-running-requests"
        )


@hook(
    AFTER,
    "sglang.srt.mem_cache.kv_cache_configurator.KVCacheConfigurator._profile_available_bytes",
    "the query ring's memory comes out of the KV pool's, not on top of it",
)
@ends_if_refused
def leave_room(available: int, configurator: KVCacheConfigurator, *_args: object, **_kwargs: object) -> int | None:
    """AFTER KVCacheConfigurator._profile_available_bytes: bytes for the KV pool, less what RPC takes.

    Runs once per model runner, after the weights are loaded and before the pool is built.

    Ends the process with a sentence if the query slots that were asked for leave less than half of it.
    """
    config = config_of(configurator.server_args)
    if config is None or configurator.is_draft_worker:
        return None
    # Tokens without the ring: a few more than there will be, so that the ring never outgrows its room. A pipeline's
    # stages agree on them in here, so each of them must ask.
    with _without_warnings():
        tokens = configurator.config_from_budget(available).max_total_num_tokens
        rows = configurator.resolve_max_num_reqs(tokens)
    layers = full_attention(decoder_layers(configurator.model))
    if not layers:
        return None  # once the pool is there, the model is refused
    drafts = drafts_of(configurator.server_args)
    shape = ring_shape(config, layers, configurator.model_dtype, drafts)
    slot_bytes = slot_bytes_of(configurator.server_args, configurator.spec_aux_config, config, shape)
    ring = (count_slots(config, tokens, rows, slot_bytes, available).slots + 1) * slot_bytes
    if config.query_slots is not None and ring > available / 2:
        raise ConfigError(
            f"query_slots {config.query_slots} take {ring / 1e9:.1f} GB, more than half of the {available / 1e9:.1f} "
            f"GB that there are for the KV pool; name at most {available // 2 // slot_bytes - 1}, or none",
            "config.query_slots",
        )
    available -= ring
    if not str(configurator.device).startswith("cpu"):
        available -= SCRATCH_BYTES  # of the kernels
    if accumulates(config.policy):
        # 4 bytes beside each KV head's key and value, which are at least a head dim of bytes each.
        available -= available * 4 // (4 + 2 * layers[0].qk_head_dim)
    return available


@contextmanager
def _without_warnings() -> Iterator[None]:
    """SGLang asks itself the same right afterwards, of the smaller pool, and warns of all that it would have here."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def drafts_of(server_args: ServerArgs) -> int:
    """n, the rows that a request verifies in a step, its newest token among them; 0 of a server that does not
    speculate."""
    if server_args.speculative_algorithm is None:
        return 0
    from sglang.srt.runtime_context import max_speculative_num_draft_tokens

    return int(max_speculative_num_draft_tokens())


def slot_bytes_of(server_args: ServerArgs, draft: SpecAuxConfig, config: RPCConfig, shape: dict[str, Any]) -> int:
    """Bytes that each query slot takes, of a ring of this shape and of what stands beside it: the queries of a draft
    model, or those of a step whose drafts branch."""
    slot_bytes = QueryRing.slot_bytes(**shape)
    if drafts_branch(server_args):
        slot_bytes += QueryRing.slot_bytes(**{**shape, "window": 0})
    return slot_bytes + draft_slot_bytes(draft, config, shape["dtype"], shape["drafts"])


def draft_slot_bytes(draft: SpecAuxConfig, config: RPCConfig, dtype: torch.dtype, drafts: int) -> int:
    """Bytes of a query slot that are a draft model's, by its configuration; 0 without one."""
    model = draft.draft_model_config
    if not drafts or model is None:
        return 0
    group = ranks.tensor_parallel_group()
    return QueryRing.slot_bytes(
        layers=draft.draft_kv_num_layers or 0,
        window=config.window,
        heads=model.get_num_attention_heads(1 if group is None else group.world_size),
        head_dim=query_dim(model),
        dtype=dtype,
        drafts=drafts,
    )


def ring_shape(
    config: RPCConfig, layers: Sequence[AttentionLayer], dtype: torch.dtype, drafts: int = 0
) -> dict[str, Any]:
    """The query ring's arguments that decide the size of a slot."""
    heads, head_dim = layers[0].tp_q_head_num, layers[0].qk_head_dim
    shape = dict(layers=len(layers), window=config.window, heads=heads, head_dim=head_dim, dtype=dtype)
    return {**shape, "drafts": drafts}


def count_slots(config: RPCConfig, tokens: int, rows: int, slot_bytes: int, pool_bytes: float) -> QuerySlots:
    """Query slots of a server with a pool of `tokens` slots and `pool_bytes`, that runs `rows` requests at most."""
    if config.policy == lightthinker.NAME:
        return QuerySlots(slots=1, needed=0, wait=0)  # nobody takes it
    needed = due_together(tokens, config.interval, rows)
    if config.query_slots is None:
        slots = affordable_slots(needed, slot_bytes, pool_bytes)
    else:
        slots = min(config.query_slots, rows)
    return QuerySlots(slots, needed, longest_wait(needed, slots, config.window))
