"""Speculative decoding on a CPU, where SGLang's PyTorch backend lacks three things: attention of rows that verify a
tree of drafts, attention of draft steps, and an entry in the list of backends that draft models may have.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from sglang_rpc.contract.targets import AROUND, SPECULATIVE, hook

_BACKEND = "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend"
_NAME = "torch_native"


@hook(
    AROUND,
    f"{_BACKEND}.forward_extend",
    "rows that verify drafts see those before them in a tree, and their step has no prefix lengths",
    SPECULATIVE,
)
def see_the_tree(
    original: Callable[..., torch.Tensor],
    backend: Any,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: Any,
    forward_batch: Any,
    save_kv_cache: bool = True,
) -> torch.Tensor:
    """AROUND TorchNativeAttnBackend.forward_extend, once per attention layer and step. Of a verify, it writes n entries
    of each row to the pool and attends with n queries, after the entries that the row has."""
    if not forward_batch.forward_mode.is_target_verify():
        return original(backend, q, k, v, layer, forward_batch, save_kv_cache)
    from sglang.srt.mem_cache.memory_pool import KVWriteLoc

    pool, n = backend.token_to_kv_pool, forward_batch.spec_info.draft_token_num
    if save_kv_cache and k is not None:
        pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, backend.swa_out_cache_loc), k, v)
    keys, values = pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)
    queries = q.view(-1, n, layer.tp_q_head_num, layer.qk_head_dim)
    output = q.new_empty(*queries.shape[:3], layer.v_head_dim)
    masks = forward_batch.spec_info.custom_mask.view(-1, n, n)
    depths = masks.sum(-1) - 1  # a row sees those before it on its branch, and itself
    table, rows = backend.req_to_token_pool.req_to_token, forward_batch.req_pool_indices.tolist()
    for index, (row, length) in enumerate(zip(rows, forward_batch.seq_lens.tolist(), strict=True)):
        slots = table[row, : length + n].long()
        seen = torch.cat([torch.ones(n, length, dtype=torch.bool), masks[index]], 1)
        if layer.sliding_window_size is not None and layer.sliding_window_size > -1:
            at = torch.cat([torch.arange(length), length + depths[index]])
            seen &= at >= length + depths[index][:, None] - layer.sliding_window_size
        output[index] = scaled_dot_product_attention(
            queries[index].movedim(0, 1)[None],
            keys[slots].to(q.dtype).movedim(0, 1)[None],
            values[slots].to(q.dtype).movedim(0, 1)[None],
            attn_mask=seen,
            enable_gqa=layer.tp_q_head_num != layer.tp_k_head_num,
            scale=layer.scaling,
        )[0].movedim(0, 1)
    return output.view(q.shape[0], -1)


@hook(
    AROUND,
    "sglang.srt.speculative.draft_utils.DraftBackendFactory._create_backend",
    "SGLang's PyTorch backend is not among those that a draft model may have",
    SPECULATIVE,
)
def offer_pytorch(
    original: Callable[..., Any],
    factory: Any,
    backend_name: str,
    backend_map: dict[str, Callable[[], tuple[str, Any]]],
    *args: Any,
    stamps_children: bool = False,
    **kwargs: Any,
) -> Any:
    """AROUND DraftBackendFactory._create_backend, at the start, for a draft's steps (`stamps_children`) and for what
    follows a verify."""

    def steps() -> tuple[str, Any]:
        return _NAME, _steps_class()(factory.draft_model_runner, factory.speculative_num_steps)

    def extend() -> tuple[str, Any]:
        from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

        return _NAME, TorchNativeAttnBackend(factory.draft_model_runner)

    backend_map = {**backend_map, _NAME: steps if stamps_children else extend}
    return original(factory, backend_name, backend_map, *args, stamps_children=stamps_children, **kwargs)


@cache
def _steps_class() -> type:
    """The backends of a draft's steps, as SGLang's other backends have them."""
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    class Step(TorchNativeAttnBackend):  # type: ignore[misc]
        """Of one step, in which every request has as many queries as its drafts have branches. Each attends to the
        request's entries, and to those that its own branch has written, in this step and in those before."""

        def __init__(self, model_runner: Any, step: int, written: list[torch.Tensor]):
            """`written` [requests * branches] by step: slots that a draft's steps have written; they share the list."""
            super().__init__(model_runner)
            self.step, self.written = step, written

        def forward_decode(
            self, q: Any, k: Any, v: Any, layer: Any, forward_batch: Any, save_kv_cache: bool = True
        ) -> torch.Tensor:
            # A copy: SGLang may load every step into the same tensor.
            self.written[self.step] = forward_batch.out_cache_loc.clone()
            attended: torch.Tensor = super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
            return attended

        def _run_sdpa_forward_decode(
            self,
            query: torch.Tensor,
            output: torch.Tensor,
            keys: torch.Tensor,
            values: torch.Tensor,
            req_to_token: torch.Tensor,
            rows: torch.Tensor,
            lengths: torch.Tensor,
            *args: Any,
            **kwargs: Any,
        ) -> torch.Tensor:
            own = torch.stack(self.written[: self.step + 1], 1).to(req_to_token.dtype)
            branches = own.shape[0] // rows.shape[0]
            rows, lengths = rows.repeat_interleave(branches), lengths.repeat_interleave(branches)
            table = req_to_token[rows, : int(lengths.max()) + own.shape[1]]  # a copy
            steps = torch.arange(own.shape[1])
            table[torch.arange(own.shape[0])[:, None], lengths[:, None] + steps] = own
            attended: torch.Tensor = super()._run_sdpa_forward_decode(
                query,
                output,
                keys,
                values,
                table,
                torch.arange(own.shape[0]),
                lengths + own.shape[1],
                *args,
                **kwargs,
            )
            return attended

    class Steps:
        def __init__(self, model_runner: Any, steps: int):
            written = [torch.empty(0)] * (steps - 1)
            self.attn_backends = [Step(model_runner, step, written) for step in range(steps - 1)]

        def init_forward_metadata(self, forward_batch: Any) -> None:
            for backend in self.attn_backends:
                backend.init_forward_metadata(forward_batch)

    return Steps
