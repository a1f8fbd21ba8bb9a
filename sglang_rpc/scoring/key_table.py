"""What kernels that take all layers at once are told of the layers' keys and values, and where such kernels run."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton

from sglang_rpc.types import KVLayer


def runs_on(device: torch.device) -> bool:
    """Whether kernels can run there: on a GPU, or anywhere in Triton's interpreter."""
    return device.type == "cuda" or bool(triton.knobs.runtime.interpret)


class KeyTable:
    """Where the keys of every layer are, for kernels that take all layers at once.

    Raises ValueError if the layers' keys do not all have one shape, stride and dtype, or kernels cannot read them.
    """

    def __init__(self, layers: Sequence[KVLayer]):
        first = layers[0].keys
        for layer in layers:
            same = (layer.keys.shape[1:], layer.keys.stride(), layer.keys.dtype, layer.logit_cap > 0)
            if same != (first.shape[1:], first.stride(), first.dtype, layers[0].logit_cap > 0):
                raise ValueError("all layers must hold keys of one shape, stride and dtype, and cap logits alike")
        if first.stride(2) != 1:
            raise ValueError("the numbers of one head's key must be neighbours in memory")
        if any(layer.keys.data_ptr() % 16 for layer in layers):
            raise ValueError("every layer's keys must begin on 16 bytes")
        if layers[0].dtype == torch.float8_e4m3fn and first.is_cuda and torch.cuda.get_device_capability() < (8, 9):
            raise ValueError("Triton reads fp8_e4m3 on GPUs of compute capability 8.9 and higher")
        self.example = first.view(layers[0].dtype)  #: tells kernels the dtype
        self.count, self.kv_heads, self.head_dim = len(layers), first.shape[1], first.shape[2]
        device = first.device
        self.pointers = torch.tensor([layer.keys.data_ptr() for layer in layers], dtype=torch.int64, device=device)
        self.scaling = torch.tensor([layer.scaling for layer in layers], dtype=torch.float32, device=device)
        self.caps = torch.tensor([layer.logit_cap for layer in layers], dtype=torch.float32, device=device)
        self.capped = layers[0].logit_cap > 0


@dataclass(frozen=True)
class ValueTable:
    """Where the values of every layer are, for kernels that read them."""

    example: torch.Tensor  #: tells kernels the dtype and strides
    pointers: torch.Tensor  #: int64 [layers]
    dim: int

    @classmethod
    def of(cls, layers: Sequence[KVLayer]) -> "ValueTable":
        """Raises ValueError if layers' values differ in shape, stride or dtype, or kernels cannot read them."""
        first = layers[0].values
        if len({(layer.values.shape[1:], layer.values.stride(), layer.values.dtype) for layer in layers}) > 1:
            raise ValueError("all layers must hold values of one shape, stride and dtype")
        if first.shape[2] > 1 and first.stride(2) != 1:
            raise ValueError("the numbers of one head's value must be neighbours in memory")
        if any(layer.values.data_ptr() % 16 for layer in layers):
            raise ValueError("every layer's values must begin on 16 bytes")
        pointers = torch.tensor([layer.values.data_ptr() for layer in layers], dtype=torch.int64, device=first.device)
        example = first.view(layers[0].dtype)
        return cls(example, pointers, example.shape[2])
