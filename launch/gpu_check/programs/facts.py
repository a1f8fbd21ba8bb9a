"""What this host has, as one line of JSON: `facts.py MODULE...`, each a module that may be missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import sys
from typing import Any

PACKAGES = ("torch", "triton", "sglang", "sglang-kernel", "flashinfer-python", "transformers", "pytest")


def main(modules: list[str]) -> None:
    facts: dict[str, Any] = {"notes": []}
    facts["versions"] = {"Python": platform.python_version()}
    absent = []
    for name in PACKAGES:
        try:
            facts["versions"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
    if absent:
        facts["notes"].append(f"not installed for {sys.executable}: {', '.join(absent)}")
    facts["missing"] = [name for name in modules if importlib.util.find_spec(name) is None]
    for part in (gpu, backends) if "torch" not in absent else ():
        try:
            facts |= part()
        except Exception as error:  # whatever a broken installation raises, the rest is worth knowing
            facts["notes"].append(f"{part.__name__}: {type(error).__name__}: {str(error)[:200]}")
    print(json.dumps(facts))


def gpu() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {"cuda": False}
    found = torch.cuda.get_device_properties(0)
    name = f"{found.name} (sm_{found.major}{found.minor}, CUDA {torch.version.cuda}), {torch.cuda.device_count()} of it"
    return {"cuda": True, "gpu": name, "gpu_gib": found.total_memory / 2**30}


def backends() -> dict[str, Any]:
    """As the doctor has them."""
    from sglang_rpc.contract import pins
    from sglang_rpc.startup.machine import facts_of

    version = importlib.metadata.version("sglang")
    shown = next(fact.value for fact in facts_of(version, pins.load(version)) if fact.name == "Attention")
    return {"backends": [word.strip() for word in shown.split(",")]}


if __name__ == "__main__":
    main(sys.argv[1:])
