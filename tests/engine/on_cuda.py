"""What an engine of the tests needs on a CUDA device, beside what its test names.

Everything here is a function of the device and the dtype, so that a machine without a GPU can test it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sglang_rpc.startup import machine

ARGUMENTS: dict[str, Any] = {
    "device": "cuda",
    # SGLang's own choice differs from GPU to GPU: fa3 has no float32, trtllm_mha is refused by RPC.
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


def too_few(device: str, ranks: int) -> str | None:
    """Why a test with several ranks cannot run on `device`; None if it can. One rank is never too many."""
    if device != "cuda" or ranks <= max(1, torch.cuda.device_count()):
        return None
    return f"{ranks} ranks need as many GPUs, and there are {torch.cuda.device_count()}"


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


def attention_backends(named: str | None) -> list[str]:
    """Those `named`, separated by commas; else those that RPC and this GPU both have; all where there is no GPU."""
    every = ["triton", "flashinfer", "fa3"]
    if named:
        return named.split(",")
    if not torch.cuda.is_available():
        return every
    major, minor = torch.cuda.get_device_capability()
    usable = machine.gpu_backends(10 * major + minor, torch.version.hip is not None)
    return [backend for backend in every if backend in usable]


def lacks(capability: tuple[int, int], backend: str, kv_dtype: str, latents: bool) -> str | None:
    """Why SGLang cannot serve this on a GPU of `capability`, whose attention backend it has; None if it can."""
    if backend == "fa3" and latents and capability[0] != 9:
        return "SGLang has fa3 for latent attention on Hopper alone"
    if backend == "fa3" and kv_dtype == "fp8_e5m2":
        return "SGLang takes triton instead of fa3, which has no e5m2"
    if backend == "triton" and kv_dtype == "fp8_e4m3" and capability < (8, 9):
        return "Triton has e4m3 from compute capability 8.9 on"
    return None
