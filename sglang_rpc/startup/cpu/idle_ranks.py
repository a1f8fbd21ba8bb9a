"""DP attention on a CPU, where SGLang lacks two lines: ranks that have fewer rows than their peers, or none.

With DP attention all ranks run a step of equally many rows. SGLang pads those that have fewer, and asks the attention
backend how long padded rows are, with a method that its backend torch_native lacks. A rank without requests runs its
layers on no tokens at all, and there PyTorch cannot tell the heads of rotary embeddings apart.
"""

from collections.abc import Callable
from typing import Any

import torch

from sglang_rpc.contract.targets import AFTER, AROUND, hook

_BACKEND = "sglang.srt.layers.attention.torch_native_backend.TorchNativeAttnBackend"
_ROTARY = "sglang.srt.layers.rotary_embedding.base.RotaryEmbedding"


@hook(AFTER, f"{_BACKEND}.__init__", "with DP attention, rows that a rank lacks are padded, and need a length")
def give_padding_a_length(_result: object, backend: Any, *_args: object) -> None:
    """AFTER TorchNativeAttnBackend.__init__, once per model runner: padded rows are 1 long, and attend to slot 0.

    Sets the method on the backend, under the name of SGLang's other backends for CPUs.
    """
    backend.get_cpu_graph_seq_len_fill_value = lambda: 1


@hook(AROUND, f"{_ROTARY}.forward_cpu", "with DP attention, a rank without requests runs its layers on no tokens")
def rotate_nothing(
    original: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    rotary: object,
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """AROUND RotaryEmbedding.forward_cpu, once per layer and step: of no tokens, `query` and `key` as they are."""
    if positions.numel() == 0:
        return query, key
    return original(rotary, positions, query, key, *args, **kwargs)
