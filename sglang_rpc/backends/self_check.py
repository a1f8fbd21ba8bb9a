"""Before the kernels touch anybody's KV they compress random KV of the model's own shape, on the device they will run
on, and must leave what PyTorch leaves, byte for byte."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from sglang_rpc.backends.base import Backend
from sglang_rpc.backends.random_layers import copy, mismatch, random_layer
from sglang_rpc.config import RPCConfig
from sglang_rpc.memory.queries import Queries
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.policy import lightthinker
from sglang_rpc.policy.base import Policy
from sglang_rpc.policy.resolve import find_policy
from sglang_rpc.types import Compression, KVLayer, LayersByKind

PROMPT, WHOLE = 5, 3

#: Builds a backend from config, policy, layers, ring, req_to_token and reduce.
Make = Callable[[RPCConfig, Policy | None, Sequence[KVLayer], Queries, torch.Tensor, None], Backend]


def failure(config: RPCConfig, layers: Sequence[KVLayer], ring: Queries, *, expected: Make, actual: Make) -> str | None:
    """What `actual` leaves otherwise than `expected`, as a part of a sentence; None if nothing. Waits for the device:
    for start-up only.

    Raises ValueError if no kernel takes these layers.
    """
    # Under max pooling neighbours tie, and PyTorch does not promise which of equals it keeps.
    policy = find_policy(config.policy)
    if policy is not None and policy.pooling not in (None, "pairs"):
        policy = replace(policy, pooling="avg")

    def trial(seed: int) -> str | None:
        return _trial(config, policy, layers, ring, (expected, actual), seed)

    # Which of two candidates of almost one score stays is rounding's to say; two trials do not meet that by chance.
    return trial(0) and trial(1)


def _trial(
    config: RPCConfig,
    policy: Policy | None,
    layers: Sequence[KVLayer],
    ring: Queries,
    makers: tuple[Make, Make],
    seed: int,
) -> str | None:
    generator = torch.Generator().manual_seed(seed)
    compressions = _compressions(config, ring.window)
    rows, longest = len(compressions), max(c.end for c in compressions)
    # Slots in no order, slot 0 left out as SGLang does.
    req_to_token = torch.zeros(rows + 1, longest, dtype=torch.int32)
    req_to_token[1:] = (torch.randperm(rows * longest, generator=generator) + 1).view(rows, longest)
    device = ring.buffer.device
    own_ring = QueryRing(
        layers=2,
        slots=1,
        rows=rows + 1,
        window=ring.window,
        heads=ring.buffer.shape[3],
        head_dim=ring.buffer.shape[4],
        dtype=ring.buffer.dtype,
        device=device,
        drafts=ring.drafts,
    )
    # Sharp attention, so that scores lie far apart.
    own_ring.buffer.copy_((4 * torch.randn(own_ring.buffer.shape, generator=generator)).to(ring.buffer.dtype))
    kinds = LayersByKind.of(layers)
    likes = [kinds.full[0], *kinds.windows[:1], kinds.full[0]]
    own_layers = [random_layer(like, rows * longest + 1, generator) for like in likes]
    results = []
    for make in makers:
        copies = [copy(layer) for layer in own_layers]
        make(config, policy, copies, own_ring, req_to_token.to(device), None).compress(compressions)
        results.append(copies)
    expected, actual = results
    return mismatch(expected, actual, device)


def _compressions(config: RPCConfig, window: int) -> list[Compression]:
    """One per row, from row 1 on."""
    shapes = [(300, 75, window)]  # candidates, how many stay, window
    if config.policy == lightthinker.NAME:
        shapes = [(50, 0, 200), (22, 0, 3)]  # a long window, which overlaps itself as it moves, and a short one
    begin = PROMPT + WHOLE
    return [
        Compression(
            row=row,
            slot=1,
            prompt_length=PROMPT,
            generated=WHOLE + candidates + window + 17,  # as many were evicted before
            window=window,
            begin=begin,
            end=begin + candidates + window,
            keep=keep,
        )
        for row, (candidates, keep, window) in enumerate(shapes, 1)
    ]
