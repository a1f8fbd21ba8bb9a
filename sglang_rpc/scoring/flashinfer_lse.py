"""The log-sum-exps of `triton_scores`, from FlashInfer: paged, grouped attention of the window's queries, over the
candidates, or over the whole row and causal.

FlashInfer takes one layer a launch and also weighs values, which nobody wants here, so the keys stand in for them. Its
plan is made on the host from lengths that are known there; nothing waits for the device.
"""

import math
from collections.abc import Sequence

import torch
from flashinfer import BatchPrefillWithPagedKVCacheWrapper

from sglang_rpc.types import Compression, KVLayer

#: What FlashInfer's kernels exist for.
HEAD_DIMS = (64, 128, 256)
QUERY_DTYPES = (torch.float16, torch.bfloat16)
WORKSPACE_BYTES = 64 * 2**20


class FlashInferLSE:
    """Raises ValueError if FlashInfer has no kernel for these layers."""

    def __init__(self, layers: Sequence[KVLayer], ring: torch.Tensor):
        """
        Args:
            ring: the query ring [layers, slots, window, heads, head_dim].
        """
        dim, dtype = ring.shape[4], ring.dtype
        if dim not in HEAD_DIMS or dtype not in QUERY_DTYPES:
            raise ValueError(f"FlashInfer has no kernel for queries of head_dim {dim} in {dtype}")
        if len({(layer.scaling, layer.logit_cap) for layer in layers}) > 1:
            raise ValueError("FlashInfer plans one softmax scale and soft cap for all layers, and theirs differ")
        self._layers = layers
        self._ring = ring
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=ring.device)
        self._wrappers: list[tuple[BatchPrefillWithPagedKVCacheWrapper, torch.cuda.Event]] = []

    def __call__(
        self, compressions: Sequence[Compression], req_to_token: torch.Tensor, *, selector: str, visible: bool = False
    ) -> torch.Tensor:
        """`triton_scores.log_sum_exp` of `compressions`, in their order."""
        # Its causal mask gives the last query the last key, the one before it the key before, and so on.
        assert not (visible and selector == "official"), "a query counted twice would stand at another token"
        ring, device = self._ring, self._ring.device
        kv_heads, heads = self._layers[0].keys.shape[1], ring.shape[3]
        windows = [c.window for c in compressions]
        columns = [(0, c.end) if visible else (c.begin, c.begin + c.candidates) for c in compressions]
        pages = torch.cat(
            [req_to_token[c.row, first:last] for c, (first, last) in zip(compressions, columns, strict=True)]
        )
        wrapper, planned = self._free_wrapper()
        wrapper.plan(
            torch.tensor([0, *windows], dtype=torch.int32).cumsum(0, dtype=torch.int32),
            torch.tensor([0, *(last - first for first, last in columns)], dtype=torch.int32).cumsum(
                0, dtype=torch.int32
            ),
            pages.int(),
            torch.ones(len(compressions), dtype=torch.int32),
            num_qo_heads=heads,
            num_kv_heads=kv_heads,
            head_dim_qk=ring.shape[4],
            page_size=1,
            causal=visible,
            sm_scale=self._layers[0].scaling,
            logits_soft_cap=self._layers[0].logit_cap or None,
            q_data_type=ring.dtype,
            kv_data_type=self._layers[0].dtype,
        )
        planned.record()
        slots, entries, requests, queries = self._where(compressions, selector)
        found = torch.empty((len(self._layers), sum(windows), heads), dtype=torch.float32, device=device)
        for index, layer in enumerate(self._layers):
            keys = layer.keys.view(layer.dtype).unsqueeze(1)
            wrapper.run(ring[index][slots, entries], (keys, keys), return_lse=True, lse=found[index])
        # [layers, queries of all requests, heads] -> [layers, B, R, heads] -> [layers, B, kv_heads, R * group]
        lse = found.new_zeros((len(self._layers), len(compressions), ring.shape[2], heads))
        lse[:, requests, queries] = found * math.log(2)  # FlashInfer's are to base 2
        lse = lse.view(*lse.shape[:3], kv_heads, -1)
        return lse.transpose(2, 3).flatten(3).contiguous()

    def _free_wrapper(self) -> tuple[BatchPrefillWithPagedKVCacheWrapper, torch.cuda.Event]:
        """One whose last plan has reached the device: until then its plan must stay as it is in pinned memory."""
        for wrapper, planned in self._wrappers:
            if planned.query():
                return wrapper, planned
        # fa2 packs a group's query heads into a tile and splits candidates: a window is only a few queries.
        wrapper = BatchPrefillWithPagedKVCacheWrapper(self._workspace, "NHD", backend="fa2")
        self._wrappers.append((wrapper, torch.cuda.Event()))
        return self._wrappers[-1]

    def _where(self, compressions: Sequence[Compression], selector: str) -> tuple[torch.Tensor, ...]:
        """Ring slot and entry, request and number in its window, of each selector query: int64 on the device."""
        where = [
            (c.slot, min(position + (selector == "official"), length - 1) % self._ring.shape[2], request, number)
            for request, c in enumerate(compressions)
            for length in [c.prompt_length + c.generated]
            for number, position in enumerate(range(length - c.window, length))
        ]
        on_host = torch.tensor(where, pin_memory=self._ring.is_cuda)
        return on_host.to(self._ring.device, non_blocking=True).unbind(1)
