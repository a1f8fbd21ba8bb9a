"""What RPC can work with, and the words in which the rest is refused."""

from __future__ import annotations

#: Attention backends whose kernels read K/V through a per-request list of slots, any slots, in any order.
ATTENTION_BACKENDS = ("fa3", "flashinfer", "torch_native", "triton")
#: Exactly these classes: a subclass may store K/V in another layout, or know its slots by other numbers.
KV_POOLS = ("MHATokenToKVPool", "MLATokenToKVPool")
ROW_POOLS = ("ReqToTokenPool",)
ALLOCATORS = ("PagedTokenToKVPoolAllocator", "TokenToKVPoolAllocator")
TREES = ("UnifiedRadixCache",)
KV_DTYPES = ("bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2")

OFF = "start with --disable-rpc"


def sentence(found: str, why: str, way_out: str) -> str:
    return f"{found} does not work with RPC: {why}; {way_out + ' or ' if way_out else ''}{OFF}"
