"""CPU reference mode: unmodified SGLang on a machine without an accelerator and without sgl_kernel's CPU build.

It exists so that tests, the demo and a reader's first try need no GPU; it is slow. Call `prepare` before anything
imports `sglang.srt`. A plain `import sglang` before it is harmless in 0.5.23: that imports neither sgl_kernel nor any
module that decides by device. What must come after `prepare` is the first use of `sglang.Engine`, or anything else
from `sglang.srt` (it caches "no CPU engine" for the process, and `prepare` then says so and stops).

How every process of the server gets it: SGLang starts its processes with multiprocessing's spawn, which hands the
parent's environment and sys.path to each child. So environment variables and one directory at the end of sys.path are
all there is: no import hook, and nothing that depends on a child's main module. What lies there sets
`torch.cuda.current_device` and `torch.cuda.synchronize`, and changes SGLang itself in the process that runs a model
with gated delta nets, and there alone (`recurrent_ops`).
"""

import os
import sys
from pathlib import Path

from sglang_rpc.errors import RPCError

STAND_IN = str(Path(__file__).parent / "stand_in")

# dlopen cannot find this name, and SGLang answers a missing NCCL by falling back to gloo ("e.g. in a non-GPU
# environment"). Left alone it finds the libnccl of torch's CUDA build, and a rank group then fails at its first call.
NO_NCCL = "no-nccl-on-cpu.so"

MAX_TOTAL_TOKENS = 65536


def accelerator_available() -> bool:
    """Whether torch sees a usable CUDA, ROCm, XPU, NPU, HPU, MUSA or MPS device. Imports torch (seconds)."""
    import torch

    return torch.accelerator.is_available()


def cpu_kernels_available() -> bool:
    """Whether the installed sgl_kernel is its real CPU build. Imports torch and tries to import sgl_kernel."""
    if STAND_IN in sys.path:
        return False  # only added where the real build was found missing; importing now would find the stand-in
    try:
        import sgl_kernel  # type: ignore[import-untyped]  # noqa: F401
        import torch
    except ImportError:
        return False  # the CUDA build on a machine without libcuda ends here
    # An operator that only the real CPU build registers, on every architecture it is built for.
    return hasattr(torch.ops.sgl_kernel, "decode_attention_cpu")


def wanted(device: str | None = None) -> bool:
    """Whether the server is to run on the CPU: `--device cpu` was given, or no device was and no accelerator exists."""
    return not accelerator_available() if device is None else device == "cpu"


def prepare(device: str | None = None, ranks: int = 1) -> bool:
    """Make this process and every one it spawns ready to run SGLang on the CPU; return whether it did.

    `device` is the value of `--device`, None when not given. `ranks` is the number of model processes.
    False, and nothing changed, where the server is not to run on the CPU. Never overrides a variable the user set,
    except that an explicit "cpu" hides CUDA devices from this process and its children. Where the CPU build of
    sgl_kernel is installed only SGLANG_USE_CPU_ENGINE is set: threads, binding and all-reduce are SGLang's own then.
    Where just libcuda is present, sgl_kernel loads its CUDA build and the stand-in lies unused, which is fine: the
    plain decoding path calls no CPU operator of sgl_kernel. Calling `prepare` again is harmless.
    Raises RPCError when `sglang.srt` was used before, since it has then already decided against the CPU.
    """
    if ranks < 1:
        raise ValueError(f"ranks must be >= 1, got {ranks}")
    if not wanted(device):
        return False
    _check_not_too_late()
    if device == "cpu":
        # With a visible GPU each SGLang layer would pick its CUDA kernel, CPU engine or not. Before torch looks.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
    if cpu_kernels_available():
        return True
    # Half of the cores: the tokenizer, detokenizer and HTTP processes share them, and two threads on two shared
    # cores decode slower than one.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(_usable_cores()) // 2 // ranks)))
    # SGLang compiles a few small functions with torch.compile; without a GPU that needs a C++ compiler and tens of
    # seconds at the first request, and gains nothing here.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # Unset, SGLang keeps the inputs of a recurrent layer's convolution in bfloat16, whatever the model's own type.
    os.environ.setdefault("SGLANG_MAMBA_CONV_DTYPE", "float32")
    if STAND_IN not in sys.path:
        # Last, so that a real common_ops anywhere on the path is found first.
        sys.path.append(STAND_IN)
    if ranks > 1:
        # Unset, SGLang insists on one NUMA node a rank.
        os.environ.setdefault("SGLANG_CPU_OMP_THREADS_BIND", _cores_per_rank(ranks))
        os.environ.setdefault("SGLANG_NCCL_SO_PATH", NO_NCCL)
    return True


def processes(tp: int = 1, pp: int = 1, dp: int = 1, dp_attention: bool = False) -> int:
    """Model processes of a server. With DP attention the `dp` groups are made of the tensor-parallel ranks."""
    return tp * pp * (1 if dp_attention else dp)


def server_defaults() -> dict[str, str | int | bool]:
    """Server arguments, by field name, for those the user did not give; call after `prepare` returned True."""
    if STAND_IN not in sys.path:
        return {"device": "cpu"}
    return {
        "device": "cpu",
        "attention_backend": "torch_native",
        "sampling_backend": "pytorch",
        # Models with recurrent layers; the other strategies need a GPU. It wants --disable-overlap-schedule, which
        # SGLang says where it is missing. No other model reads it.
        "mamba_radix_cache_strategy": "no_buffer",
        # Unset, an idle scheduler spins on a core, which the other processes of a small machine need.
        "sleep_on_idle": True,
        # Token positions. Unset, SGLang zeroes a KV pool of most of the machine's memory, gigabytes really touched.
        "max_total_tokens": MAX_TOTAL_TOKENS,
    }


def _check_not_too_late() -> None:
    common = sys.modules.get("sglang.srt.utils.common")
    if common is None or not common.is_cpu.cache_info().currsize or common.is_cpu():
        return
    raise RPCError(
        "SGLang was already used in this process and decided it does not run on a CPU: "
        "import sglang_rpc before the first use of sglang.Engine, or set SGLANG_USE_CPU_ENGINE=1 beforehand",
        "error.sglang_in_use",
    )


def _usable_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _cores_per_rank(ranks: int) -> str:
    """SGLang's `cores|cores|...`, one group a rank; ranks beyond the number of cores share them in turn."""
    cores = _usable_cores()
    share = max(1, len(cores) // ranks)
    starts = [rank * share % len(cores) for rank in range(ranks)]
    return "|".join(",".join(str(core) for core in cores[start : start + share]) for start in starts)
