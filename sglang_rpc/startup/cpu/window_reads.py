"""Attention in PyTorch reads a window layer's KV where SGLang's pool for sliding windows has it.

SGLang's backend torch_native writes there, at the slots that the pool maps a row's own to, but reads at the row's own:
whatever lies there in another pool. So it is wrong with such a pool, with RPC or without. Elsewhere these models have
backends that a CPU lacks.
"""

from collections.abc import Callable
from typing import Any

import torch

from sglang_rpc.contract.sglang.windows import TorchNativeBackend
from sglang_rpc.contract.targets import AROUND, hook

_BACKEND = "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend"


@hook(AROUND, f"{_BACKEND}._run_sdpa_forward_decode", "window layers have slots of their own, in a pool of their own")
@hook(AROUND, f"{_BACKEND}._run_sdpa_forward_extend", "window layers have slots of their own, in a pool of their own")
def read_where_written(
    original: Callable[..., torch.Tensor],
    backend: TorchNativeBackend,
    query: torch.Tensor,
    output: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    req_to_token: torch.Tensor,
    rows: torch.Tensor,
    *args: Any,
    sliding_window_size: int | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """AROUND TorchNativeAttnBackend._run_sdpa_forward_extend and _decode, once per attention layer and step.

    `req_to_token` int32 [rows, positions] and `rows` [requests] are replaced where the layer has a window. An entry
    that has left the window may have no slot: the mask of the window covers it.
    """
    if backend.use_sliding_window_kv_pool and sliding_window_size is not None:
        req_to_token = backend.token_to_kv_pool.translate_loc_from_full_to_swa(req_to_token[rows].long())
        rows = torch.arange(len(rows), device=rows.device)
    return original(
        backend, query, output, keys, values, req_to_token, rows, *args,
        sliding_window_size=sliding_window_size, **kwargs,
    )  # fmt: skip
