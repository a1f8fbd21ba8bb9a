"""How many query slots are needed where many requests are due together, and what it costs to have fewer.

Samples of one prompt that start together are all due in the same step. With fewer query slots than requests they are
compressed in waves: a slot serves one request for R steps, and the next from the step after. Who waits keeps growing.
No sglang: counts in, counts out.
"""

from sglang_rpc.types import NEVER

#: The query ring takes at most this share of the KV pool's bytes, unless --rpc-query-slots says how many slots.
RING_SHARE = 0.1


def due_together(pool: int, interval: int, rows: int) -> int:
    """Bound the requests that are due in the same step: `rows`, or as many as `pool` slots can hold.

    Each has an `interval` of entries of its own by then.
    """
    return max(1, min(rows, pool // interval))


def affordable_slots(needed: int, slot_bytes: int, pool_bytes: float) -> int:
    """The query slots of a server that does not name their number: as many as `needed`, within RING_SHARE.

    The dummy slot counts too. At least one, however small the pool is.
    """
    return max(1, min(needed, int(RING_SHARE * pool_bytes) // slot_bytes - 1))


def longest_wait(requests: int, slots: int, window: int, interval: int = NEVER) -> int:
    """Steps that a compression waits at most for a query slot while so many `requests` run.

    Slots go to those that have waited longest, so that every other request is served once at most before it. With an
    `interval` below the window a request that gives its slot up asks for the next date only after that window began.
    """
    if requests <= slots:
        return 0
    return (requests - 1) // slots * (window + 1) + max(0, window - interval + 1)
