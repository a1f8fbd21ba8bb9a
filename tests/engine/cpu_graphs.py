"""Engines on a CPU that decode in SGLang's decode graph runner, over the stand-in for CUDA graphs.

Attention must be capturable, which SGLang's PyTorch backend is not: `_decode` reads as much of each row as there could
be, and masks what is not there.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.engine import spy
from tests.unit.graphs import stand_in

#: Batch sizes that are captured.
SIZES = [1, 2, 4, 8]


def run_scheduler_process(*args: Any, **kwargs: Any) -> Any:
    """As `spy`'s, with graphs."""
    install()
    return spy.run_scheduler_process(*args, **kwargs)


def install() -> None:
    """Let every model runner of this process capture its decode steps."""
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
    from sglang.srt.model_executor import model_runner
    from sglang.srt.model_executor.graph_shared_output import GraphSharedOutput
    from sglang.srt.model_executor.model_runner_components.cuda_graph_setup import CudaGraphsCapture, GraphCapture
    from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner

    from tests.unit.graphs.runner import run_without_gpu

    patch = pytest.MonkeyPatch()  # never undone: the process is the engine's
    device = stand_in.install(patch)
    run_without_gpu(patch, device)
    eager = model_runner.capture_cuda_graphs

    def captured(*, model_runner: Any, **settings: Any) -> CudaGraphsCapture:
        made = eager(model_runner=model_runner, **settings)
        model_runner.graph_shared_output = GraphSharedOutput(device=model_runner.device, max_rows=max(SIZES))
        with device.warming_up():
            runner = DecodeCudaGraphRunner(model_runner)
        decode = GraphCapture(runner=runner, memory_phase="decode", memory_usage_gb=0, capture_time=0)
        return CudaGraphsCapture(eager_runner=made.eager_runner, prefill=made.prefill, decode=decode)

    patch.setattr(model_runner, "capture_cuda_graphs", captured)
    patch.setattr(TorchNativeAttnBackend, "init_cuda_graph_state", lambda *_: None)
    patch.setattr(TorchNativeAttnBackend, "get_cuda_graph_seq_len_fill_value", lambda _: 1)
    patch.setattr(TorchNativeAttnBackend, "forward_decode", _decode)


def _decode(self, q, k, v, layer, forward_batch, save_kv_cache=True):
    """TorchNativeAttnBackend.forward_decode without a loop over rows, whose lengths the host would have to know."""
    from sglang.srt.mem_cache.memory_pool import KVWriteLoc

    pool, kv_heads = self.token_to_kv_pool, layer.tp_k_head_num
    if save_kv_cache and k is not None:
        pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)
    slots = self.req_to_token_pool.req_to_token[forward_batch.req_pool_indices]
    keys, values = pool.get_key_buffer(layer.layer_id)[slots], pool.get_value_buffer(layer.layer_id)[slots]
    queries = q.view(len(slots), kv_heads, -1, layer.qk_head_dim)
    scores = torch.einsum("bhgd,blhd->bhgl", queries, keys) * layer.scaling
    absent = torch.arange(slots.shape[1], device=q.device) >= forward_batch.seq_lens[:, None]
    weights = scores.masked_fill(absent[:, None, None], float("-inf")).softmax(-1)
    return torch.einsum("bhgl,blhd->bhgd", weights, values).reshape(len(slots), -1)
