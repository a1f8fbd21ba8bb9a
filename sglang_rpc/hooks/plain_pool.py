"""Models with sliding windows are served from SGLang's plain KV pool, where RPC leaves their windows whole."""

import logging
from typing import Any

from sglang_rpc.contract.settings import intended_config
from sglang_rpc.contract.sglang.server import ServerArgs
from sglang_rpc.contract.targets import AFTER, hook

logger = logging.getLogger(__name__)

#: Architectures that SGLang gives a pool for windows, and serves from the plain pool as well: all their layers hold KV
#: of one shape, each attention layer names its own window, and nothing else asks for the other pool.
SERVED_FROM_EITHER = (
    "GptOssForCausalLM",
    "GraniteMoeSWAForCausalLM",
    "GraniteSWAForCausalLM",
    "IQuestQ1ForCausalLM",
    "LagunaForCausalLM",
    "MellumForCausalLM",
    "Spark2_5ForCausalLM",
)


@hook(
    AFTER,
    "sglang.srt.arg_groups.overrides.collect_model_override_declarations",
    "SGLang's settings for a model, to which RPC adds the plain pool where another would be chosen",
)
def choose_plain_pool(
    declared: list[tuple[str, dict[str, Any]]], architecture: str, server_args: ServerArgs, hf_config: Any
) -> list[tuple[str, dict[str, Any]]] | None:
    """AFTER collect_model_override_declarations, once as the arguments are resolved, before the pool is chosen.

    Says so in one line of the log.
    """
    config = intended_config(server_args)
    if config is None or config.window_pool != "plain" or architecture not in SERVED_FROM_EITHER:
        return None
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.configs.model_config import is_hybrid_swa_model

    resolved: ServerArgs = resolving_view(server_args)
    if resolved.disaggregation_mode != "null":
        return None  # a prefill server compresses nothing, and a decode server refuses windows
    if resolved.disable_hybrid_swa_memory or not is_hybrid_swa_model([architecture], hf_config):
        return None
    # A warning, as SGLang's own lines of this kind, for the log may not be set up yet.
    logger.warning(
        "RPC: --disable-hybrid-swa-memory is on: %s is served from the plain KV pool, where windows shrink too; "
        "--rpc-window-pool swa leaves it off",
        architecture,
    )
    return [*declared, ("sglang-rpc", {"disable_hybrid_swa_memory": True})]
