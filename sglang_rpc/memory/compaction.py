"""Physical compaction: kept entries move into the row's own first slots, in order.

    row:   [0, prompt) shared    [prompt, first) kept whole    [first, end - R) candidates    [end - R, end) window
    after: [0, prompt) untouched [prompt, first) untouched     kept candidates ++ window, then free slots

In a sliding-window layer the newest candidates are kept, so that its row ends as it would uncompressed.

Keys keep the rotary phase of their original position. Moves are in the pool's storage dtype, so nothing is rounded.
"""

import torch


def move_kept(buffers: tuple[torch.Tensor, ...], slots: torch.Tensor, kept: torch.Tensor, candidates: int) -> None:
    """Compact one request's region in one layer, in place.

    Args:
        buffers: the layer's K and V, [pool_slots, kv_heads, head_dim] each.
        slots: int64 [region], the pool slots of the region's entries, in order; candidates first, then the window.
        kept: ascending int64 [1, keep], or [kv_heads, keep] where each KV head keeps its own: candidates that stay.
        candidates: how many of `slots` are candidates; the rest are the window.

    Writes the first keep + window slots of `slots`; every other slot of the pool keeps its bytes.
    """
    window = torch.arange(candidates, slots.numel(), device=slots.device)
    source = torch.cat([kept, window.expand(kept.shape[0], -1)], dim=1)
    target = slots[: source.shape[1]]
    for buffer in buffers:
        # Source and target overlap: advanced indexing gathers a copy of all of it before anything is written.
        if kept.shape[0] == 1:
            buffer[target] = buffer[slots[source[0]]]
        else:
            heads = torch.arange(buffer.shape[1], device=slots.device)
            buffer[target] = buffer[slots[source].T, heads]


def move_newest(buffers: tuple[torch.Tensor, ...], slots: torch.Tensor, count: int) -> None:
    """Keep the newest `count` entries of one request's region in one layer, in place. Arguments: see `move_kept`.

    Writes the first `count` slots of `slots`; every other slot of the pool keeps its bytes.
    """
    for buffer in buffers:
        buffer[slots[:count]] = buffer[slots[slots.numel() - count :]]
