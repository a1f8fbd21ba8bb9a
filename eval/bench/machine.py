"""Under which conditions this process measures: code, versions, machine. One value a column of results.csv."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from eval.bench.server import ROOT

#: Parts of eval/bench that only read results: changing a plot must not make a half-finished run start over.
_READERS = ("plots.py", "summary.py", "statistics.py", "options.py", "presets.py", "plan.py", "serving.py")


def conditions() -> dict[str, str | int | float]:
    """Everything but the model and the servers' flags."""
    return {
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "dirty": "yes" if _git("status", "--porcelain", "--", "sglang_rpc", "patches", "eval/bench") else "no",
        "package_sha": sha_of(sorted((ROOT / "sglang_rpc").rglob("*.py"))),
        "bench_sha": sha_of(p for p in sorted((ROOT / "eval" / "bench").glob("*.py")) if p.name not in _READERS),
        **{
            f"{name.replace('-', '_')}_version": _version(name)
            for name in ("sglang-rpc", "sglang", "torch", "transformers")
        },
        "python_version": platform.python_version(),
        "os": platform.platform(),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": gpu_name(),
        "env": json.dumps(relevant_environment(), sort_keys=True),
    }


def server_environment(threads: int) -> dict[str, str]:
    """Of every server, whatever its arm. 0 threads: as PyTorch decides."""
    env = dict(os.environ)
    # It would switch RPC on in the stock arms.
    env.pop("SGLANG_RPC_CONFIG", None)
    if threads:
        env["OMP_NUM_THREADS"] = str(threads)
    # For `eval.bench.stock_server` in the processes that SGLang spawns, too.
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [env.get("PYTHONPATH")])])
    return env


def default_threads(device: str) -> int:
    """On a CPU, half of the cores, as the stand-in chooses; named here so that the row can say it. 0 on a GPU."""
    return max(1, len(os.sched_getaffinity(0)) // 2) if device == "cpu" else 0


def default_device() -> str:
    return "cuda" if gpu_name() else "cpu"


def relevant_environment() -> dict[str, str]:
    """Variables of the caller's shell that reach into a server."""
    prefixes = ("SGLANG_", "SGL_", "TORCH", "OMP_", "MKL_", "CUDA_", "NCCL_")
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes)}


def sha_of(files: Iterable[Path]) -> str:
    """Of the files' names and contents, in the order given."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def gpu_name() -> str:
    """All GPUs' names, or nothing."""
    if shutil.which("nvidia-smi") is None:
        return ""
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(done.stdout.split("\n")).strip("; ") if done.returncode == 0 else ""


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
