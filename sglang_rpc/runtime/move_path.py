"""Compression that drops whole stretches, for policy lightthinker: nothing is scored, what stands behind moves up."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence

import torch

from sglang_rpc.memory import compaction
from sglang_rpc.types import Compression, CompressionBatch, KVLayer, Witness

logger = logging.getLogger(__name__)

#: Moves the windows of a batch of compressions to where their candidates begin, in all layers.
Move = Callable[[Sequence[Compression]], None]


class MovePath:
    def __init__(self, name: str, layers: int, move: Move):
        self.name = name
        self.witness: Witness | None = None
        self._move, self._layers = move, layers

    def compress(self, compressions: Sequence[Compression]) -> None:
        """On the current stream."""
        if self.witness is not None:
            self.witness(compressions, torch.empty(self._layers, len(compressions), 1, 0, dtype=torch.int32))
        self._move(compressions)


def move_path(layers: Sequence[KVLayer], req_to_token: torch.Tensor) -> MovePath:
    """In one launch where Triton can run, else in PyTorch."""
    device = req_to_token.device
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        try:
            return MovePath("triton", len(layers), _in_one_launch(layers, req_to_token))
        except ValueError as error:
            logger.warning("RPC moves with PyTorch, which is slower, not with its kernel: %s", error)

    def move(compressions: Sequence[Compression]) -> None:
        none = torch.zeros(1, 0, dtype=torch.int64, device=device)
        for c in compressions:
            slots = req_to_token[c.row, c.begin : c.end].long()
            for layer in layers:
                compaction.move_kept(layer.buffers, slots, none, c.candidates)

    return MovePath("reference", len(layers), move)


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
                row=0, slot=0, prompt_length=0, generated=2, window=1, begin=0, end=2, keep=0, event=1, catch_up=False
            )
        ]
    )
    return move
