"""What decides whether RPC can run on this machine: versions, device, attention backends, and SGLang's plugins."""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass

from sglang_rpc.contract import pins as pinned
from sglang_rpc.contract import versions
from sglang_rpc.contract.pins import Pins
from sglang_rpc.hooks.install import ALLOW_VERSION_ENV, allowed_version
from sglang_rpc.startup import cpu

OK, WARNING, PROBLEM = "ok", "warning", "problem"
GROUP = "sglang.srt.plugins"


@dataclass(frozen=True)
class Fact:
    """One line about this machine. A problem means that RPC can't start."""

    name: str
    value: str
    state: str = OK
    advice: str = ""


def facts_of(version: str, pins: Pins) -> list[Fact]:
    """What decides whether RPC can run here. Raises ConfigError on a wrong SGLANG_RPC_ALLOW_VERSION."""
    return [_sglang(version, pins), _python(), _package("PyTorch", "torch"), *_device(), _plugin(), _whitelist()]


def _sglang(version: str, pins: Pins) -> Fact:
    if pinned.public(version) == pins.version:
        return Fact("SGLang", f"{version}, pinned")
    value = f"{version}; pinned are {' and '.join(versions.VERSIONS)}"
    if allowed_version(version, pins):
        return Fact("SGLang", value, WARNING, f"unproven, allowed by {ALLOW_VERSION_ENV}=1")
    advice = f"install SGLang {versions.SUPPORTED}, or set {ALLOW_VERSION_ENV}=1 to try it all the same"
    return Fact("SGLang", value, PROBLEM, advice)


def _python() -> Fact:
    return Fact("Python", f"{platform.python_version()}, {platform.machine()} {platform.system()}")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str, distribution: str, needed: bool = True) -> Fact:
    value = _version(distribution)
    if value is not None:
        return Fact(name, value)
    return Fact(name, "not installed", PROBLEM if needed else OK, "SGLang needs it: install it again" if needed else "")


def _device() -> list[Fact]:
    """The device, the kernels' packages, and the attention backends that RPC and this device can both use."""
    import torch

    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        shown = ", ".join(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus)
        major, minor = torch.cuda.get_device_capability()
        return [
            Fact("Device", shown),
            _package("Triton", "triton"),
            _flashinfer(used=torch.version.hip is None),
            _attention(major * 10 + minor, torch.version.hip is not None),
        ]
    triton = _package("Triton", "triton", needed=False)
    if not cpu.wanted():
        return [Fact("Device", "an accelerator other than CUDA or ROCm", PROBLEM, "add --device cpu"), triton]
    kernels = "SGLang's CPU kernels" if cpu.cpu_kernels_available() else "a stand-in for SGLang's CPU kernels, slow"
    return [
        Fact("Device", f"CPU, {os.cpu_count()} cores: reference mode, with {kernels}"),
        triton,
        _flashinfer(used=False),
        Fact("Attention", "torch_native"),
    ]


def _flashinfer(used: bool) -> Fact:
    distribution = "flashinfer-python"
    value = _version(distribution) or _version("flashinfer")
    if value is None:
        return Fact("FlashInfer", "not installed" + (": the triton backend serves" if used else ""))
    return Fact("FlashInfer", value + ("" if used else ", not used on this device"))


def _attention(capability: int, rocm: bool) -> Fact:
    usable = gpu_backends(capability, rocm)
    value, reason = ", ".join(usable), _unusable_default(capability, rocm, usable)
    if not reason:
        return Fact("Attention", value)
    other = "flashinfer" if "flashinfer" in usable else "triton"
    return Fact("Attention", value, WARNING, f"{reason}; add --attention-backend {other}")


def _unusable_default(capability: int, rocm: bool, usable: list[str]) -> str:
    """Why RPC would not start with the backend that SGLang chooses on this GPU; empty if it would."""
    if rocm:
        return "RPC refuses aiter, SGLang's choice on this GPU for most models"
    if capability // 10 == 10:
        return "RPC refuses trtllm_mha, SGLang's choice on this GPU for models without latent attention (MLA)"
    if capability // 10 == 9 and "fa3" not in usable:
        return "fa3, SGLang's choice on this GPU, needs flash_ops of sgl-kernel, which cannot be loaded"
    return ""


def gpu_backends(capability: int, rocm: bool) -> list[str]:
    """Of the backends RPC is built for, those this GPU can run: `capability` is 90 for Hopper's 9.0."""
    from sglang_rpc.contract.refusals.server import ATTENTION_BACKENDS

    usable: dict[str, Callable[[], bool]] = {
        # SGLang's FlashAttention 3 kernels: Ampere to Hopper. FlashInfer: Turing and later.
        "fa3": lambda: not rocm and 80 <= capability < 100 and _flash_attention_3_loads(),
        "flashinfer": lambda: not rocm and capability >= 75 and importlib.util.find_spec("flashinfer") is not None,
    }
    return [name for name in ATTENTION_BACKENDS if usable.get(name, lambda: True)()]


def _flash_attention_3_loads() -> bool:
    """Whether sgl-kernel's FlashAttention 3, a library that some of its builds lack, can be had as SGLang has it."""
    try:
        importlib.import_module("sgl_kernel.flash_attn")
    except Exception:  # a library that is there and does not load may raise anything
        return False
    return True


def _plugin() -> Fact:
    """The entry point that `sglang serve` with SGLANG_RPC_CONFIG needs; our own launcher doesn't."""
    from sglang_rpc.config import CONFIG_ENV

    advice = f"`sglang serve` with {CONFIG_ENV} would run uncompressed; install sglang-rpc again with pip"
    found = [entry for entry in importlib.metadata.entry_points(group=GROUP) if entry.name == "rpc"]
    if not found:
        return Fact("Plugin", f"no entry point `rpc` in {GROUP}", WARNING, advice)
    try:
        found[0].load()
    except Exception as error:  # an import may raise anything, and SGLang would swallow it
        return Fact("Plugin", f"{found[0].value} can't be imported: {error}", WARNING, advice)
    return Fact("Plugin", f"rpc = {found[0].value}")


def _whitelist() -> Fact:
    listed = os.environ.get("SGLANG_PLUGINS", "")
    names = {name.strip() for name in listed.split(",") if name.strip()}
    if not names:
        return Fact("SGLANG_PLUGINS", "not set: every plugin is loaded")
    if "rpc" in names:
        return Fact("SGLANG_PLUGINS", listed)
    from sglang_rpc.config import CONFIG_ENV

    return Fact("SGLANG_PLUGINS", listed, WARNING, f"`sglang serve` with {CONFIG_ENV} would run uncompressed; add rpc")
