"""What an engine of the tests needs on a CUDA device, beside what its test names.

Everything here is a function of the device and the dtype, so that a machine without a GPU can test it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

ARGUMENTS: dict[str, Any] = {
    "device": "cuda",
    # SGLang's own choice differs from GPU to GPU: fa3 has no float32, trtllm_mha does not work with RPC.
    "attention_backend": "triton",
    # FlashInfer compiles its sampling when it is first used, which needs nvcc.
    "sampling_backend": "pytorch",
    # As many as `engines.engine` lets run at once. On a small GPU SGLang captures 8, and larger batches run without.
    "cuda_graph_max_bs_decode": 32,
    # The GPU may serve others too, and the pools of tests are tiny.
    "mem_fraction_static": 0.3,
    # They lengthen each start, and RPC refuses them beside mixed chunks. SGLang captures them by default.
    "disable_prefill_cuda_graph": True,
    "disable_flashinfer_autotune": True,
}
FLOAT32 = {
    # SGLang's CUDA kernels of norms are built for float16 and bfloat16; PyTorch's operators take any dtype.
    "SGLANG_FORCE_FUSED_OP_BACKEND": "torch",
    # Triton multiplies float32 as TF32, with 10 bits of mantissa, unless told otherwise.
    "TRITON_F32_DEFAULT": "ieee",
}


def device_of(named: str | None) -> str:
    """`named`, or the device that SGLang chooses here: cuda or cpu."""
    return named or ("cuda" if torch.cuda.is_available() else "cpu")


def arguments(device: str) -> dict[str, Any]:
    """SGLang's arguments, by field name, of a test engine on `device`, for those that the test does not name."""
    return dict(ARGUMENTS) if device == "cuda" else {}


def environment(device: str, dtype: str) -> dict[str, str]:
    """Environment variables of a test engine in `dtype` on `device`, for those that are not set."""
    return dict(FLOAT32) if device == "cuda" and dtype == "float32" else {}


def flags(given: Sequence[str], device: str) -> list[str]:
    """`arguments` as command-line flags, without those that `given` has."""
    added = []
    for name, value in arguments(device).items():
        flag = "--" + name.replace("_", "-")
        if value_of(flag, given) is None:
            added += [flag] if value is True else [flag, str(value)]
    return added


def value_of(flag: str, given: Sequence[str]) -> str | None:
    """The last value of `flag` in a command line, as `--flag value` or `--flag=value`; "" for a switch."""
    found = None
    for position, word in enumerate(given):
        name, equals, value = word.partition("=")
        if name == flag:
            following = given[position + 1] if position + 1 < len(given) else ""
            found = value if equals else "" if following.startswith("--") else following
    return found
