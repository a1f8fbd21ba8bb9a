"""Does everything that a server imports load here, and can a CUDA graph hold the query ring's write?"""

from __future__ import annotations

import argparse
import time

from launch.gpu_check.programs import say


def main(device: str) -> None:
    began = time.monotonic()
    import torch

    if device == "cuda":
        x = torch.randn(512, 512, device="cuda", dtype=torch.bfloat16)
        assert torch.isfinite((x @ x).float()).all(), "a product of two matrices on the GPU is not finite"
        say(f"{torch.cuda.get_device_name()} multiplies in bfloat16")
    serving_path(device)
    say(f"SGLang is imported and {hooks_on()} hooks are on, {time.monotonic() - began:.0f} s")
    if device == "cuda":
        norms()
    ring_write(torch.device(device), captured=device == "cuda")
    say(f"imports: OK, {time.monotonic() - began:.0f} s")


def serving_path(device: str) -> None:
    from sglang_rpc.startup import cpu

    if device == "cuda":
        import sgl_kernel  # noqa: F401
    else:
        cpu.prepare("cpu")
    from sglang.srt.entrypoints.engine import Engine  # noqa: F401
    from sglang.srt.layers.layernorm import RMSNorm  # noqa: F401
    from sglang.srt.managers.scheduler import Scheduler  # noqa: F401


def hooks_on() -> int:
    """Puts the hooks of a server on SGLang, all or none; returns how many there are."""
    from sglang_rpc.hooks.install import installed
    from sglang_rpc.startup.process import switch_on

    switch_on()
    return len(installed())


def norms() -> None:
    """Which dtypes SGLang's norm has kernels for: a float32 engine must take another one where float32 is missing."""
    import torch

    taken, refused = [], []
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        x, weight = torch.randn(8, 512, device="cuda", dtype=dtype), torch.ones(512, device="cuda", dtype=dtype)
        try:
            torch.ops.sgl_kernel.rmsnorm(torch.empty_like(x), x, weight, 1e-6, False)
            torch.cuda.synchronize()
            taken.append(str(dtype))
        except (RuntimeError, TypeError, AttributeError) as error:
            refused.append(f"{dtype} ({str(error).splitlines()[0][:80]})")
    say(f"sgl_kernel.rmsnorm takes {', '.join(taken) or 'nothing'}; refuses {', '.join(refused) or 'nothing'}")


def ring_write(device, captured: bool) -> None:
    """One write of two requests' queries; captured, the slots change between the capture and the replay."""
    import torch

    from sglang_rpc.memory.triton_ring import store

    made = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 28, 128, generator=made).to(device, torch.bfloat16)
    ring = torch.zeros(3, 4, 28, 128, device=device, dtype=torch.bfloat16)
    slots, entries = torch.tensor([0, 2], device=device), torch.tensor([0, 1], device=device)
    store(ring, slots, entries, queries)
    assert torch.equal(ring[2, 1], queries[1]), "the ring does not hold what was written"
    assert not ring[0].any(), "a row without a slot was written"
    if not captured:
        say("the query ring's write, in Triton's interpreter: equal")
        return
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        store(ring, slots, entries, queries)
    slots.copy_(torch.tensor([1, 0], device=device))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(ring[1, 0], queries[0]), "a replay did not follow the slots"
    assert torch.equal(ring[2, 1], queries[1]), "a replay changed what was written before"
    assert not ring[0].any(), "a replay wrote a row without a slot"
    say("the query ring's write, captured and replayed with other slots: equal")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    main(parser.parse_args().device)
