"""Before the kernels touch anybody's KV they compress a made-up request of the model's own shape, on the device they
will run on, and must leave what PyTorch leaves, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from sglang_rpc.backends.reference_backend import ReferenceBackend
from sglang_rpc.backends.triton_backend import TritonBackend
from sglang_rpc.config import RPCConfig
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.types import Compression, KVLayer

CANDIDATES, KEEP, PROMPT, WHOLE = 300, 75, 5, 3


def failure(config: RPCConfig, layers: Sequence[KVLayer], ring: QueryRing) -> str | None:
    """What is wrong, as a part of a sentence; None if nothing is. Waits for the device: for start-up only.

    Raises ValueError if no kernel takes these layers.
    """
    # Under max pooling neighbours tie, and PyTorch does not promise which of equals it keeps.
    config = replace(config, policy="rpc", pooling="avg")
    # Which of two candidates of almost one score stays is rounding's to say; two trials do not meet that by chance.
    return _trial(config, layers, ring, 0) and _trial(config, layers, ring, 1)


def _trial(config: RPCConfig, layers: Sequence[KVLayer], ring: QueryRing, seed: int) -> str | None:
    made = torch.Generator().manual_seed(seed)
    device, window = ring.buffer.device, ring.window
    end = PROMPT + WHOLE + CANDIDATES + window
    # Page-like runs of slots in no order, slot 0 left out as SGLang does.
    row = torch.randperm(end, generator=made) + 1
    req_to_token = torch.zeros(2, end, dtype=torch.int32)
    req_to_token[1] = row
    own_ring = QueryRing(
        layers=2,
        slots=1,
        rows=2,
        window=window,
        heads=ring.buffer.shape[3],
        head_dim=ring.buffer.shape[4],
        dtype=ring.buffer.dtype,
        device=device,
    )
    # Sharp attention, so that scores lie far apart.
    own_ring.buffer.copy_((4 * torch.randn(own_ring.buffer.shape, generator=made)).to(ring.buffer.dtype))
    c = Compression(
        row=1,
        slot=1,
        prompt_length=PROMPT,
        generated=end - PROMPT + 17,  # as many were evicted before
        window=window,
        begin=PROMPT + WHOLE,
        end=end,
        keep=KEEP,
        event=1,
        late=False,
    )
    own_layers = [random_layer(layers[0], end + 1, made) for _ in range(2)]
    results = []
    for path_class in (ReferenceBackend, TritonBackend):
        copies = [copy(layer) for layer in own_layers]
        path_class(config, copies, own_ring, req_to_token.to(device), None).compress([c])
        results.append(copies)
    reference, kernels = results
    return difference(reference, kernels, device)


def difference(right: Sequence[KVLayer], found: Sequence[KVLayer], device: torch.device) -> str | None:
    """What of `found` is not what `right` is, byte for byte, as a part of a sentence; None if nothing is."""
    for reference, kernels in zip(right, found, strict=True):
        for name, theirs, ours in (
            ("keys", reference.keys, kernels.keys),
            ("values", reference.values, kernels.values),
        ):
            wrong = (theirs.view(torch.uint8) != ours.view(torch.uint8)).flatten(1).any(1)
            if bool(wrong.any()):
                return f"in a trial on {device} they left {int(wrong.sum())} of {wrong.numel()} entries of {name} wrong"
    return None


def random_layer(like: KVLayer, slots: int, made: torch.Generator) -> KVLayer:
    def buffer(of: torch.Tensor) -> torch.Tensor:
        random = torch.randn(slots, *of.shape[1:], generator=made)
        # FP8 is stored as bytes.
        stored = random.to(of.dtype) if of.dtype.is_floating_point else random.to(like.dtype).view(of.dtype)
        return stored.to(of.device)

    return _of(like, buffer(like.keys), buffer)


def copy(layer: KVLayer) -> KVLayer:
    return _of(layer, layer.keys.clone(), torch.clone)


def _of(like: KVLayer, keys: torch.Tensor, values: Callable[[torch.Tensor], torch.Tensor]) -> KVLayer:
    """A layer of these keys, and of `values(like.values)` unless they are a part of the keys."""
    if len(like.buffers) == 1:
        return replace(like, keys=keys, values=keys[..., : like.values.shape[2]])
    return replace(like, keys=keys, values=values(like.values))
