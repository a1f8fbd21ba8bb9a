"""SGLang's KV pool for sliding windows, as RPC knows it."""

from typing import TypeGuard, cast

from sglang_rpc.contract.sglang.memory import Allocator, KVPool
from sglang_rpc.contract.sglang.windows import WindowAllocator, WindowKVPool

#: Exactly these classes: a subclass may know its slots by other numbers.
POOL, ALLOCATOR = "SWAKVPool", "SWATokenToKVPoolAllocator"
#: Of each of the two pools in it.
PART = "MHATokenToKVPool"


def has_own_windows(pool: KVPool | WindowKVPool) -> TypeGuard[WindowKVPool]:
    """Whether window layers have a pool of their own in `pool`, of a kind that RPC knows."""
    return type(pool).__name__ == POOL


def window_allocator(allocator: Allocator) -> WindowAllocator | None:
    """The allocator of two such pools, if this is one."""
    return cast("WindowAllocator", allocator) if type(allocator).__name__ == ALLOCATOR else None


def full_slots_free(allocator: Allocator) -> int:
    """Free slots of the layers with full attention, whose KV is compressed."""
    own = window_allocator(allocator)
    return allocator.available_size() if own is None else own.full_available_size()


def pool_name(pool: KVPool | WindowKVPool) -> str:
    """The class of `pool`, with the classes of what is in it where RPC does not know them."""
    name = type(pool).__name__
    if not has_own_windows(pool):
        return name
    parts = [type(part).__name__ for part in parts_of(pool)]
    return name if all(part == PART for part in parts) else f"{name} of {' and '.join(parts)}"


def allocator_name(allocator: Allocator) -> str:
    """The class of `allocator`, with what of its settings RPC does not know."""
    own = window_allocator(allocator)
    return type(allocator).__name__ + (" with a ring per request" if own is not None and own._swa_req_ring else "")


def parts_of(pool: KVPool | WindowKVPool) -> tuple[KVPool, ...]:
    """The pools in `pool`, that of layers with full attention first; itself, if it is one."""
    return (pool.full_kv_pool, pool.swa_kv_pool) if has_own_windows(pool) else (cast("KVPool", pool),)
