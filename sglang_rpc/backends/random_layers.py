"""Random layers of a model's shape, for trials before a server serves, and what two trials left differently."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from sglang_rpc.types import KVLayer


def mismatch(expected: Sequence[KVLayer], actual: Sequence[KVLayer], device: torch.device) -> str | None:
    """Where `actual` differs from `expected`, byte for byte, as a part of a sentence; None if nowhere."""
    for reference, kernels in zip(expected, actual, strict=True):
        for name in ("keys", "values"):
            wanted, got = getattr(reference, name), getattr(kernels, name)
            differs = (wanted.view(torch.uint8) != got.view(torch.uint8)).flatten(1).any(1)
            count = int(differs.sum())
            if count:
                return f"in a trial on {device} they left {count} of {differs.numel()} entries of {name} wrong"
    return None


def random_layer(like: KVLayer, slots: int, generator: torch.Generator) -> KVLayer:
    """`slots` random entries of the shape, dtype and device of `like`."""

    def buffer(of: torch.Tensor) -> torch.Tensor:
        random = torch.randn(slots, *of.shape[1:], generator=generator)
        # FP8 is stored as bytes.
        stored = random.to(of.dtype) if of.dtype.is_floating_point else random.to(like.dtype).view(of.dtype)
        return stored.to(of.device)

    return _of(like, buffer)


def copy(layer: KVLayer) -> KVLayer:
    """The layer in memory of its own."""
    return _of(layer, torch.clone)


def _of(like: KVLayer, buffer: Callable[[torch.Tensor], torch.Tensor]) -> KVLayer:
    """A layer of new buffers; of values that are a part of the keys, so are the new ones."""
    keys = buffer(like.keys)
    inside = len(like.buffers) == 1
    return replace(like, keys=keys, values=keys[..., : like.values.shape[2]] if inside else buffer(like.values))
