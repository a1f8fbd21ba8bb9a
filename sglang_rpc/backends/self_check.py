"""Before the kernels touch anybody's KV they compress a made-up request of the model's own shape, on the device they
will run on, and must leave what PyTorch leaves, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from sglang_rpc.backends.base import Backend
from sglang_rpc.backends.made_up import copy, mismatch, random_layer
from sglang_rpc.config import RPCConfig
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.types import Compression, KVLayer

CANDIDATES, KEEP, PROMPT, WHOLE = 300, 75, 5, 3

#: Builds a backend from config, layers, ring, req_to_token and reduce.
Make = Callable[[RPCConfig, Sequence[KVLayer], QueryRing, torch.Tensor, None], Backend]


def failure(
    config: RPCConfig, layers: Sequence[KVLayer], ring: QueryRing, *, expected: Make, actual: Make
) -> str | None:
    """What `actual` leaves otherwise than `expected`, as a part of a sentence; None if nothing. Waits for the device:
    for start-up only.

    Raises ValueError if no kernel takes these layers.
    """
    # Under max pooling neighbours tie, and PyTorch does not promise which of equals it keeps.
    config = replace(config, policy="rpc", pooling="avg")
    # Which of two candidates of almost one score stays is rounding's to say; two trials do not meet that by chance.
    return _trial(config, layers, ring, (expected, actual), 0) and _trial(config, layers, ring, (expected, actual), 1)


def _trial(
    config: RPCConfig, layers: Sequence[KVLayer], ring: QueryRing, makers: tuple[Make, Make], seed: int
) -> str | None:
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
    for make in makers:
        copies = [copy(layer) for layer in own_layers]
        make(config, copies, own_ring, req_to_token.to(device), None).compress([c])
        results.append(copies)
    expected, actual = results
    return mismatch(expected, actual, device)
