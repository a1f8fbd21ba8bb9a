"""Compression that drops whole thoughts, for policy lightthinker: nothing is scored, what follows them moves up."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence

import torch

from sglang_rpc.backends.base import unavailable
from sglang_rpc.backends.made_up import copy, mismatch, random_layer
from sglang_rpc.memory import compaction
from sglang_rpc.types import Compression, CompressionBatch, KVLayer, Observer

logger = logging.getLogger(__name__)

#: Moves the windows of a batch of compressions to where their candidates begin, in all layers.
Move = Callable[[Sequence[Compression]], None]


class MoveBackend:
    def __init__(self, name: str, layers: int, move: Move):
        self.name = name
        self.observer: Observer | None = None
        self._move, self._layers = move, layers

    def compress(self, compressions: Sequence[Compression]) -> None:
        """On the current stream."""
        if self.observer is not None:
            self.observer(compressions, torch.empty(self._layers, len(compressions), 1, 0, dtype=torch.int32))
        self._move(compressions)


def move_backend(scoring: str, layers: Sequence[KVLayer], req_to_token: torch.Tensor) -> MoveBackend:
    """In one launch where Triton can run and `scoring` is `auto`, else in PyTorch."""
    on_gpu = req_to_token.device.type == "cuda"
    if scoring == "auto" and on_gpu and importlib.util.find_spec("triton") is not None:
        try:
            reason = failure(layers, req_to_token.device)
            if reason is None:
                return MoveBackend("triton", len(layers), _in_one_launch(layers, req_to_token))
        except Exception as error:  # whatever keeps a kernel from being compiled need not keep the server from starting
            reason = f"{type(error).__name__}: {error}"
        logger.warning("%s", unavailable(reason))
    return MoveBackend("reference", len(layers), _in_pytorch(layers, req_to_token))


def failure(layers: Sequence[KVLayer], device: torch.device) -> str | None:
    """What the kernel leaves otherwise than PyTorch, as a part of a sentence; None if nothing. Waits for the device.

    It moves made-up entries of the model's own shape, and must leave what PyTorch leaves, byte for byte.

    Raises ValueError if no kernel takes these layers.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(3, 300, dtype=torch.int32)
    rows[1:, :290] = (torch.randperm(580, generator=generator) + 1).view(2, 290)
    rows = rows.to(device)
    # A long window, which overlaps itself as it moves, and a short one.
    trials = [
        Compression(
            row=row, slot=0, prompt_length=5, generated=285, window=window, begin=40, end=end, keep=0, event=1,
            late=False,
        )
        for row, window, end in ((1, 200, 290), (2, 3, 65))
    ]  # fmt: skip
    made_up = [random_layer(layers[0], 581, generator) for _ in range(2)]
    expected, actual = ([copy(layer) for layer in made_up] for _ in range(2))
    _in_pytorch(expected, rows)(trials)
    _in_one_launch(actual, rows)(trials)
    return mismatch(expected, actual, device)


def _in_pytorch(layers: Sequence[KVLayer], req_to_token: torch.Tensor) -> Move:
    def move(compressions: Sequence[Compression]) -> None:
        none = torch.zeros(1, 0, dtype=torch.int64, device=req_to_token.device)
        for c in compressions:
            slots = req_to_token[c.row, c.begin : c.end].long()
            for layer in layers:
                compaction.move_kept(layer.buffers, slots, none, c.candidates)

    return move


def _in_one_launch(layers: Sequence[KVLayer], req_to_token: torch.Tensor) -> Move:
    """Raises ValueError if the kernel does not take these layers."""
    from sglang_rpc.memory import triton_compaction

    slices = triton_compaction.SliceTable(layers)

    def move(compressions: Sequence[Compression]) -> None:
        batch = CompressionBatch.of(compressions, req_to_token.device)
        none = torch.zeros(len(layers), len(compressions), 1, 1, dtype=torch.int32, device=req_to_token.device)
        triton_compaction.move_kept(slices, req_to_token, batch, none)

    # The kernel is compiled now, on row 0, which is no request's: its slots are the pool's padding.
    move(
        [
            Compression(
                row=0, slot=0, prompt_length=0, generated=2, window=1, begin=0, end=2, keep=0, event=1, late=False
            )
        ]
    )
    return move
